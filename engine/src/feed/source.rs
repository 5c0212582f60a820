//! Reads messages and hands them to a server through a lane.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use seqcast_ring::{Consumer, Doorbell, LaneError, Producer, lane};

use super::Reader;
use super::fifo::{self, Patient};
use crate::config::{AtEnd, Source as Config};

/// Bytes of the lane between a source and its server.
const LANE: usize = 1 << 20;
/// How long a full lane or a pace may keep a source from looking whether it shall stop.
const LOOK: Duration = Duration::from_millis(50);

/// A running source.
pub struct Source {
    /// Where its messages arrive; an entry is a message without a subject.
    pub lane: Consumer,
    /// Rung after messages were taken out of the lane.
    pub room: Arc<Doorbell>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<u64>>,
}

impl Source {
    /// Starts reading behind the first `skip` messages. `bell` is rung for each batch of messages;
    /// `max` is the longest message that can be sent.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread not started.
    pub fn start(config: &Config, skip: u64, max: usize, bell: Arc<Doorbell>) -> io::Result<Source> {
        let (producer, consumer) = lane(LANE);
        let room = Arc::new(Doorbell::new()?);
        let stop = Arc::new(AtomicBool::new(false));
        let file = match &config.file {
            Some(path) => Some(File::open(path).map_err(|e| named(&path.display().to_string(), e))?),
            None => None,
        };
        let feeder = Feeder {
            config: config.clone(),
            producer,
            bell,
            room: Arc::clone(&room),
            stop: Arc::clone(&stop),
            max,
            sent: 0,
            start: Instant::now(),
        };
        let thread = std::thread::Builder::new()
            .name("source".into())
            .spawn(move || feeder.run(file, skip))?;
        Ok(Source {
            lane: consumer,
            room,
            stop,
            thread,
        })
    }

    /// Asks the source to stop reading; what it has read still arrives.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.room.ring();
    }

    /// Whether the source has ended and everything it read was taken.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.lane.is_finished()
    }

    /// Waits for the end of the source's thread; how many messages it read.
    ///
    /// # Errors
    /// What stopped it.
    pub fn join(self) -> io::Result<u64> {
        self.stop();
        drop(self.lane);
        match self.thread.join() {
            Ok(result) => result,
            Err(_) => Err(io::Error::other("the source's thread panicked")),
        }
    }
}

fn named(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("source {what}: {error}"))
}

struct Feeder {
    config: Config,
    producer: Producer,
    bell: Arc<Doorbell>,
    room: Arc<Doorbell>,
    stop: Arc<AtomicBool>,
    max: usize,
    sent: u64,
    start: Instant,
}

impl Feeder {
    fn run(mut self, file: Option<File>, skip: u64) -> io::Result<u64> {
        let result = self.read_all(file, skip);
        // The server must notice that nothing more comes.
        let (bell, sent) = (Arc::clone(&self.bell), self.sent);
        drop(self);
        bell.ring();
        result.map(|()| sent)
    }

    fn read_all(&mut self, file: Option<File>, skip: u64) -> io::Result<()> {
        self.start = Instant::now();
        let stop = Arc::clone(&self.stop);
        if let Some(file) = file {
            let name = self
                .config
                .file
                .as_ref()
                .map_or_else(String::new, |p| p.display().to_string());
            return self.feed(file, skip).map_err(|e| named(&name, e));
        }
        let Some(path) = self.config.fifo.clone() else {
            // The descriptor itself: the standard library's buffer would hide bytes from `poll`.
            let file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
            return self
                .feed(Patient { file, stop: &stop }, 0)
                .map_err(|e| named("stdin", e));
        };
        let name = path.display().to_string();
        while let Some(file) = fifo::open_read(&path, &stop).map_err(|e| named(&name, e))? {
            self.feed(Patient { file, stop: &stop }, 0)
                .map_err(|e| named(&name, e))?;
            if self.config.at_end == AtEnd::Close || stop.load(Ordering::Relaxed) {
                break;
            }
        }
        Ok(())
    }

    fn feed(&mut self, from: impl Read, skip: u64) -> io::Result<()> {
        let mut reader = Reader::new(self.config.format, from)?;
        for _ in 0..skip {
            if reader.next_message()?.is_none() {
                break;
            }
        }
        let mut number = skip;
        while let Some(message) = reader.next_message()? {
            number += 1;
            if message.len() > self.max {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "message {number} has {} bytes; one frame of this link carries at most {}: raise the MTU or split it",
                        message.len(),
                        self.max
                    ),
                ));
            }
            self.pace();
            if !Self::push(&mut self.producer, &self.room, &self.stop, message) {
                return Ok(());
            }
            self.sent += 1;
            self.bell.ring();
        }
        Ok(())
    }

    /// Waits until the next message is due.
    fn pace(&self) {
        let Some(rate) = self.config.rate else { return };
        let due = self.start + Duration::from_secs_f64(self.sent as f64 / rate);
        loop {
            let now = Instant::now();
            if now >= due || self.stop.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep((due - now).min(LOOK));
        }
    }

    /// Puts a message into the lane, waiting for room. False when the source shall stop.
    fn push(producer: &mut Producer, room: &Doorbell, stop: &AtomicBool, message: &[u8]) -> bool {
        loop {
            if stop.load(Ordering::Relaxed) || producer.is_closed() {
                return false;
            }
            match producer.try_push(0, &[message]) {
                Ok(()) => return true,
                // The length was checked: a lane takes far more than a frame.
                Err(LaneError::TooLarge) => return false,
                Err(LaneError::Full) => {}
            }
            room.arm();
            let pushed = producer.try_push(0, &[message]).is_ok();
            if !pushed {
                room.wait(LOOK);
            }
            room.disarm();
            if pushed {
                return true;
            }
        }
    }
}

//! Reads messages and hands them to a server through a lane.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use seqcast_proto::wire::Message;
use seqcast_ring::{Consumer, Doorbell, LaneError, Producer, lane};

use super::Reader;
use super::fifo::{self, Patient};
use super::mold::source::Subscription;
use super::subject::{Router, Subjects};
use crate::config::{AtEnd, Source as Config};
use crate::report::{MoldSourceCounts, MoldSourceReport};

/// Bytes of the lane between a source and its server.
const LANE: usize = 1 << 20;
/// How long a full lane or a pace may keep a source from looking whether it shall stop.
const LOOK: Duration = Duration::from_millis(50);

/// What one stream gets of a running source.
pub struct Source {
    /// Where its messages arrive; an entry's tag is the length of the subject in front.
    pub lane: Consumer,
    /// Rung after messages were taken out of the lane.
    pub room: Arc<Doorbell>,
    stop: Arc<AtomicBool>,
    rate: Arc<AtomicU64>,
    mold: Option<Arc<Mutex<MoldSourceReport>>>,
    thread: Arc<Mutex<Thread>>,
}

/// The thread that reads, shared by all that it feeds.
enum Thread {
    Runs(JoinHandle<io::Result<()>>),
    Ended(Result<(), (io::ErrorKind, String)>),
}

impl Thread {
    /// Waits for the end; every caller learns how it was.
    fn join(&mut self) -> io::Result<()> {
        let before = std::mem::replace(self, Thread::Ended(Ok(())));
        let result = match before {
            Thread::Ended(result) => result,
            Thread::Runs(thread) => match thread.join() {
                Ok(result) => result.map_err(|e| (e.kind(), e.to_string())),
                Err(_) => Err((io::ErrorKind::Other, "the source's thread panicked".into())),
            },
        };
        *self = Thread::Ended(result.clone());
        result.map_err(|(kind, text)| io::Error::new(kind, text))
    }
}

impl Source {
    /// Starts reading for as many streams as `skip` has entries: each gets those messages that
    /// `router` sends there, all without one, but not its first `skip`. `bell` is rung for each
    /// message; `max` is the longest message, with its subject, that can be sent.
    ///
    /// # Errors
    /// When the file or the feed cannot be opened or the thread not started.
    pub fn start(
        config: &Config,
        router: Option<Router>,
        skip: Vec<u64>,
        max: usize,
        bell: Arc<Doorbell>,
    ) -> io::Result<Vec<Source>> {
        let (producers, consumers): (Vec<_>, Vec<_>) = skip.iter().map(|_| lane(LANE)).unzip();
        let room = Arc::new(Doorbell::new()?);
        let stop = Arc::new(AtomicBool::new(false));
        let rate = Arc::new(AtomicU64::new(bits(config.rate)));
        let file = match &config.file {
            Some(path) => Some(File::open(path).map_err(|e| named(&path.display().to_string(), e))?),
            None => None,
        };
        let mold = config.mold.is_some().then(Arc::default);
        let (opened, wait) = sync_channel(1);
        let feeder = Feeder {
            mold: mold.clone(),
            opened,
            config: config.clone(),
            producers,
            router,
            skip,
            bell,
            room: Arc::clone(&room),
            stop: Arc::clone(&stop),
            rate: Arc::clone(&rate),
            max,
            paced: bits(config.rate),
            sent: 0,
            start: Instant::now(),
        };
        let thread = std::thread::Builder::new()
            .name("source".into())
            .spawn(move || feeder.run(file))?;
        let mut thread = Thread::Runs(thread);
        if mold.is_some() && wait.recv().is_err() {
            // It ended before it had opened the feed.
            thread.join()?;
        }
        let thread = Arc::new(Mutex::new(thread));
        let source = |lane| Source {
            lane,
            room: Arc::clone(&room),
            stop: Arc::clone(&stop),
            rate: Arc::clone(&rate),
            mold: mold.clone(),
            thread: Arc::clone(&thread),
        };
        Ok(consumers.into_iter().map(source).collect())
    }

    /// Asks the source to stop reading, for all its streams; what it has read still arrives.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.room.ring();
    }

    /// So many messages a second from now on, for all its streams together.
    pub fn set_rate(&self, rate: Option<f64>) {
        self.rate.store(bits(rate), Ordering::Relaxed);
    }

    /// What a feed has received.
    #[must_use]
    pub fn mold_report(&self) -> Option<MoldSourceReport> {
        let report = self.mold.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        Some(report.clone())
    }

    /// What a feed has received, if its thread is not just writing that down.
    pub(crate) fn mold_counts(&self) -> Option<MoldSourceCounts> {
        Some(self.mold.as_ref()?.try_lock().ok()?.counts)
    }

    /// Whether the source has ended and everything it read was taken.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.lane.is_finished()
    }

    /// Stops the source and waits for the end of its thread.
    ///
    /// # Errors
    /// What stopped it before.
    pub fn join(self) -> io::Result<()> {
        self.stop();
        drop(self.lane);
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.join()
    }
}

/// A rate as an atomic holds it; 0, which is no rate, stands for none.
fn bits(rate: Option<f64>) -> u64 {
    rate.map_or(0, f64::to_bits)
}

fn named(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("source {what}: {error}"))
}

fn refused(number: u64, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("message {number}: {why}"))
}

struct Feeder {
    config: Config,
    /// What a feed has received, and who waits until it is opened.
    mold: Option<Arc<Mutex<MoldSourceReport>>>,
    opened: SyncSender<()>,
    /// One for each stream.
    producers: Vec<Producer>,
    router: Option<Router>,
    /// Messages that each stream still has from an earlier run.
    skip: Vec<u64>,
    bell: Arc<Doorbell>,
    room: Arc<Doorbell>,
    stop: Arc<AtomicBool>,
    /// Messages a second, see [`bits`], which may change at any time.
    rate: Arc<AtomicU64>,
    max: usize,
    /// The rate at which so many messages were sent since the start.
    paced: u64,
    sent: u64,
    start: Instant,
}

impl Feeder {
    fn run(mut self, file: Option<File>) -> io::Result<()> {
        let result = self.read_all(file);
        // The servers must notice that nothing more comes.
        let bell = Arc::clone(&self.bell);
        drop(self);
        bell.ring();
        result
    }

    fn read_all(&mut self, file: Option<File>) -> io::Result<()> {
        self.start = Instant::now();
        let stop = Arc::clone(&self.stop);
        if let Some(file) = file {
            let name = self
                .config
                .file
                .as_ref()
                .map_or_else(String::new, |p| p.display().to_string());
            return self.feed(file).map_err(|e| named(&name, e));
        }
        if self.config.mold.is_some() {
            return self.subscribe();
        }
        let Some(path) = self.config.fifo.clone() else {
            // The descriptor itself: the standard library's buffer would hide bytes from `poll`.
            let file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
            return self.feed(Patient { file, stop: &stop }).map_err(|e| named("stdin", e));
        };
        let name = path.display().to_string();
        while let Some(file) = fifo::open_read(&path, &stop).map_err(|e| named(&name, e))? {
            self.feed(Patient { file, stop: &stop }).map_err(|e| named(&name, e))?;
            if self.config.at_end == AtEnd::Close || stop.load(Ordering::Relaxed) {
                break;
            }
        }
        Ok(())
    }

    fn feed(&mut self, from: impl Read) -> io::Result<()> {
        let mut reader = Reader::new(self.config.format, from)?;
        let mut subjects = Subjects::new(&self.config);
        let mut number = 0_u64;
        while let Some(read) = reader.next_message()? {
            number += 1;
            if !self.offer(&mut subjects, number, read)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Takes what a feed brings.
    fn subscribe(&mut self) -> io::Result<()> {
        let Config {
            mold: Some(config),
            at_end,
            ..
        } = self.config.clone()
        else {
            return Ok(());
        };
        let (stop, bell, opened) = (Arc::clone(&self.stop), Arc::clone(&self.room), self.opened.clone());
        let mut subjects = Subjects::new(&self.config);
        // Earlier runs' messages do not come again: the feed is taken up behind them.
        let published = self.skip.first_mut().map_or(0, std::mem::take);
        let name = format!("mold {}", config.group);
        let subscription = Subscription {
            config: &config,
            at_end,
            published,
            stop: &stop,
            bell: &bell,
            report: self.mold.clone().unwrap_or_default(),
            opened: &mut || {
                let _ = opened.try_send(());
            },
            offer: &mut |number, message| self.offer(&mut subjects, number, message),
        };
        subscription.run().map_err(|e| named(&name, e))
    }

    /// Hands a message to the server of its stream; false when the source shall stop.
    fn offer(&mut self, subjects: &mut Subjects, number: u64, read: &[u8]) -> io::Result<bool> {
        let message = subjects.split(read).map_err(|why| refused(number, &why))?;
        let stream = match &mut self.router {
            None => 0,
            Some(router) => router.stream_of(message.subject).ok_or_else(|| {
                let subject = String::from_utf8_lossy(message.subject);
                refused(number, &format!("no [[route]] takes its subject {subject:?}: add one, or one without `subjects` for all that is left"))
            })?,
        };
        if self.skip[stream] > 0 {
            self.skip[stream] -= 1;
            return Ok(true);
        }
        let length = message.subject.len() + message.payload.len();
        if length > self.max {
            return Err(refused(
                number,
                &format!(
                    "{length} bytes with its subject; one frame of this link carries at most {}: raise the MTU or split it",
                    self.max
                ),
            ));
        }
        self.pace();
        if !Self::push(&mut self.producers[stream], &self.room, &self.stop, &message) {
            return Ok(false);
        }
        self.sent += 1;
        self.bell.ring();
        Ok(true)
    }

    /// Waits until the next message is due.
    fn pace(&mut self) {
        loop {
            let rate = self.rate.load(Ordering::Relaxed);
            if rate == 0 && self.paced == 0 {
                return;
            }
            let now = Instant::now();
            if rate != self.paced {
                (self.paced, self.start, self.sent) = (rate, now, 0);
            }
            if rate == 0 {
                return;
            }
            let due = self.start + Duration::from_secs_f64(self.sent as f64 / f64::from_bits(rate));
            if now >= due || self.stop.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep((due - now).min(LOOK));
        }
    }

    /// Puts a message into the lane, waiting for room. False when the source shall stop.
    fn push(producer: &mut Producer, room: &Doorbell, stop: &AtomicBool, message: &Message<'_>) -> bool {
        let tag = message.subject.len() as u32;
        let parts = [message.subject, message.payload];
        loop {
            if stop.load(Ordering::Relaxed) || producer.is_closed() {
                return false;
            }
            match producer.try_push(tag, &parts) {
                Ok(()) => return true,
                // The length was checked: a lane takes far more than a frame.
                Err(LaneError::TooLarge) => return false,
                Err(LaneError::Full) => {}
            }
            room.arm();
            let pushed = producer.try_push(tag, &parts).is_ok();
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

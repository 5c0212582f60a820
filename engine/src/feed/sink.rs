//! Takes delivered messages out of a lane and writes them.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use seqcast_proto::io::Delivery;
use seqcast_proto::seq::Seq;
use seqcast_proto::wire::Block;
use seqcast_ring::{Consumer, Doorbell, Producer, lane};

use super::{Format, fifo, write_message};
use crate::config::Sink as Config;

/// Bytes of the lane between a client and its sink.
const LANE: usize = 4 << 20;
const BUFFER: usize = 256 << 10;
/// How long an empty lane may keep a sink from looking whether it shall stop.
const LOOK: Duration = Duration::from_millis(50);
/// Number and count of a block, in front of its bytes in the lane.
const HEAD: usize = 8;

/// A running sink.
pub struct Sink {
    lane: Producer,
    /// Wakes the sink's thread.
    bell: Arc<Doorbell>,
    /// Blocks were put in since the last ring.
    quiet: bool,
    failed: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<()>>,
}

impl Sink {
    /// Opens the target and starts writing. `room` is rung when the lane has room again.
    ///
    /// # Errors
    /// When the file cannot be made or the thread not started.
    pub fn start(config: &Config, room: Arc<Doorbell>) -> io::Result<Sink> {
        let (producer, consumer) = lane(LANE);
        let bell = Arc::new(Doorbell::new()?);
        let failed = Arc::new(AtomicBool::new(false));
        let stop = Arc::new(AtomicBool::new(false));
        let file = match &config.file {
            Some(path) => Some(File::create(path).map_err(|e| named(&path.display().to_string(), e))?),
            None => None,
        };
        let config = config.clone();
        let (bell_there, failed_there, stop_there) = (Arc::clone(&bell), Arc::clone(&failed), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("sink".into()).spawn(move || {
            let result = write_all(&config, file, consumer, &bell_there, &room, &stop_there);
            failed_there.store(result.is_err(), Ordering::Release);
            room.ring();
            result
        })?;
        Ok(Sink {
            lane: producer,
            bell,
            quiet: true,
            failed,
            stop,
            thread,
        })
    }

    /// Takes delivered messages; false when there is no room now.
    pub fn put(&mut self, delivery: &Delivery<'_>) -> bool {
        let block = &delivery.block;
        let first = block.first().0.to_le_bytes();
        let count = u32::from(block.count()).to_le_bytes();
        let taken = self.lane.try_push(0, &[&first, &count, block.bytes()]).is_ok();
        self.quiet &= !taken;
        taken
    }

    /// Wakes the sink if something was put in.
    pub fn ring(&mut self) {
        if !self.quiet {
            self.quiet = true;
            self.bell.ring();
        }
    }

    /// Whether writing has failed; [`Sink::finish`] says why.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Lets everything be written and waits for it.
    ///
    /// # Errors
    /// What writing failed with.
    pub fn finish(self) -> io::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.lane);
        self.bell.ring();
        match self.thread.join() {
            Ok(result) => result,
            Err(_) => Err(io::Error::other("the sink's thread panicked")),
        }
    }
}

fn named(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("sink {what}: {error}"))
}

fn write_all(
    config: &Config,
    file: Option<File>,
    mut lane: Consumer,
    bell: &Doorbell,
    room: &Doorbell,
    stop: &AtomicBool,
) -> io::Result<()> {
    let (name, target): (String, Box<dyn Write>) = match (file, &config.file, &config.fifo) {
        (Some(file), Some(path), _) => (path.display().to_string(), Box::new(file)),
        (_, _, Some(path)) => {
            let name = path.display().to_string();
            match fifo::open_write(path, stop).map_err(|e| named(&name, e))? {
                Some(file) => (name, Box::new(file)),
                None => return Ok(()),
            }
        }
        _ => ("stdout".into(), Box::new(io::stdout())),
    };
    let mut out = BufWriter::with_capacity(BUFFER, target);
    loop {
        let mut result = Ok(());
        let taken = lane.drain(1024, |_, entry| {
            result = write_block(&mut out, config.format, entry);
            true
        });
        result.map_err(|e| named(&name, e))?;
        lane.flush();
        if taken > 0 {
            room.ring();
            continue;
        }
        out.flush().map_err(|e| named(&name, e))?;
        if lane.is_finished() {
            return Ok(());
        }
        bell.arm();
        if lane.peek().is_none() && !lane.is_finished() {
            bell.wait(LOOK);
        }
        bell.disarm();
    }
}

fn write_block(out: &mut impl Write, format: Format, entry: &[u8]) -> io::Result<()> {
    let Some((head, bytes)) = entry.split_first_chunk::<HEAD>() else {
        return Ok(());
    };
    let [a, b, c, d, e, f, ..] = *head;
    let first = Seq(u32::from_le_bytes([a, b, c, d]));
    let block = Block::trusted(first, u16::from_le_bytes([e, f]), bytes);
    block
        .messages()
        .try_for_each(|(_, message)| write_message(out, format, message.payload))
}

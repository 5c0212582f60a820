//! The append log, beside the least that any such log must do: copy each record into memory or a
//! mapped file that is there already, with the same header, alignment and checksum.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use core_affinity::CoreId;
use hdrhistogram::Histogram;
use memmap2::MmapMut;
use seqcast_archive::{Archive, Options, SessionLog, SessionMeta, crc32c_of};
use seqcast_proto::seq::{Seq, Session, Stream};

use crate::duel::histogram;
use crate::pair::pin;

/// Payload bytes of a record.
pub(crate) const SIZES: [usize; 3] = [64, 256, 1400];
/// Bytes after which an append run ends, whatever the time.
const MOST: usize = 1 << 30;
/// Bytes of the mapping that the limit writes to, again and again, and what a record takes besides
/// its payload.
const WINDOW: usize = 256 << 20;
const HEADER: usize = 32;
const SESSION: Session = Session(1);

/// Where a log keeps its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// Files in a new directory inside this one.
    Files(&'a Path),
    /// Anonymous memory, as a server without a state directory.
    Memory,
}

/// Runs `job` on a pinned thread, with an empty log that was opened before: its helper thread is
/// not pinned.
fn with_log<T: Send>(
    place: Place<'_>,
    core: CoreId,
    job: impl FnOnce(&mut SessionLog) -> Result<T> + Send,
) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let directory = match place {
                Place::Files(path) => Some(tempfile::tempdir_in(path).context("cannot make a directory for the log")?),
                Place::Memory => None,
            };
            let mut archive = match &directory {
                Some(directory) => Archive::open(directory.path(), Stream(82), Options::default())?,
                None => Archive::in_memory(Stream(82), Options::default())?,
            };
            let meta = SessionMeta {
                previous: Session::NONE,
                origin: 1,
                user: 0,
            };
            let log = archive.create_session(SESSION, meta)?;
            pin(core)?;
            let result = job(log);
            // Removed before it is written to disk: the next run shall not wait for the disk.
            drop(directory);
            result
        });
        thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
    })
}

/// Records a second.
pub(crate) fn append(place: Place<'_>, size: usize, core: CoreId, time: Duration) -> Result<f64> {
    with_log(place, core, |log| {
        let block = vec![0x5a; size];
        let start = Instant::now();
        let count = fill(log, &block, start, time)?;
        Ok(f64::from(count) / start.elapsed().as_secs_f64())
    })
}

/// Appends until the time is over or enough is stored; returns how many records.
fn fill(log: &mut SessionLog, block: &[u8], start: Instant, time: Duration) -> Result<u32> {
    let most = (MOST / (HEADER + block.len())) as u32;
    for number in 1..=most {
        log.append(Seq(number), 1, u64::from(number), u64::from(number), 0, block)?;
        if number % 256 == 0 && start.elapsed() >= time {
            return Ok(number);
        }
    }
    Ok(most)
}

/// Records a second of the limit.
pub(crate) fn append_limit(place: Place<'_>, size: usize, core: CoreId, time: Duration) -> Result<f64> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            pin(core)?;
            let mut window = match place {
                Place::Files(directory) => {
                    let file = tempfile::tempfile_in(directory).context("cannot make a file")?;
                    file.set_len(WINDOW as u64)?;
                    // SAFETY: the file has no name and is in nobody else's hands.
                    unsafe { MmapMut::map_mut(&file) }.context("cannot map a file")?
                }
                Place::Memory => MmapMut::map_anon(WINDOW).context("no memory")?,
            };
            window.fill(1);
            let block = vec![0x5a; size];
            let step = (HEADER + size).next_multiple_of(8);
            let (mut at, mut count) = (0, 0u64);
            let start = Instant::now();
            loop {
                if at + step > WINDOW {
                    at = 0;
                }
                let (header, payload) = window[at..at + HEADER + size].split_at_mut(HEADER);
                payload.copy_from_slice(&block);
                let words = [count; 3];
                let first = size as u64 | u64::from(crc32c_of(words, &block)) << 32;
                for (place, word) in header.as_chunks_mut().0.iter_mut().zip([first, count, count, count]) {
                    *place = word.to_le_bytes();
                }
                at += step;
                count += 1;
                if count.is_multiple_of(256) && start.elapsed() >= time {
                    return Ok(count as f64 / start.elapsed().as_secs_f64());
                }
            }
        });
        thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
    })
}

/// Nanoseconds of a read of a random record, checksum checked.
pub(crate) fn look_up(directory: &Path, size: usize, core: CoreId, time: Duration) -> Result<Histogram<u64>> {
    with_log(Place::Files(directory), core, |log| {
        let start = Instant::now();
        let count = fill(log, &vec![0x5a; size], start, time)?;
        let mut histogram = histogram();
        let mut random = 82u64;
        let start = Instant::now();
        let mut before = start;
        while before - start < time {
            // Knuth's multiplier; the upper bits are the good ones.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let seq = Seq(1 + (((random >> 32) * u64::from(count)) >> 32) as u32);
            let record = log.read(seq).with_context(|| format!("record {seq} is not there"))?;
            std::hint::black_box(record.block);
            let now = Instant::now();
            histogram.saturating_record((now - before).as_nanos() as u64);
            before = now;
        }
        Ok(histogram)
    })
}

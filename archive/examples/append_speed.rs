//! Appending beside the least that any such log must do: copying each record once into a mapping of
//! the same kind of file whose pages are there already, with the same checksum.
//!
//! ```text
//! cargo run --release -p seqcast-archive --example append_speed -- DIR [MILLISECONDS [ROUNDS [BYTES]]]
//! ```
//! `fresh` files are made while appending; `recycled` is a log bounded to 256 MiB by releasing, as
//! any bounded log is in the long run; `reserved` is a new log with a reserve of 2 GiB, and ends
//! before that is used up. Runs take turns, so that a noisy machine hits all alike; the
//! table has medians. BYTES: only records of so many. The appender is pinned to the first core, the background threads to the second.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use core_affinity::CoreId;
use memmap2::MmapMut;
use seqcast_archive::{Archive, Options, SessionMeta, crc32c_of};
use seqcast_proto::seq::{Seq, Session, Stream};

const SIZES: [usize; 3] = [64, 256, 1400];
/// Bytes that the limit writes to, again and again, and that a bounded log keeps.
const WINDOW: usize = 256 << 20;
/// Bytes after which a run ends, whatever the time.
const MOST: usize = 2 << 30;
const HEADER: usize = 32;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = args
        .next()
        .context("usage: append_speed DIR [MILLISECONDS [ROUNDS [BYTES]]]")?;
    let time = Duration::from_millis(args.next().map_or(Ok(500), |s| s.parse()).context("MILLISECONDS")?);
    let rounds: usize = args.next().map_or(Ok(7), |s| s.parse()).context("ROUNDS")?;
    let only: Option<usize> = args.next().map(|s| s.parse()).transpose().context("BYTES")?;
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let [ours, helpers, ..] = cores[..] else {
        bail!("needs two cores");
    };
    let dir = Path::new(&dir).join(format!("append-speed-{}", std::process::id()));
    fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
    let mut window = window(&dir)?;
    println!(
        "| record | copy and checksum, M/s | recycled, M/s | of the limit | reserved, M/s | of the limit | fresh, M/s | of the limit |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for size in SIZES.into_iter().filter(|&size| only.is_none_or(|only| size == only)) {
        let mut rates = [const { Vec::new() }; 4];
        for _ in 0..rounds {
            core_affinity::set_for_current(ours);
            rates[0].push(limit(&mut window, size, time));
            for (at, files) in [(1, Made::Recycled), (2, Made::Reserved), (3, Made::Fresh)] {
                rates[at].push(append(&dir.join("log"), size, time, files, [ours, helpers])?);
            }
        }
        let [limit, recycled, reserved, fresh] = rates.map(|mut rates| {
            rates.sort_by(f64::total_cmp);
            rates[rates.len() / 2] / 1e6
        });
        println!(
            "| {size} B | {limit:.1} | {recycled:.1} | {:.2} | {reserved:.1} | {:.2} | {fresh:.1} | {:.2} |",
            recycled / limit,
            reserved / limit,
            fresh / limit
        );
    }
    fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))
}

/// A mapped file of which all pages are there.
fn window(dir: &Path) -> Result<MmapMut> {
    let path = dir.join("window");
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    file.set_len(WINDOW as u64)?;
    // SAFETY: the file was just made here and is in nobody else's hands.
    let mut map = unsafe { MmapMut::map_mut(&file)? };
    map.fill(1);
    Ok(map)
}

/// Records a second of the limit.
fn limit(window: &mut [u8], size: usize, time: Duration) -> f64 {
    let block = vec![0x5a; size];
    let step = (HEADER + size).next_multiple_of(8);
    let (mut at, mut count) = (0, 0u64);
    let start = Instant::now();
    loop {
        if at + step > window.len() {
            at = 0;
        }
        let record = &mut window[at..at + HEADER + size];
        let header = [count, count, count];
        for (place, word) in record[8..HEADER].as_chunks_mut().0.iter_mut().zip(header) {
            *place = word.to_le_bytes();
        }
        record[HEADER..].copy_from_slice(&block);
        let sum = u64::from(crc32c_of(header, &block));
        record[..8].copy_from_slice(&(size as u64 | sum << 32).to_le_bytes());
        at += step;
        count += 1;
        if count.is_multiple_of(256) && start.elapsed() >= time {
            return count as f64 / start.elapsed().as_secs_f64();
        }
    }
}

/// Where the log's files come from.
#[derive(Clone, Copy, PartialEq)]
enum Made {
    Recycled,
    Reserved,
    Fresh,
}

/// Records a second appended to a new log.
fn append(dir: &Path, size: usize, time: Duration, files: Made, cores: [CoreId; 2]) -> Result<f64> {
    // The background threads inherit the affinity of the thread that opens.
    core_affinity::set_for_current(cores[1]);
    let options = Options {
        reserve: if files == Made::Reserved { MOST as u64 } else { 0 },
        ..Options::default()
    };
    let mut archive = Archive::open(dir, Stream(1), options)?;
    while archive.reserve().ready < archive.reserve().size {
        std::thread::sleep(Duration::from_millis(10));
    }
    core_affinity::set_for_current(cores[0]);
    let meta = SessionMeta {
        previous: Session::NONE,
        origin: 1,
        user: 0,
    };
    let log = archive.create_session(Session(1), meta)?;
    let block = vec![0x5a; size];
    let step = HEADER + size;
    let keep = (files == Made::Recycled).then_some((WINDOW / step) as u32);
    let most = match files {
        Made::Recycled => u32::MAX,
        Made::Reserved => (MOST / 16 * 15 / step) as u32,
        Made::Fresh => (MOST / step) as u32,
    };
    let mut number = 0;
    // A bounded log is measured once its files go round.
    let warm = keep.unwrap_or(0) / 2 * 3;
    let mut start = (Instant::now(), 0);
    while number < most {
        number += 1;
        log.append(Seq(number), 1, u64::from(number), u64::from(number), 0, &block)?;
        if number == warm {
            start = (Instant::now(), number);
        }
        if number % 4096 == 0 {
            if let Some(keep) = keep.filter(|&k| number > k) {
                log.release_below(Seq(number - keep));
            }
            if number > warm && start.0.elapsed() >= time {
                break;
            }
        }
    }
    let rate = f64::from(number - start.1) / start.0.elapsed().as_secs_f64();
    // Removed before it is written to disk: the next run shall not wait for the disk.
    archive.remove_session(Session(1))?;
    drop(archive);
    fs::remove_dir_all(dir)?;
    Ok(rate)
}

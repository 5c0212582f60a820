//! How long one append takes at a fixed rate, by sync policy, beside the same copy and checksum into
//! anonymous memory that is there already, and into memory that is written to disk behind it, and what the
//! background threads use.
//!
//! ```text
//! cargo run --release -p seqcast-archive --example append_latency -- DIR [SECONDS [ROUNDS [BYTES [RATE]]]]
//! ```
//! They are run in turn, round after round, so that a noisy machine hits all alike; the table
//! has the median over the rounds. The appender is pinned to core 0, the background threads to
//! core 1. Each append is timed by itself, at the time it was due or as soon as possible after.
//! The log is bounded to 256 MiB by releasing, as segments in long use are: recycled. BYTES, RATE: only
//! records of so many, only so many a second.

use std::fs::{self, File};
use std::hint::spin_loop;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use memmap2::MmapMut;
use seqcast_archive::{Archive, Options, SessionMeta, SyncPolicy, crc32c_of};
use seqcast_proto::seq::{Seq, Session, Stream};

const LOADS: [(usize, u64); 3] = [(256, 1_000_000), (1400, 500_000), (256, 20_000)];
/// What is measured.
#[derive(Clone, Copy)]
enum Way {
    /// The copy into anonymous memory, to which the others are compared.
    Memory,
    /// The same copy into a file in memory, which a thread beside writes to disk past the page cache (`O_DIRECT`)
    /// every 10 ms: what a log could be at best whose newest segments are in memory.
    Behind,
    /// The log.
    Log(SyncPolicy),
}

const WAYS: [(&str, Way); 6] = [
    ("(memory)", Way::Memory),
    ("(written behind, 10 ms)", Way::Behind),
    ("none", Way::Log(SyncPolicy::None)),
    ("10 ms", Way::Log(SyncPolicy::EveryMs(10))),
    ("100 ms", Way::Log(SyncPolicy::EveryMs(100))),
    ("1000 ms", Way::Log(SyncPolicy::EveryMs(1000))),
];
const KEPT: usize = 256 << 20;
const HEADER: usize = 32;
/// What a disk is written in past the page cache.
const BLOCK: u64 = 4096;

/// What one run measured.
#[derive(Clone, Copy)]
struct Run {
    p50: u64,
    p99: u64,
    p999: u64,
    p9999: u64,
    /// Appends a second that were reached.
    rate: f64,
    /// Cores used by the background threads.
    background: f64,
    /// Pages a second that the appender had to wait for.
    faults: f64,
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = args
        .next()
        .context("usage: append_latency DIR [SECONDS [ROUNDS [BYTES [RATE]]]]")?;
    let seconds: u64 = args.next().map_or(Ok(4), |s| s.parse()).context("SECONDS")?;
    let rounds: usize = args.next().map_or(Ok(5), |s| s.parse()).context("ROUNDS")?;
    let only: Option<usize> = args.next().map(|s| s.parse()).transpose().context("BYTES")?;
    let at_rate: Option<u64> = args.next().map(|s| s.parse()).transpose().context("RATE")?;
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let [ours, helpers, ..] = cores[..] else {
        bail!("needs two cores");
    };
    println!(
        "| record, rate | sync | p50 ns | p99 ns | of memory's | p99.9 ns | of memory's | p99.99 ns | reached, M/s | background, cores | appender's faults/s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let wanted = |&(bytes, rate): &(usize, u64)| only.is_none_or(|b| b == bytes) && at_rate.is_none_or(|r| r == rate);
    for (bytes, rate) in LOADS.into_iter().filter(wanted) {
        let mut runs = vec![Vec::new(); WAYS.len()];
        for _ in 0..rounds {
            for (at, (_, way)) in WAYS.into_iter().enumerate() {
                // The background threads inherit the affinity of the thread that opens.
                core_affinity::set_for_current(helpers);
                let pin = || {
                    core_affinity::set_for_current(ours);
                };
                let run = in_new(Path::new(&dir), |dir| match way {
                    Way::Memory => {
                        pin();
                        let mut window = MmapMut::map_anon(KEPT)?;
                        copies(&mut window, bytes, rate, seconds, |_| ())
                    }
                    Way::Behind => behind(dir, bytes, rate, seconds, pin),
                    Way::Log(sync) => measure(dir, sync, bytes, rate, seconds, pin),
                });
                runs[at].push(run?);
            }
        }
        let memory = &runs[0];
        for ((name, _), own) in WAYS.iter().zip(&runs) {
            let median = |of| median(own, of);
            // Within each round, then the median.
            let ratio = |of: fn(&Run) -> u64| {
                let mut values: Vec<f64> = own
                    .iter()
                    .zip(memory)
                    .map(|(r, m)| of(r) as f64 / of(m) as f64)
                    .collect();
                middle(&mut values)
            };
            println!(
                "| {bytes} B, {rate}/s | {name} | {} | {} | {:.2} | {} | {:.2} | {} | {:.2} | {:.3} | {:.0} |",
                median(|r| r.p50 as f64),
                median(|r| r.p99 as f64),
                ratio(|r| r.p99),
                median(|r| r.p999 as f64),
                ratio(|r| r.p999),
                median(|r| r.p9999 as f64),
                median(|r| r.rate / 1e6),
                median(|r| r.background),
                median(|r| r.faults),
            );
        }
    }
    Ok(())
}

fn median(runs: &[Run], of: fn(&Run) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(of).collect();
    middle(&mut values)
}

fn middle(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs `job` with a directory that is there for so long.
fn in_new<T>(parent: &Path, job: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let dir = parent.join(format!("append-latency-{}", std::process::id()));
    fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
    let done = job(&dir);
    fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    done
}

/// The least that an append must do; `publish` is told how many bytes were written in all.
fn copies(window: &mut [u8], bytes: usize, rate: u64, seconds: u64, publish: impl Fn(u64)) -> Result<Run> {
    window.fill(1);
    let block = vec![0x5a; bytes];
    let step = (HEADER + bytes).next_multiple_of(8);
    let (mut at, mut written) = (0, 0);
    paced(rate, seconds, |n| {
        if at + step > window.len() {
            written += (window.len() - at) as u64;
            at = 0;
        }
        let from = Instant::now();
        let (start, rest) = window[at..at + HEADER + bytes].split_at_mut(HEADER);
        rest.copy_from_slice(&block);
        let head = [n, n, n];
        let word = bytes as u64 | u64::from(crc32c_of(head, &block)) << 32;
        for (place, word) in start.as_chunks_mut().0.iter_mut().zip([word, n, n, n]) {
            *place = word.to_le_bytes();
        }
        at += step;
        written += step as u64;
        publish(written);
        Ok(from.elapsed())
    })
}

/// As [`Way::Behind`] says.
fn behind(dir: &Path, bytes: usize, rate: u64, seconds: u64, pin: impl Fn()) -> Result<Run> {
    let memory = tempfile::tempfile_in("/dev/shm").context("make a file in memory")?;
    memory.set_len(KEPT as u64)?;
    // SAFETY: the file has no name, and the thread beside only reads it, by system call.
    let mut window = unsafe { MmapMut::map_mut(&memory)? };
    let path = dir.join("behind");
    // Written once before: a file that grows has its journal written at each sync.
    fs::write(&path, &window)?;
    let disk = File::options().write(true).custom_flags(libc::O_DIRECT).open(&path)?;
    disk.sync_all()?;
    let (tail, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut piece = MmapMut::map_anon(1 << 20)?;
            let mut done = 0;
            while !stop.load(Ordering::Acquire) {
                let tail = tail.load(Ordering::Acquire);
                // Whole blocks: the one that the tail is in is written again next time.
                while done < tail {
                    let from = done / BLOCK * BLOCK;
                    let place = from % KEPT as u64;
                    let most = (piece.len() as u64).min(KEPT as u64 - place);
                    let len = (tail.next_multiple_of(BLOCK) - from).min(most);
                    memory.read_exact_at(&mut piece[..len as usize], place)?;
                    disk.write_all_at(&piece[..len as usize], place)?;
                    done = tail.min(from + len);
                }
                disk.sync_data()?;
                std::thread::park_timeout(Duration::from_millis(10));
            }
            anyhow::Ok(())
        });
        pin();
        let run = copies(&mut window, bytes, rate, seconds, |end| {
            tail.store(end, Ordering::Release)
        });
        stop.store(true, Ordering::Release);
        writer.thread().unpark();
        let written = writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?;
        written.and(run)
    })
}

fn measure(dir: &Path, sync: SyncPolicy, bytes: usize, rate: u64, seconds: u64, pin: impl Fn()) -> Result<Run> {
    let options = Options {
        sync,
        ..Options::default()
    };
    let mut archive = Archive::open(dir, Stream(1), options)?;
    pin();
    let meta = SessionMeta {
        previous: Session::NONE,
        origin: 1,
        user: 0,
    };
    let log = archive.create_session(Session(1), meta)?;
    let block = vec![0x5a; bytes];
    let keep = (KEPT / (bytes + HEADER)) as u32;
    let run = paced(rate, seconds, |n| {
        let from = Instant::now();
        log.append(Seq(n as u32 + 1), 1, n, n, 0, &block)?;
        let took = from.elapsed();
        if n % 4096 == 0 && log.stored().total() > u64::from(keep) {
            log.release_below(Seq(n as u32 - keep));
        }
        Ok(took)
    })?;
    archive.close()?;
    Ok(run)
}

/// Calls `append`, which says how long it took, at the time it is due or as soon as possible after.
fn paced(rate: u64, seconds: u64, mut append: impl FnMut(u64) -> Result<Duration>) -> Result<Run> {
    let mut histogram = Histogram::<u64>::new_with_bounds(1, 1_000_000_000, 3)?;
    let (total, warm) = (rate * seconds, rate);
    let mut before = (0.0, 0.0, Instant::now());
    let gap = Duration::from_secs(1).as_nanos() as u64;
    let start = Instant::now();
    for n in 0..warm + total {
        if n == warm {
            before = (background()?, faults()?, Instant::now());
        }
        let due = start + Duration::from_nanos(gap * n / rate);
        while Instant::now() < due {
            spin_loop();
        }
        let took = append(n)?;
        if n >= warm {
            histogram.saturating_record(took.as_nanos() as u64);
        }
    }
    let wall = before.2.elapsed().as_secs_f64();
    Ok(Run {
        p50: histogram.value_at_quantile(0.5),
        p99: histogram.value_at_quantile(0.99),
        p999: histogram.value_at_quantile(0.999),
        p9999: histogram.value_at_quantile(0.9999),
        rate: total as f64 / wall,
        background: (background()? - before.0) / wall,
        faults: (faults()? - before.1) / wall,
    })
}

/// A field of a task's `stat`, counted from the state on.
fn field(stat: &str, at: usize) -> Result<f64> {
    let fields = stat.rsplit_once(')').context("task stat")?.1;
    Ok(fields.split_whitespace().nth(at).context("task stat")?.parse()?)
}

/// Processor time of all threads but this one, in seconds.
fn background() -> Result<f64> {
    let mut sum = 0.0;
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?;
        if task.file_name().to_string_lossy() == std::process::id().to_string() {
            continue;
        }
        let stat = fs::read_to_string(task.path().join("stat"))?;
        // User and system time, in clock ticks of 10 ms.
        sum += (field(&stat, 11)? + field(&stat, 12)?) / 100.0;
    }
    Ok(sum)
}

/// Page faults of this thread that needed no disk.
fn faults() -> Result<f64> {
    field(&fs::read_to_string("/proc/thread-self/stat")?, 7)
}

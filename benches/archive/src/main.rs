//! `seqcast-archive-bench`: the archive's log beside LMDB, redb, fjall and a Kafka-like commit log.
//! `docs/benchmarks.md` says what each figure is.

mod stores;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use core_affinity::CoreId;

use stores::{HEADER, Kind, Store};

/// Payload bytes of a record.
const SIZES: [usize; 3] = [64, 256, 1400];
/// Records of a peer's transaction or batch. One record at a time each of them is far slower.
const BATCH: u32 = 1024;
/// Bytes after which an append run ends, whatever the time.
const MOST: u64 = 1 << 30;
/// Bytes of records, and payload bytes of one, in the store that is searched.
const SEARCHED: u64 = 1 << 30;
const SEARCHED_SIZE: usize = 256;
/// Look-ups in one read transaction.
const LOOK_UPS: usize = 1024;
/// Opened and closed this often; the table has the median.
const OPENINGS: usize = 5;

/// Measures the archive's log beside other stores, on files in one directory.
///
/// Takes up to 1.5 GiB there, and with --open as much as that says. Everything is removed.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Where to make the stores.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Rounds; every store has its turn in each.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Milliseconds of one append run, and of one store's look-ups.
    #[arg(long, default_value_t = 500)]
    ms: u64,
    /// Only stores whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Instead measure opening the archive's log after an orderly stop, with so many MB in it.
    #[arg(long, value_name = "MB", num_args = 1..)]
    open: Vec<u64>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("seqcast-archive-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    ensure!(cli.rounds > 0 && cli.ms >= 10, "at least one round of 10 ms");
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let [ours, ..] = cores[..] else {
        bail!("the kernel does not say which cores there are");
    };
    let time = Duration::from_millis(cli.ms);
    if !cli.open.is_empty() {
        return openings(cli);
    }
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|k| k.name().contains(&cli.only)).collect();
    println!(
        "| append, M records/s | {} |",
        kinds.iter().map(|k| k.name()).collect::<Vec<_>>().join(" | ")
    );
    println!("|---|{}", "---|".repeat(kinds.len()));
    for size in SIZES {
        row(&format!("{size} B"), &kinds, cli.rounds, |kind| {
            append(kind, &cli.dir, size, ours, time)
        })?;
    }
    look_ups(cli, &kinds, ours, time)
}

/// Runs `job` on a thread of its own with a store that was opened, in a new directory, before the
/// thread is pinned: what works in the background may use the other core.
fn with_store<T: Send>(
    kind: Kind,
    dir: &Path,
    core: CoreId,
    job: impl FnOnce(&mut dyn Store) -> Result<T> + Send,
) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let dir = tempfile::tempdir_in(dir).context("cannot make a directory")?;
            let mut store = kind.open(dir.path())?;
            ensure!(core_affinity::set_for_current(core), "cannot pin to core {}", core.id);
            let result = job(&mut *store);
            // Removed before all of it is written to disk: the next run shall not wait for that.
            drop(dir);
            result
        });
        thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
    })
}

/// Prints medians over rounds in which each store has its turn.
fn row(name: &str, kinds: &[Kind], rounds: usize, mut measure: impl FnMut(Kind) -> Result<f64>) -> Result<()> {
    let mut values = vec![Vec::new(); kinds.len()];
    for _ in 0..rounds {
        for (kind, values) in kinds.iter().zip(&mut values) {
            values.push(measure(*kind).with_context(|| kind.name())?);
        }
    }
    let medians: Vec<String> = values.iter_mut().map(|v| format!("{:.2}", median(v))).collect();
    println!("| {name} | {} |", medians.join(" | "));
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn append(kind: Kind, dir: &Path, size: usize, core: CoreId, time: Duration) -> Result<f64> {
    with_store(kind, dir, core, |store| {
        let start = Instant::now();
        let count = fill(store, size, MOST, Some(time))?;
        Ok(f64::from(count) / start.elapsed().as_secs_f64() / 1e6)
    })
}

/// Appends until the time is over or there are so many bytes; returns how many records.
fn fill(store: &mut dyn Store, size: usize, bytes: u64, time: Option<Duration>) -> Result<u32> {
    let payload = vec![0x5a; size];
    let most = (bytes / (HEADER + size) as u64) as u32;
    let start = Instant::now();
    let mut count = 0;
    while count < most {
        store.append(count + 1, BATCH, &payload)?;
        count += BATCH;
        if time.is_some_and(|time| start.elapsed() >= time) {
            break;
        }
    }
    Ok(count)
}

fn look_ups(cli: &Cli, kinds: &[Kind], core: CoreId, time: Duration) -> Result<()> {
    println!("\n| random look-up, 1 GiB of {SEARCHED_SIZE} B, µs | mean |");
    println!("|---|---|");
    for kind in kinds {
        let mut means = with_store(*kind, &cli.dir, core, |store| {
            let count = fill(store, SEARCHED_SIZE, SEARCHED, None)?;
            (0..cli.rounds)
                .map(|_| look_up(store, count, time))
                .collect::<Result<Vec<f64>>>()
        })
        .with_context(|| kind.name())?;
        println!("| {} | {:.2} |", kind.name(), median(&mut means));
    }
    Ok(())
}

/// Mean microseconds of a look-up.
fn look_up(store: &mut dyn Store, count: u32, time: Duration) -> Result<f64> {
    let mut random = 82u64;
    let mut into = vec![0; SEARCHED_SIZE];
    let mut numbers = vec![0; LOOK_UPS];
    let mut total = 0;
    let mut spent = Duration::ZERO;
    while spent < time {
        for number in &mut numbers {
            // Knuth's multiplier; the upper bits are the good ones.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *number = 1 + (((random >> 32) * u64::from(count)) >> 32) as u32;
        }
        let start = Instant::now();
        store.read(&numbers, &mut into)?;
        spent += start.elapsed();
        total += numbers.len();
    }
    Ok(spent.as_secs_f64() * 1e6 / total as f64)
}

/// Opens logs of different sizes again, with the session ready to be read.
fn openings(cli: &Cli) -> Result<()> {
    println!("| log after an orderly stop | files | opened in, ms | first read after it, µs |");
    println!("|---|---|---|---|");
    for &megabytes in &cli.open {
        let dir = tempfile::tempdir_in(&cli.dir).context("cannot make a directory")?;
        let mut store = Kind::Seqcast.open(dir.path())?;
        let count = fill(&mut *store, 1400, megabytes * 1_000_000, None)?;
        store.close()?;
        let mut times = Vec::new();
        let mut reads = Vec::new();
        for _ in 0..OPENINGS {
            let start = Instant::now();
            let mut store = Kind::Seqcast.open(dir.path())?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
            let (mut into, number) = (vec![0; 1400], [count / 2]);
            let start = Instant::now();
            store.read(&number, &mut into)?;
            reads.push(start.elapsed().as_secs_f64() * 1e6);
            store.close()?;
        }
        let files = fs::read_dir(dir.path().join("0000000001"))?.count();
        println!(
            "| {megabytes} MB | {files} | {:.2} | {:.0} |",
            median(&mut times),
            median(&mut reads)
        );
    }
    Ok(())
}

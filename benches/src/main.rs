//! `seqcast-bench`: what the engine does on a veth pair, beside the raw limits, the kernel and its
//! own links, in one run. `docs/benchmarks.md` says what each figure is.

#![cfg_attr(
    not(feature = "xdp"),
    allow(
        dead_code,
        reason = "some rows need AF_XDP, and what they alone use is not worth a mark each"
    )
)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;

#[cfg(feature = "peers")]
mod aeron;
#[cfg(feature = "xdp")]
mod bare;
mod duel;
mod engine;
mod greedy;
mod jitter;
mod kernel;
mod log;
mod network;
mod pair;
mod plot;
mod programs;
mod results;
mod rings;
mod seals;
mod subjects;

use pair::{Cable, Pair};
use results::{Limit, Name, Results};

/// Groups of rows.
const ROUND_TRIP: &str = "Round trip, 64 B";
const ONE_WAY: &str = "One way, 64 B every 20 us";
const RATE: &str = "Throughput, messages";
const REPAIR: &str = "Repaired messages, from the gap to delivery";
const RINGS: &str = "Rings, 64 B core to core";
const LOG: &str = "Append log";
/// A task of rings.
const TRIP: &str = "round trip";
const SEALS: &str = "Seals of keyed streams, frames";
const SUBJECTS: &str = "Look-up of a subject, 1000 subscriptions";
/// In the order of the table.
const GROUPS: [&str; 8] = [ROUND_TRIP, ONE_WAY, RATE, REPAIR, RINGS, SUBJECTS, SEALS, LOG];

/// Seconds for measuring again what others on the machine disturbed.
const PATIENCE: u64 = 80;
const QUICK_PATIENCE: u64 = 8;

/// Measures Seqcast beside the raw limits, the kernel and other queues, on two cores of this machine.
///
/// The network part needs root: it makes two network namespaces joined by veth pairs, which are
/// gone when it ends, however it ends. Nothing else is touched.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// About 30 s instead of about 3 minutes: fewer rounds, shorter each.
    #[arg(long)]
    quick: bool,
    /// Where to write the results.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Rounds; every contender has its turn in each.
    #[arg(long)]
    rounds: Option<usize>,
    /// Milliseconds of one measurement.
    #[arg(long)]
    ms: Option<u64>,
    /// Only contenders whose name contains this, or one of several texts with `|` between them.
    #[arg(long, default_value = "")]
    only: String,
    /// On the network only tasks whose name contains this.
    #[arg(long, default_value = "")]
    task: String,
    /// Instead of a veth pair two network cards of this machine, joined by a cable. They must be
    /// free: no IPv4 address. They go back when the run ends, without addresses.
    #[arg(long, value_names = ["NEAR", "FAR"], num_args = 2)]
    cards: Option<Vec<String>>,
    /// Bind AF_XDP in driver mode with zero-copy, or fail. For cards.
    #[arg(long)]
    zero_copy: bool,
    /// Leave out the network.
    #[arg(long)]
    no_network: bool,
    /// Leave out rings, subjects, seals and log.
    #[arg(long)]
    no_memory: bool,
}

/// Whether `--only` asks for a contender.
fn is_wanted(only: &str, contender: &str) -> bool {
    only.split('|').any(|part| contender.contains(part))
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("seqcast-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let rounds = cli.rounds.unwrap_or(if cli.quick { 2 } else { 5 });
    let time = Duration::from_millis(cli.ms.unwrap_or(if cli.quick { 50 } else { 150 }));
    ensure!(
        rounds > 0 && time >= Duration::from_millis(10),
        "at least one round of 10 ms"
    );
    std::fs::create_dir_all(&cli.out).with_context(|| format!("cannot make {}", cli.out.display()))?;
    let cores = pair::two_cores()?;
    let start = Instant::now();
    let mut results = Results::default();
    let cable = match cli.cards.as_deref() {
        Some([near, far]) => Cable::Cards([near.clone(), far.clone()]),
        _ => Cable::Veth,
    };
    let mut pair = if cli.no_network {
        None
    } else {
        Some(Pair::new(cores, &cable, cli.zero_copy)?)
    };
    let patience = Duration::from_secs(if cli.quick { QUICK_PATIENCE } else { PATIENCE }) / rounds as u32;
    for round in 1..=rounds {
        results.add_jitter(jitter::measure(cores, time)?);
        if let Some(pair) = &mut pair {
            network::round(pair, time, patience, [&cli.only, &cli.task], &cli.out, &mut results)?;
        }
        if !cli.no_memory {
            memory_round(cli, cores, time, &mut results)?;
        }
        eprintln!("round {round} of {rounds}, {:.0} s", start.elapsed().as_secs_f64());
    }
    let about = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "arguments": std::env::args().skip(1).collect::<Vec<_>>(),
        "rounds": rounds,
        "ms": time.as_millis() as u64,
        "cores": cores.map(|core| core.id),
        "kernel": read("/proc/sys/kernel/osrelease"),
        "processor": processor(),
    });
    results.write(&cli.out, &about)?;
    print!("{}", results.table());
    println!("written to {}", cli.out.display());
    Ok(())
}

fn memory_round(cli: &Cli, cores: [core_affinity::CoreId; 2], time: Duration, results: &mut Results) -> Result<()> {
    let against = |contender, what| {
        Some(Limit {
            contender,
            what,
            per_frame: 1,
        })
    };
    let name = |group, contender, what, limit| Name {
        group,
        contender,
        what,
        limit,
    };
    for ring in rings::Ring::ALL
        .iter()
        .copied()
        .filter(|ring| is_wanted(&cli.only, ring.name()))
    {
        for load in rings::Load::ALL {
            if !load.name().contains(&cli.task) {
                continue;
            }
            if let Some(rate) = rings::stream(ring, load, cores, time)? {
                let limit = ring.rival(load).and_then(|rival| against(rival, load.name()));
                results.add_rate(name(RINGS, ring.name(), load.name(), limit), rate);
            }
        }
        if !TRIP.contains(&cli.task) {
            continue;
        }
        let trips = rings::round_trip(ring, cores, time)?;
        let limit = against("two cache lines", TRIP);
        results.add_latency(name(RINGS, ring.name(), TRIP, limit), &trips);
    }
    for (count, what) in subjects::SUBJECTS {
        for finder in subjects::Finder::ALL {
            if is_wanted(&cli.only, finder.name()) {
                let limit = against(subjects::Finder::HashMap.name(), what).filter(|l| l.contender != finder.name());
                let rate = subjects::find(finder, count, cores[0], time)?;
                results.add_rate(name(SUBJECTS, finder.name(), what, limit), rate);
            }
        }
    }
    for (size, what) in seals::SIZES {
        for work in seals::Work::ALL.into_iter().filter(|w| is_wanted(&cli.only, w.name())) {
            let limit = against(seals::Work::Blake3.name(), what).filter(|l| l.contender != work.name());
            let rate = seals::rate(work, size, cores[0], time)?;
            results.add_rate(name(SEALS, work.name(), what, limit), rate);
        }
    }
    if !is_wanted(&cli.only, "append log") {
        return Ok(());
    }
    let whats = ["append 64 B", "append 256 B", "append 1400 B"];
    for (size, what) in log::SIZES.into_iter().zip(whats) {
        let places = [
            (log::Place::Memory, "memcpy + CRC32C, memory", "log in memory"),
            (log::Place::Files(&cli.out), "memcpy + CRC32C, file", "log in files"),
        ];
        for (place, limit, contender) in places {
            let rate = log::append_limit(place, size, cores[0], time)?;
            results.add_rate(name(LOG, limit, what, None), rate);
            let rate = log::append(place, size, cores[0], time)?;
            results.add_rate(name(LOG, contender, what, against(limit, what)), rate);
        }
    }
    let trips = log::look_up(&cli.out, 256, cores[0], time)?;
    results.add_latency(name(LOG, "log in files", "random read 256 B", None), &trips);
    Ok(())
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}

fn processor() -> String {
    let text = read("/proc/cpuinfo");
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(|| "unknown".into(), |(_, model)| model.to_owned())
}

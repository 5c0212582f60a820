//! `seqcast sim`.

use std::io::{self, Write};
use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use seqcast_proto::time::SECONDS;
use seqcast_tools::sim::{Counts, Failure, Plan, Trace, run as play, shrink};

use super::{done_if_pipe_closed, say};

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["seed", "seeds", "hours"]))]
pub(crate) struct Args {
    /// Play the run of this seed.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Play the runs of all seeds from A up to, not with, B.
    #[arg(long, value_name = "A..B", value_parser = parse_range)]
    seeds: Option<Range<u64>>,
    /// Play fresh seeds for this long, such as 0.5.
    #[arg(long, value_name = "H", value_parser = parse_hours)]
    hours: Option<Duration>,
    /// Print the whole timeline of a single seed, also when all goes well.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Look for a smaller run that breaks the same rule.
    #[arg(long)]
    shrink: bool,
    /// Go on after a failure, list every seed that breaks a rule, and explain the lowest.
    #[arg(long)]
    keep_going: bool,
    /// Print this many lines of the timeline of a failure.
    #[arg(long, value_name = "N", default_value_t = 80)]
    lines: usize,
    /// Runs played at the same time; as many as there are cores unless given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
}

/// Runs that one search for a smaller failure may take.
const SHRINK_RUNS: usize = 3000;

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    done_if_pipe_closed(simulate(args))
}

fn simulate(args: &Args) -> Result<ExitCode> {
    if args.trace {
        let plan = Plan::of(args.seed.unwrap_or(0));
        let outcome = play(&plan, Some(Trace::new(usize::MAX)));
        let mut out = io::stdout().lock();
        write!(out, "{plan}")?;
        for line in outcome.trace.iter().flat_map(Trace::lines) {
            writeln!(out, "{line}")?;
        }
        return Ok(match outcome.failure {
            Some(failure) => {
                writeln!(out, "BROKEN {failure}")?;
                ExitCode::FAILURE
            }
            None => ExitCode::SUCCESS,
        });
    }
    let started = Instant::now();
    let seeds = match (args.seed, &args.seeds) {
        (Some(seed), _) => seed..seed.saturating_add(1),
        (None, Some(range)) => range.clone(),
        (None, None) => {
            let fresh = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let first = fresh.context("the clock is before 1970")?.as_secs() * 1_000_000;
            first..u64::MAX
        }
    };
    let mut total = search(&seeds, args.hours.map(|h| started + h), args.jobs, args.keep_going);
    total.print(started.elapsed())?;
    total.failed.sort_by_key(|(seed, _)| *seed);
    if args.keep_going {
        for (seed, failure) in &total.failed {
            writeln!(io::stdout(), "seed {seed}: {failure}")?;
        }
    }
    let Some((seed, failure)) = total.failed.first() else {
        return Ok(ExitCode::SUCCESS);
    };
    explain(args, *seed, failure.clone())?;
    Ok(ExitCode::FAILURE)
}

#[derive(Default)]
struct Total {
    runs: u64,
    counts: Counts,
    slowest: u64,
    failed: Vec<(u64, Failure)>,
}

/// Plays the seeds until one fails (or, to `keep_going`, any number), they are all played, or the
/// time is over.
fn search(seeds: &Range<u64>, until: Option<Instant>, jobs: Option<u16>, keep_going: bool) -> Total {
    let next = AtomicU64::new(seeds.start);
    let total = Mutex::new(Total::default());
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let jobs = jobs
        .map_or(cores, usize::from)
        .min(seeds.end.saturating_sub(seeds.start).try_into().unwrap_or(cores));
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || until.is_some_and(|t| Instant::now() >= t) {
                        return;
                    }
                    let outcome = play(&Plan::of(seed), None);
                    let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                    total.add(&outcome.counts);
                    total.failed.extend(outcome.failure.map(|f| (seed, f)));
                    if !keep_going && !total.failed.is_empty() {
                        return;
                    }
                }
            });
        }
    });
    total.into_inner().unwrap_or_else(PoisonError::into_inner)
}

impl Total {
    fn add(&mut self, counts: &Counts) {
        self.runs += 1;
        self.slowest = self.slowest.max(counts.healing);
        let sum = &mut self.counts;
        sum.simulated += counts.simulated;
        sum.healing += counts.healing;
        sum.published += counts.published;
        sum.delivered += counts.delivered;
        sum.lost += counts.lost;
        sum.frames += counts.frames;
        sum.faults += counts.faults;
        sum.repaired += counts.repaired;
        sum.restarts += counts.restarts;
    }

    fn print(&self, wall: Duration) -> io::Result<()> {
        let counts = &self.counts;
        let wall = wall.as_secs_f64();
        let [simulated, healing] = [counts.simulated, counts.healing].map(|time| time as f64 / SECONDS as f64);
        writeln!(
            io::stdout(),
            "{} runs in {wall:.1} s: {simulated:.0} s simulated, {healing:.0} of them to come to rest when all was healed, {} messages published, {} delivered, {} reported as lost, \
             {} frames, {} messages repaired, {} faults ({:.0} a second of wall time), {} restarts; \
             slowest to heal {:.1} s",
            self.runs,
            counts.published,
            counts.delivered,
            counts.lost,
            counts.frames,
            counts.repaired,
            counts.faults,
            counts.faults as f64 / wall,
            counts.restarts,
            self.slowest as f64 / SECONDS as f64,
        )
    }
}

fn explain(args: &Args, seed: u64, failure: Failure) -> Result<()> {
    let mut plan = Plan::of(seed);
    if args.shrink {
        say(format_args!("seqcast sim: looking for a smaller run than seed {seed}"));
        (plan, _) = shrink(&plan, failure, SHRINK_RUNS);
    }
    let outcome = play(&plan, Some(Trace::new(args.lines)));
    let mut out = io::stdout().lock();
    write!(out, "\n{plan}")?;
    if let Some(trace) = &outcome.trace {
        if trace.left_out() > 0 {
            writeln!(out, "({} lines left out)", trace.left_out())?;
        }
        for line in trace.lines() {
            writeln!(out, "{line}")?;
        }
    }
    if let Some(failure) = outcome.failure {
        writeln!(out, "BROKEN {failure}")?;
    }
    let with = if args.shrink { " --shrink" } else { "" };
    writeln!(out, "again: seqcast sim --seed {seed}{with}")?;
    Ok(())
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let parsed = text
        .split_once("..")
        .and_then(|(a, b)| Some(a.parse().ok()?..b.parse().ok()?));
    parsed
        .filter(|r: &Range<u64>| !r.is_empty())
        .ok_or_else(|| "use A..B with A less than B, such as 0..1000".into())
}

fn parse_hours(text: &str) -> Result<Duration, String> {
    let hours = text.parse().ok().filter(|h: &f64| *h > 0.0 && *h <= 100_000.0);
    hours
        .map(|h| Duration::from_secs_f64(h * 3600.0))
        .ok_or_else(|| "use a number of hours above 0, such as 0.5".into())
}

//! `seqcast lab`.

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use seqcast_tools::lab::faults::{Campaign, Kind};
use seqcast_tools::lab::job::{Input, Job, Link};
use seqcast_tools::lab::soak::Soak;
use seqcast_tools::lab::{self, Lab, Place, Scratch, Spec};
use serde::Serialize;

use super::{LinkChoice, complain, say};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Publish to some clients with losses, and check that each got everything.
    ///
    /// Starts an archive, clients and a server, publishes a session or a file, and compares what
    /// each client wrote with it, byte for byte. The exit status is 0 if all are equal, and 1 if
    /// one is not, an engine failed or the time was over.
    #[command(after_help = "Examples:\n  \
        seqcast lab run --drop 0.01 --burst 400\n  \
        seqcast lab run --input day.bin --rate 0 --clients 1 --link udp\n  \
        seqcast lab run --loopback --json | jq .rate_reached")]
    Run(RunArgs),
    /// Make a lab and keep it until interrupted.
    ///
    /// Prints each host with its address, its interface and how to get a shell on it. Needs root.
    #[command(after_help = "Example:\n  seqcast lab up --clients 2 --offloads")]
    Up(UpArgs),
    /// Break everything, again and again, under load, and check that nothing is lost.
    ///
    /// Engines are killed and halted, cables pulled, disks filled, servers doubled, queries flooded,
    /// clocks set, MTUs changed, as the seed says. Then all is well again, and every client and the
    /// archive must hold what was published, byte for byte. The exit status is 0 if they do and
    /// nothing is left behind. Needs root.
    #[command(after_help = "Examples:\n  \
        seqcast lab faults --minutes 5 --seed 7\n  \
        seqcast lab faults --minutes 0.5 --only kill,stop")]
    Faults(FaultsArgs),
    /// Publish steadily for long, and watch memory, latency and backlog.
    ///
    /// Programs write to the server's FIFO and read from the clients', and time the whole way.
    /// Prints a sample a line as JSON, and a table at the end to standard error.
    #[command(after_help = "Example:\n  seqcast lab soak --minutes 30 > soak.jsonl")]
    Soak(SoakArgs),
    /// Remove what labs that were killed have left.
    ///
    /// Labs whose process is alive are left alone. Needs root.
    #[command(after_help = "Example:\n  seqcast lab clean")]
    Clean,
    /// Say which labs are possible here, and why others are not.
    #[command(after_help = "Example:\n  seqcast lab check")]
    Check,
}

#[derive(clap::Args)]
#[command(args_override_self = true)] // so that scripts can have defaults of their own
struct RunArgs {
    /// Publish this BinaryFILE instead of a made ITCH session.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["messages", "seed"])]
    input: Option<PathBuf>,
    /// Length of the made session.
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    messages: u64,
    /// Which session to make; the same seed gives the same bytes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Messages per second; 0 for as fast as it goes.
    #[arg(long, value_name = "MSGS_PER_S", default_value_t = 50_000)]
    rate: u64,
    /// Share of datagrams that clients and archive lose at random, such as 0.01.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    drop: f64,
    /// Datagrams that each client loses in one go, early in the run.
    #[arg(long, value_name = "N", default_value_t = 0)]
    burst: u64,
    /// Receiving engines.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=190))]
    clients: u8,
    /// How engines move frames.
    #[arg(long, value_enum, default_value_t = LinkChoice::Auto)]
    link: LinkChoice,
    /// Send the stream over two lines, each of which loses on its own.
    #[arg(long)]
    two_lines: bool,
    /// No namespaces: all engines on 127.0.0.1. This is what is done without root.
    #[arg(long)]
    loopback: bool,
    /// MTU of the lab's interfaces, in bytes.
    #[arg(long, default_value_t = 1500)]
    mtu: u16,
    /// How long the run may take, in seconds; from length and rate unless given.
    #[arg(long, value_name = "SECONDS")]
    limit: Option<u64>,
    /// The engine to run; the one beside this program unless given.
    #[arg(long, value_name = "PATH")]
    engine: Option<PathBuf>,
    /// Keep configurations, logs, reports and outputs in this directory, new or empty.
    #[arg(long, value_name = "DIR")]
    keep_output: Option<PathBuf>,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct UpArgs {
    /// Receiving hosts.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=190))]
    clients: u8,
    /// MTU of the lab's interfaces, in bytes.
    #[arg(long, default_value_t = 1500)]
    mtu: u16,
    /// Leave checksums and segmentation to the interfaces: right for kernel UDP, wrong for AF_XDP.
    #[arg(long)]
    offloads: bool,
    /// Join the hosts by a second switch as well, each with a second interface.
    #[arg(long)]
    two_lines: bool,
}

#[derive(clap::Args)]
struct FaultsArgs {
    /// How long faults go on, such as 0.5.
    #[arg(long, value_name = "M", default_value = "2", value_parser = parse_minutes)]
    minutes: Duration,
    /// Which faults, and when; the same seed strikes in the same order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only these kinds of faults.
    #[arg(long, value_enum, value_name = "KIND", value_delimiter = ',')]
    only: Vec<Kind>,
    /// Messages per second.
    #[arg(long, value_name = "MSGS_PER_S", default_value_t = 5000)]
    rate: u64,
    /// Share of datagrams that clients and archive lose all the time.
    #[arg(long, value_name = "SHARE", default_value_t = 0.002)]
    drop: f64,
    /// Receiving engines.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=32))]
    clients: u8,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(clap::Args)]
struct SoakArgs {
    /// How long, such as 0.5.
    #[arg(long, value_name = "M", default_value = "30", value_parser = parse_minutes)]
    minutes: Duration,
    /// Seconds between two samples.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// Messages per second.
    #[arg(long, value_name = "MSGS_PER_S", default_value_t = 1000)]
    rate: u64,
    /// Receiving engines.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=32))]
    clients: u8,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(clap::Args)]
struct CommonArgs {
    /// How engines move frames.
    #[arg(long, value_enum, default_value_t = LinkChoice::Auto)]
    link: LinkChoice,
    /// The engine to run; the one beside this program unless given.
    #[arg(long, value_name = "PATH")]
    engine: Option<PathBuf>,
    /// Keep configurations, logs, reports and outputs in this directory, new or empty.
    #[arg(long, value_name = "DIR")]
    keep_output: Option<PathBuf>,
}

fn parse_minutes(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(minutes) if minutes > 0.0 && minutes <= 100_000.0 => Ok(Duration::from_secs_f64(minutes * 60.0)),
        _ => Err("not a number of minutes above 0".to_owned()),
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    lab::handle_signals().context("cannot handle signals")?;
    // Never by `println`: where panics abort, a closed pipe would leave the lab behind.
    let mut out = io::stdout();
    match &args.command {
        Command::Run(args) => run_job(args),
        Command::Up(args) => up(args),
        Command::Faults(args) => faults(args),
        Command::Soak(args) => soak(args),
        Command::Clean => {
            for name in Lab::sweep()? {
                writeln!(out, "removed {name}")?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Check => {
            for (what, possible) in [
                ("veth lab", Lab::veth_available()),
                ("AF_XDP in it", Lab::xdp_available()),
            ] {
                match possible {
                    Ok(()) => writeln!(out, "{what}: yes")?,
                    Err(why) => writeln!(out, "{what}: no: {why}")?,
                }
            }
            writeln!(out, "loopback lab: yes")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run_job(args: &RunArgs) -> Result<ExitCode> {
    let (place, link) = choose(args.link, args.loopback)?;
    let directory = Directory::new(args.keep_output.as_deref())?;
    let job = Job {
        engine: engine(args.engine.as_deref())?,
        input: match &args.input {
            Some(path) => Input::File(path.clone()),
            None => Input::Made {
                messages: args.messages,
                seed: args.seed,
            },
        },
        rate: (args.rate > 0).then_some(args.rate),
        drop: args.drop,
        burst: args.burst,
        clients: args.clients,
        place,
        link,
        two_lines: args.two_lines,
        mtu: args.mtu,
        limit: args.limit.map(Duration::from_secs),
        directory: directory.path().to_owned(),
    };
    let outcome = job.run(&mut |line| say(line))?;
    show(&outcome, args.json)?;
    Ok(if outcome.all_equal() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The best lab that is asked for and possible; says why it is not a better one.
fn choose(link: LinkChoice, loopback: bool) -> Result<(Place, Link)> {
    if link == LinkChoice::Xdp {
        ensure!(
            !loopback,
            "AF_XDP does not work on loopback; leave out one of --link xdp and --loopback"
        );
        Lab::xdp_available().context("no AF_XDP lab is possible")?;
        return Ok((Place::Veth, Link::Xdp));
    }
    if loopback {
        return Ok((Place::Loopback, Link::Udp));
    }
    if link == LinkChoice::Auto {
        match Lab::xdp_available() {
            Ok(()) => return Ok((Place::Veth, Link::Xdp)),
            Err(why) => complain(format_args!("kernel UDP instead of AF_XDP: {why}")),
        }
    }
    match Lab::veth_available() {
        Ok(()) => Ok((Place::Veth, Link::Udp)),
        Err(why) => {
            complain(format_args!("loopback instead of network namespaces: {why}"));
            Ok((Place::Loopback, Link::Udp))
        }
    }
}

fn engine(given: Option<&Path>) -> Result<PathBuf> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => std::env::current_exe()
            .context("cannot find this program's own path")?
            .with_file_name("seqcast-engine"),
    };
    path.canonicalize().with_context(|| {
        format!(
            "there is no engine at {}; build it (cargo build --release -p seqcast-engine) or give --engine",
            path.display()
        )
    })
}

fn up(args: &UpArgs) -> Result<ExitCode> {
    Lab::veth_available().context("no lab is possible")?;
    let fixed = ["server", "archive"].map(str::to_owned);
    let clients = (1..=args.clients).map(|i| format!("client{i}"));
    let lab = Lab::new(&Spec {
        place: Place::Veth,
        hosts: fixed.into_iter().chain(clients).collect(),
        mtu: args.mtu,
        offloads: args.offloads,
        second_line: args.two_lines,
    })?;
    let mut out = io::stdout();
    for host in lab.hosts() {
        writeln!(
            out,
            "{:9} {:12} {}  ip netns exec {} bash",
            host.name(),
            host.address().to_string(),
            host.interface(),
            host.namespace().unwrap_or("-"),
        )?;
    }
    writeln!(out, "until interrupted")?;
    out.flush()?;
    lab::wait_for_signal();
    Ok(ExitCode::SUCCESS)
}

/// Where a run's files go: a directory of the user's, or one that goes with it.
enum Directory {
    Kept(PathBuf),
    Temporary(Scratch),
}

impl Directory {
    fn new(keep: Option<&Path>) -> Result<Directory> {
        let Some(directory) = keep else {
            return Ok(Directory::Temporary(Scratch::new()?));
        };
        let kept = fs::create_dir_all(directory)
            .and_then(|()| directory.canonicalize())
            .with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Directory::Kept(kept))
    }

    fn path(&self) -> &Path {
        match self {
            Directory::Kept(path) => path,
            Directory::Temporary(scratch) => scratch.path(),
        }
    }
}

/// Prints what came of it, for people or for programs.
fn show(outcome: &(impl Serialize + Display), json: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, outcome)?;
        writeln!(out)?;
    } else {
        write!(out, "\n{outcome}")?;
    }
    Ok(())
}

fn empty(directory: &Path) -> Result<()> {
    let mut entries = fs::read_dir(directory).with_context(|| format!("cannot use {}", directory.display()))?;
    ensure!(
        entries.next().is_none(),
        "{} is not empty; a run keeps its files in a directory of its own",
        directory.display()
    );
    Ok(())
}

fn faults(args: &FaultsArgs) -> Result<ExitCode> {
    let (place, link) = choose(args.common.link, false)?;
    ensure!(
        place == Place::Veth,
        "faults need hosts with cables, and so network namespaces; \"seqcast lab check\" says why there are none"
    );
    let directory = Directory::new(args.common.keep_output.as_deref())?;
    empty(directory.path())?;
    let campaign = Campaign {
        engine: engine(args.common.engine.as_deref())?,
        link,
        duration: args.minutes,
        seed: args.seed,
        only: args.only.clone(),
        rate: args.rate,
        drop: args.drop,
        clients: args.clients,
        directory: directory.path().to_owned(),
    };
    let outcome = campaign.run(&mut |line| say(line))?;
    show(&outcome, args.json)?;
    Ok(if outcome.broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn soak(args: &SoakArgs) -> Result<ExitCode> {
    let (place, link) = choose(args.common.link, false)?;
    let directory = Directory::new(args.common.keep_output.as_deref())?;
    empty(directory.path())?;
    let soak = Soak {
        engine: engine(args.common.engine.as_deref())?,
        place,
        link,
        duration: args.minutes,
        every: Duration::from_secs(args.every),
        rate: args.rate,
        clients: args.clients,
        directory: directory.path().to_owned(),
    };
    let outcome = soak.run(&mut |sample| {
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, sample)?;
        Ok(writeln!(out)?)
    })?;
    say(format_args!("\n{outcome}"));
    Ok(ExitCode::SUCCESS)
}

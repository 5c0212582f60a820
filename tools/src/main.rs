//! The `seqcast` command.

mod cli;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use seqcast_engine::cli::LogArgs;
use seqcast_engine::config;
use seqcast_engine::log::Log;
use seqcast_tools::lab::Error;

/// Tools for Seqcast, the reliable multicast engine.
///
/// Results go to standard output, progress and complaints to standard error. The exit status is 0
/// if all went well, 1 if something did not or a check found something wrong, 2 if the options are
/// wrong, and 128 + n after signal n.
#[derive(Parser)]
#[command(
    name = "seqcast",
    version,
    max_term_width = 100,
    after_help = "Examples:\n  \
        seqcast lab run --drop 0.01 --burst 400\n  \
        seqcast itch --out day.bin --messages 1000000\n  \
        seqcast archive ls /var/lib/seqcast/ticks\n\n\
        \"seqcast help COMMAND\" has more."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Look into archives, check them, take messages out of them, remove old sessions.
    ///
    /// DIR is the directory that an engine's configuration names: "dir" of an archive, or "state" of
    /// a stream that it publishes, which has the same format. All commands but prune work beside a
    /// live engine without disturbing it.
    #[command(after_help = "Examples:\n  \
        seqcast archive ls /var/lib/seqcast/ticks\n  \
        seqcast archive cat /var/lib/seqcast/ticks --session last --format json | head")]
    Archive(cli::archive::Args),
    /// Measure engines on a link of your own: round trips, one way, throughput, repairs.
    ///
    /// One host answers ("serve"), another measures ("run"), each with a production engine of its own. Both ends
    /// take the interface for themselves as an engine does.
    Bench(cli::bench::Args),
    /// Watch what a running engine sends and receives, as a capture (pcapng) for Wireshark.
    ///
    /// AF_XDP goes past where tcpdump looks. The engine copies frames aside for whoever attaches at the
    /// socket that "capture" of its [engine] names, and drops copies rather than wait; drops are counted
    /// in the capture. Ctrl-C ends a capture in order, with exit status 0.
    #[command(after_help = "Examples:\n  \
        seqcast capture --config /etc/seqcast/eth1.toml | wireshark -k -i -\n  \
        seqcast capture --socket /run/seqcast/eth1.capture --stream 239.81.0.1:5000 --first 1000 --last 2000 --out x.pcapng\n  \
        seqcast capture --config eth1.toml --kind nak,repair,unavailable --out repairs.pcapng\n  \
        seqcast capture --config eth1.toml --snap 64 --out ring.pcapng --rotate 100MB --files 20")]
    Capture(cli::capture::Args),
    /// Look at a host and a NIC before an engine runs there, and say what to change.
    ///
    /// Each line has a state, what was found, why it matters, and the command that mends it. "BAD" means
    /// that an engine will not run so, and exit status 1; "poor" costs latency or loses frames under load.
    /// Nothing is changed, and no privilege is needed.
    #[command(after_help = "Examples:\n  \
        seqcast check --config ticks.toml\n  \
        seqcast check eth1 --core 3 --json")]
    Check(cli::host::CheckArgs),
    /// Make manual pages and shell completions of both programs.
    Generate(cli::generate::Args),
    /// Make or describe Nasdaq ITCH 5.0 sessions in BinaryFILE framing.
    ///
    /// A made session is a whole trading day of messages that fit together: a subscriber can
    /// rebuild every book. The same options give the same bytes everywhere.
    #[command(after_help = "Examples:\n  \
        seqcast itch --out day.bin --messages 10000000 --seed 7\n  \
        seqcast itch --out - --bytes 4GiB | consumer\n  \
        seqcast itch --describe day.bin")]
    Itch(cli::itch::Args),
    /// Make and change the keys of a stream.
    ///
    /// Engines that use a file of keys take up a change within a second. To change a key without a
    /// gap: add one and copy the file to every host; use it and copy; remove the old one and copy.
    #[command(after_help = "Examples:\n  \
        seqcast key new /etc/seqcast/ticks.key\n  \
        seqcast key add /etc/seqcast/ticks.key\n  \
        seqcast key use /etc/seqcast/ticks.key 2\n  \
        seqcast key remove /etc/seqcast/ticks.key 1")]
    Key(cli::key::Args),
    /// Run server, archive and clients on one machine, and check what arrives.
    ///
    /// With root, each is a host of its own: a network namespace behind a bridge. Everything is
    /// removed when a lab ends, however it ends.
    #[command(after_help = "Examples:\n  \
        seqcast lab check\n  \
        seqcast lab run --clients 8 --rate 200000 --drop 0.001")]
    Lab(cli::lab::Args),
    /// Print or serve the counters of all engines of this host, for Prometheus.
    #[command(after_help = "Examples:\n  \
        seqcast metrics\n  \
        seqcast metrics --listen 127.0.0.1:9464")]
    Metrics(cli::watch::MetricsArgs),
    /// Play servers, archives and clients in simulated time, with faults, and check every rule.
    ///
    /// The production code runs over a network that loses, doubles, delays and damages frames, on
    /// disks that tear and fill up, with processes that crash. A seed determines a run. The first
    /// broken rule ends it with a timeline and exit status 1.
    #[command(after_help = "Examples:\n  \
        seqcast sim --seeds 0..1000\n  \
        seqcast sim --seed 42 --shrink\n  \
        seqcast sim --hours 8")]
    Sim(cli::sim::Args),
    /// Publish messages through an engine, as any program beside it does.
    ///
    /// What the engine has taken is published whatever happens to this command: it may be ended or killed at
    /// any time. If the engine goes away, it waits for it to come back.
    #[command(after_help = "Examples:\n  \
        echo hello | seqcast publish\n  \
        seqcast publish --socket /run/seqcast/eth1.sock --stream 239.1.1.1:5000 --format binaryfile --rate 100000 day.bin\n  \
        seqcast publish --subject md.eq --format hex < messages.txt")]
    Publish(cli::publish::Args),
    /// Play what an archive holds again: to a file, a pipe, or as a new stream.
    ///
    /// A stream is a new session of its own, on a group that has no server, with heartbeats, repairs
    /// and an end; it keeps the messages' subjects, and the messages of an original frame together.
    /// Ctrl-C ends it in order.
    #[command(after_help = "Examples:\n  \
        seqcast replay ticks --session last --speed 1x --stream 239.81.9.1:5000 --interface eth1\n  \
        seqcast replay ticks --session 1795374220 --since 2026-03-02T14:30:00Z --until 2026-03-02T14:35:00Z \
        --speed 10x --stdout --format json | consumer\n  \
        seqcast replay ticks --session all --to-file day.bin --format binaryfile")]
    Replay(cli::replay::Args),
    /// Receive messages through an engine, as any program beside it does.
    ///
    /// What this command was too slow for, or what came while the engine was away, is fetched from archive or
    /// server and comes in its place. It waits for an engine that goes away.
    #[command(after_help = "Examples:\n  \
        seqcast subscribe --format json | jq .payload\n  \
        seqcast subscribe --stream 239.1.1.1:5000 --subject 'md.*' --from session --count 100\n  \
        seqcast subscribe --from 1795374220:812 --out day.bin --format binaryfile")]
    Subscribe(cli::subscribe::Args),
    /// Show what all engines of this host are doing: rates, latencies, and what is wrong, in words.
    ///
    /// Reading disturbs no engine.
    #[command(after_help = "Examples:\n  \
        seqcast top\n  \
        seqcast top --once --json | jq .warnings")]
    Top(cli::watch::TopArgs),
    /// Change what "seqcast check" finds wrong, as far as it can be changed without a restart.
    ///
    /// Some NICs drop their link for a second when queues or rings change: not while a stream runs.
    #[command(after_help = "Examples:\n  \
        seqcast tune --config ticks.toml --dry-run\n  \
        seqcast tune --config ticks.toml\n  \
        seqcast tune eth1 --undo")]
    Tune(cli::host::TuneArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Whoever runs a command wants to see each of its lines.
    let mut said = config::Log {
        burst: 0,
        ..config::Log::default()
    };
    let log = cli.log.put_into(&mut said).map_err(io::Error::other);
    let log = match log.and_then(|()| Log::install(&said)) {
        Ok(log) => log,
        Err(error) => {
            let _ = writeln!(io::stderr(), "seqcast: --log: {error}");
            return ExitCode::from(2);
        }
    };
    let outcome = match cli.command {
        Command::Archive(args) => cli::archive::run(&args),
        Command::Bench(args) => cli::bench::run(&args),
        Command::Capture(args) => cli::capture::run(&args),
        Command::Check(args) => cli::host::check(&args),
        Command::Generate(args) => cli::generate::run(&args),
        Command::Itch(args) => cli::itch::run(&args),
        Command::Key(args) => cli::key::run(&args),
        Command::Lab(args) => cli::lab::run(&args),
        Command::Metrics(args) => cli::watch::metrics(&args),
        Command::Sim(args) => cli::sim::run(&args),
        Command::Publish(args) => cli::publish::run(&args),
        Command::Subscribe(args) => cli::subscribe::run(&args),
        Command::Replay(args) => cli::replay::run(&args),
        Command::Top(args) => cli::watch::top(&args),
        Command::Tune(args) => cli::host::tune(&args),
    };
    outcome.unwrap_or_else(|error| {
        log.fatal("seqcast", &in_full(&error));
        match error.downcast_ref() {
            // As the shell reports a program that a signal ended.
            Some(&Error::Interrupted { signal }) => ExitCode::from(128 + signal as u8),
            _ => ExitCode::FAILURE,
        }
    })
}

/// An error and its causes, without those that it already ends with.
fn in_full(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.ends_with(&cause) {
            text += ": ";
            text += &cause;
        }
    }
    text
}

//! `seqcast bench`.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use seqcast_tools::bench::{self, Latency, Plan, Report, Setting, Streams};
use seqcast_tools::lab::{self, Lab, Place, Process, Scratch, Spec};

use super::{LinkChoice, Meter, gauge, say, stop};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Be the far end: answer until Ctrl-C.
    #[command(after_help = "Example:\n  seqcast bench serve --config /etc/seqcast/eth1.toml --core 3")]
    Serve(ServeArgs),
    /// Be the near end: measure against "seqcast bench serve" on another host.
    #[command(after_help = "Examples:\n  \
        seqcast bench run --interface eth1 --core 3 --report eth1.json\n  \
        seqcast bench run --config /etc/seqcast/eth1.toml --quick")]
    Run(RunArgs),
    /// Both ends on this machine, in network namespaces joined by a switch (needs root), or over loopback.
    #[command(after_help = "Examples:\n  \
        seqcast bench lab --quick\n  \
        seqcast bench lab --loopback --report here.json")]
    Lab(LabArgs),
}

#[derive(clap::Args)]
#[group(id = "whom", required = true, multiple = true)]
struct EngineArgs {
    /// An engine's configuration, of which the [engine] part counts: interface, link, core, queues, frames.
    #[arg(long, value_name = "FILE", group = "whom")]
    config: Option<PathBuf>,
    /// The interface; with --config, instead of the one named there.
    #[arg(long, group = "whom")]
    interface: Option<String>,
    /// How the engine moves frames, instead of what the configuration says.
    #[arg(long, value_enum)]
    link: Option<LinkChoice>,
    /// The core to run on, alone if it can be; instead of the one in the configuration.
    #[arg(long, value_name = "N")]
    core: Option<usize>,
    /// The first of three neighbouring multicast groups that both ends use; the same at both.
    #[arg(long, value_name = "GROUP:PORT", default_value = "239.255.82.1:7801")]
    group: SocketAddrV4,
}

#[derive(clap::Args)]
struct ServeArgs {
    #[command(flatten)]
    engine: EngineArgs,
    /// End when a near end is done.
    #[arg(long)]
    once: bool,
}

#[derive(clap::Args)]
struct PlanArgs {
    /// Seconds of each measurement; there are two for each size, and two more.
    #[arg(long, default_value_t = 5.0, value_parser = parse_seconds)]
    seconds: f64,
    /// Half a second for each: a first look.
    #[arg(long, conflicts_with = "seconds")]
    quick: bool,
    /// Sizes of messages in bytes.
    #[arg(long, value_delimiter = ',', default_value = "64,1024", value_parser = clap::value_parser!(u16).range(32..=8900))]
    sizes: Vec<u16>,
    /// Microseconds between two messages that are sent at a pace, for one way and repairs.
    #[arg(long, value_name = "US", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    every: u64,
    /// Share of all arriving frames that the near end loses on purpose, for repairs; 0: leave that out.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, value_parser = parse_share)]
    loss: f64,
    /// Both hosts' wall clocks are the same to less than what is measured, as by PTP.
    #[arg(long)]
    one_clock: bool,
    /// Write everything into this file (JSON): figures, both hosts, configuration, findings, counters.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

#[derive(clap::Args)]
struct RunArgs {
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    plan: PlanArgs,
}

#[derive(clap::Args)]
struct LabArgs {
    /// How the engines move frames.
    #[arg(long, value_enum, default_value = "auto")]
    link: LinkChoice,
    /// No namespaces: both ends on 127.0.0.1, over kernel sockets. This is what is done without root.
    #[arg(long)]
    loopback: bool,
    /// MTU of the lab's interfaces, in bytes.
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u16).range(576..))]
    mtu: u16,
    #[command(flatten)]
    plan: PlanArgs,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.05..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("from 0.05 to 3600".into()),
    }
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=0.5).contains(&share) => Ok(share),
        _ => Err("from 0 to 0.5".into()),
    }
}

impl EngineArgs {
    fn setting(&self) -> Result<Setting> {
        let read = |path: &PathBuf| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        Ok(Setting {
            text: self.config.as_ref().map(read).transpose()?,
            interface: self.interface.clone(),
            link: self.link.map(|link| link.word().into()),
            core: self.core,
        })
    }
}

impl PlanArgs {
    fn plan(&self) -> Plan {
        let seconds = if self.quick { 0.5 } else { self.seconds };
        Plan {
            time: Duration::from_secs_f64(seconds),
            sizes: self.sizes.iter().copied().map(usize::from).collect(),
            every_us: self.every,
            loss: self.loss,
            one_clock: self.one_clock,
        }
    }

    fn measure(&self, setting: &Setting, streams: Streams, stop: &AtomicUsize) -> Result<ExitCode> {
        let mut meter = Meter::new();
        let report = bench::measure(setting, streams, &self.plan(), stop, |what, share| {
            if meter.visible {
                meter.show_now(format_args!("{} {what}", gauge(share)));
            } else {
                // Who reads a file of it later wants to know where it stood still.
                say(format_args!("seqcast: measuring: {what}"));
            }
        });
        meter.clear();
        let report = report?;
        if let Some(path) = &self.report {
            let text = serde_json::to_string_pretty(&report)?;
            fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
        }
        super::tell(print(&report))?;
        if let Some(path) = &self.report {
            say(format_args!("all of it is in {}", path.display()));
        }
        Ok(ExitCode::SUCCESS)
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.command {
        Command::Serve(args) => {
            let stop = stop::on_signals()?;
            let (setting, streams) = (args.engine.setting()?, Streams::at(args.engine.group)?);
            bench::answer(&setting, streams, args.once, &stop, |mode| {
                say(format_args!("ready mode={mode} group={}", args.engine.group));
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(args) => {
            let stop = stop::on_signals()?;
            let (setting, streams) = (args.engine.setting()?, Streams::at(args.engine.group)?);
            args.plan.measure(&setting, streams, &stop)
        }
        Command::Lab(args) => in_lab(args),
    }
}

/// Both ends as processes of their own.
fn in_lab(args: &LabArgs) -> Result<ExitCode> {
    let place = match Lab::veth_available() {
        _ if args.loopback => Place::Loopback,
        Ok(()) => Place::Veth,
        Err(why) => {
            super::complain(format_args!("on loopback, since no lab can be made: {why}"));
            Place::Loopback
        }
    };
    let link = match (place, args.link) {
        (Place::Loopback, LinkChoice::Xdp) => bail!("there is no AF_XDP on loopback"),
        (Place::Loopback, _) => LinkChoice::Udp,
        (Place::Veth, link) => link,
    };
    lab::handle_signals().context("cannot handle signals")?;
    let lab = Lab::new(&Spec {
        place,
        hosts: vec!["near".into(), "far".into()],
        mtu: args.mtu,
        offloads: matches!(link, LinkChoice::Udp),
        second_line: false,
    })?;
    let scratch = Scratch::new()?;
    let program = std::env::current_exe().context("cannot find this program")?;
    // A group of their own, so that labs on one loopback do not meet.
    let [_, _, c, d] = std::process::id().to_be_bytes();
    let group = format!("239.87.{c}.{}:7801", d & 0xfc);
    let two_cores = std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
    let command = |name: &str, does: &str, core: &str| -> Result<std::process::Command> {
        let host = lab.host(name)?;
        let mut command = host.command(&program);
        command.args([
            "bench",
            does,
            "--interface",
            host.interface(),
            "--link",
            link.word(),
            "--group",
            &group,
        ]);
        if two_cores {
            command.args(["--core", core]);
        }
        Ok(command)
    };
    let mut serve = command("far", "serve", "1")?;
    serve.arg("--once");
    let mut far = Process::spawn("the far end", serve, &scratch.path().join("far.log"))?;
    far.wait_line("ready", Duration::from_secs(10))?;
    let plan = &args.plan;
    let mut near = command("near", "run", "0")?;
    near.arg("--one-clock")
        .args(["--seconds", &plan.plan().time.as_secs_f64().to_string()])
        .args([
            "--sizes",
            &plan.sizes.iter().map(u16::to_string).collect::<Vec<_>>().join(","),
        ])
        .args(["--every", &plan.every.to_string(), "--loss", &plan.loss.to_string()]);
    if let Some(path) = &plan.report {
        near.arg("--report").arg(std::path::absolute(path)?);
    }
    // It has this terminal, and gets its signals as well.
    let status = near.status().context("cannot start the near end")?;
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        bail!("the near end was ended by signal {signal}");
    }
    if !status.success() {
        return Ok(ExitCode::from(
            status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
        ));
    }
    far.wait(Duration::from_secs(10))?;
    Ok(ExitCode::SUCCESS)
}

fn print(report: &Report) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let us = |ns: u64| format!("{:.2}", ns as f64 / 1e3);
    let (near, far) = (&report.near, &report.far);
    for (name, end) in [("near", near), ("far", far)] {
        let bench::Machine {
            host,
            link,
            processor,
            kernel,
            cores,
            ..
        } = end;
        writeln!(
            out,
            "{name}: {host} ({link}), {processor}, {cores} cores, Linux {kernel}"
        )?;
    }
    writeln!(
        out,
        "\n{:<34} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10} {:>9}",
        "microseconds", "least", "p50", "p90", "p99", "p99.9", "most", "messages"
    )?;
    let mut row = |what: &str, l: &Latency| {
        let times = [l.min_ns, l.p50_ns, l.p90_ns, l.p99_ns, l.p999_ns, l.max_ns].map(us);
        let [least, p50, p90, p99, p999, most] = times;
        writeln!(
            out,
            "{what:<34} {least:>9} {p50:>9} {p90:>9} {p99:>9} {p999:>9} {most:>10} {:>9}",
            l.count
        )
    };
    for size in &report.sizes {
        row(&format!("round trip, {} B", size.bytes), &size.round_trip)?;
    }
    if let Some(way) = &report.one_way {
        row(
            &format!("one way, {} B every {} us", way.bytes, way.every_us),
            &way.latency,
        )?;
    }
    if let Some(recovery) = &report.recovery {
        let share = recovery.lost_share * 100.0;
        row(&format!("round trip, {share} % lost: live"), &recovery.live)?;
        row("  lost and repaired", &recovery.repaired)?;
    }
    writeln!(
        out,
        "\n{:<34} {:>12} {:>12}",
        "throughput, delivered in order", "messages/s", "MB/s"
    )?;
    for size in &report.sizes {
        let name = format!("{} B", size.bytes);
        let megabytes = size.bytes_per_second / 1e6;
        writeln!(out, "{name:<34} {:>12.0} {megabytes:>12.1}", size.messages_per_second)?;
    }
    writeln!(out)?;
    if let Some(way) = report.one_way.as_ref().filter(|way| !way.one_clock) {
        let error = us(way.error_ns);
        writeln!(
            out,
            "one way: the clocks were compared by the quickest round trip, so it may be wrong by {error} us; with \
             clocks that are the same (PTP) say --one-clock"
        )?;
    }
    let (lost, longest) = (report.noise.lost * 100.0, us(report.noise.longest_ns));
    writeln!(
        out,
        "an idle spin on the near core lost {lost:.1} % of its time, {longest} us at most at once; a hypervisor took \
         {:.1} % of all cores' time",
        report.noise.stolen * 100.0
    )?;
    let costly = report
        .host
        .iter()
        .filter(|f| f.state >= seqcast_tools::host::State::Poor)
        .count();
    if costly > 0 {
        writeln!(
            out,
            "\"seqcast check\" finds {costly} things on this host that cost speed or frames"
        )?;
    }
    Ok(())
}

//! `seqcast replay`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::ValueEnum;
use seqcast_archive::Reader;
use seqcast_engine::config::LinkKind;
use seqcast_engine::link::Link;
use seqcast_engine::open::{self, OnLink};
use seqcast_tools::archive::pace::Speed;
use seqcast_tools::archive::replay::{self, Broadcast, Output, Played, Publication, Stage, Stop, Stopped};
use seqcast_tools::archive::select::{Selection, Which};
use seqcast_tools::archive::text;

use super::archive::{self, BUFFER, CatFormat, RangeArgs, parse_group, parse_session, tell_absent};
use super::{Meter, done_if_pipe_closed, say, stop};

/// Targets that are no streams.
const OTHER_TARGETS: [&str; 2] = ["to_file", "stdout"];

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("target").required(true).args(["to_file", "stdout", "stream"]))]
pub(crate) struct Args {
    /// The archive's directory.
    dir: PathBuf,
    /// The session: its number, "last" for the newest, or "all", one after the other.
    #[arg(long, value_name = "N", value_parser = parse_session)]
    session: Which,
    #[command(flatten)]
    range: RangeArgs,
    /// How fast recorded time passes: "max", or a multiple of the recorded pace such as 1x, 10x, 0.5x.
    #[arg(long, default_value = "max")]
    speed: Speed,
    /// Play to this file, written anew.
    #[arg(long, value_name = "FILE")]
    to_file: Option<PathBuf>,
    /// Play to standard output.
    #[arg(long)]
    stdout: bool,
    /// For files and standard output: how messages are written.
    #[arg(long, value_enum, default_value_t = CatFormat::Binaryfile, conflicts_with = "stream")]
    format: CatFormat,
    /// Publish to this multicast group as a new stream.
    #[arg(long, value_name = "GROUP:PORT", value_parser = parse_group, requires = "interface")]
    stream: Option<SocketAddrV4>,
    /// For streams: the network interface.
    #[arg(long, value_name = "NAME", conflicts_with_all = OTHER_TARGETS)]
    interface: Option<String>,
    /// For streams: how frames move.
    #[arg(long, value_enum, default_value_t = LinkArg::Udp, conflicts_with_all = OTHER_TARGETS)]
    link: LinkArg,
    /// For streams: the stream's identity; derived from group and port unless given.
    #[arg(long, value_name = "ID", conflicts_with_all = OTHER_TARGETS)]
    id: Option<u32>,
    /// For streams: archives that must acknowledge each message. Messages wait until they have.
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with_all = OTHER_TARGETS,
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(..=15))]
    archives: usize,
    /// For streams: bytes of messages kept for repairs.
    #[arg(long, value_name = "BYTES", default_value_t = 256 << 20, conflicts_with_all = OTHER_TARGETS,
          value_parser = clap::value_parser!(u64).range(1 << 20..))]
    retain: u64,
    /// For streams: file of the new stream's keys.
    #[arg(long, value_name = "FILE", conflicts_with_all = OTHER_TARGETS)]
    key: Option<PathBuf>,
    /// For streams: bytes of IP packet to use at most; by default what the interface allows.
    #[arg(long, value_name = "BYTES", conflicts_with_all = OTHER_TARGETS)]
    mtu: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LinkArg {
    /// Kernel UDP sockets: no privilege needed.
    Udp,
    /// AF_XDP: needs CAP_NET_RAW, CAP_BPF and CAP_NET_ADMIN.
    Xdp,
}

impl From<LinkArg> for LinkKind {
    fn from(link: LinkArg) -> LinkKind {
        match link {
            LinkArg::Udp => LinkKind::Udp,
            LinkArg::Xdp => LinkKind::Xdp,
        }
    }
}

/// What is played, and how fast.
struct Play<'a> {
    archive: &'a Reader,
    selection: &'a Selection,
    speed: Speed,
}

impl Play<'_> {
    fn on(&self, stage: &mut dyn Stage) -> Result<Played> {
        let mut meter = Meter::new();
        let played = replay::play(self.archive, self.selection, self.speed, stage, &mut |played| {
            meter.show(|seconds| line(played, seconds));
        });
        meter.clear();
        if let Ok(played) = &played {
            if let Some(walked) = &played.walked {
                tell_absent(walked);
            }
            say(format_args!(
                "seqcast: played {} messages of {} frames",
                played.messages, played.frames
            ));
        }
        played
    }
}

fn line(played: &Played, seconds: f64) -> String {
    let at = played
        .at
        .map_or(String::new(), |(session, seq)| format!("session {session} at {seq}: "));
    let megabytes = played.bytes as f64 / 1e6;
    format!(
        "{at}{} messages, {megabytes:.0} MB, {:.0} messages/s",
        played.messages,
        played.messages as f64 / seconds
    )
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let archive = archive::open(&args.dir)?;
    let selection = args.range.selection(args.session);
    // Nothing is overwritten and no stream started for a selection that cannot be.
    selection.sessions(&archive)?;
    let play = Play {
        archive: &archive,
        selection: &selection,
        speed: args.speed,
    };
    let stop = stop::on_signals()?;
    match (&args.stream, &args.to_file) {
        (Some(group), _) => {
            let publication = Publication {
                group: *group,
                id: args.id,
                archives: args.archives,
                retain: args.retain,
                key: args.key.clone(),
            };
            let on_stream = OnStream {
                play: &play,
                publication: &publication,
                stop: &stop,
            };
            let interface = args.interface.as_deref().unwrap_or_default();
            let result = open::link_by(interface, args.link.into(), args.mtu, on_stream);
            // Whoever was told to stop before the stream began has nothing to end.
            result.or_else(|error| if error.is::<Stopped>() { Ok(()) } else { Err(error) })?;
        }
        (None, Some(path)) => {
            let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            write(&play, args.format, file, &stop).with_context(|| incomplete(path))?;
        }
        (None, None) => {
            let written = write(&play, args.format, io::stdout().lock(), &stop);
            done_if_pipe_closed(written.map(|()| ExitCode::SUCCESS))?;
        }
    }
    stop::outcome(&stop)?;
    Ok(ExitCode::SUCCESS)
}

fn incomplete(path: &Path) -> String {
    format!("{} is not complete", path.display())
}

fn write(play: &Play<'_>, format: CatFormat, out: impl Write, stop: &Stop) -> Result<()> {
    let writer = text::Writer::new(BufWriter::with_capacity(BUFFER, out), format.into());
    let mut stage = Output::new(writer, Arc::clone(stop));
    play.on(&mut stage)?;
    stage.finish()
}

/// Plays to a stream on the link that it is given.
struct OnStream<'a> {
    play: &'a Play<'a>,
    publication: &'a Publication,
    stop: &'a Stop,
}

impl OnLink for OnStream<'_> {
    type Output = ();

    fn run<L: Link + 'static>(self, link: L, _: LinkKind, may_hold: u32) -> Result<()> {
        let mut stage = Broadcast::open(self.publication, link, may_hold, Arc::clone(self.stop))?;
        say(format_args!(
            "seqcast: publishing on {}: {}",
            self.publication.group,
            stage.mode()
        ));
        let played = stage.ready().and_then(|()| self.play.on(&mut stage));
        // What was sent is ended in order, whatever happened.
        let (report, ended) = stage.finish();
        if let Some(report) = report {
            say(format_args!(
                "seqcast: session {} of {} ended: {} messages in {} frames, {} repaired",
                report.session, report.stream, report.messages, report.frames, report.repaired
            ));
        }
        played?;
        ended
    }
}

//! `seqcast capture`.

use std::io::{self, IsTerminal};
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use seqcast_engine::capture::request::{Request, STREAMS};
use seqcast_engine::config::Config;
use seqcast_engine::stream_id;
use seqcast_proto::wire::Kind;
use seqcast_tools::capture::{Capture, Feed, Next, Target};

use super::archive::parse_group;
use super::itch::parse_size;
use super::{done_if_pipe_closed, say, stop};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The engine's socket: "capture" of its [engine].
    #[arg(
        long,
        value_name = "PATH",
        required_unless_present = "config",
        conflicts_with = "config"
    )]
    socket: Option<PathBuf>,
    /// The engine's configuration file, which names the socket.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only frames of this stream; may be repeated, 16 with --id in all.
    #[arg(long, value_name = "GROUP:PORT", value_parser = parse_group)]
    stream: Vec<SocketAddrV4>,
    /// Only frames of the stream of this identity, for those that configure one.
    #[arg(long, value_name = "ID")]
    id: Vec<u32>,
    /// Only frames of this session.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    session: u32,
    /// Of frames that name numbers, only those that name one from this on.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    first: u32,
    /// Of frames that name numbers, only those that name one up to this.
    #[arg(long, value_name = "N", default_value_t = u32::MAX, hide_default_value = true)]
    last: u32,
    /// Only frames of these kinds; may be repeated.
    #[arg(long, value_enum, value_delimiter = ',')]
    kind: Vec<KindArg>,
    /// Bytes of a frame at most; 64 hold every header.
    #[arg(long, value_name = "BYTES", default_value_t = 65_535, value_parser = clap::value_parser!(u32).range(32..=65_535))]
    snap: u32,
    /// The file to write, anew; "-" is standard output.
    #[arg(long, value_name = "FILE", default_value = "-")]
    out: PathBuf,
    /// Begin another file when one would get longer; files have numbers: x.00001.pcapng.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    rotate: Option<u64>,
    /// With --rotate: files kept; the oldest are removed.
    #[arg(long, value_name = "N", default_value_t = 10, requires = "rotate",
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=100_000))]
    files: usize,
    /// End after so many frames.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// End after so many seconds.
    #[arg(long, value_name = "S")]
    seconds: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum KindArg {
    Data,
    Heartbeat,
    Ack,
    Nak,
    Repair,
    Unavailable,
    End,
}

impl From<KindArg> for Kind {
    fn from(kind: KindArg) -> Kind {
        match kind {
            KindArg::Data => Kind::Data,
            KindArg::Heartbeat => Kind::Heartbeat,
            KindArg::Ack => Kind::Ack,
            KindArg::Nak => Kind::Nak,
            KindArg::Repair => Kind::Repair,
            KindArg::Unavailable => Kind::Unavailable,
            KindArg::End => Kind::End,
        }
    }
}

impl Args {
    fn socket(&self) -> Result<PathBuf> {
        let Some(config) = &self.config else {
            return self.socket.clone().context("give --socket or --config");
        };
        let path = Config::read(config)?.engine.capture;
        path.with_context(|| format!("{}: add `capture = \"PATH\"` to [engine]", config.display()))
    }

    fn request(&self) -> Result<Request> {
        let derived = self.stream.iter().map(|group| stream_id(*group, None).0);
        let streams: Vec<u32> = derived.chain(self.id.iter().copied()).collect();
        if streams.len() > STREAMS {
            bail!("at most {STREAMS} streams can be named; without any all are captured");
        }
        let kinds = self
            .kind
            .iter()
            .map(|kind| 1 << Kind::from(*kind) as u16)
            .reduce(|a, b| a | b);
        Ok(Request {
            snap: self.snap,
            kinds: kinds.unwrap_or(u16::MAX),
            streams,
            session: self.session,
            first: self.first,
            last: self.last,
        })
    }

    fn target(&self) -> Result<Target> {
        let stdout = self.out.as_os_str() == "-";
        match self.rotate {
            Some(_) if stdout => bail!("--rotate needs --out FILE"),
            Some(size) => Ok(Target::Files(self.out.clone(), size, self.files)),
            None if stdout && io::stdout().is_terminal() => {
                bail!("this would fill the terminal with bytes: use --out FILE, or | wireshark -k -i -")
            }
            None if stdout => Ok(Target::Stdout),
            None => Ok(Target::File(self.out.clone())),
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (target, request) = (args.target()?, args.request()?);
    let stop = stop::on_signals()?;
    let mut feed = Feed::attach(&args.socket()?, &request)?;
    say(format_args!("seqcast: capturing from {}", feed.about()));
    let mut capture = Capture::begin(target, feed.about())?;
    let until = args
        .seconds
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let result = follow(
        &mut feed,
        &mut capture,
        || {
            let over = until.is_some_and(|until| Instant::now() >= until);
            over || stop.load(Ordering::Relaxed) != 0
        },
        args.count.unwrap_or(u64::MAX),
    );
    let (frames, dropped) = capture.counts();
    let result = result.and_then(|()| capture.finish());
    say(format_args!(
        "seqcast: {frames} frames captured, {dropped} dropped for want of room"
    ));
    // Ending a capture is what a signal is for.
    done_if_pipe_closed(result.map(|()| ExitCode::SUCCESS))
}

fn follow(feed: &mut Feed, capture: &mut Capture, mut stop: impl FnMut() -> bool, most: u64) -> Result<()> {
    let mut left = most;
    while left > 0 {
        match feed.read()? {
            Next::Frame(head, frame) => {
                capture.write(&head, frame)?;
                left -= 1;
            }
            Next::Quiet => {}
            Next::End => break,
        }
        // Whoever reads along sees what there is before more is waited for.
        if feed.is_drained() {
            capture.flush()?;
            if stop() {
                break;
            }
        }
    }
    Ok(())
}

//! Commands that write to archives: prune, sync, repair.

use std::cell::RefCell;
use std::io::{self, Write};
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use seqcast_archive::{Archive, Options};
use seqcast_engine::config::LinkKind;
use seqcast_engine::link::Link;
use seqcast_engine::open::{self, OnLink};
use seqcast_proto::seq::{Session, Stream};
use seqcast_tools::archive::prune::{Old, Rules};
use seqcast_tools::archive::repair::{self, Doing, Outcome};
use seqcast_tools::archive::replay::{Stop, Stopped};
use seqcast_tools::archive::select::Which;
use seqcast_tools::archive::sync::{self, Copied};
use seqcast_tools::archive::{fetch, utc_millis};

use super::super::{Meter, gauge, pace, say, stop, tell};
use super::{SessionArg, now, open as read_only, parse_group, verifying};

/// Options that a directory has no use for.
const NETWORK: [&str; 5] = ["interface", "archive", "key", "id", "rate"];

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("source").required(true).args(["from", "stream"]))]
pub(super) struct SyncArgs {
    /// The source's directory.
    #[arg(long, value_name = "DIR", conflicts_with_all = NETWORK)]
    from: Option<PathBuf>,
    /// The source's stream: an archive that records it is asked.
    #[arg(long, value_name = "GROUP:PORT", value_parser = parse_group, requires = "interface")]
    stream: Option<SocketAddrV4>,
    /// The target's directory.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    #[command(flatten)]
    session: SessionArg,
    /// The network interface.
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Ask this archive, at the address of its engine; else any that answers in the group.
    #[arg(long, value_name = "ADDRESS:PORT")]
    archive: Option<SocketAddrV4>,
    /// File of the stream's keys.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The stream's identity; derived from group and port unless given.
    #[arg(long, value_name = "ID")]
    id: Option<u32>,
    /// Most bytes a second over the network.
    #[arg(long, value_name = "BYTES", default_value_t = 12_500_000, value_parser = clap::value_parser!(u64).range(fetch::MIN_RATE..))]
    rate: u64,
}

pub(super) fn prune(dir: &Path, rules: Rules, dry_run: bool) -> Result<ExitCode> {
    let now = now();
    let mut bytes = 0;
    let mut count = 0;
    let mut out = io::stdout().lock();
    let mut count_and_tell = |verb: &str, old: &Old| -> Result<()> {
        bytes += old.bytes;
        count += 1;
        let last = old.last_ns.map_or("not known".to_owned(), utc_millis);
        let Old { session, bytes, .. } = old;
        Ok(tell(writeln!(
            out,
            "{verb} session {session}: last message {last}, {bytes} bytes"
        ))?)
    };
    if dry_run {
        for old in rules.old_sessions(dir, now)? {
            count_and_tell("would remove", &old)?;
        }
    } else {
        let note = |note: &_| say(format_args!("seqcast: {note}"));
        rules.prune(dir, now, note, |old| count_and_tell("removed", old))?;
    }
    tell(writeln!(out, "{count} sessions, {bytes} bytes"))?;
    Ok(ExitCode::SUCCESS)
}

/// Copies from the network over the link that it is given.
struct OverNetwork<'a> {
    to: &'a Path,
    source: fetch::Source,
    which: Which,
}

impl OnLink for OverNetwork<'_> {
    type Output = ExitCode;

    fn run<L: Link + 'static>(self, link: L, _: LinkKind, _: u32) -> Result<ExitCode> {
        let OverNetwork { to, source, which } = self;
        copy(to, source.stream(), |to, stop, progress| {
            fetch::fetch(&source, link, which, to, stop, progress)
        })
    }
}

pub(super) fn sync(args: &SyncArgs) -> Result<ExitCode> {
    let selection = args.session.selection();
    if let Some(dir) = &args.from {
        let reader = read_only(dir)?;
        let sessions = selection.sessions(&reader)?;
        return copy(&args.to, reader.stream(), |to, stop, progress| {
            sync::copy(&reader, &sessions, to, stop, progress)
        });
    }
    let source = fetch::Source {
        group: args.stream.context("no source")?,
        id: args.id,
        archive: args.archive,
        key: args.key.clone(),
        rate: args.rate,
    };
    let over = OverNetwork {
        to: &args.to,
        source,
        which: selection.session,
    };
    let interface = args.interface.as_deref().unwrap_or_default();
    open::link_by(interface, LinkKind::Udp, None, over)
}

/// Fills the archive in `dir` by `fill`, and says what came of it.
fn copy(
    dir: &Path,
    stream: Stream,
    fill: impl FnOnce(&mut Archive, &Stop, &mut dyn FnMut(Session, &Copied)) -> Result<Copied>,
) -> Result<ExitCode> {
    let stop = stop::on_signals()?;
    let mut target =
        Archive::open(dir, stream, Options::default()).with_context(|| format!("cannot write to {}", dir.display()))?;
    for note in target.recovery() {
        say(format_args!("seqcast: {note}"));
    }
    let mut meter = Meter::new();
    let copied = fill(&mut target, &stop, &mut |session, copied| {
        meter.show(|seconds| copying(session, copied, seconds));
    });
    meter.clear();
    // Whatever happened, what was copied is there to go on from.
    let closed = target.close();
    let copied = match copied {
        Ok(copied) => copied,
        Err(error) if error.is::<Stopped>() => {
            closed?;
            stop::outcome(&stop)?;
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => {
            return Err(error.context(format!("{} lacks what follows; run this again to go on", dir.display())));
        }
    };
    closed?;
    for (count, why) in [
        (copied.unreadable, "could not be read: damaged, or released meanwhile"),
        (
            copied.denied,
            "are said to exist nowhere by the target, which cannot take them",
        ),
    ] {
        if count > 0 {
            say(format_args!("seqcast: {count} messages not copied that {why}"));
        }
    }
    tell(writeln!(
        io::stdout(),
        "{} messages in {} records copied, {} sessions new, {} messages newly known to exist nowhere",
        copied.messages,
        copied.records,
        copied.sessions,
        copied.lost
    ))?;
    let whole = copied.unreadable == 0;
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn copying(session: Session, copied: &Copied, seconds: f64) -> String {
    let moved = pace(copied.bytes, seconds);
    if copied.wanted == 0 {
        return format!("session {session}: {} messages, {moved}", copied.messages);
    }
    let share = copied.messages as f64 / copied.wanted as f64;
    format!("session {session}: {} {moved}", gauge(share))
}

pub(super) fn repair(dir: &Path, from: Option<&Path>) -> Result<ExitCode> {
    let from = from.map(read_only).transpose()?;
    read_only(dir)?;
    let stop = stop::on_signals()?;
    let meter = RefCell::new(Meter::new());
    let repaired = repair::repair(
        dir,
        from.as_ref(),
        &stop,
        &mut |step| {
            // What comes next is shown from its own start.
            meter.replace(Meter::new()).clear();
            Ok(tell(writeln!(io::stdout(), "{step}"))?)
        },
        &mut |doing| {
            meter.borrow_mut().show(|seconds| match doing {
                Doing::Checking(session, progress) => format!("checking {}", verifying(session, progress, seconds)),
                Doing::Copying(session, copied) => format!("copying {}", copying(session, &copied, seconds)),
            });
        },
    );
    meter.into_inner().clear();
    let outcome = match repaired {
        Err(error) if error.is::<Stopped>() => {
            stop::outcome(&stop)?;
            return Ok(ExitCode::SUCCESS);
        }
        outcome => outcome?,
    };
    let Outcome {
        damaged,
        missing,
        hopeless,
    } = outcome;
    tell(writeln!(
        io::stdout(),
        "{damaged} sessions were damaged; of them {hopeless} cannot be mended, the others lack {missing} messages"
    ))?;
    let whole = missing == 0 && hopeless == 0;
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

//! `seqcast archive`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::{Subcommand, ValueEnum};
use seqcast_archive::{Error, Progress, Reader, Verified};
use seqcast_engine::feed;
use seqcast_proto::seq::{Seq, Session};
#[cfg(feature = "parquet")]
use seqcast_tools::archive::parquet;
use seqcast_tools::archive::prune::Rules;
use seqcast_tools::archive::select::{Selection, Taken, Walked, Which};
use seqcast_tools::archive::summary::{self, Summary};
use seqcast_tools::archive::{pcapng, text};

use super::{Meter, complain, done_if_pipe_closed, gauge, pace, tell};

mod change;

use change::{SyncArgs, prune, repair, sync};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the sessions of an archive.
    ///
    /// One line for each session: when the first and the last of its stored messages were sent
    /// (UTC), how many messages are stored, how many exist nowhere (lost), in how many gaps others
    /// are missing, the bytes of its files, and whether it has ended.
    #[command(after_help = "Example:\n  seqcast archive ls /var/lib/seqcast/ticks")]
    Ls {
        /// The archive's directory.
        dir: PathBuf,
    },
    /// Show what is known of a session: times, ranges of numbers, files, neighbours.
    #[command(after_help = "Example:\n  seqcast archive info /var/lib/seqcast/ticks --session last")]
    Info {
        /// The archive's directory.
        dir: PathBuf,
        #[command(flatten)]
        session: SessionArg,
    },
    /// Read everything, and check every checksum and that every message is found.
    ///
    /// Names each damaged place by file and byte. The exit status is 1 if anything is damaged. On a
    /// terminal, a line on standard error shows how far it is.
    #[command(after_help = "Example:\n  seqcast archive verify /var/lib/seqcast/ticks && echo good")]
    Verify {
        /// The archive's directory.
        dir: PathBuf,
        #[command(flatten)]
        session: SessionArg,
    },
    /// Write messages to standard output, in the order of their numbers.
    ///
    /// Ends where the archive ended when it was opened; it does not follow a live one. What of the
    /// selection is not there is counted on standard error at the end.
    #[command(after_help = "Examples:\n  \
        seqcast archive cat ticks --session last --from 100 --to 199 --format json\n  \
        seqcast archive cat ticks --since 2026-03-02T14:30:00Z --format binaryfile | consumer\n  \
        seqcast archive cat ticks --since 5m --format hex | head")]
    Cat {
        /// The archive's directory.
        dir: PathBuf,
        #[command(flatten)]
        selection: SelectionArgs,
        /// How messages are written.
        #[arg(long, value_enum, default_value_t = CatFormat::Lines)]
        format: CatFormat,
    },
    /// Write messages to a file that other programs open.
    ///
    /// A capture (pcapng) has one packet for each record: the DATA frame that carried it, at the
    /// time at which the archive received it, to the nanosecond. The archive does not keep who
    /// sent a frame: the packets come from 192.0.2.1.
    #[command(after_help = "Examples:\n  \
        seqcast archive export ticks --format pcapng --out ticks.pcapng --group 239.81.0.1:5000\n  \
        seqcast archive export ticks --session last --format jsonl --out - | jq .sequence\n  \
        seqcast archive export ticks --since 24h --format parquet --out day.parquet")]
    Export {
        /// The archive's directory.
        dir: PathBuf,
        #[command(flatten)]
        selection: SelectionArgs,
        /// What kind of file.
        #[arg(long, value_enum)]
        format: ExportFormat,
        /// The file, written anew; "-" for standard output.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// For captures: the group and port to show. Unless given, what the stream's identity says:
        /// 239.0 and the lower half of the group's address, and the port.
        #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_group)]
        group: Option<SocketAddrV4>,
    },
    /// Remove old sessions from an archive that no engine has open.
    ///
    /// A session goes when no rule keeps it: with both rules, it is neither among the newest N nor
    /// young enough. Beside a live engine this is refused, since the engine still serves repairs
    /// from all its sessions; a dry run is not. Of a server's directory, only sessions that all
    /// archives have may go: it holds what none has acknowledged.
    #[command(
        group = clap::ArgGroup::new("rules").required(true).multiple(true).args(["keep_sessions", "older_than"]),
        after_help = "Examples:\n  \
            seqcast archive prune /var/lib/seqcast/ticks --older-than 30d --dry-run\n  \
            seqcast archive prune /var/lib/seqcast/ticks --keep-sessions 5 --older-than 30d"
    )]
    Prune {
        /// The archive's directory.
        dir: PathBuf,
        /// Keep the newest N sessions.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        keep_sessions: Option<u32>,
        /// Keep sessions whose last message was received within this time, such as 12h or 30d.
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        older_than: Option<Duration>,
        /// Only say what would go.
        #[arg(long)]
        dry_run: bool,
    },
    /// Copy what an archive lacks from another one of the same stream.
    ///
    /// From a directory: records keep the times at which they were sent and received. From a stream:
    /// from an archive that an engine has open, over the network, as a client asks and at a bounded
    /// rate; records keep the time at which they were sent. What is there is not copied again, so a
    /// copy that was cut short is simply repeated; messages that a live source has got meanwhile come
    /// with the next run. The target is made if it is not there, and must not be in use; the source
    /// may be. The exit status is 1 if messages of the source could not be read.
    #[command(after_help = "Examples:\n  \
        seqcast archive sync --from /var/lib/seqcast/ticks --to /backup/ticks\n  \
        seqcast archive sync --from /mnt/b/ticks --to /var/lib/seqcast/ticks --session last\n  \
        seqcast archive sync --stream 239.81.0.1:5000 --interface eth1 --to /backup/ticks\n  \
        seqcast archive sync --stream 239.81.0.1:5000 --interface eth1 --archive 10.0.0.7:6000 --to ticks")]
    Sync(SyncArgs),
    /// Mend an archive that no engine has open.
    ///
    /// Reads everything, names what is damaged, and makes each damaged session anew from what can be
    /// read of it and, with --from, from what another archive of the stream has. The new session is
    /// checked before it takes the old one's place; the damaged files are kept in a directory that
    /// is named. Torn ends are cut and indexes rebuilt as when an engine opens the archive. The exit
    /// status is 1 if messages of them are missing still.
    #[command(after_help = "Example:\n  seqcast archive repair /var/lib/seqcast/ticks --from /mnt/b/ticks")]
    Repair {
        /// The archive's directory.
        dir: PathBuf,
        /// Another archive of the stream, to fetch from what is damaged or missing here.
        #[arg(long, value_name = "DIR")]
        from: Option<PathBuf>,
    },
}

#[derive(clap::Args)]
struct SessionArg {
    /// Only this session: its number, or "last" for the newest; "all" unless given.
    #[arg(long, value_name = "N", value_parser = parse_session)]
    session: Option<Which>,
}

#[derive(clap::Args)]
struct SelectionArgs {
    #[command(flatten)]
    session: SessionArg,
    #[command(flatten)]
    range: RangeArgs,
}

#[derive(clap::Args)]
pub(super) struct RangeArgs {
    /// Start at this sequence number.
    #[arg(long, value_name = "SEQ")]
    from: Option<u32>,
    /// End with this sequence number.
    #[arg(long, value_name = "SEQ")]
    to: Option<u32>,
    /// Nothing that was sent before: a time such as 2026-03-02T14:30:00.5Z (UTC), a duration before
    /// now such as 90s or 2h, or ns since the Unix epoch such as @1772461800500000000.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<u64>,
    /// Nothing that was sent later: a time as for --since.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum CatFormat {
    /// A line each: session, number, payload in hexadecimal digits.
    Hex,
    /// A line each: an object with session, sequence, sent_ns, received_ns, subject, and payload in
    /// hexadecimal digits.
    Json,
    /// The payload and a line feed.
    Lines,
    /// A big-endian length of 16 bits and the payload.
    Binaryfile,
    /// Payloads with nothing between.
    Raw,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExportFormat {
    /// A packet capture.
    Pcapng,
    /// An object a line, as "cat --format json".
    Jsonl,
    /// A table for analysts (Apache Parquet): a row for each message. Not in all builds.
    Parquet,
}

impl SessionArg {
    fn selection(&self) -> Selection {
        Selection {
            session: self.session.unwrap_or_default(),
            ..Selection::default()
        }
    }
}

impl SelectionArgs {
    fn selection(&self) -> Selection {
        self.range.selection(self.session.session.unwrap_or_default())
    }
}

impl RangeArgs {
    pub(super) fn selection(&self, session: Which) -> Selection {
        Selection {
            session,
            from: self.from.map(Seq),
            to: self.to.map(Seq),
            since: self.since,
            until: self.until,
        }
    }
}

impl From<CatFormat> for text::Format {
    fn from(format: CatFormat) -> text::Format {
        match format {
            CatFormat::Hex => text::Format::Hex,
            CatFormat::Json => text::Format::Json,
            CatFormat::Lines => text::Format::Payload(feed::Format::Lines),
            CatFormat::Binaryfile => text::Format::Payload(feed::Format::Binaryfile),
            CatFormat::Raw => text::Format::Payload(feed::Format::Raw),
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.command {
        Command::Ls { dir } => done_if_pipe_closed(ls(dir)),
        Command::Info { dir, session } => done_if_pipe_closed(info(dir, &session.selection())),
        Command::Verify { dir, session } => verify(dir, &session.selection()),
        Command::Cat { dir, selection, format } => {
            let archive = open(dir)?;
            let out = io::stdout().lock();
            done_if_pipe_closed(cat(&archive, &selection.selection(), (*format).into(), out))
        }
        Command::Export {
            dir,
            selection,
            format,
            out,
            group,
        } => {
            let archive = open(dir)?;
            done_if_pipe_closed(export(&archive, &selection.selection(), *format, out, *group))
        }
        Command::Prune {
            dir,
            keep_sessions,
            older_than,
            dry_run,
        } => {
            let rules = Rules {
                keep_sessions: keep_sessions.map_or(0, |n| n as usize),
                older_than: *older_than,
            };
            prune(dir, rules, *dry_run)
        }
        Command::Sync(args) => sync(args),
        Command::Repair { dir, from } => repair(dir, from.as_deref()),
    }
}

pub(super) fn open(dir: &Path) -> Result<Reader> {
    Reader::open(dir).with_context(|| format!("no archive can be opened in {}", dir.display()))
}

fn ls(dir: &Path) -> Result<ExitCode> {
    let archive = open(dir)?;
    let mut sessions = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for session in archive.sessions()? {
        match archive
            .session(session)
            .and_then(|mut reader| Summary::of(session, &mut reader))
        {
            Ok(summary) => sessions.push(summary),
            // Removed by the writer since it was listed.
            Err(Error::Unknown(_)) => {}
            Err(error) => {
                complain(format_args!("seqcast: session {session}: {error}"));
                code = ExitCode::FAILURE;
            }
        }
    }
    write!(io::stdout(), "{}", summary::list(&sessions))?;
    Ok(code)
}

fn info(dir: &Path, selection: &Selection) -> Result<ExitCode> {
    let archive = open(dir)?;
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "archive of stream {}, identity {:#010x}",
        archive.stream(),
        archive.identity()
    )?;
    for session in selection.sessions(&archive)? {
        let mut reader = archive.session(session)?;
        write!(out, "\n{}", summary::describe(session, &mut reader)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn verify(dir: &Path, selection: &Selection) -> Result<ExitCode> {
    let archive = open(dir)?;
    let mut damaged = false;
    for session in selection.sessions(&archive)? {
        let mut meter = Meter::new();
        let verified = archive.session(session).and_then(|mut reader| {
            reader.verify(|progress| meter.show(|seconds| verifying(session, progress, seconds)))
        });
        meter.clear();
        match verified {
            Ok(found) => {
                tell(report_verified(session, &found))?;
                damaged |= found.damaged > 0;
            }
            Err(Error::Unknown(_)) if selection.session == Which::All => {}
            Err(error) => {
                tell(writeln!(io::stdout(), "session {session}: {error}"))?;
                damaged = true;
            }
        }
    }
    Ok(if damaged { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn verifying(session: Session, progress: Progress, seconds: f64) -> String {
    let share = progress.segments as f64 / progress.of.max(1) as f64;
    format!("session {session}: {} {}", gauge(share), pace(progress.bytes, seconds))
}

fn report_verified(session: Session, found: &Verified) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for damage in &found.damage {
        writeln!(out, "session {session}: {damage}")?;
    }
    let listed = found.damage.len() as u64;
    if found.damaged > listed {
        writeln!(out, "session {session}: {} damaged places more", found.damaged - listed)?;
    }
    let Progress {
        segments,
        records,
        bytes,
        ..
    } = found.progress;
    let verdict = match found.damaged {
        0 => "good".to_owned(),
        n => format!("DAMAGED in {n} places"),
    };
    writeln!(
        out,
        "session {session}: {verdict}; {records} records, {bytes} bytes in {segments} segments"
    )
}

/// Writes to disks and pipes are worth a system call by this many bytes.
pub(super) const BUFFER: usize = 1 << 18;

fn cat(archive: &Reader, selection: &Selection, format: text::Format, out: impl Write) -> Result<ExitCode> {
    let mut writer = text::Writer::new(BufWriter::with_capacity(BUFFER, out), format);
    let walked = selection.walk(archive, &mut |taken| writer.write(&taken))?;
    writer.finish()?;
    tell_absent(&walked);
    Ok(ExitCode::SUCCESS)
}

/// Hands the selected messages to `write`, and shows how far it is.
fn walk(archive: &Reader, selection: &Selection, mut write: impl FnMut(&Taken<'_>) -> Result<()>) -> Result<()> {
    let mut meter = Meter::new();
    let mut bytes = 0;
    let walked = selection.walk(archive, &mut |taken| {
        bytes += taken.block.bytes().len() as u64;
        meter.show(|seconds| {
            format!(
                "session {}: {} {}",
                taken.session,
                gauge(taken.share()),
                pace(bytes, seconds)
            )
        });
        write(&taken)
    });
    meter.clear();
    tell_absent(&walked?);
    Ok(())
}

fn export(
    archive: &Reader,
    selection: &Selection,
    format: ExportFormat,
    path: &Path,
    group: Option<SocketAddrV4>,
) -> Result<ExitCode> {
    // Nothing is overwritten for a selection that cannot be.
    selection.sessions(archive)?;
    #[cfg(not(feature = "parquet"))]
    anyhow::ensure!(
        format != ExportFormat::Parquet,
        "this binary was built without Parquet: build it with --features parquet"
    );
    let out: Box<dyn Write + Send> = if path == Path::new("-") {
        Box::new(io::stdout())
    } else {
        Box::new(File::create(path).with_context(|| format!("cannot write {}", path.display()))?)
    };
    let written = match format {
        ExportFormat::Jsonl => lines(archive, selection, out),
        ExportFormat::Pcapng => {
            let group = group.unwrap_or_else(|| pcapng::derived_group(archive.stream()));
            capture(archive, selection, group, out)
        }
        #[cfg(feature = "parquet")]
        ExportFormat::Parquet => table(archive, selection, out),
        #[cfg(not(feature = "parquet"))]
        ExportFormat::Parquet => unreachable!("refused above"),
    };
    written.with_context(|| format!("{} is not complete", path.display()))
}

fn lines(archive: &Reader, selection: &Selection, out: impl Write) -> Result<ExitCode> {
    let mut writer = text::Writer::new(BufWriter::with_capacity(BUFFER, out), text::Format::Json);
    walk(archive, selection, |taken| writer.write(taken))?;
    writer.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn capture(archive: &Reader, selection: &Selection, group: SocketAddrV4, out: impl Write) -> Result<ExitCode> {
    let out = BufWriter::with_capacity(BUFFER, out);
    let mut writer = pcapng::Writer::new(out, archive.stream(), group)?;
    walk(archive, selection, |taken| writer.write(taken))?;
    writer.finish()?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(feature = "parquet")]
fn table(archive: &Reader, selection: &Selection, out: impl Write + Send) -> Result<ExitCode> {
    let mut writer = parquet::Writer::new(BufWriter::with_capacity(BUFFER, out))?;
    walk(archive, selection, |taken| writer.write(taken))?;
    writer.finish()?;
    Ok(ExitCode::SUCCESS)
}

/// What of a selection was not there.
pub(super) fn tell_absent(walked: &Walked) {
    if *walked == Walked::default() {
        complain(format_args!("seqcast: the archive has no message of this selection"));
    }
    for (count, why) in [
        (walked.lost, "exist nowhere"),
        (walked.missing, "are not in the archive"),
        (
            walked.unreadable,
            "could not be read: damaged (see \"seqcast archive verify\"), or released meanwhile",
        ),
    ] {
        if count > 0 {
            complain(format_args!("seqcast: {count} messages left out that {why}"));
        }
    }
}

/// ns since the Unix epoch.
fn now() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    since_epoch.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

pub(super) fn parse_session(text: &str) -> Result<Which, String> {
    match text {
        "last" => Ok(Which::Last),
        "all" => Ok(Which::All),
        number => match number.parse() {
            Ok(number) => Ok(Which::One(Session(number))),
            Err(_) => Err("write a session's number, \"last\" or \"all\"".to_owned()),
        },
    }
}

pub(super) fn parse_group(text: &str) -> Result<SocketAddrV4, String> {
    let group = text
        .parse()
        .map_err(|_| "write a group and port such as 239.81.0.1:5000".to_owned())?;
    seqcast_engine::link::check_group(group).map_err(|error| error.to_string())?;
    Ok(group)
}

fn parse_time(text: &str) -> Result<u64, String> {
    let ns = if let Some(ns) = text.strip_prefix('@') {
        ns.parse().ok()
    } else if let Ok(before) = humantime::parse_duration(text) {
        u64::try_from(before.as_nanos()).ok().map(|ns| now().saturating_sub(ns))
    } else {
        let time = humantime::parse_rfc3339_weak(text).ok();
        let since_epoch = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        since_epoch.and_then(|d| u64::try_from(d.as_nanos()).ok())
    };
    ns.ok_or_else(|| {
        "write a UTC time such as 2026-03-02T14:30:00Z, a duration before now such as 2h, or @ and ns since the \
         Unix epoch"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_points_or_lie_before_now() {
        let half_past = 1_772_461_800_000_000_000;
        for (text, ns) in [
            ("2026-03-02T14:30:00Z", half_past),
            ("2026-03-02 14:30:00.000000007", half_past + 7),
            ("@1772461800000000007", half_past + 7),
        ] {
            assert_eq!(parse_time(text), Ok(ns), "{text}");
        }
        let hour = 3_600_000_000_000;
        let before = now() - hour;
        let parsed = parse_time("1h").unwrap();
        assert!((before..=now() - hour).contains(&parsed));
        for text in [
            "",
            "@",
            "@-1",
            "yesterday",
            "2026-13-02T14:30:00Z",
            "1969-01-01T00:00:00Z",
        ] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn groups_are_those_that_streams_may_use() {
        assert!(parse_group("239.81.0.1:5000").is_ok());
        for text in ["10.81.0.1:5000", "239.81.0.1", "239.81.0.1:0"] {
            assert!(parse_group(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sessions_have_numbers_or_are_the_last() {
        assert_eq!(parse_session("7"), Ok(Which::One(Session(7))));
        assert_eq!(parse_session("last"), Ok(Which::Last));
        assert_eq!(parse_session("all"), Ok(Which::All));
        assert!(parse_session("-1").is_err() && parse_session("newest").is_err());
    }
}

//! What came of a run, and how it is shown.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddrV4;
use std::path::Path;

use anyhow::{Context, Result};
use seqcast_archive::Reader as ArchiveReader;
use seqcast_engine::feed::binaryfile::{ReadError, Reader};
use seqcast_engine::report::{Latency, Report};
use seqcast_proto::seq::Seq;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::job::Link;
use super::{Place, interrupt};
use crate::table;

/// A file of messages, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Contents {
    /// Whole messages.
    pub messages: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Whether it ends inside a message.
    pub truncated: bool,
    /// SHA-256 of the file in hexadecimal digits.
    pub sha256: String,
}

/// What one client delivered.
#[derive(Debug, Serialize)]
pub struct ClientOutcome {
    /// The client's name.
    pub name: String,
    /// What is in its file.
    pub delivered: Contents,
    /// Whether that is the input, byte for byte.
    pub equal: bool,
    /// If not: the first message, counted from 1, that is not as in the input.
    pub first_difference: Option<u64>,
    /// What its engine said.
    pub report: Report,
}

/// What came of a run. `Display` shows it as a table.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// What was published.
    pub input: Contents,
    /// What hosts were.
    pub place: Place,
    /// How engines moved frames.
    pub link: Link,
    /// From the server's start to the end of the last engine but the archive's, in seconds.
    pub seconds: f64,
    /// Messages per second that the server was asked for; as fast as it goes if not given.
    pub rate_asked: Option<u64>,
    /// Messages per second between the first and the last frame, by the server's own times as the
    /// archive holds them; none if it holds fewer than two frames.
    pub rate_reached: Option<f64>,
    /// What the server's engine said.
    pub server: Report,
    /// What the archive's engine said.
    pub archive: Report,
    /// Size of the archive's files, in bytes.
    pub archive_bytes: u64,
    /// The clients, in order.
    pub clients: Vec<ClientOutcome>,
}

impl Outcome {
    /// Whether every client delivered the input, byte for byte.
    #[must_use]
    pub fn all_equal(&self) -> bool {
        self.clients.iter().all(|client| client.equal)
    }
}

impl ClientOutcome {
    pub(super) fn new(
        name: String,
        input_file: &Path,
        input: &Contents,
        delivered_file: &Path,
        report: Report,
    ) -> Result<Self> {
        let delivered = Contents::of(delivered_file)?;
        let equal = delivered == *input;
        let first_difference = if equal {
            None
        } else {
            Some(first_difference(input_file, delivered_file)?)
        };
        Ok(ClientOutcome {
            name,
            delivered,
            equal,
            first_difference,
            report,
        })
    }
}

/// Hashes what is read through it.
struct Hashing<R> {
    source: R,
    hash: Sha256,
    bytes: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.source.read(into)?;
        self.hash.update(&into[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
}

impl Contents {
    pub(super) fn of(path: &Path) -> Result<Contents> {
        let mut source = Hashing {
            source: open(path)?,
            hash: Sha256::new(),
            bytes: 0,
        };
        let mut messages = 0u64;
        // The reader stops at the end of the file only, so all of it is hashed.
        let mut reader = Reader::new(&mut source);
        let truncated = loop {
            match reader.next_message() {
                Ok(Some(_)) => {
                    messages += 1;
                    interrupt::check_every(messages)?;
                }
                Ok(None) => break false,
                Err(ReadError::Truncated { .. }) => break true,
                Err(error) => return Err(error).with_context(|| path.display().to_string()),
            }
        };
        let digest = source.hash.finalize();
        Ok(Contents {
            messages,
            bytes: source.bytes,
            truncated,
            sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The number, from 1, of the first message that two files do not have in common.
fn first_difference(left: &Path, right: &Path) -> Result<u64> {
    let (mut left, mut right) = (Reader::new(open(left)?), Reader::new(open(right)?));
    for number in 1.. {
        match (left.next_message(), right.next_message()) {
            (Ok(Some(l)), Ok(Some(r))) if l == r => {}
            _ => return Ok(number),
        }
    }
    unreachable!("files are finite")
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Contents {
            messages,
            bytes,
            sha256,
            ..
        } = self;
        write!(f, "{messages} messages, {bytes} bytes, SHA-256 {sha256}")
    }
}

/// Messages per second between the first and the last frame of an archive's last session.
pub(super) fn rate_of(archive: &Path) -> Option<f64> {
    let archive = ArchiveReader::open(archive).ok()?;
    let mut session = archive.session(*archive.sessions().ok()?.last()?).ok()?;
    let last = session.stored().as_slice().last()?.last;
    let first = session.in_order(Seq::FIRST).next()?.ok()?;
    let last = session.read(last).ok()??;
    // The first frame's messages were there when the clock started.
    let messages = last.range().end().since(first.range().end());
    let ns = last.send_ns.checked_sub(first.send_ns).filter(|&ns| ns > 0)?;
    Some(f64::from(messages) / (ns as f64 / 1e9))
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} messages, {:.1} s until all had ended",
            self.input.messages, self.seconds
        )?;
        let asked = self
            .rate_asked
            .map_or("as fast as it goes".to_owned(), |rate| format!("{rate}/s"));
        let reached = self
            .rate_reached
            .map_or("not known".to_owned(), |rate| format!("{rate:.0}/s"));
        write!(f, "input rate: asked {asked}, reached {reached}")?;
        if let (Some(asked), Some(reached)) = (self.rate_asked, self.rate_reached) {
            write!(f, " ({:+.2} %)", (reached / asked as f64 - 1.0) * 100.0)?;
        }
        writeln!(f, "\n")?;

        let head = "client messages gaps archive server lost duplicates p50 p99 p99.9 p50 p99 p99.9";
        let mut names = head.split(' ');
        let mut rows = vec![std::array::from_fn(|_| names.next().unwrap_or_default().to_owned())];
        rows.extend(self.clients.iter().map(ClientOutcome::row));
        let groups = [
            (3, 2, "repaired by"),
            (7, 3, "latency live, us"),
            (10, 3, "latency repaired, us"),
        ];
        let left = std::array::from_fn(|i| i == 0);
        writeln!(f, "{}", table::render(&groups, left, &rows))?;

        for publication in &self.server.publications {
            let pending = publication.messages.saturating_sub(publication.acknowledged);
            let archived = match pending {
                0 => "all archived".to_owned(),
                n => format!("{n} not archived"),
            };
            writeln!(
                f,
                "server: session {}, {} messages in {} frames, {archived}",
                publication.session, publication.messages, publication.frames,
            )?;
        }
        for stored in &self.archive.archives {
            writeln!(
                f,
                "archive: stored {} messages in {} records, {} bytes of files",
                stored.stored, stored.records, self.archive_bytes,
            )?;
            writeln!(
                f,
                "archive: {} gaps, {} messages repaired for it, {} lost; gave {} messages as repairs",
                stored.gaps, stored.repaired, stored.lost, stored.repairs,
            )?;
        }
        self.write_modes(f)?;
        self.write_verdict(f)
    }
}

impl Outcome {
    /// What each host's link really was; hosts with the same one share a line.
    fn write_modes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fixed = [("server", &self.server), ("archive", &self.archive)];
        let clients = self.clients.iter().map(|client| (client.name.as_str(), &client.report));
        let mut modes: Vec<(String, Vec<&str>)> = Vec::new();
        for (name, report) in fixed.into_iter().chain(clients) {
            let mode = without_address(&report.mode);
            match modes.iter_mut().find(|(other, _)| *other == mode) {
                Some((_, names)) => names.push(name),
                None => modes.push((mode, vec![name])),
            }
        }
        match &modes[..] {
            [(mode, _)] => writeln!(f, "link of all hosts: {mode}"),
            modes => modes
                .iter()
                .try_for_each(|(mode, names)| writeln!(f, "link of {}: {mode}", names.join(", "))),
        }
    }

    fn write_verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.all_equal() {
            return writeln!(f, "every client delivered the input: SHA-256 {}", self.input.sha256);
        }
        for client in &self.clients {
            let Some(number) = client.first_difference else {
                writeln!(f, "{} delivered the input", client.name)?;
                continue;
            };
            let delivered = &client.delivered;
            let how = if number <= delivered.messages.min(self.input.messages) {
                format!("message {number} is another")
            } else if delivered.truncated {
                format!("message {number} is cut short")
            } else if number > self.input.messages {
                format!("message {number} is one too many")
            } else {
                format!("message {number} and all after it are missing")
            };
            writeln!(f, "{} did NOT deliver the input: {how}; {delivered}", client.name)?;
        }
        writeln!(f, "NOT every client delivered the input: SHA-256 {}", self.input.sha256)
    }
}

/// A mode without the host's own address, which says nothing of how frames move.
fn without_address(mode: &str) -> String {
    let address = |word: &str| word.trim_end_matches(',').parse::<SocketAddrV4>().is_ok();
    let words = mode.split(' ').filter(|word| !address(word));
    let mode = words.collect::<Vec<_>>().join(" ");
    if mode.is_empty() { "not said".to_owned() } else { mode }
}

impl ClientOutcome {
    /// One line of the table; a client of a lab has one subscription.
    fn row(&self) -> [String; 13] {
        let subscription = self.report.subscriptions.first().cloned().unwrap_or_default();
        let [live, live99, live999] = microseconds(subscription.latency_live_ns);
        let [repaired, repaired99, repaired999] = microseconds(subscription.latency_repaired_ns);
        [
            self.name.clone(),
            self.delivered.messages.to_string(),
            subscription.gaps.to_string(),
            subscription.repaired_archive.to_string(),
            subscription.repaired_server.to_string(),
            subscription.lost.to_string(),
            subscription.duplicates.to_string(),
            live,
            live99,
            live999,
            repaired,
            repaired99,
            repaired999,
        ]
    }
}

/// p50, p99 and p99.9; tenths below 1 ms.
fn microseconds(latency: Latency) -> [String; 3] {
    [latency.p50, latency.p99, latency.p999].map(|ns| match (latency.count, ns) {
        (0, _) => "-".to_owned(),
        (_, ..1_000_000) => format!("{:.1}", ns as f64 / 1e3),
        _ => format!("{:.0}", ns as f64 / 1e3),
    })
}

#[cfg(test)]
mod tests {
    use seqcast_archive::{Archive, Options, SessionMeta, SyncPolicy};
    use seqcast_engine::feed::binaryfile::Writer;
    use seqcast_engine::report::{ArchiveCounts, ArchiveReport, SubscriptionCounts, SubscriptionReport};
    use seqcast_proto::seq::{Session, Stream};

    use super::*;

    fn write(path: &Path, messages: &[&str]) {
        let mut writer = Writer::new(File::create(path).unwrap());
        for message in messages {
            writer.write(message.as_bytes()).unwrap();
        }
        writer.finish().unwrap();
    }

    const PUBLISHED: &[&str] = &["a", "b", "c"];

    /// The outcome of clients that deliver these.
    fn outcome(delivered: &[&[&str]]) -> Outcome {
        let files = tempfile::tempdir().unwrap();
        let published = files.path().join("in");
        write(&published, PUBLISHED);
        let input = Contents::of(&published).unwrap();
        let clients = delivered.iter().zip(1..).map(|(messages, number)| {
            let path = files.path().join("out");
            write(&path, messages);
            let report = Report {
                mode: format!("udp on eth1 10.81.0.{number}:4711, no gso"),
                ..Report::default()
            };
            ClientOutcome::new(format!("client{number}"), &published, &input, &path, report).unwrap()
        });
        Outcome {
            clients: clients.collect(),
            input,
            place: Place::Loopback,
            link: Link::Udp,
            seconds: 1.0,
            rate_asked: None,
            rate_reached: None,
            server: Report::default(),
            archive: Report::default(),
            archive_bytes: 0,
        }
    }

    #[test]
    fn the_verdict_says_who_delivered_what() {
        let text = outcome(&[PUBLISHED, &["a", "x", "c"], &["a"], &["a", "b", "c", "d"]]).to_string();
        for want in [
            "client1 delivered the input\n",
            "client2 did NOT deliver the input: message 2 is another; 3 messages, 9 bytes, SHA-256 ",
            "client3 did NOT deliver the input: message 2 and all after it are missing; 1 messages",
            "client4 did NOT deliver the input: message 4 is one too many; 4 messages",
            "\nNOT every client delivered the input: SHA-256 ",
        ] {
            assert!(text.contains(want), "{want}: {text}");
        }
        let text = outcome(&[PUBLISHED; 2]).to_string();
        assert!(text.contains("\nevery client delivered the input: SHA-256 "), "{text}");
        assert!(!text.contains("NOT"), "{text}");
    }

    #[test]
    fn hosts_with_one_mode_share_a_line_whatever_their_addresses() {
        let mut outcome = outcome(&[PUBLISHED; 2]);
        assert!(
            outcome
                .to_string()
                .contains("\nlink of server, archive: not said\nlink of client1, client2: udp on eth1 no gso\n")
        );
        outcome.server.mode = "udp on eth1 10.81.0.9:4711, no gso".into();
        outcome.archive.mode = outcome.server.mode.clone();
        assert!(
            outcome
                .to_string()
                .contains("\nlink of all hosts: udp on eth1 no gso\n")
        );
    }

    #[test]
    fn a_long_and_bad_run_fits_the_terminal() {
        let mut outcome = outcome(&[PUBLISHED; 3]);
        for client in &mut outcome.clients {
            client.name = "client190".into();
            client.delivered.messages = 100_000_000;
            let slow = Latency {
                count: 1,
                p50: 999_949,
                p99: 2_000_000_000,
                p999: 9_999_999_999,
                max: 0,
            };
            client.report.subscriptions = vec![SubscriptionReport {
                counts: SubscriptionCounts {
                    gaps: 999_999,
                    repaired_archive: 9_999_999,
                    repaired_server: 999_999,
                    lost: 9_999,
                    duplicates: 9_999_999,
                    ..SubscriptionCounts::default()
                },
                latency_live_ns: slow,
                latency_repaired_ns: slow,
                ..SubscriptionReport::default()
            }];
        }
        outcome.archive.archives = vec![ArchiveReport {
            counts: ArchiveCounts {
                stored: 100_000_000,
                records: 100_000_000,
                gaps: 999_999,
                repaired: 9_999_999,
                repairs: 99_999_999,
                ..ArchiveCounts::default()
            },
            ..ArchiveReport::default()
        }];
        let text = outcome.to_string();
        assert!(text.lines().all(|line| line.len() <= 120), "{text}");
        assert!(text.contains("  999.9  2000000  10000000"), "{text}");
    }

    #[test]
    fn the_rate_is_that_between_the_first_and_the_last_frame() {
        let files = tempfile::tempdir().unwrap();
        assert_eq!(rate_of(files.path()), None);
        let options = Options {
            sync: SyncPolicy::None,
            helper: false,
            ..Options::default()
        };
        let mut archive = Archive::open(files.path(), Stream(1), options).unwrap();
        let meta = SessionMeta {
            previous: Session::NONE,
            origin: 1,
            user: 0,
        };
        let log = archive.create_session(Session(1), meta).unwrap();
        log.append(Seq(1), 10, 1_000_000_000, 0, 0, &[]).unwrap();
        assert_eq!(rate_of(files.path()), None, "one frame takes no time");
        log.append(Seq(11), 10, 2_000_000_000, 0, 0, &[]).unwrap();
        log.append(Seq(21), 20, 4_000_000_000, 0, 0, &[]).unwrap();
        assert_eq!(rate_of(files.path()), Some(10.0));
    }
}

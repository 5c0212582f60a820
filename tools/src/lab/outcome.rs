//! What came of a run, and how it is shown.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::job::{Latency, Link, Report};
use super::{Place, interrupt};
use crate::binaryfile::{ReadError, Reader};

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

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let messages = self.input.messages;
        let rate = messages as f64 / self.seconds.max(1e-9);
        writeln!(f, "{messages} messages in {:.1} s ({rate:.0}/s)\n", self.seconds)?;
        let mut rows = vec![
            [
                "client",
                "messages",
                "gaps",
                "by archive",
                "by server",
                "lost",
                "duplicates",
                "live us",
                "repaired us",
                "mode",
                "output",
            ]
            .map(str::to_owned),
        ];
        rows.extend(self.clients.iter().map(ClientOutcome::row));
        write_table(f, &rows)?;
        writeln!(f, "(latency: p50/p99/p99.9)\n")?;
        for publication in &self.server.publications {
            writeln!(
                f,
                "server: session {}, {} messages in {} frames, archived up to {}; {}",
                publication.session,
                publication.messages,
                publication.frames,
                publication.acknowledged,
                or_dash(&self.server.mode),
            )?;
        }
        for stored in &self.archive.archives {
            let fields: Vec<String> = stored.iter().map(|(k, v)| format!("{k} {v}")).collect();
            writeln!(
                f,
                "archive: {}; {} bytes of files; {}",
                fields.join(", "),
                self.archive_bytes,
                or_dash(&self.archive.mode),
            )?;
        }
        for client in &self.clients {
            if let Some(number) = client.first_difference {
                writeln!(
                    f,
                    "{}: message {number} is not as published; delivered {}",
                    client.name, client.delivered
                )?;
            }
        }
        if self.all_equal() {
            writeln!(f, "all clients delivered the input: SHA-256 {}", self.input.sha256)
        } else {
            writeln!(f, "NOT all clients delivered the input: SHA-256 {}", self.input.sha256)
        }
    }
}

impl ClientOutcome {
    /// One line of the table; a client of a lab has one subscription.
    fn row(&self) -> [String; 11] {
        let subscription = self.report.subscriptions.first().cloned().unwrap_or_default();
        [
            self.name.clone(),
            self.delivered.messages.to_string(),
            subscription.gaps.to_string(),
            subscription.repaired_archive.to_string(),
            subscription.repaired_server.to_string(),
            subscription.lost.to_string(),
            subscription.duplicates.to_string(),
            subscription.latency_live_ns.to_string(),
            subscription.latency_repaired_ns.to_string(),
            or_dash(&self.report.mode).to_owned(),
            if self.equal { "equal" } else { "DIFFERS" }.to_owned(),
        ]
    }
}

/// Microseconds: `p50/p99/p99.9`.
impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count == 0 {
            return f.write_str("-");
        }
        for (i, value) in [self.p50, self.p99, self.p999].into_iter().enumerate() {
            f.write_str(if i > 0 { "/" } else { "" })?;
            match value {
                Some(ns) => write!(f, "{:.1}", ns as f64 / 1e3)?,
                None => f.write_str("-")?,
            }
        }
        Ok(())
    }
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// Columns as wide as they need; the first and the last two to the left, numbers to the right.
fn write_table<const N: usize>(f: &mut fmt::Formatter<'_>, rows: &[[String; N]]) -> fmt::Result {
    let widths: [usize; N] = std::array::from_fn(|i| rows.iter().map(|row| row[i].len()).max().unwrap_or(0));
    for row in rows {
        let mut line = String::new();
        for (i, (cell, width)) in row.iter().zip(widths).enumerate() {
            if i == 0 || i + 2 >= N {
                line += &format!("{cell:<width$}  ");
            } else {
                line += &format!("{cell:>width$}  ");
            }
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}

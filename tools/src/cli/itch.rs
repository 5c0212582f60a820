//! `seqcast itch`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use seqcast_engine::feed::binaryfile::Writer;
use seqcast_tools::itch::{Generator, Length, Spec, describe};

use super::done_if_pipe_closed;

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("action").required(true).args(["out", "describe"]))]
#[command(group = clap::ArgGroup::new("length").args(["messages", "bytes"]))]
pub(crate) struct Args {
    /// Write a made session to this file, or to standard output if "-".
    #[arg(long, value_name = "FILE", requires = "length")]
    out: Option<PathBuf>,
    /// Print what a file (or standard input if "-") holds, and what is wrong with it: the exit
    /// status is 1 if anything is.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["length", "symbols", "seed"])]
    describe: Option<PathBuf>,
    /// Exact number of messages, at least 10.
    #[arg(long, value_name = "N")]
    messages: Option<u64>,
    /// Greatest size of the file: bytes, or with a suffix such as 500M or 2GiB.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    bytes: Option<u64>,
    /// Which session to make; the same seed gives the same bytes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Stocks that trade.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u16).range(1..))]
    symbols: u16,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    done_if_pipe_closed(make_or_describe(args))
}

fn make_or_describe(args: &Args) -> Result<ExitCode> {
    if let Some(path) = &args.describe {
        let source: Box<dyn Read> = if path == Path::new("-") {
            Box::new(io::stdin().lock())
        } else {
            Box::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?)
        };
        let found = describe(source).with_context(|| path.display().to_string())?;
        write!(io::stdout(), "{found}")?;
        return Ok(match found.problem_count {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        });
    }
    let length = match (args.messages, args.bytes) {
        (Some(n), _) => Length::Messages(n),
        (None, n) => Length::Bytes(n.unwrap_or(0)),
    };
    let generator = Generator::new(Spec {
        length,
        symbols: args.symbols,
        seed: args.seed,
    })?;
    let path = args.out.as_deref().unwrap_or(Path::new("-"));
    if path == Path::new("-") {
        write(generator, io::stdout().lock()).context("cannot write to standard output")?;
    } else {
        File::create(path)
            .and_then(|file| write(generator, file))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write(mut generator: Generator, sink: impl Write) -> io::Result<()> {
    let mut writer = Writer::new(sink);
    while let Some(message) = generator.next_message() {
        writer.write(message)?;
    }
    writer.finish()?.flush()
}

/// Reads a size: a number with an optional suffix K, M, G, T (powers of 1000) or Ki, Mi, Gi, Ti
/// (powers of 1024), and an optional B after it.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, suffix) = text.split_at(digits);
    let suffix = suffix.strip_suffix('B').unwrap_or(suffix);
    let (prefix, base) = match suffix.strip_suffix('i') {
        Some(prefix) => (prefix, 1024u64),
        None => (suffix, 1000),
    };
    let power = match (prefix, base) {
        ("", 1000) => 0,
        ("K" | "k", _) => 1,
        ("M", _) => 2,
        ("G", _) => 3,
        ("T", _) => 4,
        _ => return Err(format!("\"{text}\" is no size; write for example 500M or 2GiB")),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| format!("\"{text}\" does not start with a whole number"))?;
    number
        .checked_mul(base.pow(power))
        .ok_or_else(|| format!("\"{text}\" is too large"))
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes_have_decimal_and_binary_suffixes() {
        for (text, size) in [
            ("0", 0),
            ("1500", 1500),
            ("10B", 10),
            ("3k", 3_000),
            ("500M", 500_000_000),
            ("2GiB", 2 << 30),
            ("1Ti", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "M", "1i", "1.5G", "-1", "12 M", "99999999999T"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}

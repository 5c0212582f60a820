//! The `seqcast` command.

mod cli;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use seqcast_tools::lab::Error;

/// Tools for Seqcast, the reliable multicast engine.
#[derive(Parser)]
#[command(name = "seqcast", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Look into archives, check them, take messages out of them, remove old sessions.
    Archive(cli::archive::Args),
    /// Make or describe Nasdaq ITCH 5.0 sessions in BinaryFILE framing.
    Itch(cli::itch::Args),
    /// Run server, archive and clients on one machine, and check what arrives.
    Lab(cli::lab::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Archive(args) => cli::archive::run(&args),
        Command::Itch(args) => cli::itch::run(&args),
        Command::Lab(args) => cli::lab::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("seqcast: {}", in_full(&error));
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

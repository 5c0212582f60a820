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
    /// Make or describe Nasdaq ITCH 5.0 sessions in BinaryFILE framing.
    Itch(cli::itch::Args),
    /// Run server, archive and clients on one machine, and check what arrives.
    Lab(cli::lab::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Itch(args) => cli::itch::run(&args),
        Command::Lab(args) => cli::lab::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("seqcast: {error:#}");
        match error.downcast_ref() {
            // As the shell reports a program that a signal ended.
            Some(&Error::Interrupted { signal }) => ExitCode::from(128 + signal as u8),
            _ => ExitCode::FAILURE,
        }
    })
}

//! The `seqcast` command.

mod cli;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Itch(args) => cli::itch::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("seqcast: {error:#}");
        ExitCode::FAILURE
    })
}

//! The command line of `seqcast-engine`, from which its manual page and completions are made as well.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// The Seqcast engine: reliable multicast over AF_XDP or kernel sockets.
///
/// One process per network interface runs the servers, clients and archives of a configuration.
/// The exit status is 0 if all that was asked for is done, 1 if something failed, which the last line
/// on standard error names, and 2 if the options are wrong.
#[derive(Parser)]
#[command(name = "seqcast-engine", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the engine can be asked to do.
#[derive(Subcommand)]
pub enum Command {
    /// Run the servers, clients and archives of a configuration until they end.
    ///
    /// SIGTERM and SIGINT end it in order: sources are drained, the end is announced, last
    /// acknowledgements are awaited, logs are synced. A second signal leaves at once.
    /// SIGHUP lets it read files of keys again.
    Run {
        /// The configuration file (TOML).
        #[arg(long)]
        config: PathBuf,
    },
    /// Read a configuration and say what is wrong with it.
    Check {
        /// The configuration file (TOML).
        #[arg(long)]
        config: PathBuf,
    },
}

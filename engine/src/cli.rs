//! The command line of `seqcast-engine`, from which its manual page and completions are made as well.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config;
use crate::log::{FilterError, Format, parse_filter};

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

/// What is said, in place of what `[log]` of the configuration says.
#[derive(Args, Clone, Debug, Default)]
pub struct LogArgs {
    /// From which level on, and of which part: "info", "warn,client=debug".
    #[arg(long, value_name = "FILTER", global = true)]
    pub log: Option<String>,
    /// How a line looks: text, full (with time and level) or json.
    #[arg(long, value_name = "FORMAT", global = true)]
    pub log_format: Option<Format>,
}

impl LogArgs {
    /// Puts what was given in place.
    ///
    /// # Errors
    /// When the filter makes no sense.
    pub fn put_into(&self, log: &mut config::Log) -> Result<(), FilterError> {
        if let Some(filter) = &self.log {
            parse_filter(filter)?;
            log.level.clone_from(filter);
        }
        log.format = self.log_format.unwrap_or(log.format);
        Ok(())
    }
}

/// What the engine can be asked to do.
#[derive(Subcommand)]
pub enum Command {
    /// Run the servers, clients and archives of a configuration until they end.
    ///
    /// SIGTERM and SIGINT end it in order: sources are drained, the end is announced, last
    /// acknowledgements are awaited, logs are synced. A second signal leaves at once.
    /// SIGHUP lets it read its configuration and files of keys again: it takes what can change while it
    /// runs, or names each key that cannot, and then changes nothing.
    Run {
        /// The configuration file (TOML).
        #[arg(long)]
        config: PathBuf,
        /// What is said.
        #[command(flatten)]
        log: LogArgs,
    },
    /// Read a configuration and say what is wrong with it.
    ///
    /// With --running, say as well what of it a running engine would take, and what needs a restart: then
    /// the exit status is 1.
    Check {
        /// The configuration file (TOML).
        #[arg(long)]
        config: PathBuf,
        /// The configuration with which the engine runs: a copy of the file from before it was changed.
        #[arg(long, value_name = "CONFIG")]
        running: Option<PathBuf>,
    },
}

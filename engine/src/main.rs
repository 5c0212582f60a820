//! `seqcast-engine`: one process that runs servers, clients and archives.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use anyhow::{Context, Result};
use clap::Parser;
use seqcast_engine::cli::{Cli, Command};
use seqcast_engine::config::Config;
use seqcast_engine::log::Log;
use seqcast_engine::node::StopRequests;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

mod control;
mod gate;
mod privileges;
mod run;
mod service;

use control::Origin;
use run::Setting;

/// What this program is called.
const NAME: &str = "seqcast-engine";

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run { config, log } => {
            let origin = Origin {
                path: config,
                args: log,
            };
            match begin(&origin) {
                Ok((config, log)) => return run_and_tell(&Setting { origin, config, log }),
                Err(error) => Err(error),
            }
        }
        Command::Check { config, running } => check(&config, running.as_deref()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{NAME}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(path: &Path, running: Option<&Path>) -> Result<()> {
    let config = Config::read(path)?;
    println!("{}: good", path.display());
    running.map_or(Ok(()), |running| control::compare(running, &config))
}

/// Reads the configuration, and begins to write what is said.
fn begin(origin: &Origin) -> Result<(Config, Log)> {
    let config = origin.read()?;
    let log = Log::install(&config.log).context("cannot write the log")?;
    Ok((config, log))
}

fn run_and_tell(with: &Setting) -> ExitCode {
    let Setting { log, .. } = with;
    let result = run(with);
    if let Err(error) = &result {
        log.fatal(NAME, &format!("{error:#}"));
    }
    log.finish();
    if result.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run(with: &Setting) -> Result<()> {
    let stop: StopRequests = Arc::new(AtomicUsize::new(0));
    for signal in [SIGTERM, SIGINT] {
        let stop = Arc::clone(&stop);
        // SAFETY: the handler only adds to an atomic, which is async-signal-safe.
        unsafe {
            signal_hook::low_level::register(signal, move || {
                stop.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            })
        }
        .context("cannot handle signals")?;
    }
    // SAFETY: the handler only adds to an atomic, which is async-signal-safe.
    unsafe { signal_hook::low_level::register(SIGHUP, seqcast_engine::keys::request_reload) }
        .context("cannot handle signals")?;
    run::run(with, &stop)
}

//! `seqcast-engine`: one process per NIC that runs servers, clients and archives.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use anyhow::{Context, Result};
use caps::Capability;
use clap::Parser;
use seqcast_engine::capture::{Socket, Tapped};
use seqcast_engine::cli::{Cli, Command};
use seqcast_engine::config::{self, Config, LinkKind, Privileges};
use seqcast_engine::link::Link;
use seqcast_engine::log::{self, Log};
use seqcast_engine::node::{Node, Programs, StopRequests};
use seqcast_engine::open::{self, OnLink};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

mod control;
mod privileges;
mod service;

use control::{Control, Origin};
use service::Service;

/// What this program is called.
const NAME: &str = "seqcast-engine";
/// Each group of the kernel link is a socket, whose receive buffer may have to exceed the system's limit.
const UDP_JOINS_WITH: &[Capability] = &[Capability::CAP_NET_ADMIN];

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

/// What an engine is started with.
struct Setting {
    origin: Origin,
    config: Config,
    log: Log,
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
    let config = &with.config;
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
    open::link(config, Start { with, stop })
}

/// Runs the engine on its link.
struct Start<'a> {
    with: &'a Setting,
    stop: StopRequests,
}

impl OnLink for Start<'_> {
    type Output = ();

    fn run<L: Link + 'static>(self, link: L, kind: LinkKind, may_hold: u32) -> Result<()> {
        let joins_with = match kind {
            LinkKind::Udp => UDP_JOINS_WITH,
            _ => &[],
        };
        run_on(self.with, link, may_hold, joins_with, self.stop)
    }
}

/// `kept` are the capabilities that the link needs to join groups.
fn run_on<L: Link>(with: &Setting, link: L, may_hold: u32, kept: &[Capability], stop: StopRequests) -> Result<()> {
    let Setting { origin, config, log } = with;
    // Threads have the capabilities of the one that starts them, so most go before there are any.
    if config.engine.privileges == Privileges::Drop {
        let gives_away = |p: &config::Programs| p.user.is_some() || p.group.is_some();
        let owner = config
            .programs
            .as_ref()
            .filter(|p| gives_away(p))
            .map(|_| Capability::CAP_CHOWN);
        let kept: Vec<_> = kept.iter().copied().chain(owner).collect();
        privileges::drop_all_but(&kept)?;
    }
    let socket = match &config.engine.capture {
        Some(path) => Some(Socket::open(path, format!("{} {}", config.engine.name, link.mode()))?),
        None => None,
    };
    let link = Tapped::new(link, socket.as_ref());
    let node = Node::open(config, link, may_hold, Arc::clone(&stop), Programs::default())?;
    if config.engine.privileges == Privileges::Drop {
        privileges::drop_all_but(&[])?;
    }
    log.go_aside().context("cannot start the thread that writes the log")?;
    let (name, mode) = (&config.engine.name, node.mode());
    let control = Control::start(origin, config, mode.clone(), log, node.reloader())?;
    let service = Service::start(node.pulse(), stop);
    // Helper threads have been started and keep the affinity of the process; only this one is pinned.
    if let Some(core) = config.engine.core {
        open::pin(core)?;
    }
    tracing::info!(
        target: log::ENGINE, engine = name, mode, version = env!("CARGO_PKG_VERSION"),
        text = format!("ready {name} mode={mode}"), "ready"
    );
    service::ready(&mode);
    let (report, result) = node.run();
    drop(control);
    if let Some(service) = service {
        service.end();
    }
    let written = match &config.engine.report {
        Some(path) => report
            .write(path)
            .with_context(|| format!("cannot write the report {}", path.display())),
        None => Ok(()),
    };
    result.and(written)
}

//! `seqcast-engine`: one process per NIC that runs servers, clients and archives.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use anyhow::{Context, Result, bail};
use caps::Capability;
use clap::Parser;
use seqcast_engine::capture::{Socket, Tapped};
use seqcast_engine::cli::{Cli, Command, LogArgs};
use seqcast_engine::config::{self, Config, LinkKind, Privileges};
use seqcast_engine::link::Link;
use seqcast_engine::log::{self, Log};
use seqcast_engine::node::{Node, Programs, StopRequests};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

mod open;
mod privileges;
mod service;

use open::Links;
use service::Service;

/// What this program is called.
const NAME: &str = "seqcast-engine";
/// Each group of the kernel link is a socket, whose receive buffer may have to exceed the system's limit.
const UDP_JOINS_WITH: &[Capability] = &[Capability::CAP_NET_ADMIN];

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run { config, log } => match begin(&config, &log) {
            Ok((config, log)) => return run_and_tell(&config, &log),
            Err(error) => Err(error),
        },
        Command::Check { config } => Config::read(&config)
            .map_err(Into::into)
            .map(|_| println!("{}: good", config.display())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{NAME}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Reads the configuration, and begins to write what is said.
fn begin(path: &Path, args: &LogArgs) -> Result<(Config, Log)> {
    let mut config = Config::read(path)?;
    args.put_into(&mut config.log).context("--log")?;
    let log = Log::install(&config.log).context("cannot write the log")?;
    Ok((config, log))
}

fn run_and_tell(config: &Config, log: &Log) -> ExitCode {
    let result = run(config, log);
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

fn run(config: &Config, log: &Log) -> Result<()> {
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
    match config.engine.link {
        LinkKind::Udp => start(
            config,
            open::links(config, open::udp)?,
            open::udp_may_hold(config),
            UDP_JOINS_WITH,
            stop,
            log,
        ),
        #[cfg(feature = "xdp")]
        LinkKind::Xdp => start(
            config,
            open::links(config, open::xdp)?,
            open::xdp_may_hold(config),
            &[],
            stop,
            log,
        ),
        #[cfg(feature = "xdp")]
        LinkKind::Auto => match open::links(config, open::xdp) {
            Ok(links) => start(config, links, open::xdp_may_hold(config), &[], stop, log),
            Err(why) => {
                tracing::warn!(
                    target: log::ENGINE, engine = config.engine.name,
                    "AF_XDP does not work here, using kernel sockets: {why:#}"
                );
                start(
                    config,
                    open::links(config, open::udp)?,
                    open::udp_may_hold(config),
                    UDP_JOINS_WITH,
                    stop,
                    log,
                )
            }
        },
        #[cfg(not(feature = "xdp"))]
        LinkKind::Xdp => bail!(
            "[engine] link = \"xdp\": this binary was built without AF_XDP; build it with the default features, or use link = \"udp\""
        ),
        #[cfg(not(feature = "xdp"))]
        LinkKind::Auto => start(
            config,
            open::links(config, open::udp)?,
            open::udp_may_hold(config),
            UDP_JOINS_WITH,
            stop,
            log,
        ),
    }
}

fn start<L: Link>(
    config: &Config,
    links: Links<L>,
    may_hold: u32,
    kept: &[Capability],
    stop: StopRequests,
    log: &Log,
) -> Result<()> {
    match links {
        Links::One(link) => run_on(config, link, may_hold, kept, stop, log),
        Links::Two(pair) => run_on(config, pair, may_hold, kept, stop, log),
    }
}

/// `kept` are the capabilities that the link needs to join groups.
fn run_on<L: Link>(
    config: &Config,
    link: L,
    may_hold: u32,
    kept: &[Capability],
    stop: StopRequests,
    log: &Log,
) -> Result<()> {
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
    log.go_aside().context("cannot start the thread that writes the log")?;
    let socket = match &config.engine.capture {
        Some(path) => Some(Socket::open(path, format!("{} {}", config.engine.name, link.mode()))?),
        None => None,
    };
    let link = Tapped::new(link, socket.as_ref());
    let node = Node::open(config, link, may_hold, Arc::clone(&stop), Programs::default())?;
    if config.engine.privileges == Privileges::Drop {
        privileges::drop_all_but(&[])?;
    }
    // Helper threads have been started and keep the affinity of the process; only this one is pinned.
    if let Some(core) = config.engine.core {
        pin(core)?;
    }
    let (name, mode) = (&config.engine.name, node.mode());
    tracing::info!(
        target: log::ENGINE, engine = name, mode, version = env!("CARGO_PKG_VERSION"),
        text = format!("ready {name} mode={mode}"), "ready"
    );
    let service = Service::ready(&mode, node.pulse(), stop);
    let (report, result) = node.run();
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

fn pin(core: usize) -> Result<()> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let Some(id) = cores.iter().find(|c| c.id == core) else {
        let known: Vec<String> = cores.iter().map(|c| c.id.to_string()).collect();
        bail!(
            "[engine] core = {core} is not there; this process may use cores {}",
            known.join(", ")
        );
    };
    if !core_affinity::set_for_current(*id) {
        bail!("[engine] core = {core}: the kernel refuses to pin the engine to it");
    }
    Ok(())
}

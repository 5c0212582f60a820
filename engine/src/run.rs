//! One run of an engine: a thread for each worker. They share nothing but requests to stop, start
//! together, and end together when one of them fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, ScopedJoinHandle};

use anyhow::{Context, Result, anyhow};
use caps::Capability;
use seqcast_engine::capture::{Socket, Tapped};
use seqcast_engine::config::{self, Config, Core, LinkKind, Part, Privileges};
use seqcast_engine::link::Link;
use seqcast_engine::log::{self, Log};
use seqcast_engine::node::{Node, Programs, StopRequests};
use seqcast_engine::open::{self, Cards, OnLink};
use seqcast_engine::report::Report;
use seqcast_engine::{cores, reload::Reloader};

use crate::control::{Control, Origin};
use crate::gate::{Gate, Opened};
use crate::privileges;
use crate::service::{self, ENDED, Service};

/// What an engine is started with.
pub(crate) struct Setting {
    pub(crate) origin: Origin,
    pub(crate) config: Config,
    pub(crate) log: Log,
}

/// How a worker has ended: its report, if it ran.
type End = (Option<Report>, Result<()>);

/// Runs all workers of an engine until they are done, one fails, or they are asked to stop.
///
/// # Errors
/// What a worker could not do; the others have been closed in order.
pub(crate) fn run(with: &Setting, stop: &StopRequests) -> Result<()> {
    let config = &with.config;
    let mut parts = config.split();
    cores::assign(&mut parts)?;
    let gate = Gate::new(parts.len());
    let cards = Cards::of(&parts);
    let (first, others) = parts.split_first().context("there is nothing to do")?;
    let run_of = |at, part| Run {
        at,
        part,
        gate: &gate,
        cards: &cards,
        stop,
    };
    let mut beside = None;
    let ends: Vec<End> = thread::scope(|scope| {
        let mut threads = Vec::with_capacity(others.len());
        for (at, part) in (1..).zip(others) {
            let run = run_of(at, part);
            let name = part.worker.clone().unwrap_or_default();
            let started = thread::Builder::new()
                .name(name)
                .spawn_scoped(scope, move || run.worker(|_| Ok(())));
            match started {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    gate.fail();
                    return vec![(None, Err(error).context("cannot start a worker's thread"))];
                }
            }
        }
        let end = run_of(0, first).worker(|workers| {
            beside = Some(Beside::start(with, &parts, workers, Arc::clone(stop))?);
            Ok(())
        });
        let join = |thread: ScopedJoinHandle<'_, End>| {
            let panicked = |_| (None, Err(anyhow!("its thread panicked")));
            thread.join().unwrap_or_else(panicked)
        };
        std::iter::once(end).chain(threads.into_iter().map(join)).collect()
    });
    if let Some(beside) = beside {
        beside.end();
    }
    let mut result = Ok(());
    let mut reports = Vec::with_capacity(parts.len());
    for (part, (report, mut end)) in parts.iter().zip(ends) {
        if parts.len() > 1 {
            end = end.with_context(|| part.title());
        }
        match (&result, end) {
            (Ok(()), end) => result = end,
            // One error ends the process; what else went wrong is said as well.
            (Err(_), Err(another)) => {
                tracing::error!(target: log::ENGINE, engine = config.engine.name, "{another:#}");
            }
            (Err(_), Ok(())) => {}
        }
        let core = part.config.engine.core.and_then(Core::number);
        reports.extend(report.map(|report| (core, report)));
    }
    let report = Report::of_workers(&config.engine.name, reports);
    let written = match (&config.engine.report, report) {
        (Some(path), Some(report)) => report
            .write(path)
            .with_context(|| format!("cannot write the report {}", path.display())),
        _ => Ok(()),
    };
    result.and(written)
}

/// What runs beside the workers.
struct Beside {
    control: Control,
    service: Option<Service>,
}

impl Beside {
    /// Starts it, and says that the engine is ready.
    fn start(with: &Setting, parts: &[Part], workers: &[Opened], stop: StopRequests) -> Result<Beside> {
        let Setting { origin, config, log } = with;
        log.go_aside().context("cannot start the thread that writes the log")?;
        let (name, mode) = (&config.engine.name, mode(parts, workers));
        let reloaders: Vec<Reloader> = workers.iter().map(|worker| worker.reloader.clone()).collect();
        let control = Control::start(origin, config, mode.clone(), log, reloaders)?;
        let pulses = workers.iter().map(|worker| Arc::clone(&worker.pulse)).collect();
        let service = Service::start(pulses, stop);
        // The first worker's thread is this one; the threads above keep the affinity of the process.
        pin(&parts[0])?;
        tracing::info!(
            target: log::ENGINE, engine = name, mode, version = env!("CARGO_PKG_VERSION"),
            text = format!("ready {name} mode={mode}"), "ready"
        );
        service::ready(&mode);
        Ok(Beside { control, service })
    }

    fn end(self) {
        drop(self.control);
        if let Some(service) = self.service {
            service.end();
        }
    }
}

/// What the links of all workers really are.
fn mode(parts: &[Part], workers: &[Opened]) -> String {
    let one = |(part, opened): (&Part, &Opened)| match &part.worker {
        None => opened.mode.clone(),
        Some(name) => format!("{name}: {}", opened.mode),
    };
    parts.iter().zip(workers).map(one).collect::<Vec<_>>().join("; ")
}

/// Pins the calling thread to its worker's core.
fn pin(part: &Part) -> Result<()> {
    match part.config.engine.core {
        Some(Core::Number(core)) => cores::pin(core),
        _ => Ok(()),
    }
}

/// One worker, on its thread.
#[derive(Clone, Copy)]
struct Run<'a> {
    at: usize,
    part: &'a Part,
    gate: &'a Gate,
    cards: &'a Cards,
    stop: &'a StopRequests,
}

/// Ends all workers, unless the one that holds it has ended well.
struct OneForAll<'a>(Run<'a>);

impl Drop for OneForAll<'_> {
    fn drop(&mut self) {
        self.0.gate.fail();
        self.0.stop.fetch_max(1, Ordering::Relaxed);
    }
}

impl Run<'_> {
    /// Runs it; `ready` is told when all are open.
    fn worker(self, ready: impl FnOnce(&[Opened]) -> Result<()>) -> End {
        let fails = OneForAll(self);
        if !self.gate.queue(self.at) {
            return (None, Ok(()));
        }
        let start = Start { run: self, ready };
        let end = open::link_on(self.cards, &self.part.config, start).unwrap_or_else(|error| (None, Err(error)));
        if end.1.is_ok() {
            std::mem::forget(fails);
        }
        end
    }
}

struct Start<'a, R> {
    run: Run<'a>,
    ready: R,
}

impl<R: FnOnce(&[Opened]) -> Result<()>> OnLink for Start<'_, R> {
    type Output = End;

    fn run<L: Link + 'static>(self, mut link: L, kind: LinkKind, may_hold: u32) -> Result<End> {
        let Start { run, ready } = self;
        let part = run.part;
        let config = &part.config;
        if kind == LinkKind::Udp {
            // Each group is a socket, whose receive buffer may have to exceed the system's limit.
            for group in config.joined_groups() {
                link.join(group).with_context(|| format!("cannot join {group}"))?;
            }
        }
        // Threads have the capabilities of the one that starts them, so most go before there are any.
        if config.engine.privileges == Privileges::Drop {
            privileges::drop_all_but(gives_away(config))?;
        }
        let socket = match &config.engine.capture {
            Some(path) => Some(Socket::open(path, format!("{} {}", config.engine.name, link.mode()))?),
            None => None,
        };
        let link = Tapped::new(link, socket.as_ref());
        let node = Node::open(config, link, may_hold, Arc::clone(run.stop), Programs::default())?;
        if config.engine.privileges == Privileges::Drop {
            privileges::drop_all_but(&[])?;
        }
        if run.at > 0 {
            // The first starts more threads before it is pinned.
            pin(part)?;
        }
        let pulse = node.pulse();
        let opened = Opened {
            mode: node.mode(),
            pulse: Arc::clone(&pulse),
            reloader: node.reloader(),
        };
        let Some(workers) = run.gate.pass(opened) else {
            // The error is that of the one that failed.
            return Ok((None, Ok(())));
        };
        ready(&workers)?;
        let (report, result) = node.run();
        pulse.store(ENDED, Ordering::Relaxed);
        Ok((Some(report), result))
    }
}

/// What it takes to give the programs' socket to its owner.
fn gives_away(config: &Config) -> &'static [Capability] {
    let gives = |p: &config::Programs| p.user.is_some() || p.group.is_some();
    match &config.programs {
        Some(programs) if gives(programs) => &[Capability::CAP_CHOWN],
        _ => &[],
    }
}

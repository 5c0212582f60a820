//! Lets a running engine take another configuration, at SIGHUP.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use seqcast_engine::cli::LogArgs;
use seqcast_engine::config::{Change, Config, changes};
use seqcast_engine::keys::reload_requests;
use seqcast_engine::log::{self, Log};
use seqcast_engine::reload::Reloader;

use crate::service;

/// Time between two looks whether a reload was asked for.
const LOOK: Duration = Duration::from_millis(100);

/// Where the configuration comes from.
#[derive(Clone)]
pub(crate) struct Origin {
    pub(crate) path: PathBuf,
    /// What the command line says goes before the file.
    pub(crate) args: LogArgs,
}

impl Origin {
    pub(crate) fn read(&self) -> Result<Config> {
        let mut config = Config::read(&self.path)?;
        self.args.put_into(&mut config.log).context("--log")?;
        Ok(config)
    }
}

/// A thread that does so until it is dropped.
pub(crate) struct Control {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    pub(crate) fn start(
        origin: &Origin,
        running: &Config,
        mode: String,
        log: &Log,
        to: Vec<Reloader>,
    ) -> Result<Control> {
        let done = Arc::new(AtomicBool::new(false));
        let mut control = Reading {
            origin: origin.clone(),
            running: Arc::new(running.clone()),
            mode,
            log: log.clone(),
            to,
            done: Arc::clone(&done),
        };
        let mut seen = reload_requests();
        let thread = thread::Builder::new().name("control".into()).spawn(move || {
            while !control.done.load(Ordering::Acquire) {
                let requests = reload_requests();
                if requests != seen {
                    seen = requests;
                    control.reload();
                }
                thread::park_timeout(LOOK);
            }
        });
        let thread = thread.context("cannot start the thread that takes changes")?;
        Ok(Control {
            done,
            thread: Some(thread),
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It does nothing that panics.
            let _ = thread.join();
        }
    }
}

struct Reading {
    origin: Origin,
    running: Arc<Config>,
    /// What a service manager shows of an engine that is well.
    mode: String,
    log: Log,
    /// The engine's workers.
    to: Vec<Reloader>,
    done: Arc<AtomicBool>,
}

impl Reading {
    /// All that the file changes, or nothing.
    fn reload(&mut self) {
        service::reloading();
        let refused = self.try_reload();
        if let Err(why) = &refused {
            let engine = self.running.engine.name.as_str();
            tracing::error!(target: log::RELOAD, engine, "reload REFUSED, nothing has changed: {why:#}");
        }
        let refused = refused.err().map(|why| format!("; reload refused: {why:#}"));
        service::reloaded(&(self.mode.clone() + &refused.unwrap_or_default()));
    }

    fn try_reload(&mut self) -> Result<()> {
        let new = self.origin.read()?;
        let engine = new.engine.name.clone();
        let all = changes(&self.running, &new);
        refuse(&all)?;
        // The one thing that can fail comes first.
        self.log.change(&new.log)?;
        if all.is_empty() {
            tracing::info!(target: log::RELOAD, engine, "reload: no key has another value; files of keys are read again");
            return Ok(());
        }
        let new = Arc::new(new);
        let done = &self.done;
        if !Reloader::apply_to_all(&self.to, &new, || done.load(Ordering::Acquire)) {
            return Ok(());
        }
        self.running = new;
        for change in &all {
            let Change {
                table, key, old, new, ..
            } = change;
            tracing::info!(target: log::RELOAD, engine, table, key, old, new, "reload: {change}");
        }
        Ok(())
    }
}

/// Names all keys that a running engine cannot take, if there are any.
fn refuse(all: &[Change]) -> Result<()> {
    let fixed: Vec<String> = all.iter().filter(|c| !c.live).map(ToString::to_string).collect();
    if fixed.is_empty() {
        return Ok(());
    }
    anyhow::bail!("needs a restart: {}", fixed.join("; "))
}

/// Says what a reload of one file would change in an engine that runs with another.
pub(crate) fn compare(running: &Path, new: &Config) -> Result<()> {
    let all = changes(&Config::read(running)?, new);
    for change in &all {
        println!("{} {change}", if change.live { "live   " } else { "RESTART" });
    }
    if all.is_empty() {
        println!("no key has another value");
    }
    refuse(&all)
}

//! Another configuration for an engine that runs.
//!
//! A running engine takes what [`crate::config::changes`] calls live: it is handed over between two turns of the
//! duty cycle, within a tenth of a second, and nothing waits for it meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::config::Config;

/// Time between two looks whether the engine has taken a configuration.
const LOOK: Duration = Duration::from_millis(10);

/// Hands configurations to a running engine, from any thread.
#[derive(Clone, Debug, Default)]
pub struct Reloader(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waits: AtomicBool,
    /// The engine runs no more.
    ended: AtomicBool,
    config: Mutex<Option<Arc<Config>>>,
}

impl Reloader {
    /// Lets the engine take what is live of a configuration, which is otherwise as the one that it runs
    /// with. Waits until it has, or has ended, or until `is_over` says that nobody will; false then.
    pub fn apply(&self, config: Arc<Config>, is_over: impl Fn() -> bool) -> bool {
        Reloader::apply_to_all(std::slice::from_ref(self), &config, is_over)
    }

    /// The same for the workers of one engine: each takes it, and what has ended is passed over. Says
    /// whether one took it.
    pub fn apply_to_all(workers: &[Reloader], config: &Arc<Config>, is_over: impl Fn() -> bool) -> bool {
        for worker in workers {
            *worker.0.config.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(config));
            worker.0.waits.store(true, Ordering::Release);
        }
        let mut taken = false;
        for Reloader(worker) in workers {
            while worker.waits.load(Ordering::Acquire) && !worker.ended.load(Ordering::Acquire) {
                if is_over() {
                    return false;
                }
                thread::park_timeout(LOOK);
            }
            taken |= !worker.waits.load(Ordering::Acquire);
        }
        taken
    }

    /// What waits to be taken.
    pub(crate) fn news(&self) -> Option<Arc<Config>> {
        if !self.0.waits.load(Ordering::Acquire) {
            return None;
        }
        self.0.config.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// It is in force.
    pub(crate) fn taken(&self) {
        self.0.waits.store(false, Ordering::Release);
    }

    /// Nothing is taken any more.
    pub(crate) fn end(&self) {
        self.0.ended.store(true, Ordering::Release);
    }
}

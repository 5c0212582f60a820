//! Where an engine's workers open one after the other, and wait until all are open.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use seqcast_engine::reload::Reloader;

/// A worker that is open.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    /// What its link really is.
    pub(crate) mode: String,
    /// Its turns.
    pub(crate) pulse: Arc<AtomicU64>,
    pub(crate) reloader: Reloader,
}

#[derive(Debug, Default)]
struct State {
    opened: Vec<Opened>,
    failed: bool,
}

/// Opens when every worker has come, or one has failed.
#[derive(Debug)]
pub(crate) struct Gate {
    workers: usize,
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    /// For so many workers.
    pub(crate) fn new(workers: usize) -> Gate {
        Gate {
            workers,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn wait(&self, until: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |state: &mut State| !state.failed && !until(state);
        let state = self.changed.wait_while(state, waiting);
        state.unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until those before it are open, so that what fails is always the same. Whether they are.
    pub(crate) fn queue(&self, worker: usize) -> bool {
        !self.wait(|state| state.opened.len() == worker).failed
    }

    /// The next worker is open. Waits for the others. All, in order; `None` if one cannot be opened.
    pub(crate) fn pass(&self, opened: Opened) -> Option<Vec<Opened>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.opened.push(opened);
        drop(state);
        self.changed.notify_all();
        let state = self.wait(|state| state.opened.len() == self.workers);
        (!state.failed).then(|| state.opened.clone())
    }

    /// A worker cannot be opened, so that none shall run.
    pub(crate) fn fail(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).failed = true;
        self.changed.notify_all();
    }
}

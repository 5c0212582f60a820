//! The threads that do the background work of all sessions of an archive.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::time::Instant;

use super::{Background, Pool, lock};

/// The archive's helper threads.
#[derive(Debug)]
pub(crate) struct Helper {
    pub(super) shared: Arc<HelperShared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
pub(crate) struct HelperShared {
    pub(super) sessions: Mutex<Vec<Arc<Background>>>,
    pub(super) ahead: Handle,
    pub(super) disk: Handle,
    /// Once its reserve is to be made.
    pool: OnceLock<Arc<Pool>>,
    stop: AtomicBool,
}

/// A helper thread, once it has started.
#[derive(Debug, Default)]
pub(super) struct Handle(OnceLock<Thread>);

impl Handle {
    pub(super) fn wake(&self) {
        if let Some(thread) = self.0.get() {
            thread.unpark();
        }
    }
}

impl HelperShared {
    /// Does `step` for each session, and what is `common` to them, whenever it is woken or something is due.
    fn run(&self, step: fn(&Background) -> Option<Instant>, common: fn(&HelperShared) -> Option<Instant>) {
        // What is common may be a long piece of work: nothing of it before its time, however often sessions wake this.
        let mut common_at = None;
        while !self.stop.load(Ordering::Acquire) {
            let sessions = lock(&self.sessions).clone();
            let next = sessions.iter().filter_map(|s| step(s)).min();
            drop(sessions);
            if common_at.is_none_or(|at| at <= Instant::now()) {
                common_at = common(self);
            }
            match next.into_iter().chain(common_at).min() {
                Some(at) => thread::park_timeout(at.saturating_duration_since(Instant::now())),
                None => thread::park(),
            }
        }
    }

    fn stock(&self) -> Option<Instant> {
        self.pool.get()?.stock()
    }
}

impl Helper {
    pub(crate) fn start() -> io::Result<Helper> {
        let mut helper = Helper {
            shared: Arc::new(HelperShared::default()),
            threads: Vec::new(),
        };
        let shared = &helper.shared;
        let ahead = helper.spawn("seqcast-ahead", &shared.ahead, Background::ahead, HelperShared::stock)?;
        let disk = helper.spawn("seqcast-disk", &shared.disk, Background::disk, |_| None)?;
        helper.threads = vec![ahead, disk];
        Ok(helper)
    }

    /// Makes the reserve of `pool`, and keeps it made.
    pub(crate) fn stock(&self, pool: &Arc<Pool>) {
        let _ = self.shared.pool.set(Arc::clone(pool));
        self.shared.ahead.wake();
    }

    fn spawn(
        &self,
        name: &str,
        handle: &Handle,
        step: fn(&Background) -> Option<Instant>,
        common: fn(&HelperShared) -> Option<Instant>,
    ) -> io::Result<JoinHandle<()>> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(move || shared.run(step, common))?;
        let _ = handle.0.set(thread.thread().clone());
        Ok(thread)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.ahead.wake();
        self.shared.disk.wake();
        for thread in self.threads.drain(..) {
            // A panic of the helper was reported when it happened.
            let _ = thread.join();
        }
        lock(&self.shared.sessions).clear();
    }
}

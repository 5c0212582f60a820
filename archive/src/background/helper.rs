//! The threads that do the background work of all sessions of an archive.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::time::Instant;

use super::{Background, lock};

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
    fn run(&self, step: fn(&Background) -> Option<Instant>) {
        while !self.stop.load(Ordering::Acquire) {
            let sessions = lock(&self.sessions).clone();
            let next = sessions.iter().filter_map(|s| step(s)).min();
            drop(sessions);
            match next {
                Some(at) => thread::park_timeout(at.saturating_duration_since(Instant::now())),
                None => thread::park(),
            }
        }
    }
}

impl Helper {
    pub(crate) fn start() -> io::Result<Helper> {
        let mut helper = Helper {
            shared: Arc::new(HelperShared::default()),
            threads: Vec::new(),
        };
        helper.spawn("seqcast-ahead", |shared| &shared.ahead, Background::ahead)?;
        helper.spawn("seqcast-disk", |shared| &shared.disk, Background::disk)?;
        Ok(helper)
    }

    fn spawn(
        &mut self,
        name: &str,
        handle: fn(&HelperShared) -> &Handle,
        step: fn(&Background) -> Option<Instant>,
    ) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(move || shared.run(step))?;
        let _ = handle(&self.shared).0.set(thread.thread().clone());
        self.threads.push(thread);
        Ok(())
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

//! What a service manager is told: that the engine is ready, that it is alive, that it ends. The protocol
//! is that of `sd_notify(3)`; without a manager nothing is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use sd_notify::NotifyState;
use seqcast_engine::log;
use seqcast_engine::node::StopRequests;

/// How often a thread beside the engine looks, if no watchdog wants it more often.
const PAUSE: Duration = Duration::from_millis(500);

/// The pulse of a worker that is done.
pub(crate) const ENDED: u64 = u64::MAX;

/// Tells the service manager of a running engine until it is dropped.
pub(crate) struct Service {
    done: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Service {
    /// Watches an engine. The pulse of each of its workers grows with its turns: while all do, the watchdog
    /// is fed. Nothing if no manager listens.
    pub(crate) fn start(pulses: Vec<Arc<AtomicU64>>, stop: StopRequests) -> Option<Service> {
        std::env::var_os("NOTIFY_SOCKET")?;
        let done = Arc::new(AtomicBool::new(false));
        let watchdog = sd_notify::watchdog_enabled();
        // Half of the time that it allows, and half of that again for a thread that gets no core.
        let pause = watchdog.map_or(PAUSE, |limit| PAUSE.min(limit / 4));
        let thread = thread::spawn({
            let done = Arc::clone(&done);
            move || {
                let (mut last, mut stopping) = (vec![None; pulses.len()], false);
                while !done.load(Ordering::Acquire) {
                    let mut all_turn = true;
                    for (pulse, last) in pulses.iter().zip(&mut last) {
                        let turns = pulse.load(Ordering::Relaxed);
                        all_turn &= last.replace(turns) != Some(turns) || turns == ENDED;
                    }
                    if all_turn && watchdog.is_some() {
                        tell(&[NotifyState::Watchdog]);
                    }
                    if !stopping && stop.load(Ordering::Relaxed) > 0 {
                        stopping = true;
                        tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
                    }
                    thread::park_timeout(pause);
                }
            }
        });
        Some(Service { done, thread })
    }

    /// The engine has ended.
    pub(crate) fn end(self) {
        self.done.store(true, Ordering::Release);
        self.thread.thread().unpark();
        // It does nothing that panics.
        let _ = self.thread.join();
        tell(&[NotifyState::Stopping]);
    }
}

/// The engine is ready.
pub(crate) fn ready(mode: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(mode)]);
}

/// The engine reads its configuration again.
pub(crate) fn reloading() {
    tell(&[NotifyState::Reloading]);
}

/// It has done so; `status` says how that ended.
pub(crate) fn reloaded(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(target: log::ENGINE, "cannot tell the service manager: {error}");
    }
}

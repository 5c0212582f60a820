//! Signals that end long work in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result};
use seqcast_tools::lab::Error;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// From now on a first signal only sets the returned number, its own, and a second one ends the
/// process at once.
pub(super) fn on_signals() -> Result<Arc<AtomicUsize>> {
    let stop = Arc::new(AtomicUsize::new(0));
    let armed = Arc::new(AtomicBool::new(false));
    let register = |signal| {
        // Handlers run in this order, so that the first signal finds itself not armed yet.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&armed))?;
        flag::register(signal, Arc::clone(&armed))?;
        flag::register_usize(signal, Arc::clone(&stop), signal as usize)
    };
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        register(signal).context("cannot handle signals")?;
    }
    Ok(stop)
}

/// What a program that a signal ended reports.
pub(super) fn outcome(stop: &AtomicUsize) -> Result<()> {
    match stop.load(Ordering::Relaxed) {
        0 => Ok(()),
        signal => Err(Error::Interrupted { signal: signal as i32 }.into()),
    }
}

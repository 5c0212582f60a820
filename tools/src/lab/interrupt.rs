//! Ctrl-C and its like end a lab by way of an ordinary error, so that everything is cleaned up.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::Error;

static PENDING: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// From now on SIGINT, SIGTERM and SIGHUP do not end the process: every wait of a lab returns
/// [`Error::Interrupted`] instead. For programs; a library must not call it.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn handle_signals() -> io::Result<()> {
    let pending = PENDING.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register_usize(signal, Arc::clone(pending), signal as usize)?;
    }
    Ok(())
}

/// Waits for a signal, after [`handle_signals`].
pub fn wait_for_signal() {
    while check().is_ok() {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Fails if a signal has arrived since [`handle_signals`].
pub(super) fn check() -> Result<(), Error> {
    match PENDING.get().map_or(0, |p| p.load(Ordering::Relaxed)) {
        0 => Ok(()),
        signal => Err(Error::Interrupted { signal: signal as i32 }),
    }
}

/// [`check`] once in many calls, for loops over messages: `count` is the number of this one.
pub(super) fn check_every(count: u64) -> Result<(), Error> {
    if count.is_multiple_of(65_536) { check() } else { Ok(()) }
}

//! The Python package: `seqcast-client` behind classes. `seqcast.pyi` says what programs see.

mod error;
mod event;
mod place;
mod publisher;
mod subscriber;

use std::net::SocketAddrV4;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

/// Longest wait without a look for signals, so that Ctrl-C ends it.
const SLICE: Duration = Duration::from_millis(100);

/// Seconds as Python has them; `None`: without end.
fn seconds(value: f64, name: &str) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value)
        .map_err(|_| PyValueError::new_err(format!("{name} is {value}: it is a time in seconds, 0 or more")))
}

/// When a wait ends; one that is too far away never does.
fn deadline(timeout: Option<f64>) -> PyResult<Option<Instant>> {
    let timeout = timeout.map(|value| seconds(value, "timeout")).transpose()?;
    Ok(timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
}

/// What of a wait is to be waited now.
fn slice(deadline: Option<Instant>) -> Duration {
    deadline.map_or(SLICE, |deadline| {
        deadline.saturating_duration_since(Instant::now()).min(SLICE)
    })
}

fn stream(text: Option<&str>) -> PyResult<Option<SocketAddrV4>> {
    let parsed = text.map(str::parse).transpose();
    parsed.map_err(|_| PyValueError::new_err("stream is a group and a port, as \"239.1.1.1:5000\""))
}

/// A handle for one call.
fn lock<T>(handle: &Mutex<T>) -> PyResult<MutexGuard<'_, T>> {
    handle
        .try_lock()
        .map_err(|_| PyRuntimeError::new_err("another thread is using this: each thread takes one of its own"))
}

fn closed() -> PyErr {
    PyValueError::new_err("this is closed")
}

/// Attaches, and can be interrupted while it waits for an engine.
fn attach<T: Send>(
    py: Python<'_>,
    patience: f64,
    mut attach: impl FnMut(Duration) -> Result<T, seqcast_client::Error> + Send,
) -> PyResult<T> {
    let deadline = Instant::now().checked_add(seconds(patience, "patience")?);
    loop {
        let patience = slice(deadline);
        match py.detach(|| attach(patience)) {
            Err(seqcast_client::Error::Gone(_)) if !slice(deadline).is_zero() => py.check_signals()?,
            done => return done.map_err(|error| error::raise(py, error)),
        }
    }
}

/// Programs beside a Seqcast engine: they publish into it and receive from it through shared memory.
#[pymodule]
fn seqcast(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<publisher::Publisher>()?;
    module.add_class::<publisher::Claim>()?;
    module.add_class::<subscriber::Subscriber>()?;
    module.add_class::<subscriber::Message>()?;
    module.add_class::<event::Event>()?;
    module.add_class::<event::EventKind>()?;
    module.add_class::<event::Position>()?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    error::add(module)
}

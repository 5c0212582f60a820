//! Publishing.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBufferError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;
use self_cell::{MutBorrow, self_cell};
use seqcast_client::{self as client, Engine, PublisherOptions};

use crate::error::raise;
use crate::event::Event;
use crate::place::{Bytes, Loan};
use crate::{attach, closed, deadline, lock, slice, stream};

type Claimed<'a> = Option<client::Claim<'a>>;

self_cell!(
    /// A publisher, and what it has claimed.
    struct Claiming {
        owner: MutBorrow<Box<client::Publisher>>,
        #[not_covariant]
        dependent: Claimed,
    }
);

enum State {
    Free(Box<client::Publisher>),
    Claiming(Claiming),
    Closed,
}

/// Publishes one stream.
#[pyclass(frozen, module = "seqcast")]
pub(crate) struct Publisher {
    shared: Arc<Mutex<State>>,
    stream: String,
}

impl Publisher {
    /// Does something with a publisher that has claimed nothing.
    fn with<T>(&self, act: impl FnOnce(&mut client::Publisher) -> PyResult<T>) -> PyResult<T> {
        match &mut *lock(&self.shared)? {
            State::Free(publisher) => act(publisher),
            State::Claiming(_) => Err(PyRuntimeError::new_err(
                "a claim is open: leave its `with` block first, or abandon it",
            )),
            State::Closed => Err(closed()),
        }
    }
}

/// Asks again and again, so that signals are looked at, until it is done or the time is over.
fn patiently(
    py: Python<'_>,
    timeout: Option<f64>,
    mut act: impl FnMut(Duration) -> Result<(), client::Error> + Send,
) -> PyResult<()> {
    let deadline = deadline(timeout)?;
    loop {
        let wait = slice(deadline);
        match py.detach(|| act(wait)) {
            Err(client::Error::Timeout) if !slice(deadline).is_zero() => py.check_signals()?,
            done => return done.map_err(|error| raise(py, error)),
        }
    }
}

#[pymethods]
impl Publisher {
    #[new]
    #[pyo3(signature = (socket, *, stream=None, name="", resend=true, patience=0.0))]
    fn new(
        py: Python<'_>,
        socket: PathBuf,
        stream: Option<&str>,
        name: &str,
        resend: bool,
        patience: f64,
    ) -> PyResult<Publisher> {
        let mut options = PublisherOptions {
            stream: self::stream(stream)?,
            name: name.to_owned(),
            resend,
            ..PublisherOptions::default()
        };
        let engine = Engine::at(socket);
        let publisher = attach(py, patience, |patience| {
            options.patience = patience;
            client::Publisher::attach(&engine, &options)
        })?;
        Ok(Publisher {
            stream: publisher.stream().to_string(),
            shared: Arc::new(Mutex::new(State::Free(Box::new(publisher)))),
        })
    }

    /// The stream's group and port.
    #[getter]
    fn stream(&self) -> &str {
        &self.stream
    }

    /// Longest message with its subject, in bytes. May change when an engine comes back.
    #[getter]
    fn max_message(&self) -> PyResult<usize> {
        self.with(|publisher| Ok(publisher.max_message()))
    }

    /// Whether an engine is there, as far as is known.
    #[getter]
    fn attached(&self) -> PyResult<bool> {
        self.with(|publisher| Ok(publisher.is_attached()))
    }

    /// Publishes a copy of what has bytes. Waits for room, or for an engine, at most `timeout` seconds (None: without
    /// end; 0: not at all, then it raises Full or Gone).
    #[pyo3(signature = (payload, subject="", timeout=None))]
    fn publish(&self, py: Python<'_>, payload: &Bound<'_, PyAny>, subject: &str, timeout: Option<f64>) -> PyResult<()> {
        let payload = PyUntypedBuffer::get(payload)?;
        if !payload.is_c_contiguous() {
            return Err(PyBufferError::new_err(
                "the payload's bytes do not lie together: publish a copy of it",
            ));
        }
        // SAFETY: contiguous, as long as it says, and there while `payload` holds it; nobody runs who could write
        // it, since the interpreter's lock is kept as long as this is used.
        let bytes = match payload.len_bytes() {
            0 => &[],
            len => unsafe { std::slice::from_raw_parts(payload.buf_ptr().cast::<u8>(), len) },
        };
        self.with(|publisher| match publisher.try_publish(subject, bytes) {
            Err(client::Error::Full | client::Error::Gone(_)) if timeout != Some(0.0) => {
                let copy = bytes.to_vec();
                patiently(py, timeout, |wait| publisher.publish(subject, &copy, Some(wait)))
            }
            done => done.map_err(|error| raise(py, error)),
        })
    }

    /// Claims room for a payload of so many bytes, to be written in place: `with publisher.claim(8) as view`. What was
    /// written is published at the end of the block, and given up if that raises. Never waits.
    #[pyo3(signature = (length, subject=""))]
    fn claim(&self, py: Python<'_>, length: usize, subject: &str) -> PyResult<Claim> {
        // Refused before a publisher is moved.
        self.with(|_| Ok(()))?;
        let mut state = lock(&self.shared)?;
        let State::Free(publisher) = std::mem::replace(&mut *state, State::Closed) else {
            return Err(closed());
        };
        let claiming = Claiming::try_new_or_recover(MutBorrow::new(publisher), |publisher| {
            publisher.borrow_mut().claim(subject, length).map(Some)
        });
        match claiming {
            Err((publisher, error)) => {
                *state = State::Free(publisher.into_inner());
                Err(raise(py, error))
            }
            Ok(mut claiming) => {
                let bytes = claiming.with_dependent_mut(|_, claim| claim.as_deref_mut().map(Bytes::of_mut));
                *state = State::Claiming(claiming);
                Ok(Claim {
                    shared: self.shared.clone(),
                    open: Mutex::new(bytes.map(Open::Claimed)),
                })
            }
        }
    }

    /// Waits until the engine has taken everything that was published: it will be sent, whatever happens to
    /// this program.
    #[pyo3(signature = (timeout=None))]
    fn flush(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        self.with(|publisher| patiently(py, timeout, |wait| publisher.flush(Some(wait))))
    }

    /// What has happened since it was last asked: the engine is gone, or back. Attaches again; for programs that seldom
    /// publish. Never waits.
    fn poll(&self, py: Python<'_>) -> PyResult<Option<Event>> {
        self.with(|publisher| {
            let event = publisher.poll().map_err(|error| raise(py, error))?;
            Ok(event.map(Event::of))
        })
    }

    /// What was published stays with the engine, which sends it.
    fn close(&self) -> PyResult<()> {
        let mut state = lock(&self.shared)?;
        if matches!(*state, State::Claiming(_)) {
            return Err(PyRuntimeError::new_err("a claim is open: leave its `with` block first"));
        }
        *state = State::Closed;
        Ok(())
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_raised))]
    fn __exit__(&self, _raised: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close()
    }
}

enum Open {
    Claimed(Bytes),
    Lent(Loan),
}

/// Room for the payload of one message.
#[pyclass(frozen, module = "seqcast")]
pub(crate) struct Claim {
    shared: Arc<Mutex<State>>,
    /// `None` when it is over.
    open: Mutex<Option<Open>>,
}

impl Claim {
    /// Publishes what was written, or gives it up.
    fn end(&self, py: Python<'_>, commit: bool) -> PyResult<()> {
        let mut open = lock(&self.open)?;
        if let Some(Open::Lent(loan)) = &*open {
            // While somebody could still write there it is neither published nor used for another.
            loan.end(py)?;
        }
        if open.take().is_some() {
            finish(&self.shared, commit)?;
        }
        Ok(())
    }
}

/// Ends the claim of a publisher.
fn finish(shared: &Mutex<State>, commit: bool) -> PyResult<()> {
    let mut state = lock(shared)?;
    match std::mem::replace(&mut *state, State::Closed) {
        State::Claiming(mut claiming) => {
            claiming.with_dependent_mut(|_, claim| {
                if let Some(claim) = claim.take()
                    && commit
                {
                    claim.commit();
                }
            });
            *state = State::Free(claiming.into_owner().into_inner());
        }
        other => *state = other,
    }
    Ok(())
}

#[pymethods]
impl Claim {
    fn __enter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        let mut open = lock(&self.open)?;
        let Some(Open::Claimed(bytes)) = *open else {
            return Err(PyRuntimeError::new_err("this claim was entered before"));
        };
        // SAFETY: the bytes are the claim's until it ends, which ends the loan first; and nobody else's.
        let loan = unsafe { Loan::new(py, bytes, true, self.shared.clone()) }?;
        let view = loan.view(py);
        *open = Some(Open::Lent(loan));
        Ok(view)
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        raised: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.end(py, raised.is_none())
    }

    /// Gives the claim up; nothing is published.
    fn abandon(&self, py: Python<'_>) -> PyResult<()> {
        self.end(py, false)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // One that was never entered. A view that is still out keeps the publisher claimed.
        if let Ok(Some(Open::Claimed(_))) = self.open.get_mut() {
            let _ = finish(&self.shared, false);
        }
    }
}

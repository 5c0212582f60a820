//! Receiving.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView, PyString};
use seqcast_client::{self as client, Engine, From, Received, SubscriberOptions, flags};

use crate::error::raise;
use crate::event::{Event, Position};
use crate::place::{Bytes, Loan};
use crate::{attach, closed, deadline, lock, seconds, slice, stream};

/// Receives one stream, each message once and in order.
#[pyclass(frozen, module = "seqcast")]
pub(crate) struct Subscriber {
    shared: Arc<Mutex<Option<client::Subscriber>>>,
    current: Mutex<Current>,
    stream: String,
}

/// The message that was handed out last.
#[derive(Default)]
struct Current {
    /// Which one it is, of all.
    number: u64,
    loan: Option<Loan>,
}

/// What came, without its borrow: the bytes stay until the subscriber is used again.
enum Came {
    Message {
        at: Position,
        time_ns: u64,
        flags: u16,
        subject: Bytes,
        payload: Bytes,
    },
    Event(Event),
}

impl Came {
    fn of(received: Received<'_>) -> Came {
        match received {
            Received::Message(message) => Came::Message {
                at: Position {
                    session: message.session,
                    sequence: message.sequence,
                },
                time_ns: message.time_ns,
                flags: message.flags,
                subject: Bytes::of(message.subject),
                payload: Bytes::of(message.payload),
            },
            Received::Event(event) => Came::Event(Event::of(event)),
        }
    }
}

/// Where a subscriber begins, as Python says it.
fn begin(start: Option<&Bound<'_, PyAny>>) -> PyResult<From> {
    let Some(start) = start else { return Ok(From::Now) };
    if let Ok(Position { session, sequence }) = start.extract() {
        return Ok(From::After(client::Position { session, sequence }));
    }
    match start.extract() {
        Ok("now") => Ok(From::Now),
        Ok("session") => Ok(From::Session),
        _ => Err(PyValueError::new_err(
            "start is \"now\", \"session\", or a Position to go on behind",
        )),
    }
}

impl Subscriber {
    /// The message before is over: its bytes may be used for something else.
    fn next_number(&self, py: Python<'_>) -> PyResult<u64> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loan) = &current.loan {
            loan.end(py)?;
        }
        current.loan = None;
        current.number += 1;
        Ok(current.number)
    }

    fn next(slf: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<Option<Py<PyAny>>> {
        let (py, this) = (slf.py(), slf.get());
        let mut shared = lock(&this.shared)?;
        let number = this.next_number(py)?;
        let subscriber = shared.as_mut().ok_or_else(closed)?;
        // What is there is taken without a system call, and without giving up the interpreter's lock.
        let mut came = subscriber.try_next().map_err(|error| raise(py, error))?.map(Came::of);
        if came.is_none() && timeout != Some(0.0) {
            let deadline = deadline(timeout)?;
            loop {
                let wait = slice(deadline);
                let next = py.detach(|| subscriber.next(Some(wait)).map(|came| came.map(Came::of)));
                came = next.map_err(|error| raise(py, error))?;
                if came.is_some() || slice(deadline).is_zero() {
                    break;
                }
                py.check_signals()?;
            }
        }
        let object = match came {
            None => return Ok(None),
            Some(Came::Event(event)) => Bound::new(py, event)?.into_any(),
            Some(Came::Message {
                at,
                time_ns,
                flags,
                subject,
                payload,
            }) => {
                // SAFETY: nobody has used the subscriber since, it is locked.
                let subject = String::from_utf8_lossy(unsafe { subject.get() });
                let message = Message {
                    subject: PyString::new(py, &subject).unbind(),
                    subscriber: slf.clone().unbind(),
                    number,
                    payload,
                    at,
                    time_ns,
                    flags,
                };
                Bound::new(py, message)?.into_any()
            }
        };
        Ok(Some(object.unbind()))
    }
}

#[pymethods]
impl Subscriber {
    #[new]
    #[pyo3(signature = (socket, *, stream=None, name="", start=None, subjects=None, recover=true, spin=0.0, patience=0.0))]
    #[expect(clippy::too_many_arguments, reason = "named ones in Python")]
    fn new(
        py: Python<'_>,
        socket: PathBuf,
        stream: Option<&str>,
        name: &str,
        start: Option<&Bound<'_, PyAny>>,
        subjects: Option<Vec<String>>,
        recover: bool,
        spin: f64,
        patience: f64,
    ) -> PyResult<Subscriber> {
        let mut options = SubscriberOptions {
            stream: self::stream(stream)?,
            name: name.to_owned(),
            from: begin(start)?,
            subjects: subjects.unwrap_or_default(),
            recover,
            spin: seconds(spin, "spin")?,
            ..SubscriberOptions::default()
        };
        let engine = Engine::at(socket);
        let subscriber = attach(py, patience, |patience| {
            options.patience = patience;
            client::Subscriber::attach(&engine, &options)
        })?;
        Ok(Subscriber {
            stream: subscriber.stream().to_string(),
            shared: Arc::new(Mutex::new(Some(subscriber))),
            current: Mutex::default(),
        })
    }

    /// The stream's group and port.
    #[getter]
    fn stream(&self) -> &str {
        &self.stream
    }

    /// Whether an engine is there, as far as is known.
    #[getter]
    fn attached(&self) -> PyResult<bool> {
        Ok(lock(&self.shared)?.as_ref().ok_or_else(closed)?.is_attached())
    }

    /// The last message that was handed out, was lost, or was not wanted: where to go on with `start`.
    #[getter]
    fn position(&self) -> PyResult<Option<Position>> {
        let shared = lock(&self.shared)?;
        let position = shared.as_ref().ok_or_else(closed)?.position();
        Ok(position.map(|client::Position { session, sequence }| Position { session, sequence }))
    }

    /// The next message or event; waits at most `timeout` seconds (None: without end; 0: not at all). None when
    /// the time was over first.
    #[pyo3(signature = (timeout=None))]
    fn receive(slf: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<Option<Py<PyAny>>> {
        Self::next(slf, timeout)
    }

    /// What comes, until nothing has come for `timeout` seconds (None: without end).
    #[pyo3(signature = (timeout=None))]
    fn until_idle(slf: Bound<'_, Self>, timeout: Option<f64>) -> PyResult<Arrivals> {
        deadline(timeout)?;
        Ok(Arrivals {
            subscriber: slf.unbind(),
            timeout,
        })
    }

    fn __iter__(slf: Bound<'_, Self>) -> Arrivals {
        Arrivals {
            subscriber: slf.unbind(),
            timeout: None,
        }
    }

    /// Ends the subscription.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let mut shared = lock(&self.shared)?;
        self.next_number(py)?;
        *shared = None;
        Ok(())
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_raised))]
    fn __exit__(&self, py: Python<'_>, _raised: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py)
    }
}

/// Arrivalsates over what comes.
#[pyclass(frozen, module = "seqcast")]
pub(crate) struct Arrivals {
    subscriber: Py<Subscriber>,
    timeout: Option<f64>,
}

#[pymethods]
impl Arrivals {
    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        Subscriber::next(self.subscriber.bind(py), self.timeout)
    }
}

/// A message. Its payload lies in the subscriber's memory until that is asked for the next one.
#[pyclass(frozen, module = "seqcast")]
pub(crate) struct Message {
    subscriber: Py<Subscriber>,
    number: u64,
    payload: Bytes,
    at: Position,
    #[pyo3(get)]
    time_ns: u64,
    #[pyo3(get)]
    flags: u16,
    #[pyo3(get)]
    subject: Py<PyString>,
}

impl Message {
    /// Does something with the bytes, if they are still there.
    fn with<T>(&self, use_it: impl FnOnce(&Subscriber, &mut Current) -> PyResult<T>) -> PyResult<T> {
        let subscriber = self.subscriber.get();
        // Whoever asks for the next message has this lock.
        let _shared = lock(&subscriber.shared)?;
        let mut current = lock(&subscriber.current)?;
        if current.number != self.number {
            return Err(PyValueError::new_err(
                "the bytes of this message are gone, since the subscriber was asked for the next: copy what is \
                 needed longer, bytes(message)",
            ));
        }
        use_it(subscriber, &mut current)
    }
}

#[pymethods]
impl Message {
    #[classattr]
    #[expect(non_upper_case_globals, reason = "the interpreter's name")]
    const __match_args__: (&'static str, &'static str, &'static str) = ("sequence", "subject", "payload");

    #[getter]
    fn session(&self) -> u32 {
        self.at.session
    }

    #[getter]
    fn sequence(&self) -> u32 {
        self.at.sequence
    }

    #[getter]
    fn position(&self) -> Position {
        self.at
    }

    /// It was lost on its way to the engine and repaired.
    #[getter]
    fn repaired(&self) -> bool {
        self.flags & flags::REPAIRED != 0
    }

    /// The repair came from the server, not from an archive.
    #[getter]
    #[expect(clippy::wrong_self_convention, reason = "what programs see")]
    fn from_server(&self) -> bool {
        self.flags & flags::FROM_SERVER != 0
    }

    /// The program had missed it; it was asked for again.
    #[getter]
    fn caught_up(&self) -> bool {
        self.flags & flags::CAUGHT_UP != 0
    }

    /// The payload in place, not copied. Released when the subscriber is asked for the next message.
    #[getter]
    fn payload<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        self.with(|subscriber, current| {
            let loan = match current.loan.take() {
                Some(loan) => loan,
                // SAFETY: the bytes stay until the subscriber is used again, which ends the loan first, or
                // dropped, which the loan's share of it prevents. They are the program's own copy.
                None => unsafe { Loan::new(py, self.payload, false, subscriber.shared.clone()) }?,
            };
            let view = current.loan.insert(loan).view(py);
            Ok(view)
        })
    }

    /// A copy of the payload.
    fn __bytes__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        // SAFETY: they are there, as `with` says, and nobody writes them.
        self.with(|_, _| Ok(PyBytes::new(py, unsafe { self.payload.get() })))
    }

    fn __len__(&self) -> usize {
        self.payload.len()
    }

    fn __bool__(&self) -> bool {
        true
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!(
            "Message(session={}, sequence={}, subject={}, {} bytes)",
            self.at.session,
            self.at.sequence,
            self.subject.bind(py).repr()?,
            self.payload.len()
        ))
    }
}

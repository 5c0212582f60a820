//! The exceptions, one for each kind of failure.

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use seqcast_client as client;

create_exception!(
    seqcast,
    Error,
    PyException,
    "What went wrong; `code` is the stable number of its kind."
);
create_exception!(
    seqcast,
    Full,
    Error,
    "The lane is full until the engine has taken more."
);
create_exception!(seqcast, Timeout, Error, "The time was over first; nothing was done.");
create_exception!(
    seqcast,
    Gone,
    Error,
    "No engine is there now; later calls attach by themselves."
);
create_exception!(
    seqcast,
    TooLarge,
    Error,
    "A message with its subject is longer than one frame carries."
);
create_exception!(seqcast, BadSubject, Error, "No subject, or no pattern.");
create_exception!(seqcast, Refused, Error, "The engine refuses; `code` says why.");
create_exception!(seqcast, SystemFailure, Error, "The kernel refuses.");

/// A failure as its exception.
pub(crate) fn raise(py: Python<'_>, error: client::Error) -> PyErr {
    let text = error.to_string();
    let raised = match error {
        client::Error::Full => Full::new_err(text),
        client::Error::Timeout => Timeout::new_err(text),
        client::Error::Gone(_) => Gone::new_err(text),
        client::Error::TooLarge { .. } => TooLarge::new_err(text),
        client::Error::Subject(_) => BadSubject::new_err(text),
        client::Error::Refused { .. } => Refused::new_err(text),
        client::Error::System { .. } => SystemFailure::new_err(text),
        _ => Error::new_err(text),
    };
    // An exception has room for attributes: this cannot fail but for want of memory.
    let _ = raised.value(py).setattr("code", error.code());
    raised
}

pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("Error", py.get_type::<Error>())?;
    module.add("Full", py.get_type::<Full>())?;
    module.add("Timeout", py.get_type::<Timeout>())?;
    module.add("Gone", py.get_type::<Gone>())?;
    module.add("TooLarge", py.get_type::<TooLarge>())?;
    module.add("BadSubject", py.get_type::<BadSubject>())?;
    module.add("Refused", py.get_type::<Refused>())?;
    module.add("SystemFailure", py.get_type::<SystemFailure>())
}

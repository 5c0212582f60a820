//! Memory of the library as a Python buffer: nothing is copied, and nobody can look at it any longer than it is there.

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;

/// Where bytes are.
#[derive(Clone, Copy)]
pub(crate) struct Bytes(NonNull<[u8]>);

// SAFETY: an address and a length; who follows it says why that may be done.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    pub(crate) fn of(bytes: &[u8]) -> Bytes {
        Bytes(bytes.into())
    }

    pub(crate) fn of_mut(bytes: &mut [u8]) -> Bytes {
        Bytes(bytes.into())
    }

    pub(crate) fn len(self) -> usize {
        self.0.len()
    }

    /// # Safety
    /// The bytes are there, and nobody writes them.
    pub(crate) unsafe fn get<'a>(self) -> &'a [u8] {
        // SAFETY: the caller's word.
        unsafe { self.0.as_ref() }
    }
}

/// What Python's `memoryview` looks at. Under the interpreter's lock.
#[pyclass(frozen)]
pub(crate) struct Place {
    bytes: Bytes,
    writable: bool,
    /// Buffers that somebody has of it: the memoryview that was lent, and what was made of it.
    lent: AtomicUsize,
    /// The bytes are not there any more.
    gone: AtomicBool,
    /// Keeps the memory as long as somebody may look at it.
    _memory: Arc<dyn Send + Sync>,
}

#[pymethods]
impl Place {
    // The name and the arguments are the interpreter's.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let place = slf.get();
        if place.gone.load(Relaxed) {
            return Err(PyBufferError::new_err("these bytes were given back"));
        }
        let start = place.bytes.0.cast().as_ptr();
        // A slice is never longer than that.
        let len = place.bytes.len() as ffi::Py_ssize_t;
        // SAFETY: `view` is the interpreter's, to be filled in; the bytes are there until `Loan::end` has
        // found that nobody looks at them, for which the interpreter calls `__releasebuffer__`.
        let filled = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, len, (!place.writable).into(), flags) };
        if filled != 0 {
            return Err(PyErr::fetch(slf.py()));
        }
        place.lent.fetch_add(1, Relaxed);
        Ok(())
    }

    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.lent.fetch_sub(1, Relaxed);
    }
}

/// A view that was given to a program, and has to come back before the bytes are used for something else.
pub(crate) struct Loan {
    place: Py<Place>,
    view: Py<PyMemoryView>,
}

impl Loan {
    /// # Safety
    /// The bytes stay where they are until [`Self::end`] has succeeded or `memory` is dropped; if
    /// `writable`, nobody else looks at them.
    pub(crate) unsafe fn new(
        py: Python<'_>,
        bytes: Bytes,
        writable: bool,
        memory: Arc<dyn Send + Sync>,
    ) -> PyResult<Loan> {
        let place = Place {
            bytes,
            writable,
            lent: AtomicUsize::new(0),
            gone: AtomicBool::new(false),
            _memory: memory,
        };
        let place = Bound::new(py, place)?;
        let view = PyMemoryView::from(place.as_any())?;
        Ok(Loan {
            place: place.unbind(),
            view: view.unbind(),
        })
    }

    pub(crate) fn view<'py>(&self, py: Python<'py>) -> Bound<'py, PyMemoryView> {
        self.view.bind(py).clone()
    }

    /// Takes the view back: who looks at it later gets a `ValueError`.
    ///
    /// # Errors
    /// `BufferError` when something was made of the view that still looks at the bytes. Nothing was done then.
    pub(crate) fn end(&self, py: Python<'_>) -> PyResult<()> {
        let place = self.place.get();
        // Refused when something was made of this very view.
        let released = self.view.bind(py).call_method0("release");
        if released.is_err() || place.lent.load(Relaxed) > 0 {
            return Err(PyBufferError::new_err(
                "the bytes of the message before are still in use: release what was made of its view, \
                 or work on a copy, bytes(view)",
            ));
        }
        place.gone.store(true, Relaxed);
        Ok(())
    }
}

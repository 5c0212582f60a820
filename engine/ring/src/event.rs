//! A flag that a thread can sleep on: an eventfd, or its model under loom.

#[cfg(not(loom))]
pub use kernel::Event;
#[cfg(loom)]
pub(crate) use model::Event;

#[cfg(not(loom))]
mod kernel {
    use std::fs::File;
    use std::io::{self, Read, Write};
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
    use std::time::Duration;

    /// A flag that one process raises and another one waits for; see `eventfd(2)`.
    #[derive(Debug)]
    pub struct Event(File);

    impl From<OwnedFd> for Event {
        /// A descriptor that another process gave. Whatever it is, no method blocks on it for good
        /// if it is non-blocking.
        fn from(fd: OwnedFd) -> Event {
            Event(File::from(fd))
        }
    }

    impl Event {
        /// Makes a flag that is down.
        ///
        /// # Errors
        /// When the process or the system is out of file descriptors.
        pub fn new() -> io::Result<Self> {
            // SAFETY: takes no pointers.
            let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: just opened and owned by nobody else.
            Ok(Event(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
        }

        /// Raises the flag.
        pub fn raise(&self) {
            // Fails only when 2^64 - 2 are pending, and then the flag is up anyway.
            let _ = (&self.0).write(&1u64.to_ne_bytes());
        }

        /// Takes the flag down.
        pub fn clear(&self) {
            // Fails only when the flag is down already.
            let _ = (&self.0).read(&mut [0; 8]);
        }

        /// Waits until the flag is up or the time is over, and says which. A signal may end it early.
        pub fn wait(&self, timeout: Duration) -> bool {
            let mut fd = libc::pollfd {
                fd: self.0.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            let time = libc::timespec {
                tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
                tv_nsec: timeout.subsec_nanos().into(),
            };
            // SAFETY: one pollfd and one timespec, both alive during the call; no signal mask.
            unsafe { libc::ppoll(&raw mut fd, 1, &raw const time, std::ptr::null()) > 0 }
        }

        /// The descriptor, readable while the flag is up.
        #[must_use]
        pub fn fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}

#[cfg(loom)]
mod model {
    use loom::sync::{Condvar, Mutex};

    pub(crate) struct Event {
        raised: Mutex<bool>,
        changed: Condvar,
    }

    impl Event {
        pub(crate) fn new() -> std::io::Result<Self> {
            Ok(Event {
                raised: Mutex::new(false),
                changed: Condvar::new(),
            })
        }

        /// Raises the flag.
        pub fn raise(&self) {
            *self.raised.lock().unwrap() = true;
            self.changed.notify_one();
        }

        /// Takes the flag down.
        pub fn clear(&self) {
            *self.raised.lock().unwrap() = false;
        }

        /// Sleeps until raised: a lost wake-up is a deadlock, which loom reports.
        pub(crate) fn wait(&self) {
            let mut raised = self.raised.lock().unwrap();
            while !*raised {
                raised = self.changed.wait(raised).unwrap();
            }
        }
    }
}

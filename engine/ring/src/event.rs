//! A flag that a thread can sleep on: an eventfd, or its model under loom.

#[cfg(not(loom))]
pub(crate) use kernel::Event;
#[cfg(loom)]
pub(crate) use model::Event;

#[cfg(not(loom))]
mod kernel {
    use std::fs::File;
    use std::io::{self, Read, Write};
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
    use std::time::Duration;

    pub(crate) struct Event(File);

    impl Event {
        pub(crate) fn new() -> io::Result<Self> {
            // SAFETY: takes no pointers.
            let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: just opened and owned by nobody else.
            Ok(Event(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
        }

        pub(crate) fn raise(&self) {
            // Fails only when 2^64 - 2 are pending, and then the flag is up anyway.
            let _ = (&self.0).write(&1u64.to_ne_bytes());
        }

        pub(crate) fn clear(&self) {
            // Fails only when the flag is down already.
            let _ = (&self.0).read(&mut [0; 8]);
        }

        pub(crate) fn wait(&self, timeout: Duration) -> bool {
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

        pub(crate) fn fd(&self) -> BorrowedFd<'_> {
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

        pub(crate) fn raise(&self) {
            *self.raised.lock().unwrap() = true;
            self.changed.notify_one();
        }

        pub(crate) fn clear(&self) {
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

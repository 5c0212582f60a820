//! Waiting for descriptors, for links and for whoever serves programs.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// What to wait for at one descriptor.
pub(crate) fn pollfd(fd: RawFd, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

/// Waits until one of `fds` is ready or the time is over. A signal ends the wait as well.
pub(crate) fn poll(fds: &mut [libc::pollfd], timeout: Duration) -> io::Result<()> {
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: `fds` is a live slice of the length given, and the kernel only reads `timeout`; no signal mask is given.
    let result = unsafe {
        let count = fds.len() as libc::nfds_t;
        libc::ppoll(fds.as_mut_ptr(), count, &raw const timeout, std::ptr::null())
    };
    if result >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        error => Err(error),
    }
}

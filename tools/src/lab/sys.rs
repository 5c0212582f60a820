//! The few system calls that std does not offer.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has the kernel kill the command's process when the thread that spawns it ends.
pub(super) fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let hook = move || {
        // SAFETY: prctl with these arguments touches no memory.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // The parent may have died before the call above.
        if std::os::unix::process::parent_id() != parent {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(())
    };
    // SAFETY: the hook runs between fork and exec; it only makes two async-signal-safe system
    // calls and allocates nothing.
    unsafe { command.pre_exec(hook) };
}

/// Sends a signal to a process; one that is already gone is no error.
pub(super) fn signal(pid: u32, signal: i32) -> io::Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .filter(|&pid| pid > 1)
        .ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: kill touches no memory; the pid is that of one process, not a group (0, -1, -n).
    if unsafe { libc::kill(pid, signal) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        error => Err(error),
    }
}

/// Opens and closes an AF_XDP socket, to see whether the kernel has them and we may use them.
pub(super) fn try_af_xdp() -> io::Result<()> {
    // SAFETY: socket touches no memory.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and owned by nobody else.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

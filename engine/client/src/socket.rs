//! Sockets between programs and their engine: whole messages, with descriptors beside them.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind,
    connect, listen, recvmsg, sendmsg, socket, socketpair,
};

/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 4096;
/// Most descriptors beside a message.
const MAX_FDS: usize = 2;

/// One end of a connection. Never blocks but in [`Socket::wait`].
#[derive(Debug)]
pub struct Socket(OwnedFd);

/// Pending connections that the kernel keeps.
const BACKLOG: i32 = 64;

fn open(flags: SockFlag) -> io::Result<OwnedFd> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?)
}

impl Socket {
    /// Connects to the engine that listens at `path`.
    ///
    /// # Errors
    /// When nobody listens there, or this process may not connect.
    pub fn connect(path: &Path) -> io::Result<Socket> {
        let fd = open(SockFlag::SOCK_NONBLOCK)?;
        // On a full backlog this is EAGAIN: the engine is busy, and the caller tries again.
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Socket(fd))
    }

    /// Listens at `path`, which must not exist.
    ///
    /// # Errors
    /// When the path is taken, too long, or in a directory that cannot be written.
    pub fn listen(path: &Path) -> io::Result<Socket> {
        let fd = open(SockFlag::SOCK_NONBLOCK)?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        listen(&fd, Backlog::new(BACKLOG)?)?;
        Ok(Socket(fd))
    }

    /// Takes a connection that waits; `None` when there is none.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn accept(&self) -> io::Result<Option<Socket>> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        match accept4(self.0.as_raw_fd(), flags) {
            // SAFETY: just opened and owned by nobody else.
            Ok(fd) => Ok(Some(Socket(unsafe { OwnedFd::from_raw_fd(fd) }))),
            Err(error) => nothing_yet(error.into()).map(|()| None),
        }
    }

    /// Both ends of a connection within this process.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn pair() -> io::Result<(Socket, Socket)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Socket(a), Socket(b)))
    }

    /// Sends a message of at most [`MAX_MESSAGE`] bytes and two descriptors; never waits.
    ///
    /// # Errors
    /// When the other end is gone, or takes nothing.
    pub fn send(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(message)], control, flags, None)?;
        Ok(())
    }

    /// Receives a message into `buffer`, and the descriptors beside it. `None`: nothing is there yet.
    ///
    /// # Errors
    /// `UnexpectedEof` or another one when the other end is gone; `InvalidData` for a message that is too long.
    pub fn receive(&self, buffer: &mut [u8; MAX_MESSAGE]) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
        match self.receive_once(buffer) {
            // An end that was closed with something unread says so before what it had said last.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => self.receive_once(buffer),
            first => first,
        }
    }

    fn receive_once(&self, buffer: &mut [u8; MAX_MESSAGE]) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
        let mut space = nix::cmsg_space!([libc::c_int; MAX_FDS]);
        let mut parts = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let received = match recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut space), flags) {
            Ok(received) => received,
            Err(error) => return nothing_yet(error.into()).map(|()| None),
        };
        let mut fds = Vec::new();
        if let Ok(control) = received.cmsgs() {
            for one in control {
                if let ControlMessageOwned::ScmRights(rights) = one {
                    // SAFETY: the kernel has just opened them for this process; nobody else owns them.
                    fds.extend(rights.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
            }
        }
        if received.flags.contains(MsgFlags::MSG_TRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is too long"));
        }
        match received.bytes {
            // No message of ours is empty.
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            len => Ok(Some((len, fds))),
        }
    }

    /// Waits until something can be received or the other end is gone; false when the time was over
    /// first. A signal may end it early. `None` waits without end.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        let mut fd = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let time = timeout.map(|time| libc::timespec {
            tv_sec: time.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: time.subsec_nanos().into(),
        });
        let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: one live pollfd; the time is live or null; no signal mask.
        let ready = unsafe { libc::ppoll(&raw mut fd, 1, time, std::ptr::null()) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted {
                Ok(false)
            } else {
                Err(error)
            };
        }
        Ok(ready > 0)
    }
}

/// A call that would have to wait is no error.
fn nothing_yet(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => Ok(()),
        _ => Err(error),
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

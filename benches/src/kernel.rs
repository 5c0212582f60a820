//! The kernel's own way: connected UDP sockets that spin.

use std::io;
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};

use crate::duel::{BATCH, Counters, Port, Received, Words, word_of};
use crate::pair::Side;

/// How datagrams cross the border to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// One system call each.
    Single,
    /// Up to [`BATCH`] in one `sendmmsg` or `recvmmsg`.
    Many,
    /// Runs of up to 64 in one piece (GSO and GRO), one run a call.
    Runs,
}

const PORT: u16 = 7800;
/// What the engine's kernel link asks for.
const BUFFER: libc::c_int = 8 << 20;
/// Bytes of a run, and of a receive buffer.
const RUN_BYTES: usize = 65_507;
/// Datagrams of a run.
const RUN: usize = 64;

/// One end.
pub(crate) struct KernelPort {
    socket: UdpSocket,
    how: How,
    /// Bytes of a message.
    size: usize,
    buffer: Vec<u8>,
    /// Bytes of `buffer` for each message of a batch.
    stride: usize,
    words: Words,
    counters: Counters,
}

impl KernelPort {
    pub(crate) fn open(side: &Side, how: How) -> Result<KernelPort> {
        let socket = UdpSocket::bind(SocketAddrV4::new(side.address, PORT)).context("cannot bind UDP")?;
        socket.connect(SocketAddrV4::new(side.peer_address, PORT))?;
        socket.set_nonblocking(true)?;
        option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
        option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, BUFFER)?;
        if how == How::Runs {
            option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1).context("no UDP GRO")?;
        }
        let stride = 2048;
        Ok(KernelPort {
            socket,
            how,
            size: 0,
            buffer: vec![0; (BATCH * stride).max(RUN_BYTES)],
            stride,
            words: Words::default(),
            counters: Counters::default(),
        })
    }

    /// Headers for `recvmmsg` and `sendmmsg`, one buffer of `length` bytes each.
    fn headers<T>(&mut self, length: usize, call: impl FnOnce(&mut [libc::mmsghdr]) -> T) -> T {
        // SAFETY: `iovec` and `mmsghdr` are plain data for which all zero bits are valid.
        let (mut parts, mut headers): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) = unsafe { std::mem::zeroed() };
        let chunks = self.buffer.chunks_exact_mut(self.stride);
        for ((part, header), chunk) in parts.iter_mut().zip(&mut headers).zip(chunks) {
            let chunk = &mut chunk[..length];
            part.iov_base = chunk.as_mut_ptr().cast();
            part.iov_len = chunk.len();
            header.msg_hdr.msg_iov = part;
            header.msg_hdr.msg_iovlen = 1;
        }
        call(&mut headers)
    }
}

impl Port for KernelPort {
    fn prepare(&mut self, size: usize) -> Result<()> {
        self.size = size;
        if self.how == How::Runs {
            option(&self.socket, libc::SOL_UDP, libc::UDP_SEGMENT, size as libc::c_int).context("no UDP GSO")?;
        }
        Ok(())
    }

    fn send(&mut self, word: u64, size: usize, count: usize) -> Result<usize> {
        if count == 0 {
            return Ok(0);
        }
        let mut sent = 0;
        match self.how {
            How::Single => {
                self.buffer[..8].copy_from_slice(&word.to_ne_bytes());
                for _ in 0..count {
                    self.counters.syscalls += 1;
                    sent += usize::from(some(self.socket.send(&self.buffer[..size]))?.is_some());
                }
            }
            How::Many => {
                for i in 0..count.min(BATCH) {
                    self.buffer[i * self.stride..][..8].copy_from_slice(&word.to_ne_bytes());
                }
                let fd = self.socket.as_raw_fd();
                self.counters.syscalls += 1;
                let result = self.headers(size, |headers| {
                    let count = count.min(headers.len()) as libc::c_uint;
                    // SAFETY: the headers and the buffers behind them are live, and `count` of them are there.
                    positive(unsafe { libc::sendmmsg(fd, headers.as_mut_ptr(), count, 0) } as isize)
                });
                sent = some(result)?.unwrap_or(0);
            }
            How::Runs => {
                let most = (RUN_BYTES / size).min(RUN);
                while sent < count {
                    let run = most.min(count - sent);
                    for message in self.buffer[..run * size].chunks_exact_mut(size) {
                        message[..8].copy_from_slice(&word.to_ne_bytes());
                    }
                    self.counters.syscalls += 1;
                    if some(self.socket.send(&self.buffer[..run * size]))?.is_none() {
                        break;
                    }
                    sent += run;
                }
            }
        }
        self.counters.frames += sent as u64;
        Ok(sent)
    }

    fn receive(&mut self) -> Result<Received> {
        self.counters.syscalls += 1;
        let (messages, stride) = match self.how {
            How::Single => (usize::from(some(self.socket.recv(&mut self.buffer))?.is_some()), 0),
            How::Many => {
                let (fd, stride) = (self.socket.as_raw_fd(), self.stride);
                let result = self.headers(stride, |headers| {
                    let count = headers.len() as libc::c_uint;
                    // SAFETY: as in `send`; the kernel writes within the lengths given.
                    positive(unsafe {
                        libc::recvmmsg(
                            fd,
                            headers.as_mut_ptr(),
                            count,
                            libc::MSG_DONTWAIT,
                            std::ptr::null_mut(),
                        )
                    } as isize)
                });
                (some(result)?.unwrap_or(0), stride)
            }
            How::Runs => {
                let bytes = some(self.socket.recv(&mut self.buffer))?.unwrap_or(0);
                (bytes.div_ceil(self.size.max(1)), self.size)
            }
        };
        let mut word = 0;
        for i in 0..messages {
            word = word_of(&self.buffer[i * stride..]);
            self.words.note(word, false);
        }
        Ok(Received { messages, word })
    }

    fn words(&mut self, with: impl FnOnce(&mut Words)) {
        with(&mut self.words);
    }

    fn counters(&mut self) -> Counters {
        self.counters
    }
}

/// `None` when the kernel has no room or nothing to give.
fn some(result: io::Result<usize>) -> Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        // The other end's socket was not there yet.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(None),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS)) => Ok(None),
        Err(error) => Err(error).context("the kernel's UDP failed"),
    }
}

fn positive(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn option(socket: &UdpSocket, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` is live and of the length given.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    positive(result as isize).map(drop)
}

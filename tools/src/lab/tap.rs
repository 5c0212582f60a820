//! A tap on a lab's switch: who has sent what to whom, whatever the receivers then did with it.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::netns::Namespace;

/// Bytes of frames that the kernel keeps for a tap that is late.
const BUFFER: usize = 64 << 20;
/// How often a tap without traffic looks whether it shall end.
const LOOK: Duration = Duration::from_millis(20);

/// One UDP datagram on its way through the switch.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When, since the tap was opened.
    pub at: Duration,
    /// Who sent it.
    pub from: SocketAddrV4,
    /// To whom: a host, or a group.
    pub to: SocketAddrV4,
    /// The UDP payload.
    pub bytes: Vec<u8>,
}

/// Sees each datagram that a host gives to the switch, once, before it can be lost on the way to
/// anyone. Dropping it ends it.
pub struct Tap {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<Vec<Seen>>>>,
}

impl Tap {
    /// Taps a namespace in which hosts' ports are joined by `bridge`.
    pub(super) fn open(namespace: &Namespace, bridge: &str) -> io::Result<Tap> {
        let open = || -> io::Result<(OwnedFd, usize)> {
            // A namespace is a thread's; a socket stays in that where it was made.
            namespace.enter()?;
            let fd = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )?;
            setsockopt(&fd, sockopt::RcvBufForce, &BUFFER)?;
            setsockopt(
                &fd,
                sockopt::ReceiveTimeout,
                &TimeVal::milliseconds(LOOK.as_millis() as i64),
            )?;
            Ok((fd, if_nametoindex(bridge)? as usize))
        };
        let opened = std::thread::scope(|scope| scope.spawn(open).join());
        let (fd, bridge) = opened.unwrap_or_else(|_| Err(io::Error::other("the thread that opens a tap panicked")))?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let listen = move || listen(&fd, bridge, &told);
        let thread = std::thread::Builder::new().name("tap".into()).spawn(listen)?;
        Ok(Tap {
            stop,
            thread: Some(thread),
        })
    }

    /// All that was seen, in order.
    ///
    /// # Errors
    /// When the tap has failed.
    pub fn finish(mut self) -> io::Result<Vec<Seen>> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        ended
            .and_then(Result::ok)
            .unwrap_or_else(|| Err(io::Error::other("the tap panicked")))
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Nobody wants what it has seen; a panic of its thread has been printed.
            let _ = thread.join();
        }
    }
}

fn listen(fd: &OwnedFd, bridge: usize, stop: &AtomicBool) -> io::Result<Vec<Seen>> {
    let start = Instant::now();
    let mut seen = Vec::new();
    let mut bytes = vec![0; 1 << 16];
    loop {
        // Looked at before: what was sent until then is still taken.
        let last = stop.load(Ordering::Relaxed);
        match recvfrom::<LinkAddr>(fd.as_raw_fd(), &mut bytes) {
            Ok((len, Some(port))) => {
                let port: &libc::sockaddr_ll = port.as_ref();
                // What the switch hands on, or takes up itself, came in by another port before.
                let arrives = port.sll_pkttype != libc::PACKET_OUTGOING && port.sll_ifindex as usize != bridge;
                if let Some((from, to, payload)) = udp(&bytes[..len]).filter(|_| arrives) {
                    seen.push(Seen {
                        at: start.elapsed(),
                        from,
                        to,
                        bytes: payload.to_vec(),
                    });
                }
            }
            Ok((_, None)) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if last => return Ok(seen),
            Err(Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The datagram in an Ethernet frame, if it is one of UDP over IPv4 without options.
fn udp(frame: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4, &[u8])> {
    let ip = frame.get(14..)?;
    let (ip, rest) = ip.split_at_checked(20)?;
    let (udp, payload) = rest.split_at_checked(8)?;
    if frame[12..14] != [8, 0] || ip[0] != 0x45 || ip[9] != 17 {
        return None;
    }
    let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
    let number = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
    let length = usize::from(number(4)).checked_sub(8)?;
    Some((
        SocketAddrV4::new(address(12), number(0)),
        SocketAddrV4::new(address(16), number(2)),
        payload.get(..length)?,
    ))
}

//! How frames move between engines.
//!
//! A [`Link`] receives and sends UDP datagrams in batches. Received frames are owned tokens: the
//! protocol may keep one (out-of-order data waits in its receive frame) and dropping it gives the
//! memory back to the link. Nothing here knows what the bytes mean.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use socket2::{InterfaceIndexOrAddress, SockRef};

use crate::counters::counts;

pub mod pair;
pub mod udp;
pub(crate) mod wait;
#[cfg(feature = "xdp")]
pub mod xdp;

/// One received datagram.
#[derive(Debug)]
pub struct Datagram<F> {
    /// Who sent it.
    pub from: SocketAddrV4,
    /// Where it was sent: a joined group or the link's own address.
    pub to: SocketAddrV4,
    /// The UDP payload; dropping it returns the memory to the link.
    pub frame: F,
}

counts! {
    /// What a link has moved and dropped since it was opened.
    pub struct LinkStats {
        /// Datagrams handed to the engine.
        received: Counter,
        /// Payload bytes handed to the engine.
        received_bytes: Counter,
        /// Datagrams handed to the kernel or the NIC.
        sent: Counter,
        /// Payload bytes handed to the kernel or the NIC.
        sent_bytes: Counter,
        /// Sends refused because no transmit frame was free.
        send_full: Counter,
        /// Datagrams that the kernel refused to send, and that are lost.
        send_failed: Counter,
        /// Unicast datagrams that took the kernel's path because the neighbour was not known yet.
        sent_by_kernel: Counter,
        /// Datagrams that the kernel dropped because the receive ring or buffer was full.
        receive_dropped: Counter,
        /// Datagrams dropped on purpose by a configured fault.
        fault_dropped: Counter,
        /// Datagrams that were cut short or malformed.
        malformed: Counter,
        /// Datagrams of another worker's streams that came on a queue of this one and are lost.
        misrouted: Counter,
        /// System calls made to receive, send or wait.
        syscalls: Counter,
        /// Frames of an AF_XDP link that are free.
        frames_free: Gauge,
        /// Frames that the kernel has to receive into, or has filled.
        frames_fill: Gauge,
        /// Received frames that the engine holds.
        frames_held: Gauge,
        /// Frames on their way out.
        frames_sending: Gauge,
        /// Packets that the XDP filter gave to the link.
        filter_redirected: Counter,
        /// Packets of the link's streams on a queue that it does not serve, which went to the kernel.
        filter_no_socket: Counter,
        /// Packets passed to the kernel: no UDP over IPv4.
        filter_not_udp: Counter,
        /// Packets passed to the kernel: IP fragments.
        filter_fragment: Counter,
        /// Packets passed to the kernel: IP options.
        filter_options: Counter,
        /// Packets passed to the kernel: cut short.
        filter_truncated: Counter,
        /// Packets passed to the kernel: to addresses that the link does not want.
        filter_no_match: Counter,
        /// Packets passed to the kernel: lengths that do not agree.
        filter_bad_length: Counter,
    }
}

/// A share of arriving datagrams to drop, for tests and labs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fault {
    /// Share of arriving datagrams dropped at random, 0.0 to 1.0.
    pub drop_share: f64,
    /// Index (from 0) of the arriving datagram at which a burst of losses starts.
    pub burst_at: u64,
    /// How many datagrams in a row the burst drops; 0 means no burst.
    pub burst_len: u64,
    /// Seed of the random choice.
    pub seed: u64,
}

/// Where in the kernel the XDP filter runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// Driver mode, or generic mode when the driver refuses.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Driver,
    /// After the kernel has allocated a packet buffer: works on any interface.
    Generic,
}

/// Who copies between the NIC and the link's frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bind {
    /// Zero-copy in driver mode, or copy when the driver refuses.
    #[default]
    Auto,
    /// The kernel copies. Works with any driver.
    Copy,
    /// The NIC reads and writes the frames itself, or the link does not open.
    ZeroCopy,
}

/// A way for datagrams to move in and out of one network interface.
pub trait Link {
    /// An owned received payload.
    type Frame: AsRef<[u8]>;

    /// Hands at most `max` waiting datagrams to `each`, in order of arrival, and returns how many.
    /// Never blocks.
    ///
    /// # Errors
    /// When the interface is gone or the kernel refuses for good; a full or empty queue is no error.
    fn receive(&mut self, max: usize, each: impl FnMut(Datagram<Self::Frame>)) -> io::Result<usize>;

    /// Builds one datagram in place and queues it. `build` gets a buffer of [`Link::max_payload`]
    /// bytes and returns how many it used; 0 sends nothing. Returns false, without calling
    /// `build`, when no transmit frame is free: call [`Link::flush`] and try again.
    fn send(&mut self, to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool;

    /// Hands everything queued to the kernel or NIC and takes back finished frames.
    ///
    /// # Errors
    /// As for [`Link::receive`].
    fn flush(&mut self) -> io::Result<()>;

    /// Starts receiving what is sent to `group`.
    ///
    /// # Errors
    /// When the address is not multicast or the kernel refuses to join.
    fn join(&mut self, group: SocketAddrV4) -> io::Result<()>;

    /// Tells the network again that `group`, which was joined, is wanted here. What is sent to it
    /// meanwhile may be lost. A link without a network in between has nobody to tell.
    ///
    /// # Errors
    /// As for [`Link::join`].
    fn rejoin(&mut self, _group: SocketAddrV4) -> io::Result<()> {
        Ok(())
    }

    /// Waits until a datagram may be waiting, `wake` is readable, or the time is over.
    ///
    /// # Errors
    /// As for [`Link::receive`].
    fn wait(&mut self, wake: BorrowedFd<'_>, timeout: Duration) -> io::Result<()>;

    /// The largest UDP payload that fits one frame, in bytes.
    fn max_payload(&self) -> usize;

    /// Where unicast datagrams reach this link.
    fn local(&self) -> SocketAddrV4;

    /// What is in force, for people: `xdp driver copy queue 0 of veth0`, `udp on lo`.
    fn mode(&self) -> String;

    /// Counters since opening.
    fn stats(&mut self) -> LinkStats;

    /// Adds what [`Link::wait`] waits for, so that links can be waited for together, and says how long
    /// that may be at most; zero when something is there already.
    fn watch(&self, fds: &mut Vec<libc::pollfd>) -> Duration {
        let _ = fds;
        Duration::from_millis(1)
    }

    /// Where unicast datagrams reach this link over line B, if that is another interface.
    fn local_b(&self) -> Option<SocketAddrV4> {
        None
    }

    /// `peer` is reached over line B.
    fn is_over_b(&mut self, peer: SocketAddrV4) {
        let _ = peer;
    }
}

/// Checks that a group is one that a stream may use.
///
/// # Errors
/// Names the address and what is wrong with it.
pub fn check_group(group: SocketAddrV4) -> io::Result<()> {
    let wrong = if !group.ip().is_multicast() {
        "is not a multicast address (224.0.0.0 to 239.255.255.255)"
    } else if group.port() == 0 {
        "has no port"
    } else if group.ip().octets()[..3] == [224, 0, 0] {
        "is link-local control traffic (224.0.0.x), which switches flood"
    } else {
        return Ok(());
    };
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("group {group} {wrong}; use an address in 239.0.0.0/8"),
    ))
}

/// Leaves a group and joins it again, upon which the kernel reports the membership at once.
fn rejoin(socket: SockRef<'_>, group: SocketAddrV4, on: &InterfaceIndexOrAddress) -> io::Result<()> {
    // Fails only if it is not a member, as after an interface was taken away and came back.
    let _ = socket.leave_multicast_v4_n(group.ip(), on);
    socket
        .join_multicast_v4_n(group.ip(), on)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot join {group} again: {error}")))
}

/// The Ethernet address that a multicast group maps to (RFC 1112, section 6.4).
#[must_use]
pub fn group_mac(group: Ipv4Addr) -> [u8; 6] {
    let [_, b, c, d] = group.octets();
    [0x01, 0x00, 0x5e, b & 0x7f, c, d]
}

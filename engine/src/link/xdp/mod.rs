//! The AF_XDP link: frames move between the NIC's queues and this process without the kernel's
//! network stack.
//!
//! An ordinary UDP socket stays beside the AF_XDP sockets. It reserves the port, joins the groups
//! (so that the kernel speaks IGMP and opens the NIC's filter, and switches forward), and sends the
//! first unicast datagrams to a peer whose Ethernet address is not known yet (so that the kernel
//! speaks ARP). Received frames teach the link where their sender is; from then on it sends by itself.
//!
//! Start: attach the filter with an empty socket map, bind the queues, fill them, and put the
//! sockets into the map last, so that no packet meets a half-open link. The end is the reverse.
//! Links that share a [`Card`] share its filter; each packet goes to the link that has the queue.

mod card;
mod config;
mod interface;
mod neighbour;
mod packet;
mod queue;
mod start;
mod sys;

use std::fmt;
use std::io;
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use super::wait::{poll, pollfd};
use super::{Datagram, Link, LinkStats, check_group, group_mac};
use card::Attached;
use interface::Interface;
use neighbour::Neighbours;
use packet::Headers;
use queue::{Held, Queue};

pub use super::{Attach, Bind};
pub use card::Card;
pub use config::XdpConfig;
pub use queue::FrameCount;
pub use seqcast_bpf::Counters;

/// How soon a wait ends when packets are stuck in the transmit ring.
const UNSENT_RETRY: Duration = Duration::from_millis(1);
/// Batches after which the clock is read, which tells how long neighbours have not been heard.
const BATCHES_A_LOOK: u32 = 256;
/// Empty batches in a row after which a link that never waits asks whether its interface is still there.
const CHECK_AFTER: u32 = 1 << 20;

/// A link over AF_XDP sockets. Belongs to one thread.
///
/// It does not hear what it sends itself, nor what programs on the same host send to its own
/// address: such packets never reach the interface's receive side.
pub struct XdpLink {
    // Dropped in this order: the queues unbind before the filter lets go of the interface.
    queues: Vec<Queue>,
    card: Arc<Attached>,
    /// Whether it says what the filter has counted: of links that share one, the first does.
    counts: bool,
    kernel: UdpSocket,
    local: SocketAddrV4,
    ttl: u8,
    /// Of the group that was sent to last.
    headers: Headers,
    max_payload: usize,
    interface: Interface,
    /// What the filter lets through: our own address first, then the groups.
    wanted: Vec<SocketAddrV4>,
    neighbours: Neighbours,
    /// Seconds, as of the last wait, or a few batches ago.
    now: u32,
    /// Batches asked for, counted on round after round.
    batches: u32,
    /// The queue that is asked first: they take turns.
    turn: usize,
    /// Batches in a row that were empty.
    empty: u32,
    /// Where datagrams for the kernel's path are built.
    scratch: Box<[u8]>,
    /// The queues' sockets, and a place for the caller's.
    poll: Box<[libc::pollfd]>,
    stats: LinkStats,
    mode: String,
}

/// A received UDP payload in its receive frame. Dropping it gives the frame back to the link.
///
/// Frames keep the memory alive, and with it the socket: the interface's queue can be bound again
/// only when the link and all of its frames are gone.
pub struct XdpFrame {
    held: Held,
    start: u16,
    end: u16,
}

impl AsRef<[u8]> for XdpFrame {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        &self.held.packet()[usize::from(self.start)..usize::from(self.end)]
    }
}

impl fmt::Debug for XdpFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "XdpFrame({} bytes)", self.end - self.start)
    }
}

impl XdpLink {
    /// Opens a link on one interface.
    ///
    /// # Errors
    /// When the configuration does not fit the interface, the process lacks a capability, or the
    /// interface or one of its queues is taken. Each error names its remedy.
    pub fn open(config: &XdpConfig) -> io::Result<XdpLink> {
        XdpLink::open_on(&Card::new(config.queues.iter().copied()), config)
    }

    /// Opens one of the links that share a card. How the filter is attached, and its faults, are those of
    /// the one that is opened first.
    ///
    /// # Errors
    /// As for [`XdpLink::open`].
    pub fn open_on(card: &Card, config: &XdpConfig) -> io::Result<XdpLink> {
        config.check()?;
        let interface = Interface::read(&config.interface)?;
        start::check_fit(config, card.queues(), &interface)?;
        let (kernel, local) = start::open_kernel_socket(&interface, config)?;
        let (attached, counts) = card.attach(config, &interface)?;
        attached.filter.add(local)?;
        let (mut queues, bind_note) = start::bind(config, interface.mtu, attached.mode)?;
        for queue in &mut queues {
            queue.fill()?;
        }

        let max_payload = start::packet_limit(config, &interface)? - packet::IP_UDP;
        let link = XdpLink {
            mode: start::describe(
                &interface.name,
                attached.mode,
                &queues,
                &[attached.no_driver.clone(), bind_note],
            ),
            poll: queues
                .iter()
                .map(Queue::raw_fd)
                .chain([-1])
                .map(|fd| pollfd(fd, libc::POLLIN))
                .collect(),
            queues,
            card: attached,
            counts,
            kernel,
            local,
            ttl: config.ttl,
            headers: Headers::new((interface.mac, interface.mac), local, local, config.ttl),
            max_payload,
            interface,
            wanted: vec![local],
            neighbours: Neighbours::new(),
            now: sys::seconds(),
            batches: 0,
            turn: 0,
            empty: 0,
            scratch: vec![0; max_payload].into(),
            stats: LinkStats::default(),
        };
        // Last, so that what arrives finds all of it ready. From here on `drop` undoes it.
        for queue in &link.queues {
            link.card.filter.insert_socket(queue.id(), queue.socket())?;
        }
        Ok(link)
    }

    /// Where the link's frames are, over all queues. The parts add up to the total.
    #[must_use]
    pub fn frames(&self) -> FrameCount {
        self.queues
            .iter()
            .map(Queue::count)
            .fold(FrameCount::default(), |sum, queue| FrameCount {
                total: sum.total + queue.total,
                free: sum.free + queue.free,
                fill: sum.fill + queue.fill,
                held: sum.held + queue.held,
                sending: sum.sending + queue.sending,
            })
    }

    /// What the filter has counted, by reason.
    ///
    /// # Errors
    /// When the kernel refuses to read the counters.
    pub fn filter_counters(&self) -> io::Result<Counters> {
        Ok(self.card.filter.counters()?)
    }

    /// Sends through the kernel, which finds the way and asks for the peer's Ethernet address. What
    /// the kernel refuses is lost, as any datagram may be.
    #[cold]
    fn send_by_kernel(&mut self, to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let length = build(&mut self.scratch).min(self.max_payload);
        if length == 0 {
            return true;
        }
        self.stats.syscalls += 1;
        match self.kernel.send_to(&self.scratch[..length], to) {
            Ok(_) => {
                self.stats.sent += 1;
                self.stats.sent_bytes += length as u64;
                self.stats.sent_by_kernel += 1;
            }
            Err(_) => self.stats.send_failed += 1,
        }
        true
    }

    /// Fails when the interface has been removed: the rings alone only fall silent.
    #[cold]
    fn check_interface(&mut self) -> io::Result<()> {
        for queue in &self.queues {
            self.stats.syscalls += 1;
            let error = socket2::SockRef::from(&queue.socket()).take_error()?;
            if let Some(error) = error {
                return Err(gone(&self.interface.name, error));
            }
        }
        Ok(())
    }
}

impl Drop for XdpLink {
    fn drop(&mut self) {
        // Hands the traffic back to the kernel before the sockets go. A socket that never got into the map is no
        // matter.
        for queue in &self.queues {
            let _ = self.card.filter.remove_socket(queue.id());
        }
    }
}

impl Link for XdpLink {
    type Frame = XdpFrame;

    #[inline]
    fn receive(&mut self, max: usize, mut each: impl FnMut(Datagram<XdpFrame>)) -> io::Result<usize> {
        self.batches = self.batches.wrapping_add(1);
        if self.batches.is_multiple_of(BATCHES_A_LOOK) {
            self.now = sys::seconds();
        }
        let stats = &mut self.stats;
        let queues = self.queues.len();
        let mut handed = 0;
        // Most batches are from one sender, which is noted once.
        let mut noted = None;
        let mut turn = self.turn;
        for _ in 0..queues {
            let queue = &mut self.queues[turn];
            turn = if turn + 1 == queues { 0 } else { turn + 1 };
            queue.receive(max - handed, |held| {
                let Some(received) = packet::parse(held.packet()) else {
                    stats.malformed += 1;
                    return;
                };
                if !self.wanted.contains(&received.to) {
                    stats.misrouted += 1;
                    return;
                }
                let neighbour = (*received.from.ip(), received.mac);
                if !received.tagged && noted != Some(neighbour) {
                    self.neighbours.heard(neighbour.0, neighbour.1, self.now);
                    noted = Some(neighbour);
                }
                handed += 1;
                stats.received += 1;
                stats.received_bytes += received.payload.len() as u64;
                each(Datagram {
                    from: received.from,
                    to: received.to,
                    frame: XdpFrame {
                        start: received.payload.start as u16,
                        end: received.payload.end as u16,
                        held,
                    },
                });
            })?;
            queue.fill()?;
        }
        self.turn = if self.turn + 1 == queues { 0 } else { self.turn + 1 };
        self.empty = if handed == 0 { self.empty + 1 } else { 0 };
        if self.empty == CHECK_AFTER {
            self.empty = 0;
            self.check_interface()?;
        }
        Ok(handed)
    }

    #[inline]
    fn send(&mut self, to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let unicast;
        let headers = if to.ip().is_multicast() {
            if self.headers.to() != to {
                let mac = (self.interface.mac, group_mac(*to.ip()));
                self.headers = Headers::new(mac, self.local, to, self.ttl);
            }
            &self.headers
        } else if let Some(mac) = self.neighbours.find(*to.ip(), self.now) {
            unicast = Headers::new((self.interface.mac, mac), self.local, to, self.ttl);
            &unicast
        } else {
            return self.send_by_kernel(to, build);
        };
        let max = self.max_payload;
        let sent = self.queues[0].send(|frame| {
            let payload = build(&mut frame[packet::HEADERS..packet::HEADERS + max]).min(max);
            if payload == 0 {
                return 0;
            }
            headers.write(frame, payload);
            packet::HEADERS + payload
        });
        match sent {
            None => {
                self.stats.send_full += 1;
                false
            }
            Some(0) => true,
            Some(length) => {
                self.stats.sent += 1;
                self.stats.sent_bytes += (length - packet::HEADERS) as u64;
                true
            }
        }
    }

    #[inline]
    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.queues[0].flush();
        flushed.map_err(|error| gone(&self.interface.name, error))
    }

    fn join(&mut self, group: SocketAddrV4) -> io::Result<()> {
        check_group(group)?;
        if self.wanted.contains(&group) {
            return Ok(());
        }
        if !self.wanted[1..].iter().any(|joined| joined.ip() == group.ip()) {
            let on = socket2::InterfaceIndexOrAddress::Index(self.interface.index);
            let socket = socket2::SockRef::from(&self.kernel);
            socket
                .join_multicast_v4_n(group.ip(), &on)
                .map_err(|error| match error.raw_os_error() {
                    Some(libc::ENOBUFS) => io::Error::new(
                        io::ErrorKind::QuotaExceeded,
                        format!("cannot join {group}: too many groups; raise `sysctl net.ipv4.igmp_max_memberships`"),
                    ),
                    _ => io::Error::new(error.kind(), format!("cannot join {group}: {error}")),
                })?;
        }
        self.card.filter.add(group)?;
        self.wanted.push(group);
        Ok(())
    }

    fn rejoin(&mut self, group: SocketAddrV4) -> io::Result<()> {
        let on = socket2::InterfaceIndexOrAddress::Index(self.interface.index);
        super::rejoin(socket2::SockRef::from(&self.kernel), group, &on)
    }

    fn wait(&mut self, wake: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
        if let Some(last) = self.poll.last_mut() {
            last.fd = wake.as_raw_fd();
        }
        let timeout = if self.queues[0].has_unsent() {
            timeout.min(UNSENT_RETRY)
        } else {
            timeout
        };
        self.stats.syscalls += 1;
        poll(&mut self.poll, timeout)?;
        let before = std::mem::replace(&mut self.now, sys::seconds());
        if self.now != before {
            self.check_interface()?;
        }
        Ok(())
    }

    fn watch(&self, fds: &mut Vec<libc::pollfd>) -> Duration {
        fds.extend_from_slice(&self.poll[..self.queues.len()]);
        if self.queues[0].has_unsent() {
            UNSENT_RETRY
        } else {
            Duration::MAX
        }
    }

    fn max_payload(&self) -> usize {
        self.max_payload
    }

    fn local(&self) -> SocketAddrV4 {
        self.local
    }

    fn mode(&self) -> String {
        self.mode.clone()
    }

    fn stats(&mut self) -> LinkStats {
        let mut stats = self.stats;
        for queue in &self.queues {
            stats.syscalls += queue.syscalls;
            if let Ok(drops) = queue.drops() {
                stats.receive_dropped += drops.no_room;
                stats.malformed += drops.invalid;
            }
        }
        if let Some(counters) = self.counts.then(|| self.card.filter.counters().ok()).flatten() {
            stats.fault_dropped = counters.fault_dropped;
            stats.filter_redirected = counters.redirected;
            stats.filter_no_socket = counters.no_socket;
            stats.filter_not_udp = counters.not_udp;
            stats.filter_fragment = counters.fragment;
            stats.filter_options = counters.options;
            stats.filter_truncated = counters.truncated;
            stats.filter_no_match = counters.no_match;
            stats.filter_bad_length = counters.bad_length;
        }
        let frames = self.frames();
        stats.frames_free = frames.free as u64;
        stats.frames_fill = frames.fill as u64;
        stats.frames_held = frames.held as u64;
        stats.frames_sending = frames.sending as u64;
        stats
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

fn gone(interface: &str, error: io::Error) -> io::Error {
    let message = format!("{interface} is gone or was taken away: {error}; see `ip link`, then open the link again");
    io::Error::new(error.kind(), message)
}

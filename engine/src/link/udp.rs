//! The link over kernel sockets: no privilege needed, any interface, loopback included.
//!
//! One socket, bound to the link's own address, sends everything and receives unicast. Each joined
//! group has a socket of its own, bound to the group, so that a datagram's destination is known
//! without ancillary data and several processes of a host each get their copy. Runs of datagrams
//! of one size cross the kernel as one (UDP GSO and GRO) where it can.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockAddr, SockFilter, SockRef, Socket, Type};

use super::wait::{poll, pollfd};
use super::{Datagram, Fault, Link, LinkStats, check_group, rejoin};

mod frame;
mod sys;

pub use frame::UdpFrame;
use frame::{Buffer, Pool};

/// IPv4 and UDP headers, in bytes.
const HEADERS: usize = 28;
/// Buffers filled by one system call.
const RECEIVE_BATCH: usize = 32;
/// Runs sent by one system call.
const SEND_BATCH: usize = 64;
/// Datagrams that may wait for [`Link::flush`].
const SEND_QUEUE: usize = 256;
/// Datagrams in one GSO run (UDP_MAX_SEGMENTS of the oldest kernels that have it).
const RUN: usize = 64;
/// Bytes in one GSO run: what fits an IPv4 packet.
const RUN_BYTES: usize = 65_535 - HEADERS;
/// Send buffer asked from the kernel, in bytes: a dozen full runs.
const SEND_BUFFER: usize = 1 << 20;

/// How to open a [`UdpLink`].
#[derive(Clone, Debug, PartialEq)]
pub struct UdpConfig {
    /// Name of the network interface (`eth1`, `lo`), or one of its IPv4 addresses.
    pub interface: String,
    /// Port for unicast, and the source of all that is sent; 0 lets the kernel choose one.
    pub port: u16,
    /// Receive buffer to ask for, in bytes, for each socket. What was granted is in [`Link::mode`].
    pub receive_buffer: usize,
    /// How many receive buffers there are. Each holds a datagram, or a run of up to 64 KiB; all
    /// frames of a run must be dropped before its buffer is free. With none free, the kernel drops.
    pub frames: usize,
    /// Losses made on purpose, for tests and labs.
    pub fault: Fault,
    /// How many hops multicast may go; 1 stays in the local network.
    pub ttl: u8,
    /// Hand runs of datagrams to the kernel in one piece (UDP GSO). To be turned off when a receiver on
    /// the same virtual link reads with generic XDP, which sees such a run as one large packet.
    pub gso: bool,
    /// Bytes of IP packet to use at most, 576 to 65,535. By default the interface's MTU, at most
    /// 9000; on loopback 1500, as on Ethernet.
    pub mtu: Option<usize>,
}

impl Default for UdpConfig {
    fn default() -> Self {
        UdpConfig {
            interface: "lo".into(),
            port: 0,
            receive_buffer: 8 << 20,
            frames: 4096,
            fault: Fault::default(),
            ttl: 1,
            gso: true,
            mtu: None,
        }
    }
}

/// A socket and what it receives.
struct Port {
    socket: Socket,
    /// The destination of all that arrives here.
    to: SocketAddrV4,
    /// The kernel's drop counter when last read.
    drops: u32,
}

/// A [`Link`] over kernel sockets.
pub struct UdpLink {
    /// The first is the unicast port, the others are joined groups.
    ports: Vec<Port>,
    interface: Interface,
    config: UdpConfig,
    local: SocketAddrV4,
    max_payload: usize,
    gso: bool,
    gro: bool,
    stats: LinkStats,
    fault: FaultFilter,

    pool: Rc<Pool>,
    receiver: sys::ReceiveBatch,
    batch: Batch,
    /// The port to read next.
    turn: usize,

    sender: sys::SendBatch,
    queue: SendQueue,
    runs: Vec<sys::Run>,
    polled: Vec<libc::pollfd>,
}

/// What is left of the last receive call.
#[derive(Default)]
struct Batch {
    /// The port that it came from.
    port: usize,
    /// Filled slots.
    filled: usize,
    /// The slot to be looked at next.
    slot: usize,
    /// What is being handed over.
    current: Option<(sys::Received, Buffer)>,
    /// Where the next datagram starts in it.
    offset: usize,
}

impl UdpLink {
    /// Opens the link on an interface that is up and has an IPv4 address.
    ///
    /// # Errors
    /// Says what is wrong with the interface, the port or a number of `config`, and the remedy.
    pub fn open(config: UdpConfig) -> io::Result<Self> {
        if config.frames == 0 {
            return Err(invalid("0 receive frames: at least 1 is needed".into()));
        }
        if let Some(mtu) = config.mtu
            && !(576..=65_535).contains(&mtu)
        {
            return Err(invalid(format!("MTU {mtu} is outside 576 to 65535")));
        }
        if !(0.0..=1.0).contains(&config.fault.drop_share) {
            return Err(invalid(format!(
                "drop share {} is outside 0.0 to 1.0",
                config.fault.drop_share
            )));
        }
        let socket = new_socket()?;
        let interface = Interface::find(&config.interface, &socket)?;
        let mtu = match config.mtu {
            Some(mtu) if mtu > interface.mtu => {
                return Err(invalid(format!(
                    "MTU {mtu} is above the {} of interface {}: lower it or run `ip link set {} mtu {mtu}`",
                    interface.mtu, interface.name, interface.name
                )));
            }
            Some(mtu) => mtu,
            None if interface.loopback => interface.mtu.min(1500),
            None => interface.mtu.min(9000),
        };
        let max_payload = mtu - HEADERS;

        let address = SocketAddrV4::new(interface.address, config.port);
        bind(&socket, address)?;
        sys::set_multicast_interface(socket.as_fd(), interface.address, interface.index)?;
        socket.set_multicast_loop_v4(true)?;
        socket.set_multicast_ttl_v4(config.ttl.into())?;
        // The kernel grants what it may; a small buffer only makes flush keep more for later.
        let _ = socket.set_send_buffer_size(SEND_BUFFER);
        let local = socket.local_addr()?.as_socket_ipv4().unwrap_or(address);
        let gso = config.gso && sys::knows_gso(socket.as_fd());
        let gro = sys::enable_gro(socket.as_fd()).is_ok();
        ask_receive_buffer(&socket, config.receive_buffer);

        let buffer = if gro { RUN_BYTES } else { max_payload };
        let pool = Pool::new(config.frames, buffer, max_payload).map_err(|e| {
            let what = format!("cannot map {} receive buffers of {buffer} bytes", config.frames);
            named(e, what, ": lower the number of frames")
        })?;
        Ok(UdpLink {
            ports: vec![Port {
                socket,
                to: local,
                drops: 0,
            }],
            interface,
            local,
            max_payload,
            gso,
            gro,
            stats: LinkStats::default(),
            fault: FaultFilter::new(config.fault),
            config,
            pool,
            receiver: sys::ReceiveBatch::new(RECEIVE_BATCH),
            batch: Batch::default(),
            turn: 0,
            sender: sys::SendBatch::new(SEND_BATCH),
            queue: SendQueue::new(max_payload),
            runs: Vec::with_capacity(SEND_QUEUE),
            polled: Vec::with_capacity(8),
        })
    }

    /// Hands over at most `max` datagrams of the last receive call.
    fn hand_over(&mut self, max: usize, each: &mut impl FnMut(Datagram<UdpFrame>)) -> usize {
        let batch = &mut self.batch;
        let mut handed = 0;
        while handed < max {
            let (message, buffer) = match batch.current.take() {
                Some(current) => current,
                None if batch.slot == batch.filled => break,
                None => {
                    let slot = batch.slot;
                    batch.slot += 1;
                    let message = self.receiver.received(slot);
                    let Some(buffer) = self.receiver.take(slot) else {
                        continue;
                    };
                    // Multicast comes back to who sent it, see [`ignore_own`].
                    let own = message.from == self.local;
                    // Nobody can be answered at port 0.
                    let bad = message.truncated || message.len == 0 || message.from.port() == 0;
                    if own || bad {
                        self.stats.malformed += u64::from(bad && !own);
                        self.pool.put(buffer);
                        continue;
                    }
                    (message, buffer)
                }
            };
            let start = batch.offset;
            let end = message.len.min(start + message.segment);
            batch.offset = 0;
            if end < message.len {
                batch.offset = end;
                batch.current = Some((message, buffer.clone()));
            }
            let frame = UdpFrame::new(buffer, self.pool.clone(), start, end);
            if self.fault.drops_next() {
                self.stats.fault_dropped += 1;
                continue;
            }
            handed += 1;
            self.stats.received += 1;
            self.stats.received_bytes += (end - start) as u64;
            each(Datagram {
                from: message.from,
                to: self.ports[batch.port].to,
                frame,
            });
        }
        handed
    }

    /// Reads at most `max` buffers from one port.
    fn read(&mut self, port: usize, max: usize) -> io::Result<()> {
        self.batch = Batch {
            port,
            ..Batch::default()
        };
        let ready = self.receiver.prepare(max.min(RECEIVE_BATCH), &self.pool);
        if ready == 0 {
            return Ok(());
        }
        self.stats.syscalls += 1;
        match self.receiver.receive(self.ports[port].socket.as_fd(), ready) {
            Ok(n) => self.batch.filled = n,
            Err(e) if is_transient(&e) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Sends what is queued, from the first datagram on, and counts in `gone` how many are done with.
    fn send_queued(&mut self, gone: &mut usize) -> io::Result<()> {
        'runs: while *gone < self.queue.entries.len() {
            self.queue.runs(*gone, self.gso, &mut self.runs);
            let mut next = 0;
            while next < self.runs.len() {
                let runs = &self.runs[next..];
                self.stats.syscalls += 1;
                let socket = self.ports[0].socket.as_fd();
                match self.sender.send(socket, runs, &self.queue.bytes) {
                    Ok(n) => {
                        for run in &runs[..n] {
                            self.stats.sent += run.datagrams as u64;
                            self.stats.sent_bytes += run.bytes.len() as u64;
                            *gone += run.datagrams;
                        }
                        next += n;
                    }
                    Err(e) if is_full(&e) => return Ok(()),
                    Err(e) if runs[0].datagrams > 1 && refuses_gso(&e) => {
                        self.gso = false;
                        continue 'runs;
                    }
                    Err(e) if is_lost(&e) => {
                        self.stats.send_failed += runs[0].datagrams as u64;
                        *gone += runs[0].datagrams;
                        next += 1;
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }
}

impl Link for UdpLink {
    type Frame = UdpFrame;

    /// Order of arrival holds within a group and within unicast, not between them.
    fn receive(&mut self, max: usize, mut each: impl FnMut(Datagram<UdpFrame>)) -> io::Result<usize> {
        let mut handed = self.hand_over(max, &mut each);
        for _ in 0..self.ports.len() {
            if handed == max {
                break;
            }
            let port = self.turn;
            self.turn = (self.turn + 1) % self.ports.len();
            self.read(port, max - handed)?;
            handed += self.hand_over(max - handed, &mut each);
        }
        Ok(handed)
    }

    fn send(&mut self, to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let sent = self.queue.push(to, build);
        self.stats.send_full += u64::from(!sent);
        sent
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.queue.entries.is_empty() {
            return Ok(());
        }
        let mut gone = 0;
        let result = self.send_queued(&mut gone);
        self.queue.remove(gone);
        result
    }

    fn join(&mut self, group: SocketAddrV4) -> io::Result<()> {
        check_group(group)?;
        if self.ports.iter().any(|port| port.to == group) {
            return Ok(());
        }
        let socket = new_socket()?;
        ignore_own(&socket, self.local).map_err(|e| named(e, format!("cannot filter what arrives for {group}"), ""))?;
        socket.set_reuse_address(true)?;
        bind(&socket, group)?;
        // Only what this socket has joined, on this interface; not what other sockets have.
        socket.set_multicast_all_v4(false)?;
        if self.gro {
            sys::enable_gro(socket.as_fd())?;
        }
        ask_receive_buffer(&socket, self.config.receive_buffer);
        let interface = InterfaceIndexOrAddress::Index(self.interface.index);
        socket.join_multicast_v4_n(group.ip(), &interface).map_err(|e| {
            let remedy = match e.raw_os_error() {
                Some(libc::ENOBUFS) => "; raise net.ipv4.igmp_max_memberships",
                _ => "",
            };
            named(e, format!("cannot join {group} on {}", self.interface.name), remedy)
        })?;
        self.ports.push(Port {
            socket,
            to: group,
            drops: 0,
        });
        Ok(())
    }

    fn rejoin(&mut self, group: SocketAddrV4) -> io::Result<()> {
        let Some(port) = self.ports.iter().find(|port| port.to == group) else {
            return Ok(());
        };
        let interface = InterfaceIndexOrAddress::Index(self.interface.index);
        rejoin(SockRef::from(&port.socket), group, &interface)
    }

    fn wait(&mut self, wake: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
        let mut polled = std::mem::take(&mut self.polled);
        polled.clear();
        polled.push(pollfd(wake.as_raw_fd(), libc::POLLIN));
        let timeout = timeout.min(self.watch(&mut polled));
        self.polled = polled;
        if timeout.is_zero() {
            return Ok(());
        }
        self.stats.syscalls += 1;
        poll(&mut self.polled, timeout)
    }

    /// With all receive buffers held by the caller it does not look for datagrams: there is
    /// nowhere to put them.
    fn watch(&self, fds: &mut Vec<libc::pollfd>) -> Duration {
        if self.batch.current.is_some() || self.batch.slot < self.batch.filled {
            return Duration::ZERO;
        }
        let can_receive = !(self.pool.is_empty() && self.receiver.is_empty());
        let read = if can_receive { libc::POLLIN } else { 0 };
        let write = if self.queue.entries.is_empty() {
            0
        } else {
            libc::POLLOUT
        };
        for (i, port) in self.ports.iter().enumerate() {
            let events = if i == 0 { read | write } else { read };
            fds.push(pollfd(port.socket.as_raw_fd(), events));
        }
        Duration::MAX
    }

    fn max_payload(&self) -> usize {
        self.max_payload
    }

    fn local(&self) -> SocketAddrV4 {
        self.local
    }

    fn mode(&self) -> String {
        let flag = |on, name| {
            if on {
                format!(", {name}")
            } else {
                format!(", no {name}")
            }
        };
        // The kernel doubles what it grants and reports the double.
        let granted = self.ports[0].socket.recv_buffer_size().unwrap_or(0) / 2;
        let asked = self.config.receive_buffer;
        let buffer = if granted < asked {
            format!("{granted} bytes of the {asked} asked (raise net.core.rmem_max)")
        } else {
            format!("{granted} bytes")
        };
        format!(
            "udp on {} {}{}{}, receive buffer {buffer}",
            self.interface.name,
            self.local,
            flag(self.gso, "gso"),
            flag(self.gro, "gro"),
        )
    }

    fn stats(&mut self) -> LinkStats {
        for port in &mut self.ports {
            // Read here and not from ancillary data (SO_RXQ_OVFL): no cost per datagram, and drops
            // show even if nothing arrives after them.
            if let Ok(drops) = sys::drops(port.socket.as_fd()) {
                self.stats.receive_dropped += u64::from(drops.wrapping_sub(port.drops));
                port.drops = drops;
            }
        }
        self.stats
    }
}

/// Datagrams waiting for [`Link::flush`], back to back, so that a run of them is contiguous.
struct SendQueue {
    bytes: Vec<u8>,
    entries: Vec<(SocketAddrV4, usize)>,
    /// Where the next datagram is built.
    end: usize,
    max_payload: usize,
}

impl SendQueue {
    fn new(max_payload: usize) -> Self {
        let mut bytes = vec![0; max_payload * SEND_QUEUE];
        // Backed by memory now, not at the first sends.
        std::hint::black_box(&mut bytes).fill(0);
        SendQueue {
            bytes,
            entries: Vec::with_capacity(SEND_QUEUE),
            end: 0,
            max_payload,
        }
    }

    fn push(&mut self, to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        if self.entries.len() == SEND_QUEUE {
            return false;
        }
        let len = build(&mut self.bytes[self.end..self.end + self.max_payload]).min(self.max_payload);
        if len > 0 {
            self.entries.push((to, len));
            self.end += len;
        }
        true
    }

    /// Forgets the first `gone` datagrams and moves the others to the front.
    fn remove(&mut self, gone: usize) {
        let bytes: usize = self.entries.drain(..gone).map(|(_, len)| len).sum();
        self.bytes.copy_within(bytes..self.end, 0);
        self.end -= bytes;
    }

    /// Cuts the datagrams from `first` on into runs. A run has one destination and one size, but for
    /// its last datagram, which may be shorter.
    fn runs(&self, first: usize, gso: bool, runs: &mut Vec<sys::Run>) {
        runs.clear();
        let mut start = self.entries[..first].iter().map(|(_, len)| len).sum();
        for &(to, len) in &self.entries[first..] {
            let end = start + len;
            match runs.last_mut() {
                Some(run)
                    if gso
                        && run.to == to
                        && run.datagrams < RUN
                        && len <= usize::from(run.segment)
                        && run.bytes.len() == run.datagrams * usize::from(run.segment)
                        && run.bytes.len() + len <= RUN_BYTES =>
                {
                    run.bytes.end = end;
                    run.datagrams += 1;
                }
                _ => runs.push(sys::Run {
                    to,
                    bytes: start..end,
                    datagrams: 1,
                    // At most 65,507: an MTU is at most 65,535.
                    segment: len as u16,
                }),
            }
            start = end;
        }
    }
}

/// Decides which arriving datagrams a [`Fault`] drops.
struct FaultFilter {
    fault: Fault,
    /// `drop_share` of 2^64.
    threshold: u128,
    arrived: u64,
}

impl FaultFilter {
    fn new(fault: Fault) -> Self {
        FaultFilter {
            fault,
            threshold: (fault.drop_share * 2f64.powi(64)) as u128,
            arrived: 0,
        }
    }

    /// The same seed drops the same datagrams, counted from 0 in order of arrival.
    fn drops_next(&mut self) -> bool {
        let index = self.arrived;
        self.arrived += 1;
        let in_burst = index
            .checked_sub(self.fault.burst_at)
            .is_some_and(|n| n < self.fault.burst_len);
        in_burst || (self.threshold > 0 && u128::from(hash(self.fault.seed, index)) < self.threshold)
    }
}

/// SplitMix64 at position `index`.
fn hash(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The interface that the link is bound to.
struct Interface {
    name: String,
    index: u32,
    address: Ipv4Addr,
    mtu: usize,
    loopback: bool,
}

impl Interface {
    /// Finds an interface by name or by one of its addresses.
    fn find(wanted: &str, socket: &Socket) -> io::Result<Self> {
        let all = sys::interfaces()?;
        let missing = |what: String| io::Error::new(io::ErrorKind::NotFound, what);
        let by_address = wanted.parse::<Ipv4Addr>().ok();
        let found = match by_address {
            Some(address) => all.iter().find(|i| i.address == Some(address)).ok_or_else(|| {
                missing(format!(
                    "no interface has the address {address}: see `ip -4 addr` for those of this host"
                ))
            })?,
            None => {
                let mut named = all.iter().filter(|i| i.name == wanted).peekable();
                if named.peek().is_none() {
                    let mut names: Vec<_> = all.iter().map(|i| i.name.as_str()).collect();
                    names.sort_unstable();
                    names.dedup();
                    return Err(missing(format!(
                        "no interface {wanted}: there are {}",
                        names.join(", ")
                    )));
                }
                named.find(|i| i.address.is_some()).ok_or_else(|| {
                    missing(format!(
                        "interface {wanted} has no IPv4 address: give it one with `ip addr add ADDRESS/LENGTH dev {wanted}`"
                    ))
                })?
            }
        };
        let name = found.name.clone();
        if !found.up {
            return Err(io::Error::new(
                io::ErrorKind::NetworkDown,
                format!("interface {name} is down: run `ip link set {name} up`"),
            ));
        }
        let (index, mtu) = sys::index_and_mtu(socket.as_fd(), &name)
            .map_err(|e| named(e, format!("cannot query interface {name}"), ""))?;
        Ok(Interface {
            name,
            index,
            address: found.address.unwrap_or(Ipv4Addr::UNSPECIFIED),
            mtu,
            loopback: found.loopback,
        })
    }
}

fn new_socket() -> io::Result<Socket> {
    Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))
        .map_err(|e| named(e, "cannot open a UDP socket".into(), ""))
}

/// Keeps nothing but the headers of what `own` sends, which the kernel brings back to every member of the
/// group on this host: copying all of it a second time took a third of a sender's time. It cannot be
/// refused altogether, since the kernel counts that as a drop.
fn ignore_own(socket: &Socket, own: SocketAddrV4) -> io::Result<()> {
    const NETWORK_HEADER: u32 = libc::SKF_NET_OFF as u32;
    const SOURCE_ADDRESS: u32 = NETWORK_HEADER + 12;
    const SOURCE_PORT: u32 = 0;
    const WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const KEEP: u32 = libc::BPF_RET | libc::BPF_K;
    const UDP_HEADER: u32 = 8;
    let step = |code: u32, to, or, k| SockFilter::new(code as u16, to, or, k);
    socket.attach_filter(&[
        step(WORD, 0, 0, SOURCE_ADDRESS),
        step(EQUAL, 0, 3, u32::from(*own.ip())),
        step(HALF, 0, 0, SOURCE_PORT),
        step(EQUAL, 0, 1, own.port().into()),
        step(KEEP, 0, 0, UDP_HEADER),
        step(KEEP, 0, 0, u32::MAX),
    ])
}

fn bind(socket: &Socket, address: SocketAddrV4) -> io::Result<()> {
    socket.bind(&SockAddr::from(address)).map_err(|e| {
        let remedy = match e.kind() {
            io::ErrorKind::AddrInUse => ": choose another port, or find its owner with `ss -ulpn`",
            io::ErrorKind::PermissionDenied => {
                ": ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE"
            }
            _ => "",
        };
        named(e, format!("cannot bind UDP {address}"), remedy)
    })
}

/// Asks for a receive buffer, beyond the system's limit if that is permitted. What is in force is
/// told by [`Link::mode`].
fn ask_receive_buffer(socket: &Socket, bytes: usize) {
    let bytes = bytes.min(i32::MAX as usize / 2);
    if sys::force_receive_buffer(socket.as_fd(), bytes as i32).is_err() {
        let _ = socket.set_recv_buffer_size(bytes);
    }
}

fn named(e: io::Error, what: String, remedy: &str) -> io::Error {
    io::Error::new(e.kind(), format!("{what}: {e}{remedy}"))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

/// Nothing to read now; ECONNREFUSED tells of an ICMP answer to something sent.
fn is_transient(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EINTR | libc::ECONNREFUSED))
}

/// The socket or the device takes no more for now.
fn is_full(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM)
    )
}

/// What the kernel answers to a run that it or the device cannot split.
fn refuses_gso(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(libc::EINVAL | libc::EIO | libc::EMSGSIZE | libc::EOPNOTSUPP | libc::ENOPROTOOPT)
    )
}

/// This datagram cannot go: no such neighbour or route, a firewall, an address that is none, an
/// interface that flaps. The protocol repairs it like any other loss.
fn is_lost(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(
            libc::ECONNREFUSED
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::ENETDOWN
                | libc::EADDRNOTAVAIL
                | libc::EPERM
                | libc::EACCES
                | libc::EINVAL
                | libc::EMSGSIZE
        )
    )
}

#[cfg(test)]
mod tests;

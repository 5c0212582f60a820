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

mod config;
mod interface;
mod neighbour;
mod packet;
mod queue;
mod sys;

use std::fmt;
use std::io;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use seqcast_bpf::{Filter, Mode};

use super::{Datagram, Link, LinkStats, check_group, group_mac};
use interface::Interface;
use neighbour::Neighbours;
use queue::{Held, Queue};

pub use config::{Attach, Bind, XdpConfig};
pub use queue::FrameCount;

/// How long a queue may stay busy after its last socket was closed: the kernel frees it later.
const BUSY_FOR: Duration = Duration::from_secs(2);
const BUSY_RETRY: Duration = Duration::from_millis(10);
/// How soon a wait ends when packets are stuck in the transmit ring.
const UNSENT_RETRY: Duration = Duration::from_millis(1);

/// A link over AF_XDP sockets. Belongs to one thread.
///
/// It does not hear what it sends itself, nor what programs on the same host send to its own
/// address: such packets never reach the interface's receive side.
pub struct XdpLink {
    // Dropped in this order: the queues unbind before the filter lets go of the interface.
    queues: Vec<Queue>,
    filter: Filter,
    kernel: UdpSocket,
    local: SocketAddrV4,
    mac: [u8; 6],
    ttl: u8,
    max_payload: usize,
    index: u32,
    /// What the filter lets through: our own address first, then the groups.
    wanted: Vec<SocketAddrV4>,
    neighbours: Neighbours,
    /// Seconds, as of the last batch, flush or wait.
    now: u32,
    /// The queue that is asked first: they take turns.
    turn: usize,
    scratch: Box<[u8]>,
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
        config.check()?;
        let interface = Interface::read(&config.interface)?;
        check_fit(config, &interface)?;
        let kernel = open_kernel_socket(&interface, config)?;
        let local = match kernel.local_addr()? {
            SocketAddr::V4(local) => local,
            SocketAddr::V6(local) => return Err(io::Error::other(format!("bound to {local}"))),
        };

        let highest = config.queues.iter().max().copied().unwrap_or(0);
        let mut filter = Filter::load(&fault(config), highest + 1)?;
        filter.add(local)?;
        let (mode, no_driver) = attach(&mut filter, &interface, config.attach)?;
        let (mut queues, no_zero_copy) = bind(config, mode)?;
        for queue in &mut queues {
            queue.fill()?;
        }

        let max_payload = interface.mtu as usize - packet::IP_UDP;
        let poll = vec![pollfd(-1); queues.len() + 1].into();
        let link = XdpLink {
            mode: describe(&interface.name, mode, &queues, &[no_driver, no_zero_copy]),
            queues,
            filter,
            kernel,
            local,
            mac: interface.mac,
            ttl: config.ttl,
            max_payload,
            index: interface.index,
            wanted: vec![local],
            neighbours: Neighbours::new(),
            now: sys::seconds(),
            turn: 0,
            scratch: vec![0; max_payload].into(),
            poll,
            stats: LinkStats::default(),
        };
        // Last, so that what arrives finds all of it ready. From here on `drop` undoes it.
        for queue in &link.queues {
            link.filter.insert_socket(queue.id(), queue.socket())?;
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
    pub fn filter_counters(&self) -> io::Result<seqcast_bpf::Counters> {
        Ok(self.filter.counters()?)
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
}

impl Drop for XdpLink {
    fn drop(&mut self) {
        // Hands the traffic back to the kernel before the sockets go. A socket that never got into the map is no
        // matter, and the filter goes next in any case.
        for queue in &self.queues {
            let _ = self.filter.remove_socket(queue.id());
        }
    }
}

impl Link for XdpLink {
    type Frame = XdpFrame;

    #[inline]
    fn receive(&mut self, max: usize, mut each: impl FnMut(Datagram<XdpFrame>)) -> io::Result<usize> {
        let stats = &mut self.stats;
        let queues = self.queues.len();
        let mut handed = 0;
        // Most batches are from one sender: it is noted, and the clock read, once.
        let mut noted = None;
        self.turn = (self.turn + 1) % queues;
        for i in 0..queues {
            let queue = &mut self.queues[(self.turn + i) % queues];
            let mut malformed = 0;
            queue.receive(max - handed, &mut malformed, |held| {
                let received = packet::parse(held.packet()).filter(|received| self.wanted.contains(&received.to));
                let Some(received) = received else {
                    stats.malformed += 1;
                    return;
                };
                let neighbour = (*received.from.ip(), received.mac);
                if !received.tagged && noted != Some(neighbour) {
                    if noted.is_none() {
                        self.now = sys::seconds();
                    }
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
            stats.malformed += malformed;
            queue.fill()?;
        }
        Ok(handed)
    }

    #[inline]
    fn send(&mut self, to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let destination_mac = if to.ip().is_multicast() {
            group_mac(*to.ip())
        } else if let Some(mac) = self.neighbours.find(*to.ip(), self.now) {
            mac
        } else {
            return self.send_by_kernel(to, build);
        };
        let (macs, from, ttl, max) = ((self.mac, destination_mac), self.local, self.ttl, self.max_payload);
        let sent = self.queues[0].send(|frame| {
            let payload = build(&mut frame[packet::HEADERS..packet::HEADERS + max]).min(max);
            if payload == 0 {
                return 0;
            }
            packet::write(frame, macs, from, to, ttl, payload);
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
        if self.queues[0].has_unsent() {
            self.now = sys::seconds();
        }
        self.queues[0].flush()
    }

    fn join(&mut self, group: SocketAddrV4) -> io::Result<()> {
        check_group(group)?;
        if self.wanted.contains(&group) {
            return Ok(());
        }
        if !self.wanted[1..].iter().any(|joined| joined.ip() == group.ip()) {
            let on = socket2::InterfaceIndexOrAddress::Index(self.index);
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
        self.filter.add(group)?;
        self.wanted.push(group);
        Ok(())
    }

    fn wait(&mut self, wake: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
        let (last, first) = self
            .poll
            .split_last_mut()
            .expect("holds one more than there are queues");
        *last = pollfd(wake.as_raw_fd());
        for (entry, queue) in first.iter_mut().zip(&self.queues) {
            *entry = pollfd(queue.raw_fd());
        }
        let timeout = if self.queues[0].has_unsent() {
            timeout.min(UNSENT_RETRY)
        } else {
            timeout
        };
        self.stats.syscalls += 1;
        sys::poll(&mut self.poll, timeout)?;
        self.now = sys::seconds();
        Ok(())
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
        if let Ok(counters) = self.filter.counters() {
            stats.fault_dropped = counters.fault_dropped;
        }
        stats
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

fn pollfd(fd: i32) -> libc::pollfd {
    libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    }
}

fn fault(config: &XdpConfig) -> seqcast_bpf::Fault {
    seqcast_bpf::Fault {
        drop_below: (config.fault.drop_share * (1u64 << 32) as f64) as u64,
        burst_at: config.fault.burst_at,
        burst_len: config.fault.burst_len,
        seed: config.fault.seed,
    }
}

fn check_fit(config: &XdpConfig, interface: &Interface) -> io::Result<()> {
    let Interface { name, mtu, queues, .. } = interface;
    let room = config.frame_size - HEADROOM;
    if mtu + packet::LINK_OVERHEAD > room {
        let larger = if config.frame_size < 4096 {
            "use frame_size = 4096 or "
        } else {
            ""
        };
        return Err(invalid(format!(
            "frames of {} bytes hold an MTU of up to {}, and {name} has {mtu}; {larger}`ip link set dev {name} mtu {}`",
            config.frame_size,
            room - packet::LINK_OVERHEAD,
            room - packet::LINK_OVERHEAD
        )));
    }
    if let Some(queue) = config.queues.iter().find(|queue| *queue >= queues) {
        return Err(invalid(format!(
            "{name} has no receive queue {queue}; it has {queues}, from 0 (`ethtool -l {name}`)"
        )));
    }
    if config.queues.len() < *queues as usize {
        let all: Vec<u32> = (0..*queues).collect();
        return Err(invalid(format!(
            "{name} spreads what arrives over {queues} receive queues, and only {:?} would be served; `ethtool -L \
             {name} combined {}`, or queues = {all:?}",
            config.queues,
            config.queues.len()
        )));
    }
    Ok(())
}

/// What the kernel keeps free in front of each received packet.
const HEADROOM: u32 = 256;

fn open_kernel_socket(interface: &Interface, config: &XdpConfig) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    let address = SocketAddrV4::new(interface.address, config.port);
    socket
        .bind(&address.into())
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EADDRINUSE) => {
                let message = format!("UDP {address} is taken by another program; choose another port, or 0 for any");
                io::Error::new(io::ErrorKind::AddrInUse, message)
            }
            _ => io::Error::new(error.kind(), format!("cannot bind UDP {address}: {error}")),
        })?;
    socket.bind_device(Some(interface.name.as_bytes()))?;
    socket.set_ttl_v4(config.ttl.into())?;
    socket.set_multicast_all_v4(false)?;
    sys::set_do_not_fragment(socket.as_fd())?;
    socket.set_nonblocking(true)?;
    // Nobody reads it: what the filter leaves to the kernel shall not pile up. The kernel's least is 2 KiB.
    socket.set_recv_buffer_size(0)?;
    Ok(socket.into())
}

/// Attaches the filter; returns the mode, and why it is not driver mode if that was tried.
fn attach(filter: &mut Filter, interface: &Interface, wanted: Attach) -> io::Result<(Mode, Option<String>)> {
    let on = seqcast_bpf::Interface {
        name: &interface.name,
        index: interface.index,
        mtu: interface.mtu,
    };
    let refused = match wanted {
        Attach::Generic => None,
        Attach::Driver | Attach::Auto => match filter.attach(&on, Mode::Driver) {
            Ok(()) => return Ok((Mode::Driver, None)),
            Err(seqcast_bpf::Error::DriverMode { source, .. }) if wanted == Attach::Auto => {
                Some(format!("driver mode refused: {source}"))
            }
            Err(error) => return Err(error.into()),
        },
    };
    filter.attach(&on, Mode::Generic)?;
    Ok((Mode::Generic, refused))
}

/// Binds all queues in one mode; returns them, and why it is not zero-copy if that was tried.
fn bind(config: &XdpConfig, mode: Mode) -> io::Result<(Vec<Queue>, Option<String>)> {
    let refused = match config.bind {
        Bind::Auto if mode == Mode::Driver => match bind_all(config, true) {
            Ok(queues) => return Ok((queues, None)),
            Err(error) => match error.raw_os_error() {
                Some(libc::EPERM | libc::EBUSY | libc::ENOBUFS | libc::ENOMEM) => return Err(explain(config, error)),
                _ => Some(format!("zero-copy refused: {error}")),
            },
        },
        Bind::Auto | Bind::Copy => None,
        Bind::ZeroCopy => return Ok((bind_all(config, true).map_err(|error| explain(config, error))?, None)),
    };
    Ok((
        bind_all(config, false).map_err(|error| explain(config, error))?,
        refused,
    ))
}

fn bind_all(config: &XdpConfig, zero_copy: bool) -> io::Result<Vec<Queue>> {
    let give_up = Instant::now() + BUSY_FOR;
    let mut queues = Vec::with_capacity(config.queues.len());
    for (i, &id) in config.queues.iter().enumerate() {
        let queue = loop {
            match Queue::open(config, id, i == 0, zero_copy) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < give_up => {
                    thread::sleep(BUSY_RETRY);
                }
                other => break other?,
            }
        };
        if queue.is_zero_copy() != zero_copy {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        queues.push(queue);
    }
    Ok(queues)
}

/// Says what a refused bind means and what helps.
fn explain(config: &XdpConfig, error: io::Error) -> io::Error {
    let interface = &config.interface;
    let (kind, remedy) = match error.raw_os_error() {
        Some(libc::EPERM) => (
            io::ErrorKind::PermissionDenied,
            "needs CAP_NET_RAW; run as root, or `setcap cap_bpf,cap_net_admin,cap_net_raw+ep PROGRAM`".into(),
        ),
        Some(libc::EBUSY) => (
            io::ErrorKind::ResourceBusy,
            format!(
                "one of its queues {:?} belongs to another AF_XDP socket; stop that program",
                config.queues
            ),
        ),
        Some(libc::ENOBUFS | libc::ENOMEM) => (
            io::ErrorKind::OutOfMemory,
            format!(
                "no memory for {} frames of {} bytes per queue; raise the locked-memory limit (`ulimit -l unlimited`, \
                 LimitMEMLOCK=infinity), grant cap_ipc_lock, or lower frames",
                config.frames, config.frame_size
            ),
        ),
        Some(libc::EOPNOTSUPP | libc::EINVAL) if config.bind == Bind::ZeroCopy => (
            io::ErrorKind::Unsupported,
            "no zero-copy with this driver and these settings; use bind = auto or copy".into(),
        ),
        _ => (error.kind(), "see the kernel's log (`dmesg`)".into()),
    };
    io::Error::new(
        kind,
        format!("cannot bind AF_XDP sockets to {interface}: {error}: {remedy}"),
    )
}

fn describe(name: &str, mode: Mode, queues: &[Queue], refused: &[Option<String>]) -> String {
    let copy = if queues.iter().all(Queue::is_zero_copy) {
        "zero-copy"
    } else {
        "copy"
    };
    let ids: Vec<String> = queues.iter().map(|queue| queue.id().to_string()).collect();
    let plural = if ids.len() == 1 { "" } else { "s" };
    let refused: Vec<&str> = refused.iter().flatten().map(String::as_str).collect();
    let why = if refused.is_empty() {
        String::new()
    } else {
        format!(" ({})", refused.join("; "))
    };
    format!("xdp {mode} {copy} queue{plural} {} of {name}{why}", ids.join(","))
}

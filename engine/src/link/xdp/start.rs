//! The steps of opening a link, in order, and what each refusal means.

use std::io;
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use seqcast_bpf::{Filter, Mode};

use super::config::XdpConfig;
use super::interface::Interface;
use super::queue::Queue;
use super::{Attach, Bind, invalid, packet, sys};

/// What the kernel keeps free in front of each received packet, in bytes.
const HEADROOM: u32 = 256;
/// How long a queue may stay busy after its last socket was closed: the kernel frees it later.
const BUSY_FOR: Duration = Duration::from_secs(2);
/// How long a port may stay taken after its socket was closed: a child that is being started has
/// copies of all descriptors for a moment.
const PORT_BUSY_FOR: Duration = Duration::from_millis(200);
/// Bytes of IP packet that the protocol's control frames may fill, as every IPv4 host must take.
const LEAST_MTU: usize = 576;
/// How long the frames of a refused bind may count as locked memory: the kernel lets go of them later.
const FREED_WITHIN: Duration = Duration::from_millis(500);
const RETRY_EVERY: Duration = Duration::from_millis(10);

/// The configured losses, as the filter takes them.
pub(super) fn fault(config: &XdpConfig) -> seqcast_bpf::Fault {
    seqcast_bpf::Fault {
        drop_below: (config.fault.drop_share * (1u64 << 32) as f64) as u64,
        burst_at: config.fault.burst_at,
        burst_len: config.fault.burst_len,
        seed: config.fault.seed,
    }
}

/// The largest IP packet to send, in bytes.
pub(super) fn packet_limit(config: &XdpConfig, interface: &Interface) -> io::Result<usize> {
    let most = interface.mtu as usize;
    if most < LEAST_MTU {
        return Err(invalid(format!(
            "{} has an MTU of {most}, and {LEAST_MTU} are needed; run `ip link set dev {} mtu 1500`",
            interface.name, interface.name
        )));
    }
    match config.mtu {
        None => Ok(most),
        Some(mtu) if (LEAST_MTU..=most).contains(&mtu) => Ok(mtu),
        Some(mtu) => Err(invalid(format!(
            "MTU {mtu} is outside {LEAST_MTU} to {most}, the MTU of {}; change one of the two",
            interface.name
        ))),
    }
}

/// Checks that a packet fits a frame, and that every receive queue is served: `served` are those of all
/// links that share the interface.
pub(super) fn check_fit(config: &XdpConfig, served: &[u32], interface: &Interface) -> io::Result<()> {
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
    if served.len() < *queues as usize {
        let all: Vec<u32> = (0..*queues).collect();
        return Err(invalid(format!(
            "{name} spreads what arrives over {queues} receive queues, and only {served:?} would be served; `ethtool \
             -L {name} combined {}`, or queues = {all:?}",
            served.len()
        )));
    }
    Ok(())
}

/// Opens the UDP socket that joins groups and finds neighbours; returns it with the link's address.
pub(super) fn open_kernel_socket(interface: &Interface, config: &XdpConfig) -> io::Result<(UdpSocket, SocketAddrV4)> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    let address = SocketAddrV4::new(interface.address, config.port);
    let bound = retry(libc::EADDRINUSE, PORT_BUSY_FOR, || socket.bind(&address.into()));
    bound.map_err(|error| match error.raw_os_error() {
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
    let socket = UdpSocket::from(socket);
    let port = socket.local_addr()?.port();
    Ok((socket, SocketAddrV4::new(interface.address, port)))
}

/// Attaches the filter; returns the mode, and why it is not driver mode if that was tried.
pub(super) fn attach(filter: &mut Filter, interface: &Interface, wanted: Attach) -> io::Result<(Mode, Option<String>)> {
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

/// Binds all queues in one mode; returns them, and what of the configuration is not in force.
pub(super) fn bind(config: &XdpConfig, mtu: u32, mode: Mode) -> io::Result<(Vec<Queue>, Option<String>)> {
    let refused = match config.bind {
        Bind::Copy => None,
        Bind::Auto if mode == Mode::Generic => None,
        Bind::Auto | Bind::ZeroCopy => match bind_zero_copy(config, mtu) {
            Ok(bound) => return Ok(bound),
            Err(error) => match error.raw_os_error() {
                Some(libc::EPERM | libc::EBUSY) => return Err(explain(config, error)),
                _ if config.bind == Bind::ZeroCopy => return Err(explain(config, error)),
                _ => Some(format!("zero-copy refused: {error}")),
            },
        },
    };
    let limit = if refused.is_some() {
        FREED_WITHIN
    } else {
        Duration::ZERO
    };
    let bound = retry(libc::ENOBUFS, limit, || bind_all(config, false));
    Ok((bound.map_err(|error| explain(config, error))?, refused))
}

fn bind_zero_copy(config: &XdpConfig, mtu: u32) -> io::Result<(Vec<Queue>, Option<String>)> {
    let frame_size = zero_copy_frame_size(config.frame_size, mtu)?;
    let enlarged = XdpConfig {
        frame_size,
        ..config.clone()
    };
    let note = (frame_size != config.frame_size).then(|| format!("frames of {frame_size} bytes for zero-copy"));
    Ok((bind_all(&enlarged, true)?, note))
}

/// The least size of a frame, at least `configured`, into which every driver receives all packets
/// that the MTU allows.
///
/// Some (igb, ixgbe) tell the NIC how much a frame holds in whole KiB. What is larger arrives in
/// pieces, which they drop without counting.
fn zero_copy_frame_size(configured: u32, mtu: u32) -> io::Result<u32> {
    let holds = |size: u32| (size - HEADROOM) / 1024 * 1024 - packet::LINK_OVERHEAD;
    match [configured, 4096].into_iter().find(|size| mtu <= holds(*size)) {
        Some(size) => Ok(size),
        None => Err(invalid(format!(
            "zero-copy takes an MTU of up to {}, and it is {mtu}",
            holds(4096)
        ))),
    }
}

fn bind_all(config: &XdpConfig, zero_copy: bool) -> io::Result<Vec<Queue>> {
    let mut queues = Vec::with_capacity(config.queues.len());
    for (i, &id) in config.queues.iter().enumerate() {
        let queue = retry(libc::EBUSY, BUSY_FOR, || Queue::open(config, id, i == 0, zero_copy))?;
        if queue.is_zero_copy() != zero_copy {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        queues.push(queue);
    }
    Ok(queues)
}

/// Tries again while the kernel answers with `code`, for a while.
fn retry<T>(code: i32, limit: Duration, mut what: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let until = Instant::now() + limit;
    loop {
        match what() {
            Err(error) if error.raw_os_error() == Some(code) && Instant::now() < until => thread::sleep(RETRY_EVERY),
            result => return result,
        }
    }
}

/// Says what a refused bind means and what helps.
fn explain(config: &XdpConfig, error: io::Error) -> io::Error {
    let interface = &config.interface;
    let (kind, remedy) = match error.raw_os_error() {
        None if error.kind() == io::ErrorKind::InvalidInput => {
            (error.kind(), "lower the MTU, or use bind = auto or copy".into())
        }
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

/// The modes in force, and what of the configuration is not.
pub(super) fn describe(name: &str, mode: Mode, queues: &[Queue], notes: &[Option<String>]) -> String {
    let copy = if queues.iter().all(Queue::is_zero_copy) {
        "zero-copy"
    } else {
        "copy"
    };
    let ids: Vec<String> = queues.iter().map(|queue| queue.id().to_string()).collect();
    let plural = if ids.len() == 1 { "" } else { "s" };
    let notes: Vec<&str> = notes.iter().flatten().map(String::as_str).collect();
    let notes = if notes.is_empty() {
        String::new()
    } else {
        format!(" ({})", notes.join("; "))
    };
    format!("xdp {mode} {copy} queue{plural} {} of {name}{notes}", ids.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_copy_frames_hold_the_mtu_in_whole_kib() {
        for (configured, mtu, size) in [
            (2048, 1002, 2048),
            (2048, 1003, 4096),
            (2048, 1500, 4096),
            (4096, 576, 4096),
            (4096, 3050, 4096),
        ] {
            assert_eq!(zero_copy_frame_size(configured, mtu).unwrap(), size, "MTU {mtu}");
        }
        let refused = zero_copy_frame_size(4096, 3051).unwrap_err().to_string();
        assert!(refused.contains("up to 3050"), "{refused}");
    }
}

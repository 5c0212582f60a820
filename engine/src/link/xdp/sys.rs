//! The system calls that no library in the tree wraps.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use libc::c_int;

/// What the kernel tells of an interface.
#[derive(Clone, Copy)]
pub(super) enum Ask {
    Index,
    Flags,
    Mtu,
    Hardware,
    Address,
}

fn check(result: c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Asks for one fact of interface `name`, in the network namespace of `socket`, and hands the
/// answer to `read`, which may only touch the field that belongs to `ask`.
fn interface<T>(
    socket: BorrowedFd<'_>,
    name: &str,
    ask: Ask,
    read: impl FnOnce(&libc::__c_anonymous_ifr_ifru) -> T,
) -> io::Result<T> {
    let mut request = empty_request(name)?;
    let code = match ask {
        Ask::Index => libc::SIOCGIFINDEX,
        Ask::Flags => libc::SIOCGIFFLAGS,
        Ask::Mtu => libc::SIOCGIFMTU,
        Ask::Hardware => libc::SIOCGIFHWADDR,
        Ask::Address => libc::SIOCGIFADDR,
    };
    // SAFETY: all of these requests read and write one `ifreq`, which is live and exclusively ours.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), code, &raw mut request) })?;
    Ok(read(&request.ifr_ifru))
}

fn empty_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain data of integers and a pointer, for which all zero bits are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains('\0') {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// The index of interface `name`.
pub(super) fn index(socket: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    // SAFETY: the request fills `ifru_ifindex`; in any case the union is all integers, initialised.
    interface(socket, name, Ask::Index, |answer| unsafe { answer.ifru_ifindex } as u32)
}

/// The flags (`IFF_*`) of interface `name`.
pub(super) fn flags(socket: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    // SAFETY: as in `index`.
    interface(socket, name, Ask::Flags, |answer| unsafe { answer.ifru_flags } as u16
        as u32)
}

/// The MTU of interface `name`, in bytes.
pub(super) fn mtu(socket: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    // SAFETY: as in `index`.
    interface(socket, name, Ask::Mtu, |answer| unsafe { answer.ifru_mtu } as u32)
}

/// The hardware type (`ARPHRD_*`) and address of interface `name`.
pub(super) fn hardware(socket: BorrowedFd<'_>, name: &str) -> io::Result<(u16, [u8; 6])> {
    interface(socket, name, Ask::Hardware, |answer| {
        // SAFETY: as in `index`.
        let address = unsafe { answer.ifru_hwaddr };
        let mut mac = [0; 6];
        for (to, from) in mac.iter_mut().zip(address.sa_data) {
            *to = from as u8;
        }
        (address.sa_family, mac)
    })
}

/// The primary IPv4 address of interface `name`.
pub(super) fn address(socket: BorrowedFd<'_>, name: &str) -> io::Result<std::net::Ipv4Addr> {
    interface(socket, name, Ask::Address, |answer| {
        // SAFETY: as in `index`. A `sockaddr_in` holds two bytes of port, then the address.
        let [_, _, a, b, c, d, ..] = unsafe { answer.ifru_addr }.sa_data.map(|byte| byte as u8);
        std::net::Ipv4Addr::new(a, b, c, d)
    })
}

/// How many receive queues the driver of interface `name` says it uses.
pub(super) fn receive_queues(socket: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    /// `struct ethtool_channels`.
    #[repr(C)]
    #[derive(Default)]
    struct Channels {
        command: u32,
        max_rx: u32,
        max_tx: u32,
        max_other: u32,
        max_combined: u32,
        rx: u32,
        tx: u32,
        other: u32,
        combined: u32,
    }
    const ETHTOOL_GCHANNELS: u32 = 0x3c;
    let mut channels = Channels {
        command: ETHTOOL_GCHANNELS,
        ..Channels::default()
    };
    let mut request = empty_request(name)?;
    request.ifr_ifru.ifru_data = (&raw mut channels).cast();
    // SAFETY: the request reads one `ifreq` and fills the `ethtool_channels` that it points to; both live on.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) })?;
    Ok(channels.rx + channels.combined)
}

/// Sets an option whose value is an `int` or a `u32`.
fn set_option(fd: RawFd, level: c_int, option: c_int, value: u32) -> io::Result<()> {
    let length = size_of::<u32>() as libc::socklen_t;
    // SAFETY: `value` is live and of the length given.
    check(unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), length) })
}

/// Whether an AF_XDP socket got zero-copy, as the kernel says.
pub(super) fn is_zero_copy(socket: RawFd) -> io::Result<bool> {
    let mut options = 0u32;
    let mut length = size_of::<u32>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, the size of `options` (`struct xdp_options` is one u32).
    let result = unsafe {
        let value = (&raw mut options).cast();
        libc::getsockopt(socket, libc::SOL_XDP, libc::XDP_OPTIONS, value, &raw mut length)
    };
    check(result)?;
    Ok(options & libc::XDP_OPTIONS_ZEROCOPY != 0)
}

/// Lets one kick of an AF_XDP socket in copy mode send up to `frames`. Without it, and on kernels
/// that do not know it, 32.
pub(super) fn set_transmit_budget(socket: RawFd, frames: u32) -> io::Result<()> {
    const XDP_MAX_TX_SKB_BUDGET: c_int = 9;
    set_option(socket, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, frames)
}

/// Sets a socket's send buffer past the system's limit (CAP_NET_ADMIN), or else up to it.
pub(super) fn set_send_buffer(socket: RawFd, bytes: u32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes)
        .or_else(|_| set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, bytes))
}

/// Never fragments what a UDP socket sends, whatever path MTU the kernel believes in.
pub(super) fn set_do_not_fragment(socket: BorrowedFd<'_>) -> io::Result<()> {
    let never = libc::IP_PMTUDISC_PROBE as u32;
    set_option(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, never)
}

/// Keeps a descriptor from programs that this process starts.
pub(super) fn set_close_on_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: sets a flag of a descriptor; no memory is involved.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })
}

/// Borrows the descriptor of an AF_XDP socket from the ring that keeps it open.
pub(super) fn borrow(ring: &xsk_rs::RxQueue) -> BorrowedFd<'_> {
    // SAFETY: the queue holds its socket open for as long as it is borrowed.
    unsafe { BorrowedFd::borrow_raw(ring.fd().as_raw_fd()) }
}

/// Seconds on a clock that never goes back. Costs a few ns, as it reads the last timer tick.
pub(super) fn seconds() -> u32 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills `now`; the clock exists since Linux 2.6.32, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) };
    now.tv_sec as u32
}

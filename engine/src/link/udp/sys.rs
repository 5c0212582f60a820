//! The system calls that `socket2` has not got, as safe functions. All unsafe code of this link.

use std::ffi::CStr;
use std::io;
use std::mem::{self, size_of};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::rc::Rc;

use libc::{c_int, c_void, iovec, mmsghdr, sockaddr_in, socklen_t};

use super::frame::{Buffer, Pool};

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

pub(super) fn set_option<T: Copy>(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as socklen_t;
    // SAFETY: the kernel reads `len` bytes at `value`, all of them its own.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, ptr::from_ref(value).cast(), len) }).map(drop)
}

/// Lets one receive return a run of datagrams of one size from one sender.
pub(super) fn enable_gro(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option::<c_int>(fd, libc::SOL_UDP, libc::UDP_GRO, &1)
}

/// Whether the kernel knows UDP_SEGMENT; the device decides at the first send.
pub(super) fn knows_gso(fd: BorrowedFd<'_>) -> bool {
    set_option::<c_int>(fd, libc::SOL_UDP, libc::UDP_SEGMENT, &0).is_ok()
}

/// Sets the receive buffer beyond `net.core.rmem_max`; needs CAP_NET_ADMIN.
pub(super) fn force_receive_buffer(fd: BorrowedFd<'_>, bytes: c_int) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &bytes)
}

/// Multicast sent by the socket leaves through this interface, with this source address.
pub(super) fn set_multicast_interface(fd: BorrowedFd<'_>, address: Ipv4Addr, index: u32) -> io::Result<()> {
    let request = libc::ip_mreqn {
        imr_multiaddr: libc::in_addr { s_addr: 0 },
        imr_address: to_in_addr(address),
        imr_ifindex: index as c_int,
    };
    set_option(fd, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &request)
}

/// Datagrams that the kernel dropped at this socket since it was made, modulo 2^32.
pub(super) fn drops(fd: BorrowedFd<'_>) -> io::Result<u32> {
    const SO_MEMINFO: c_int = 55;
    const SK_MEMINFO_DROPS: usize = 8;
    let mut info = [0u32; SK_MEMINFO_DROPS + 1];
    let mut len = size_of_val(&info) as socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `info`, which any bytes make valid.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    check(result).map(|_| info[SK_MEMINFO_DROPS])
}

/// One of the addresses of a network interface, or an interface without any.
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) address: Option<Ipv4Addr>,
    pub(super) up: bool,
    pub(super) loopback: bool,
}

/// All network interfaces of this namespace, once for each IPv4 address and once without one.
pub(super) fn interfaces() -> io::Result<Vec<Interface>> {
    let mut first = ptr::null_mut();
    // SAFETY: on success `first` is the head of a list that is ours until freed below.
    check(unsafe { libc::getifaddrs(&raw mut first) })?;
    let mut found = Vec::new();
    let mut next = first;
    // SAFETY: the entries form a list that ends with null and lives until freeifaddrs; names are C
    // strings, and an address of family AF_INET is a sockaddr_in (read unaligned, to be sure).
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        // SAFETY: as above.
        let (name, address) = unsafe {
            let name = CStr::from_ptr(entry.ifa_name).to_string_lossy().into_owned();
            let ipv4 = entry
                .ifa_addr
                .as_ref()
                .is_some_and(|a| c_int::from(a.sa_family) == libc::AF_INET);
            let address = ipv4.then(|| from_in_addr(entry.ifa_addr.cast::<sockaddr_in>().read_unaligned().sin_addr));
            (name, address)
        };
        let flag = |flag: c_int| entry.ifa_flags & flag as u32 != 0;
        found.push(Interface {
            name,
            address,
            up: flag(libc::IFF_UP),
            loopback: flag(libc::IFF_LOOPBACK),
        });
    }
    // SAFETY: the list is freed once and no entry is used any more.
    unsafe { libc::freeifaddrs(first) };
    Ok(found)
}

/// The index and the MTU of an interface.
pub(super) fn index_and_mtu(fd: BorrowedFd<'_>, name: &str) -> io::Result<(u32, usize)> {
    // SAFETY: ifreq is plain data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: both requests take an ifreq, whose name ends with a zero, and fill the integer that is
    // then read.
    unsafe {
        check(libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFINDEX as _, &raw mut request))?;
        let index = request.ifr_ifru.ifru_ifindex as u32;
        check(libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFMTU as _, &raw mut request))?;
        Ok((index, request.ifr_ifru.ifru_mtu as usize))
    }
}

/// Room for one control message with an integer.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 24]);

/// What `recvmmsg` and `sendmmsg` need beside the payloads, allocated once.
struct Arrays {
    headers: Box<[mmsghdr]>,
    vectors: Box<[iovec]>,
    names: Box<[sockaddr_in]>,
    controls: Box<[Control]>,
}

impl Arrays {
    fn new(len: usize) -> Self {
        // SAFETY: all are plain data, for which zeroes (null pointers of length 0) are valid.
        unsafe {
            Arrays {
                headers: vec![mem::zeroed(); len].into(),
                vectors: vec![mem::zeroed(); len].into(),
                names: vec![mem::zeroed(); len].into(),
                controls: vec![mem::zeroed(); len].into(),
            }
        }
    }

    fn len(&self) -> usize {
        self.headers.len()
    }

    /// Points header `i` at its vector, name and `control` bytes of its control.
    fn link(&mut self, i: usize, control: usize) {
        let header = &mut self.headers[i].msg_hdr;
        header.msg_name = (&raw mut self.names[i]).cast();
        header.msg_namelen = size_of::<sockaddr_in>() as socklen_t;
        header.msg_iov = &raw mut self.vectors[i];
        header.msg_iovlen = 1;
        header.msg_control = if control == 0 {
            ptr::null_mut()
        } else {
            (&raw mut self.controls[i]).cast()
        };
        header.msg_controllen = control as _;
        header.msg_flags = 0;
    }
}

/// One buffer that the kernel filled.
#[derive(Clone, Copy)]
pub(super) struct Received {
    pub(super) from: SocketAddrV4,
    /// Bytes in the buffer.
    pub(super) len: usize,
    /// The size of each datagram in the buffer but the last; `len` when there is one only.
    pub(super) segment: usize,
    /// The datagram did not fit the buffer.
    pub(super) truncated: bool,
}

/// Receives several datagrams with one system call, each into the buffer of a slot.
pub(super) struct ReceiveBatch {
    arrays: Arrays,
    /// What the vectors point at, and nobody else: a vector without a buffer is of length 0.
    slots: Box<[Option<Buffer>]>,
}

impl ReceiveBatch {
    pub(super) fn new(len: usize) -> Self {
        ReceiveBatch {
            arrays: Arrays::new(len),
            slots: vec![None; len].into(),
        }
    }

    /// Puts free buffers into the first `want` slots, and returns how many have one.
    pub(super) fn prepare(&mut self, want: usize, pool: &Pool) -> usize {
        for i in 0..want {
            if self.slots[i].is_none() {
                // The slots behind may hold the last free buffers.
                let buffer = pool
                    .take()
                    .or_else(|| (i + 1..self.slots.len()).find_map(|behind| self.take(behind)));
                let Some(buffer) = buffer else { return i };
                self.put(i, buffer);
            }
        }
        want
    }

    fn put(&mut self, i: usize, mut buffer: Buffer) {
        let bytes = Rc::get_mut(&mut buffer).expect("a free buffer has one owner");
        self.arrays.vectors[i] = iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        self.arrays.link(i, size_of::<Control>());
        self.slots[i] = Some(buffer);
    }

    /// Takes the buffer out of a slot.
    pub(super) fn take(&mut self, i: usize) -> Option<Buffer> {
        self.arrays.vectors[i].iov_len = 0;
        self.slots[i].take()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    /// Fills the buffers of the first `n` slots in turn, one with each datagram or run; returns how many,
    /// whose buffers are then to be taken out. Does not block.
    pub(super) fn receive(&mut self, fd: BorrowedFd<'_>, n: usize) -> io::Result<usize> {
        let headers = &mut self.arrays.headers[..n];
        // SAFETY: the headers point into the arrays, which are not moved or touched during the call, and
        // at buffers that the slots own alone, or at nothing.
        let result = unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                headers.as_mut_ptr(),
                headers.len() as _,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        check(result).map(|n| n as usize).inspect_err(|_| {
            // Nobody promises that a call that brings nothing leaves the header that it looked at alone.
            if n > 0 {
                self.arrays.link(0, size_of::<Control>());
            }
        })
    }

    /// What the last call put into slot `i`, which must be below its result.
    pub(super) fn received(&self, i: usize) -> Received {
        let header = &self.arrays.headers[i];
        let name = &self.arrays.names[i];
        let len = header.msg_len as usize;
        let mut segment = len;
        // SAFETY: the control pointer and length are those that `receive` set and the kernel then
        // shortened; CMSG_FIRSTHDR checks that a header fits, the length that the integer does.
        unsafe {
            let control = libc::CMSG_FIRSTHDR(&raw const header.msg_hdr);
            if !control.is_null()
                && (*control).cmsg_level == libc::SOL_UDP
                && (*control).cmsg_type == libc::UDP_GRO
                && (*control).cmsg_len as usize >= libc::CMSG_LEN(size_of::<c_int>() as u32) as usize
            {
                segment = libc::CMSG_DATA(control).cast::<c_int>().read_unaligned() as usize;
            }
        }
        Received {
            from: SocketAddrV4::new(from_in_addr(name.sin_addr), u16::from_be(name.sin_port)),
            len,
            segment: segment.clamp(1, len.max(1)),
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        }
    }
}

/// Consecutive datagrams to one destination that leave with one header.
#[derive(Clone)]
pub(super) struct Run {
    pub(super) to: SocketAddrV4,
    /// Where its bytes lie in the transmit buffer.
    pub(super) bytes: Range<usize>,
    /// How many datagrams; above 1 all but the last are `segment` bytes long.
    pub(super) datagrams: usize,
    pub(super) segment: u16,
}

/// Sends several runs with one system call.
pub(super) struct SendBatch(Arrays);

impl SendBatch {
    pub(super) fn new(len: usize) -> Self {
        SendBatch(Arrays::new(len))
    }

    /// Sends the first of `runs`, whose bytes lie in `buffer`; returns how many. Does not block. An
    /// error is about the first run.
    pub(super) fn send(&mut self, fd: BorrowedFd<'_>, runs: &[Run], buffer: &[u8]) -> io::Result<usize> {
        let runs = &runs[..runs.len().min(self.0.len())];
        for (i, run) in runs.iter().enumerate() {
            let bytes = &buffer[run.bytes.clone()];
            self.0.vectors[i] = iovec {
                iov_base: bytes.as_ptr().cast_mut().cast::<c_void>(),
                iov_len: bytes.len(),
            };
            self.0.names[i] = sockaddr_in {
                sin_family: libc::AF_INET as _,
                sin_port: run.to.port().to_be(),
                sin_addr: to_in_addr(*run.to.ip()),
                sin_zero: [0; 8],
            };
            if run.datagrams > 1 {
                // SAFETY: takes no pointers.
                let (space, len) = unsafe { (libc::CMSG_SPACE(2), libc::CMSG_LEN(2)) };
                self.0.link(i, space as usize);
                // SAFETY: `link` pointed the header at a control of at least `space` bytes, aligned
                // for a cmsghdr, so that the first header and two bytes of data fit.
                unsafe {
                    let control = libc::CMSG_FIRSTHDR(&raw const self.0.headers[i].msg_hdr);
                    (*control).cmsg_level = libc::SOL_UDP;
                    (*control).cmsg_type = libc::UDP_SEGMENT;
                    (*control).cmsg_len = len as _;
                    libc::CMSG_DATA(control).cast::<u16>().write_unaligned(run.segment);
                }
            } else {
                self.0.link(i, 0);
            }
        }
        // SAFETY: the headers in use point into the arrays, which are not moved or touched during
        // the call, and at bytes of `buffer`, which the kernel only reads.
        let result = unsafe {
            libc::sendmmsg(
                fd.as_raw_fd(),
                self.0.headers.as_mut_ptr(),
                runs.len() as _,
                libc::MSG_DONTWAIT as _,
            )
        };
        check(result).map(|n| n as usize)
    }
}

fn to_in_addr(address: Ipv4Addr) -> libc::in_addr {
    libc::in_addr {
        s_addr: u32::from(address).to_be(),
    }
}

fn from_in_addr(address: libc::in_addr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from_be(address.s_addr))
}

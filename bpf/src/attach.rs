//! Attaching through a `bpf_link`, whose descriptor detaches when the process ends in any way.
//! libbpf's helper for XDP takes no flags, and without one the kernel chooses the mode in silence.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_rs::{Xdp, XdpFlags};

use crate::Error;

const EPERM: i32 = 1;
const ENOMEM: i32 = 12;
const EACCES: i32 = 13;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const ERANGE: i32 = 34;

/// Where in the kernel the filter runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before the kernel allocates a packet buffer. The driver must support it.
    Driver,
    /// After the kernel allocated a packet buffer ("SKB mode"). Any interface.
    Generic,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Mode::Driver => "driver",
            Mode::Generic => "generic",
        })
    }
}

/// The network interface to attach to.
#[derive(Clone, Copy, Debug)]
pub struct Interface<'a> {
    /// Its name, for messages.
    pub name: &'a str,
    /// Its index in the caller's network namespace.
    pub index: u32,
    /// Its MTU in bytes, for messages.
    pub mtu: u32,
}

/// A program's hold on an interface. Ends when dropped, or with the process.
pub(crate) struct Attachment(OwnedFd);

impl Drop for Attachment {
    fn drop(&mut self) {
        // Closing alone is not enough: a child that is being started has copies of all descriptors for a moment.
        // SAFETY: passes the number of an open descriptor; no memory is involved. A refusal changes nothing.
        unsafe { libbpf_sys::bpf_link_detach(self.0.as_raw_fd()) };
    }
}

/// Attaches `program` to an interface.
pub(crate) fn attach(program: BorrowedFd<'_>, interface: &Interface<'_>, mode: Mode) -> Result<Attachment, Error> {
    let options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
        flags: match mode {
            Mode::Driver => libbpf_sys::XDP_FLAGS_DRV_MODE,
            Mode::Generic => libbpf_sys::XDP_FLAGS_SKB_MODE,
        },
        ..Default::default()
    };
    // SAFETY: `program` is open for the length of the call, and `options` is initialised and states its own size.
    let link = unsafe {
        libbpf_sys::bpf_link_create(
            program.as_raw_fd(),
            interface.index as i32,
            libbpf_sys::BPF_XDP,
            &raw const options,
        )
    };
    if link >= 0 {
        // SAFETY: a result that is not negative is a new descriptor that nothing else owns.
        return Ok(Attachment(unsafe { OwnedFd::from_raw_fd(link) }));
    }
    let action = format!("attach the XDP filter to {} in {mode} mode", interface.name);
    let source = io::Error::from_raw_os_error(-link);
    Err(match (-link, mode) {
        (EPERM | EACCES, _) => Error::Permission {
            action,
            capability: "CAP_NET_ADMIN and CAP_BPF",
        },
        (EBUSY | EEXIST, _) => Error::Occupied {
            interface: interface.name.into(),
            program: occupant(program, interface.index),
        },
        (ENOMEM, _) => Error::Memory { action, source },
        (ENODEV, _) | (_, Mode::Generic) => Error::Kernel { action, source },
        (errno, Mode::Driver) => Error::DriverMode {
            interface: interface.name.into(),
            source,
            remedy: driver_remedy(errno, interface),
        },
    })
}

fn driver_remedy(errno: i32, Interface { name, mtu, .. }: &Interface<'_>) -> String {
    match errno {
        ERANGE | EINVAL => format!(
            "most often the MTU is too large for it: {mtu} here, and a packet with its headroom must fit one page \
             (3506 bytes at most with 4 KiB pages, less with some drivers, and on a veth the peer's MTU counts); \
             `ip link set dev {name} mtu 1500`, or attach in generic mode"
        ),
        _ => "the driver or its present settings do not support it; attach in generic mode".into(),
    }
}

/// The program that is on the interface already.
fn occupant(program: BorrowedFd<'_>, index: u32) -> String {
    match Xdp::new(program).query(index as i32, XdpFlags::NONE) {
        Ok(found) if found.drv_prog_id != 0 => format!("id {} (driver mode)", found.drv_prog_id),
        Ok(found) if found.skb_prog_id != 0 => format!("id {} (generic mode)", found.skb_prog_id),
        Ok(found) if found.hw_prog_id != 0 => format!("id {} (offloaded)", found.hw_prog_id),
        Ok(found) => format!("id {}", found.prog_id),
        Err(_) => "of unknown id".into(),
    }
}

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use super::{invalid, sys};

/// What the link must know of its interface.
#[derive(Clone, Debug)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) mtu: u32,
    pub(super) mac: [u8; 6],
    pub(super) address: Ipv4Addr,
    pub(super) queues: u32,
}

impl Interface {
    /// Asks the kernel, in this thread's network namespace.
    pub(super) fn read(name: &str) -> io::Result<Interface> {
        let any = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
        let any = any.as_fd();
        let index = sys::index(any, name).map_err(|error| match error.raw_os_error() {
            Some(libc::ENODEV) => {
                let message = format!("there is no interface {name}; `ip link` lists those there are");
                io::Error::new(io::ErrorKind::NotFound, message)
            }
            _ => error,
        })?;
        if sys::flags(any, name)? & libc::IFF_UP as u32 == 0 {
            let message = format!("{name} is down; `ip link set dev {name} up`");
            return Err(io::Error::new(io::ErrorKind::NetworkDown, message));
        }
        let (hardware, mac) = sys::hardware(any, name)?;
        if hardware != libc::ARPHRD_ETHER {
            return Err(invalid(format!(
                "{name} is no Ethernet interface; use the udp link on it"
            )));
        }
        let address = sys::address(any, name).map_err(|error| match error.raw_os_error() {
            Some(libc::EADDRNOTAVAIL) => {
                let message = format!("{name} has no IPv4 address; `ip address add A.B.C.D/N dev {name}`");
                io::Error::new(io::ErrorKind::AddrNotAvailable, message)
            }
            _ => error,
        })?;
        let queues = match sys::receive_queues(any, name) {
            Ok(0) | Err(_) => queues_in_sysfs(name, index).unwrap_or(1),
            Ok(queues) => queues,
        };
        Ok(Interface {
            name: name.into(),
            index,
            mtu: sys::mtu(any, name)?,
            mac,
            address,
            queues,
        })
    }
}

/// The receive queues of an interface whose driver does not tell, unless sysfs shows another
/// namespace's interface of that name.
fn queues_in_sysfs(name: &str, index: u32) -> Option<u32> {
    let directory = format!("/sys/class/net/{name}");
    let shown: u32 = fs::read_to_string(format!("{directory}/ifindex"))
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let queues = fs::read_dir(format!("{directory}/queues")).ok()?.flatten();
    let receive = queues.filter(|queue| queue.file_name().as_encoded_bytes().starts_with(b"rx-"));
    (shown == index)
        .then_some(receive.count() as u32)
        .filter(|count| *count > 0)
}

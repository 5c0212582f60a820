//! Feeds that speak MoldUDP64 or MoldUDP: a sink that publishes one, a source that subscribes to one.
//!
//! The protocol is `seqcast-mold`; here are its sockets and files. Each runs on the thread of its sink or
//! source, over a link of kernel sockets of its own.

use std::io;
use std::net::SocketAddrV4;
use std::time::Instant;

use seqcast_proto::time::Nanos;

use crate::link::pair::Pair;
use crate::link::udp::{UdpConfig, UdpLink};
use crate::link::{Datagram, Link};

mod map;
mod shelf;
pub(super) mod sink;
pub(super) mod source;

/// Datagrams taken from the link at once.
const BATCH: usize = 64;

/// What links of a feed differ in.
struct Opening<'a> {
    interface: &'a str,
    interface_b: Option<&'a str>,
    group_b: Option<SocketAddrV4>,
    udp: UdpConfig,
}

/// What runs over a feed's link.
trait Run {
    fn run<L: Link>(self, link: L) -> io::Result<()>;
}

/// Opens the sockets, on two interfaces if line B has one of its own.
fn with_link(opening: &Opening<'_>, then: impl Run) -> io::Result<()> {
    let open = |interface: &str| {
        UdpLink::open(UdpConfig {
            interface: interface.to_owned(),
            ..opening.udp.clone()
        })
    };
    let first = open(opening.interface)?;
    match opening.interface_b {
        None => then.run(first),
        Some(second) => {
            let groups_b = opening.group_b.into_iter().collect();
            then.run(Pair::new(first, open(second)?, groups_b))
        }
    }
}

/// Takes what waits at the link.
fn receive<L: Link>(link: &mut L, into: &mut Vec<Datagram<L::Frame>>) -> io::Result<usize> {
    into.clear();
    link.receive(BATCH, |datagram| into.push(datagram))
}

/// Time for the state machines: it never goes back.
#[derive(Clone, Copy)]
struct Clock(Instant);

impl Clock {
    fn start() -> Clock {
        Clock(Instant::now())
    }

    fn now(self) -> Nanos {
        // Not at 0, where "never" would be "just now".
        self.0.elapsed().as_nanos() as Nanos + 1
    }
}

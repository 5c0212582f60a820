//! Whether a host and its NIC suit an engine, and what to change so that they do.
//!
//! [`examine`] looks and judges; [`tune`] makes the changes that can be made without a restart and
//! keeps what was there before, so that [`undo`] can bring it back.

mod change;
mod facts;
mod netlink;
mod rules;
mod sys;
mod tune;

use std::io;
use std::net::SocketAddrV4;

use seqcast_engine::config::{Config, Core, Idle, LinkKind, Part, Udp, Xdp};
use seqcast_engine::cores;
use seqcast_engine::link::Bind;
use serde::Serialize;

pub use change::{Change, Setting};
pub use tune::{Error, Outcome, Step, tune, undo};

/// What an engine wants of its host.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The interface.
    pub interface: String,
    /// The core that its thread is pinned to.
    pub core: Option<usize>,
    /// Whether it spins when there is nothing to do.
    pub spins: bool,
    /// Whether AF_XDP shall be used.
    pub xdp: bool,
    /// Whether nothing less than zero-copy will do.
    pub zero_copy: bool,
    /// Receive queues that are served, by it or by another worker of the same engine.
    pub queues: Vec<u32>,
    /// What must come on a certain queue, since several workers of the engine share the interface.
    pub steered: Option<Steered>,
    /// Bytes of a frame.
    pub frame_size: u32,
    /// Frames for each queue.
    pub frames: u32,
    /// Descriptors of each receive ring.
    pub rx_ring: u32,
    /// Groups that it joins.
    pub groups: usize,
    /// Receive buffer of its sockets, in bytes.
    pub receive_buffer: usize,
}

/// What a NIC must hand to one worker's queue.
#[derive(Clone, Debug)]
pub struct Steered {
    /// Its first queue.
    pub queue: u32,
    /// The worker's groups.
    pub groups: Vec<SocketAddrV4>,
    /// The worker's port for queries and repairs; 0 if the kernel chooses it.
    pub port: u16,
}

impl Wish {
    /// What each worker of a configuration wants, with what it is called.
    #[must_use]
    pub fn of(config: &Config) -> Vec<(String, Wish)> {
        let mut parts = config.split();
        // What cannot be assigned is found below: cores that are not there.
        let _ = cores::assign(&mut parts);
        parts
            .iter()
            .map(|part| (part.title(), Wish::of_one(part, &parts)))
            .collect()
    }

    fn of_one(part: &Part, all: &[Part]) -> Wish {
        let engine = &part.config.engine;
        let xdp = engine.link != LinkKind::Udp;
        let shares = |other: &&Part| other.config.engine.interface == engine.interface;
        let mut queues: Vec<u32> = all
            .iter()
            .filter(shares)
            .flat_map(|other| other.config.engine.xdp.queues.iter().copied())
            .collect();
        queues.sort_unstable();
        queues.dedup();
        let groups = part.config.joined_groups();
        let steered = Steered {
            queue: engine.xdp.queues.first().copied().unwrap_or(0),
            groups: groups.clone(),
            port: engine.port,
        };
        let alone = !xdp || all.iter().filter(shares).count() < 2;
        Wish {
            interface: engine.interface.clone(),
            core: engine.core.and_then(Core::number),
            spins: engine.idle.in_force(engine.core.is_some()) == Idle::Spin,
            xdp,
            zero_copy: engine.xdp.bind == Bind::ZeroCopy,
            queues,
            steered: (!alone).then_some(steered),
            frame_size: engine.xdp.frame_size,
            frames: engine.xdp.frames,
            rx_ring: engine.xdp.rx_ring,
            groups: groups.len(),
            receive_buffer: engine.udp.receive_buffer,
        }
    }

    /// What one with the defaults wants that receives a stream.
    #[must_use]
    pub fn on(interface: String) -> Wish {
        let (xdp, udp) = (Xdp::default(), Udp::default());
        Wish {
            interface,
            core: None,
            spins: true,
            xdp: true,
            zero_copy: xdp.bind == Bind::ZeroCopy,
            queues: xdp.queues,
            steered: None,
            frame_size: xdp.frame_size,
            frames: xdp.frames,
            rx_ring: xdp.rx_ring,
            groups: 1,
            receive_buffer: udp.receive_buffer,
        }
    }
}

/// How good something is as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Good,
    /// Worth knowing; nothing must be done.
    Note,
    /// Costs latency, or loses frames under load.
    Poor,
    /// The engine will not run so, or not as it is configured.
    Bad,
}

/// What mends something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Remedy {
    /// What [`tune`] can do.
    Change(Vec<Change>),
    /// What only a person can do: a command, or words.
    Advice(String),
}

/// One line of an examination.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What was looked at, in a word or two.
    pub topic: &'static str,
    /// How good it is.
    pub state: State,
    /// What was found.
    pub is: String,
    /// Why it matters.
    pub why: &'static str,
    /// What to do about it.
    pub remedy: Option<Remedy>,
}

/// Looks at this host and at an interface in this thread's network namespace. Changes nothing and
/// needs no privilege.
///
/// # Errors
/// If there is no such interface, or the kernel does not answer.
pub fn examine(wish: &Wish) -> io::Result<Vec<Finding>> {
    let facts = facts::Facts::read(&wish.interface, wish.core)?;
    Ok(rules::judge(&facts, wish))
}

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

use seqcast_engine::config::{Config, Idle, LinkKind, Udp, Xdp};
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
    /// Receive queues that it serves.
    pub queues: Vec<u32>,
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

impl Wish {
    /// What the engine of a configuration wants.
    #[must_use]
    pub fn of(config: &Config) -> Wish {
        let engine = &config.engine;
        Wish {
            interface: engine.interface.clone(),
            core: engine.core,
            spins: engine.idle.in_force(engine.core.is_some()) == Idle::Spin,
            xdp: engine.link != LinkKind::Udp,
            zero_copy: engine.xdp.bind == Bind::ZeroCopy,
            queues: engine.xdp.queues.clone(),
            frame_size: engine.xdp.frame_size,
            frames: engine.xdp.frames,
            rx_ring: engine.xdp.rx_ring,
            groups: config.joined_groups().len(),
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

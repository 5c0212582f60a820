//! The Seqcast engine: one process per NIC that runs servers, clients and archives.
//!
//! - [`cli`]: the command line.
//! - [`capture`]: copies of its frames for who attaches to watch.
//! - [`config`]: what an engine shall do, from a TOML file.
//! - [`cores`]: where its workers run.
//! - [`counters`]: what a running engine shows of itself, in shared memory.
//! - [`keys`]: files of keys that streams' frames are sealed with.
//! - [`log`]: what is said to operators.
//! - [`link`]: how frames move: AF_XDP or kernel sockets.
//! - [`feed`]: where messages come from and go to: files, standard streams, FIFOs.
//! - [`node`]: the duty cycle that joins protocol, link, logs and feeds on one core.
//! - [`open`]: links as a configuration says.
//! - [`programs`]: programs beside the engine, through shared memory.
//! - [`process`]: which processes are there.
//! - [`reload`]: another configuration for an engine that runs.
//! - [`report`]: what an engine says of itself when it ends.

use std::net::SocketAddrV4;

use seqcast_proto::seq::Stream;

pub mod capture;
pub mod cli;
pub mod clock;
pub mod config;
pub mod cores;
pub mod counters;
pub mod feed;
pub mod keys;
pub mod link;
pub mod log;
pub mod node;
pub mod open;
pub mod process;
pub mod programs;
pub mod reload;
pub mod report;

/// A stream's identity: as configured, or the lower half of the group's address above the port.
///
/// Groups that differ in their upper half alone need an `id` in the configuration.
#[must_use]
pub fn stream_id(group: SocketAddrV4, id: Option<u32>) -> Stream {
    let [_, _, c, d] = group.ip().octets();
    let derived = u32::from(u16::from_be_bytes([c, d])) << 16 | u32::from(group.port());
    Stream(id.unwrap_or(derived))
}

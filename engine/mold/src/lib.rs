//! MoldUDP64 and the older MoldUDP, Nasdaq's protocols for streams of messages over UDP multicast.
//!
//! As in `seqcast-proto`, everything takes bytes and time and gives bytes and events; nothing here can
//! reach a socket, a file or a clock.
//!
//! - [`packet`]: the two formats.
//! - [`publisher`]: packs messages into downstream packets, with heartbeats and the end of a session.
//! - [`answers`]: the re-request server.
//! - [`subscriber`]: puts what comes over one or two lines in order, asks for what is missing.
//!
//! `docs/mold.md` says how they are used.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

pub mod answers;
pub mod packet;
pub mod publisher;
pub mod subscriber;

pub use packet::{SessionName, Variant};

//! Seqcast's protocol as pure state machines.
//!
//! Everything here takes bytes and time and gives bytes and events. The crate is `no_std`, so no
//! state machine can reach a socket, a file, a clock, a thread or a random source of its own: the
//! engine and the tests drive exactly the same code.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod seq;

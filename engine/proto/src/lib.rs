//! Seqcast's protocol as pure state machines.
//!
//! Everything here takes bytes and time and gives bytes and events. The crate is `no_std`, so no
//! state machine can reach a socket, a file, a clock, a thread or a random source of its own: the
//! engine and the tests drive exactly the same code.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

/// Whether a test has planted a bug here; `false` in every product.
#[cfg(feature = "mutations")]
macro_rules! planted {
    ($bug:ident) => {
        crate::mutations::is_planted(crate::mutations::Bug::$bug)
    };
}
#[cfg(not(feature = "mutations"))]
macro_rules! planted {
    ($bug:ident) => {
        false
    };
}

pub mod archiver;
pub mod client;
pub mod gaps;
pub mod hold;
pub mod io;
pub mod limit;
pub mod lines;
#[cfg(feature = "mutations")]
pub mod mutations;
pub mod parties;
pub mod ranges;
pub mod responder;
pub mod rng;
pub mod seal;
pub mod seq;
pub mod server;
mod share;
pub mod subject;
pub mod time;
pub mod wire;

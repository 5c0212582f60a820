//! Lock-free rings between one producer and the engine, and the bell that wakes a sleeping reader.
//!
//! [`lane`] makes a single-producer single-consumer ring of variable-length messages. A [`Doorbell`]
//! lets a reader of many lanes sleep without a lost wake-up. Nothing allocates after creation.
//! The layout and the ordering argument are in `docs/rings.md`.

mod bell;
mod cursor;
mod event;
#[cfg(not(loom))]
mod lane;
#[cfg(not(loom))]
mod memory;

pub use bell::Doorbell;
#[cfg(not(loom))]
pub use lane::{Claim, Consumer, Corruption, Entry, LaneError, MAX_CAPACITY, MIN_CAPACITY, Producer, lane};

//! Lock-free rings between threads and processes, and the bell that wakes a sleeping reader.
//!
//! [`lane`] makes a single-producer single-consumer ring of variable-length messages. [`broadcast()`]
//! makes a ring with one writer and any number of readers that cannot slow it. A [`Doorbell`]
//! lets a reader of many lanes sleep without a lost wake-up. Nothing allocates after creation.
//! The layout and the ordering argument are in `docs/rings.md`.

mod bell;
#[cfg(not(loom))]
mod broadcast;
mod cursor;
mod event;
#[cfg(not(loom))]
mod lane;
#[cfg(not(loom))]
mod memory;
mod slot;
#[cfg(not(loom))]
mod words;

pub use bell::Doorbell;
#[cfg(not(loom))]
pub use broadcast::{BroadcastWatch, Broadcaster, MAX_MESSAGE, MAX_SLOTS, Read, Reader, TooLarge, broadcast};
#[cfg(not(loom))]
pub use event::Event;
#[cfg(not(loom))]
pub use lane::{
    Claim, Consumer, Corruption, Entry, Fill, Guarded, LaneError, LaneWatch, MAX_CAPACITY, MIN_CAPACITY, Producer, lane,
};

//! Programs beside a Seqcast engine: they publish into it and receive from it through shared memory.
//!
//! [`Engine`] says where the engine is, [`Publisher`] writes messages in place into a lane of its own,
//! [`Subscriber`] reads the ring that the engine writes for all. Neither has threads or callbacks of its
//! own, and no call waits longer than its timeout. Both notice when the engine goes away, go on by
//! themselves when one is back, and say so ([`Event`]). `docs/programs.md` has the rest.
//!
//! ```no_run
//! use std::time::Duration;
//! use seqcast_client::{Engine, Publisher, Received, Subscriber};
//!
//! # fn main() -> Result<(), seqcast_client::Error> {
//! let engine = Engine::at("/run/seqcast/engine.sock");
//! let mut publisher = Publisher::attach(&engine, &Default::default())?;
//! let mut subscriber = Subscriber::attach(&engine, &Default::default())?;
//! publisher.publish("md.eq", b"hello", None)?;
//! loop {
//!     match subscriber.next(Some(Duration::from_secs(1)))? {
//!         Some(Received::Message(message)) => println!("{}: {:?}", message.sequence, message.payload),
//!         Some(Received::Event(event)) => eprintln!("{event:?}"),
//!         None => break,
//!     }
//! }
//! # Ok(()) }
//! ```

mod call;
mod error;
pub mod protocol;
mod publisher;
pub mod record;
pub mod socket;
mod subscriber;

pub use call::Engine;
pub use error::Error;
pub use protocol::{Refusal, StreamInfo};
pub use publisher::{Claim, Publisher, PublisherOptions};
pub use record::{Event, EventKind, flags};
pub use subscriber::{From, Message, Position, Received, Subscriber, SubscriberOptions};

/// The examples of the documentation compile.
#[doc = include_str!("../../../docs/programs.md")]
#[cfg(doctest)]
struct Documentation;

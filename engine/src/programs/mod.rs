//! Programs beside the engine, in other processes or its own: lanes from them, a ring to them.
//!
//! The engine's thread reads the lanes and writes the rings. All else is done by a thread of its own,
//! the [hub](Hub): connections, permissions, hang-ups, waking who sleeps. The two meet at the *desks*, one
//! for each stream and direction; the engine's thread looks there when a flag is up.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use seqcast_ring::{BroadcastWatch, Broadcaster, Doorbell, Guarded, Producer};

mod access;
mod hub;
mod lanes;
mod ring;

pub use hub::{Hub, HubReport};
pub(crate) use lanes::Lanes;
pub(crate) use ring::{RingWriter, record_of, write_head};

/// What is known of a lane on both threads.
#[derive(Debug, Default)]
pub(crate) struct Fate {
    /// The hub has seen that the program is gone.
    pub(crate) gone: AtomicBool,
    /// The engine's thread has dropped the lane.
    pub(crate) done: AtomicBool,
    /// Because what was in it was no message.
    pub(crate) broken: AtomicBool,
}

/// Marks a fate as done however its holder ends.
#[derive(Debug)]
pub(crate) struct Held(pub(crate) Arc<Fate>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::Release);
    }
}

/// A new lane for the engine's thread.
pub(crate) struct NewLane {
    pub(crate) lane: Guarded,
    pub(crate) fate: Held,
}

/// A program wants all behind a message again.
pub(crate) struct Wanted {
    pub(crate) session: u32,
    pub(crate) sequence: u32,
    pub(crate) lane: Producer,
    pub(crate) fate: Held,
}

/// Things left by one thread for the other.
pub(crate) struct Tray<T> {
    news: AtomicBool,
    things: Mutex<Vec<T>>,
}

impl<T> Default for Tray<T> {
    fn default() -> Tray<T> {
        Tray {
            news: AtomicBool::new(false),
            things: Mutex::default(),
        }
    }
}

impl<T> Tray<T> {
    fn lock(&self) -> MutexGuard<'_, Vec<T>> {
        self.things.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put(&self, thing: T) {
        self.lock().push(thing);
        self.remind();
    }

    /// Has the other thread look, also if nothing was put there.
    pub(crate) fn remind(&self) {
        self.news.store(true, Ordering::Release);
    }

    /// Whether to look. A load.
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        self.news.load(Ordering::Relaxed)
    }

    /// Takes everything.
    pub(crate) fn take(&self) -> Vec<T> {
        self.news.store(false, Ordering::Relaxed);
        std::mem::take(&mut *self.lock())
    }
}

/// Where programs that publish a stream meet the engine.
pub(crate) struct PublishDesk {
    stream: SocketAddrV4,
    /// Longest message with its subject.
    max_message: usize,
    /// Rung when lanes were read.
    hub: Arc<Doorbell>,
    pub(crate) lanes: Tray<NewLane>,
}

/// Where programs that receive a stream meet the engine.
pub(crate) struct SubscribeDesk {
    stream: SocketAddrV4,
    ring: OwnedFd,
    watch: BroadcastWatch,
    /// The session that is being received.
    session: AtomicU32,
    /// Rung when something was written.
    pub(crate) hub: Arc<Doorbell>,
    pub(crate) wanted: Tray<Wanted>,
    /// Programs that are catching up.
    catching_up: AtomicUsize,
}

impl SubscribeDesk {
    /// Programs that are catching up.
    pub(crate) fn catching_up(&self) -> usize {
        self.catching_up.load(Ordering::Relaxed)
    }
}

/// All desks of an engine while it is being opened.
pub(crate) struct Desks {
    hub: Arc<Doorbell>,
    wakers: Arc<Wakers>,
    publish: Vec<Arc<PublishDesk>>,
    subscribe: Vec<Arc<SubscribeDesk>>,
    ring_bytes: u64,
}

impl Desks {
    /// `bell` is the engine's own.
    pub(crate) fn new(ring_bytes: u64, bell: &Doorbell) -> io::Result<Desks> {
        Ok(Desks {
            hub: Arc::new(Doorbell::new()?),
            wakers: Arc::new(Wakers::new(bell)?),
            publish: Vec::new(),
            subscribe: Vec::new(),
            ring_bytes,
        })
    }

    /// The source of a stream that programs publish.
    pub(crate) fn lanes(&mut self, stream: SocketAddrV4, max_message: usize) -> Lanes {
        let desk = Arc::new(PublishDesk {
            stream,
            max_message,
            hub: Arc::clone(&self.hub),
            lanes: Tray::default(),
        });
        self.publish.push(Arc::clone(&desk));
        Lanes::new(desk)
    }

    /// The ring of a stream whose frames carry at most `max_payload` bytes.
    pub(crate) fn ring(&mut self, stream: SocketAddrV4, max_payload: usize) -> io::Result<RingWriter> {
        let slot = max_payload + ring::SLOT_MORE;
        let slots = (self.ring_bytes / slot as u64).max(2);
        // Rounded down: the size in the configuration is the most that is taken.
        let slots = 1 << slots.ilog2();
        let (ring, fd) = Broadcaster::shared(slots, slot)?;
        let desk = Arc::new(SubscribeDesk {
            stream,
            ring: fd,
            watch: ring.watch(),
            session: AtomicU32::new(0),
            hub: Arc::clone(&self.hub),
            wanted: Tray::default(),
            catching_up: AtomicUsize::new(0),
        });
        self.subscribe.push(Arc::clone(&desk));
        Ok(RingWriter::new(ring, desk))
    }
}

/// What ends the engine's sleep: its own bell, and an event for each lane. A program has its own event
/// only, so that it can neither take a wake-up from another one nor hold it up.
pub(crate) struct Wakers(Epoll);

impl Wakers {
    fn new(bell: &Doorbell) -> io::Result<Wakers> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(bell.fd(), EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        Ok(Wakers(epoll))
    }

    /// Edges only: nobody has to read the event, which may stay up for ever.
    fn add(&self, event: BorrowedFd<'_>) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        Ok(self.0.add(event, EpollEvent::new(flags, 1))?)
    }

    fn remove(&self, event: BorrowedFd<'_>) {
        // It was added; an event that another process keeps open stays in the set otherwise.
        let _ = self.0.delete(event);
    }

    /// Readable when the engine is to wake.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }

    /// After a sleep: forgets the edges that ended it.
    pub(crate) fn forget(&self) {
        let mut events = [EpollEvent::empty(); 64];
        // Not more often than there can be edges of so many lanes; what is left ends a sleep early.
        for _ in 0..32 {
            match self.0.wait(&mut events, EpollTimeout::ZERO) {
                Ok(n) if n == events.len() => {}
                _ => break,
            }
        }
    }
}

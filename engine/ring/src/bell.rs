//! Wakes a reader of lanes that has gone to sleep.

use std::io;
#[cfg(not(loom))]
use std::{os::fd::BorrowedFd, time::Duration};

use crossbeam_utils::CachePadded;
#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crate::event::Event;

/// A bell for one waiter and any number of ringers; share it with `Arc`.
///
/// The waiter calls [`arm`](Self::arm), looks at its lanes once more, and only if they are empty
/// sleeps on [`fd`](Self::fd) or in [`wait`](Self::wait); whether it slept or not, it then calls
/// [`disarm`](Self::disarm) and looks at its lanes. A producer commits its message (or drops its side
/// of the lane) and then calls [`ring`](Self::ring). No order of these steps leaves a message behind
/// a sleeping waiter.
pub struct Doorbell {
    asleep: CachePadded<AtomicBool>,
    event: Event,
}

impl Doorbell {
    /// Makes a bell that is not armed.
    ///
    /// # Errors
    /// When the process or the system is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Doorbell {
            asleep: CachePadded::new(AtomicBool::new(false)),
            event: Event::new()?,
        })
    }

    /// Wakes the waiter if it sleeps or is about to. A fence and a load when it is awake.
    #[inline]
    pub fn ring(&self) {
        // With the fence in `arm`: either the waiter's last look sees the message committed before
        // this, or this load sees the waiter asleep.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        // Of several ringers the first one writes; the event stays up until the waiter clears it.
        if self.asleep.swap(false, Ordering::Relaxed) {
            self.event.raise();
        }
    }

    /// Announces that the waiter is going to sleep. It must look at its lanes after this.
    pub fn arm(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Ends what [`arm`](Self::arm) began. A ringer caught in the middle may leave the event up: one
    /// later sleep then ends early.
    pub fn disarm(&self) {
        self.asleep.store(false, Ordering::Relaxed);
        self.event.clear();
    }
}

#[cfg(not(loom))]
impl Doorbell {
    /// Readable while the bell has been rung and not yet disarmed; to be polled, not read.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.event.fd()
    }

    /// Sleeps until the bell is rung or `timeout` is over and says whether it was rung. A signal may
    /// end it early. To be called between [`arm`](Self::arm) and [`disarm`](Self::disarm).
    pub fn wait(&self, timeout: Duration) -> bool {
        self.event.wait(timeout)
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU32;
    use loom::thread;

    /// Each ringer publishes `each` items in a counter of its own; the waiter must see all of them
    /// without ever sleeping for good.
    fn no_wake_up_is_lost(ringers: usize, each: u32, preemptions: Option<usize>) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = preemptions;
        model.check(move || {
            let bell = Arc::new(Doorbell::new().unwrap());
            let lanes: Vec<_> = (0..ringers).map(|_| Arc::new(AtomicU32::new(0))).collect();
            let threads: Vec<_> = lanes
                .iter()
                .map(|lane| {
                    let (bell, lane) = (bell.clone(), lane.clone());
                    thread::spawn(move || {
                        for n in 1..=each {
                            lane.store(n, Ordering::Release);
                            bell.ring();
                        }
                    })
                })
                .collect();
            let all_seen = || lanes.iter().all(|lane| lane.load(Ordering::Acquire) == each);
            while !all_seen() {
                bell.arm();
                if !all_seen() {
                    bell.event.wait();
                }
                bell.disarm();
            }
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }

    #[test]
    fn one_ringer() {
        no_wake_up_is_lost(1, 2, None);
    }

    #[test]
    fn two_ringers() {
        // All interleavings pass too, in minutes.
        no_wake_up_is_lost(2, 1, Some(3));
    }
}

#[cfg(all(test, not(loom), not(miri)))] // Miri has no ppoll
mod tests {
    use super::*;
    use crate::lane;
    use std::sync::Arc;
    use std::thread;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn rings_only_when_armed_and_is_quiet_after_disarm() {
        let bell = Doorbell::new().unwrap();
        bell.ring();
        assert!(!bell.wait(Duration::ZERO));
        bell.arm();
        bell.ring();
        bell.ring();
        assert!(bell.wait(LONG));
        bell.disarm();
        assert!(!bell.wait(Duration::ZERO));
    }

    #[test]
    fn a_sleeping_reader_sees_every_message_and_the_end() {
        let bell = Arc::new(Doorbell::new().unwrap());
        let (mut producer, mut consumer) = lane(256);
        let writer = thread::spawn({
            let bell = bell.clone();
            move || {
                for n in 0..20_000u32 {
                    while producer.try_push(n, &[&n.to_le_bytes()]).is_err() {
                        thread::yield_now();
                    }
                    bell.ring();
                }
                drop(producer);
                bell.ring();
            }
        });
        let mut expected = 0u32;
        let mut read = |consumer: &mut crate::Consumer| {
            consumer.drain(usize::MAX, |tag, bytes| {
                assert_eq!((tag, bytes), (expected, &expected.to_le_bytes()[..]));
                expected += 1;
                true
            })
        };
        while !consumer.is_finished() {
            if read(&mut consumer) > 0 {
                continue;
            }
            bell.arm();
            if read(&mut consumer) == 0 && !consumer.is_finished() {
                assert!(bell.wait(LONG), "a wake-up was lost");
            }
            bell.disarm();
        }
        assert_eq!(expected, 20_000);
        writer.join().unwrap();
    }
}

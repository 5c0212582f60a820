//! The far end: answers until it is told to stop.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;

use super::end::{Arrival, End, Outbox};
use super::report::Machine;
use super::talk::{HEAD, Head, Kind};
use super::{Setting, Streams};

/// Messages between two counts: a small part of the near end's window.
pub(super) const COUNT_EVERY: u64 = 256;
/// How long a far end spins after it was asked something.
const AWAKE: Duration = Duration::from_secs(2);

/// What is being counted.
#[derive(Clone, Copy, Default)]
struct Counting {
    phase: u32,
    count: u64,
    told: u64,
}

/// Answers a near end until `stop` is set, or, if `once`, the near end has said that it is over. `ready` is told
/// what the link really is.
///
/// # Errors
/// When the engine cannot be opened, or fails.
pub fn answer(
    setting: &Setting,
    streams: Streams,
    once: bool,
    stop: &AtomicUsize,
    ready: impl FnOnce(&str),
) -> Result<()> {
    let (config, _) = setting.config(streams.back, &[streams.out, streams.lossy], 0.0)?;
    let counting = Rc::new(Cell::new(Counting::default()));
    let over = Rc::new(Cell::new(false));
    let clock = Instant::now();
    let take = {
        let (counting, over) = (Rc::clone(&counting), Rc::clone(&over));
        move |arrival: Arrival<'_>, out: &mut Outbox| {
            let mut head = arrival.head;
            match head.kind {
                Kind::Hello => {
                    let size = HEAD + out.text.len();
                    out.put(head, size);
                }
                Kind::Ping => {
                    head.wall = wall();
                    out.put(head, arrival.bytes.len());
                }
                Kind::Stream => {
                    let mut now = counting.get();
                    if now.phase != head.phase {
                        now = Counting {
                            phase: head.phase,
                            ..Counting::default()
                        };
                    }
                    // Delivery is in order, so that a number that is not the next one tells of a defect.
                    now.count += u64::from(head.number == now.count);
                    if now.count >= now.told + COUNT_EVERY || head.number == 0 {
                        tell(&mut now, out, clock);
                    }
                    counting.set(now);
                }
                Kind::Bye => over.set(true),
                Kind::Count => {}
            }
        }
    };
    let mut end = End::open(&config, take)?;
    let mode = end.mode();
    end.outbox.borrow_mut().text = serde_json::to_vec(&Machine::this(&mode))?;
    ready(&mode);
    let mut busy = Instant::now();
    let mut turns = 0_u32;
    while stop.load(Ordering::Relaxed) == 0 && !(once && over.get()) {
        turns = turns.wrapping_add(1);
        if end.turn(turns)? {
            busy = Instant::now();
            continue;
        }
        if turns.is_multiple_of(64) && busy.elapsed() > AWAKE {
            end.rest(Duration::from_millis(20))?;
        }
        // The end of what streams is told as well.
        let mut now = counting.get();
        if now.count > now.told && end.outbox.borrow().is_empty() {
            tell(&mut now, &mut end.outbox.borrow_mut(), clock);
            counting.set(now);
        }
    }
    Ok(())
}

fn tell(now: &mut Counting, out: &mut Outbox, clock: Instant) {
    now.told = now.count;
    let head = Head {
        kind: Kind::Count,
        phase: now.phase,
        number: now.count,
        sent: clock.elapsed().as_nanos() as u64,
        wall: 0,
    };
    out.put(head, HEAD);
}

/// The wall clock in ns since 1970.
pub(super) fn wall() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

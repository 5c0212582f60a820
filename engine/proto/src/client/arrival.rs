//! Delivery on arrival: nothing waits for a repair, and what was delivered ahead is remembered.
//!
//! Numbers above the lowest missing one that are done with are kept as a bounded set of ranges. A
//! message for which the set has no room is not delivered but asked for again, so that no message
//! is ever delivered twice. Frames are held only while the application takes nothing.

use super::{Client, last_of};
use crate::io::{Application, Loss};
use crate::seq::{Seq, SeqRange};
use crate::time::{Nanos, Now};

impl<F: AsRef<[u8]>> Client<F> {
    /// Delivers what is new of a frame that holds `range`.
    pub(super) fn deliver_now(&mut self, now: Now, range: SeqRange, frame: F, app: &mut impl Application) {
        if self.cursor.blocked {
            return self.keep(now, range, frame);
        }
        if !self.gaps.is_empty() {
            self.gaps.found(range, now.mono);
        }
        let mut old = range.len();
        let mut from = range.first;
        while let Some(part) = self.first_open(from, range.last) {
            from = part.end();
            if !self.reserve(part) {
                old -= part.len();
                self.cursor.stats.overruns += 1;
                self.gaps.miss(part, now.mono);
                continue;
            }
            if !self.cursor.offer(frame.as_ref(), part, false, app) {
                self.done.remove(part);
                let rest = SeqRange {
                    first: part.first,
                    last: range.last,
                };
                self.cursor.stats.duplicates += u64::from(old.saturating_sub(rest.len()));
                return self.keep(now, rest, frame);
            }
            old -= part.len();
            self.settle(part);
        }
        self.cursor.stats.duplicates += u64::from(old);
        if !self.hold.is_empty() {
            self.deliver_held(app);
        }
    }

    /// Delivers what was held while the application took nothing.
    pub(super) fn deliver_held(&mut self, app: &mut impl Application) {
        self.cursor.blocked = false;
        let mut at = self.cursor.next;
        while let Some(top) = self.hold.top(self.cursor.next) {
            at = self.done.first_absent(at.max(self.cursor.next));
            if at > top {
                return;
            }
            let Some(frame) = self.hold.get(at) else {
                at = at.next();
                continue;
            };
            // Of a frame that reaches beyond the window only what lies in it is held.
            let window_end = self.cursor.next.plus(self.hold.window());
            let last = last_of(frame.as_ref()).map(|last| last.min(window_end.prev()));
            let Some(part) = last.and_then(|last| self.first_open(at, last)) else {
                return;
            };
            at = part.end();
            if !self.reserve(part) {
                // It stays until earlier gaps are closed and ranges join.
                continue;
            }
            let Some(frame) = self.hold.get(part.first) else { return };
            if !self.cursor.offer(frame.as_ref(), part, true, app) {
                return self.done.remove(part);
            }
            self.hold.drop_range(part);
            self.settle(part);
        }
    }

    /// Reports what nobody has at once: nothing that follows waits for it.
    pub(super) fn lose_now(&mut self, now: Nanos, range: SeqRange, why: Loss, app: &mut impl Application) {
        let mut from = range.first;
        while let Some(part) = self.first_open(from, range.last) {
            from = part.end();
            if !self.reserve(part) {
                self.gaps.miss(part, now);
                continue;
            }
            self.report_lost(part, why, app);
            self.settle(part);
        }
    }

    /// The first range from `from` to `last` that is not done with.
    fn first_open(&self, from: Seq, last: Seq) -> Option<SeqRange> {
        let first = self.done.first_absent(from.max(self.cursor.next));
        let ranges = self.done.as_slice();
        let above = ranges.get(ranges.partition_point(|r| r.first <= first));
        SeqRange::new(first, above.map_or(last, |r| last.min(r.first.prev())))
    }

    /// Notes `part` as done with before it is, so that there is surely room to remember it.
    fn reserve(&mut self, part: SeqRange) -> bool {
        part.first == self.cursor.next || self.done.insert(part).is_ok()
    }

    /// Moves the next message behind all that is done with.
    fn settle(&mut self, part: SeqRange) {
        if part.first == self.cursor.next {
            let next = self.done.first_absent(part.end());
            self.advance(next.prev());
            self.done.remove_below(next);
        }
    }
}

//! Frames that wait for earlier ones.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use crate::seq::{Seq, SeqRange};

const EMPTY: u32 = u32::MAX;

/// Received frames, found by the number of any message in them.
///
/// A window of message slots points into a table of frames; several messages share one frame. The
/// frames stay where they were received, nothing is copied.
#[derive(Debug)]
pub struct Hold<F> {
    slots: Box<[u32]>,
    frames: Vec<Option<Held<F>>>,
    free: Vec<u32>,
    /// Messages held.
    messages: u32,
    /// At least the highest number held.
    top: Seq,
}

#[derive(Debug)]
struct Held<F> {
    frame: F,
    /// The numbers for which the frame was taken.
    range: SeqRange,
    /// How many of them still point here.
    slots: u32,
}

impl<F> Hold<F> {
    /// Holds at most `frames` frames with messages from a window of at least `window` numbers.
    #[must_use]
    pub fn new(window: u32, frames: u32) -> Hold<F> {
        let slots = window.clamp(64, 1 << 30).next_power_of_two();
        let frames = frames.min(EMPTY - 1);
        Hold {
            slots: vec![EMPTY; slots as usize].into_boxed_slice(),
            frames: (0..frames).map(|_| None).collect(),
            free: (0..frames).rev().collect(),
            messages: 0,
            top: Seq(0),
        }
    }

    /// How many numbers the window spans.
    #[must_use]
    pub fn window(&self) -> u32 {
        self.slots.len() as u32
    }

    /// How many frames are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len() - self.free.len()
    }

    /// How many messages are held.
    #[must_use]
    pub fn messages(&self) -> u32 {
        self.messages
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether one more frame can be held.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    fn slot(&mut self, seq: Seq) -> &mut u32 {
        let mask = self.slots.len() - 1;
        &mut self.slots[seq.0 as usize & mask]
    }

    /// The frame that holds `seq`, which must lie in the window that the caller keeps.
    #[must_use]
    pub fn get(&self, seq: Seq) -> Option<&F> {
        let index = self.slots[seq.0 as usize & (self.slots.len() - 1)];
        self.frames.get(index as usize)?.as_ref().map(|h| &h.frame)
    }

    /// Holds a frame for the numbers of `range` that are not held yet and returns how many those
    /// are. The frame comes back when they are none, or when there is no room.
    ///
    /// # Errors
    /// The frame itself.
    pub fn put(&mut self, range: SeqRange, frame: F) -> Result<u32, F> {
        let Some(&index) = self.free.last() else {
            return Err(frame);
        };
        let mut taken = 0;
        for seq in range.first.0..=range.last.0 {
            let slot = self.slot(Seq(seq));
            if *slot == EMPTY {
                *slot = index;
                taken += 1;
            }
        }
        if taken == 0 {
            return Err(frame);
        }
        self.free.pop();
        self.messages += taken;
        self.frames[index as usize] = Some(Held {
            frame,
            range,
            slots: taken,
        });
        self.top = self.top.max(range.last);
        Ok(taken)
    }

    /// The highest number held. `next` is the lowest number that may be held.
    pub fn top(&mut self, next: Seq) -> Option<Seq> {
        if self.is_empty() {
            return None;
        }
        while self.top > next && *self.slot(self.top) == EMPTY {
            self.top = self.top.prev();
        }
        Some(self.top)
    }

    /// Gives up the frame that is farthest ahead, if it lies behind `seq`, and says which numbers
    /// that were. Near frames are worth more: they are delivered first.
    pub fn evict_beyond(&mut self, seq: Seq, next: Seq) -> Option<SeqRange> {
        let top = self.top(next).filter(|top| *top > seq)?;
        let index = *self.slot(top);
        let range = self.frames.get(index as usize)?.as_ref()?.range;
        // Numbers of the frame that an older one had before stay with that one.
        let mut first = top;
        while first > range.first && first > next && *self.slot(first.prev()) == index {
            first = first.prev();
        }
        let gone = SeqRange { first, last: top };
        self.drop_range(gone);
        Some(gone)
    }

    /// Lets go of the numbers of `range`, and of each frame of which no number is left.
    pub fn drop_range(&mut self, range: SeqRange) {
        for seq in range.first.0..=range.last.0 {
            let index = core::mem::replace(self.slot(Seq(seq)), EMPTY);
            let Some(place) = self.frames.get_mut(index as usize) else {
                continue;
            };
            let Some(held) = place else { continue };
            held.slots -= 1;
            self.messages -= 1;
            if held.slots == 0 {
                if !planted!(KeepFrame) {
                    *place = None;
                }
                self.free.push(index);
            }
        }
    }

    /// Lets go of everything.
    pub fn clear(&mut self) {
        // The next session counts from 1 again.
        self.top = Seq(0);
        if self.is_empty() {
            return;
        }
        self.messages = 0;
        self.slots.fill(EMPTY);
        for (index, place) in self.frames.iter_mut().enumerate() {
            if place.take().is_some() {
                self.free.push(index as u32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u32, count: u32) -> SeqRange {
        SeqRange::of(Seq(first), count).unwrap()
    }

    #[test]
    fn the_farthest_frame_goes_first() {
        let mut hold = Hold::new(64, 3);
        for first in [20, 10, 30] {
            hold.put(range(first, 5), first).unwrap();
        }
        assert_eq!(hold.evict_beyond(Seq(40), Seq(5)), None, "nothing is farther");
        assert_eq!(hold.evict_beyond(Seq(8), Seq(5)), Some(range(30, 5)));
        assert_eq!(hold.top(Seq(5)), Some(Seq(24)));
        assert!(hold.put(range(5, 5), 5).is_ok());
        assert_eq!(hold.evict_beyond(Seq(8), Seq(5)), Some(range(20, 5)));
        assert_eq!(hold.len(), 2);
    }

    #[test]
    fn numbers_of_the_last_session_are_forgotten() {
        let mut hold = Hold::new(64, 2);
        hold.put(range(130, 10), 130).unwrap();
        hold.drop_range(range(130, 10));
        hold.clear();
        hold.put(range(5, 10), 5).unwrap();
        assert_eq!(hold.top(Seq(1)), Some(Seq(14)));
        assert_eq!(hold.evict_beyond(Seq(20), Seq(1)), None);
        assert_eq!(hold.evict_beyond(Seq(2), Seq(1)), Some(range(5, 10)));
    }

    #[test]
    fn overlapping_frames_are_each_freed_once() {
        let mut hold = Hold::new(64, 3);
        assert_eq!(hold.put(range(10, 5), "a"), Ok(5));
        assert_eq!(hold.put(range(12, 5), "b"), Ok(2));
        assert_eq!(hold.put(range(11, 3), "c"), Err("c"), "nothing new");
        assert_eq!(hold.get(Seq(14)), Some(&"a"));
        assert_eq!(hold.get(Seq(15)), Some(&"b"));
        hold.drop_range(range(10, 5));
        assert_eq!((hold.len(), hold.get(Seq(14))), (1, None));
        hold.drop_range(range(1, 63));
        assert!(hold.is_empty());
        for i in 0..3 {
            assert!(hold.put(range(20 + i, 1), "x").is_ok());
        }
        assert_eq!(hold.put(range(40, 1), "y"), Err("y"), "full");
        hold.clear();
        assert!(hold.is_empty() && hold.has_room());
    }
}

//! Memory that is written once and seldom read again: in a busy stream past the caches, which have better use.
//!
//! An ordinary store brings its line from memory first, and pushes out what the kernel needs for the same
//! frame. Stores past the caches do neither, but whoever needs the bus next waits for them: some 100 ns, too long
//! for a frame that is alone.

use std::cell::Cell;
use std::io;
use std::ops::Range;

use memmap2::{Advice, MmapMut};
use seqcast_archive::prefetch;

/// What moves between memory and the caches at once. Pieces begin at multiples of it.
pub(super) const LINE: usize = 64;
const PAGE: usize = 4096;
/// Bytes asked for ahead of the next piece: for many more the processor has to wait.
const AHEAD: usize = 1024;

/// How a piece is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// As any memory. The next piece is asked for as well.
    Alone,
    /// Past the caches, as one of many.
    OneOfMany,
}

/// Memory of the process, all of it there from the start.
#[derive(Debug)]
pub(super) struct Memory {
    bytes: MmapMut,
    /// Some of it was written past the caches since it was read last.
    unsettled: Cell<bool>,
}

impl Memory {
    /// At least `len` bytes, whole lines.
    ///
    /// # Errors
    /// When there is not so much memory.
    pub(super) fn new(len: usize) -> io::Result<Memory> {
        let mut bytes = MmapMut::map_anon(len.next_multiple_of(LINE))?;
        // Without huge pages the processor looks up a new one for every few frames. It does without them
        // where there are none.
        let _ = bytes.advise(Advice::HugePage);
        // So that no page is met for the first time while messages wait.
        bytes
            .iter_mut()
            .step_by(PAGE)
            .for_each(|b| *b = std::hint::black_box(1));
        Ok(Memory {
            bytes,
            unsettled: Cell::new(false),
        })
    }

    /// Its size in bytes.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// What was written there.
    #[inline]
    pub(super) fn read(&self, range: Range<usize>) -> &[u8] {
        self.settle();
        &self.bytes[range]
    }

    /// Writes `from` at `at`, a multiple of [`LINE`]. The rest of its last line is undefined.
    #[inline]
    pub(super) fn write(&mut self, at: usize, from: &[u8], way: Way) {
        if at == 0 || way == Way::Alone {
            self.settle();
        }
        let end = at + from.len().next_multiple_of(LINE);
        let to = &mut self.bytes[at..end];
        match way {
            Way::Alone => {
                to[..from.len()].copy_from_slice(from);
                let ahead = (end + from.len().min(AHEAD)).min(self.bytes.len());
                prefetch::to_write(&self.bytes[end..ahead]);
            }
            Way::OneOfMany => {
                let (lines, rest) = from.as_chunks();
                let (to, _) = to.as_chunks_mut::<LINE>();
                for (to, line) in to.iter_mut().zip(lines) {
                    store(to, line);
                }
                if let Some(to) = to.last_mut().filter(|_| !rest.is_empty()) {
                    let mut last = [0; LINE];
                    last[..rest.len()].copy_from_slice(rest);
                    store(to, &last);
                }
                self.unsettled.set(true);
            }
        }
    }

    /// Lets what was written past the caches come before what follows.
    #[inline]
    fn settle(&self) {
        if self.unsettled.replace(false) {
            settle();
        }
    }
}

/// Writes a line past the caches. Before it is read or written again, [`settle`] is to be called.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
fn store(to: &mut [u8; LINE], from: &[u8; LINE]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
    let (from, _) = from.as_chunks::<16>();
    let (to, _) = to.as_chunks_mut::<16>();
    for (to, from) in to.iter_mut().zip(from) {
        let to: *mut __m128i = to.as_mut_ptr().cast();
        assert!(to.is_aligned());
        // SAFETY: both are 16 bytes that may be read and written, and `to` is aligned. `Memory` alone calls this, and
        // settles before it lets anyone see the line, or writes to it again: that is a round of the ring later, and a
        // round begins with `at == 0`.
        unsafe { _mm_stream_si128(to, _mm_loadu_si128(from.as_ptr().cast())) };
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
fn settle() {
    // SAFETY: every x86-64 processor has the instruction, which touches no memory.
    unsafe { std::arch::x86_64::_mm_sfence() };
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
#[inline]
fn store(to: &mut [u8; LINE], from: &[u8; LINE]) {
    *to = *from;
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
fn settle() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_either_way_is_read_back_round_after_round() {
        let mut memory = Memory::new(64 * LINE).unwrap();
        for round in 0..8u8 {
            let mut kept = Vec::new();
            let mut at = 0;
            for len in (1..).step_by(37) {
                if at + len > memory.len() {
                    break;
                }
                let bytes: Vec<u8> = (0..len).map(|i| (i as u8) ^ round).collect();
                let way = [Way::Alone, Way::OneOfMany][(len + usize::from(round)) % 2];
                memory.write(at, &bytes, way);
                kept.push((at, bytes));
                at += len.next_multiple_of(LINE);
            }
            assert!(kept.len() > 8);
            for (at, bytes) in kept {
                assert_eq!(memory.read(at..at + bytes.len()), bytes, "round {round} at {at}");
            }
        }
    }
}

//! A slot of a broadcast ring: a sequence lock over words. One writer, any number of readers that
//! write nothing. All words are atomic, so that a reader that is overrun in mid-copy reads old and
//! new words mixed, finds out, and has raced with nobody in the sense of the language.
//!
//! | word | holds |
//! |---|---|
//! | 0 | stamp: `2n + 1` while message `n` is written, `2n + 2` once it is there |
//! | 1 | length in the low 32 bits, tag in the high 32 |
//! | 2.. | the message; an even number of words |

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Words before the message.
pub(crate) const HEADER: usize = 2;
const WORD: usize = size_of::<u64>();

/// What a reader that wants a certain message finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The message is not there yet.
    Nothing,
    /// The message; that many bytes were copied out.
    Message { tag: u32, len: usize },
    /// A later message has taken the slot.
    Overrun,
    /// A length that no slot can hold: the writer does not keep to the format.
    Corrupt { length: u32 },
}

fn busy(number: u64) -> u64 {
    number.wrapping_mul(2).wrapping_add(1)
}

fn ready(number: u64) -> u64 {
    busy(number).wrapping_add(1)
}

/// Writes message `number`, which fits the slot: `head` and then `message`.
#[inline]
pub(crate) fn write(slot: &[AtomicU64], number: u64, tag: u32, head: &[[u8; WORD]], message: &[u8]) {
    // Release: who sees this stamp also sees how far the writer was when it took the slot.
    slot[0].store(busy(number), Ordering::Release);
    // With the reader's fence: who reads a word stored below finds the stamp above, or a later one.
    fence(Ordering::Release);
    let len = size_of_val(head) + message.len();
    slot[1].store(len as u64 | u64::from(tag) << 32, Ordering::Relaxed);
    let (whole, rest) = message.as_chunks::<WORD>();
    let words = &slot[HEADER..][..len.div_ceil(WORD)];
    for (word, bytes) in words.iter().zip(head.iter().chain(whole)) {
        word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
    }
    if !rest.is_empty() {
        let mut bytes = [0; WORD];
        bytes[..rest.len()].copy_from_slice(rest);
        words[head.len() + whole.len()].store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
    }
    slot[0].store(ready(number), Ordering::Release);
}

/// Two words that somebody may be writing, each read at once.
#[inline]
#[cfg(not(all(target_arch = "x86_64", not(miri), not(loom))))]
fn load(pair: &[AtomicU64; 2]) -> [[u8; WORD]; 2] {
    [&pair[0], &pair[1]].map(|word| word.load(Ordering::Relaxed).to_ne_bytes())
}

/// Two words that somebody may be writing, each read at once.
///
/// In one instruction: a reader that then looks at more than a word of the copy would wait until
/// stores of single words have left the store buffer, which takes longer than the copy.
#[inline]
#[cfg(all(target_arch = "x86_64", not(miri), not(loom)))]
fn load(pair: &[AtomicU64; 2]) -> [[u8; WORD]; 2] {
    let both: std::arch::x86_64::__m128i;
    // SAFETY: reads 16 bytes of live memory that is shared as atomic words. On this architecture each
    // aligned word of a longer load is read at once and in program order with other loads, so the
    // instruction does what two relaxed loads do, and nothing else.
    unsafe {
        std::arch::asm!(
            "movdqu {both}, [{pair}]",
            both = out(xmm_reg) both,
            pair = in(reg) pair.as_ptr(),
            options(nostack, preserves_flags, readonly),
        );
        std::mem::transmute::<std::arch::x86_64::__m128i, [[u8; WORD]; 2]>(both)
    }
}

/// Copies at most `pairs` pairs of words that somebody may be writing.
#[inline]
fn copy(words: &[AtomicU64], out: &mut [[u8; WORD]], pairs: usize) {
    let words = words.as_chunks::<2>().0;
    for (bytes, pair) in out.as_chunks_mut::<2>().0.iter_mut().zip(words).take(pairs) {
        *bytes = load(pair);
    }
}

/// Copies words that somebody may be writing to the start of `out`, which is at least as long.
#[inline]
#[cfg(not(loom))]
pub(crate) fn copy_words(words: &[AtomicU64], out: &mut [[u8; WORD]]) {
    copy(words, out, words.len() / 2);
    if let (true, Some(last)) = (words.len() % 2 == 1, words.last()) {
        out[words.len() - 1] = last.load(Ordering::Relaxed).to_ne_bytes();
    }
}

/// Copies message `number` to the start of `out`, which is as long as the slot's messages may be.
/// What it leaves there is of use only if it returns [`Found::Message`].
#[inline]
pub(crate) fn read(slot: &[AtomicU64], number: u64, out: &mut [[u8; WORD]]) -> Found {
    let stamp = slot[0].load(Ordering::Acquire);
    if stamp != ready(number) {
        return without(stamp, number);
    }
    let word = slot[1].load(Ordering::Relaxed);
    let (length, tag) = (word as u32, (word >> 32) as u32);
    let pairs = (length as usize).div_ceil(2 * WORD);
    copy(&slot[HEADER..], out, pairs);
    // With the writer's fence: a word above from a later message shows in the stamp below.
    fence(Ordering::Acquire);
    let stamp = slot[0].load(Ordering::Acquire);
    if stamp != ready(number) {
        return without(stamp, number);
    }
    if length as usize > out.len() * WORD {
        return Found::Corrupt { length };
    }
    let len = length as usize;
    Found::Message { tag, len }
}

fn without(stamp: u64, number: u64) -> Found {
    if stamp > ready(number) {
        Found::Overrun
    } else {
        Found::Nothing
    }
}

#[cfg(all(test, loom))]
mod tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    /// One slot, overwritten `messages` times while a reader wants each in turn: what it gets is whole
    /// and the right one, and it can miss a message only if a later one has been begun.
    fn check(messages: u64) {
        loom::model(move || {
            let ring = Arc::new([const { 0 }; HEADER + 2].map(AtomicU64::new));
            let head = Arc::new(AtomicU64::new(0));
            let writer = thread::spawn({
                let (ring, head) = (ring.clone(), head.clone());
                move || {
                    for number in 0..messages {
                        write(&ring[..], number, number as u32, &[], &[number as u8 + 1; WORD]);
                        head.store(number + 1, Ordering::Release);
                    }
                }
            });
            let mut out = [[0; WORD]; 2];
            for number in 0..messages {
                let published = head.load(Ordering::Acquire);
                match read(&ring[..], number, &mut out) {
                    Found::Message { tag, len } => {
                        assert_eq!((u64::from(tag), len), (number, WORD));
                        assert!(out[0].iter().all(|byte| u64::from(*byte) == number + 1));
                    }
                    // The slot is taken for the next one only after the head has passed this one.
                    Found::Overrun => assert!(head.load(Ordering::Acquire) > number),
                    Found::Nothing => assert!(published <= number),
                    Found::Corrupt { .. } => panic!("no such length was written"),
                }
            }
            writer.join().unwrap();
            let last = messages - 1;
            assert!(matches!(read(&ring[..], last, &mut out), Found::Message { .. }));
            assert!(matches!(read(&ring[..], last + 1, &mut out), Found::Nothing));
            assert!(messages < 2 || matches!(read(&ring[..], last - 1, &mut out), Found::Overrun));
        });
    }

    #[test]
    fn readers_see_whole_messages_or_none() {
        check(2);
    }
}

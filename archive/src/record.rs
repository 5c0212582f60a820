//! One record: a 32-byte header and a block of messages, padded to 8 bytes.
//!
//! ```text
//!  0  u32  length of header and block without padding; 0: no record here. Written last
//!  4  u32  CRC32C of bytes 8..length, xor the segment's generation, xor length
//!  8  u32  first sequence number
//! 12  u16  number of messages; 0: a control record
//! 14  u16  flags of the writer; in a control record its kind
//! 16  u64  send time, ns
//! 24  u64  receive time, ns
//! 32       block
//! ```
//! The generation makes a record that an earlier life of a recycled file left behind fail its
//! check, always: the same bytes under another generation have another checksum.

use seqcast_proto::seq::{Seq, SeqRange, Session};

use crate::codec::{u32_at, u64_at};
use crate::crc::{crc32c, crc32c_of};

/// Bytes before the block.
pub(crate) const HEADER: usize = 32;

const KIND_LOST: u16 = 1;
const KIND_END: u16 = 2;

/// A stored block of consecutive messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The number of the block's first message.
    pub first: Seq,
    /// How many messages the block holds, at least 1.
    pub count: u16,
    /// When the server sent it, ns.
    pub send_ns: u64,
    /// When it was received, ns.
    pub recv_ns: u64,
    /// The writer's own bits.
    pub flags: u16,
    /// The messages' bytes as they were appended.
    pub block: &'a [u8],
}

impl Record<'_> {
    /// The numbers of the block's messages.
    #[must_use]
    pub fn range(&self) -> SeqRange {
        SeqRange {
            first: self.first,
            last: self.first.plus(u32::from(self.count) - 1),
        }
    }
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry<'a> {
    Data(Record<'a>),
    /// These numbers exist nowhere.
    Lost(SeqRange),
    /// The session's last number, and the session after it.
    End(Seq, Session),
}

/// Bytes that a block of `block` bytes takes in the log.
pub(crate) fn size(block: usize) -> usize {
    (HEADER + block).next_multiple_of(8)
}

/// Bytes 8 to 32 of a record, as words.
///
/// Words from the start: fields put together from memory, where each was written for itself a
/// moment ago, would wait until all that was written before, records included, has reached the cache.
pub(crate) type Head = [u64; 3];

#[inline]
pub(crate) fn head(first: Seq, count: u16, flags: u16, send_ns: u64, recv_ns: u64) -> Head {
    let numbers = u64::from(first.0) | u64::from(count) << 32 | u64::from(flags) << 48;
    [numbers, send_ns, recv_ns]
}

/// Writes everything but the first word, which holds length and checksum, and returns that word:
/// the record is there once it is.
///
/// `into` starts at the record and is at least `HEADER + block.len()` bytes long. What was written
/// is not read back, for the checksum either, for the same reason as in [`Head`].
#[inline]
pub(crate) fn encode(into: &mut [u8], generation: u32, head: Head, block: &[u8]) -> u64 {
    let length = HEADER + block.len();
    let (start, rest) = into[8..length].split_at_mut(HEADER - 8);
    for (place, word) in start.as_chunks_mut().0.iter_mut().zip(head) {
        *place = word.to_le_bytes();
    }
    rest.copy_from_slice(block);
    let word = u32::try_from(length).expect("a record fits a segment, which fits 32 bits");
    let crc = crc32c_of(head, block) ^ generation ^ word;
    u64::from(word) | u64::from(crc) << 32
}

/// The checksum of a record that fills `record`.
fn checksum(record: &[u8], generation: u32) -> u32 {
    crc32c(&record[8..]) ^ generation ^ record.len() as u32
}

/// The control record that says `lost`.
pub(crate) fn lost(range: SeqRange) -> (Head, [u8; 4]) {
    (head(range.first, 0, KIND_LOST, 0, 0), range.last.0.to_le_bytes())
}

/// The control record that says that the session ends at `last` and goes on as `next`.
pub(crate) fn end(last: Seq, next: Session) -> (Head, [u8; 4]) {
    (head(last, 0, KIND_END, 0, 0), next.0.to_le_bytes())
}

/// What lies at the start of some bytes of a log.
#[derive(Debug)]
pub(crate) enum Parsed<'a> {
    /// A whole record, and the bytes that it takes with padding.
    Whole(Entry<'a>, usize),
    /// No record was written here yet.
    Nothing,
    /// Something that is not a whole record, and what is wrong with it.
    Bad(&'static str),
}

/// Reads and checks the record at the start of `bytes`.
pub(crate) fn parse(bytes: &[u8], generation: u32) -> Parsed<'_> {
    if bytes.len() < 4 {
        return Parsed::Nothing;
    }
    let length = u32_at(bytes, 0) as usize;
    if length == 0 {
        return Parsed::Nothing;
    }
    if length < HEADER || length.next_multiple_of(8) > bytes.len() {
        return Parsed::Bad("its length is impossible");
    }
    let record = &bytes[..length];
    if u32_at(record, 4) != checksum(record, generation) {
        return Parsed::Bad("its checksum is wrong");
    }
    let [count, flags] = [12, 14].map(|at| u16::from_le_bytes([record[at], record[at + 1]]));
    let first = Seq(u32_at(record, 8));
    let block = &record[HEADER..];
    let entry = match (count, flags) {
        (0, KIND_LOST) if block.len() == 4 => SeqRange::new(first, Seq(u32_at(block, 0))).map(Entry::Lost),
        (0, KIND_END) if block.len() == 4 => Some(Entry::End(first, Session(u32_at(block, 0)))),
        (0, _) => None,
        _ => SeqRange::of(first, u32::from(count))
            .filter(|r| r.first >= Seq::FIRST)
            .map(|_| {
                Entry::Data(Record {
                    first,
                    count,
                    send_ns: u64_at(record, 16),
                    recv_ns: u64_at(record, 24),
                    flags,
                    block,
                })
            }),
    };
    match entry {
        Some(entry) => Parsed::Whole(entry, length.next_multiple_of(8)),
        None => Parsed::Bad("its numbers are impossible"),
    }
}

/// The numbers of the record at the start of `bytes` and the bytes it takes, unchecked: for
/// walking over records that this process wrote or checked before.
pub(crate) fn peek(bytes: &[u8]) -> (Option<SeqRange>, usize) {
    let count = u16::from_le_bytes([bytes[12], bytes[13]]);
    let range = SeqRange::of(Seq(u32_at(bytes, 8)), u32::from(count));
    (range, (u32_at(bytes, 0) as usize).next_multiple_of(8))
}

/// Blocks of messages come in datagrams; longer ones are not looked for where the chain of records is cut.
const LONGEST_LOOKED_FOR: usize = HEADER + (1 << 16);

/// Where the next whole record is from `from` on, when nothing says where one begins.
pub(crate) fn next_whole(bytes: &[u8], from: usize, generation: u32) -> Option<usize> {
    (from.next_multiple_of(8)..bytes.len().saturating_sub(HEADER))
        .step_by(8)
        .find(|&at| {
            let length = u32_at(bytes, at) as usize;
            (HEADER..=LONGEST_LOOKED_FOR).contains(&length)
                && matches!(parse(&bytes[at..], generation), Parsed::Whole(..))
        })
}

/// Walks over the records of a segment until the first place that has none.
pub(crate) struct Scan<'a> {
    bytes: &'a [u8],
    generation: u32,
    /// Where the next record is looked for, or, after the last, where the records end.
    pub(crate) at: usize,
    /// What was wrong at `at`, once the walk has ended at a bad record.
    pub(crate) bad: Option<&'static str>,
}

impl<'a> Scan<'a> {
    pub(crate) fn new(bytes: &'a [u8], from: usize, generation: u32) -> Scan<'a> {
        Scan {
            bytes,
            generation,
            at: from,
            bad: None,
        }
    }
}

impl<'a> Iterator for Scan<'a> {
    type Item = (usize, Entry<'a>);

    fn next(&mut self) -> Option<(usize, Entry<'a>)> {
        if self.bad.is_some() {
            return None;
        }
        match parse(self.bytes.get(self.at..)?, self.generation) {
            Parsed::Whole(entry, size) => {
                let at = self.at;
                self.at += size;
                Some((at, entry))
            }
            Parsed::Nothing => None,
            Parsed::Bad(why) => {
                self.bad = Some(why);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(first: u32, count: u16, block: &[u8]) -> Record<'_> {
        Record {
            first: Seq(first),
            count,
            send_ns: 1,
            recv_ns: 2,
            flags: 3,
            block,
        }
    }

    fn written(generation: u32, record: &Record<'_>) -> Vec<u8> {
        let r = record;
        wrote(
            generation,
            head(r.first, r.count, r.flags, r.send_ns, r.recv_ns),
            r.block,
        )
    }

    fn wrote(generation: u32, head: Head, block: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; size(block.len())];
        let word = encode(&mut bytes, generation, head, block);
        bytes[..8].copy_from_slice(&word.to_le_bytes());
        bytes
    }

    #[test]
    fn the_layout_is_pinned() {
        let bytes = written(7, &data(0x0102_0304, 2, b"abc"));
        let mut golden = vec![35, 0, 0, 0, 0, 0, 0, 0, 4, 3, 2, 1, 2, 0, 3, 0];
        golden.extend([1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend(b"abc\0\0\0\0\0");
        let crc = crc_fast::crc32_iscsi(&golden[8..35]) ^ 7 ^ 35;
        golden[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(bytes, golden);
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let bytes = written(7, &data(5, 2, b"hello"));
        let whole = HEADER + 5;
        for bit in 0..whole * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(parse(&bad, 7), Parsed::Whole(..)), "bit {bit}");
        }
        assert!(matches!(parse(&bytes, 8), Parsed::Bad(_)), "another generation");
        assert!(matches!(parse(&bytes[..32], 7), Parsed::Bad(_)), "cut");
    }

    #[test]
    fn control_records_come_back() {
        let range = SeqRange::of(Seq(4), 9).unwrap();
        let ends = [(Seq(9), Session(3)), (Seq(0), Session::NONE)];
        let ends = ends.map(|(last, next)| (end(last, next), Entry::End(last, next)));
        for ((head, block), entry) in [(lost(range), Entry::Lost(range))].into_iter().chain(ends) {
            let bytes = wrote(1, head, &block);
            assert!(matches!(parse(&bytes, 1), Parsed::Whole(e, 40) if e == entry));
        }
    }
}

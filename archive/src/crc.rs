//! CRC32C, fast also for the few bytes of a small record.

use crc_fast::{CrcAlgorithm, Digest};

/// Bytes from which wide multiplication, which takes a while to begin, is faster than the
/// instruction that takes 8 bytes at a time.
#[cfg(target_arch = "x86_64")]
const WIDE: usize = 320;

/// The CRC32C (iSCSI polynomial, usual initial and final inversion) of `bytes`.
#[must_use]
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c_of([], bytes)
}

/// The CRC32C of `words`, little-endian, and then `bytes`, as if they lay in memory one behind the
/// other. Words that are still in registers need not be read back from where they are being written.
#[must_use]
#[inline]
pub fn crc32c_of<const N: usize>(words: [u64; N], bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("sse4.2") {
        // SAFETY: the processor has the instruction, as was just found.
        return unsafe { by_instruction(words, bytes) };
    }
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    for word in words {
        digest.update(&word.to_le_bytes());
    }
    digest.update(bytes);
    digest.finalize() as u32
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn by_instruction<const N: usize>(words: [u64; N], bytes: &[u8]) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u64};
    let mut crc = u64::from(u32::MAX);
    for word in words {
        crc = _mm_crc32_u64(crc, word);
    }
    if bytes.len() >= WIDE {
        return wide(crc, bytes);
    }
    let (chunks, rest) = bytes.as_chunks();
    for chunk in chunks {
        crc = _mm_crc32_u64(crc, u64::from_le_bytes(*chunk));
    }
    !rest.iter().fold(crc as u32, |crc, byte| _mm_crc32_u8(crc, *byte))
}

/// Apart, so that small pieces need no registers saved: the store buffer is full of records.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
fn wide(state: u64, bytes: &[u8]) -> u32 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, state);
    digest.update(bytes);
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_has_the_same_checksum_by_either_way() {
        let bytes: Vec<u8> = (0..1000u32).map(|i| ((i * 167) >> 3) as u8).collect();
        for len in 0..bytes.len() {
            assert_eq!(crc32c(&bytes[..len]), crc_fast::crc32_iscsi(&bytes[..len]), "{len}");
        }
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn words_count_as_the_bytes_before() {
        let bytes: Vec<u8> = (0..1000u32).map(|i| ((i * 89) >> 2) as u8).collect();
        let (words, _) = bytes.as_chunks();
        let words = [0, 1].map(|i| u64::from_le_bytes(words[i]));
        for len in [16, 17, 24, 100, 335, 336, 337, 999] {
            assert_eq!(crc32c_of(words, &bytes[16..len]), crc32c(&bytes[..len]), "{len}");
        }
    }
}

//! Asks the processor for memory ahead of its use, so that the wait overlaps with other work.

/// Bytes that move between memory and cache at once.
const LINE: usize = 64;

/// Asks for `bytes`, to read them soon. A few hundred bytes at a time are useful, more are forgotten
/// before they are read.
#[inline]
pub fn to_read(bytes: &[u8]) {
    ask::<false>(bytes);
}

/// Asks for `bytes`, to write them soon.
#[inline]
pub fn to_write(bytes: &[u8]) {
    ask::<true>(bytes);
}

#[inline]
fn ask<const WRITE: bool>(bytes: &[u8]) {
    for line in bytes.chunks(LINE) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch changes nothing that a program can see, and the address is valid besides.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
            if WRITE {
                _mm_prefetch::<_MM_HINT_ET0>(line.as_ptr().cast());
            } else {
                _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }
}

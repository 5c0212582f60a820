//! Histograms whose buckets can lie in shared memory.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::memory::Memory;

/// The buckets of a histogram: those of an HDR histogram with 128 for each power of two, so that a
/// bucket's bounds are less than 1 % apart. Values below 128 have one each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buckets;

/// Buckets for each power of two, as a power of two.
const BITS: u32 = 7;

impl Buckets {
    /// How many there are.
    pub const COUNT: usize = Self::index(Self::MOST) + 1;
    /// The largest value that is told from larger ones: 68 s in nanoseconds.
    pub const MOST: u64 = (1 << 36) - 1;

    /// The bucket of a value.
    #[inline]
    #[must_use]
    pub const fn index(value: u64) -> usize {
        let value = if value > Self::MOST { Self::MOST } else { value };
        let shift = (u64::BITS - (value | 1).leading_zeros()).saturating_sub(BITS + 1);
        ((shift as usize) << BITS) + (value >> shift) as usize
    }

    /// The largest value of a bucket.
    #[must_use]
    pub const fn largest(index: usize) -> u64 {
        let shift = (index >> BITS).saturating_sub(1);
        let first = (index - (shift << BITS)) as u64;
        ((first + 1) << shift) - 1
    }
}

/// How often each value was met. Only one thread may record.
#[derive(Debug)]
pub struct Histogram {
    memory: Memory,
    at: usize,
}

impl Histogram {
    /// An empty one, which nobody else sees.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new() -> io::Result<Histogram> {
        Ok(Histogram {
            memory: Memory::private(Buckets::COUNT)?,
            at: 0,
        })
    }

    /// One in memory that has room for it at `at`.
    pub(super) fn within(memory: Memory, at: usize) -> Histogram {
        Histogram { memory, at }
    }

    /// A value was met so many times.
    #[inline]
    pub fn record(&mut self, value: u64, times: u64) {
        if let Some(bucket) = self.memory.words().get(self.at + Buckets::index(value)) {
            // Nobody else writes.
            bucket.store(bucket.load(Ordering::Relaxed) + times, Ordering::Relaxed);
        }
    }

    /// How often each bucket was met.
    pub fn counts(&self) -> impl Iterator<Item = u64> {
        let buckets = self.memory.words().iter().skip(self.at).take(Buckets::COUNT);
        buckets.map(|bucket: &AtomicU64| bucket.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_in_the_one_bucket_that_holds_it() {
        assert_eq!(Buckets::index(0), 0);
        for index in 0..Buckets::COUNT {
            let largest = Buckets::largest(index);
            assert_eq!(Buckets::index(largest), index);
            if index + 1 < Buckets::COUNT {
                assert_eq!(Buckets::index(largest + 1), index + 1);
            }
        }
        assert_eq!(Buckets::largest(Buckets::COUNT - 1), Buckets::MOST);
        assert_eq!(Buckets::index(u64::MAX), Buckets::COUNT - 1);
    }

    #[test]
    fn bounds_are_less_than_a_percent_apart() {
        for index in 128..Buckets::COUNT {
            let (below, most) = (Buckets::largest(index - 1), Buckets::largest(index));
            assert!((most - below) as f64 <= below as f64 / 100.0 * 0.79, "{below} {most}");
        }
    }

    #[test]
    fn what_is_recorded_is_counted() {
        let mut histogram = Histogram::new().unwrap();
        histogram.record(1_000_000, 3);
        histogram.record(1_000_001, 1);
        assert_eq!(histogram.counts().sum::<u64>(), 4);
        assert_eq!(histogram.counts().nth(Buckets::index(1_000_000)), Some(4));
    }
}

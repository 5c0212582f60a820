//! A bounded, sorted set of sequence numbers, kept as ranges.

use alloc::vec::Vec;

use crate::seq::{Seq, SeqRange};

/// Sorted, disjoint, non-adjacent ranges, at most [`RangeSet::limit`] of them.
///
/// Looking up is a binary search; growing at the end, the common case, moves nothing.
#[derive(Clone, Debug)]
pub struct RangeSet {
    ranges: Vec<SeqRange>,
    limit: usize,
}

/// The set already holds as many ranges as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetFull;

impl RangeSet {
    /// An empty set of at most `limit` ranges. All memory is taken now.
    #[must_use]
    pub fn new(limit: usize) -> RangeSet {
        RangeSet {
            ranges: Vec::with_capacity(limit),
            limit,
        }
    }

    /// Most ranges the set may hold.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// The ranges, ascending.
    #[must_use]
    pub fn as_slice(&self) -> &[SeqRange] {
        &self.ranges
    }

    /// Whether no number is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many numbers the set holds.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.ranges.iter().map(|r| u64::from(r.len())).sum()
    }

    /// Whether `seq` is in the set.
    #[must_use]
    pub fn contains(&self, seq: Seq) -> bool {
        self.range_of(seq).is_some()
    }

    /// The range that holds `seq`.
    #[must_use]
    pub fn range_of(&self, seq: Seq) -> Option<SeqRange> {
        let i = self.ranges.partition_point(|r| r.last < seq);
        self.ranges.get(i).copied().filter(|r| r.contains(seq))
    }

    /// The lowest number at or after `from` that is not in the set.
    #[must_use]
    pub fn first_absent(&self, from: Seq) -> Seq {
        self.range_of(from).map_or(from, SeqRange::end)
    }

    /// Calls `each` with every maximal range inside `within` that the set does not hold, ascending.
    pub fn absent(&self, within: SeqRange, mut each: impl FnMut(SeqRange)) {
        let mut from = within.first;
        let start = self.ranges.partition_point(|r| r.last < within.first);
        for r in &self.ranges[start..] {
            if r.first > within.last {
                break;
            }
            if let Some(hole) = SeqRange::new(from, r.first.prev()) {
                each(hole);
            }
            from = r.end();
        }
        if let Some(hole) = SeqRange::new(from, within.last) {
            each(hole);
        }
    }

    /// Adds a range, joining it with those that it meets or touches.
    ///
    /// # Errors
    /// [`SetFull`], with the set unchanged, when it would take a range too many.
    #[inline]
    pub fn insert(&mut self, range: SeqRange) -> Result<(), SetFull> {
        // Mostly numbers come in order.
        if let Some(last) = self.ranges.last_mut()
            && last.first <= range.first
            && range.first <= last.end()
        {
            last.last = last.last.max(range.last);
            return Ok(());
        }
        self.insert_anywhere(range)
    }

    fn insert_anywhere(&mut self, range: SeqRange) -> Result<(), SetFull> {
        // Ranges lo..hi overlap or touch the new one.
        let lo = self.ranges.partition_point(|r| r.end() < range.first);
        let hi = lo + self.ranges[lo..].partition_point(|r| r.first <= range.end());
        if lo == hi {
            if self.ranges.len() == self.limit {
                return Err(SetFull);
            }
            self.ranges.insert(lo, range);
        } else {
            let joined = SeqRange {
                first: range.first.min(self.ranges[lo].first),
                last: range.last.max(self.ranges[hi - 1].last),
            };
            self.ranges[lo] = joined;
            self.ranges.drain(lo + 1..hi);
        }
        Ok(())
    }

    /// Takes `range` out. When cutting a hole would make a range too many, the numbers above the
    /// hole go as well.
    pub fn remove(&mut self, range: SeqRange) {
        let lo = self.ranges.partition_point(|r| r.last < range.first);
        let hi = lo + self.ranges[lo..].partition_point(|r| r.first <= range.last);
        if lo == hi {
            return;
        }
        let before = SeqRange::new(self.ranges[lo].first, range.first.prev());
        let after = SeqRange::new(range.end(), self.ranges[hi - 1].last);
        self.ranges.drain(lo..hi);
        let mut at = lo;
        if let Some(part) = before {
            self.ranges.insert(at, part);
            at += 1;
        }
        if let Some(part) = after
            && self.ranges.len() < self.limit
        {
            self.ranges.insert(at, part);
        }
    }

    /// Takes every number below `seq` out.
    pub fn remove_below(&mut self, seq: Seq) {
        let gone = self.ranges.partition_point(|r| r.last < seq);
        self.ranges.drain(..gone);
        if let Some(first) = self.ranges.first_mut() {
            first.first = first.first.max(seq);
        }
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        self.ranges.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use proptest::prelude::*;

    fn range(first: u32, count: u32) -> SeqRange {
        SeqRange::of(Seq(first), count).unwrap()
    }

    #[test]
    fn refuses_a_range_too_many_and_stays_whole() {
        let mut set = RangeSet::new(2);
        set.insert(range(1, 2)).unwrap();
        set.insert(range(10, 2)).unwrap();
        assert_eq!(set.insert(range(20, 1)), Err(SetFull));
        set.insert(range(3, 7)).unwrap();
        assert_eq!(set.as_slice(), &[range(1, 11)]);
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_set(ops in prop::collection::vec((0u8..4, 1u32..200, 1u32..20), 1..80)) {
            let mut set = RangeSet::new(1000);
            let mut model = BTreeSet::new();
            for (op, first, count) in ops {
                if op == 1 {
                    set.remove(range(first, count));
                    model.retain(|s| !range(first, count).contains(Seq(*s)));
                } else if op == 0 {
                    set.remove_below(Seq(first));
                    model.retain(|&s| s >= first);
                } else {
                    set.insert(range(first, count)).unwrap();
                    model.extend(first..first + count);
                }
                prop_assert_eq!(set.total(), model.len() as u64);
                for pair in set.as_slice().windows(2) {
                    prop_assert!(pair[0].end() < pair[1].first, "ranges stay apart");
                }
                let mut holes = BTreeSet::new();
                set.absent(range(1, 230), |h| holes.extend(h.first.0..=h.last.0));
                for s in 1..=230 {
                    prop_assert_eq!(set.contains(Seq(s)), model.contains(&s));
                    prop_assert_eq!(holes.contains(&s), !model.contains(&s));
                    let absent = (s..).find(|x| !model.contains(x)).unwrap();
                    prop_assert_eq!(set.first_absent(Seq(s)), Seq(absent));
                }
            }
        }
    }
}

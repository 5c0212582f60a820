//! Sequence numbers, sessions, and ranges of sequence numbers.
//!
//! This is the one module that compares or adds sequence numbers. A sequence starts at
//! [`Seq::FIRST`] in each session and never wraps: near the end of the 32-bit range the server
//! closes the session and opens the next. Plain integer order is therefore the order of the stream.

use core::fmt;

/// A stream's identity on the wire. Derived from the multicast group and port unless configured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Stream(pub u32);

/// One run of a server on a stream. Strictly growing and never reused; 0 means "none".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Session(pub u32);

impl Session {
    /// "No session": a previous or next session that is not known or does not exist.
    pub const NONE: Session = Session(0);

    /// The session itself, or `None` for [`Session::NONE`].
    #[must_use]
    pub fn known(self) -> Option<Session> {
        (self != Session::NONE).then_some(self)
    }
}

/// The number of one message within a session, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Seq(pub u32);

impl Seq {
    /// The number of a session's first message.
    pub const FIRST: Seq = Seq(1);
    /// The last number that a session may use; the one above it stays free so that "next" and
    /// one-past-the-end always fit 32 bits.
    pub const LAST: Seq = Seq(u32::MAX - 1);

    /// The number that follows, saturating at the type's end (see [`Seq::LAST`]).
    #[must_use]
    pub const fn next(self) -> Seq {
        Seq(self.0.saturating_add(1))
    }

    /// The number before, saturating at 0 ("before the first").
    #[must_use]
    pub const fn prev(self) -> Seq {
        Seq(self.0.saturating_sub(1))
    }

    /// The number `n` messages later, saturating.
    #[must_use]
    pub const fn plus(self, n: u32) -> Seq {
        Seq(self.0.saturating_add(n))
    }

    /// How many messages lie from `earlier` (included) to `self` (excluded); 0 if there are none.
    #[must_use]
    pub const fn since(self, earlier: Seq) -> u32 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A range of sequence numbers, both ends included, never empty.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SeqRange {
    /// The first number of the range.
    pub first: Seq,
    /// The last number of the range, at least `first`.
    pub last: Seq,
}

impl SeqRange {
    /// The range from `first` to `last`, or `None` when it would be empty.
    #[must_use]
    pub fn new(first: Seq, last: Seq) -> Option<SeqRange> {
        (first <= last).then_some(SeqRange { first, last })
    }

    /// The range of `count` numbers from `first`; `None` when empty or past [`Seq::LAST`].
    #[must_use]
    pub fn of(first: Seq, count: u32) -> Option<SeqRange> {
        let last = first.0.checked_add(count.checked_sub(1)?)?;
        (last <= Seq::LAST.0).then_some(SeqRange { first, last: Seq(last) })
    }

    /// How many numbers the range holds, at least 1.
    #[allow(clippy::len_without_is_empty)] // never empty
    #[must_use]
    pub fn len(self) -> u32 {
        self.end().since(self.first)
    }

    /// One past the last number.
    #[must_use]
    pub fn end(self) -> Seq {
        self.last.next()
    }

    /// Whether `seq` lies in the range.
    #[must_use]
    pub fn contains(self, seq: Seq) -> bool {
        self.first <= seq && seq <= self.last
    }

    /// The numbers that both ranges hold.
    #[must_use]
    pub fn intersect(self, other: SeqRange) -> Option<SeqRange> {
        SeqRange::new(self.first.max(other.first), self.last.min(other.last))
    }

    /// At most the first `n` numbers of the range; `n` is taken as at least 1.
    #[must_use]
    pub fn prefix(self, n: u32) -> SeqRange {
        let last = self.first.plus(n.max(1) - 1).min(self.last);
        SeqRange {
            first: self.first,
            last,
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for SeqRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_the_range_do_not_wrap() {
        assert_eq!(Seq::LAST.next(), Seq(u32::MAX));
        assert_eq!(Seq(u32::MAX).next(), Seq(u32::MAX));
        assert_eq!(Seq(0).prev(), Seq(0));
        assert_eq!(SeqRange::of(Seq::LAST, 1).map(SeqRange::len), Some(1));
        assert_eq!(SeqRange::of(Seq::LAST, 2), None);
        assert_eq!(SeqRange::of(Seq::FIRST, 0), None);
        assert_eq!(
            SeqRange::of(Seq::FIRST, Seq::LAST.0).map(SeqRange::len),
            Some(Seq::LAST.0)
        );
    }

    #[test]
    fn ranges_meet_and_split() {
        let r = SeqRange::of(Seq(10), 10).unwrap();
        assert_eq!(
            r.intersect(SeqRange::of(Seq(15), 20).unwrap()),
            SeqRange::of(Seq(15), 5)
        );
        assert_eq!(r.intersect(SeqRange::of(Seq(20), 1).unwrap()), None);
        assert_eq!(r.prefix(3), SeqRange::of(Seq(10), 3).unwrap());
        assert_eq!(r.prefix(99), r);
        assert!(r.contains(Seq(19)) && !r.contains(Seq(20)));
    }
}

//! Giving up what is not needed any more.

use seqcast_proto::seq::Seq;

use super::SessionLog;
use super::append::Front;
use crate::background::Jobs;
use crate::index;

impl SessionLog {
    /// Releases all numbers below `seq`: they are not found any more, and segments that hold
    /// nothing else are recycled. May be forgotten if the process is killed soon after.
    pub fn release_below(&mut self, seq: Seq) {
        self.front = Front::EMPTY;
        if seq > self.floor {
            self.floor = seq;
            self.changed = true;
            self.stored.remove_below(seq);
            self.synced.remove_below(seq);
            self.lost.remove_below(seq);
        }
        let seq = self.floor;
        if seq <= self.oldest_top {
            return;
        }
        self.changed = true;
        let mut jobs = Jobs::default();
        let finished = self.segments.len().saturating_sub(usize::from(self.open));
        for slot in self.segments.iter_mut().take(finished) {
            if slot.as_ref().is_some_and(|s| s.highest < seq) {
                jobs.retired.extend(slot.take());
            }
        }
        while let Some(None) = self.segments.front() {
            self.segments.pop_front();
            self.base += 1;
        }
        // Of a session that ended below, nothing is indexed any more.
        let over = self.segments.is_empty() && self.end.is_some_and(|(last, _)| last < seq);
        let unindexed = if over { Seq(u32::MAX) } else { seq };
        self.index
            .drop_below(unindexed, |chunk| jobs.retired_chunks.push(chunk));
        jobs.idle = !self.active;
        self.find_oldest_top();
        if !jobs.retired.is_empty() || !jobs.retired_chunks.is_empty() {
            self.engage_helper();
            let newest = self.jobs();
            jobs.chunks = newest.chunks;
            jobs.checkpoint = newest.checkpoint;
            self.back.hand_over(jobs);
            self.back.wake_disk();
        }
    }

    /// Bytes of the segments and the index that are in use: not what is made ahead, nor what is
    /// released and not removed yet.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        let segments = self.segments.iter().flatten().map(|s| u64::from(s.length));
        segments.sum::<u64>() + (self.index.numbers().count() * index::CHUNK_BYTES) as u64
    }

    /// Releases the finished segment with the lowest numbers and all numbers up to its highest, if
    /// there is one and `old` says so of when that was received; returns whether it did. Of an ended
    /// session all segments are finished.
    pub fn release_oldest(&mut self, old: impl FnOnce(u64) -> bool) -> bool {
        let last = self.segments.back().and_then(Option::as_ref);
        let last = last.filter(|_| self.open && self.end.is_some()).map(|s| s.highest);
        let top = self.oldest_top.min(last.unwrap_or(Seq(u32::MAX)));
        if top == Seq(u32::MAX) || !self.look_up(top).is_none_or(|record| old(record.recv_ns)) {
            return false;
        }
        if last == Some(top) {
            // Should a late repair still come, it opens a new one.
            (self.open, self.active) = (false, false);
            self.find_oldest_top();
        }
        self.release_below(top.next());
        true
    }

    pub(super) fn find_oldest_top(&mut self) {
        let finished = self.segments.len().saturating_sub(usize::from(self.open));
        let tops = self.segments.iter().take(finished).flatten().map(|s| s.highest);
        self.oldest_top = tops.min().unwrap_or(Seq(u32::MAX));
    }
}

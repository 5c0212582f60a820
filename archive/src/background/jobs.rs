//! What the appender hands over to be written to disk.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use crate::checkpoint::Checkpoint;
use crate::mapping::Pages;
use crate::segment::Segment;

/// A segment that was written to and may not be on disk yet.
#[derive(Debug)]
pub(crate) struct Unsynced {
    pub(crate) number: u32,
    pub(crate) pages: Pages,
    /// Where the unsynced bytes start.
    pub(crate) from: u32,
    /// Whether a loss of power leaves the file its name.
    pub(crate) named: bool,
}

/// A part of an index chunk that was written to and may not be on disk yet.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) pages: Pages,
    pub(crate) range: Range<usize>,
}

/// What the appender has handed over.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    /// Segments opened, in order.
    pub(crate) segments: VecDeque<Unsynced>,
    /// Index chunks written to.
    pub(crate) chunks: BTreeMap<u32, Written>,
    /// The newest state to write down.
    pub(crate) checkpoint: Option<Checkpoint>,
    /// Segments to recycle once a checkpoint without them is written.
    pub(crate) retired: Vec<Segment>,
    /// Index chunks to remove likewise.
    pub(crate) retired_chunks: Vec<u32>,
    /// Nothing is appended for now: what was made ahead is given back. The log's last segment may
    /// be among the retired, and with it how the session ended: the checkpoint must hold that.
    pub(crate) idle: bool,
}

impl Jobs {
    pub(super) fn absorb(&mut self, new: Jobs) {
        self.segments.extend(new.segments);
        for (number, written) in new.chunks {
            let range = &mut self.chunks.entry(number).or_insert_with(|| written.clone()).range;
            *range = range.start.min(written.range.start)..range.end.max(written.range.end);
        }
        self.checkpoint = new.checkpoint.or(self.checkpoint.take());
        // Nothing of what is released needs to reach the disk any more.
        self.segments
            .retain(|s| new.retired.iter().all(|r| r.number != s.number));
        self.chunks.retain(|c, _| !new.retired_chunks.contains(c));
        self.retired.extend(new.retired);
        self.retired_chunks.extend(new.retired_chunks);
        self.idle = new.idle;
    }
}

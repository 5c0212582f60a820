//! Preparing what the appender will need: segments, pieces of index, touched pages.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use seqcast_proto::seq::Seq;

use super::pool::{NEW, Spare};
use super::{Background, lock};
use crate::index::{self, CHUNK_BYTES};
use crate::mapping::{Mapping, Pages};
use crate::segment::{self, Header, Mapped, Segment};

/// How far ahead of the writer pages are touched, and how often it asks for more. Asking takes the
/// writer a system call that may have to wake a core, so it is rare; and what is there when it asks
/// covers the time for which the disk may keep the helper waiting.
const AHEAD: u32 = 16 << 20;
pub(crate) const STEP: u32 = 8 << 20;
/// How far a new segment is touched before it can be taken.
const FIRST: u32 = 4 << 20;
/// How much is touched at a time. The kernel holds a lock for so long that the writer may need.
const PIECE: u32 = 1 << 20;
/// How long to wait before space is asked for again on a full disk.
pub(super) const RETRY: Duration = Duration::from_millis(100);

/// How far the pages of a new segment of `length` bytes are touched.
pub(crate) fn touched_first(length: u32) -> u32 {
    length.min(FIRST)
}

/// What is prepared for the appender.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// The segment that is appended to.
    current: Option<Current>,
    /// The one after it, once it is made.
    next: Option<Current>,
    /// When to try again what could not be made.
    retry_at: Option<Instant>,
}

/// A segment whose pages are touched.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) number: u32,
    pub(super) pages: Pages,
    /// How far its pages are touched.
    pub(super) touched: u32,
}

impl Current {
    /// Touches a piece of what lies between `from` and `to`; returns whether there was any. Old kernels
    /// cannot: there the whole segment was touched when it was made.
    fn touch(&mut self, from: u32, to: u32) -> bool {
        let from = from.max(self.touched);
        let to = to.min(self.pages.len() as u32).min(from.saturating_add(PIECE));
        if from >= to || self.pages.populate(from as usize..to as usize).is_err() {
            return false;
        }
        self.touched = to;
        true
    }
}

impl Ahead {
    /// Makes `new` the segment that is appended to, and returns the one before.
    fn lead(&mut self, new: Current) -> Option<Current> {
        let made = self.next.take_if(|next| next.number == new.number);
        self.current.replace(made.unwrap_or(new))
    }
}

impl Background {
    /// Asks for the segment and the chunk that are needed next.
    pub(crate) fn want_segment(&self, number: u32) {
        if self.helper.is_some() {
            self.segment.want(number);
        }
    }

    pub(crate) fn want_chunk(&self, number: u32) {
        if self.helper.is_some() {
            self.chunk.want(number);
        }
    }

    /// Whether whoever takes the segment `number` now gets it at once.
    pub(crate) fn has_segment(&self, number: u32) -> bool {
        self.helper.is_none() || self.segment.has(number)
    }

    /// The new, empty segment `number`.
    pub(crate) fn take_segment(&self, number: u32) -> io::Result<Segment> {
        self.segment
            .take(number, self.helper.as_deref(), || self.make_segment(number))
    }

    /// The new index chunk `number`.
    pub(crate) fn take_chunk(&self, number: u32) -> io::Result<Mapping> {
        self.chunk
            .take(number, self.helper.as_deref(), || self.make_chunk(number))
    }

    fn make_segment(&self, number: u32) -> io::Result<Segment> {
        let length = self.options.segment_bytes;
        self.claim(length)?;
        let made = self.build_segment(number, length as u32);
        made.inspect_err(|_| self.unclaim(length))
    }

    fn build_segment(&self, number: u32, length: u32) -> io::Result<Segment> {
        let path = self.path(&segment::file_name(number));
        let spare = self.pool.take(length as usize);
        let (spare, mut map, generation) = match spare {
            Some(Spare { name, mapped }) => {
                if mapped.generation == NEW && !self.durable() {
                    self.storage.make_pages(&name, length as usize)?;
                }
                (Some(name), mapped.map, mapped.generation.wrapping_add(1))
            }
            None => (None, self.storage.create(&path, length as usize, !self.durable())?, 1),
        };
        let header = Header {
            stream: self.stream,
            session: self.session,
            number,
            generation,
            length,
        };
        self.expect_syncs(&map.pages());
        map.bytes_mut()[..segment::HEADER].copy_from_slice(&header.to_bytes());
        map.publish(segment::HEADER, 0);
        if let Some(spare) = spare {
            self.storage.rename(&spare, &path)?;
        }
        self.ready_pages(&mut map, touched_first(length) as usize);
        if map.faults() > 0 {
            // A recycled file on a bad place of the disk: the next attempt takes another one.
            self.storage.remove(&path)?;
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(Segment {
            number,
            length,
            end: segment::HEADER as u32,
            highest: Seq(0),
            mapped: Mapped { map, generation }.into(),
        })
    }

    fn make_chunk(&self, number: u32) -> io::Result<Mapping> {
        self.claim(CHUNK_BYTES as u64)?;
        let path = self.path(&index::file_name(number));
        let made = self.storage.create(&path, CHUNK_BYTES, !self.durable());
        let mut map = made.inspect_err(|_| self.unclaim(CHUNK_BYTES as u64))?;
        self.ready_pages(&mut map, CHUNK_BYTES);
        Ok(map)
    }

    /// Readies the pages of a segment to be written to disk while it is appended to. Costs speed when it
    /// fails, and nothing else.
    pub(crate) fn expect_syncs(&self, pages: &Pages) {
        if self.helper.is_some() && self.durable() {
            let _ = pages.come_singly(true);
        }
    }

    /// Makes the first `len` bytes of a new file present; on old kernels all of it, because a
    /// file that is in use can then not be touched ahead.
    fn ready_pages(&self, map: &mut Mapping, len: usize) {
        if self.helper.is_some() && map.pages().populate(0..len).is_err() {
            map.touch();
        }
    }

    /// Prepares what the appender will need and says when there is something to do again.
    pub(super) fn ahead(&self) -> Option<Instant> {
        let mut ahead = lock(&self.ahead);
        if self.closed.load(Ordering::Acquire) {
            return None;
        }
        self.touch_ahead(&mut ahead);
        let now = Instant::now();
        let retry = self.space.swap(false, Ordering::AcqRel) || ahead.retry_at.is_some_and(|at| at <= now);
        let missing = self.prepare(&mut ahead, retry);
        self.touch_ahead(&mut ahead);
        if !missing {
            ahead.retry_at = None;
        } else if retry || ahead.retry_at.is_none() {
            ahead.retry_at = Some(now + RETRY);
        }
        ahead.retry_at
    }

    /// Makes what was asked for; returns whether something could not be made.
    fn prepare(&self, ahead: &mut Ahead, retry: bool) -> bool {
        // First what is made in a moment.
        let no_chunk = self.chunk.fill(retry, |n| self.make_chunk(n));
        let no_segment = self.segment.fill(retry, |number| {
            let segment = self.make_segment(number)?;
            ahead.next = segment.mapped.get().map(|mapped| Current {
                number,
                pages: mapped.map.pages(),
                touched: touched_first(segment.length),
            });
            Ok(segment)
        });
        no_segment || no_chunk
    }

    /// Touches the pages that the appender is about to reach.
    fn touch_ahead(&self, ahead: &mut Ahead) {
        loop {
            let new = lock(&self.lead).take();
            if let Some(finished) = new.and_then(|new| ahead.lead(new))
                && self.durable()
            {
                // From here on it is read, and then many pages at once are an advantage. Not vital.
                let _ = finished.pages.come_singly(false);
            }
            let tail = self.tail();
            let Some(current) = ahead.current.as_mut().filter(|c| c.number == tail.segment()) else {
                return;
            };
            let reach = tail.offset().saturating_add(AHEAD);
            let beyond = reach.saturating_sub(current.pages.len() as u32);
            let touched =
                current.touch(tail.offset(), reach) || ahead.next.as_mut().is_some_and(|n| n.touch(0, beyond));
            if !touched {
                return;
            }
        }
    }

    /// Removes what was made ahead and not used.
    pub(crate) fn give_back(&self) -> io::Result<()> {
        if let Some((number, segment)) = self.segment.clear() {
            self.storage.remove(&self.path(&segment::file_name(number)))?;
            self.unclaim(u64::from(segment.length));
        }
        if let Some((number, _)) = self.chunk.clear() {
            self.storage.remove(&self.path(&index::file_name(number)))?;
            self.unclaim(CHUNK_BYTES as u64);
        }
        Ok(())
    }
}

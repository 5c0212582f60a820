//! Redundant lines: the same stream over two groups or networks, of which the first copy wins.
//!
//! [`Lines`] looks at each frame before the receiver's state machine does. It tells the first copy of
//! a DATA frame from the second by header alone, says how far both lines have come, so that a
//! gap is asked for at once when neither line will fill it, and keeps watch over each line.
//!
//! What it forgets, or cannot know, costs a look more and nothing else: the state machine behind
//! it delivers no message twice, whatever it is given.

use alloc::collections::VecDeque;

use zerocopy::FromBytes;

use crate::seq::{Seq, Session};
use crate::time::{MICROS, MILLIS, Nanos};
use crate::wire::{Header, Kind};

/// One of two ways that a stream takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Line {
    /// The first.
    #[default]
    A = 0,
    /// The second.
    B = 1,
}

impl Line {
    /// Both.
    pub const BOTH: [Line; 2] = [Line::A, Line::B];

    /// The other one.
    #[must_use]
    pub fn other(self) -> Line {
        match self {
            Line::A => Line::B,
            Line::B => Line::A,
        }
    }
}

impl core::fmt::Display for Line {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Settings of a receiver that listens to both lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinesConfig {
    /// How long a gap on one line waits for the other before it is asked for. When both have passed
    /// the gap, or one is silent, nothing is waited for.
    pub skew: Nanos,
    /// A line of which nothing comes for this long while the other carries frames, none of its pauses
    /// longer than half of this, is silent.
    pub silence: Nanos,
}

impl Default for LinesConfig {
    fn default() -> LinesConfig {
        LinesConfig {
            skew: 1000 * MICROS,
            silence: 500 * MILLIS,
        }
    }
}

/// What has come over one line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineStats {
    /// DATA frames of the stream's server.
    pub frames: u64,
    /// Of those, the first copies.
    pub first: u64,
    /// First copies whose second came over the other line.
    pub led: u64,
    /// How much earlier those were, in all.
    pub lead_total: Nanos,
    /// How much earlier the earliest was.
    pub lead_max: Nanos,
    /// Gaps on this line, whether or not the other filled them.
    pub gaps: u64,
    /// Messages that never came over this line, whether or not they came over the other.
    pub missed: u64,
    /// Times that the line fell silent while the other carried frames.
    pub silences: u64,
    /// Whether it is silent now.
    pub silent: bool,
}

impl LineStats {
    /// How much earlier than the second its first copies were, on average.
    #[must_use]
    pub fn lead_mean(&self) -> Nanos {
        self.lead_total.checked_div(self.led).unwrap_or(0)
    }
}

/// What to do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Hand it on.
    Use,
    /// Its like was handed on before: drop it.
    Copy,
}

/// A DATA frame that came first over one line and has not come over the other yet.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    first: Seq,
    count: u16,
    at: Nanos,
}

/// First copies remembered for each line: a line that is more frames behind is no longer told from
/// one that leads.
const MAX_WAITING: usize = 4096;
/// Frames that a line may be out of order by and still be recognised.
const DISORDER: usize = 64;

#[derive(Debug)]
struct Track {
    /// One past the highest number that this line has shown in this session; 0 before the first.
    next: Seq,
    /// Ascending.
    waiting: VecDeque<Waiting>,
    heard: Nanos,
    /// Since when only the other line has been heard, without a longer pause.
    absent_since: Option<Nanos>,
    /// It was heard since it fell silent, be it in one turn with the other.
    back: bool,
    stats: LineStats,
}

impl Track {
    fn new() -> Track {
        Track {
            next: Seq(0),
            heard: 0,
            waiting: VecDeque::with_capacity(MAX_WAITING),
            absent_since: None,
            back: false,
            stats: LineStats::default(),
        }
    }

    /// Notes that the line has come as far as `range` and no farther.
    fn reach(&mut self, first: Seq, next: Seq) {
        if self.next != Seq(0) && first > self.next {
            self.stats.gaps += 1;
            self.stats.missed += u64::from(first.since(self.next));
        }
        self.next = self.next.max(next);
    }

    fn find(&self, first: Seq) -> Result<usize, usize> {
        match self.waiting.front() {
            // The other line follows in order, mostly.
            Some(w) if w.first == first => Ok(0),
            Some(_) => self.waiting.binary_search_by_key(&first, |w| w.first),
            None => Err(0),
        }
    }

    fn push(&mut self, frame: Waiting) {
        if self.waiting.len() == MAX_WAITING {
            self.waiting.pop_front();
        }
        if self.waiting.back().is_none_or(|w| w.first < frame.first) {
            self.waiting.push_back(frame);
        } else if let Err(at) = self.find(frame.first) {
            self.waiting.insert(at, frame);
        }
    }
}

/// The state machine: what of two lines is new.
#[derive(Debug)]
pub struct Lines {
    config: LinesConfig,
    session: Session,
    /// The server run that the session's frames are from.
    origin: u32,
    tracks: [Track; 2],
}

impl Lines {
    /// Nothing heard yet. All memory is taken now.
    #[must_use]
    pub fn new(config: LinesConfig) -> Lines {
        Lines {
            config,
            session: Session::NONE,
            origin: 0,
            tracks: [Track::new(), Track::new()],
        }
    }

    /// What has come over a line.
    #[must_use]
    pub fn stats(&self, line: Line) -> LineStats {
        self.tracks[line as usize].stats
    }

    /// The newest session heard, to which [`Lines::passed`] belongs.
    #[must_use]
    pub fn session(&self) -> Session {
        self.session
    }

    /// The line to ask over: A unless it is silent.
    #[must_use]
    pub fn preferred(&self) -> Line {
        match self.tracks[Line::A as usize].stats.silent {
            false => Line::A,
            true => Line::B,
        }
    }

    /// Every number of the session below has been passed by each line that is heard.
    #[must_use]
    pub fn passed(&self) -> Seq {
        let heard = self.tracks.iter().filter(|t| !t.stats.silent);
        heard.map(|t| t.next).min().unwrap_or(Seq(0))
    }

    /// Looks at a frame of the stream that came over `line`, before anyone else does. Only the
    /// frames of a server are of interest; all others, and what is no frame, are to be used.
    #[inline]
    pub fn take(&mut self, now: Nanos, line: Line, bytes: &[u8]) -> Verdict {
        let Ok((header, _)) = Header::ref_from_prefix(bytes) else {
            return Verdict::Use;
        };
        let data = header.kind == Kind::Data as u8;
        if !data && header.kind != Kind::Heartbeat as u8 || !self.follow(header) {
            return Verdict::Use;
        }
        let pause = self.config.silence / 2;
        let [this, other] = self.pair(line);
        this.absent_since = None;
        this.back = true;
        // After a pause of this line too, or of the host, the other may only not have been read yet.
        if now.saturating_sub(this.heard) > pause && !other.stats.silent {
            other.absent_since = None;
        }
        this.heard = now;
        other.absent_since.get_or_insert(now);
        let first = header.sequence();
        if !data {
            this.reach(first, first);
            return Verdict::Use;
        }
        let count = header.count.get();
        this.stats.frames += 1;
        if first < this.next {
            if this.find(first).is_ok() {
                return Verdict::Copy;
            }
            // It was overtaken, and counted as missed.
            this.stats.missed = this.stats.missed.saturating_sub(u64::from(count));
        }
        this.reach(first, first.plus(u32::from(count)));
        if let Ok(at) = other.find(first)
            && let Some(winner) = other.waiting.get(at).filter(|w| w.count == count)
        {
            let lead = now.saturating_sub(winner.at);
            other.stats.led += 1;
            other.stats.lead_total += lead;
            other.stats.lead_max = other.stats.lead_max.max(lead);
            other.waiting.remove(at);
            // What this line has skipped by far will not come any more.
            other.waiting.drain(..at.saturating_sub(DISORDER));
            return Verdict::Copy;
        }
        this.stats.first += 1;
        this.push(Waiting { first, count, at: now });
        Verdict::Use
    }

    /// Whether a frame is of the newest session and its server.
    fn follow(&mut self, header: &Header) -> bool {
        if header.session() > self.session {
            self.session = header.session();
            self.origin = header.origin.get();
            for track in &mut self.tracks {
                track.next = Seq(0);
                track.waiting.clear();
            }
        }
        header.session() == self.session && header.origin.get() == self.origin
    }

    fn pair(&mut self, line: Line) -> [&mut Track; 2] {
        let [a, b] = &mut self.tracks;
        match line {
            Line::A => [a, b],
            Line::B => [b, a],
        }
    }

    /// Whether a line has fallen silent or come back since the last call.
    #[inline]
    pub fn poll(&mut self) -> Option<LineChange> {
        Line::BOTH.into_iter().find_map(|line| {
            let heard = self.tracks[line.other() as usize].heard;
            let track = &mut self.tracks[line as usize];
            let silent = match track.absent_since {
                Some(since) => track.stats.silent && !track.back || heard.saturating_sub(since) >= self.config.silence,
                None => false,
            };
            if silent == track.stats.silent {
                return None;
            }
            track.stats.silent = silent;
            track.back = !silent;
            track.stats.silences += u64::from(silent);
            Some(if silent {
                LineChange::Silent(line)
            } else {
                LineChange::Heard(line)
            })
        })
    }
}

/// A line has failed, or works again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineChange {
    /// Nothing comes over it while the other carries frames.
    Silent(Line),
    /// It is heard again.
    Heard(Line),
}

#[cfg(test)]
mod tests;

//! Filling an archive over the network from one that an engine has open.
//!
//! The archive is asked as a client asks, point to point, for what is missing here and nothing else, no
//! faster than a bound in bytes a second.

use std::net::SocketAddrV4;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use seqcast_archive::{Archive, SessionLog, SessionMeta};
use seqcast_engine::link::Link;
use seqcast_engine::stream_id;
use seqcast_proto::gaps::{GapConfig, Gaps};
use seqcast_proto::io::End;
use seqcast_proto::limit::Bucket;
use seqcast_proto::parties::{Parties, Refuser};
use seqcast_proto::seq::{Seq, SeqRange, Session, Stream};
use seqcast_proto::time::{MILLIS, Nanos, Now, SECONDS};
use seqcast_proto::wire::{Block, Body, Frame, Reason, Refusals};

use super::replay::Stop;
use super::select::Which;
use super::sync::{Copied, Stamps, append_absent};

mod asker;

use asker::{Answer, Asker, PATIENCE, ended};

/// Where an archive is filled from.
#[derive(Clone, Debug)]
pub struct Source {
    /// The stream's group and port.
    pub group: SocketAddrV4,
    /// The stream's identity; derived from group and port if not given.
    pub id: Option<u32>,
    /// The archive; any that answers in the group if not given.
    pub archive: Option<SocketAddrV4>,
    /// File of the stream's keys.
    pub key: Option<PathBuf>,
    /// Most bytes a second, headers included, at least [`MIN_RATE`].
    pub rate: u64,
}

impl Source {
    /// The stream.
    #[must_use]
    pub fn stream(&self) -> Stream {
        stream_id(self.group, self.id)
    }
}

/// The lowest rate, in bytes a second: a few frames.
pub const MIN_RATE: u64 = 16 << 10;
/// How much may be on its way: what the rate allows in this time, within these bytes.
const AHEAD: Nanos = 50 * MILLIS;
const LEAST_AHEAD: u64 = 16 << 10;
const MOST_AHEAD: u64 = 1 << 20;
/// Pause between two questions about how far the archive goes.
const PROBE_EVERY: Nanos = 100 * MILLIS;
/// Separate gaps that are asked for one by one; beyond, some is asked for in vain.
const MAX_GAPS: usize = 8192;

/// Copies what `to` lacks of the sessions that the archive has. Records come with the time at which they
/// were sent and are received now. What is there stays as it is; a run that was cut short is taken up
/// where it ended. `progress` is called after each frame.
///
/// # Errors
/// When no archive answers, the target cannot be written, the link fails, or
/// [`Stopped`](super::replay::Stopped).
pub fn fetch<L: Link>(
    source: &Source,
    link: L,
    which: Which,
    to: &mut Archive,
    stop: &Stop,
    progress: &mut dyn FnMut(Session, &Copied),
) -> Result<Copied> {
    ensure!(
        source.rate >= MIN_RATE,
        "a rate of {} bytes/s: use at least {MIN_RATE}",
        source.rate
    );
    let mut asker = Asker::open(source, link, stop.clone())?;
    let (archive, sessions) = sessions(&mut asker, source.archive, which)?;
    let now = asker.now().mono;
    let ahead = (source.rate / (SECONDS / AHEAD)).clamp(LEAST_AHEAD, MOST_AHEAD);
    let mut pace = Pace {
        bucket: Bucket::new(source.rate, ahead, now),
        ahead,
    };
    let mut all = Copied::default();
    for (at, &session) in sessions.iter().enumerate() {
        let before = at.checked_sub(1).map_or(Session::NONE, |i| sessions[i]);
        let copied = fetch_session(&mut asker, archive, (session, before), to, &mut pace, &mut |copied| {
            let mut sum = all;
            sum.add(*copied);
            progress(session, &sum);
        })?;
        all.add(copied);
    }
    Ok(all)
}

/// How fast is asked.
struct Pace {
    bucket: Bucket,
    /// Bytes that may be on their way.
    ahead: u64,
}

/// Finds an archive, and which of its sessions are wanted, ascending.
fn sessions<L: Link>(
    asker: &mut Asker<L>,
    whom: Option<SocketAddrV4>,
    which: Which,
) -> Result<(SocketAddrV4, Vec<Session>)> {
    if let Which::One(session) = which {
        let (archive, answer) = asker.enquire(whom, session, Seq::FIRST)?;
        ensure!(
            !matches!(answer, Answer::Absent(_)),
            "session {session} is not in the archive at {archive}"
        );
        return Ok((archive, vec![session]));
    }
    let mut found = Vec::new();
    let mut whom = whom;
    let mut next = Session(1);
    loop {
        let (archive, answer) = asker.enquire(whom, next, Seq::FIRST)?;
        whom = Some(archive);
        match answer {
            Answer::Absent(later) if later > next => next = later,
            Answer::Absent(_) => break,
            Answer::Here | Answer::Ended(..) => {
                found.push(next);
                let Some(after) = next.0.checked_add(1) else { break };
                next = Session(after);
            }
        }
    }
    if which == Which::Last {
        found.drain(..found.len().saturating_sub(1));
    }
    let archive = whom.context("asked somebody")?;
    ensure!(!found.is_empty(), "the archive at {archive} has no session");
    Ok((archive, found))
}

/// A session on its way.
struct Fetching<'a> {
    log: &'a mut SessionLog,
    gaps: Gaps,
    archive: SocketAddrV4,
    end: Option<End>,
    /// The highest number that has come.
    highest: Seq,
    /// This one the archive does not have. Which is the next one that it has, is to be asked: asking
    /// window by window would take for ever.
    probe: Option<Seq>,
    copied: Copied,
}

fn fetch_session<L: Link>(
    asker: &mut Asker<L>,
    archive: SocketAddrV4,
    (session, before): (Session, Session),
    to: &mut Archive,
    pace: &mut Pace,
    progress: &mut dyn FnMut(&Copied),
) -> Result<Copied> {
    // Behind the last number of all there is only an end.
    let (_, answer) = asker.enquire(Some(archive), session, Seq::LAST)?;
    let (end, previous) = match answer {
        Answer::Ended(end, previous) => (Some(end), previous),
        Answer::Here | Answer::Absent(_) => (None, Session::NONE),
    };
    let new = to.session(session).is_none();
    if new {
        let known = [previous, linked(to, before, session)]
            .into_iter()
            .find_map(Session::known);
        let meta = SessionMeta {
            previous: known.unwrap_or(Session::NONE),
            // Which run of a server it was, frames of an archive do not say.
            origin: 0,
            user: 0,
        };
        to.create_session(session, meta)?;
    }
    let mut parties = Parties::new(true);
    parties.set_archives([archive].into_iter(), 0);
    let config = GapConfig {
        backoff_percent: 0,
        give_up: Nanos::MAX,
        max_gaps: MAX_GAPS,
        ..GapConfig::default()
    };
    let stamp = asker.stamp(session);
    let mut fetching = Fetching {
        log: to.session_mut(session).context("the session is gone")?,
        gaps: Gaps::new(config, 1),
        archive,
        end,
        highest: Seq(0),
        probe: None,
        copied: Copied {
            sessions: u64::from(new),
            ..Copied::default()
        },
    };
    let mut now = asker.now();
    fetching.note_missing(now.mono);
    let (mut heard, mut probe_at) = (now.mono, now.mono);
    while !fetching.gaps.is_empty() {
        // What has come beyond the rate is waited for before more is asked.
        let open = pace.bucket.is_open(now.mono);
        if open {
            fetching.gaps.set_window(fetching.window(pace.ahead));
            let mut out = asker.out(now);
            fetching.gaps.ask(now, Seq(u32::MAX), &parties, stamp, &mut out);
        }
        let received = asker.receive(session, |from, len, frame| {
            if from != archive {
                return Ok(());
            }
            heard = now.mono;
            pace.bucket.take(len as u64, now.mono);
            fetching.take(now, frame)?;
            progress(&fetching.copied);
            Ok(())
        });
        let received = received.with_context(|| format!("session {session} cannot be copied on"))?;
        if now.mono.saturating_sub(heard) > PATIENCE {
            asker.nobody(Some(archive))?;
        }
        if received == 0 {
            let due = if open {
                fetching.gaps.next_due()
            } else {
                pace.bucket.opens_at()
            };
            match fetching.probe() {
                // All that was asked for is answered by now, or nearly.
                Some(rest) if now.mono >= probe_at => {
                    probe_at = now.mono + PROBE_EVERY;
                    let question = fetching.gaps.question(now);
                    asker.ask(now, question, archive, session, rest);
                }
                Some(_) => asker.rest(due.min(probe_at))?,
                None => asker.rest(due)?,
            }
        }
        now = asker.now();
    }
    if let Some(end) = fetching.end
        && fetching.log.end().is_none_or(|(_, known)| known == Session::NONE)
    {
        fetching.log.close(end.last, end.next)?;
    }
    Ok(fetching.copied)
}

/// `before`, if it is known here to have gone on as `session`.
fn linked(to: &Archive, before: Session, session: Session) -> Session {
    let end = to.session(before).and_then(SessionLog::end);
    if end.is_some_and(|(_, next)| next == session) {
        before
    } else {
        Session::NONE
    }
}

impl Fetching<'_> {
    /// Notes all that is not here, up to the end or, while that is not known, to the last number of all.
    fn note_missing(&mut self, now: Nanos) {
        let last = self.end.map_or(Seq::LAST, |end| end.last);
        let Some(all) = SeqRange::new(self.log.floor().max(Seq::FIRST), last) else {
            return;
        };
        let gaps = &mut self.gaps;
        self.log.stored().absent(all, |hole| gaps.miss(hole, now));
        for &range in self.log.lost().as_slice() {
            gaps.found(range, now);
        }
        if self.end.is_some() {
            self.copied.wanted = gaps.missing();
        }
    }

    /// How many messages may be asked for at a time so that about so many bytes are on their way.
    fn window(&self, bytes: u64) -> u32 {
        let each = self
            .copied
            .bytes
            .checked_div(self.copied.messages)
            .unwrap_or(1400)
            .max(8);
        u32::try_from(bytes / each).unwrap_or(u32::MAX).max(16)
    }

    fn take(&mut self, now: Now, frame: &Frame<'_>) -> Result<()> {
        match frame.body {
            Body::Repair(block) => self.store(now, frame.header.time.get(), block)?,
            Body::Unavailable(refusals) => {
                self.refused(now.mono, Refuser::new(self.archive, frame.header), refusals)?
            }
            Body::End(_) => {
                self.end = self.end.or(ended(frame).map(|(end, _)| end));
                if let Some(end) = self.end {
                    self.gaps.forget_above(end.last);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn store(&mut self, now: Now, sent: Nanos, block: Block<'_>) -> Result<()> {
        let Some(range) = block.range() else { return Ok(()) };
        let stamps = Stamps {
            sent,
            received: now.wall,
            flags: 0,
        };
        let wanted = SeqRange::new(range.first.max(self.log.floor()), range.last);
        if let Some(wanted) = wanted {
            append_absent(self.log, &block, wanted, stamps, &mut self.copied)?;
        }
        self.gaps.found(range, now.mono);
        self.highest = self.highest.max(range.last);
        Ok(())
    }

    /// What to ask to hear how far the archive goes.
    fn probe(&mut self) -> Option<SeqRange> {
        let from = self.probe.filter(|from| *from > self.highest)?;
        SeqRange::new(from, Seq::LAST)
    }

    fn refused(&mut self, now: Nanos, by: Refuser, refusals: Refusals<'_>) -> Result<()> {
        for (range, reason, retry_ms) in refusals.iter() {
            match reason {
                Reason::Busy => {
                    let parties = Parties::new(true);
                    let refusal = (reason, retry_ms);
                    self.gaps.refused(range, by, refusal, &parties, now);
                    continue;
                }
                Reason::Lost => {
                    let before = self.log.lost().total();
                    self.log.mark_lost(range)?;
                    self.copied.lost += self.log.lost().total() - before;
                }
                Reason::TooOld if self.log.stored().is_empty() && range.first <= self.log.floor().max(Seq::FIRST) => {
                    // What the source has released is not missing here either.
                    self.log.release_below(range.end());
                    self.probe = Some(range.last);
                }
                Reason::TooOld | Reason::NotYet | Reason::UnknownSession => self.probe = Some(range.last),
            }
            self.gaps.found(range, now);
        }
        Ok(())
    }
}

//! What must hold in every run, checked while it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use seqcast_proto::client::Order;
use seqcast_proto::seq::{Seq, SeqRange, Session};
use seqcast_proto::time::{MICROS, Nanos};
use seqcast_proto::wire::{Block, Message};

use super::plan::Host;

/// The rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Oracle {
    /// A (session, sequence) has one payload, wherever it is seen, and is kept before it is sent.
    Identity,
    /// A client's output is the published sequence: each message once, whole and in order.
    Delivery,
    /// A loss is reported only for what nobody holds any more.
    Loss,
    /// What was acknowledged survives what its acknowledgement promised to survive.
    Promise,
    /// A server lets go only of what enough archives have acknowledged.
    Release,
    /// What is held, waits or is tracked stays within its bounds.
    Bounds,
    /// Each receive frame is free or held, and what is held is what the client says that it holds.
    Frames,
    /// Repairs stay in proportion to what was missed.
    Repairs,
    /// Every frame sent is one that the parser takes.
    Wire,
    /// Once everything is healed, everything is delivered and acknowledged in bounded time.
    Liveness,
}

/// A rule that was broken.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Simulated time since the start.
    pub at: Nanos,
    /// The rule.
    pub oracle: Oracle,
    /// What was seen.
    pub text: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.at as f64 / MICROS as f64;
        write!(f, "{:?} at {micros:.3} us: {}", self.oracle, self.text)
    }
}

/// What a rule says when it is broken.
pub(super) type Verdict = Result<(), (Oracle, String)>;

fn broken(oracle: Oracle, text: String) -> Verdict {
    Err((oracle, text))
}

/// The messages of a session, from the first on, one after the other.
#[derive(Debug, Default)]
struct Published {
    bytes: Vec<u8>,
    /// Where each one ends.
    ends: Vec<usize>,
}

/// Every message that ever was, by identity.
#[derive(Debug, Default)]
pub(super) struct Truth {
    sessions: BTreeMap<u32, Published>,
    /// Numbers from here on were lost with the power of the server, which has since published
    /// their messages again under new numbers: some parts may have them, others never will.
    withdrawn: BTreeMap<u32, u32>,
    /// Lost with the power of an archive that promised no more than to outlive its process, and
    /// held by nobody else: when they were the last of a session, nobody knows that they were.
    forgotten: BTreeSet<(u32, u32)>,
}

impl Truth {
    pub(super) fn payload(&self, session: Session, seq: Seq) -> Option<&[u8]> {
        let at = seq.0.checked_sub(1)? as usize;
        let Published { bytes, ends } = self.sessions.get(&session.0)?;
        let end = *ends.get(at)?;
        Some(&bytes[at.checked_sub(1).map_or(0, |before| ends[before])..end])
    }

    pub(super) fn last(&self, session: Session) -> Seq {
        Seq(self.sessions.get(&session.0).map_or(0, |s| s.ends.len() as u32))
    }

    pub(super) fn sessions(&self) -> impl DoubleEndedIterator<Item = Session> + '_ {
        self.sessions.keys().map(|s| Session(*s))
    }

    pub(super) fn messages(&self) -> u64 {
        self.sessions.values().map(|s| s.ends.len() as u64).sum()
    }

    /// How many messages there are behind one.
    pub(super) fn behind(&self, session: Session, seq: Seq) -> u64 {
        let later = self.sessions.range(session.0 + 1..).map(|(_, s)| s.ends.len() as u64);
        later.sum::<u64>() + u64::from(self.last(session).0.saturating_sub(seq.0))
    }

    pub(super) fn withdraw(&mut self, session: Session, from: Seq) {
        if from <= self.last(session) {
            let known = self.withdrawn.entry(session.0).or_insert(from.0);
            *known = from.0.min(*known);
        }
    }

    pub(super) fn forget(&mut self, session: u32, seq: u32) {
        self.forgotten.insert((session, seq));
    }

    pub(super) fn is_forgotten(&self, session: Session, seq: Seq) -> bool {
        self.forgotten.contains(&(session.0, seq.0))
    }

    pub(super) fn is_withdrawn(&self, session: Session, seq: Seq) -> bool {
        self.withdrawn.get(&session.0).is_some_and(|from| seq.0 >= *from)
    }

    /// The numbers of a session that every client must get or hear to be lost, from `from` on.
    pub(super) fn due(&self, session: Session, from: Seq) -> impl Iterator<Item = Seq> + '_ {
        let mut last = self.last(session).0;
        if let Some(withdrawn) = self.withdrawn.get(&session.0) {
            last = last.min(withdrawn - 1);
        }
        while self.forgotten.contains(&(session.0, last)) {
            last -= 1;
        }
        (from.0.max(1)..=last).map(Seq)
    }

    /// A server has kept these: they exist from now on.
    pub(super) fn publish(&mut self, session: Session, first: Seq, count: u16, bytes: &[u8]) -> Verdict {
        let list = self.sessions.entry(session.0).or_default();
        for (seq, message) in Block::trusted(first, count, bytes).messages() {
            let place = seq.0.wrapping_sub(1) as usize;
            if place != list.ends.len() {
                let text = format!(
                    "the server numbers a message {session}:{seq} behind {}",
                    list.ends.len()
                );
                return broken(Oracle::Identity, text);
            }
            list.bytes.extend_from_slice(message.payload);
            list.ends.push(list.bytes.len());
        }
        Ok(())
    }

    /// A message on the wire or in a log is the one that was published under its number.
    pub(super) fn check(&self, session: Session, seq: Seq, message: &Message<'_>, by: Host) -> Verdict {
        match self.payload(session, seq) {
            Some(payload) if payload == message.payload => Ok(()),
            Some(_) => broken(
                Oracle::Identity,
                format!("{by} sends {session}:{seq} with another payload"),
            ),
            None => broken(
                Oracle::Identity,
                format!("{by} sends {session}:{seq}, which no server has kept"),
            ),
        }
    }
}

/// What a client has had so far, and so what may come next.
#[derive(Debug)]
pub(super) struct View {
    host: Host,
    order: Order,
    /// The session and the lowest number not done with.
    pub(super) at: Option<(Session, Seq)>,
    /// On arrival: done with above that.
    done: BTreeSet<u32>,
    /// Reported as of unknown length: the session and from where on.
    cut_off: Option<(Session, Seq)>,
    /// The last message delivered: what a durable application would save.
    pub(super) saved: Option<(Session, Seq)>,
    pub(super) delivered: u64,
    pub(super) lost: u64,
}

impl View {
    pub(super) fn new(host: Host, order: Order) -> View {
        View {
            host,
            order,
            at: None,
            done: BTreeSet::new(),
            cut_off: None,
            saved: None,
            delivered: 0,
            lost: 0,
        }
    }

    /// The process ended; the next one goes on behind what the application saved.
    pub(super) fn restart(&mut self) {
        self.at = self.saved.map(|(session, seq)| (session, seq.next()));
        self.done.clear();
        self.cut_off = None;
    }

    pub(super) fn on_joined(&mut self, session: Session, next: Seq, whole: bool) -> Verdict {
        if self.at.is_some() || whole && next != Seq::FIRST {
            let text = format!("{} joins at {session}:{next} after {:?}", self.host, self.at);
            return broken(Oracle::Delivery, text);
        }
        self.at = Some((session, next));
        Ok(())
    }

    fn finish(&mut self, seq: Seq) {
        let Some((_, next)) = &mut self.at else { return };
        if seq != *next {
            self.done.insert(seq.0);
            return;
        }
        *next = seq.next();
        while self.done.remove(&next.0) {
            *next = next.next();
        }
    }

    pub(super) fn on_message(&mut self, truth: &Truth, session: Session, seq: Seq, message: &Message<'_>) -> Verdict {
        let host = self.host;
        let wrong = |text: String| broken(Oracle::Delivery, format!("{host} is given {session}:{seq} {text}"));
        match truth.payload(session, seq) {
            Some(payload) if payload == message.payload => {}
            Some(_) => return wrong("with another payload than was published".into()),
            None => return wrong("which was never published".into()),
        }
        match self.at {
            Some((current, _)) if current != session => return wrong(format!("in session {current}")),
            Some((_, next)) if seq < next || self.done.contains(&seq.0) => return wrong("a second time".into()),
            Some((_, next)) if seq > next && self.order == Order::Sequence => {
                return wrong(format!("while {next} is due: a silent gap"));
            }
            None => return wrong("before it has joined".into()),
            Some(_) => {}
        }
        self.finish(seq);
        self.saved = Some((session, seq));
        self.delivered += 1;
        Ok(())
    }

    /// A loss report; `holder` finds who still holds a message.
    pub(super) fn on_lost(
        &mut self,
        truth: &Truth,
        session: Session,
        range: SeqRange,
        holder: &dyn Fn(Session, Seq) -> Option<Host>,
    ) -> Verdict {
        let host = self.host;
        let (current, next) = self.at.unwrap_or((Session::NONE, Seq::FIRST));
        if current != session || range.first < next || range.first > next && self.order == Order::Sequence {
            let text = format!("{host} reports {session}:{range} as lost at {current}:{next}");
            return broken(Oracle::Delivery, text);
        }
        for seq in (range.first.0..=range.last.0).map(Seq) {
            if self.done.contains(&seq.0) {
                let text = format!("{host} reports {session}:{seq} as lost, which it had");
                return broken(Oracle::Delivery, text);
            }
            must_be_gone(truth, host, session, seq, holder)?;
            self.finish(seq);
            self.lost += 1;
        }
        Ok(())
    }

    pub(super) fn on_tail_unknown(
        &mut self,
        truth: &Truth,
        session: Session,
        from: Seq,
        holder: &dyn Fn(Session, Seq) -> Option<Host>,
    ) -> Verdict {
        for seq in truth.due(session, from) {
            must_be_gone(truth, self.host, session, seq, holder)?;
        }
        self.cut_off = Some((session, from));
        Ok(())
    }

    pub(super) fn on_session(
        &mut self,
        truth: &Truth,
        session: Session,
        holder: &dyn Fn(Session, Seq) -> Option<Host>,
    ) -> Verdict {
        let Some((current, _)) = self.at else { return Ok(()) };
        for (s, seq) in self.open(truth, Some(session)) {
            // Behind an unknown end nobody can say which sessions followed: the report covers what
            // is passed over, if nobody holds it.
            if self.cut_off.is_some_and(|from| (s, seq) >= from) {
                must_be_gone(truth, self.host, s, seq, holder)?;
            } else {
                let text = format!(
                    "{} goes from session {current} to {session} without a word of {s}:{seq}",
                    self.host
                );
                return broken(Oracle::Delivery, text);
            }
        }
        self.at = Some((session, Seq::FIRST));
        self.done.clear();
        self.cut_off = None;
        Ok(())
    }

    /// The first message that this client should still get.
    pub(super) fn first_due(&self, truth: &Truth) -> Option<(Session, Seq)> {
        self.open(truth, None).next()
    }

    /// The messages before session `until` (or of all) that this client has not been told of.
    fn open<'a>(&'a self, truth: &'a Truth, until: Option<Session>) -> impl Iterator<Item = (Session, Seq)> + 'a {
        let (current, next) = self.at.unwrap_or((Session(u32::MAX), Seq::FIRST));
        let sessions = truth
            .sessions()
            .filter(move |s| *s >= current && until.is_none_or(|u| *s < u));
        sessions
            .flat_map(move |s| {
                let from = if s == current { next } else { Seq::FIRST };
                truth.due(s, from).map(move |seq| (s, seq))
            })
            .filter(move |(s, seq)| *s != current || !self.done.contains(&seq.0))
    }
}

/// Nobody holds a message that is said to be lost.
pub(super) fn must_be_gone(
    truth: &Truth,
    by: Host,
    session: Session,
    seq: Seq,
    holder: &dyn Fn(Session, Seq) -> Option<Host>,
) -> Verdict {
    if truth.is_withdrawn(session, seq) {
        return Ok(());
    }
    match holder(session, seq) {
        Some(holder) => broken(
            Oracle::Loss,
            format!("{by} says that {session}:{seq} is lost; {holder} holds it"),
        ),
        None => Ok(()),
    }
}

/// What an archive has said of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Promise {
    #[default]
    None,
    /// It was acknowledged, as the server may count it, and need not be there any more.
    Void,
    /// It outlives the process.
    Stored,
    /// It outlives a loss of power.
    Synced,
}

/// What one archive has acknowledged, by session and number.
#[derive(Debug, Default)]
pub(super) struct Promises(BTreeMap<u32, Vec<Promise>>);

impl Promises {
    /// Those of a session, from its first number on.
    pub(super) fn of(&mut self, session: Session) -> &mut Vec<Promise> {
        self.0.entry(session.0).or_default()
    }

    /// Whether a message was ever acknowledged.
    pub(super) fn is_given(&self, session: Session, seq: Seq) -> bool {
        let given = self.0.get(&session.0).and_then(|p| p.get(seq.0 as usize - 1));
        given.is_some_and(|p| *p != Promise::None)
    }

    /// Those that still bind.
    pub(super) fn binding(&mut self) -> impl Iterator<Item = (Session, Seq, &mut Promise)> {
        let all = self.0.iter_mut().flat_map(|(session, promises)| {
            let numbered = (1..).map(Seq).zip(promises);
            numbered.map(move |(seq, promise)| (Session(*session), seq, promise))
        });
        all.filter(|(_, _, p)| matches!(p, Promise::Stored | Promise::Synced))
    }
}

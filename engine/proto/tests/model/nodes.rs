//! The nodes: what each knows, and what it does with what it is told.

use crate::protocol::{Bug, Id, Ids, Log, Payload, SEQS, SESSIONS, Seq, Session, at};

/// A party that can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Party {
    Archive,
    Server,
}

/// What a party answers.
pub(crate) enum Answer {
    Repair(Payload),
    NotYet,
    /// TooOld, Lost: the number was used.
    Past,
    UnknownSession,
    End(Seq, Session),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Server {
    pub(crate) session: Session,
    /// For each session the next number; 0 while it is not open.
    pub(crate) next: [Seq; SESSIONS],
    /// How many messages the source has given.
    pub(crate) taken: Payload,
    /// What was appended. Survives a kill; of a loss of power only a beginning.
    pub(crate) log: Log,
    /// For each session the lowest number that is not acknowledged: what lies below was released.
    pub(crate) floor: [Seq; SESSIONS],
    /// What a loss of power took from the log.
    pub(crate) torn: Ids,
    pub(crate) crashes: u8,
}

impl Server {
    pub(crate) fn kept(&self, id: Id) -> Option<Payload> {
        self.log.get(id).filter(|_| id.seq >= self.floor[at(id.session)])
    }

    pub(crate) fn last(&self, session: Session) -> Seq {
        self.next[at(session)].saturating_sub(1)
    }

    pub(crate) fn is_acknowledged(&self, session: Session) -> bool {
        self.floor[at(session)] > self.last(session)
    }

    pub(crate) fn open(&mut self, bug: Option<Bug>) {
        if bug != Some(Bug::ReuseSession) {
            self.session += 1;
        }
        self.next[at(self.session)] = 1;
        self.floor[at(self.session)] = 1;
    }

    /// `Server::open`: goes on with what the log holds.
    pub(crate) fn restart(&mut self, bug: Option<Bug>) {
        self.taken = Id::all().filter_map(|id| self.log.get(id)).max().unwrap_or(0);
        self.crashes += 1;
        self.open(bug);
    }

    pub(crate) fn answer(&self, id: Id) -> Answer {
        let behind = id.seq >= self.next[at(id.session)];
        match self.kept(id) {
            Some(payload) => Answer::Repair(payload),
            None if id.session < self.session && behind => Answer::End(self.last(id.session), id.session + 1),
            None if behind => Answer::NotYet,
            None => Answer::Past,
        }
    }

    /// `on_ack` and `release`. What is acknowledged out of turn waits in the network: ACKs are repeated.
    pub(crate) fn on_ack(&mut self, id: Id, bug: Option<Bug>) {
        let (floor, next) = (&mut self.floor[at(id.session)], self.next[at(id.session)]);
        if id.seq == *floor && id.seq < next {
            *floor += 1 + u8::from(bug == Some(Bug::ReleaseEarly) && id.seq + 1 < next);
        }
    }

    /// What a heartbeat names: the session and its next number.
    pub(crate) fn announced(&self, bug: Option<Bug>) -> (Session, Seq) {
        let next = self.next[at(self.session)];
        let hidden = u8::from(bug == Some(Bug::HideTail) && next > 1);
        (self.session, next - hidden)
    }

    /// The session before, and its last number.
    fn previous(&self) -> Option<(Session, Seq)> {
        let previous = self.session - 1;
        (previous > 0).then(|| (previous, self.last(previous)))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Archive {
    pub(crate) stored: Log,
    pub(crate) synced: Ids,
    /// Marked as lost, in the log.
    pub(crate) lost: Ids,
    /// Asked for.
    pub(crate) missing: Ids,
    /// For each session one past the highest number known to exist; 0 while it is unknown.
    pub(crate) horizon: [Seq; SESSIONS],
    /// For each session whether the server has said from where on to ask (`Recording::oldest`).
    compared: [bool; SESSIONS],
    end: [Option<Seq>; SESSIONS],
    pub(crate) crashes: u8,
}

impl Archive {
    pub(crate) fn has(&self, id: Id) -> bool {
        self.stored.get(id).is_some() || self.lost.contains(id)
    }

    fn newest(&self) -> Session {
        self.horizon
            .iter()
            .rposition(|h| *h != 0)
            .map_or(0, |i| i as Session + 1)
    }

    fn miss(&mut self, session: Session, seqs: std::ops::Range<Seq>) {
        for id in seqs.map(|seq| Id { session, seq }) {
            if !self.has(id) {
                self.missing.insert(id);
            }
        }
    }

    /// `recording_of`: whether the session is watched, or newer than all and now is.
    fn recording_of(&mut self, session: Session) -> bool {
        if session > self.newest() {
            self.horizon[at(session)] = 1;
        }
        self.horizon[at(session)] != 0
    }

    pub(crate) fn on_block(&mut self, id: Id, payload: Payload, bug: Option<Bug>) {
        if !self.recording_of(id.session) {
            return;
        }
        let s = at(id.session);
        // Sent by a server that has lost it with its power: the end is recorded without it.
        if self.end[s].is_some_and(|last| id.seq > last) && bug != Some(Bug::StoreBehindEnd) {
            return;
        }
        if self.horizon[s] == 1 && !self.compared[s] && !self.missing.iter().any(|m| m.session == id.session) {
            self.horizon[s] = id.seq;
        }
        self.miss(id.session, self.horizon[s]..id.seq);
        self.horizon[s] = self.horizon[s].max(id.seq + 1);
        self.missing.remove(id);
        if !self.has(id) {
            self.stored.set(id, payload);
        }
    }

    pub(crate) fn on_heartbeat(&mut self, server: &Server, bug: Option<Bug>) {
        let (session, next) = server.announced(bug);
        if !self.recording_of(session) {
            return;
        }
        let s = at(session);
        if !self.compared[s] && bug != Some(Bug::SkipCompare) {
            let oldest = server.floor[s];
            let mut own = (1..self.horizon[s]).filter(|seq| self.has(Id { session, seq: *seq }));
            let lowest = own.next().map_or(oldest, |lowest| lowest.min(oldest));
            self.horizon[s] = self.horizon[s].max(next);
            self.miss(session, lowest..self.horizon[s]);
        } else {
            self.miss(session, self.horizon[s]..next);
            self.horizon[s] = self.horizon[s].max(next);
        }
        self.compared[s] = true;
        if let Some((previous, last)) = server.previous() {
            self.set_end(previous, last);
        }
    }

    /// `set_end`; a session that was missed as a whole is watched from here on (`add_missed`).
    pub(crate) fn set_end(&mut self, session: Session, last: Seq) {
        let s = at(session);
        self.horizon[s] = self.horizon[s].max(1);
        let last = last.max(self.horizon[s] - 1);
        let from = if self.compared[s] { self.horizon[s] } else { 1 };
        self.compared[s] = true;
        self.miss(session, from..last + 1);
        self.horizon[s] = last + 1;
        self.end[s] = Some(last);
    }

    fn give_up(&mut self, id: Id) {
        self.missing.remove(id);
        self.lost.insert(id);
    }

    /// The single other party has answered.
    pub(crate) fn on_answer(&mut self, id: Id, answer: Answer, bug: Option<Bug>) {
        match answer {
            Answer::Repair(payload) => self.on_block(id, payload, bug),
            Answer::Past | Answer::UnknownSession => self.give_up(id),
            Answer::End(last, _) => {
                self.set_end(id.session, last);
                // What lies behind its last number the server will never have, and nobody else is there.
                self.give_up(id);
            }
            Answer::NotYet => {}
        }
    }

    pub(crate) fn answer(&self, id: Id) -> Answer {
        let s = at(id.session);
        match self.stored.get(id) {
            Some(payload) => Answer::Repair(payload),
            None if self.end[s].is_some_and(|last| id.seq > last) => {
                Answer::End(self.end[s].unwrap_or(0), id.session + 1)
            }
            None if self.lost.contains(id) => Answer::Past,
            None if self.horizon[s] == 0 => Answer::UnknownSession,
            None if id.seq < self.horizon[s] && !self.missing.contains(id) => Answer::Past,
            None => Answer::NotYet,
        }
    }

    /// `Archiver::new` and `recall`: goes on with what the store holds.
    pub(crate) fn restart(&mut self, power: bool) {
        if power {
            for id in Id::all().filter(|id| !self.synced.contains(*id)) {
                self.stored.set(id, 0);
            }
            self.end = Default::default();
        }
        let old = std::mem::take(self);
        (self.stored, self.synced, self.lost, self.end) = (old.stored, old.synced, old.lost, old.end);
        self.crashes = old.crashes + 1;
        for id in Id::all() {
            if self.has(id) {
                self.horizon[at(id.session)] = id.seq + 1;
            }
        }
        for session in 1..=SESSIONS as Session {
            if let Some(last) = self.end[at(session)] {
                self.horizon[at(session)] = self.horizon[at(session)].max(last + 1);
                self.miss(session, 1..last + 1);
            }
        }
    }
}

/// What an application is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Out {
    Message(Id, Payload),
    Lost(Id),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Client {
    pub(crate) session: Session,
    pub(crate) next: Seq,
    horizon: Seq,
    held: Log,
    lost: Ids,
    /// For each number of the session who has refused it for good.
    refused_by: [u8; SEQS],
    /// The last number of the session, and the session that follows.
    end: Option<(Seq, Session)>,
    upcoming: Session,
    /// Final refusals of the archive that the network keeps back, in answer to questions that count: those
    /// asked since the server has refused.
    pub(crate) late: Ids,
    /// Of those, what somebody held when the archive refused it.
    pub(crate) late_held: Ids,
    /// It gave up what somebody held.
    pub(crate) false_loss: bool,
    pub(crate) crashes: u8,
    pub(crate) out: Vec<Out>,
}

const BY_ARCHIVE: u8 = 1;
const BY_SERVER: u8 = 2;

impl Client {
    /// A client with a position: everything from message 1 of session 1 on is its own.
    pub(crate) fn new() -> Client {
        Client {
            session: 1,
            next: 1,
            horizon: 1,
            held: Log::default(),
            lost: Ids::default(),
            refused_by: [0; SEQS],
            end: None,
            upcoming: 0,
            late: Ids::default(),
            late_held: Ids::default(),
            false_loss: false,
            crashes: 0,
            out: Vec::new(),
        }
    }

    /// Session and position behind which it goes on, and what an application has, are all that survives a kill.
    /// It has asked none of the questions of its former run.
    pub(crate) fn restart(&mut self, bug: Option<Bug>) {
        let old = std::mem::replace(self, Client::new());
        (self.session, self.next, self.horizon) = (old.session, old.next, old.next);
        (self.out, self.false_loss, self.crashes) = (old.out, old.false_loss, old.crashes + 1);
        if bug == Some(Bug::BelieveLate) {
            (self.late, self.late_held) = (old.late, old.late_held);
        }
    }

    /// The archive has refused for good: noted if it counts when it comes later.
    pub(crate) fn hold_back(&mut self, id: Id, held: bool, bug: Option<Bug>) {
        let counts = id.session == self.session && self.refused_by[at(id.seq)] & BY_SERVER != 0;
        if counts || bug == Some(Bug::BelieveLate) {
            self.late.insert(id);
            if held {
                self.late_held.insert(id);
            }
        }
    }

    fn here(&self, seq: Seq) -> Id {
        Id {
            session: self.session,
            seq,
        }
    }

    /// What it asks for: its gaps, or what may lie behind the horizon of a session that is over (`probe`).
    pub(crate) fn gaps(&self) -> impl Iterator<Item = Id> + '_ {
        let open = |id: &Id| self.held.get(*id).is_none() && !self.lost.contains(*id);
        let gap = (self.next..self.horizon).map(|seq| self.here(seq)).filter(open);
        let over = self.upcoming > self.session && self.end.is_none();
        let probe = (over && usize::from(self.horizon) <= SEQS).then(|| self.here(self.horizon));
        gap.chain(probe)
    }

    pub(crate) fn on_block(&mut self, id: Id, payload: Payload, bug: Option<Bug>) {
        self.upcoming = self.upcoming.max(id.session);
        if id.session != self.session || id.seq < self.next || self.held.get(id).is_some() {
            return;
        }
        self.horizon = self.horizon.max(id.seq + 1);
        if bug == Some(Bug::SkipGap) {
            self.next = id.seq;
        }
        if bug == Some(Bug::ForgetHeld) && id.seq == self.next {
            self.out.push(Out::Message(id, payload));
            self.next += 1;
            return;
        }
        self.held.set(id, payload);
        self.drain(bug);
    }

    /// Delivers what has become next, says what is lost when its turn comes, and goes on to the next session.
    fn drain(&mut self, bug: Option<Bug>) {
        while usize::from(self.next) <= SEQS {
            let id = self.here(self.next);
            if let Some(payload) = self.held.get(id) {
                self.out.push(Out::Message(id, payload));
                if bug == Some(Bug::DeliverTwice) {
                    self.out.push(Out::Message(id, payload));
                }
                self.held.set(id, 0);
            } else if self.lost.contains(id) {
                self.out.push(Out::Lost(id));
                self.lost.remove(id);
            } else {
                break;
            }
            self.refused_by[at(id.seq)] = 0;
            self.forget_late(id, bug);
            self.next += 1;
        }
        if let Some((_, session)) = self.end.filter(|(last, _)| self.next > *last) {
            (self.session, self.next, self.horizon, self.end) = (session, 1, 1, None);
            (self.held, self.lost, self.refused_by) = (Log::default(), Ids::default(), [0; SEQS]);
            if bug != Some(Bug::BelieveLate) {
                (self.late, self.late_held) = (Ids::default(), Ids::default());
            }
        }
    }

    /// What is done with is asked for no more.
    fn forget_late(&mut self, id: Id, bug: Option<Bug>) {
        if bug != Some(Bug::BelieveLate) {
            self.late.remove(id);
            self.late_held.remove(id);
        }
    }

    pub(crate) fn on_heartbeat(&mut self, server: &Server, bug: Option<Bug>) {
        let (session, next) = server.announced(bug);
        self.upcoming = self.upcoming.max(session);
        if let Some((_, last)) = server.previous().filter(|(previous, _)| *previous == self.session) {
            self.set_end(last, session);
            self.drain(bug);
        }
        if session == self.session {
            self.horizon = self.horizon.max(next);
        }
    }

    fn set_end(&mut self, last: Seq, next: Session) {
        let last = last.max(self.horizon - 1);
        self.horizon = last + 1;
        self.end = Some((last, next));
    }

    /// A server says by itself how its session ended; in answer to a question it refuses what was asked for, too.
    pub(crate) fn on_end(&mut self, last: Seq, next: Session, bug: Option<Bug>) {
        self.set_end(last, next);
        self.drain(bug);
    }

    /// `Gaps::refused`, and `give_up` when both have refused. `held` says what anybody holds.
    fn refused(&mut self, id: Id, by: Party, held: &dyn Fn(Id) -> bool, bug: Option<Bug>) {
        if !self.gaps().any(|gap| gap == id) {
            return;
        }
        let bits = &mut self.refused_by[at(id.seq)];
        *bits = match by {
            // Archives may have what they refused before the server let go of it.
            Party::Server if *bits & BY_SERVER == 0 && bug != Some(Bug::KeepRefusals) => BY_SERVER,
            Party::Server => *bits | BY_SERVER,
            // Its word would be forgotten with the server's: not noting it makes fewer states.
            Party::Archive if *bits & BY_SERVER == 0 && bug != Some(Bug::KeepRefusals) => 0,
            Party::Archive => *bits | BY_ARCHIVE,
        };
        let all = *bits == BY_ARCHIVE | BY_SERVER || bug == Some(Bug::TrustOneRefusal);
        if all && id.seq < self.horizon {
            self.false_loss |= held(id);
            self.lost.insert(id);
        }
    }

    pub(crate) fn on_answer(&mut self, id: Id, by: Party, answer: Answer, held: &dyn Fn(Id) -> bool, bug: Option<Bug>) {
        match answer {
            Answer::Repair(payload) if bug == Some(Bug::WrongAnswer) && usize::from(id.seq) < SEQS => {
                self.on_block(self.here(id.seq + 1), payload, bug);
            }
            Answer::Repair(payload) => self.on_block(id, payload, bug),
            Answer::End(last, next) => {
                self.set_end(last, next);
                for seq in last.max(self.next - 1) + 1..self.horizon {
                    self.refused(self.here(seq), by, held, bug);
                }
                self.drain(bug);
            }
            Answer::NotYet => {}
            Answer::Past | Answer::UnknownSession => {
                if matches!(answer, Answer::Past) {
                    self.horizon = self.horizon.max(id.seq + 1);
                }
                self.refused(id, by, held, bug);
                self.drain(bug);
            }
        }
    }
}

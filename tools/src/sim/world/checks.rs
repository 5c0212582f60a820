//! Where the rules are applied: to what is sent, kept, let go of and delivered.

use seqcast_proto::archiver::Archiver;
use seqcast_proto::client::Client;
use seqcast_proto::io::{Event, Lookup, Loss, Store};
use seqcast_proto::seq::{Seq, SeqRange, Session};
use seqcast_proto::wire::{Body, Frame, Message, Reason, flags};

use super::network::can_talk;
use super::parts::{App, ArchiveHost, Carries, Got, Sent, ServerHost, unsealed};
use super::{Counts, World};
use crate::sim::disk::{Deed, Stop};
use crate::sim::oracle::{Oracle, Promise, Verdict, must_be_gone};
use crate::sim::plan::Host;

impl World<'_> {
    /// What an archive has promised is there after its end.
    pub(super) fn check_promises(&mut self, n: usize, how: Stop) {
        let ArchiveHost { disk, promises, .. } = &mut self.archives[n];
        let mut broken = None;
        let mut gone = Vec::new();
        for (session, seq, promise) in promises.binding() {
            let kept = match disk.look_up(session, seq) {
                Lookup::Found(_) => true,
                Lookup::Absent(reason, _) => reason == Reason::Lost,
            };
            if kept {
                continue;
            }
            if how == Stop::Kill || *promise == Promise::Synced {
                broken.get_or_insert((session, seq));
            }
            gone.push((session, seq));
            *promise = Promise::Void;
        }
        for (session, seq) in gone {
            if World::holder(&self.server, &self.archives, session, seq).is_none() {
                self.truth.forget(session.0, seq.0);
            }
        }
        if let Some((session, seq)) = broken {
            let text = format!("archive{n} has acknowledged {session}:{seq} and lost it by {how:?}");
            self.judge(Err((Oracle::Promise, text)));
        }
    }

    /// Who holds a message, up or down.
    pub(super) fn holder(server: &ServerHost, archives: &[ArchiveHost], session: Session, seq: Seq) -> Option<Host> {
        World::holders(server, archives, session, seq).next()
    }

    fn holders(
        server: &ServerHost,
        archives: &[ArchiveHost],
        session: Session,
        seq: Seq,
    ) -> impl Iterator<Item = Host> {
        let server = server.disk.holds(session, seq).then_some(Host::Server);
        let archives = (0..).zip(archives).filter(move |(_, a)| a.disk.holds(session, seq));
        server.into_iter().chain(archives.map(|(n, _)| Host::Archive(n)))
    }

    /// Checks what an application was given.
    pub(super) fn look_at(&mut self, n: usize) {
        let World {
            server,
            archives,
            clients,
            truth,
            passages,
            now,
            ..
        } = self;
        let client = &mut clients[n];
        let lent = client.frames.lent();
        let held = client.machine.as_ref().map_or(0, Client::held);
        let holder = |session, seq| World::holder(server, archives, session, seq);
        // Who cannot be asked, for as long as a client is patient, may hold what it says went unanswered.
        let host = Host::Client(n as u16);
        let answers =
            |session, seq| World::holders(server, archives, session, seq).find(|h| can_talk(passages, *now, host, *h));
        let mut verdict = Ok(());
        let mut notes = Vec::new();
        let App { got, payloads, .. } = &mut client.app;
        for got in got.drain(..) {
            let view = &mut client.view;
            verdict = match got {
                Got::Message(session, seq, place) => {
                    let message = Message {
                        subject: b"",
                        payload: &payloads[place],
                    };
                    view.on_message(truth, session, seq, &message)
                }
                Got::Event(event) => {
                    if self.trace.is_some() {
                        notes.push(format!("{event:?}"));
                    }
                    match event {
                        Event::Joined { session, next } => view.on_joined(session, next, client.plan.whole_session),
                        Event::Lost { session, range, why } => match why {
                            Loss::Refused => view.on_lost(truth, session, range, &holder),
                            Loss::Unanswered => view.on_lost(truth, session, range, &answers),
                        },
                        Event::TailUnknown { session, from } => view.on_tail_unknown(truth, session, from, &holder),
                        Event::SessionStarted { session } => view.on_session(truth, session, &holder),
                        _ => Ok(()),
                    }
                }
            };
            if verdict.is_err() {
                break;
            }
        }
        client.app.payloads.clear();
        for note in notes {
            self.note(Host::Client(n as u16), || note);
        }
        self.judge(verdict);
        if lent != held {
            let text = format!("client{n} holds {held} frames, and has {lent}");
            self.judge(Err((Oracle::Frames, text)));
        }
    }

    pub(super) fn take_server_deeds(&mut self) {
        let mut deeds = std::mem::take(&mut self.server.disk.deeds);
        for deed in deeds.drain(..) {
            match deed {
                Deed::Kept(session, first, count, bytes) => {
                    let verdict = self.truth.publish(session, first, count, &bytes);
                    self.judge(verdict);
                }
                Deed::Released(session, seq) => self.check_release(session, seq.prev()),
                Deed::Dropped(session) => self.check_release(session, self.truth.last(session)),
                Deed::Lost(..) => {}
            }
        }
        self.server.disk.deeds = deeds;
    }

    pub(super) fn check_release(&mut self, session: Session, last: Seq) {
        let from = self.released.insert(session, last).map_or(Seq::FIRST, Seq::next);
        let required = self.plan.required;
        if required == 0 {
            return;
        }
        let let_go: Vec<Seq> = self.truth.due(session, from).take_while(|s| *s <= last).collect();
        let acknowledged = |seq| {
            let archives = self.archives.iter();
            archives.filter(|a| a.promises.is_given(session, seq)).count()
        };
        let wrong = let_go
            .iter()
            .filter(|s| !self.torn.contains(&(session, **s)))
            .map(|seq| (*seq, acknowledged(*seq)))
            .find(|(_, by)| *by < required);
        if let Some((seq, by)) = wrong {
            let text =
                format!("the server lets go of {session}:{seq}, which {by} of {required} archives have acknowledged");
            self.judge(Err((Oracle::Release, text)));
        }
        if !self.power_lost {
            return;
        }
        // Acknowledged as stored, lost with the power of whoever had acknowledged it, and let go of now;
        // and what the server had let go of, but held as long as a part of the same block was needed.
        let held = |seq| World::holder(&self.server, &self.archives, session, seq).is_some();
        let before = (1..from.0).rev().map(Seq);
        let also = before.take_while(|seq| !self.truth.is_forgotten(session, *seq) && !held(*seq));
        let gone: Vec<Seq> = also.chain(let_go.into_iter().filter(|seq| !held(*seq))).collect();
        for seq in gone {
            self.truth.forget(session.0, seq.0);
        }
    }

    pub(super) fn take_archive_deeds(&mut self, n: usize) {
        for deed in std::mem::take(&mut self.archives[n].disk.deeds) {
            let Deed::Lost(session, range) = deed else { continue };
            self.note(Host::Archive(n as u16), || format!("notes {session}:{range} as lost"));
            let host = Host::Archive(n as u16);
            let holder = |session, seq| World::holder(&self.server, &self.archives, session, seq);
            let verdict = (range.first.0..=range.last.0)
                .map(Seq)
                .filter(|seq| self.truth.payload(session, *seq).is_some())
                .try_for_each(|seq| must_be_gone(&self.truth, host, session, seq, &holder));
            self.judge(verdict);
        }
    }

    pub(super) fn check_frame(&mut self, sent: &mut Sent) -> Verdict {
        let parsed = Frame::parse(unsealed(&sent.bytes));
        let Ok(frame) = parsed else {
            let text = format!("{} sends a frame that the parser refuses: {parsed:?}", sent.from);
            return Err((Oracle::Wire, text));
        };
        let session = frame.header.session();
        match frame.body {
            Body::Data(block) | Body::Repair(block) => {
                for (seq, message) in block.messages() {
                    self.truth.check(session, seq, &message, sent.from)?;
                }
                let carries = Carries {
                    session,
                    first: block.first(),
                    count: block.count(),
                    repair: matches!(frame.body, Body::Repair(_)),
                };
                if carries.repair {
                    self.counts.repaired += u64::from(carries.count);
                }
                sent.carries = Some(carries);
            }
            Body::Ack(ranges) => {
                if let Host::Archive(n) = sent.from {
                    let synced = frame.header.has(flags::SYNCED);
                    return self.check_ack(usize::from(n), session, ranges.iter(), synced);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// An archive has what it acknowledges, with the right bytes.
    pub(super) fn check_ack(
        &mut self,
        n: usize,
        session: Session,
        ranges: impl Iterator<Item = SeqRange>,
        synced: bool,
    ) -> Verdict {
        let ArchiveHost { disk, promises, .. } = &mut self.archives[n];
        let promises = promises.of(session);
        let promised = if synced { Promise::Synced } else { Promise::Stored };
        for seq in ranges.flat_map(|r| (r.first.0..=r.last.0).map(Seq)) {
            let place = seq.0 as usize - 1;
            if matches!(promises.get(place), Some(Promise::Stored | Promise::Synced)) {
                continue;
            }
            let wrong = match disk.look_up(session, seq) {
                Lookup::Found(record) => {
                    let stored = record.block.messages().find(|(s, _)| *s == seq).map(|(_, m)| m.payload);
                    stored.is_none() || stored != self.truth.payload(session, seq)
                }
                Lookup::Absent(reason, _) => reason != Reason::Lost,
            };
            if wrong {
                let text = format!("archive{n} acknowledges {session}:{seq}, which it does not hold");
                return Err((Oracle::Promise, text));
            }
            if synced && !disk.is_safe(session, seq) {
                let text = format!("archive{n} acknowledges {session}:{seq} as synced, which it has not synced");
                return Err((Oracle::Promise, text));
            }
            if promises.len() <= place {
                promises.resize(place + 1, Promise::None);
            }
            promises[place] = promised;
        }
        Ok(())
    }

    pub(super) fn is_done(&self) -> bool {
        self.what_is_missing().is_none()
    }

    /// What keeps a healed run from its end.
    pub(super) fn what_is_missing(&self) -> Option<String> {
        let Some(server) = &self.server.machine else {
            return Some("the server cannot start".into());
        };
        if self.server.file.next < self.plan.messages || server.is_stuck() {
            return Some(format!(
                "the server has taken {} of {} messages",
                self.server.file.next, self.plan.messages
            ));
        }
        if server.unacknowledged() > 0 {
            return Some(format!(
                "{} messages are not acknowledged; archives miss {:?}",
                server.unacknowledged(),
                self.archives
                    .iter()
                    .map(|a| a.machine.as_ref().map(Archiver::missing))
                    .collect::<Vec<_>>()
            ));
        }
        for (n, client) in self.clients.iter().enumerate() {
            let Some(machine) = &client.machine else {
                return Some(format!("client{n} is not up"));
            };
            if client.view.at.is_none() {
                return Some(format!("client{n} has not joined"));
            }
            if let Some((session, seq)) = client.view.first_due(&self.truth) {
                let holder = World::holder(&self.server, &self.archives, session, seq);
                return Some(format!(
                    "client{n} at {:?} has not got {session}:{seq}, held by {holder:?}; {:?}",
                    machine.position(),
                    machine.stats()
                ));
            }
            if self.plan.close && !machine.ended() {
                return Some(format!(
                    "client{n} at {:?} does not know that the stream has ended",
                    machine.position()
                ));
            }
        }
        None
    }

    /// Repairs are some few for each message missed, and some to catch up with.
    pub(super) fn check_repairs(&self) -> Verdict {
        let Counts { repaired, missed, .. } = self.counts;
        // A merged repair goes to everyone, and a question may be asked again before its answer.
        let most = 2000 + 20 * missed;
        if repaired > most {
            let text = format!("{repaired} messages were repaired, {missed} missed");
            return Err((Oracle::Repairs, text));
        }
        Ok(())
    }
}

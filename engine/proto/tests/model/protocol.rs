//! The state of the whole, and which actions lead from one state to the next.
//!
//! Names are those of `seqcast-proto`; docs/model.md maps them to its functions and says what is left out.

use crate::nodes::{Answer, Archive, Client, Party, Server};
use stateright::{Model, Property};

pub(crate) type Session = u8;
pub(crate) type Seq = u8;
/// Which message of the source; 0 is none.
pub(crate) type Payload = u8;

/// Most sessions, and numbers in a session, that a state has room for.
pub(crate) const SESSIONS: usize = 3;
pub(crate) const SEQS: usize = 4;

/// The identity of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Id {
    pub(crate) session: Session,
    pub(crate) seq: Seq,
}

impl Id {
    pub(crate) fn all() -> impl Iterator<Item = Id> {
        (1..=SESSIONS as Session).flat_map(|session| (1..=SEQS as Seq).map(move |seq| Id { session, seq }))
    }

    fn slot(self) -> usize {
        at(self.session) * SEQS + at(self.seq)
    }
}

/// The place in a table of what is numbered from 1.
pub(crate) fn at(number: u8) -> usize {
    usize::from(number) - 1
}

/// A set of identities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Ids(u16);

impl Ids {
    pub(crate) fn contains(self, id: Id) -> bool {
        self.0 & 1 << id.slot() != 0
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = Id> {
        Id::all().filter(move |id| self.contains(*id))
    }

    pub(crate) fn insert(&mut self, id: Id) {
        self.0 |= 1 << id.slot();
    }

    pub(crate) fn remove(&mut self, id: Id) {
        self.0 &= !(1 << id.slot());
    }
}

/// A payload for each identity: a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Log([Payload; SESSIONS * SEQS]);

impl Log {
    pub(crate) fn get(&self, id: Id) -> Option<Payload> {
        Some(self.0[id.slot()]).filter(|p| *p != 0)
    }

    pub(crate) fn set(&mut self, id: Id, payload: Payload) {
        self.0[id.slot()] = payload;
    }
}

/// Everything. Frames are never taken out of the network: what was sent may come at any time later,
/// again, in any order, or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) server: Server,
    pub(crate) archive: Archive,
    pub(crate) clients: Vec<Client>,
    /// DATA and REPAIR that were sent: for each identity one bit a payload.
    pub(crate) data: [u8; SESSIONS * SEQS],
    /// Numbers that were in an ACK.
    pub(crate) acks: Ids,
}

impl State {
    pub(crate) fn sent(&self, id: Id) -> u8 {
        self.data[id.slot()]
    }

    /// Whether the server's log or the archive holds a message.
    pub(crate) fn is_held(&self, id: Id) -> bool {
        self.server.kept(id).is_some() || self.archive.stored.get(id).is_some()
    }
}

/// Who receives; clients by their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Archive,
    Client(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Publish,
    Roll,
    /// DATA or REPAIR arrives, for the first time, late or again.
    Data(Node, Id, Payload),
    Heartbeat(Node),
    /// The server tells the end of an older session that is not acknowledged throughout.
    End(Node, Session),
    /// A question and its answer: repair, refusal or end. Asked of the server by the archive: its back-fill.
    Nak(Node, Party, Id),
    /// The archive refuses; the network keeps that back, and brings it later.
    HoldBack(usize, Id),
    LateRefusal(usize, Id),
    /// The archive syncs, where it does so, and acknowledges all that it has.
    Acknowledge,
    /// One number of an ACK arrives; the server releases what lies below its floor.
    Ack(Id),
    KillServer,
    /// The log loses what is above this number of the open session.
    PowerServer(Seq),
    KillArchive,
    PowerArchive,
    KillClient(usize),
}

/// A bug planted in the model. Those that `mutations.rs` also plants in the code have its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    ReleaseEarly,
    SendUnkept,
    ReuseSession,
    HideTail,
    WrongAnswer,
    AckUnstored,
    AckUnsynced,
    DeliverTwice,
    SkipGap,
    ForgetHeld,
    TrustOneRefusal,
    /// What the archive refused before the server let go counts on.
    KeepRefusals,
    /// An archive that starts again does not compare what it has with what the server names.
    SkipCompare,
    /// An archive stores what comes from behind the end that it has recorded.
    StoreBehindEnd,
    /// A client takes a refusal for the answer to its last question, whichever question it answers.
    BelieveLate,
}

/// What is checked: bounds, and what is wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) packets: Payload,
    pub(crate) clients: usize,
    /// Rolls and restarts of the server share these.
    pub(crate) sessions: Session,
    /// Most crashes of each node.
    pub(crate) crashes: u8,
    /// The archive acknowledges what is on stable storage; crashes include losses of power.
    pub(crate) synced: bool,
    pub(crate) bug: Option<Bug>,
}

impl Bounds {
    /// Does `action` to `state`.
    pub(crate) fn apply(&self, state: &mut State, action: Action) {
        let State {
            server,
            archive,
            clients,
            data,
            acks,
        } = state;
        let bug = self.bug;
        let held = |id: Id| server.kept(id).is_some() || archive.stored.get(id).is_some();
        match action {
            Action::Publish => {
                let id = Id {
                    session: server.session,
                    seq: server.next[at(server.session)],
                };
                server.taken += 1;
                server.next[at(id.session)] += 1;
                if bug != Some(Bug::SendUnkept) {
                    server.log.set(id, server.taken);
                }
                data[id.slot()] |= 1 << server.taken;
            }
            Action::Roll => server.open(bug),
            Action::Data(Node::Archive, id, payload) => archive.on_block(id, payload, bug),
            Action::Data(Node::Client(c), id, payload) => clients[c].on_block(id, payload, bug),
            Action::Heartbeat(Node::Archive) => archive.on_heartbeat(server, bug),
            Action::Heartbeat(Node::Client(c)) => clients[c].on_heartbeat(server, bug),
            Action::End(Node::Archive, session) => archive.set_end(session, server.last(session)),
            Action::End(Node::Client(c), session) if clients[c].session == session => {
                clients[c].on_end(server.last(session), session + 1, bug);
            }
            Action::End(..) => {}
            Action::Nak(Node::Archive, _, id) => archive.on_answer(id, server.answer(id), bug),
            Action::Nak(Node::Client(c), Party::Server, id) => {
                clients[c].on_answer(id, Party::Server, server.answer(id), &held, bug);
            }
            Action::Nak(Node::Client(c), Party::Archive, id) => {
                clients[c].on_answer(id, Party::Archive, archive.answer(id), &held, bug);
            }
            Action::HoldBack(c, id) => {
                if !matches!(archive.answer(id), Answer::Repair(_) | Answer::NotYet) {
                    clients[c].hold_back(id, held(id), bug);
                }
            }
            Action::LateRefusal(c, id) => {
                // What nobody held when it was refused may have come to the archive since: late DATA of a
                // server that has lost it with its power.
                let was_held = clients[c].late_held;
                let held = |id| was_held.contains(id) && held(id);
                clients[c].on_answer(id, Party::Archive, Answer::UnknownSession, &held, bug);
            }
            Action::Acknowledge => {
                for id in Id::all() {
                    let unstored = bug == Some(Bug::AckUnstored) && id.seq < archive.horizon[at(id.session)];
                    if archive.stored.get(id).is_some() && bug != Some(Bug::AckUnsynced) {
                        archive.synced.insert(id);
                    }
                    if archive.has(id) || unstored {
                        acks.insert(id);
                    }
                }
            }
            Action::Ack(id) => server.on_ack(id, bug),
            Action::KillServer => server.restart(bug),
            Action::PowerServer(last) => {
                for seq in last + 1..server.next[at(server.session)] {
                    let session = server.session;
                    server.log.set(Id { session, seq }, 0);
                    server.torn.insert(Id { session, seq });
                }
                server.next[at(server.session)] = last + 1;
                server.restart(bug);
            }
            Action::KillArchive => archive.restart(false),
            Action::PowerArchive => archive.restart(true),
            Action::KillClient(c) => clients[c].restart(bug),
        }
    }

    /// Whom the network reaches.
    fn nodes(&self) -> impl Iterator<Item = Node> {
        [Node::Archive].into_iter().chain((0..self.clients).map(Node::Client))
    }

    /// What happens in time if no frame is lost for long: not messages that come late, nor crashes.
    pub(crate) fn repairs(&self, state: &State, actions: &mut Vec<Action>) {
        let older = (1..state.server.session).filter(|s| !state.server.is_acknowledged(*s));
        for node in self.nodes() {
            actions.push(Action::Heartbeat(node));
            actions.extend(older.clone().map(|session| Action::End(node, session)));
        }
        let missing = state.archive.missing.iter();
        actions.extend(missing.map(|id| Action::Nak(Node::Archive, Party::Server, id)));
        for (c, client) in state.clients.iter().enumerate() {
            for id in client.gaps() {
                actions.push(Action::Nak(Node::Client(c), Party::Server, id));
                actions.push(Action::Nak(Node::Client(c), Party::Archive, id));
            }
        }
        actions.push(Action::Acknowledge);
        actions.extend(state.acks.iter().map(Action::Ack));
    }
}

impl Model for Bounds {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut server = Server::default();
        server.open(None);
        vec![State {
            server,
            archive: Archive::default(),
            clients: vec![Client::new(); self.clients],
            data: Default::default(),
            acks: Ids::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let server = &state.server;
        let more = server.session < self.sessions;
        if server.taken < self.packets && usize::from(server.next[at(server.session)]) <= SEQS {
            actions.push(Action::Publish);
        }
        if more && server.next[at(server.session)] > 1 {
            actions.push(Action::Roll);
        }
        for id in Id::all() {
            for payload in (1..=self.packets).filter(|p| state.sent(id) & 1 << p != 0) {
                actions.extend(self.nodes().map(|node| Action::Data(node, id, payload)));
            }
        }
        self.repairs(state, actions);
        if more && server.crashes < self.crashes {
            actions.push(Action::KillServer);
            if self.synced {
                let s = at(server.session);
                actions.extend((server.floor[s] - 1..server.last(server.session)).map(Action::PowerServer));
            }
        }
        if state.archive.crashes < self.crashes {
            actions.push(Action::KillArchive);
            actions.extend(self.synced.then_some(Action::PowerArchive));
        }
        for (c, client) in state.clients.iter().enumerate() {
            actions.extend(client.gaps().map(|id| Action::HoldBack(c, id)));
            actions.extend(client.late.iter().map(|id| Action::LateRefusal(c, id)));
            actions.extend((client.crashes < self.crashes).then_some(Action::KillClient(c)));
        }
    }

    /// Clients are alike: of states that differ by their order only one is visited.
    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.apply(&mut state, action);
        state.clients.sort();
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Bounds>> {
        crate::properties::all()
    }
}

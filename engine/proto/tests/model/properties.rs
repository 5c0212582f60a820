//! What must hold in every state of the model, and what must be seen in some.

use crate::nodes::{Client, Out};
use crate::protocol::{Bounds, Id, State};
use stateright::Property;

pub(crate) const IDENTITY: &str = "identity";
pub(crate) const DELIVERY: &str = "delivery";
pub(crate) const LOSS: &str = "loss";
pub(crate) const PROMISE: &str = "promise";
pub(crate) const RETENTION: &str = "retention";
pub(crate) const RELEASE: &str = "release";
pub(crate) const LIVENESS: &str = "liveness";
/// Seen in some state: a message that only the archive holds was delivered; the same of the server's log
/// in an older session; and a loss.
pub(crate) const FROM_ARCHIVE: &str = "from archive";
pub(crate) const FROM_LOG: &str = "from log";
pub(crate) const LOST: &str = "lost";
/// Seen too: a refusal that counts although the network has kept it back.
pub(crate) const LATE: &str = "late";

pub(crate) fn all() -> Vec<Property<Bounds>> {
    vec![
        Property::always(IDENTITY, |_, s: &State| {
            Id::all().all(|id| s.sent(id).count_ones() <= 1)
        }),
        Property::always(DELIVERY, delivery),
        Property::always(LOSS, |_, s: &State| s.clients.iter().all(|c| !c.false_loss)),
        Property::always(PROMISE, |_, s: &State| {
            s.acks.iter().all(|id| s.is_held(id) || s.archive.lost.contains(id))
        }),
        Property::always(RETENTION, retention),
        Property::always(RELEASE, |_, s: &State| {
            let released = |id: &Id| s.server.log.get(*id).is_some() && s.server.kept(*id).is_none();
            Id::all().filter(released).all(|id| s.acks.contains(id))
        }),
        Property::always(LIVENESS, liveness),
        Property::sometimes(FROM_ARCHIVE, |_, s: &State| {
            delivered(s).any(|id| s.server.log.get(id).is_some() && s.server.kept(id).is_none())
        }),
        Property::sometimes(FROM_LOG, |_, s: &State| {
            delivered(s).any(|id| id.session < s.server.session && s.archive.stored.get(id).is_none())
        }),
        Property::sometimes(LOST, |_, s: &State| {
            s.clients.iter().flat_map(|c| &c.out).any(|o| matches!(o, Out::Lost(_)))
        }),
        Property::sometimes(LATE, |_, s: &State| {
            s.clients.iter().any(|c| c.late.iter().next().is_some())
        }),
    ]
}

fn delivered(state: &State) -> impl Iterator<Item = Id> + '_ {
    state.clients.iter().flat_map(|c| &c.out).filter_map(|out| match out {
        Out::Message(id, _) => Some(*id),
        Out::Lost(_) => None,
    })
}

/// Each client's output is every number once, in order, from the first on, each with what was sent under it or
/// as lost. The same message comes under two numbers only after the server's log has lost it.
fn delivery(_: &Bounds, state: &State) -> bool {
    state.clients.iter().all(|client| {
        let mut before = Id { session: 1, seq: 0 };
        let mut seen = 0_u8;
        client.out.iter().all(|out| {
            let (id, right) = match *out {
                Out::Lost(id) => (id, true),
                Out::Message(id, payload) => {
                    let again = seen & 1 << payload != 0;
                    seen |= 1 << payload;
                    let published_again = state.server.torn.iter().next().is_some();
                    let sent = state.sent(id) & 1 << payload != 0;
                    (id, sent && (!again || published_again))
                }
            };
            let follows = match id.session == before.session {
                true => id.seq == before.seq + 1,
                false => id.session > before.session && id.seq == 1,
            };
            before = id;
            right && follows
        })
    })
}

/// What is on the wire is in the server's log, until the archive has it; a loss of power is the exception.
fn retention(_: &Bounds, state: &State) -> bool {
    Id::all()
        .filter(|id| state.sent(*id) != 0 && !state.server.torn.contains(*id))
        .all(|id| state.is_held(id))
}

/// From every state: if from now on nothing is lost and nobody dies, and whatever was on its way is gone,
/// each client comes to the server's position with every message delivered or reported, and
/// the archive acknowledges everything.
fn liveness(bounds: &Bounds, state: &State) -> bool {
    let mut healed = state.clone();
    let mut actions = Vec::new();
    loop {
        let before = healed.clone();
        actions.clear();
        bounds.repairs(&healed, &mut actions);
        for action in &actions {
            bounds.apply(&mut healed, *action);
        }
        if healed == before {
            break;
        }
    }
    let server = &healed.server;
    let acknowledged = (1..=server.session).all(|session| server.is_acknowledged(session));
    let at_end = |c: &Client| c.session == server.session && c.next > server.last(c.session);
    let complete = |c: &Client| {
        (1..=server.taken).all(|payload| {
            c.out.iter().any(|out| match *out {
                Out::Message(_, p) => p == payload,
                Out::Lost(id) => healed.sent(id) & 1 << payload != 0,
            })
        })
    };
    acknowledged
        && healed.archive.missing.iter().next().is_none()
        && healed.clients.iter().all(|c| at_end(c) && complete(c))
}

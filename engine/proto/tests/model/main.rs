//! The repair and hand-over protocol as a small model, checked exhaustively. docs/model.md describes it.

mod nodes;
mod properties;
mod protocol;

use properties::{DELIVERY, FROM_ARCHIVE, FROM_LOG, IDENTITY, LATE, LIVENESS, LOSS, LOST, PROMISE, RELEASE, RETENTION};
use protocol::{Bounds, Bug};
use stateright::{Checker, HasDiscoveries, Model};
use std::collections::BTreeSet;

/// Two messages, one client, one kill of each node, one change of session.
const KILLS: Bounds = Bounds {
    packets: 2,
    clients: 1,
    sessions: 2,
    crashes: 1,
    synced: false,
    bug: None,
};

/// The same with losses of power, and an archive that acknowledges what is on stable storage.
const POWER: Bounds = Bounds { synced: true, ..KILLS };

/// Visits every state until `finish`; prints how many there are, and the way to what was broken.
fn explore(bounds: Bounds, finish: HasDiscoveries) -> BTreeSet<&'static str> {
    let checker = bounds.checker().finish_when(finish).threads(2).spawn_bfs().join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("{bounds:?}: {states} states, {depth} steps deep");
    let found = checker.discoveries();
    for (name, path) in &found {
        if ![FROM_ARCHIVE, FROM_LOG, LOST, LATE].contains(name) {
            println!("{name} is broken by {:#?}", path.clone().into_actions());
        }
    }
    found.into_keys().collect()
}

/// Nothing is broken in any state, and what `seen` names happens in some.
fn check<const N: usize>(bounds: Bounds, seen: [&'static str; N]) {
    assert_eq!(explore(bounds, HasDiscoveries::AnyFailures), BTreeSet::from(seen));
}

#[test]
fn kills_lose_nothing() {
    check(Bounds { packets: 3, ..KILLS }, [FROM_ARCHIVE, FROM_LOG]);
}

#[test]
fn two_clients_do_not_hinder_each_other() {
    let bounds = Bounds { clients: 2, ..KILLS };
    check(bounds, [FROM_ARCHIVE, FROM_LOG]);
}

#[test]
fn losses_of_power_lose_only_what_nobody_holds() {
    check(POWER, [FROM_ARCHIVE, FROM_LOG, LOST, LATE]);
}

/// Bounds of the reader's own: minutes in a release build.
#[test]
fn larger_bounds() {
    let Ok(asked) = std::env::var("SEQCAST_MODEL") else {
        return;
    };
    let numbers: Vec<u8> = asked.split(',').map_while(|n| n.trim().parse().ok()).collect();
    let [packets @ 1..=3, clients @ 1..=3, sessions @ 1..=3, power @ 0..=1] = numbers[..] else {
        panic!("SEQCAST_MODEL={asked}: expected packets (1 to 3), clients (1 to 3), sessions (1 to 3), power (0 or 1)");
    };
    let bounds = Bounds {
        packets,
        clients: clients.into(),
        sessions,
        synced: power == 1,
        ..KILLS
    };
    let found = explore(bounds, HasDiscoveries::AnyFailures);
    let expected = BTreeSet::from([FROM_ARCHIVE, FROM_LOG, LOST, LATE]);
    assert!(found.is_subset(&expected), "{found:?}");
}

/// A bug breaks the property that is meant for it.
fn finds(bounds: Bounds, bug: Bug, property: &'static str) {
    let bounds = Bounds {
        bug: Some(bug),
        ..bounds
    };
    let found = explore(bounds, HasDiscoveries::AnyOf(BTreeSet::from([property])));
    assert!(found.contains(property), "{bug:?}: {found:?}");
}

macro_rules! each_bug_is_found {
    ($($test:ident: $bug:ident by $property:ident in $bounds:ident;)*) => {
        $(#[test]
        fn $test() {
            finds($bounds, Bug::$bug, $property);
        })*
    };
}

each_bug_is_found! {
    reusing_a_session: ReuseSession by IDENTITY in KILLS;
    delivering_twice: DeliverTwice by DELIVERY in KILLS;
    skipping_a_gap: SkipGap by DELIVERY in KILLS;
    answering_with_another_message: WrongAnswer by DELIVERY in KILLS;
    trusting_one_refusal: TrustOneRefusal by LOSS in KILLS;
    counting_old_refusals: KeepRefusals by LOSS in KILLS;
    storing_behind_the_end: StoreBehindEnd by LOSS in POWER;
    acknowledging_what_is_not_stored: AckUnstored by PROMISE in KILLS;
    acknowledging_what_is_not_synced: AckUnsynced by PROMISE in POWER;
    sending_what_was_not_kept: SendUnkept by RETENTION in KILLS;
    releasing_early: ReleaseEarly by RELEASE in KILLS;
    hiding_the_tail: HideTail by LIVENESS in KILLS;
    forgetting_what_is_held: ForgetHeld by LIVENESS in KILLS;
    comparing_nothing_after_a_start: SkipCompare by LIVENESS in KILLS;
    believing_a_refusal_that_comes_too_late: BelieveLate by LOSS in KILLS;
}

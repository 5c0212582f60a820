//! Clients that deliver on arrival, over a bad network: each message once, late ones marked.

mod common;

use std::collections::BTreeSet;

use common::{Net, STREAM, World, payload};
use seqcast_proto::client::{Client, ClientConfig, Order, Start};
use seqcast_proto::io::Event;
use seqcast_proto::seq::{Seq, SeqRange};
use seqcast_proto::time::{MICROS, MILLIS, SECONDS};

const BAD: Net = Net {
    loss: 50,
    double: 20,
    jitter: 200 * MICROS,
};
const GOOD: Net = Net {
    loss: 0,
    double: 0,
    jitter: 0,
};

fn config(start: Start) -> ClientConfig {
    let mut config = ClientConfig::new(STREAM, 500);
    config.start = start;
    config.order = Order::Arrival;
    config.window = 512;
    config.hold_frames = 64;
    config
}

fn add(world: &mut World, config: ClientConfig) -> usize {
    let client = world.add_client(Start::Session);
    world.clients[client].client = Client::new(config, world.now);
    client
}

/// Each message of the input exactly once, sessions in turn, late exactly what came behind a
/// higher number.
fn check(world: &World, client: usize) {
    let app = &world.clients[client].app;
    let mut late = BTreeSet::new();
    let mut highest = (0, 0);
    for (session, seq, _) in &app.got {
        assert!(*session >= highest.0, "sessions follow each other");
        if (*session, *seq) < highest {
            late.insert((*session, *seq));
        }
        highest = highest.max((*session, *seq));
    }
    let marked: BTreeSet<_> = app.late.iter().copied().collect();
    assert!(late == marked, "late {late:?}, marked {marked:?}");
    let mut sorted = app.got.clone();
    sorted.sort();
    assert_eq!(sorted.len() as u64, world.source.until);
    for (i, (session, seq, bytes)) in sorted.iter().enumerate() {
        assert_eq!(*bytes, payload(i as u64), "message {i} ({session}, {seq})");
    }
}

#[test]
fn each_message_comes_once_and_late_ones_say_so() {
    for seed in 1..=20 {
        let mut world = World::new(seed, BAD, 3000);
        world.start_archive();
        let client = add(&mut world, config(Start::Session));
        world.start_server();
        world.run_until("delivery", 60 * SECONDS, |w| w.everyone_has(3000));
        // Whatever still flies brings nothing twice.
        (0..1000).for_each(|_| world.step(0));
        check(&world, client);
        let stats = world.clients[client].client.stats();
        assert_eq!((stats.delivered, stats.lost), (3000, 0), "{stats:?}");
        assert!(!world.clients[client].app.late.is_empty() && stats.duplicates > 0);
    }
}

#[test]
fn nothing_waits_for_a_gap_and_the_gap_is_said_at_once() {
    let mut world = World::new(7, GOOD, 200);
    let client = add(&mut world, config(Start::Session));
    world.archives = 0;
    world.start_server();
    world.run_until("some", SECONDS, |w| w.everyone_has(20));
    world.lose_data = true;
    let gap_from = world.source.next;
    world.run_until("a gap", SECONDS, |w| w.source.next >= gap_from + 5);
    // What was sent in this step is lost as well.
    world.step(0);
    world.lose_data = false;
    let before = world.clients[client].app.got.len();
    let live = world.source.next;
    world.step(1);
    world.step(0);
    let app = &world.clients[client].app;
    let behind = app.got.get(before).map(|g| u64::from(g.1) - 1);
    assert_eq!(behind, Some(live), "the message behind the gap comes first");
    assert!(
        app.events
            .iter()
            .any(|e| matches!(e, Event::Gap { range, .. } if range.contains(Seq(gap_from as u32 + 1)))),
        "{:?}",
        app.events
    );
    world.run_until("delivery", SECONDS, |w| w.everyone_has(200));
    check(&world, client);
}

#[test]
fn sessions_change_and_nothing_is_lost_or_doubled() {
    for seed in 1..=20 {
        let mut world = World::new(seed, BAD, 3000);
        world.range_end = Seq(400);
        world.start_archive();
        let client = add(&mut world, config(Start::Session));
        world.start_server();
        world.run_until("half", 60 * SECONDS, |w| w.source.next >= 1500);
        world.server = None;
        world.start_server();
        world.run_until("delivery", 60 * SECONDS, |w| w.everyone_has(3000));
        check(&world, client);
        let sessions: BTreeSet<u32> = world.clients[client].app.got.iter().map(|g| g.0).collect();
        assert!(sessions.len() >= 8, "{sessions:?}");
    }
}

#[test]
fn an_application_that_takes_nothing_for_a_while_gets_each_message_once() {
    for seed in 1..=20 {
        let mut world = World::new(seed, BAD, 3000);
        world.start_archive();
        let client = add(&mut world, config(Start::Session));
        world.start_server();
        for part in 1..=5 {
            world.run_until("more", 20 * SECONDS, |w| w.source.next >= 500 * part);
            world.clients[client].app.stuck = true;
            let until = world.now + 5 * MILLIS * part;
            world.run_until("a pause", SECONDS, |w| w.now >= until);
            world.clients[client].app.stuck = false;
        }
        world.run_until("delivery", 60 * SECONDS, |w| w.everyone_has(3000));
        check(&world, client);
        assert!(world.clients[client].client.stats().refused > 0);
    }
}

#[test]
fn more_gaps_than_can_be_remembered_double_nothing() {
    for seed in 1..=10 {
        let net = Net { loss: 300, ..BAD };
        let mut world = World::new(seed, net, 3000);
        world.start_archive();
        let mut config = config(Start::Session);
        config.gaps.max_gaps = 3;
        let client = add(&mut world, config);
        world.start_server();
        world.run_until("delivery", 120 * SECONDS, |w| w.everyone_has(3000));
        check(&world, client);
        assert!(world.clients[client].client.stats().overruns > 0);
    }
}

#[test]
fn loss_is_said_once_with_its_range() {
    let mut world = World::new(4, GOOD, 1000);
    world.archives = 0;
    let mut config = config(Start::Session);
    config.gaps.give_up = 50 * MILLIS;
    let client = add(&mut world, config);
    world.start_server();
    world.run_until("some", SECONDS, |w| w.everyone_has(100));
    world.lose_data = true;
    let from = world.source.next;
    world.run_until("a gap", SECONDS, |w| w.source.next >= from + 50);
    world.step(0);
    world.lose_data = false;
    let to = world.source.next;
    let session = *world.server_disk.sessions.keys().next().unwrap();
    seqcast_proto::io::ServerStore::release_below(
        &mut world.server_disk,
        seqcast_proto::seq::Session(session),
        Seq(to as u32 + 1),
    );
    world.run_until("the rest", 10 * SECONDS, |w| {
        w.clients[client]
            .client
            .position()
            .is_some_and(|(_, next)| next == Seq(1001))
    });
    let app = &world.clients[client].app;
    let lost: Vec<SeqRange> = app
        .events
        .iter()
        .filter_map(|e| match e {
            Event::Lost { range, .. } => Some(*range),
            _ => None,
        })
        .collect();
    let total: u32 = lost.iter().map(|r| r.len()).sum();
    assert_eq!(app.got.len() + total as usize, 1000, "{lost:?}");
    assert!(lost.iter().all(|r| app.got.iter().all(|g| !r.contains(Seq(g.1)))));
    assert_eq!(u64::from(total), to - from, "{lost:?}");
}

#[test]
fn a_client_that_was_away_catches_up_while_live_messages_come() {
    for seed in 1..=20 {
        let mut world = World::new(seed, BAD, 4000);
        world.start_archive();
        let first = add(&mut world, config(Start::Session));
        world.start_server();
        world.run_until("some", 20 * SECONDS, |w| w.source.next >= 300);
        world.clients[first].cut_off = true;
        world.run_until("a long absence", 20 * SECONDS, |w| w.source.next >= 3000);
        world.clients[first].cut_off = false;
        world.run_until("catch-up", 60 * SECONDS, |w| w.everyone_has(4000));
        check(&world, first);
    }
}

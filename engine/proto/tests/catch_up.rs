//! A client that was away fetches what it missed while the stream goes on: how much of the network that
//! takes, and what the others see of it. In simulated time, so that each bound is exact.

mod common;

use std::net::SocketAddrV4;

use common::{GROUP, Net, STREAM, World, addr};
use seqcast_proto::client::{Client, ClientConfig, Start};
use seqcast_proto::seq::{Seq, Session};
use seqcast_proto::time::{MILLIS, SECONDS};

const QUIET: Net = Net {
    loss: 0,
    double: 0,
    jitter: 0,
};
/// Messages that were missed, and all there are.
const MISSED: u64 = 40_000;
const MESSAGES: u64 = 100_000;
/// What an archive with a rate may send at once after a pause, and what its last answer may be longer.
const BURST: u64 = (64 << 10) + 1024;

/// What the others see of the stream.
#[derive(Debug, PartialEq)]
struct Seen {
    /// How many messages the live client had after each step.
    delivered: Vec<u64>,
    /// How many the server still kept for the archive after each step.
    unacknowledged: Vec<u64>,
    /// Bytes that the server and the archive sent to the group, the server to the archive, and either to the live client.
    carried: [u64; 5],
}

/// A stream of one message a step. With `back`, a client that was away from the start comes back when it has missed
/// [`MISSED`]. Returns what the others saw, and the bytes that each step carried to the client that came back.
fn run(back: bool, repair_rate: Option<u64>) -> (Seen, Vec<u64>) {
    let mut world = World::new(1, QUIET, MESSAGES);
    world.repair_rate = repair_rate;
    world.start_archive();
    world.add_client(Start::Session);
    world.start_server();
    let mut seen = Seen {
        delivered: Vec::new(),
        unacknowledged: Vec::new(),
        carried: [0; 5],
    };
    let mut to_back = Vec::new();
    while !world.everyone_has(MESSAGES) {
        if back && world.clients.len() == 1 && world.clients[0].app.got.len() as u64 >= MISSED {
            let session = Session(world.clients[0].app.got[0].0);
            let mut config = ClientConfig::new(STREAM, 500);
            config.start = Start::After(session, Seq(0));
            config.seek_group = Some(GROUP);
            let at = world.add_client(Start::Session);
            world.clients[at].client = Client::new(config, world.now);
        }
        assert!(world.now < 60 * SECONDS, "{}", world.describe());
        world.step(1);
        // After that, who was away may still be fetching.
        if !world.all_published() {
            seen.delivered.push(world.clients[0].app.got.len() as u64);
            seen.unacknowledged
                .push(world.server.as_ref().unwrap().unacknowledged());
            let pairs = [(1, None), (2, None), (1, Some(2)), (1, Some(10)), (2, Some(10))];
            seen.carried = pairs.map(|(from, to)| carried(&world, addr(from), to.map_or(GROUP, addr)));
        }
        // Until it hears of the archive it asks the group, so that the server hears it too, and refuses.
        let asked = carried(&world, addr(11), GROUP) + carried(&world, addr(11), addr(1));
        assert!(carried(&world, addr(1), addr(11)) <= asked, "the server gave repairs");
        to_back.push(carried(&world, addr(2), addr(11)));
    }
    let asked: u64 = [GROUP, addr(1), addr(2)]
        .map(|to| carried(&world, addr(11), to))
        .iter()
        .sum();
    let given = carried(&world, addr(2), addr(11));
    assert!(asked <= given / 8, "{asked} bytes of questions for {given} of answers");
    for client in 0..world.clients.len() {
        world.check_client(client, 0);
    }
    (seen, to_back)
}

fn carried(world: &World, from: SocketAddrV4, to: SocketAddrV4) -> u64 {
    world.carried.get(&(from, to)).copied().unwrap_or(0)
}

#[test]
fn who_was_away_changes_nothing_for_the_others() {
    let (alone, _) = run(false, None);
    let (beside, fetched) = run(true, None);
    assert!(*fetched.last().unwrap() > 0);
    assert_eq!(alone, beside);
}

#[test]
fn an_archive_with_a_rate_gives_who_was_away_no_more_than_that_and_all_of_it() {
    const RATE: u64 = 4_000_000;
    let (_, fetched) = run(true, Some(RATE));
    // Steps of 20 us.
    for window in [50, 500, 5000] {
        let most = RATE * window as u64 * 20 / 1_000_000 + BURST;
        // The rate is of what the frames hold, without their headers.
        let most = most + most / 16;
        for pair in fetched.windows(window + 1) {
            assert!(
                pair[window] - pair[0] <= most,
                "{} bytes in {window} steps",
                pair[window] - pair[0]
            );
        }
    }
    let steps = |share: u64| {
        fetched
            .iter()
            .filter(|&&sum| sum * 10 <= share * *fetched.last().unwrap())
            .count() as u64
    };
    let (took, bytes) = ((steps(9) - steps(1)) * 20 * 1000, fetched.last().unwrap() * 8 / 10);
    let least = bytes * SECONDS / RATE;
    assert!(
        took < least + least / 10 + MILLIS,
        "{} ms for what takes {}",
        took / MILLIS,
        least / MILLIS
    );
}

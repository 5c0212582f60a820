//! A client that comes back when the server is gone: the archive alone has what it missed.

mod common;

use common::{GROUP, Net, STREAM, World};
use seqcast_proto::client::{Client, ClientConfig, Start};
use seqcast_proto::io::Store;
use seqcast_proto::seq::{Seq, Session};
use seqcast_proto::time::{MICROS, SECONDS};

const BAD: Net = Net {
    loss: 50,
    double: 20,
    jitter: 200 * MICROS,
};

#[test]
fn what_was_missed_is_found_without_a_server_and_without_an_address() {
    for seed in 1..=20 {
        let mut world = World::new(seed, BAD, 3000);
        world.range_end = Seq(700);
        world.start_archive();
        world.add_client(Start::Session);
        world.start_server();
        world.run_until("some", 20 * SECONDS, |w| w.clients[0].app.got.len() >= 300);
        let (session, seq, _) = world.clients[0].app.got.last().cloned().unwrap();
        let have = world.clients[0].app.got.len() as u64;
        world.clients[0].cut_off = true;
        world.run_until("the archive has all, and the end of each session", 60 * SECONDS, |w| {
            let ended = |s: &u32| w.archive_disk.end_of(Session(*s)).is_some();
            let sessions = w.archive_disk.sessions.keys();
            w.all_published() && w.server.as_ref().unwrap().unacknowledged() == 0 && sessions.rev().skip(1).all(ended)
        });
        world.server = None;
        let mut config = ClientConfig::new(STREAM, 500);
        config.start = Start::After(Session(session), Seq(seq));
        config.seek_group = Some(GROUP);
        let back = world.add_client(Start::Session);
        world.clients[back].client = Client::new(config, world.now);
        world.run_until("catch-up", 60 * SECONDS, |w| {
            w.clients[back].app.got.len() as u64 >= 3000 - have
        });
        world.check_client(back, have);
    }
}

#[test]
fn a_client_whose_list_of_gaps_is_full_asks_for_nothing_that_it_has() {
    for seed in 1..=20 {
        let mut world = World::new(seed, BAD, 2000);
        world.start_archive();
        let client = world.add_client(Start::Session);
        let mut config = ClientConfig::new(STREAM, 500);
        config.start = Start::Session;
        config.gaps.max_gaps = 3;
        world.clients[client].client = Client::new(config, world.now);
        world.start_server();
        world.run_until("delivery", 60 * SECONDS, |w| w.everyone_has(2000));
        world.check_client(client, 0);
        let (asked, until) = (world.clients[client].client.stats().naks, world.now + 5 * SECONDS);
        world.run_until("a while", 6 * SECONDS, |w| w.now >= until);
        assert_eq!(world.clients[client].client.stats().naks, asked, "seed {seed}");
    }
}

//! Server, archive and clients together, as the engine runs them, over a bad network.

mod common;

use common::{Net, STREAM, World};
use seqcast_proto::client::{Client, ClientConfig, Start};
use seqcast_proto::io::Event;
use seqcast_proto::seq::Seq;
use seqcast_proto::time::{MICROS, SECONDS};

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

fn seeds() -> impl Iterator<Item = u64> {
    1..=std::env::var("SEQCAST_SEEDS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(20)
}

#[test]
fn clean_network_needs_no_repair() {
    let mut world = World::new(1, GOOD, 5000);
    world.start_archive();
    world.add_client(Start::Session);
    world.start_server();
    world.run_until("delivery", 10 * SECONDS, |w| w.everyone_has(5000));
    world.check_client(0, 0);
    let stats = world.clients[0].client.stats();
    assert_eq!((stats.gaps, stats.naks, stats.duplicates), (0, 0, 0));
    world.run_until("acknowledgement", SECONDS, |w| {
        w.server.as_ref().unwrap().unacknowledged() == 0
    });
}

#[test]
fn loss_doubles_and_reordering_are_made_good() {
    for seed in seeds() {
        let mut world = World::new(seed, BAD, 3000);
        world.start_archive();
        for _ in 0..3 {
            world.add_client(Start::Session);
        }
        world.start_server();
        world.run_until("delivery", 60 * SECONDS, |w| w.everyone_has(3000));
        for client in 0..3 {
            world.check_client(client, 0);
        }
        let stats = world.clients[0].client.stats();
        assert!(
            stats.gaps > 0 && stats.repaired_archive + stats.repaired_server > 0,
            "{stats:?}"
        );
        world.run_until("acknowledgement", 10 * SECONDS, |w| {
            w.server.as_ref().unwrap().unacknowledged() == 0
        });
    }
}

#[test]
fn without_an_archive_the_server_repairs() {
    for seed in seeds() {
        let mut world = World::new(seed, BAD, 2000);
        world.archives = 0;
        world.add_client(Start::Session);
        world.start_server();
        world.run_until("delivery", 60 * SECONDS, |w| w.everyone_has(2000));
        world.check_client(0, 0);
        let stats = world.clients[0].client.stats();
        assert!(stats.naks > 0 && stats.repaired_archive == 0, "{stats:?}");
    }
}

#[test]
fn the_last_message_is_not_lost_in_silence() {
    for seed in seeds() {
        let mut world = World::new(seed, GOOD, 100);
        world.start_archive();
        world.add_client(Start::Session);
        world.start_server();
        world.run_until("all but a few", 10 * SECONDS, |w| w.source.next >= 90);
        world.clients[0].cut_off = true;
        world.run_until("all published", 10 * SECONDS, World::all_published);
        world.step(0);
        world.clients[0].cut_off = false;
        world.run_until("the tail", SECONDS, |w| w.everyone_has(100));
        world.check_client(0, 0);
    }
}

#[test]
fn a_new_client_starts_at_now_and_asks_for_nothing_older() {
    let mut world = World::new(3, GOOD, 4000);
    world.start_archive();
    world.add_client(Start::Session);
    world.start_server();
    world.run_until("half", 10 * SECONDS, |w| w.source.next >= 2000);
    let late = world.add_client(Start::Now);
    world.run_until("all published", 10 * SECONDS, World::all_published);
    world.run_until("delivery", SECONDS, |w| w.clients[0].app.got.len() == 4000);
    let first = u64::from(world.clients[late].app.got[0].1) - 1;
    assert!(first >= 1990, "started at {first}");
    world.check_client(late, first);
    assert_eq!(world.clients[late].client.stats().naks, 0);
}

#[test]
fn a_client_that_was_away_goes_on_where_it_stopped() {
    for seed in seeds() {
        let mut world = World::new(seed, BAD, 4000);
        world.range_end = Seq(700);
        world.start_archive();
        world.add_client(Start::Session);
        world.start_server();
        world.run_until("some", 20 * SECONDS, |w| w.clients[0].app.got.len() >= 300);
        let (session, seq, _) = world.clients[0].app.got.last().cloned().unwrap();
        let have = world.clients[0].app.got.len() as u64;
        world.clients[0].cut_off = true;
        world.run_until("all published, over several sessions", 60 * SECONDS, |w| {
            w.all_published() && w.server.as_ref().unwrap().unacknowledged() == 0
        });
        let back = world.add_client(Start::After(seqcast_proto::seq::Session(session), Seq(seq)));
        world.run_until("catch-up", 120 * SECONDS, |w| {
            w.clients[back].app.got.len() as u64 >= 4000 - have
        });
        world.check_client(back, have);
    }
}

#[test]
fn the_archive_dies_and_comes_back() {
    for seed in seeds() {
        let mut world = World::new(seed, BAD, 4000);
        world.start_archive();
        world.add_client(Start::Session);
        world.add_client(Start::Session);
        world.start_server();
        for at in [500, 1500, 2500] {
            world.run_until("running", 60 * SECONDS, |w| w.source.next >= at);
            world.archive = None;
            world.run_until("running without archive", 60 * SECONDS, |w| w.source.next >= at + 500);
            assert!(world.server.as_ref().unwrap().unacknowledged() > 0, "the server keeps");
            world.start_archive();
        }
        world.run_until("delivery", 60 * SECONDS, |w| w.everyone_has(4000));
        world.check_client(0, 0);
        world.check_client(1, 0);
        world.run_until("the archive has filled itself", 30 * SECONDS, |w| {
            w.server.as_ref().unwrap().unacknowledged() == 0
        });
        assert_eq!(world.archive_disk.messages().len(), 4000);
    }
}

#[test]
fn the_server_dies_and_comes_back() {
    for seed in seeds() {
        let mut world = World::new(seed, BAD, 4000);
        world.start_archive();
        world.add_client(Start::Session);
        world.add_client(Start::Session);
        world.start_server();
        for at in [700, 1700, 1710, 3000] {
            world.run_until("running", 60 * SECONDS, |w| w.source.next >= at);
            world.server = None;
            for _ in 0..world.rng.below(2000) {
                world.step(0);
            }
            world.start_server();
        }
        world.run_until("delivery", 120 * SECONDS, |w| w.everyone_has(4000));
        world.check_client(0, 0);
        world.check_client(1, 0);
        let started = world.clients[0]
            .app
            .events
            .iter()
            .filter(|e| matches!(e, Event::SessionStarted { .. }))
            .count();
        assert_eq!(started, 4, "each restart is an event");
        world.run_until("acknowledgement", 30 * SECONDS, |w| {
            w.server.as_ref().unwrap().unacknowledged() == 0
        });
        assert_eq!(world.archive_disk.messages().len(), 4000);
    }
}

#[test]
fn sessions_roll_over_at_the_end_of_their_range() {
    for seed in seeds() {
        let mut world = World::new(seed, BAD, 3000);
        world.range_end = Seq(250);
        world.start_archive();
        world.add_client(Start::Session);
        world.start_server();
        world.run_until("delivery", 120 * SECONDS, |w| w.everyone_has(3000));
        world.check_client(0, 0);
        assert!(world.server.as_ref().unwrap().stats().rolls >= 11);
        world.run_until("acknowledgement", 30 * SECONDS, |w| {
            w.server.as_ref().unwrap().unacknowledged() == 0
        });
        assert_eq!(world.archive_disk.messages().len(), 3000);
    }
}

#[test]
fn a_clean_end_reaches_everyone() {
    for seed in seeds() {
        let mut world = World::new(seed, BAD, 500);
        world.start_archive();
        world.add_client(Start::Session);
        world.start_server();
        world.run_until("all published", 20 * SECONDS, World::all_published);
        let now = world.now();
        let (server, disk) = (world.server.as_mut().unwrap(), &mut world.server_disk);
        server.close(now, disk).unwrap();
        world.run_until("the server may leave", 20 * SECONDS, |w| {
            w.server.as_ref().unwrap().finished(w.now)
        });
        assert_eq!(world.server.as_ref().unwrap().unacknowledged(), 0);
        world.server = None;
        world.run_until("the client knows", 20 * SECONDS, |w| w.clients[0].client.ended());
        world.check_client(0, 0);
        assert!(world.archive.as_ref().unwrap().complete());
    }
}

#[test]
fn what_the_crashed_server_alone_knew_comes_from_its_log() {
    // The archive and one client are cut off, the server sends, dies, and returns.
    let mut world = World::new(9, GOOD, 1000);
    world.start_archive();
    world.add_client(Start::Session);
    world.start_server();
    world.run_until("half", 20 * SECONDS, |w| w.everyone_has(400));
    world.archive = None;
    world.clients[0].cut_off = true;
    world.run_until("sent to nobody", 20 * SECONDS, |w| w.source.next >= 700);
    world.server = None;
    world.clients[0].cut_off = false;
    world.start_archive();
    for _ in 0..1000 {
        world.step(0);
    }
    world.start_server();
    world.run_until("delivery", 60 * SECONDS, |w| w.everyone_has(1000));
    world.check_client(0, 0);
}

#[test]
fn loss_is_said_when_nobody_has_the_messages() {
    let mut world = World::new(5, GOOD, 1000);
    world.archives = 0;
    world.add_client(Start::Session);
    world.start_server();
    world.run_until("some", 20 * SECONDS, |w| w.everyone_has(300));
    world.clients[0].cut_off = true;
    world.run_until("missed", 20 * SECONDS, |w| w.source.next >= 600);
    for _ in 0..100 {
        world.step(0);
    }
    // The server's window has moved on.
    let (session, next) = world.server.as_ref().unwrap().position();
    seqcast_proto::io::ServerStore::release_below(&mut world.server_disk, session, next);
    world.clients[0].cut_off = false;
    world.run_until("all published", 20 * SECONDS, World::all_published);
    for _ in 0..5000 {
        world.step(0);
    }
    let host = &world.clients[0];
    let lost: Vec<_> = host
        .app
        .events
        .iter()
        .filter_map(|e| {
            if let Event::Lost { range, .. } = e {
                Some(*range)
            } else {
                None
            }
        })
        .collect();
    let had = host.app.got.iter().position(|g| g.1 >= next.0).unwrap();
    let first_lost = host.app.got[had - 1].1 + 1;
    assert_eq!(
        lost.iter().map(|r| r.len()).sum::<u32>(),
        next.0 - first_lost,
        "exactly what is missing: {lost:?}"
    );
    assert_eq!(host.app.got.len() as u64 + host.client.stats().lost, 1000);
}

#[test]
fn a_slow_application_loses_nothing() {
    for seed in seeds() {
        let mut world = World::new(seed, BAD, 3000);
        world.start_archive();
        world.add_client(Start::Session);
        world.start_server();
        for _ in 0..30 {
            world.clients[0].app.stuck = !world.clients[0].app.stuck;
            for _ in 0..500 {
                let rate = world.rng.below(2) as usize;
                world.step(rate);
            }
        }
        world.clients[0].app.stuck = false;
        world.run_until("delivery", 60 * SECONDS, |w| w.everyone_has(3000));
        world.check_client(0, 0);
        assert!(world.clients[0].client.stats().refused > 0);
    }
}

#[test]
fn who_has_room_for_few_frames_asks_for_what_it_can_hold() {
    for seed in seeds() {
        let mut world = World::new(seed, BAD, 3000);
        world.start_archive();
        world.start_server();
        world.run_until("the archive has all", 20 * SECONDS, |w| {
            w.all_published() && w.server.as_ref().unwrap().unacknowledged() == 0
        });
        let mut config = ClientConfig::new(STREAM, 500);
        config.start = Start::Session;
        config.hold_frames = 4;
        let client = world.add_client(Start::Session);
        world.clients[client].client = Client::new(config, world.now);
        world.run_until("catch-up", 5 * SECONDS, |w| w.everyone_has(3000));
        world.check_client(client, 0);
        let repaired = world.archive.as_ref().unwrap().stats().repairs.repaired;
        assert!(repaired < 20_000, "seed {seed}: {repaired} repairs of 3000 messages");
    }
}

#[test]
fn a_full_archive_disk_stops_acknowledgement_and_nothing_else() {
    let mut world = World::new(4, BAD, 3000);
    world.start_archive();
    world.add_client(Start::Session);
    world.start_server();
    world.run_until("some", 20 * SECONDS, |w| w.source.next >= 500);
    world.archive_disk.full = true;
    world.run_until("delivery", 60 * SECONDS, |w| w.everyone_has(3000));
    world.check_client(0, 0);
    assert!(world.server.as_ref().unwrap().unacknowledged() > 2000);
    world.archive_disk.full = false;
    world.run_until("room again", 30 * SECONDS, |w| {
        w.server.as_ref().unwrap().unacknowledged() == 0
    });
    assert_eq!(world.archive_disk.messages().len(), 3000);
}

#[test]
fn a_full_server_disk_holds_producers_back_and_loses_nothing() {
    for seed in seeds() {
        let mut world = World::new(seed, BAD, 3000);
        world.start_archive();
        world.add_client(Start::Session);
        world.start_server();
        for at in [500, 1500] {
            world.run_until("some", 20 * SECONDS, |w| w.source.next >= at);
            world.server_disk.full = true;
            let taken = world.source.next;
            for _ in 0..2000 {
                world.step(2);
            }
            assert!(world.source.next <= taken + 40, "at most one frame is taken and waits");
            world.server_disk.full = false;
        }
        world.run_until("delivery", 60 * SECONDS, |w| w.everyone_has(3000));
        world.check_client(0, 0);
    }
}

#[test]
fn a_thousand_clients_that_miss_the_same_cause_at_most_three_repairs() {
    for seed in 1..=3 {
        for ask_group in [false, true] {
            let net = Net {
                // Spread, but without overtaking: only the lost frame is missing anywhere.
                jitter: 9 * MICROS,
                ..GOOD
            };
            let mut world = World::new(seed, net, 200);
            world.ask_group = ask_group;
            world.start_archive();
            for _ in 0..1000 {
                world.add_client(Start::Session);
            }
            world.start_server();
            world.source.until = 100;
            world.run_until("all but one frame", 10 * SECONDS, |w| w.everyone_has(100));
            let next = world.source.next;
            world.source.until = next + 5;
            world.lose_data = true;
            world.step(1);
            world.lose_data = false;
            assert!(world.all_published(), "in one frame, which no client gets");
            world.source.until = next + 20;
            world.run_until("delivery", 10 * SECONDS, |w| w.everyone_has(next + 20));
            let repairs = world.archive.as_ref().unwrap().stats().repairs;
            let server = world.server.as_ref().unwrap().stats().repairs;
            let frames = repairs.frames + server.frames;
            assert!(frames <= 3, "{frames} repairs; archive {repairs:?}, server {server:?}");
            if ask_group {
                assert!(repairs.naks < 500, "most keep silent: {repairs:?}");
            }
            for client in 0..1000 {
                world.check_client(client, 0);
            }
        }
    }
}

#[test]
fn the_rate_limit_holds_and_producers_wait() {
    let mut world = World::new(1, GOOD, 100_000);
    world.archives = 0;
    world.rate.bytes_per_second = 1_000_000;
    world.start_server();
    for _ in 0..50_000 {
        world.step(8);
    }
    let stats = world.server.as_ref().unwrap().stats();
    // One second: payload, with 4 bytes a message and 32 a frame beside it.
    let sent = stats.bytes + 4 * stats.messages + 32 * stats.frames;
    assert!((900_000..1_100_000).contains(&sent), "{sent} bytes");
    assert!(!world.all_published());
}

#[test]
fn a_server_that_was_taken_for_dead_stops_when_it_hears_its_successor() {
    let mut world = World::new(1, GOOD, 4000);
    world.start_archive();
    world.add_client(Start::Session);
    world.start_server();
    world.run_until("some", 20 * SECONDS, |w| w.everyone_has(500));
    // The first server is stopped, another goes on with its log, then the first one wakes up.
    let mut zombie = world.server.take().unwrap();
    let mut stale = world.server_disk.clone();
    world.start_server();
    world.run_until("more", 20 * SECONDS, |w| w.everyone_has(1000));
    let now = world.now();
    let heartbeat = world.heartbeat();
    let mut frames = Vec::new();
    zombie.on_frame(
        now,
        common::addr(3),
        &heartbeat,
        &mut stale,
        &mut world.out(&mut frames),
    );
    let (sent, blocked) = zombie.publish(
        now,
        10,
        &mut common::numbers(9, 99),
        &mut stale,
        &mut world.out(&mut frames),
    );
    assert_eq!(
        (sent, blocked),
        (0, Some(seqcast_proto::server::Blocked::Superseded(common::addr(3))))
    );
    zombie.poll(now, 10, &mut stale, &mut world.out(&mut frames));
    assert!(frames.is_empty(), "it says nothing more");
    world.run_until("delivery", 20 * SECONDS, |w| w.everyone_has(4000));
    world.check_client(0, 0);
}

#[test]
fn queries_by_multicast_need_no_address() {
    for seed in seeds() {
        let mut world = World::new(seed, BAD, 2000);
        world.ask_group = true;
        world.start_archive();
        for _ in 0..3 {
            world.add_client(Start::Session);
        }
        world.start_server();
        world.run_until("delivery", 60 * SECONDS, |w| w.everyone_has(2000));
        for client in 0..3 {
            world.check_client(client, 0);
        }
    }
}

#[test]
fn a_second_server_under_the_same_identity_is_refused_and_named() {
    let mut world = World::new(2, GOOD, 2000);
    world.start_archive();
    world.add_client(Start::Session);
    world.start_server();
    world.run_until("some", 20 * SECONDS, |w| w.everyone_has(500));
    // A copy of the state directory, started while the first server still runs.
    let (session, _) = world.server.as_ref().unwrap().position();
    let stamp = seqcast_proto::wire::Stamp {
        stream: common::STREAM,
        session,
        sequence: Seq(100_000),
        time: 0,
        flags: 0,
        origin: 4242,
    };
    let mut buf = vec![0; 256];
    let mut block = [0; 16];
    let message = seqcast_proto::wire::Message {
        subject: b"",
        payload: b"forgery",
    };
    let len = seqcast_proto::wire::put_message(&mut block, &message).unwrap();
    let block = seqcast_proto::wire::Block::parse(Seq(100_000), 1, &block[..len]).unwrap();
    let len = stamp.block(&mut buf, seqcast_proto::wire::Kind::Data, &block);
    buf.truncate(len);
    let now = world.now();
    let host = &mut world.clients[0];
    host.client.on_frame(now, common::GROUP, buf, &mut host.app);
    assert!(matches!(host.app.events.last(), Some(Event::DuplicateServer { .. })));
    world.run_until("delivery", 20 * SECONDS, |w| w.everyone_has(2000));
    world.check_client(0, 0);
    assert_eq!(world.clients[0].client.stats().foreign, 1);
}

#[test]
fn an_archive_that_was_away_for_several_sessions_gets_them_all() {
    for seed in seeds() {
        let mut world = World::new(seed, BAD, 2000);
        world.start_archive();
        world.add_client(Start::Session);
        world.start_server();
        world.run_until("some", 20 * SECONDS, |w| w.source.next >= 200);
        world.archive = None;
        for at in [500, 900, 1300, 1700] {
            world.run_until("running", 60 * SECONDS, |w| w.source.next >= at);
            world.server = None;
            world.start_server();
        }
        world.start_archive();
        world.run_until("delivery", 60 * SECONDS, |w| w.everyone_has(2000));
        world.check_client(0, 0);
        world.run_until("the archive has filled itself", 30 * SECONDS, |w| {
            w.server.as_ref().unwrap().unacknowledged() == 0
        });
        assert_eq!(world.archive_disk.messages().len(), 2000);
    }
}

#[test]
fn an_archive_that_restarts_fills_the_holes_of_ended_sessions() {
    for seed in seeds() {
        let mut world = World::new(seed, BAD, 1500);
        world.start_archive();
        world.start_server();
        world.run_until("some", 20 * SECONDS, |w| w.source.next >= 1000);
        world.server = None;
        world.start_server();
        // Long enough to hear how the session ended, too short to fill its holes.
        for _ in 0..50 {
            world.step(1);
            world.archive = None;
            world.start_archive();
        }
        world.run_until("the archive has filled itself", 60 * SECONDS, |w| {
            w.all_published() && w.server.as_ref().unwrap().unacknowledged() == 0
        });
        assert_eq!(world.archive_disk.messages().len(), 1500);
    }
}

//! The method of distribution and recovery with the real binary: what happens while the archive is
//! away, how several ask for the same, how fast a source may go, and whose word a stream is.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{LIMIT, World, kill, terminate, until};
use seqcast_tools::lab::Process;

#[test]
fn an_archive_that_was_away_fills_itself_from_the_server() {
    let world = World::new(&["server", "archive", "client1"], 40_000);
    let archive = world.start("archive", true, &world.archive());
    let mut client = world.start("client1", true, &world.client("client1", true));
    let mut server = world.start("server", false, &world.server(15_000, ""));
    world.until_delivered("client1", 30);
    kill(archive);
    // The server goes on, and answers.
    world.until_delivered("client1", 70);
    let archive = world.start("archive", false, &world.archive());
    client.wait(LIMIT).unwrap();
    server.wait(LIMIT).unwrap();
    terminate(archive);
    world.assert_equal("client1");
    world.assert_archived();
    let client = &world.report("client1")["subscriptions"][0];
    for who in ["repaired_archive", "repaired_server"] {
        assert!(
            client[who].as_u64() > Some(0),
            "the archive first, without it the server: {client}"
        );
    }
    let server = &world.report("server")["publications"][0];
    assert_eq!(server["unacknowledged"], 0, "{server}");
    let archive = &world.report("archive")["archives"][0];
    assert!(
        archive["repaired"].as_u64() > Some(40_000 / 10),
        "it fetched what passed while it was away: {archive}"
    );
}

#[test]
fn shared_losses_are_repaired_once_and_questions_to_the_group_need_no_address() {
    let world = World::new(&["server", "client1", "client2", "client3"], 20_000);
    // All three lose the same burst; two ask the server, one the group.
    let clients: Vec<Process> = [("client1", ""), ("client2", ""), ("client3", "query = \"multicast\"\n")]
        .map(|(name, keys)| world.start(name, true, &(world.client(name, true) + keys)))
        .into();
    let roles = world
        .server(10_000, "linger_ms = 2000\nrepair = { merge_us = 50000 }")
        .replace("archives = 1", "archives = 0");
    let mut server = world.start("server", false, &roles);
    for mut client in clients {
        client.wait(LIMIT).unwrap();
    }
    server.wait(LIMIT).unwrap();
    for name in ["client1", "client2", "client3"] {
        world.assert_equal(name);
        let client = &world.report(name)["subscriptions"][0];
        assert!(client["gaps"].as_u64() > Some(0), "the faults were in force: {client}");
    }
    assert!(world.report("client3")["subscriptions"][0]["naks"].as_u64() > Some(0));
    let server = &world.report("server")["publications"][0];
    assert!(server["merged"].as_u64() > Some(0), "{server}");
}

#[test]
fn a_rate_limit_holds_the_source_back_and_drops_nothing() {
    const BYTES: u64 = 600_000;
    let world = World::new(&["server", "archive", "client1"], 20_000);
    let archive = world.start("archive", false, &world.archive());
    let mut client = world.start("client1", true, &world.client("client1", true));
    let start = Instant::now();
    let roles = world.server(1_000_000, &format!("rate = {{ bytes = {BYTES}, burst = \"16 KiB\" }}"));
    let mut server = world.start("server", false, &roles);
    client.wait(LIMIT).unwrap();
    let took = start.elapsed();
    server.wait(LIMIT).unwrap();
    terminate(archive);
    world.assert_equal("client1");
    world.assert_archived();
    // Frames carry more than the payload, so that it took longer still.
    let payload = world.size() - 2 * 20_000;
    let least = Duration::from_secs_f64((payload - (16 << 10)) as f64 / BYTES as f64);
    assert!(took >= least, "{took:?} for {payload} bytes at {BYTES}/s");
}

#[test]
fn a_second_server_is_refused_or_takes_over_and_is_named() {
    let world = World::new(&["server", "client1", "second"], 60_000);
    let client = world.start("client1", false, &world.client("client1", false));
    let roles = world.server(10_000, "").replace("archives = 1", "archives = 0");
    let mut server = world.start("server", false, &roles);
    world.until_delivered("client1", 20);
    // With the directory of the first it is refused, and the first goes on.
    let refused = std::panic::catch_unwind(|| world.start_as("second", "copy", false, &roles));
    let refused = *refused.err().unwrap().downcast::<String>().unwrap();
    assert!(refused.contains("is in use by"), "{refused}");
    // With one of its own it opens a later session: the first is fenced, and says who did it.
    let own = roles.replace("server.d", "second.d");
    let second = world.start_as("second", "second", false, &own);
    let fenced = server.wait(LIMIT).unwrap_err().to_string();
    assert!(fenced.contains("has opened a later session"), "{fenced}");
    let log = world.path("client1.log");
    until("the client goes on with the later session", || {
        fs::read_to_string(&log).unwrap().contains(" began")
    });
    terminate(second);
    terminate(client);
}

#[test]
fn a_lost_state_directory_never_reuses_a_session() {
    let world = World::new(&["server", "archive", "client1"], 4_000);
    let archive = world.start("archive", false, &world.archive());
    let client = world.start("client1", false, &world.client("client1", false));
    for run in 1..=2 {
        let mut server = world.start("server", false, &world.server(20_000, ""));
        server.wait(LIMIT).unwrap();
        world.until_delivered("client1", 100 * run);
        fs::remove_dir_all(world.path("server.d")).unwrap();
    }
    terminate(client);
    terminate(archive);
    let whole = fs::read(&world.input).unwrap();
    assert!(fs::read(world.path("client1.out")).unwrap() == whole.repeat(2));
    assert_eq!(world.report("client1")["subscriptions"][0]["sessions_ended"], 2);
    assert_eq!(world.report("archive")["archives"][0]["sessions"], 2);
}

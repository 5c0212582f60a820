//! Whole runs, with a script in place of the engine: what the orchestration itself promises.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use seqcast_engine::config::{Config, From, LinkKind};
use seqcast_tools::lab::Place;
use seqcast_tools::lab::job::{Input, Job, Link};
use seqcast_tools::lab::outcome::Outcome;
use tempfile::TempDir;

/// Runs three clients on loopback; `client1` chooses what the first one does, see the script.
fn run(client1: &str, limit: Duration) -> (TempDir, Result<Outcome>, Vec<String>) {
    let files = tempfile::tempdir().unwrap();
    let directory = files.path().join(client1);
    fs::create_dir(&directory).unwrap();
    let job = Job {
        engine: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake-engine"),
        input: Input::Made {
            messages: 1000,
            seed: 1,
        },
        rate: Some(50_000),
        drop: 0.01,
        burst: 40,
        clients: 3,
        place: Place::Loopback,
        link: Link::Udp,
        two_lines: false,
        mtu: 1500,
        limit: Some(limit),
        directory,
    };
    let mut progress = Vec::new();
    let outcome = job.run(&mut |line| progress.push(line.to_owned()));
    (files, outcome, progress)
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_good_run_is_equal_and_shows_every_client_and_the_archive() {
    let (files, outcome, progress) = run("delivers", LONG);
    let outcome = outcome.unwrap();
    assert!(outcome.all_equal());
    assert_eq!((outcome.input.messages, outcome.clients.len()), (1000, 3));
    let text = outcome.to_string();
    for want in [
        "client3",
        "archive: stored 1000 messages in 0 records",
        "session 7, 1000 messages in 40 frames, 1000 not archived",
        "link of all hosts: fake\n",
        "input rate: asked 50000/s, reached not known",
        "every client delivered the input: SHA-256 ",
    ] {
        assert!(text.contains(want), "{text}");
    }
    assert!(progress.iter().any(|line| line == "ready client2 mode=fake"));
    assert!(text.lines().all(|line| line.len() <= 120), "{text}");
    // What engines are started with is what they read; neighbours lose different datagrams, the
    // server none.
    let [server, archive, client1, client2] = ["server", "archive", "client1", "client2"]
        .map(|name| Config::read(&files.path().join(format!("delivers/{name}.toml"))).unwrap());
    assert_eq!((client1.engine.fault.burst_at, client2.engine.fault.burst_at), (10, 30));
    assert_eq!((server.engine.fault.burst_len, server.engine.fault.drop), (0, 0.0));
    assert_eq!(
        (server.publish[0].archives, server.publish[0].source.rate),
        (1, Some(5e4))
    );
    assert_eq!(archive.archive[0].stream, server.publish[0].stream);
    assert!(client1.subscribe[0].exit_at_end && client1.subscribe[0].from == From::Session);
    assert_eq!((client1.engine.link, client1.engine.mtu), (LinkKind::Udp, Some(1500)));
    let json = serde_json::to_value(&outcome).unwrap();
    assert_eq!(json["clients"][0]["report"]["subscriptions"][0]["repaired_archive"], 44);
}

#[test]
fn a_client_that_delivers_something_else_is_named_with_the_message() {
    let (_files, outcome, _) = run("cuts", LONG);
    let outcome = outcome.unwrap();
    assert!(!outcome.all_equal());
    let equal: Vec<bool> = outcome.clients.iter().map(|client| client.equal).collect();
    assert_eq!(equal, [false, true, true]);
    assert_eq!(outcome.clients[0].first_difference, Some(1000));
    assert!(outcome.clients[0].delivered.truncated);
    let text = outcome.to_string();
    assert!(
        text.contains("client1 did NOT deliver the input: message 1000 is cut short; 999 messages"),
        "{text}"
    );
    assert!(text.contains("client2 delivered the input\n"), "{text}");
    assert!(text.contains("NOT every client"), "{text}");
}

#[test]
fn an_engine_that_hangs_is_named_with_its_last_words() {
    let (_files, outcome, _) = run("hangs", Duration::from_secs(2));
    let error = format!("{:#}", outcome.unwrap_err());
    assert!(error.contains("client1 still runs"), "{error}");
    assert!(error.contains("lost my way"), "{error}");
}

#[test]
fn an_engine_that_fails_ends_the_run_at_once_with_its_last_words() {
    for client1 in ["fails-early", "fails-late"] {
        let (_files, outcome, _) = run(client1, LONG);
        let error = format!("{:#}", outcome.unwrap_err());
        assert!(error.contains("client1 ended (exit status: 3)"), "{error}");
        assert!(error.contains("no such interface"), "{error}");
    }
}

#[test]
fn an_engine_that_leaves_no_report_is_named() {
    let (_files, outcome, _) = run("says-nothing", LONG);
    let error = format!("{:#}", outcome.unwrap_err());
    assert!(error.contains("client1 left no report"), "{error}");
}

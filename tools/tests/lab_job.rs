//! Whole runs, with a script in place of the engine: what the orchestration itself promises.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
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
        mtu: 1500,
        limit: Some(limit),
        directory,
    };
    let mut progress = Vec::new();
    let outcome = job.run(&mut |line| progress.push(line.to_owned()));
    (files, outcome, progress)
}

const LONG: Duration = Duration::from_secs(60);

fn shown(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn a_good_run_is_equal_and_shows_every_client_and_the_archive() {
    let (files, outcome, progress) = run("delivers", LONG);
    let outcome = outcome.unwrap();
    assert!(outcome.all_equal());
    assert_eq!((outcome.input.messages, outcome.clients.len()), (1000, 3));
    let text = outcome.to_string();
    for want in [
        "client3",
        "archive: stored 1000",
        "session 7, 1000 messages in 40 frames",
        "all clients delivered the input",
    ] {
        assert!(text.contains(want), "{text}");
    }
    assert!(progress.iter().any(|line| line == "ready client2 mode=fake"));
    // Neighbours lose different datagrams, the server none.
    let configs =
        ["client1", "client2", "server"].map(|name| shown(&files.path().join(format!("delivers/{name}.toml"))));
    assert!(configs[0].contains("burst_at = 10\n") && configs[1].contains("burst_at = 30\n"));
    assert!(!configs[2].contains("fault"));
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
    assert!(text.contains("client1: message 1000 is not as published"), "{text}");
    assert!(text.contains("NOT all clients"), "{text}");
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

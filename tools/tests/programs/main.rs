//! Programs beside engines, in processes of their own.

#[path = "../common/mod.rs"]
mod common;
mod host;
mod kills;
mod veth;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{START, engine, kill, terminate};
use host::{Host, publisher};
use seqcast_tools::lab::Process;
use serde_json::Value;

#[test]
fn a_name_is_one_engines_own_and_is_taken_over_from_a_dead_one() {
    let mut host = Host::new();
    let first = host.start();
    let refusal = |host: &Host| {
        let other = fs::read_to_string(host.path("engine.toml")).unwrap();
        // Another engine, but for the socket's name.
        let other = other
            .replace("/state\"", "/state2\"")
            .replace("/archive\"", "/archive2\"");
        let path = host.path("other.toml");
        fs::write(&path, other).unwrap();
        let output = Command::new(engine())
            .args(["run", "--config"])
            .arg(&path)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (status, said) = refusal(&host);
    assert!(status == Some(1) && said.contains("another engine listens"), "{said}");
    drop(publisher(&host.engine()));
    kill(first);
    assert!(host.path("socket").exists(), "a killed engine leaves its name");
    let second = host.start();
    drop(publisher(&host.engine()));
    terminate(second);
    fs::write(host.path("socket"), "mine").unwrap();
    let (status, said) = refusal(&host);
    assert!(status == Some(1) && said.contains("no socket"), "{said}");
    assert_eq!(fs::read(host.path("socket")).unwrap(), b"mine");
}

#[test]
fn the_commands_say_that_they_wait_for_an_engine() {
    let mut host = Host::new();
    let command = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seqcast"));
        command.args(&arguments[..1]).arg("--socket").arg(host.path("socket"));
        command.args(&arguments[1..]).args(["--wait", "60"]);
        let mut process = Process::spawn(arguments[0], command, &host.path(arguments[0])).unwrap();
        process
            .wait_line("seqcast: waiting up to 60 s for an engine at ", START)
            .unwrap();
        process
    };
    let input = host.path("input");
    fs::write(&input, "late but whole\n").unwrap();
    let mut publish = command(&["publish", input.to_str().unwrap()]);
    let mut subscribe = command(&["subscribe", "--from", "session", "--count", "1"]);
    let running = host.start();
    for process in [&mut publish, &mut subscribe] {
        process.wait(START).unwrap();
    }
    terminate(running);
}

#[test]
fn the_commands_publish_and_subscribe_in_every_format() {
    let mut host = Host::new();
    let running = host.start();
    let formats: [(&str, &[u8]); 5] = [
        ("lines", b"one\ntwo\n\nfour\n"),
        ("subject-lines", b"a.b one\nmd.eq two\n c\nx d e\n"),
        ("hex", b"00ff\n01\n7f80\nab\n"),
        ("json", b"{\"subject\":\"a\",\"payload\":\"x\"}\n{\"payload_hex\":\"ff00\"}\n{\"payload\":\"\"}\n{\"payload\":\"y\"}\n"),
        ("binaryfile", b"\0\x01a\0\x02bc\0\0\0\x03def"),
    ];
    for (format, input) in formats {
        let path = host.path("input");
        fs::write(&path, input).unwrap();
        let out = host.path("out");
        let path_text = |path: &Path| path.display().to_string();
        let mut listener = host.tool(
            &[
                "subscribe",
                "--count",
                "4",
                "--format",
                format,
                "--out",
                &path_text(&out),
            ],
            Stdio::null(),
        );
        // It has its place once the file is there.
        common::until("it listens", || out.exists());
        let mut speaker = host.tool(
            &["publish", "--format", format, "--rate", "10000"],
            Stdio::from(fs::File::open(&path).unwrap()),
        );
        assert!(speaker.0.wait().unwrap().success());
        assert!(listener.0.wait().unwrap().success());
        let got = fs::read(&out).unwrap();
        match format {
            "hex" => {
                let fields: Vec<_> = got
                    .split(|b| *b == b'\n')
                    .filter_map(|l| l.split(|b| *b == b' ').nth(2))
                    .collect();
                assert_eq!(fields, [&b"00ff"[..], b"01", b"7f80", b"ab"]);
            }
            "json" => {
                let lines: Vec<Value> = got
                    .split(|b| *b == b'\n')
                    .filter(|l| !l.is_empty())
                    .map(|l| serde_json::from_slice(l).unwrap())
                    .collect();
                assert_eq!(lines.len(), 4);
                assert_eq!((&lines[0]["subject"], &lines[0]["payload"]), (&"a".into(), &"x".into()));
                assert_eq!(lines[1]["payload_hex"], "ff00");
            }
            _ => assert_eq!(
                String::from_utf8_lossy(&got),
                String::from_utf8_lossy(input),
                "{format}"
            ),
        }
        fs::remove_file(&out).unwrap();
    }
    let mut nobody = host.tool(&["publish", "--stream", "239.1.1.1:9"], Stdio::null());
    assert_eq!(nobody.0.wait().unwrap().code(), Some(1));
    terminate(running);
}

//! `seqcast bench`, with both ends on this machine. Figures are not looked at, only that they are there.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use seqcast_tools::lab::{Lab, Process};
use serde_json::Value;

/// Both ends spin: measurements have the cores one after another.
static CORES: Mutex<()> = Mutex::new(());

fn cores() -> MutexGuard<'static, ()> {
    CORES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bench(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seqcast"));
    command.arg("bench").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a lab, and checks that its report says everything.
fn measure(more: &[&str], link: &str) {
    let _cores = cores();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.json");
    let mut arguments = vec![
        "lab",
        "--seconds",
        "0.3",
        "--sizes",
        "64,512",
        "--every",
        "200",
        "--loss",
        "0.1",
    ];
    arguments.extend(["--report", path.to_str().unwrap()]);
    arguments.extend(more);
    let output = bench(&arguments);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    for line in [
        "round trip, 64 B",
        "round trip, 512 B",
        "one way, 64 B",
        "lost and repaired",
        "throughput",
    ] {
        assert!(out.contains(line), "{line} in {out}");
    }
    let report: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let positive = |pointer: &str| {
        let value = report.pointer(pointer).and_then(Value::as_f64);
        assert!(value.is_some_and(|v| v > 0.0), "{pointer} in {report:#}");
    };
    for size in 0..2 {
        for what in [
            "round_trip/count",
            "round_trip/p50_ns",
            "round_trip/p999_ns",
            "messages_per_second",
        ] {
            positive(&format!("/sizes/{size}/{what}"));
        }
    }
    for what in [
        "/one_way/latency/count",
        "/recovery/live/count",
        "/recovery/repaired/count",
        "/near/cores",
    ] {
        positive(what);
    }
    assert_eq!(report["recovery"]["given_up"], 0, "{report:#}");
    for end in ["near", "far"] {
        let mode = report[end]["link"].as_str().unwrap();
        assert!(mode.starts_with(link), "{mode}");
    }
    assert!(report["configuration"].as_str().unwrap().contains("[engine]"));
    assert!(!report["host"].as_array().unwrap().is_empty());
    assert!(report["engine"]["link"].is_object(), "{report:#}");
}

#[test]
fn both_ends_on_loopback() {
    measure(&["--loopback"], "udp");
}

#[test]
fn one_far_end_serves_one_near_end_after_another() {
    let _cores = cores();
    let dir = tempfile::tempdir().unwrap();
    let [_, _, c, d] = std::process::id().to_be_bytes();
    let group = format!("239.88.{c}.{}:7801", d & 0xfc);
    let whom = ["--interface", "lo", "--link", "udp", "--group", &group];
    let mut serve = Command::new(env!("CARGO_BIN_EXE_seqcast"));
    serve.args(["bench", "serve"]).args(whom);
    let mut far = Process::spawn("far", serve, &dir.path().join("far.log")).unwrap();
    far.wait_line("ready", Duration::from_secs(20)).unwrap();
    for _ in 0..2 {
        let mut arguments = vec!["run", "--seconds", "0.05", "--sizes", "64", "--loss", "0"];
        arguments.extend(whom);
        let output = bench(&arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
}

#[test]
fn an_interrupt_ends_a_measurement_at_once_and_leaves_nothing() {
    let _cores = cores();
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report.json");
    let mut lab = Command::new(env!("CARGO_BIN_EXE_seqcast"));
    lab.args([
        "bench",
        "lab",
        "--loopback",
        "--seconds",
        "3600",
        "--loss",
        "0",
        "--report",
    ]);
    lab.arg(&report).env("TMPDIR", dir.path());
    // A group of its own, as a shell gives each command: Ctrl-C goes to all of it.
    lab.process_group(0);
    let mut lab = Process::spawn("lab", lab, &dir.path().join("lab.log")).unwrap();
    lab.wait_line("seqcast: measuring: round trips", Duration::from_secs(20))
        .unwrap();
    let group = format!("-{}", lab.id());
    let signal = |name: &str| {
        Command::new("kill")
            .args([name, "--", &group])
            .output()
            .unwrap()
            .status
            .success()
    };
    assert!(signal("-INT"));
    assert!(
        lab.wait(Duration::from_secs(20)).is_err(),
        "an unfinished measurement is no success"
    );
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["lab.log"], "neither a report nor a file of the two ends");
    assert!(!signal("-0"), "both ends are gone");
}

#[test]
fn root_both_ends_in_a_lab_over_af_xdp() {
    match Lab::xdp_available() {
        Ok(()) => measure(&["--link", "xdp"], "xdp"),
        Err(why) => eprintln!("passed over: {why}"),
    }
}

#[test]
fn what_cannot_be_measured_is_refused_with_a_remedy() {
    for (arguments, says) in [
        (&["run", "--interface", "nowhere0"][..], "nowhere0"),
        (
            &["run", "--interface", "lo", "--group", "10.0.0.1:7801"],
            "multicast groups",
        ),
        (&["run"], "--config <FILE>|--interface <INTERFACE>"),
        (&["run", "--config", "/nonexistent.toml"], "/nonexistent.toml"),
        (&["run", "--interface", "lo", "--sizes", "8"], "32..=8900"),
        (
            &["run", "--interface", "lo", "--link", "udp", "--core", "4096"],
            "core = 4096",
        ),
        (&["lab", "--loopback", "--link", "xdp"], "no AF_XDP on loopback"),
    ] {
        let output = bench(arguments);
        let err = text(&output.stderr);
        assert!(!output.status.success() && err.contains(says), "{arguments:?}: {err}");
    }
}

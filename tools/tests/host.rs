//! `seqcast check` and `seqcast tune` on an interface of a lab. These tests need root and are passed
//! over without it.

mod common;

use std::fs;
use std::process::{Command, Output};

use common::{engine, lone_host, until};
use seqcast_tools::lab::{Host, Lab, Process};

fn run(mut command: Command, arguments: &[&str]) -> Output {
    command.args(arguments).output().unwrap()
}

fn seqcast(host: &Host, arguments: &[&str]) -> (bool, String) {
    let output = run(host.command(env!("CARGO_BIN_EXE_seqcast")), arguments);
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

fn shell(host: &Host, line: &str) -> String {
    let output = run(host.command("sh"), &["-c", line]);
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn what_is_wrong_is_mended_and_brought_back() {
    let Some(lab) = lone_host(Lab::veth_available()) else {
        return;
    };
    let host = lab.host("host").unwrap();
    let state = tempfile::tempdir().unwrap();
    let file = format!("/sys/class/net/{}/gro_flush_timeout", host.interface());
    let igmp = format!("/proc/sys/net/ipv4/conf/{}/force_igmp_version", host.interface());
    let now = || shell(host, &format!("cat {file} {igmp}"));
    shell(host, &format!("echo 20000 > {file}; echo 2 > {igmp}"));

    let only = ["--only", "deferral", "--only", "IGMP"];
    let check = [&["check", host.interface(), "--udp"][..], &only].concat();
    let (_, text) = seqcast(host, &check);
    let line = text.lines().find(|line| line.contains("deferral")).unwrap_or_default();
    assert!(line.starts_with("poor"), "{text}");
    assert!(text.contains(&format!("do:  echo 0 > {file}")), "{text}");

    let directory = state.path().to_str().unwrap();
    let tune = [&["tune", host.interface(), "--udp", "--state", directory][..], &only].concat();
    let (good, text) = seqcast(host, &[&tune[..], &["--dry-run"]].concat());
    assert!(good && text.contains("2 to be changed"), "{text}");
    assert_eq!(now(), "20000\n2");

    let (good, text) = seqcast(host, &tune);
    assert!(good && text.contains("2 changed"), "{text}");
    assert_eq!(now(), "0\n0");
    let (_, text) = seqcast(host, &check);
    assert!(text.starts_with("ok    deferral"), "{text}");
    // The lab's bridge asks with version 2.
    assert!(!text.contains("forced"), "{text}");

    let (good, text) = seqcast(host, &["tune", host.interface(), "--undo", "--state", directory]);
    assert!(good, "{text}");
    assert_eq!(now(), "20000\n2");
    let (good, text) = seqcast(host, &["tune", host.interface(), "--undo", "--state", directory]);
    assert!(!good && text.contains("nothing to undo"), "{text}");
}

#[test]
fn offloads_and_facts_come_from_the_driver() {
    let Some(lab) = lone_host(Lab::veth_available()) else {
        return;
    };
    let host = lab.host("host").unwrap();
    let name = host.interface();
    shell(host, &format!("ip link set dev {name} mtu 3600"));
    let (good, text) = seqcast(host, &["check", name, "--json"]);
    assert!(!good, "frames of 2048 bytes do not hold that MTU: {text}");
    let findings: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |topic: &str| {
        let found = findings.iter().find(|finding| finding["topic"] == topic);
        found.unwrap_or_else(|| panic!("nothing is said of {topic}: {text}"))
    };
    assert_eq!(of("device")["is"], "veth");
    assert_eq!(of("link")["state"], "good");
    assert_eq!(
        (&of("MTU")["state"], &of("queues")["state"]),
        (&"bad".into(), &"good".into())
    );
    let advice = of("MTU")["advice"].as_str().unwrap();
    assert!(advice.contains("frame_size = 4096"), "{advice}");
}

#[test]
fn an_engine_that_is_there_already_is_seen() {
    let Some(lab) = lone_host(Lab::veth_available()) else {
        return;
    };
    if Lab::xdp_available().is_err() {
        eprintln!("passed over: no AF_XDP");
        return;
    }
    let host = lab.host("host").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("engine.toml");
    let text = format!(
        "[engine]\ninterface = \"{}\"\nlink = \"xdp\"\nidle = \"block\"\n[[subscribe]]\nname = \"ticks\"\n\
         stream = \"239.81.0.1:5000\"\nsink = {{ file = \"{}\" }}\n",
        host.interface(),
        directory.path().join("out").display()
    );
    fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    let (good, text) = seqcast(host, &["check", "--config", config, "--only", "XDP program"]);
    assert!(good && text.contains("none"), "{text}");

    let log = directory.path().join("engine.log");
    let mut command = host.command(engine());
    command.args(["run", "--config", config]);
    let process = Process::spawn("host", command, &log).unwrap();
    until("the engine is ready", || {
        fs::read_to_string(&log).unwrap().contains("ready ")
    });
    let (good, text) = seqcast(host, &["check", "--config", config, "--only", "XDP program"]);
    assert!(!good && text.contains("BAD   XDP program"), "{text}");
    drop(process);
}

#[test]
fn a_wrong_interface_or_topic_is_named() {
    let (_, text) = {
        let output = run(Command::new(env!("CARGO_BIN_EXE_seqcast")), &["check", "nowhere9"]);
        (output.status, String::from_utf8(output.stderr).unwrap())
    };
    assert!(text.contains("no interface nowhere9; there are lo"), "{text}");
    let output = run(
        Command::new(env!("CARGO_BIN_EXE_seqcast")),
        &["check", "lo", "--udp", "--only", "colour"],
    );
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("\"colour\"") && text.contains("MTU"), "{text}");
}

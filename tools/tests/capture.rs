//! What `seqcast capture` takes from a running engine, and what tshark says of it.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{LIMIT, World, terminate, until};
use seqcast_tools::lab::{Place, Process};

const MESSAGES: u64 = 20_000;

fn capture(world: &World, name: &str, arguments: &[&str]) -> Process {
    let socket = world.path("client1.capture");
    let mut command = Command::new(env!("CARGO_BIN_EXE_seqcast"));
    command.arg("capture").arg("--socket").arg(&socket).args(arguments);
    let mut process = Process::spawn(name, command, &world.path(&format!("{name}.log"))).unwrap();
    process.wait_line("seqcast: capturing from client1 ", LIMIT).unwrap();
    process
}

/// Runs tshark with the dissector; nothing where there is none.
fn tshark(file: &Path, arguments: &[&str]) -> Option<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("wireshark/seqcast.lua");
    let output = Command::new("tshark")
        .arg(format!("-Xlua_script:{}", script.display()))
        .arg("-r")
        .arg(file)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    let Ok(output) = output else {
        eprintln!("passed over: there is no tshark (scripts/setup --test installs it)");
        return None;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("Lua: "), "{said}");
    Some(String::from_utf8(output.stdout).unwrap())
}

const HOSTS: [&str; 3] = ["server", "archive", "client1"];

#[test]
fn what_an_engine_sends_and_receives_is_captured_and_dissected() {
    capture_all(&World::at(Place::Loopback, &HOSTS, MESSAGES));
}

/// tcpdump sees nothing of it. Needs root.
#[test]
fn what_goes_over_af_xdp_is_captured_as_well() {
    capture_all(&World::new(&HOSTS, MESSAGES));
}

fn capture_all(world: &World) {
    let archive = world.start("archive", false, &world.archive());
    let interface = world.lab.host("client1").unwrap().interface();
    let more = format!(
        "capture = {:?}\nfault = {{ drop = 0.02, burst_at = 100, burst_len = 20, seed = 5 }}",
        world.path("client1.capture")
    );
    let mut client = world.start_on("client1", interface, "client1", &more, &world.client("client1", true));
    let [all, repairs] = ["all.pcapng", "repairs.pcapng"].map(|name| world.path(name));
    let mut whole = capture(world, "all", &["--out", all.to_str().unwrap()]);
    let numbers = [
        "--kind",
        "nak,repair",
        "--snap",
        "64",
        "--out",
        repairs.to_str().unwrap(),
    ];
    let mut some = capture(world, "some", &[&numbers[..], &["--stream", &world.stream]].concat());
    let mut server = world.start("server", false, &world.server(20_000, ""));
    for process in [&mut server, &mut client, &mut whole, &mut some] {
        process.wait(LIMIT).unwrap();
    }
    terminate(archive);
    world.assert_equal("client1");
    let log = fs::read_to_string(world.path("all.log")).unwrap();
    assert!(log.contains(" 0 dropped for want of room"), "{log}");
    let report = &world.report("client1");
    let captured = report["link"]["received"].as_u64().unwrap() + report["link"]["sent"].as_u64().unwrap();

    let fields = [
        "-Tfields",
        "-eseqcast.kind",
        "-eseqcast.sequence",
        "-eseqcast.count",
        "-eseqcast.session",
    ];
    let Some(frames) = tshark(&all, &fields) else { return };
    let mut kinds = BTreeMap::new();
    let mut seen = vec![false; MESSAGES as usize + 1];
    let mut begins = 0;
    for line in frames.lines() {
        let mut words = line.split('\t');
        let mut word = || {
            words
                .next()
                .unwrap()
                .parse::<usize>()
                .unwrap_or_else(|_| panic!("{line}"))
        };
        let (kind, first, count) = (word(), word(), word());
        *kinds.entry(kind).or_insert(0_u64) += 1;
        if begins == 0 && matches!(kind, 1 | 2) {
            begins = first;
        }
        if matches!(kind, 1 | 5) {
            seen[first..first + count].fill(true);
        }
    }
    // What arrived before the capture was attached is a heartbeat or two.
    let total: u64 = kinds.values().sum();
    assert!(
        total <= captured && total + 10 >= captured,
        "{total} of {captured}: {kinds:?}"
    );
    assert!(
        seen[1..].iter().all(|seen| *seen),
        "every message was delivered from a captured frame"
    );
    let stats = &report["subscriptions"][0];
    assert_eq!(kinds.get(&4).copied(), stats["naks"].as_u64(), "{kinds:?}");
    // The dissector sees the gaps that the client saw, but for one before all that was captured, and nothing wrong.
    let count = |filter: &str| tshark(&all, &["-Y", filter]).unwrap().lines().count() as u64;
    let gaps = count("seqcast.gap || seqcast.tail") + u64::from(begins != 1);
    assert_eq!(Some(gaps), stats["gaps"].as_u64());
    assert_eq!(count("seqcast.asked"), kinds[&4]);
    assert_eq!(count("seqcast.repaired"), kinds[&5]);
    assert_eq!(count("seqcast.malformed || _ws.malformed || !seqcast"), 0);
    assert_eq!(count("udp.checksum.status == 0 || ip.checksum.status == 0"), 0);

    // The other one holds the first bytes of two kinds.
    let lengths = tshark(
        &repairs,
        &["-Tfields", "-eseqcast.kind", "-eframe.cap_len", "-eudp.length"],
    )
    .unwrap();
    let mut cut = 0;
    for line in lengths.lines() {
        let words: Vec<usize> = line.split('\t').map(|word| word.parse().unwrap()).collect();
        assert!(words[0] == 4 || words[0] == 5, "{line}");
        assert!(words[1] <= 42 + 64, "{line}");
        cut += usize::from(words[2] - 8 > 64);
    }
    assert_eq!(lengths.lines().count() as u64, kinds[&4] + kinds[&5]);
    assert!(cut > 0);
}

#[test]
fn a_capture_is_refused_with_a_reason_and_the_socket_goes_with_its_engine() {
    let world = World::at(Place::Loopback, &["client1"], 10);
    let socket = world.path("client1.capture");
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_seqcast"))
            .arg("capture")
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let at = socket.to_str().unwrap();
    let said = run(&["--socket", at, "--out", "x"]);
    assert!(said.contains("no engine at"), "{said}");
    // What a killed engine leaves behind is replaced.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let more = format!("capture = {socket:?}");
    let interface = world.lab.host("client1").unwrap().interface();
    let client = world.start_on("client1", interface, "client1", &more, &world.client("client1", false));
    let files: Vec<_> = (0..4).map(|n| world.path(&format!("{n}.pcapng"))).collect();
    let watching: Vec<_> = (files.iter().zip(["a", "b", "c", "d"]))
        .map(|(file, name)| capture(&world, name, &["--out", file.to_str().unwrap()]))
        .collect();
    let said = run(&["--socket", at, "--out", "x"]);
    assert!(said.contains("4 captures are attached already"), "{said}");
    let mut left = watching;
    terminate(left.pop().unwrap());
    until("another one may attach", || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seqcast"));
        command
            .args(["capture", "--socket", at, "--seconds", "0", "--out"])
            .arg(world.path("e.pcapng"));
        command.stderr(Stdio::null()).status().unwrap().success()
    });
    terminate(client);
    for mut process in left {
        process.wait(LIMIT).unwrap();
    }
    assert!(!socket.exists());
    assert!(files.iter().all(|file| fs::metadata(file).unwrap().len() > 0));
}

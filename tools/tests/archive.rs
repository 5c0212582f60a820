//! `seqcast archive`, run on archives that the archive crate made.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use seqcast_archive::{Archive, Options, Reader, SessionLog, SessionMeta, SyncPolicy};
use seqcast_engine::feed::binaryfile;
use seqcast_proto::seq::{Seq, SeqRange, Session, Stream};
use seqcast_proto::wire::{Body, Frame, Message, put_message};
use tempfile::TempDir;

/// The identity of 239.0.1.2:5000.
const STREAM: Stream = Stream(0x0102_1388);
const T0: u64 = 1_772_461_800_000_000_000; // 2026-03-02T14:30:00Z
const MS: u64 = 1_000_000;
const OLD: Session = Session(1_000);
const NEW: Session = Session(2_000);

fn options() -> Options {
    Options {
        segment_bytes: 1 << 16,
        sync: SyncPolicy::None,
        helper: false,
        ..Options::default()
    }
}

fn payload(seq: u32) -> String {
    format!("message {seq}")
}

fn sent(first: u32) -> u64 {
    T0 + u64::from(first) * MS
}

fn received(first: u32) -> u64 {
    sent(first) + 500
}

/// Appends a record of `count` messages; it was sent `first` ms after [`T0`].
fn append(log: &mut SessionLog, first: u32, count: u16) {
    let mut block = Vec::new();
    for seq in first..first + u32::from(count) {
        let (subject, payload) = (format!("s.{seq}"), payload(seq));
        let message = Message {
            subject: subject.as_bytes(),
            payload: payload.as_bytes(),
        };
        let at = block.len();
        block.resize(at + message.encoded_len(), 0);
        put_message(&mut block[at..], &message).unwrap();
    }
    log.append(Seq(first), count, sent(first), received(first), 0, &block)
        .unwrap();
}

/// Of two sessions: the old one has records of three messages, 1 to 300, of which 31-33 exist
/// nowhere, 61-63 are missing and 91-93 came last; it is followed by the new one, which has
/// messages 1 to 30 and is not closed.
fn fill(archive: &mut Archive) {
    let meta = SessionMeta {
        previous: Session::NONE,
        origin: 7,
        user: 0,
    };
    let log = archive.create_session(OLD, meta).unwrap();
    for first in (1..=300).step_by(3).filter(|first| ![31, 61, 91].contains(first)) {
        append(log, first, 3);
    }
    append(log, 91, 3);
    log.mark_lost(SeqRange::of(Seq(31), 3).unwrap()).unwrap();
    log.close(Seq(300), NEW).unwrap();
    let meta = SessionMeta { previous: OLD, ..meta };
    let log = archive.create_session(NEW, meta).unwrap();
    (1..=30).for_each(|first| append(log, first, 1));
}

/// The numbers that the old session has.
fn old_numbers() -> Vec<u32> {
    let absent = |n: &u32| (31..=33).contains(n) || (61..=63).contains(n);
    (1..=300).filter(|n| !absent(n)).collect()
}

/// A closed archive as [`fill`] makes it.
fn archive() -> (TempDir, PathBuf) {
    let files = tempfile::tempdir().unwrap();
    let dir = files.path().join("a");
    let mut archive = Archive::open(&dir, STREAM, options()).unwrap();
    fill(&mut archive);
    archive.close().unwrap();
    (files, dir)
}

/// `seqcast archive COMMAND DIR OPTIONS`, the last two parts given as words.
fn command(command: &str, dir: &Path, options: &str) -> Command {
    let mut seqcast = Command::new(env!("CARGO_BIN_EXE_seqcast"));
    seqcast
        .args(["archive", command])
        .arg(dir)
        .args(options.split_whitespace());
    seqcast
}

fn run(name: &str, dir: &Path, options: &str) -> Output {
    command(name, dir, options).output().unwrap()
}

/// Its standard output; it must succeed.
fn succeed(name: &str, dir: &Path, options: &str) -> String {
    let output = run(name, dir, options);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// Its standard error; it must fail as a program does.
fn fail(name: &str, dir: &Path, options: &str) -> String {
    let output = run(name, dir, options);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    text(&output.stderr)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn json(text: &str) -> Vec<serde_json::Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn sequences(text: &str) -> Vec<u32> {
    let numbers = json(text).into_iter().map(|line| line["sequence"].as_u64().unwrap());
    numbers.map(|n| u32::try_from(n).unwrap()).collect()
}

#[test]
fn sessions_are_listed_and_described() {
    let (_files, dir) = archive();
    let listed = succeed("ls", &dir, "");
    let lines: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 3, "{listed}");
    assert_eq!(
        lines[1][..6],
        [
            "1000",
            "2026-03-02T14:30:00.001Z",
            "2026-03-02T14:30:00.298Z",
            "294",
            "3",
            "1"
        ],
    );
    assert!(lines[1].ends_with(&["at", "300,", "then", "2000"]), "{listed}");
    assert_eq!(lines[2][3..6], ["30", "0", "0"]);
    assert!(lines[2].ends_with(&["open"]), "{listed}");

    let described = succeed("info", &dir, "--session 1000");
    for (name, value) in [
        ("first sent", "2026-03-02T14:30:00.001000000Z"),
        ("last received", "2026-03-02T14:30:00.298000500Z"),
        ("stored", "294 messages: 1-30, 34-60, 64-300"),
        ("lost", "3 messages: 31-33"),
        ("gaps", "3 messages: 61-63"),
        ("session before", "not known"),
    ] {
        let line = described.lines().find(|line| line.trim_start().starts_with(name));
        assert!(line.is_some_and(|line| line.ends_with(value)), "{name}: {described}");
    }
    assert!(!described.contains("session 2000\n"));
    assert!(succeed("info", &dir, "--session last").contains("session before  1000\n"));
    assert!(fail("info", &dir, "--session 3").contains("session 3 is not in this archive"));
}

#[test]
fn messages_come_in_the_order_of_their_numbers_with_their_times() {
    let (_files, dir) = archive();
    let output = run("cat", &dir, "--session 1000 --format json");
    assert!(output.status.success());
    let told = text(&output.stderr);
    assert!(told.contains("3 messages left out that exist nowhere"), "{told}");
    assert!(
        told.contains("3 messages left out that are not in the archive"),
        "{told}"
    );
    let printed = text(&output.stdout);
    assert_eq!(sequences(&printed), old_numbers());
    for line in json(&printed) {
        let seq = u32::try_from(line["sequence"].as_u64().unwrap()).unwrap();
        let first = (seq - 1) / 3 * 3 + 1;
        let hex: String = payload(seq).bytes().map(|byte| format!("{byte:02x}")).collect();
        let expected = serde_json::json!({
            "session": 1000, "sequence": seq, "sent_ns": sent(first), "received_ns": received(first),
            "subject": format!("s.{seq}"), "payload": hex,
        });
        assert_eq!(line, expected);
    }
    let all = json(&succeed("cat", &dir, "--format json"));
    assert_eq!(all.len(), 294 + 30);
    assert_eq!((&all[294]["session"], &all[294]["sequence"]), (&2000.into(), &1.into()));
}

#[test]
fn payloads_come_in_every_framing() {
    let (_files, dir) = archive();
    let three = "--session last --from 9 --to 11 --format";
    assert_eq!(
        succeed("cat", &dir, &format!("{three} lines")),
        "message 9\nmessage 10\nmessage 11\n"
    );
    assert_eq!(
        succeed("cat", &dir, &format!("{three} raw")),
        "message 9message 10message 11"
    );
    let hex = succeed("cat", &dir, &format!("{three} hex"));
    assert_eq!(hex.lines().next(), Some("2000 9 6d6573736167652039"));
    let framed = succeed("cat", &dir, &format!("{three} binaryfile"));
    let mut reader = binaryfile::Reader::new(framed.as_bytes());
    for seq in 9..=11 {
        assert_eq!(reader.next_message().unwrap(), Some(payload(seq).as_bytes()));
    }
    assert!(reader.next_message().unwrap().is_none());
}

#[test]
fn a_selection_cuts_records_and_finds_times() {
    let (_files, dir) = archive();
    let cat = |options: &str| sequences(&succeed("cat", &dir, &format!("{options} --format json")));
    // 59 to 65 begins and ends inside records, and spans the gap.
    assert_eq!(cat("--session 1000 --from 59 --to 65"), [59, 60, 64, 65]);
    assert!(cat("--session 1000 --from 301").is_empty());
    // All of a record has one time; the record of 91 came last and is found all the same.
    for (since, first) in [
        (0, 1),
        (sent(1), 1),
        (sent(1) + 1, 4),
        (sent(31), 34),
        (sent(62), 64),
        (sent(91), 91),
        (sent(298), 298),
    ] {
        let found = cat(&format!("--session 1000 --since @{since}"));
        assert_eq!(
            found,
            old_numbers().split_off(old_numbers().partition_point(|&n| n < first))
        );
    }
    assert!(cat(&format!("--session 1000 --since @{}", sent(298) + 1)).is_empty());
    assert_eq!(cat("--session last --since 2026-03-02T14:30:00.029Z"), [29, 30]);
    assert_eq!(cat(&format!("--since @{}", sent(30) + 1)).first(), Some(&34));

    let told = fail("cat", &dir, "--from 5");
    assert!(told.contains("say which one with --session"), "{told}");
    let told = fail("cat", &dir, "--session last --from 5 --to 4");
    assert!(told.contains("no number lies from 5 to 4"), "{told}");
}

/// The blocks of a capture: type and body. Checks what every block has.
fn blocks(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut blocks = Vec::new();
    while !bytes.is_empty() {
        let length = word(bytes, 4) as usize;
        assert_eq!(length % 4, 0);
        assert_eq!(word(bytes, length - 4) as usize, length, "the length at the end");
        blocks.push((word(bytes, 0), bytes[8..length - 4].to_vec()));
        bytes = &bytes[length..];
    }
    blocks
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// The ones' complement sum of 16-bit words; 0xffff over what includes a right checksum.
fn internet_sum(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0u16, |sum, pair| {
        let word = u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

#[test]
fn a_capture_holds_the_frames_at_the_times_of_their_arrival() {
    let (files, dir) = archive();
    let path = files.path().join("x.pcapng");
    let out = format!("--format pcapng --session 1000 --out {}", path.display());
    succeed("export", &dir, &out);
    let blocks = blocks(&fs::read(&path).unwrap());
    let (kind, section) = &blocks[0];
    assert_eq!((*kind, word(section, 0)), (0x0a0d_0d0a, 0x1a2b_3c4d));
    let (kind, interface) = &blocks[1];
    assert_eq!((*kind, word(interface, 0)), (1, 1), "an Ethernet interface");
    assert!(
        interface.windows(5).any(|option| option == [9, 0, 1, 0, 9]),
        "times in ns: {interface:?}"
    );
    assert_eq!(blocks.len() - 2, 98);

    let mut numbers = Vec::new();
    for (kind, body) in &blocks[2..] {
        assert_eq!((*kind, word(body, 0)), (6, 0));
        let time = u64::from(word(body, 4)) << 32 | u64::from(word(body, 8));
        let length = word(body, 12) as usize;
        assert_eq!(word(body, 16) as usize, length);
        let packet = &body[20..20 + length];

        let (ethernet, packet) = packet.split_at(14);
        assert_eq!(ethernet[..6], [0x01, 0x00, 0x5e, 0, 1, 2]);
        assert_eq!(ethernet[12..], [0x08, 0x00]);
        let (ip, udp) = packet.split_at(20);
        assert_eq!((ip[0], ip[9], internet_sum(ip)), (0x45, 17, 0xffff));
        assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), packet.len());
        assert_eq!(ip[16..], Ipv4Addr::new(239, 0, 1, 2).octets());
        assert_eq!(u16::from_be_bytes([udp[2], udp[3]]), 5000);
        assert_eq!(usize::from(u16::from_be_bytes([udp[4], udp[5]])), udp.len());
        let pseudo = [&ip[12..], &[0, 17], &udp[4..6]].concat();
        assert_eq!(internet_sum(&[&pseudo, udp].concat()), 0xffff);

        let frame = Frame::parse(&udp[8..]).unwrap();
        assert_eq!((frame.header.stream(), frame.header.session()), (STREAM, OLD));
        assert_eq!(frame.header.origin.get(), 7);
        let Body::Data(block) = frame.body else {
            panic!("{frame:?}")
        };
        assert_eq!(
            (frame.header.time.get(), time),
            (sent(block.first().0), received(block.first().0))
        );
        for (seq, message) in block.messages() {
            assert_eq!(message.payload, payload(seq.0).as_bytes());
            numbers.push(seq.0);
        }
    }
    assert_eq!(numbers, old_numbers());

    // The group as told, and half a record.
    succeed("export", &dir, &format!("{out} --from 2 --to 2 --group 239.9.9.9:6000"));
    let blocks = self::blocks(&fs::read(&path).unwrap());
    let packet = &blocks[2].1[20..];
    assert_eq!(packet[30..34], [239, 9, 9, 9]);
    assert_eq!(packet[36..38], 6000u16.to_be_bytes());
}

#[test]
fn wireshark_opens_a_capture_and_shows_the_times_of_arrival() {
    let (files, dir) = archive();
    let out = files.path().join("ticks.pcapng");
    let selection = format!(
        "--session 1000 --format pcapng --out {} --group 239.81.0.1:5000",
        out.display()
    );
    succeed("export", &dir, &selection);
    let shown = Command::new("tshark")
        .args([
            "-n",
            "-T",
            "fields",
            "-e",
            "frame.time_epoch",
            "-e",
            "ip.dst",
            "-e",
            "udp.dstport",
            "-r",
        ])
        .arg(&out)
        .output();
    let Ok(shown) = shown else {
        eprintln!("skipped: tshark is not installed");
        return;
    };
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    let shown = text(&shown.stdout);
    let archive = Reader::open(&dir).unwrap();
    let mut reader = archive.session(OLD).unwrap();
    let wanted: Vec<String> = reader
        .in_order(Seq::FIRST)
        .map(|record| record.unwrap().recv_ns)
        .map(|ns| format!("{}.{:09}\t239.81.0.1\t5000", ns / 1_000_000_000, ns % 1_000_000_000))
        .collect();
    assert_eq!(shown.lines().collect::<Vec<_>>(), wanted);
}

#[test]
fn exported_lines_are_those_of_cat() {
    let (files, dir) = archive();
    let path = files.path().join("x.jsonl");
    succeed("export", &dir, &format!("--format jsonl --out {}", path.display()));
    let printed = succeed("cat", &dir, "--format json");
    assert_eq!(fs::read_to_string(&path).unwrap(), printed);
    assert_eq!(succeed("export", &dir, "--format jsonl --out -"), printed);
    // A selection that cannot be overwrites nothing.
    fail(
        "export",
        &dir,
        &format!("--format jsonl --session 3 --out {}", path.display()),
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), printed);
}

#[test]
fn damage_is_named_by_file_and_byte_and_left_out() {
    let (_files, dir) = archive();
    let good = succeed("verify", &dir, "");
    assert!(good.contains("session 1000: good; 98 records"), "{good}");
    assert!(good.contains("session 2000: good; 30 records"), "{good}");

    // The first payload byte of the third record, behind the segment's header.
    let path = dir.join("0000001000/00000001.log");
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut offset = 64;
    for _ in 0..2 {
        let mut length = [0; 4];
        file.read_exact_at(&mut length, offset).unwrap();
        offset += u64::from(u32::from_le_bytes(length)).next_multiple_of(8);
    }
    file.write_all_at(&[0xff], offset + 32 + 4).unwrap();
    drop(file);

    let output = run("verify", &dir, "");
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stdout);
    let place = format!("session 1000: {} at {offset}: its checksum is wrong", path.display());
    assert!(told.contains(&place), "{told}");
    assert!(told.contains("session 1000: DAMAGED in 1 places"), "{told}");
    assert!(told.contains("session 2000: good"), "{told}");

    let output = run("cat", &dir, "--session 1000 --to 12 --format json");
    assert!(output.status.success());
    assert_eq!(sequences(&text(&output.stdout)), [1, 2, 3, 4, 5, 6, 10, 11, 12]);
    let told = text(&output.stderr);
    assert!(
        told.contains("3 messages left out that could not be read: damaged"),
        "{told}"
    );
}

#[test]
fn a_live_archive_is_read_and_grows_but_is_not_pruned() {
    let files = tempfile::tempdir().unwrap();
    let dir = files.path().join("a");
    let mut archive = Archive::open(&dir, STREAM, options()).unwrap();
    fill(&mut archive);
    let count = || succeed("cat", &dir, "--session last").lines().count();
    assert_eq!(count(), 30);
    append(archive.session_mut(NEW).unwrap(), 31, 5);
    assert_eq!(count(), 35);
    assert!(succeed("ls", &dir, "").contains(" 35 "));
    assert!(succeed("verify", &dir, "").contains("session 2000: good; 31 records"));
    let on_disk = || {
        let info = succeed("info", &dir, "--session last");
        let line = info.lines().find_map(|line| line.trim().strip_prefix("on disk"));
        line.expect("it says so").trim().to_owned()
    };
    assert_eq!(on_disk(), "0 messages, up to 0; 35 stored are not yet");
    archive.session_mut(NEW).unwrap().sync().unwrap();
    assert_eq!(on_disk(), "all that is stored");
    append(archive.session_mut(NEW).unwrap(), 36, 3);
    assert_eq!(on_disk(), "35 messages, up to 35; 3 stored are not yet");
    assert_eq!(
        succeed("export", &dir, "--session last --format jsonl --out -")
            .lines()
            .count(),
        38
    );
    assert!(!succeed("export", &dir, "--format pcapng --out /dev/null").contains("left out"));

    let told = fail("prune", &dir, "--keep-sessions 1");
    let holder = format!("is in use by process {}: stop it", std::process::id());
    assert!(told.contains(&holder), "{told}");
    assert!(succeed("prune", &dir, "--keep-sessions 1 --dry-run").starts_with("would remove session 1000: "));
    // Nothing of this has changed what the writer holds.
    assert!(archive.session(OLD).unwrap().read(Seq(300)).is_some());
}

#[test]
fn only_sessions_that_no_rule_keeps_are_removed() {
    let sessions = |dir: &Path| -> Vec<String> {
        let listed = succeed("ls", dir, "");
        let names = listed.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        names.map(str::to_owned).collect()
    };
    let (_files, dir) = archive();
    // What was received in 2026 is older than a day and younger than 500 years.
    for (rules, removed) in [
        ("--keep-sessions 2", "0 sessions"),
        ("--older-than 500years", "0 sessions"),
        ("--older-than 500years --keep-sessions 1", "0 sessions"),
        (
            "--older-than 1d --keep-sessions 1 --dry-run",
            "would remove session 1000",
        ),
    ] {
        let told = succeed("prune", &dir, rules);
        assert!(told.starts_with(removed), "{rules}: {told}");
        assert_eq!(sessions(&dir), ["1000", "2000"]);
    }
    let told = succeed("prune", &dir, "--older-than 1d --keep-sessions 1");
    assert!(
        told.starts_with("removed session 1000: last message 2026-03-02T14:30:00.298Z, "),
        "{told}"
    );
    assert_eq!(sessions(&dir), ["2000"]);
    assert!(succeed("prune", &dir, "--older-than 1d").starts_with("removed session 2000"));
    assert!(sessions(&dir).is_empty());
    // It is still an archive, and takes a new session.
    let mut archive = Archive::open(&dir, STREAM, options()).unwrap();
    fill(&mut archive);
    drop(archive);
    assert_eq!(sessions(&dir), ["1000", "2000"]);

    assert_eq!(run("prune", &dir, "").status.code(), Some(2), "no rule");
    let nothing = dir.join("nothing");
    assert!(fail("prune", &nothing, "--keep-sessions 1").contains("No such file"));
    assert!(!nothing.exists(), "pruning made an archive");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let files = tempfile::tempdir().unwrap();
    let dir = files.path().join("a");
    let mut archive = Archive::open(&dir, STREAM, options()).unwrap();
    let meta = SessionMeta {
        previous: Session::NONE,
        origin: 7,
        user: 0,
    };
    let log = archive.create_session(OLD, meta).unwrap();
    // Far more than any pipe holds.
    (0..2000).for_each(|i| append(log, 1 + i * 100, 100));
    archive.close().unwrap();
    for options in ["--format json", "--format raw"] {
        let mut child = command("cat", &dir, options)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0; 100];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(text(&output.stderr), "");
    }
}

#[test]
fn an_output_that_has_no_room_is_named() {
    let (_files, dir) = archive();
    let full = || OpenOptions::new().write(true).open("/dev/full").unwrap();
    for name in ["ls", "info", "cat"] {
        let output = command(name, &dir, "").stdout(full()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}");
        let told = text(&output.stderr);
        assert!(
            told.contains("cannot write the output: No space left on device"),
            "{name}: {told}"
        );
    }
    let told = fail("export", &dir, "--format jsonl --out /dev/full");
    assert!(told.contains("/dev/full is not complete: No space left"), "{told}");
}

#[test]
fn what_is_no_archive_is_named() {
    let files = tempfile::tempdir().unwrap();
    for name in ["ls", "info", "verify", "cat"] {
        let told = fail(name, files.path(), "");
        let place = format!("no archive can be opened in {}", files.path().display());
        assert!(told.contains(&place), "{told}");
        assert_eq!(told.matches("No such file").count(), 1, "{told}");
    }
}

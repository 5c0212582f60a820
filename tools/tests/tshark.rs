//! What tshark says: of the protocol's frames, with the dissector of this project, and of feeds in
//! MoldUDP64 and MoldUDP, with its own.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::process::{Command, Stdio};

use seqcast_mold::packet::Request;
use seqcast_mold::publisher::{Publisher, PublisherConfig};
use seqcast_mold::{SessionName, Variant};
use seqcast_proto::rng::Rng;
use seqcast_tools::itch;
use seqcast_tools::pcapng::{Packet, Writer};
use tempfile::TempDir;

const FROM: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 4660);
const TO: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 1, 1, 1), 26_477);

/// Writes payloads as a capture.
fn write(path: &Path, payloads: &[Vec<u8>]) {
    let mut writer = Writer::new(File::create(path).unwrap(), "test", "").unwrap();
    for (time, payload) in (1..).zip(payloads) {
        let packet = Packet {
            time,
            from: FROM,
            to: TO,
            way: None,
            payload,
            length: payload.len(),
            dropped: 0,
        };
        writer.write(&packet).unwrap();
    }
}

/// A line for each packet; nothing where there is no tshark.
fn tshark(payloads: &[Vec<u8>], arguments: &[&str]) -> Option<Vec<String>> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.pcapng");
    write(&path, payloads);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("wireshark/seqcast.lua");
    let mut command = Command::new("tshark");
    command
        .arg(format!("-Xlua_script:{}", script.display()))
        .arg("-r")
        .arg(&path)
        .args(arguments);
    let Ok(output) = command.stdin(Stdio::null()).output() else {
        eprintln!("passed over: there is no tshark (scripts/setup --test installs it)");
        return None;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("Lua: "), "{said}");
    Some(
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect(),
    )
}

/// The values of fields, one packet a line.
fn fields(payloads: &[Vec<u8>], names: &[&str], more: &[&str]) -> Option<Vec<String>> {
    let mut arguments = vec!["-Tfields".to_owned(), "-Eseparator=|".to_owned()];
    arguments.extend(names.iter().map(|name| format!("-e{name}")));
    let arguments: Vec<&str> = arguments
        .iter()
        .map(String::as_str)
        .chain(more.iter().copied())
        .collect();
    tshark(payloads, &arguments)
}

/// The frames that the protocol's description shows.
fn documented() -> Vec<Vec<u8>> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md")).unwrap();
    let mut frames: Vec<Vec<u8>> = Vec::new();
    for line in text.lines() {
        let Some((at, rest)) = line.split_once("  ") else {
            continue;
        };
        let Some(at) = usize::from_str_radix(at, 16).ok().filter(|_| at.len() == 2) else {
            continue;
        };
        if at == 0 {
            frames.push(Vec::new());
        }
        let frame = frames.last_mut().unwrap();
        assert_eq!(frame.len(), at, "{line}");
        // Three spaces are in front of the explanation.
        let bytes = rest.split("   ").next().unwrap();
        frame.extend(
            bytes
                .split_whitespace()
                .map(|byte| u8::from_str_radix(byte, 16).unwrap()),
        );
    }
    assert_eq!(frames.len(), 3);
    frames
}

/// A frame of any kind: its header of the DATA that the description shows, and a body of words.
fn frame(kind: u8, sequence: u32, count: u16, flags: u16, words: &[u32]) -> Vec<u8> {
    let mut frame = documented()[0][..32].to_vec();
    frame[3] = kind;
    frame[12..16].copy_from_slice(&sequence.to_le_bytes());
    frame[24..26].copy_from_slice(&count.to_le_bytes());
    frame[26..28].copy_from_slice(&flags.to_le_bytes());
    frame.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    frame
}

#[test]
fn frames_are_dissected_as_the_protocol_describes_them() {
    let mut frames = documented();
    let data = frames[0].clone();
    let later = {
        let mut later = data.clone();
        later[12] = 10;
        later
    };
    frames.extend([
        frame(3, 0, 1, 16, &[1, 4]),
        frame(4, 0, 2, 2, &[7, 7, 8, 9]),
        // REPAIR is DATA's body, of the server.
        [&frame(5, 5, 2, 1, &[])[..], &data[32..]].concat(),
        frame(6, 0, 2, 0, &[7, 9, 2, 20, 21, 5 | 30 << 16]),
        frame(7, 7, 0, 1, &[99, 1]),
        later,
    ]);
    let names = [
        "seqcast.kind",
        "seqcast.sequence",
        "seqcast.last",
        "seqcast.message.payload",
        "seqcast.message.subject",
        "seqcast.endpoint.ip",
        "seqcast.endpoint.port",
        "seqcast.range.first",
        "seqcast.range.last",
        "seqcast.reason",
        "seqcast.key",
        "seqcast.follower",
    ];
    let Some(lines) = fields(&frames, &names, &[]) else {
        return;
    };
    let payloads = "68656c6c6f,78797a21";
    assert_eq!(
        lines,
        [
            format!("1|5|6|{payloads}|A.B|||||||"),
            "2|5||||10.81.0.2|4660|||||".into(),
            "1|5|5|78797a21|||||||7|".into(),
            "3|0||||||1|4|||".into(),
            "4|0||||||7,8|7,9|||".into(),
            format!("5|5|6|{payloads}|A.B|||||||"),
            "6|0||||||7,20|9,21|2,5||".into(),
            "7|7||||||||||99".into(),
            format!("1|10|11|{payloads}|A.B|||||||"),
        ]
    );
    let experts = [
        ("seqcast.gap", "9"),
        ("seqcast.again", "3"),
        ("seqcast.asked", "5"),
        ("seqcast.repaired", "6"),
        ("seqcast.refused", "7"),
        ("seqcast.refused_for_good", "7"),
        ("seqcast.ended", "8"),
        ("seqcast.malformed", ""),
    ];
    for (expert, packets) in experts {
        let found = fields(&frames, &["frame.number"], &["-Y", expert]).unwrap().join(",");
        assert_eq!(found, packets, "{expert}");
    }
    let columns = tshark(&frames, &[]).unwrap();
    assert!(
        columns[4].contains("Seqcast") && columns[4].contains("NAK 7, 8-9 of the server"),
        "{columns:#?}"
    );
    assert!(
        columns[8].contains("DATA 10-11 (0x00011388/1698898177)"),
        "{columns:#?}"
    );
}

#[test]
fn cut_and_changed_frames_are_called_malformed_and_break_nothing() {
    let mut rng = Rng::new(7);
    let mut frames = Vec::new();
    for good in documented() {
        for cut in 4..good.len() {
            frames.push(good[..cut].to_vec());
        }
        for _ in 0..200 {
            let mut bad = good.clone();
            for _ in 0..1 + rng.below(4) {
                let at = 2 + rng.below(bad.len() as u64 - 2) as usize;
                bad[at] = rng.next_u64() as u8;
            }
            frames.push(bad);
        }
    }
    let Some(tree) = tshark(&frames, &["-V", "-d", "udp.port==26477,seqcast"]) else {
        return;
    };
    let broken: Vec<_> = tree.iter().filter(|line| line.contains("Lua Error")).take(3).collect();
    assert!(broken.is_empty(), "{broken:#?}");
    let more = ["-Y", "seqcast.malformed", "-d", "udp.port==26477,seqcast"];
    let malformed = fields(&frames, &["frame.number"], &more).unwrap().len();
    assert!(malformed >= 100, "{malformed} of {}", frames.len());
}

#[test]
fn its_own_dissectors_understand_feeds() {
    let spec = itch::Spec {
        length: itch::Length::Messages(1000),
        symbols: 10,
        seed: 1,
    };
    for (variant, name, protocol) in [
        (Variant::Mold64, "moldudp64", "-dudp.port==26477,moldudp64"),
        (Variant::Mold32, "moldudp", "-omoldudp.udp.port:26477"),
    ] {
        let mut packets = Vec::new();
        let mut out = |packet: &[u8]| packets.push(packet.to_vec());
        let mut publisher = Publisher::new(PublisherConfig {
            variant,
            most: 1400,
            heartbeat: 10,
            end: 100,
        });
        let session = SessionName::of(1_700_000_000);
        publisher.open(0, session, 1, &mut out);
        publisher.poll(0, &mut out);
        let mut generator = itch::Generator::new(spec).unwrap();
        let mut number = 0;
        while let Some(message) = generator.next_message() {
            number += 1;
            publisher.push(0, number, message, &mut out).unwrap();
        }
        publisher.flush(0, &mut out);
        publisher.end(0, number + 1, &mut out);
        publisher.poll(1, &mut out);
        let fields = |names: &[&str], more: &[&str]| {
            let names: Vec<String> = names.iter().map(|field| format!("{name}.{field}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            fields(&packets, &names, &[&[protocol], more].concat())
        };
        let Some(lines) = fields(&["session", "sequence", "count"], &[]) else {
            return;
        };
        let mut next = 1;
        let (first, rest) = lines.split_first().unwrap();
        let (last, rest) = rest.split_last().unwrap();
        assert_eq!(*first, "1700000000|1|0", "a heartbeat");
        let end = if variant == Variant::Mold64 { 65_535 } else { 1 };
        assert_eq!(*last, format!("1700000000|1001|{end}"));
        for line in rest {
            let words: Vec<&str> = line.split('|').collect();
            assert_eq!((words[0], words[1]), ("1700000000", &*next.to_string()));
            next += words[2].parse::<u64>().unwrap();
        }
        assert_eq!(next, 1001);
        // Each message's number, as the dissector counts them.
        let numbers = fields(&["msgseq"], &[]).unwrap().join(",");
        let numbers: Vec<u64> = numbers.split(',').filter_map(|n| n.parse().ok()).collect();
        assert!(numbers[..1000].iter().copied().eq(1..=1000), "{numbers:?}");
        let invalid = format!("{name}.msglen.invalid || {name}.count.invalid || _ws.malformed");
        assert_eq!(fields(&["count"], &["-Y", &invalid]).unwrap(), [""; 0]);
    }
    // A request is the same header, and no more.
    let mut request = vec![0; 20];
    let asked = Request {
        session: SessionName::of(7),
        first: 5,
        count: 9,
    };
    asked.write(Variant::Mold64, &mut request);
    let names = ["moldudp64.session", "moldudp64.sequence", "moldudp64.count"];
    if let Some(lines) = fields(&[request], &names, &["-dudp.port==26477,moldudp64"]) {
        let words: Vec<&str> = lines[0].split('|').map(str::trim).collect();
        assert_eq!(words, ["7", "5", "9"]);
    }
}

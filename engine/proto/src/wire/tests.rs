use super::*;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

fn stamp(sequence: u32) -> Stamp {
    Stamp {
        stream: Stream(0x0001_1388),
        session: Session(0x6543_2101),
        sequence: Seq(sequence),
        time: 0x1122_3344_5566_7788,
        flags: 0,
        origin: 0xaabb_ccdd,
    }
}

const HEAD_DATA: [u8; HEADER] = [
    b'S', b'Q', 2, 1, // magic, version, DATA
    0x88, 0x13, 0x01, 0x00, // stream
    0x01, 0x21, 0x43, 0x65, // session
    0x05, 0x00, 0x00, 0x00, // sequence
    0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, // time
    0x02, 0x00, // count
    0x00, 0x00, // flags
    0xdd, 0xcc, 0xbb, 0xaa, // origin
];

fn block(messages: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (subject, payload) in messages {
        let message = Message { subject, payload };
        let at = out.len();
        out.resize(at + message.encoded_len(), 0xee);
        put_message(&mut out[at..], &message).unwrap();
    }
    out
}

#[test]
fn golden_data() {
    let bytes = block(&[(b"A.B", b"hello"), (b"", b"xyz!")]);
    let mut out = [0xff; 128];
    let len = stamp(5).block(&mut out, Kind::Data, &Block::parse(Seq(5), 2, &bytes).unwrap());
    let mut want = HEAD_DATA.to_vec();
    want.extend_from_slice(&[5, 0, 3, 0, b'A', b'.', b'B', b'h', b'e', b'l', b'l', b'o']);
    want.extend_from_slice(&[4, 0, 0, 0, b'x', b'y', b'z', b'!']);
    assert_eq!(&out[..len], &want);

    let Body::Data(block) = Frame::parse(&want).unwrap().body else {
        panic!("not DATA");
    };
    let got: Vec<_> = block.messages().collect();
    assert_eq!(got[0].0, Seq(5));
    assert_eq!(
        got[0].1,
        Message {
            subject: b"A.B",
            payload: b"hello"
        }
    );
    assert_eq!(got[1].0, Seq(6));
    assert_eq!(
        got[1].1,
        Message {
            subject: b"",
            payload: b"xyz!"
        }
    );
}

#[test]
fn golden_control_frames() {
    let mut out = [0xff; 128];
    let head = |kind: u8, count: u8| {
        let mut h = HEAD_DATA.to_vec();
        h[3] = kind;
        h[24] = count;
        h
    };

    let len = stamp(5).heartbeat(
        &mut out,
        &HeartbeatBody {
            previous_session: U32::new(1),
            previous_last: U32::new(2),
            oldest: U32::new(3),
            acknowledged: U32::new(4),
        },
        &[Endpoint::new(
            SocketAddrV4::new(Ipv4Addr::new(10, 81, 0, 2), 0x1234),
            Role::Archive,
        )],
    );
    let mut want = head(2, 1);
    want.extend_from_slice(&[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]);
    want.extend_from_slice(&[10, 81, 0, 2, 0x34, 0x12, 2, 0]);
    assert_eq!(&out[..len], &want);

    let ranges = [
        SeqRange::of(Seq(1), 2).unwrap(),
        SeqRange::of(Seq(0x0102_0304), 1).unwrap(),
    ];
    for kind in [Kind::Ack, Kind::Nak] {
        let len = stamp(5).ranges(&mut out, kind, ranges);
        let mut want = head(kind as u8, 2);
        want.extend_from_slice(&[1, 0, 0, 0, 2, 0, 0, 0, 4, 3, 2, 1, 4, 3, 2, 1]);
        assert_eq!(&out[..len], &want);
    }

    let len = stamp(5).unavailable(&mut out, ranges[0], Reason::Busy, 0x0a0b);
    let mut want = head(6, 1);
    want.extend_from_slice(&[1, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0x0b, 0x0a]);
    assert_eq!(&out[..len], &want);

    let len = stamp(5).end(&mut out, Session(7), Session(6));
    let mut want = head(7, 0);
    want.extend_from_slice(&[7, 0, 0, 0, 6, 0, 0, 0]);
    assert_eq!(&out[..len], &want);
    assert!(matches!(Frame::parse(&want).unwrap().body, Body::End(_)));
}

#[test]
fn refuses_what_is_not_whole() {
    let bytes = block(&[(b"S", b"payload"), (b"", b"")]);
    let mut out = [0u8; 128];
    let len = stamp(9).block(&mut out, Kind::Data, &Block::parse(Seq(9), 2, &bytes).unwrap());
    let good = &out[..len];
    assert!(Frame::parse(good).is_ok());
    for cut in 0..len {
        assert!(Frame::parse(&good[..cut]).is_err(), "cut at {cut}");
    }
    let mut long = good.to_vec();
    long.extend_from_slice(&[0; 4]);
    assert_eq!(Frame::parse(&long).unwrap_err(), WireError::Length);

    let broken = |at: usize, byte: u8| {
        let mut b = good.to_vec();
        b[at] = byte;
        Frame::parse(&b).map(|_| ()).unwrap_err()
    };
    assert_eq!(broken(0, b'X'), WireError::Magic);
    assert_eq!(broken(2, 1), WireError::Version(1));
    assert_eq!(broken(2, 3), WireError::Version(3));
    assert_eq!(broken(3, 0), WireError::Kind(0));
    assert_eq!(broken(3, 8), WireError::Kind(8));
    assert_eq!(broken(12, 0), WireError::Numbers, "sequence 0");
    assert_eq!(broken(24, 0), WireError::Numbers, "no message");
    assert_eq!(broken(24, 3), WireError::Message, "one message too many");
    assert_eq!(broken(24, 1), WireError::Length, "one message too few");
    assert_eq!(broken(HEADER + 1, 0xff), WireError::Message, "a length past the end");
}

#[test]
fn refuses_numbers_past_the_last() {
    let bytes = block(&[(b"", b"a"), (b"", b"b")]);
    assert!(Block::parse(Seq(Seq::LAST.0 - 1), 2, &bytes).is_ok());
    assert_eq!(Block::parse(Seq::LAST, 2, &bytes).unwrap_err(), WireError::Numbers);

    for (first, last, sound) in [
        (1, Seq::LAST.0, true),
        (0, 5, false),
        (5, u32::MAX, false),
        (u32::MAX, u32::MAX, false),
    ] {
        let range = SeqRange::new(Seq(first), Seq(last)).unwrap();
        let mut out = [0; 128];
        for kind in [Kind::Ack, Kind::Nak] {
            let len = stamp(0).ranges(&mut out, kind, [range]);
            assert_eq!(Frame::parse(&out[..len]).is_ok(), sound, "{kind:?} of {range}");
        }
        let len = stamp(0).unavailable(&mut out, range, Reason::Lost, 0);
        assert_eq!(Frame::parse(&out[..len]).is_ok(), sound, "UNAVAILABLE of {range}");
    }
}

#[test]
fn parts_of_a_block() {
    let bytes = block(&[(b"", b"aaaa"), (b"", b"bbbb"), (b"", b"cccc")]);
    let whole = Block::parse(Seq(10), 3, &bytes).unwrap();
    let all = SeqRange::of(Seq(1), 100).unwrap();
    assert_eq!(whole.part(all, 1000).unwrap().bytes().len(), 24);
    assert_eq!(whole.part(all, 23).unwrap().count(), 2, "as many as fit");
    assert!(whole.part(all, 7).is_none(), "not even one fits");
    let middle = whole.part(SeqRange::of(Seq(11), 1).unwrap(), 1000).unwrap();
    assert_eq!(middle.first(), Seq(11));
    assert_eq!(middle.messages().next().unwrap().1.payload, b"bbbb");
    assert!(whole.part(SeqRange::of(Seq(13), 5).unwrap(), 1000).is_none());
}

#[test]
fn largest_message_fits_exactly() {
    for max in [64, 65, 66, 67, 576, 1472, 3478] {
        let payload = vec![7; max_message(max)];
        let mut out = vec![0; max - HEADER];
        let message = Message {
            subject: b"",
            payload: &payload,
        };
        assert!(put_message(&mut out, &message).is_some(), "{max}");
        let payload = vec![7; max_message(max) + 1];
        let message = Message {
            subject: b"",
            payload: &payload,
        };
        assert!(put_message(&mut out, &message).is_none(), "{max}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0u8..9, magic in any::<bool>()) {
        if magic && bytes.len() > 4 {
            bytes[..4].copy_from_slice(&[b'S', b'Q', VERSION, kind]);
        }
        if let Ok(frame) = Frame::parse(&bytes) {
            match frame.body {
                Body::Data(b) | Body::Repair(b) => prop_assert_eq!(b.messages().count(), usize::from(b.count())),
                Body::Ack(r) | Body::Nak(r) => prop_assert_eq!(r.iter().count(), usize::from(frame.header.count.get())),
                _ => {}
            }
        }
    }

    #[test]
    fn blocks_survive_the_round_trip(messages in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..20), prop::collection::vec(any::<u8>(), 0..100)), 1..12), first in 1u32..u32::MAX - 20) {
        let pairs: Vec<(&[u8], &[u8])> = messages.iter().map(|(s, p)| (&s[..], &p[..])).collect();
        let bytes = block(&pairs);
        let parsed = Block::parse(Seq(first), pairs.len() as u16, &bytes).unwrap();
        let back: Vec<_> = parsed.messages().map(|(_, m)| (m.subject, m.payload)).collect();
        prop_assert_eq!(back, pairs);
    }
}

use super::*;
use crate::seq::{Seq, SeqRange, Session, Stream};
use crate::time::MILLIS;
use crate::wire::{Frame, HeartbeatBody, Stamp};
use alloc::vec;
use proptest::prelude::*;

const START: Nanos = 1_800_000_000 * SECONDS;

fn ring(ids: &[u8]) -> KeyRing {
    KeyRing::new(ids.iter().map(|id| Key::new(*id, &[*id; KEY_BYTES])).collect()).unwrap()
}

fn seal_with(ids: &[u8]) -> Seal {
    Seal::new(ring(ids), CLOCK_SKEW, START - 1)
}

fn stamp(origin: u32) -> Stamp {
    Stamp {
        stream: Stream(0x0001_1388),
        session: Session(0x6543_2101),
        sequence: Seq(5),
        time: 0x1122_3344_5566_7788,
        flags: 0,
        origin,
    }
}

fn nak(seal: &mut Seal, wall: Nanos, origin: u32) -> Vec<u8> {
    let mut out = vec![0; 128];
    let range = SeqRange::new(Seq(3), Seq(4));
    let len = stamp(origin).ranges(&mut out, Kind::Nak, range);
    let len = seal.seal(wall, &mut out, len);
    out.truncate(len);
    out
}

fn data(seal: &mut Seal, wall: Nanos) -> Vec<u8> {
    let mut out = vec![0; 128];
    stamp(9).write(&mut out, Kind::Data, 1);
    out[HEADER..HEADER + 8].copy_from_slice(&[4, 0, 0, 0, b'x', b'y', b'z', b'!']);
    let len = seal.seal(wall, &mut out, HEADER + 8);
    out.truncate(len);
    out
}

#[test]
fn golden_seal() {
    let secret: Vec<u8> = (0..KEY_BYTES as u8).collect();
    let key = Key::new(7, secret.as_slice().try_into().unwrap());
    let mut seal = Seal::new(KeyRing::new(vec![key]).unwrap(), CLOCK_SKEW, 0);
    let frame = data(&mut seal, 0x1122_3344_5566_7799);
    let mut want = vec![
        b'S', b'Q', 2, 1, 0x88, 0x13, 0x01, 0x00, 0x01, 0x21, 0x43, 0x65, 5, 0, 0, 0, // header
        0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 1, 0, // time, count
        0x80, 0x07, 9, 0, 0, 0, // KEYED and the key's id, origin
        4, 0, 0, 0, b'x', b'y', b'z', b'!', // the message
        0x99, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, // sealed at
    ];
    want.extend_from_slice(&GOLDEN_TAG);
    assert_eq!(frame, want);
    assert_eq!(seal.open(0x1122_3344_5566_7799, &frame), Ok(HEADER + 8));
    assert!(Frame::parse(&frame).is_err(), "no frame without its key");
    assert!(Frame::parse(&frame[..HEADER + 8]).is_ok());
}

/// Computed by the implementation in Rust of the same crate, which shares no code with that in C.
const GOLDEN_TAG: [u8; TAG] = [45, 253, 21, 114, 28, 127, 53, 161, 201, 245, 176, 40, 12, 0, 29, 105];

#[test]
fn every_kind_is_covered() {
    let mut seal = seal_with(&[1]);
    let mut out = [0; 256];
    let range = SeqRange::new(Seq(3), Seq(4)).unwrap();
    let body = HeartbeatBody {
        previous_session: 0.into(),
        previous_last: 0.into(),
        oldest: 1.into(),
        acknowledged: 0.into(),
    };
    let block = crate::wire::Block::trusted(Seq(5), 1, &[4, 0, 0, 0, 1, 2, 3, 4]);
    let stamp = stamp(4);
    for build in [
        &|b: &mut [u8]| stamp.block(b, Kind::Data, &block),
        &|b: &mut [u8]| stamp.block(b, Kind::Repair, &block),
        &|b: &mut [u8]| stamp.heartbeat(b, &body, &[]),
        &|b: &mut [u8]| stamp.ranges(b, Kind::Ack, [range]),
        &|b: &mut [u8]| stamp.ranges(b, Kind::Nak, [range]),
        &|b: &mut [u8]| stamp.unavailable(b, range, crate::wire::Reason::Busy, 5),
        &|b: &mut [u8]| stamp.end(b, Session(0), Session(0)),
    ] as [&dyn Fn(&mut [u8]) -> usize; 7]
    {
        let plain = build(&mut out);
        let whole = seal.seal(START, &mut out, plain);
        for at in 0..whole {
            let mut forged = out;
            forged[at] ^= 0x10;
            let opened = seal.open(START, &forged[..whole]);
            assert!(opened.is_err(), "byte {at} of kind {} changed", out[3]);
        }
        assert_eq!(seal.open(START, &out[..plain]), Err(Unsealed::Forged), "cut off");
        assert_eq!(seal.open(START, &out[..whole]), Ok(plain));
        assert!(Frame::parse(&out[..plain]).is_ok());
    }
}

#[test]
fn who_lacks_the_key_is_told_apart() {
    let (mut ours, mut theirs) = (seal_with(&[1]), seal_with(&[2]));
    let frame = nak(&mut theirs, START, 4);
    assert_eq!(ours.open(START, &frame), Err(Unsealed::UnknownKey(2)));
    let mut plain = vec![0; 128];
    let len = stamp(4).ranges(&mut plain, Kind::Nak, None);
    assert_eq!(ours.open(START, &plain[..len]), Err(Unsealed::Unkeyed));
    let mut forger = Seal::new(
        KeyRing::new(vec![Key::new(1, &[9; KEY_BYTES])]).unwrap(),
        CLOCK_SKEW,
        START,
    );
    assert_eq!(ours.open(START, &nak(&mut forger, START, 4)), Err(Unsealed::Forged));
}

#[test]
fn keys_change_without_a_gap() {
    let (mut sender, mut receiver) = (seal_with(&[1]), seal_with(&[1]));
    let mut taken = 0;
    for (step, (receives, sends)) in [
        (&[1][..], &[1][..]),
        (&[1, 2], &[1]),
        (&[1, 2], &[2, 1]),
        (&[2], &[2, 1]),
        (&[2], &[2]),
    ]
    .into_iter()
    .enumerate()
    {
        receiver.set_keys(ring(receives));
        sender.set_keys(ring(sends));
        let wall = START + step as u64;
        taken += u32::from(receiver.open(wall, &nak(&mut sender, wall, 3)).is_ok());
        taken += u32::from(receiver.open(wall, &data(&mut sender, wall)).is_ok());
    }
    assert_eq!(taken, 10);
}

#[test]
fn a_control_frame_is_taken_once_and_data_is_known_by_its_numbers() {
    let (mut sender, mut receiver) = (seal_with(&[1]), seal_with(&[1]));
    let frame = nak(&mut sender, START, 3);
    assert!(receiver.open(START, &frame).is_ok());
    assert_eq!(receiver.open(START + MILLIS, &frame), Err(Unsealed::Replayed));
    let frame = data(&mut sender, START);
    assert!(receiver.open(START, &frame).is_ok() && receiver.open(START + MILLIS, &frame).is_ok());
    let late = START + CLOCK_SKEW + MILLIS;
    assert!(matches!(receiver.open(late, &frame), Err(Unsealed::Stale(_))));
}

#[test]
fn what_was_recorded_before_a_restart_is_not_taken() {
    let mut sender = seal_with(&[1]);
    let frame = nak(&mut sender, START, 3);
    let mut restarted = Seal::new(ring(&[1]), CLOCK_SKEW, START + MILLIS);
    assert_eq!(restarted.open(START + 2 * MILLIS, &frame), Err(Unsealed::Replayed));
}

#[test]
fn frames_that_overtake_each_other_are_taken() {
    let (mut sender, mut receiver) = (seal_with(&[1]), seal_with(&[1]));
    let frames: Vec<_> = (0..REORDER).map(|_| nak(&mut sender, START, 3)).collect();
    assert!(frames.iter().rev().all(|f| receiver.open(START, f).is_ok()));
    assert!(
        frames
            .iter()
            .all(|f| receiver.open(START, f) == Err(Unsealed::Replayed))
    );
}

#[test]
fn more_senders_than_places_never_let_a_replay_through() {
    let (mut sender, mut receiver) = (seal_with(&[1]), seal_with(&[1]));
    let mut frames = Vec::new();
    for n in 0..4 * SENDERS as u32 {
        let wall = START + Nanos::from(n);
        let frame = nak(&mut sender, wall, n);
        assert!(receiver.open(wall, &frame).is_ok(), "sender {n}");
        frames.push(frame);
    }
    let now = START + SECONDS;
    assert!(frames.iter().all(|f| receiver.open(now, f) == Err(Unsealed::Replayed)));
}

#[test]
fn a_clock_that_is_set_back_does_not_stop_a_sender() {
    let (mut sender, mut receiver) = (seal_with(&[1]), seal_with(&[1]));
    for wall in [START + SECONDS, START, START + 1] {
        let frame = nak(&mut sender, wall, 3);
        assert!(receiver.open(START + SECONDS, &frame).is_ok());
    }
}

#[test]
fn rings_are_checked() {
    assert!(KeyRing::new(vec![]).is_none());
    let key = || Key::new(1, &[1; KEY_BYTES]);
    assert!(KeyRing::new(vec![key(), key()]).is_none());
    let many = (0..=MAX_KEYS as u8).map(|id| Key::new(id, &[1; KEY_BYTES])).collect();
    assert!(KeyRing::new(many).is_none());
}

proptest! {
    #[test]
    fn arbitrary_bytes_open_nothing(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), keyed: bool) {
        if keyed && bytes.len() > FLAGS + 1 {
            bytes[FLAGS] |= 0x80;
            bytes[FLAGS + 1] = 1;
        }
        prop_assert!(seal_with(&[1]).open(START, &bytes).is_err());
    }
}

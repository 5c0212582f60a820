//! Sealed frames that somebody has changed, repeated, or made without the key.

use std::collections::HashSet;

use seqcast_proto::rng::Rng;
use seqcast_proto::seal::{CLOCK_SKEW, KEY_BYTES, Key, KeyRing, Seal, TRAILER, Unsealed, is_keyed};
use seqcast_proto::time::{MILLIS, Nanos, SECONDS};
use seqcast_proto::wire::{HEADER, Header, Kind, flags, header};

use crate::Input;

const START: Nanos = 1_700_000_000 * SECONDS;

/// Keys that follow from all of the input: a fuzzer sees what tags are compared with, and would put
/// the right ones into its next input.
struct Secrets(u64);

impl Secrets {
    fn of(bytes: &[u8]) -> Secrets {
        let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        Secrets(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fnv))
    }

    fn ring(&self, ids: &[u8]) -> KeyRing {
        let key = |id: &u8| {
            let mut rng = Rng::new(self.0 ^ u64::from(*id));
            let mut secret = [0; KEY_BYTES];
            let places = secret.chunks_exact_mut(8);
            places.for_each(|place| place.copy_from_slice(&rng.next_u64().to_le_bytes()));
            Key::new(*id, &secret)
        };
        KeyRing::new(ids.iter().map(key).collect()).expect("different ids")
    }
}

/// A program of frames sealed, changed, repeated, kept back and invented. Only what the holder of a
/// key has sealed is opened, unchanged, while it is fresh; control frames once.
pub(crate) fn open(bytes: &[u8]) {
    let mut input = Input(bytes);
    let keys = Secrets::of(bytes);
    let mut now = START;
    let mut sender = Seal::new(keys.ring(&[1, 2]), CLOCK_SKEW, START);
    let mut receiver = Seal::new(keys.ring(&[2, 1]), CLOCK_SKEW, START);
    let mut sealed: Vec<Vec<u8>> = Vec::new();
    let mut taken: HashSet<Vec<u8>> = HashSet::new();
    for _ in 0..256 {
        if input.is_empty() {
            break;
        }
        let mut frame = match input.u8() % 5 {
            0 => {
                let len = usize::from(input.u8());
                input.take(len).to_vec()
            }
            1 => {
                now += MILLIS << (input.u8() % 16);
                continue;
            }
            2 => {
                // Another key seals, or the receiver forgets one.
                match input.u8() & 3 {
                    0 => sender.set_keys(keys.ring(&[1, 2])),
                    1 => sender.set_keys(keys.ring(&[2, 1])),
                    2 => receiver.set_keys(keys.ring(&[2])),
                    _ => receiver.set_keys(keys.ring(&[2, 1])),
                }
                continue;
            }
            3 if !sealed.is_empty() => sealed[usize::from(input.u8()) % sealed.len()].clone(),
            _ => {
                let frame = seal(&mut sender, now, &mut input);
                sealed.push(frame.clone());
                frame
            }
        };
        if input.u8() & 1 != 0 && !frame.is_empty() {
            let at = usize::from(input.u16()) % frame.len();
            frame[at] ^= input.u8();
        }
        match receiver.open(now, &frame) {
            Ok(len) => {
                assert!(is_keyed(&frame) && len + TRAILER == frame.len());
                assert!(sealed.contains(&frame), "opened what nobody has sealed");
                let kind = header(&frame).expect("what is opened has a header").kind;
                let repeats = kind == Kind::Data as u8 || kind == Kind::Repair as u8;
                assert!(taken.insert(frame) || repeats, "a control frame was taken twice");
            }
            Err(Unsealed::Unkeyed) => assert!(!is_keyed(&frame)),
            Err(Unsealed::UnknownKey(id)) => assert!(receiver.keys().ids().all(|known| known != id)),
            Err(Unsealed::Stale(by)) => {
                assert!(by > CLOCK_SKEW && sealed.contains(&frame));
            }
            Err(Unsealed::Replayed) => assert!(sealed.contains(&frame)),
            // Whole frames under a known key are not taken for forgeries.
            Err(Unsealed::Forged) => assert!(!sealed.contains(&frame)),
        }
    }
}

fn seal(sender: &mut Seal, now: Nanos, input: &mut Input<'_>) -> Vec<u8> {
    let len = usize::from(input.u8());
    let body = input.take(len);
    let mut frame = vec![0; HEADER + body.len() + TRAILER];
    frame[core::mem::offset_of!(Header, kind)] = input.u8() % 9;
    frame[core::mem::offset_of!(Header, origin)] = input.u8();
    frame[core::mem::offset_of!(Header, flags)] = input.u8() & !(flags::KEYED as u8);
    frame[HEADER..HEADER + body.len()].copy_from_slice(body);
    let whole = sender.seal(now, &mut frame, HEADER + body.len());
    assert_eq!(whole, frame.len());
    frame
}

//! Frames that only holders of a stream's key can make.
//!
//! A sealed frame has [`flags::KEYED`] and the key's id in its header, and ends in [`TRAILER`] bytes:
//! the time when it was sealed, and a tag over everything before the tag. [`Seal::seal`] finishes a
//! frame in the buffer that it is sent from, [`Seal::open`] checks a received one before anything
//! of it is used. Keys are symmetric: whoever can check a frame can make one.
//!
//! The tag is AEGIS-128L in its use as a MAC. `docs/trust.md` says why, and what is not covered.

use alloc::vec::Vec;

use aegis::aegis128l::Aegis128LMac;
use zerocopy::byteorder::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::time::{Nanos, SECONDS};
use crate::wire::{HEADER, Header, Kind, flags, header};

/// Bytes that a seal adds to a frame.
pub const TRAILER: usize = size_of::<Trailer>();
/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Most keys of one stream.
pub const MAX_KEYS: usize = 16;
/// How far a frame's seal may be from the receiver's clock, unless configured.
pub const CLOCK_SKEW: Nanos = 10 * SECONDS;

const TAG: usize = 16;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Trailer {
    /// Nanoseconds since the Unix epoch; greater in each frame of a sender.
    time: U64,
    tag: [u8; TAG],
}

/// One key with the id that frames name it by.
#[derive(Clone, Debug)]
pub struct Key {
    id: u8,
    /// The state behind the key's set-up, from which each frame's tag starts.
    mac: Aegis128LMac<TAG>,
}

impl Key {
    /// A key. Its first half is AEGIS-128L's key, its second half the nonce.
    #[must_use]
    pub fn new(id: u8, secret: &[u8; KEY_BYTES]) -> Key {
        let (mut key, mut nonce) = ([0; 16], [0; 16]);
        key.copy_from_slice(&secret[..16]);
        nonce.copy_from_slice(&secret[16..]);
        Key {
            id,
            mac: Aegis128LMac::new_with_nonce(&key, &nonce),
        }
    }

    /// The id.
    #[must_use]
    pub fn id(&self) -> u8 {
        self.id
    }

    fn tag(&self, bytes: &[u8]) -> [u8; TAG] {
        let mut mac = self.mac.clone();
        mac.update(bytes);
        mac.finalize()
    }

    /// Takes the same time whatever the tag.
    fn verifies(&self, bytes: &[u8], tag: &[u8; TAG]) -> bool {
        let mut mac = self.mac.clone();
        mac.update(bytes);
        mac.verify(tag).is_ok()
    }
}

/// The keys of a stream: frames are sealed with the first and opened with any.
#[derive(Clone, Debug)]
pub struct KeyRing(Vec<Key>);

impl KeyRing {
    /// From 1 to [`MAX_KEYS`] keys with different ids, otherwise `None`.
    #[must_use]
    pub fn new(keys: Vec<Key>) -> Option<KeyRing> {
        let distinct = keys
            .iter()
            .enumerate()
            .all(|(i, k)| keys[..i].iter().all(|o| o.id != k.id));
        (distinct && (1..=MAX_KEYS).contains(&keys.len())).then_some(KeyRing(keys))
    }

    /// The ids, that of the sealing key first.
    pub fn ids(&self) -> impl Iterator<Item = u8> + '_ {
        self.0.iter().map(Key::id)
    }

    fn find(&self, id: u8) -> Option<&Key> {
        self.0.iter().find(|k| k.id == id)
    }
}

/// Why a frame is not what a holder of the key has sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsealed {
    /// It has no seal.
    Unkeyed,
    /// Its key is not among those of the stream.
    UnknownKey(u8),
    /// Its tag is wrong: made without the key, or damaged.
    Forged,
    /// It was taken before, or was sealed before what counts as fresh.
    Replayed,
    /// It was sealed this long from the present: a replay, or the hosts' clocks differ.
    Stale(Nanos),
}

/// Whether the header of a frame says that it is sealed.
#[inline]
#[must_use]
pub fn is_keyed(bytes: &[u8]) -> bool {
    header(bytes).is_some_and(|h| h.has(flags::KEYED))
}

/// Seals and opens the frames of one stream.
#[derive(Debug)]
pub struct Seal {
    ring: KeyRing,
    skew: Nanos,
    /// When the last frame was sealed; each gets a later time.
    last: Nanos,
    sealed: u64,
    window: Window,
}

impl Seal {
    /// Control frames sealed before `wall`, the present, are taken for replays; all frames are whose
    /// seal is farther than `skew` from the time at which they are opened.
    #[must_use]
    pub fn new(ring: KeyRing, skew: Nanos, wall: Nanos) -> Seal {
        Seal {
            ring,
            skew,
            last: 0,
            sealed: 0,
            window: Window::new(wall),
        }
    }

    /// Takes other keys. What was opened stays known.
    pub fn set_keys(&mut self, ring: KeyRing) {
        self.ring = ring;
    }

    /// The keys in force.
    #[must_use]
    pub fn keys(&self) -> &KeyRing {
        &self.ring
    }

    /// Frames sealed so far.
    #[must_use]
    pub fn sealed(&self) -> u64 {
        self.sealed
    }

    /// Finishes the frame in the first `len` bytes of `buf`, and returns its new length.
    ///
    /// # Panics
    /// When `buf` has no [`TRAILER`] bytes behind the frame, or it is shorter than a header.
    #[inline]
    pub fn seal(&mut self, wall: Nanos, buf: &mut [u8], len: usize) -> usize {
        let key = &self.ring.0[0];
        self.last = wall.max(self.last + 1);
        self.sealed += 1;
        let [low, high] = [flags::KEYED as u8, key.id];
        buf[FLAGS] |= low;
        buf[FLAGS + 1] = high;
        let (end, whole) = (len + TRAILER - TAG, len + TRAILER);
        buf[len..end].copy_from_slice(&self.last.to_le_bytes());
        let tag = key.tag(&buf[..end]);
        buf[end..whole].copy_from_slice(&tag);
        whole
    }

    /// Checks a received frame that arrived at `wall`, and returns its length without the seal.
    ///
    /// A DATA or REPAIR twice is no harm: its messages are known by their numbers, and the same
    /// frame may come over two lines. Any other frame is taken once.
    ///
    /// # Errors
    /// Says why nothing of the frame may be used.
    #[inline]
    pub fn open(&mut self, wall: Nanos, bytes: &[u8]) -> Result<usize, Unsealed> {
        let header = header(bytes).ok_or(Unsealed::Forged)?;
        if !header.has(flags::KEYED) {
            return Err(Unsealed::Unkeyed);
        }
        let (frame, trailer) = Trailer::ref_from_suffix(bytes).map_err(|_| Unsealed::Forged)?;
        if frame.len() < HEADER {
            return Err(Unsealed::Forged);
        }
        let id = (header.flags.get() >> 8) as u8;
        let key = self.ring.find(id).ok_or(Unsealed::UnknownKey(id))?;
        if !key.verifies(&bytes[..bytes.len() - TAG], &trailer.tag) {
            return Err(Unsealed::Forged);
        }
        let time = trailer.time.get();
        if wall.abs_diff(time) > self.skew {
            return Err(Unsealed::Stale(wall.abs_diff(time)));
        }
        let idempotent = header.kind == Kind::Data as u8 || header.kind == Kind::Repair as u8;
        if !idempotent && !self.window.take(header.origin.get(), time) {
            return Err(Unsealed::Replayed);
        }
        Ok(frame.len())
    }
}

/// Where the header's flags are.
const FLAGS: usize = core::mem::offset_of!(Header, flags);
/// Senders whose control frames are told apart.
const SENDERS: usize = 256;
/// Control frames of one sender that may overtake each other.
const REORDER: usize = 16;

/// The seals of control frames that were taken.
#[derive(Debug)]
struct Window {
    senders: Vec<Sender>,
    /// What an unknown sender sealed before this is a replay.
    floor: Nanos,
}

/// The latest seals of one sender; what is older than all of them is not taken any more.
#[derive(Clone, Copy, Debug)]
struct Sender {
    origin: u32,
    seen: [Nanos; REORDER],
}

impl Window {
    fn new(floor: Nanos) -> Window {
        Window {
            senders: Vec::with_capacity(SENDERS),
            floor,
        }
    }

    fn take(&mut self, origin: u32, time: Nanos) -> bool {
        let at = match self.senders.iter().position(|s| s.origin == origin) {
            Some(at) => at,
            None if time <= self.floor => return false,
            None => self.admit(origin),
        };
        let seen = &mut self.senders[at].seen;
        let (mut oldest, mut known) = (0, false);
        for i in 0..REORDER {
            known |= seen[i] == time;
            if seen[i] < seen[oldest] {
                oldest = i;
            }
        }
        if known || time < seen[oldest] {
            return false;
        }
        seen[oldest] = time;
        true
    }

    /// A place for a new sender: a free one, or that of the one that was silent longest. Then only
    /// what was sealed after its last frame is taken from those who are not known.
    fn admit(&mut self, origin: u32) -> usize {
        let latest = |s: &Sender| s.seen.into_iter().max().unwrap_or(0);
        let at = if self.senders.len() < SENDERS {
            self.senders.len()
        } else {
            let silent = (0..SENDERS).min_by_key(|i| latest(&self.senders[*i])).unwrap_or(0);
            self.floor = self.floor.max(latest(&self.senders[silent]));
            silent
        };
        let sender = Sender {
            origin,
            seen: [self.floor; REORDER],
        };
        if at == self.senders.len() {
            self.senders.push(sender);
        } else {
            self.senders[at] = sender;
        }
        at
    }
}

#[cfg(test)]
mod tests;

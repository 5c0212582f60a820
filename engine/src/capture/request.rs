//! What a watcher asks for, the first bytes on its socket, and what it is told in return.

use seqcast_proto::wire::{Kind, peek};

/// Streams that can be named at once.
pub const STREAMS: usize = 16;
/// Bytes of a request.
pub const SIZE: usize = 36 + 4 * STREAMS;
/// In front of a request, and of what is told in return.
pub const MAGIC: [u8; 8] = *b"SQCAPTUR";

/// Which frames are wanted, and how much of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Bytes of a frame at most.
    pub snap: u32,
    /// Kinds by the bit of their number; other bytes than frames' are kind 0.
    pub kinds: u16,
    /// Streams; all without one.
    pub streams: Vec<u32>,
    /// The session; 0: all.
    pub session: u32,
    /// Numbers. Frames that name others only are left out; those that name none are not.
    pub first: u32,
    /// See `first`.
    pub last: u32,
}

impl Default for Request {
    fn default() -> Request {
        Request {
            snap: u32::from(u16::MAX),
            kinds: u16::MAX,
            streams: Vec::new(),
            session: 0,
            first: 0,
            last: u32::MAX,
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|word| word.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

impl Request {
    /// Little-endian: magic, snap, kinds, number of streams, session, first, last, 8 zeros, streams.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        let streams = &self.streams[..self.streams.len().min(STREAMS)];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&self.snap.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.kinds.to_le_bytes());
        bytes[14..16].copy_from_slice(&(streams.len() as u16).to_le_bytes());
        for (at, word) in [(16, self.session), (20, self.first), (24, self.last)] {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        for (stream, into) in streams.iter().zip(bytes[36..].chunks_mut(4)) {
            into.copy_from_slice(&stream.to_le_bytes());
        }
        bytes
    }

    /// Reads what [`Request::to_bytes`] wrote; `None` if it is something else.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; SIZE]) -> Option<Request> {
        let streams = usize::from(u16::from_le_bytes([bytes[14], bytes[15]]));
        if bytes[..8] != MAGIC || streams > STREAMS {
            return None;
        }
        Some(Request {
            snap: u32_at(bytes, 8),
            kinds: u16::from_le_bytes([bytes[12], bytes[13]]),
            streams: (0..streams).map(|at| u32_at(bytes, 36 + 4 * at)).collect(),
            session: u32_at(bytes, 16),
            first: u32_at(bytes, 20),
            last: u32_at(bytes, 24),
        })
    }

    /// Whether a frame is wanted.
    #[must_use]
    pub fn wants(&self, frame: &[u8]) -> bool {
        let Some((stream, kind)) = peek(frame) else {
            return self.kinds & 1 != 0 && self.streams.is_empty() && self.session == 0;
        };
        self.kinds >> (kind as u8) & 1 != 0
            && (self.streams.is_empty() || self.streams.contains(&stream.0))
            && (self.session == 0 || self.session == u32_at(frame, 8))
            && ((self.first, self.last) == (0, u32::MAX) || self.wants_numbers(kind, frame))
    }

    fn wants_numbers(&self, kind: Kind, frame: &[u8]) -> bool {
        let count = u32::from(u16::from_le_bytes([frame[24], frame[25]]));
        let overlaps = |first: u32, last: u32| first <= self.last && last >= self.first;
        let named = |size: usize| {
            (0..count as usize).any(|at| {
                let at = 32 + size * at;
                overlaps(u32_at(frame, at), u32_at(frame, at + 4))
            })
        };
        match kind {
            Kind::Data | Kind::Repair => {
                let first = u32_at(frame, 12);
                overlaps(first, first.saturating_add(count.saturating_sub(1)))
            }
            Kind::Ack | Kind::Nak => named(8),
            Kind::Unavailable => named(12),
            Kind::Heartbeat | Kind::End => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A NAK of stream 5, session 9, for numbers 3 to 4 and 10 to 20.
    fn nak() -> Vec<u8> {
        let mut frame = vec![0; 48];
        frame[..4].copy_from_slice(&[0x53, 0x51, seqcast_proto::wire::VERSION, 4]);
        (frame[4], frame[8], frame[24]) = (5, 9, 2);
        (frame[32], frame[36], frame[40], frame[44]) = (3, 4, 10, 20);
        frame
    }

    #[test]
    fn requests_come_back_and_others_are_refused() {
        let request = Request {
            snap: 64,
            kinds: 0b1010,
            streams: (1..=16).collect(),
            session: 7,
            first: 3,
            last: 9,
        };
        assert_eq!(Request::from_bytes(&request.to_bytes()), Some(request));
        let mut bytes = Request::default().to_bytes();
        bytes[14] = 17;
        assert_eq!(Request::from_bytes(&bytes), None);
        assert_eq!(Request::from_bytes(&[0; SIZE]), None);
    }

    #[test]
    fn frames_are_chosen_by_stream_session_kind_and_number() {
        let wants = |request: Request| request.wants(&nak());
        let all = Request::default;
        assert!(wants(all()));
        assert!(wants(Request {
            streams: vec![4, 5],
            ..all()
        }));
        assert!(!wants(Request {
            streams: vec![4],
            ..all()
        }));
        assert!(wants(Request { session: 9, ..all() }) && !wants(Request { session: 8, ..all() }));
        assert!(wants(Request { kinds: 1 << 4, ..all() }) && !wants(Request { kinds: 1 << 5, ..all() }));
        for (first, last, wanted) in [
            (0, 2, false),
            (4, 4, true),
            (5, 9, false),
            (15, 99, true),
            (21, 99, false),
        ] {
            assert_eq!(wants(Request { first, last, ..all() }), wanted, "{first} to {last}");
        }
        let mut data = nak();
        (data[3], data[12]) = (1, 100);
        let numbers = |first, last| Request { first, last, ..all() }.wants(&data);
        assert!(numbers(101, 200) && numbers(1, 100) && !numbers(102, 200) && !numbers(1, 99));
        // What is no frame is wanted only if nothing else is asked for; cut frames name nothing.
        assert!(all().wants(b"?") && !Request { kinds: 2, ..all() }.wants(b"?"));
        let cut = nak();
        assert!(
            !Request {
                first: 15,
                last: 99,
                ..all()
            }
            .wants(&cut[..40])
        );
    }
}

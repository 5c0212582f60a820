//! What a watcher gets, one behind the other: a head, then as many bytes of a frame as were asked for.

use std::net::{Ipv4Addr, SocketAddrV4};

/// Bytes of a head.
pub const HEAD: usize = 32;

/// Which way a frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The engine received it.
    In,
    /// The engine sent it.
    Out,
}

/// What is known of a frame besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// When the engine handled it, ns since the Unix epoch; frames of one batch share it.
    pub time: u64,
    /// Frames wanted that found no room since the one before.
    pub dropped: u32,
    /// Bytes of the whole frame.
    pub length: u32,
    /// Who sent it.
    pub from: SocketAddrV4,
    /// To whom.
    pub to: SocketAddrV4,
    /// Which way it went.
    pub way: Way,
}

impl Head {
    const NOBODY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);

    pub(super) fn received(time: u64) -> Head {
        Head {
            time,
            dropped: 0,
            length: 0,
            from: Head::NOBODY,
            to: Head::NOBODY,
            way: Way::In,
        }
    }

    pub(super) fn sent(time: u64) -> Head {
        Head {
            way: Way::Out,
            ..Head::received(time)
        }
    }

    /// Little-endian: time, dropped, length, address and port of both ends, way, 3 zeros.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[..8].copy_from_slice(&self.time.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.dropped.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.length.to_le_bytes());
        for (at, address) in [(16, self.from), (22, self.to)] {
            bytes[at..at + 4].copy_from_slice(&address.ip().octets());
            bytes[at + 4..at + 6].copy_from_slice(&address.port().to_le_bytes());
        }
        bytes[28] = u8::from(self.way == Way::Out);
        bytes
    }

    /// Reads what [`Head::to_bytes`] wrote.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; HEAD]) -> Head {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, rest @ ..] = *bytes;
        let address = |at: usize| {
            let ip = Ipv4Addr::new(rest[at], rest[at + 1], rest[at + 2], rest[at + 3]);
            SocketAddrV4::new(ip, u16::from_le_bytes([rest[at + 4], rest[at + 5]]))
        };
        Head {
            time: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            dropped: u32::from_le_bytes([i, j, k, l]),
            length: u32::from_le_bytes([m, n, o, p]),
            from: address(0),
            to: address(6),
            way: if rest[12] == 0 { Way::In } else { Way::Out },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_come_back() {
        let head = Head {
            time: 0x1122_3344_5566_7788,
            dropped: 9,
            length: 1472,
            from: "10.0.0.1:4660".parse().unwrap(),
            to: "239.1.1.1:5000".parse().unwrap(),
            way: Way::Out,
        };
        assert_eq!(Head::from_bytes(&head.to_bytes()), head);
    }
}

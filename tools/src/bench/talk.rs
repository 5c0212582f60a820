//! What both ends say to each other: messages with a head of fixed length.

/// Bytes of a head, and of the shortest message.
pub(super) const HEAD: usize = 32;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Near: is anybody there? Far: here, followed by a description of the end.
    Hello = 1,
    /// Near: to be answered. Far: the answer, as long.
    Ping = 2,
    /// Near: to be counted.
    Stream = 3,
    /// Far: what was counted in this phase.
    Count = 4,
    /// Near: it is over.
    Bye = 5,
}

/// The head of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    /// What is being measured: answers to an earlier question are not mixed up with later ones.
    pub(super) phase: u32,
    /// The message's number in the phase; of a count: how many came in order.
    pub(super) number: u64,
    /// When the near end sent it, in ns of its monotonic clock. Of a count: the far end's.
    pub(super) sent: u64,
    /// When the far end had it, in ns of its wall clock.
    pub(super) wall: u64,
}

impl Head {
    pub(super) fn write(&self, to: &mut [u8]) {
        to[0] = self.kind as u8;
        to[4..8].copy_from_slice(&self.phase.to_le_bytes());
        to[8..16].copy_from_slice(&self.number.to_le_bytes());
        to[16..24].copy_from_slice(&self.sent.to_le_bytes());
        to[24..32].copy_from_slice(&self.wall.to_le_bytes());
    }

    /// `None` for what no bench has written.
    #[inline]
    pub(super) fn read(bytes: &[u8]) -> Option<Head> {
        let head = bytes.first_chunk::<HEAD>()?;
        let kind = match head[0] {
            1 => Kind::Hello,
            2 => Kind::Ping,
            3 => Kind::Stream,
            4 => Kind::Count,
            5 => Kind::Bye,
            _ => return None,
        };
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
        Some(Head {
            kind,
            phase: u32::from_le_bytes(std::array::from_fn(|i| head[4 + i])),
            number: word(8),
            sent: word(16),
            wall: word(24),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_as_they_were_written_and_nothing_else_is() {
        let head = Head {
            kind: Kind::Count,
            phase: 7,
            number: u64::MAX,
            sent: 3,
            wall: 1 << 60,
        };
        let mut bytes = [0; HEAD];
        head.write(&mut bytes);
        assert_eq!(Head::read(&bytes), Some(head));
        assert_eq!(Head::read(&bytes[1..]), None);
        bytes[0] = 9;
        assert_eq!(Head::read(&bytes), None);
    }
}

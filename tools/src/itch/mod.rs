//! Nasdaq TotalView-ITCH 5.0: made sessions to publish, and a description of any file of it.

mod describe;
mod generate;
mod random;

pub use describe::{Description, Problem, TypeCount, describe};
pub use generate::{Generator, Length, Spec, SpecError};

/// The length in bytes of a message of type `kind`, or `None` if ITCH 5.0 has no such type.
#[must_use]
pub fn message_length(kind: u8) -> Option<usize> {
    Some(match kind {
        b'S' | b'W' => 12,
        b'D' | b'B' => 19,
        b'Y' | b'N' => 20,
        b'h' => 21,
        b'X' => 23,
        b'H' => 25,
        b'L' => 26,
        b'K' => 28,
        b'E' => 31,
        b'V' | b'J' | b'U' => 35,
        b'A' | b'C' => 36,
        b'R' => 39,
        b'F' | b'Q' => 40,
        b'P' => 44,
        b'O' => 48,
        b'I' => 50,
        _ => return None,
    })
}

/// The name of a message type, for people.
#[must_use]
pub fn message_name(kind: u8) -> &'static str {
    match kind {
        b'S' => "system event",
        b'R' => "stock directory",
        b'H' => "trading action",
        b'Y' => "Reg SHO restriction",
        b'L' => "market participant position",
        b'V' => "MWCB decline level",
        b'W' => "MWCB status",
        b'K' => "IPO quoting period",
        b'J' => "LULD auction collar",
        b'h' => "operational halt",
        b'A' => "add order",
        b'F' => "add order with MPID",
        b'E' => "order executed",
        b'C' => "order executed with price",
        b'X' => "order cancel",
        b'D' => "order delete",
        b'U' => "order replace",
        b'P' => "trade",
        b'Q' => "cross trade",
        b'B' => "broken trade",
        b'I' => "net order imbalance",
        b'N' => "retail price improvement",
        b'O' => "direct listing price discovery",
        _ => "unknown",
    }
}

/// The time stamp of a message in ns since midnight, or `None` if it is too short to hold one.
#[must_use]
pub fn timestamp_ns(message: &[u8]) -> Option<u64> {
    let bytes = message.get(5..11)?;
    Some(bytes.iter().fold(0, |t, &b| t << 8 | u64::from(b)))
}

//! Records as a packet capture (pcapng) that Wireshark and its like open.
//!
//! Each record becomes the DATA frame that carried it, with headers made anew: the archive keeps
//! what a frame said, not from whom it came.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result};
use seqcast_proto::seq::Stream;
use seqcast_proto::wire::{self, Kind, Stamp};

use super::select::Taken;
use crate::pcapng::{self, Packet};

/// The address of the made headers' sender: one that no network uses (RFC 5737).
pub const SENDER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The group and port that `stream`'s identity was derived from, if it was: identities hold the
/// lower half of the group only, so the upper one is taken to be 239.0.
#[must_use]
pub fn derived_group(stream: Stream) -> SocketAddrV4 {
    let [c, d, high, low] = stream.0.to_be_bytes();
    SocketAddrV4::new(Ipv4Addr::new(239, 0, c, d), u16::from_be_bytes([high, low]))
}

/// Writes a capture.
#[derive(Debug)]
pub struct Writer<W> {
    out: pcapng::Writer<W>,
    stream: Stream,
    group: SocketAddrV4,
    frame: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Starts a capture of `stream` as if sent to `group`. `out` should be buffered.
    ///
    /// # Errors
    /// When writing fails.
    pub fn new(out: W, stream: Stream, group: SocketAddrV4) -> io::Result<Writer<W>> {
        Ok(Writer {
            out: pcapng::Writer::new(out, "seqcast archive", "")?,
            stream,
            group,
            frame: Vec::new(),
        })
    }

    /// Writes one packet: a DATA frame with these messages, at the time the archive received them.
    ///
    /// # Errors
    /// When the messages fit no datagram, or writing fails.
    pub fn write(&mut self, taken: &Taken<'_>) -> Result<()> {
        let stamp = Stamp {
            stream: self.stream,
            session: taken.session,
            sequence: taken.block.first(),
            time: taken.sent,
            flags: 0,
            origin: taken.meta.origin,
        };
        let length = wire::HEADER + taken.block.bytes().len();
        self.frame.resize(length, 0);
        stamp.block(&mut self.frame, Kind::Data, &taken.block);
        let packet = Packet {
            time: taken.received,
            from: SocketAddrV4::new(SENDER, self.group.port()),
            to: self.group,
            way: None,
            payload: &self.frame,
            length,
            dropped: 0,
        };
        let written = self.out.write(&packet);
        written.with_context(|| format!("number {}", taken.block.first()))
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.flush()
    }
}

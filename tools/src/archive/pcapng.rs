//! Records as a packet capture (pcapng) that Wireshark and its like open.
//!
//! Each record becomes the DATA frame that carried it, with headers made anew: the archive keeps
//! what a frame said, not from whom it came.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result};
use seqcast_engine::link::group_mac;
use seqcast_proto::seq::Stream;
use seqcast_proto::wire::{self, Kind, Stamp};

use super::select::Taken;

/// The address of the made headers' sender: one that no network uses (RFC 5737).
pub const SENDER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;
/// The made sender's Ethernet address: a locally administered one.
const SENDER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
const LINKTYPE_ETHERNET: u16 = 1;
const OPTION_IF_NAME: u16 = 2;
const OPTION_IF_TSRESOL: u16 = 9;

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
    out: W,
    stream: Stream,
    group: SocketAddrV4,
    frame: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Starts a capture of `stream` as if sent to `group`. `out` should be buffered.
    ///
    /// # Errors
    /// When writing fails.
    pub fn new(mut out: W, stream: Stream, group: SocketAddrV4) -> io::Result<Writer<W>> {
        let mut section = Vec::new();
        section.extend(0x1a2b_3c4d_u32.to_le_bytes()); // tells the byte order
        section.extend(1u16.to_le_bytes()); // version 1.0
        section.extend(0u16.to_le_bytes());
        section.extend(u64::MAX.to_le_bytes()); // length not known
        block(&mut out, SECTION, &[&section])?;

        let mut interface = Vec::new();
        interface.extend(LINKTYPE_ETHERNET.to_le_bytes());
        interface.extend(0u16.to_le_bytes());
        interface.extend(0u32.to_le_bytes()); // no limit on a packet's length
        option(&mut interface, OPTION_IF_NAME, b"seqcast archive");
        option(&mut interface, OPTION_IF_TSRESOL, &[9]); // times are in 10^-9 s
        option(&mut interface, 0, &[]);
        block(&mut out, INTERFACE, &[&interface])?;
        let frame = Vec::new();
        Ok(Writer {
            out,
            stream,
            group,
            frame,
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
        let payload = wire::HEADER + taken.block.bytes().len();
        self.frame.resize(ETHERNET + IPV4 + UDP + payload, 0);
        let (headers, body) = self.frame.split_at_mut(ETHERNET + IPV4 + UDP);
        stamp.block(body, Kind::Data, &taken.block);
        put_headers(headers, body, self.group)
            .with_context(|| format!("number {} fits no datagram", taken.block.first()))?;

        let [high, low] = [(taken.received >> 32) as u32, taken.received as u32];
        let length = self.frame.len() as u32;
        let fields = [0, high, low, length, length].map(u32::to_le_bytes);
        let padding = [0; 3];
        let parts = [fields.as_flattened(), &self.frame, &padding[..pad(self.frame.len())]];
        Ok(block(&mut self.out, PACKET, &parts)?)
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Fills in Ethernet, IPv4 and UDP headers before `body`; `None` if it is too long for them.
fn put_headers(headers: &mut [u8], body: &[u8], group: SocketAddrV4) -> Option<()> {
    let udp_length = u16::try_from(UDP + body.len()).ok()?;
    let ip_length = u16::try_from(IPV4 + UDP + body.len()).ok()?;
    let (ethernet, rest) = headers.split_at_mut(ETHERNET);
    let (ip, udp) = rest.split_at_mut(IPV4);
    ethernet[..6].copy_from_slice(&group_mac(*group.ip()));
    ethernet[6..12].copy_from_slice(&SENDER_MAC);
    ethernet[12..].copy_from_slice(&[0x08, 0x00]);

    ip.fill(0);
    ip[0] = 0x45; // version 4, no options
    ip[2..4].copy_from_slice(&ip_length.to_be_bytes());
    ip[6] = 0x40; // do not fragment
    ip[8] = 1; // TTL
    ip[9] = 17; // UDP
    ip[12..16].copy_from_slice(&SENDER.octets());
    ip[16..].copy_from_slice(&group.ip().octets());
    let sum = !fold(sum(ip));
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    for port in [0, 2] {
        udp[port..port + 2].copy_from_slice(&group.port().to_be_bytes());
    }
    udp[4..6].copy_from_slice(&udp_length.to_be_bytes());
    udp[6..].fill(0);
    let pseudo = sum_of_addresses(ip) + 17 + u64::from(udp_length);
    let sum = match !fold(pseudo + self::sum(udp) + self::sum(body)) {
        0 => u16::MAX, // 0 would say that there is none
        sum => sum,
    };
    udp[6..].copy_from_slice(&sum.to_be_bytes());
    Some(())
}

fn sum_of_addresses(ip: &[u8]) -> u64 {
    sum(&ip[12..20])
}

/// The sum of big-endian words, the last one padded with zero.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(2).map(|word| match *word {
        [high, low] => u64::from(u16::from_be_bytes([high, low])),
        [high] => u64::from(high) << 8,
        _ => 0,
    });
    words.sum()
}

/// Ones' complement of the carries; two folds take any sum of a datagram's words.
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// One block: type, length, parts (together a multiple of 4 bytes), length again.
fn block(out: &mut impl Write, kind: u32, parts: &[&[u8]]) -> io::Result<()> {
    let length = 12 + parts.iter().map(|part| part.len()).sum::<usize>() as u32;
    out.write_all(&kind.to_le_bytes())?;
    out.write_all(&length.to_le_bytes())?;
    for part in parts {
        out.write_all(part)?;
    }
    out.write_all(&length.to_le_bytes())
}

fn option(into: &mut Vec<u8>, code: u16, value: &[u8]) {
    into.extend(code.to_le_bytes());
    into.extend((value.len() as u16).to_le_bytes());
    into.extend(value);
    into.extend(&[0; 3][..pad(value.len())]);
}

fn pad(length: usize) -> usize {
    length.next_multiple_of(4) - length
}

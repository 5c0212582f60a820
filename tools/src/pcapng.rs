//! Packet captures (pcapng) that Wireshark and its like open: UDP payloads, with headers made for them.
//!
//! What a link hands out has no headers any more, or never had any in user space; addresses and ports are
//! true, the rest is as it would be.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddrV4};

use seqcast_engine::capture::record::Way;
use seqcast_engine::link::group_mac;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;
const HEADERS: usize = ETHERNET + IPV4 + UDP;

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
const LINKTYPE_ETHERNET: u16 = 1;
const OPTION_COMMENT: u16 = 1;
const OPTION_IF_NAME: u16 = 2;
const OPTION_IF_TSRESOL: u16 = 9;
const OPTION_FLAGS: u16 = 2;
const OPTION_DROPS: u16 = 4;
const OPTION_RECEIVED: u16 = 4;
const OPTION_IF_DROPS: u16 = 5;

/// A datagram.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// ns since the Unix epoch.
    pub time: u64,
    /// Who sent it.
    pub from: SocketAddrV4,
    /// To whom.
    pub to: SocketAddrV4,
    /// Which way it went, if that is known.
    pub way: Option<Way>,
    /// Its payload, or the first bytes of it.
    pub payload: &'a [u8],
    /// Bytes of the whole payload.
    pub length: usize,
    /// Packets lost to the capture since the one before.
    pub dropped: u32,
}

/// Writes a capture.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    block: Vec<u8>,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// Starts a capture of what `name` carries. `out` should be buffered.
    ///
    /// # Errors
    /// When writing fails.
    pub fn new(out: W, name: &str, comment: &str) -> io::Result<Writer<W>> {
        let mut writer = Writer {
            out,
            block: Vec::new(),
            written: 0,
        };
        let section = &mut writer.block;
        section.extend(0x1a2b_3c4d_u32.to_le_bytes()); // tells the byte order
        section.extend(1u16.to_le_bytes()); // version 1.0
        section.extend(0u16.to_le_bytes());
        section.extend(u64::MAX.to_le_bytes()); // length not known
        writer.put(SECTION)?;

        let interface = &mut writer.block;
        interface.extend(LINKTYPE_ETHERNET.to_le_bytes());
        interface.extend(0u16.to_le_bytes());
        interface.extend(0u32.to_le_bytes()); // no limit on a packet's length
        if !comment.is_empty() {
            option(interface, OPTION_COMMENT, comment.as_bytes());
        }
        option(interface, OPTION_IF_NAME, name.as_bytes());
        option(interface, OPTION_IF_TSRESOL, &[9]); // times are in 10^-9 s
        option(interface, 0, &[]);
        writer.put(INTERFACE)?;
        Ok(writer)
    }

    /// Bytes written so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Writes one packet.
    ///
    /// # Errors
    /// When it fits no datagram, or writing fails.
    pub fn write(&mut self, packet: &Packet<'_>) -> anyhow::Result<()> {
        let headers = headers(packet).ok_or_else(|| anyhow::anyhow!("{} bytes fit no datagram", packet.length))?;
        let kept = HEADERS + packet.payload.len();
        let [high, low] = [(packet.time >> 32) as u32, packet.time as u32];
        let fields = [0, high, low, kept as u32, (HEADERS + packet.length) as u32];
        let block = &mut self.block;
        block.extend(fields.map(u32::to_le_bytes).as_flattened());
        block.extend(headers);
        block.extend(packet.payload);
        block.extend(&[0; 3][..pad(kept)]);
        if let Some(way) = packet.way {
            // Direction, and whether it was multicast.
            let way = if way == Way::In { 1 } else { 2 };
            let cast = if packet.to.ip().is_multicast() { 2 } else { 1 };
            option(block, OPTION_FLAGS, &u32::to_le_bytes(way | cast << 2));
        }
        if packet.dropped > 0 {
            option(block, OPTION_DROPS, &u64::from(packet.dropped).to_le_bytes());
        }
        if packet.way.is_some() || packet.dropped > 0 {
            option(block, 0, &[]);
        }
        Ok(self.put(PACKET)?)
    }

    /// Writes how many packets were captured and lost, all in all.
    ///
    /// # Errors
    /// When writing fails.
    pub fn statistics(&mut self, time: u64, received: u64, dropped: u64) -> io::Result<()> {
        let block = &mut self.block;
        let [high, low] = [(time >> 32) as u32, time as u32];
        block.extend([0, high, low].map(u32::to_le_bytes).as_flattened());
        option(block, OPTION_RECEIVED, &(received + dropped).to_le_bytes());
        option(block, OPTION_IF_DROPS, &dropped.to_le_bytes());
        option(block, 0, &[]);
        self.put(STATISTICS)
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// When writing fails.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Writes what was put together as a block: type, length, parts (a multiple of 4 bytes), length again.
    fn put(&mut self, kind: u32) -> io::Result<()> {
        let length = (12 + self.block.len()) as u32;
        self.out.write_all(&kind.to_le_bytes())?;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(&self.block)?;
        self.out.write_all(&length.to_le_bytes())?;
        self.written += u64::from(length);
        self.block.clear();
        Ok(())
    }
}

/// An Ethernet address that a host with this address might have: a locally administered one.
fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    if address.is_multicast() {
        group_mac(address)
    } else {
        [0x02, 0, a, b, c, d]
    }
}

/// Ethernet, IPv4 and UDP headers for a packet; `None` if it is too long for them.
fn headers(packet: &Packet<'_>) -> Option<[u8; HEADERS]> {
    let udp_length = u16::try_from(UDP + packet.length).ok()?;
    let ip_length = u16::try_from(IPV4 + UDP + packet.length).ok()?;
    let mut headers = [0; HEADERS];
    let (ethernet, rest) = headers.split_at_mut(ETHERNET);
    let (ip, udp) = rest.split_at_mut(IPV4);
    ethernet[..6].copy_from_slice(&mac(*packet.to.ip()));
    ethernet[6..12].copy_from_slice(&mac(*packet.from.ip()));
    ethernet[12..].copy_from_slice(&[0x08, 0x00]);

    ip[0] = 0x45; // version 4, no options
    ip[2..4].copy_from_slice(&ip_length.to_be_bytes());
    ip[6] = 0x40; // do not fragment
    ip[8] = 1; // TTL
    ip[9] = 17; // UDP
    ip[12..16].copy_from_slice(&packet.from.ip().octets());
    ip[16..].copy_from_slice(&packet.to.ip().octets());
    let check = !fold(sum(ip));
    ip[10..12].copy_from_slice(&check.to_be_bytes());

    udp[..2].copy_from_slice(&packet.from.port().to_be_bytes());
    udp[2..4].copy_from_slice(&packet.to.port().to_be_bytes());
    udp[4..6].copy_from_slice(&udp_length.to_be_bytes());
    // Of what is cut short there is none.
    if packet.payload.len() == packet.length {
        let pseudo = sum_of_addresses(ip) + 17 + u64::from(udp_length);
        let check = match !fold(pseudo + sum(udp) + sum(packet.payload)) {
            0 => u16::MAX, // 0 would say that there is none
            check => check,
        };
        udp[6..].copy_from_slice(&check.to_be_bytes());
    }
    Some(headers)
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

fn option(into: &mut Vec<u8>, code: u16, value: &[u8]) {
    into.extend(code.to_le_bytes());
    into.extend((value.len() as u16).to_le_bytes());
    into.extend(value);
    into.extend(&[0; 3][..pad(value.len())]);
}

fn pad(length: usize) -> usize {
    length.next_multiple_of(4) - length
}

//! Ethernet, IPv4 and UDP headers: read defensively, written in place.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;

const ETHERNET: usize = 14;
const IP: usize = 20;
const UDP: usize = 8;
const TAG: usize = 4;
const MAX_TAGS: usize = 2;

/// Bytes in front of the payload of what we send.
pub(super) const HEADERS: usize = ETHERNET + IP + UDP;
/// IP and UDP headers: what the MTU counts besides the payload.
pub(super) const IP_UDP: usize = IP + UDP;
/// Bytes that a frame may have on top of the MTU: Ethernet header and VLAN tags.
pub(super) const LINK_OVERHEAD: u32 = (ETHERNET + MAX_TAGS * TAG) as u32;

const IPV4: [u8; 2] = [0x08, 0x00];
const VLAN: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];
const PROTOCOL_UDP: u8 = 17;
const DO_NOT_FRAGMENT: [u8; 2] = [0x40, 0x00];

/// What a received frame says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) from: SocketAddrV4,
    pub(super) to: SocketAddrV4,
    /// Who put the frame on this wire: the sender, or the router on its side.
    pub(super) mac: [u8; 6],
    pub(super) tagged: bool,
    /// Where in the frame the UDP payload lies.
    pub(super) payload: Range<usize>,
}

/// Reads a frame by the filter's rules: up to two VLAN tags, IPv4 without options or fragments,
/// UDP, every length within the one around it. `None` for anything else.
#[inline]
pub(super) fn parse(frame: &[u8]) -> Option<Received> {
    let (ethernet, mut rest) = frame.split_first_chunk::<ETHERNET>()?;
    let mut kind = [ethernet[12], ethernet[13]];
    let mut tagged = false;
    for _ in 0..MAX_TAGS {
        if !VLAN.contains(&kind) {
            break;
        }
        let (tag, behind) = rest.split_first_chunk::<TAG>()?;
        kind = [tag[2], tag[3]];
        rest = behind;
        tagged = true;
    }
    let (ip, behind) = rest.split_first_chunk::<IP>()?;
    let fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff;
    if kind != IPV4 || ip[0] != 0x45 || fragment != 0 || ip[9] != PROTOCOL_UDP {
        return None;
    }
    let udp = behind.first_chunk::<UDP>()?;
    let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    let length = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
    if length < UDP || IP + length > total || total > rest.len() {
        return None;
    }
    let payload = frame.len() - behind.len() + UDP;
    Some(Received {
        from: endpoint(&ip[12..16], &udp[..2]),
        to: endpoint(&ip[16..20], &udp[2..4]),
        mac: [
            ethernet[6],
            ethernet[7],
            ethernet[8],
            ethernet[9],
            ethernet[10],
            ethernet[11],
        ],
        tagged,
        payload: payload..payload + length - UDP,
    })
}

#[inline]
fn endpoint(address: &[u8], port: &[u8]) -> SocketAddrV4 {
    let address = Ipv4Addr::new(address[0], address[1], address[2], address[3]);
    SocketAddrV4::new(address, u16::from_be_bytes([port[0], port[1]]))
}

/// The headers of all packets from one place to another, but for what depends on the payload.
#[derive(Clone, Debug)]
pub(super) struct Headers {
    to: SocketAddrV4,
    /// With lengths and checksums of 0.
    bytes: [u8; HEADERS],
    /// Sums of `bytes`, for the checksums: the IP header, and the UDP header with its pseudo-header.
    ip: u64,
    udp: u64,
}

impl Headers {
    /// `mac` is the source's and the destination's.
    pub(super) fn new(mac: ([u8; 6], [u8; 6]), from: SocketAddrV4, to: SocketAddrV4, ttl: u8) -> Headers {
        let mut bytes = [0; HEADERS];
        let (ethernet, datagram) = bytes.split_at_mut(ETHERNET);
        ethernet[..6].copy_from_slice(&mac.1);
        ethernet[6..12].copy_from_slice(&mac.0);
        ethernet[12..].copy_from_slice(&IPV4);
        let (ip, udp) = datagram.split_at_mut(IP);
        // An unfragmented datagram needs no identification (RFC 6864).
        ip[..2].copy_from_slice(&[0x45, 0]);
        ip[6..8].copy_from_slice(&DO_NOT_FRAGMENT);
        ip[8..10].copy_from_slice(&[ttl, PROTOCOL_UDP]);
        ip[12..16].copy_from_slice(&from.ip().octets());
        ip[16..].copy_from_slice(&to.ip().octets());
        udp[..2].copy_from_slice(&from.port().to_be_bytes());
        udp[2..4].copy_from_slice(&to.port().to_be_bytes());
        Headers {
            ip: sum(ip),
            udp: sum(&ip[12..]) + sum(&[0, PROTOCOL_UDP]) + sum(udp),
            to,
            bytes,
        }
    }

    /// Where the packets go.
    pub(super) fn to(&self) -> SocketAddrV4 {
        self.to
    }

    /// Writes the headers in front of the `payload` bytes that lie at [`HEADERS`] already, with the UDP
    /// checksum: no NIC computes it for AF_XDP unasked, and a receiver without AF_XDP checks it.
    ///
    /// The whole datagram must fit `frame` and a `u16`, which the MTU ensures.
    #[inline]
    pub(super) fn write(&self, frame: &mut [u8], payload: usize) {
        let total = ((IP + UDP + payload) as u16).to_be_bytes();
        let length = ((UDP + payload) as u16).to_be_bytes();
        let (headers, body) = frame.split_at_mut(HEADERS);
        headers.copy_from_slice(&self.bytes);
        let (ip, udp) = headers[ETHERNET..].split_at_mut(IP);
        ip[2..4].copy_from_slice(&total);
        let checksum = !fold(self.ip + sum(&total));
        ip[10..12].copy_from_slice(&checksum.to_ne_bytes());
        udp[4..6].copy_from_slice(&length);
        // The length is in the pseudo-header as well.
        let checksum = !fold(self.udp + 2 * sum(&length) + sum(&body[..payload]));
        // 0 would mean "no checksum"; all ones is the same number in this arithmetic.
        let checksum = if checksum == 0 { u16::MAX } else { checksum };
        udp[6..].copy_from_slice(&checksum.to_ne_bytes());
    }
}

/// Sum of the 16-bit words, in any byte order of the machine: swapping the bytes of all words
/// swaps those of the folded sum (RFC 1071).
#[inline]
fn sum(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() >= WIDE && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function was compiled for.
        return unsafe { sum_wide(bytes) };
    }
    sum_words(bytes)
}

/// Bytes from which on wider registers gain more than asking for them takes.
#[cfg(target_arch = "x86_64")]
const WIDE: usize = 128;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_wide(bytes: &[u8]) -> u64 {
    sum_words(bytes)
}

/// Adds both halves of 64 bits at a time, which the compiler turns into vector code; 64 bits hold the
/// sum of more than any datagram.
#[inline(always)]
fn sum_words(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let (mut low, mut high) = (0, 0);
    for word in words {
        let word = u64::from_ne_bytes(*word);
        low += word & u64::from(u32::MAX);
        high += word >> 32;
    }
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        let word = u64::from_ne_bytes(last);
        low += (word & u64::from(u32::MAX)) + (word >> 32);
    }
    low + high
}

#[inline]
fn fold(sum: u64) -> u16 {
    let mut sum = (sum >> 32) + (sum & 0xffff_ffff);
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 4000);
    const TO: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 1, 2, 3), 31001);
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn sample(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xee; HEADERS];
        frame.extend(payload);
        Headers::new((MAC, [1, 0, 0x5e, 1, 2, 3]), FROM, TO, 8).write(&mut frame, payload.len());
        frame
    }

    /// The textbook sum: big-endian words, one at a time.
    fn slow_checksum(parts: &[&[u8]]) -> u16 {
        let bytes: Vec<u8> = parts.concat();
        let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        let mut sum: u32 = bytes.chunks(2).map(word).sum();
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        !(sum as u16)
    }

    #[test]
    fn what_is_written_is_read_back() {
        for length in [0, 1, 2, 3, 4, 5, 63, 64, 1471, 1472] {
            let payload: Vec<u8> = (0..length).map(|i| (i * 7) as u8).collect();
            let frame = sample(&payload);
            let expected = Received {
                from: FROM,
                to: TO,
                mac: MAC,
                tagged: false,
                payload: HEADERS..HEADERS + length,
            };
            assert_eq!(parse(&frame), Some(expected));
            assert_eq!(frame[HEADERS..], payload);
        }
    }

    #[test]
    fn checksums_are_the_textbook_ones() {
        for length in 0..130 {
            let payload: Vec<u8> = (0..length).map(|i| (i * 151 + 3) as u8).collect();
            let frame = sample(&payload);
            let (ip, udp) = frame[ETHERNET..].split_at(IP);
            assert_eq!(slow_checksum(&[ip]), 0);
            let pseudo_header = [&ip[12..20], &[0, PROTOCOL_UDP], &udp[4..6]].concat();
            assert_eq!(slow_checksum(&[&pseudo_header, udp]), 0, "{length} bytes");
        }
    }

    #[test]
    fn a_checksum_of_zero_is_sent_as_all_ones() {
        let udp_checksum = |word: u16| {
            let frame = sample(&word.to_be_bytes());
            u16::from_be_bytes([frame[ETHERNET + IP + 6], frame[ETHERNET + IP + 7]])
        };
        let checksums: Vec<u16> = (0..=u16::MAX).map(udp_checksum).collect();
        assert!(!checksums.contains(&0));
        assert!(checksums.contains(&u16::MAX));
    }

    #[test]
    fn tags_are_skipped_and_told() {
        let plain = sample(b"seqcast");
        let mut tagged = plain[..12].to_vec();
        tagged.extend([0x88, 0xa8, 0, 7, 0x81, 0, 0, 9]);
        tagged.extend(&plain[12..]);
        let received = parse(&tagged).unwrap();
        assert!(received.tagged);
        assert_eq!(&tagged[received.payload], b"seqcast");
        tagged.splice(12..12, [0x81, 0, 0, 1]);
        assert_eq!(parse(&tagged), None);
    }

    #[test]
    fn padding_is_not_payload() {
        let mut frame = sample(b"abc");
        frame.resize(60, 0);
        assert_eq!(parse(&frame).unwrap().payload, HEADERS..HEADERS + 3);
    }

    #[test]
    fn a_frame_cut_anywhere_is_refused() {
        let frame = sample(b"seqcast");
        for length in 0..frame.len() {
            assert_eq!(parse(&frame[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn no_single_byte_leads_out_of_the_frame() {
        let frame = sample(b"seqcast");
        for at in 0..HEADERS {
            for value in 0..=u8::MAX {
                let mut changed = frame.clone();
                changed[at] = value;
                if let Some(received) = parse(&changed) {
                    assert!(received.payload.start >= HEADERS && received.payload.end <= changed.len());
                }
            }
        }
    }
}

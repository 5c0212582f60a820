//! What the kernel tells of an interface over netlink, and what can be set there: `rtnetlink(7)`, and
//! the kernel's `ethtool-netlink` interface, whose numbers these are.

use std::io;

use netlink_packet_core::{
    DefaultNla, Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};

use super::facts::{Channels, Coalesce, Feature, Link, Pause, Rings};

const NESTED: u16 = 1 << 15;
/// Answers that are read for one question at most: those of a dump of some ten thousand interfaces.
const MOST_ANSWERS: usize = 1 << 16;

/// One message: its type, and what follows netlink's own header.
#[derive(Debug)]
struct Raw {
    kind: u16,
    bytes: Vec<u8>,
}

impl NetlinkSerializable for Raw {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.bytes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..self.bytes.len()].copy_from_slice(&self.bytes);
    }
}

impl NetlinkDeserializable for Raw {
    type Error = std::convert::Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Raw, Self::Error> {
        Ok(Raw {
            kind: header.message_type,
            bytes: payload.to_vec(),
        })
    }
}

/// Attributes of a message.
#[derive(Default)]
struct Attributes(Vec<(u16, Vec<u8>)>);

impl Attributes {
    /// Those that are whole.
    fn read(bytes: &[u8]) -> Attributes {
        let all = NlasIterator::new(bytes).map_while(Result::ok);
        // The upper two bits are flags.
        Attributes(all.map(|a| (a.kind() & 0x3fff, a.value().to_vec())).collect())
    }

    fn get(&self, kind: u16) -> Option<&[u8]> {
        self.0
            .iter()
            .find(|(k, _)| *k == kind)
            .map(|(_, value)| value.as_slice())
    }

    fn u8(&self, kind: u16) -> Option<u8> {
        self.get(kind)?.first().copied()
    }

    fn u16(&self, kind: u16) -> Option<u16> {
        Some(u16::from_ne_bytes(self.get(kind)?.try_into().ok()?))
    }

    fn u32(&self, kind: u16) -> Option<u32> {
        Some(u32::from_ne_bytes(self.get(kind)?.try_into().ok()?))
    }

    fn text(&self, kind: u16) -> Option<String> {
        let bytes = self.get(kind)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    fn nested(&self, kind: u16) -> Attributes {
        self.get(kind).map(Attributes::read).unwrap_or_default()
    }
}

fn attribute(kind: u16, value: &[u8]) -> DefaultNla {
    DefaultNla::new(kind, value.to_vec())
}

fn nest(kind: u16, inner: &[DefaultNla]) -> DefaultNla {
    DefaultNla::new(kind | NESTED, emit(inner))
}

fn emit(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

/// A netlink socket, in the network namespace of the thread that opened it.
struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    fn open(protocol: isize) -> io::Result<Netlink> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Sends a message and returns the answers to it.
    fn ask(&mut self, kind: u16, flags: u16, bytes: Vec<u8>) -> io::Result<Vec<Vec<u8>>> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(Raw { kind, bytes }));
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;
        let mut answers = Vec::new();
        while answers.len() < MOST_ANSWERS {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<Raw>::deserialize(rest).map_err(io::Error::other)?;
                // Messages begin at multiples of 4.
                let length = (message.header.length as usize).next_multiple_of(4).max(16);
                rest = &rest[length.min(rest.len())..];
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::InnerMessage(raw) => answers.push(raw.bytes),
                    _ => {}
                }
            }
        }
        Err(io::Error::other("the kernel's answer does not end"))
    }
}

/// All interfaces of this network namespace.
pub(super) fn links() -> io::Result<Vec<Link>> {
    const RTM_GETLINK: u16 = 18;
    /// `struct ifinfomsg`.
    const HEADER: usize = 16;
    let (address, name, mtu, link, master, info, xdp) = (1, 3, 4, 5, 10, 18, 43);
    let answers = Netlink::open(NETLINK_ROUTE)?.ask(RTM_GETLINK, NLM_F_DUMP, vec![0; HEADER])?;
    let links = answers.iter().filter(|bytes| bytes.len() >= HEADER).map(|bytes| {
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let attributes = Attributes::read(&bytes[HEADER..]);
        Link {
            index: word(4),
            hardware: u16::from_ne_bytes([bytes[2], bytes[3]]),
            flags: word(8),
            name: attributes.text(name).unwrap_or_default(),
            mtu: attributes.u32(mtu).unwrap_or(0),
            has_mac: attributes.get(address).is_some_and(|mac| mac.len() == 6),
            below: attributes.u32(link),
            master: attributes.u32(master),
            kind: attributes.nested(info).text(1),
            xdp_program: attributes.nested(xdp).u32(4).filter(|id| *id != 0),
        }
    });
    Ok(links.collect())
}

/// The `ethtool` family, for one interface.
pub(super) struct Ethtool {
    netlink: Netlink,
    family: u16,
    interface: String,
}

/// Commands.
const FEATURES_GET: u8 = 11;
const FEATURES_SET: u8 = 12;
const RINGS_GET: u8 = 15;
const RINGS_SET: u8 = 16;
const CHANNELS_GET: u8 = 17;
const CHANNELS_SET: u8 = 18;
const COALESCE_GET: u8 = 19;
const COALESCE_SET: u8 = 20;
const PAUSE_GET: u8 = 21;
const PAUSE_SET: u8 = 22;
const TSINFO_GET: u8 = 25;
/// Attributes.
const HEADER: u16 = 1;
const RINGS_RX: u16 = 6;
const RINGS_TX: u16 = 9;
const CHANNELS_RX: u16 = 6;
const CHANNELS_COMBINED: u16 = 9;
const COALESCE_RX_USECS: u16 = 2;
const COALESCE_ADAPTIVE_RX: u16 = 11;
const PAUSE_AUTONEG: u16 = 2;
const PAUSE_RX: u16 = 3;
const PAUSE_TX: u16 = 4;
const BITSET_NO_MASK: u16 = 1;
const BITSET_BITS: u16 = 3;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;

impl Ethtool {
    pub(super) fn open(interface: &str) -> io::Result<Ethtool> {
        const CONTROLLER: u16 = 16;
        const GET_FAMILY: u8 = 3;
        let mut netlink = Netlink::open(NETLINK_GENERIC)?;
        let mut bytes = vec![GET_FAMILY, 1, 0, 0];
        bytes.extend(emit(&[attribute(2, b"ethtool\0")]));
        let answers = netlink.ask(CONTROLLER, 0, bytes)?;
        let family = answers
            .first()
            .and_then(|answer| Attributes::read(answer.get(4..)?).u16(1));
        Ok(Ethtool {
            netlink,
            family: family.ok_or_else(|| io::Error::other("the kernel has no ethtool over netlink"))?,
            interface: interface.to_owned(),
        })
    }

    fn call(&mut self, command: u8, attributes: &[DefaultNla]) -> io::Result<Attributes> {
        let mut name = self.interface.clone().into_bytes();
        name.push(0);
        let mut bytes = vec![command, 1, 0, 0];
        bytes.extend(emit(&[nest(HEADER, &[attribute(2, &name)])]));
        bytes.extend(emit(attributes));
        let answers = self.netlink.ask(self.family, 0, bytes)?;
        let first = answers.first().and_then(|answer| answer.get(4..));
        Ok(first.map(Attributes::read).unwrap_or_default())
    }

    /// What the driver says, or nothing if it has no such thing.
    fn get(&mut self, command: u8) -> io::Result<Option<Attributes>> {
        match self.call(command, &[]) {
            Ok(attributes) => Ok(Some(attributes)),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn channels(&mut self) -> io::Result<Option<Channels>> {
        Ok(self.get(CHANNELS_GET)?.map(|a| Channels {
            receive: a.u32(CHANNELS_RX).unwrap_or(0),
            combined: a.u32(CHANNELS_COMBINED).unwrap_or(0),
            most_combined: a.u32(5).unwrap_or(0),
        }))
    }

    pub(super) fn rings(&mut self) -> io::Result<Option<Rings>> {
        Ok(self.get(RINGS_GET)?.and_then(|a| {
            Some(Rings {
                receive: a.u32(RINGS_RX)?,
                most_receive: a.u32(2)?,
                send: a.u32(RINGS_TX)?,
                most_send: a.u32(5)?,
            })
        }))
    }

    pub(super) fn coalesce(&mut self) -> io::Result<Option<Coalesce>> {
        Ok(self.get(COALESCE_GET)?.map(|a| Coalesce {
            receive_us: a.u32(COALESCE_RX_USECS),
            adaptive: a.u8(COALESCE_ADAPTIVE_RX).map(|on| on != 0),
        }))
    }

    pub(super) fn pause(&mut self) -> io::Result<Option<Pause>> {
        Ok(self.get(PAUSE_GET)?.map(|a| Pause {
            autoneg: a.u8(PAUSE_AUTONEG) == Some(1),
            receive: a.u8(PAUSE_RX) == Some(1),
            send: a.u8(PAUSE_TX) == Some(1),
        }))
    }

    /// The number of the NIC's own clock.
    pub(super) fn clock(&mut self) -> io::Result<Option<u32>> {
        Ok(self.get(TSINFO_GET)?.and_then(|a| a.u32(5)))
    }

    pub(super) fn features(&mut self) -> io::Result<Vec<Feature>> {
        let Some(answer) = self.get(FEATURES_GET)? else {
            return Ok(Vec::new());
        };
        let (changeable, wanted, active, fixed) = (2, 3, 4, 5);
        // A set lists its members, or, with a mask, all bits of the mask and which of them are members.
        let names = |set: u16| -> Vec<String> {
            let set = answer.nested(set);
            let listed = set.get(BITSET_NO_MASK).is_some();
            let bits = set.nested(BITSET_BITS).0;
            let bits = bits.iter().map(|(_, bit)| Attributes::read(bit));
            let members = bits.filter(|bit| listed || bit.get(BIT_VALUE).is_some());
            members.filter_map(|bit| bit.text(BIT_NAME)).collect()
        };
        let (changeable, wanted, active, fixed) = (names(changeable), names(wanted), names(active), names(fixed));
        let mut all = changeable.clone();
        all.extend(active.iter().chain(&wanted).cloned());
        all.sort();
        all.dedup();
        let all = all.into_iter().map(|name| Feature {
            on: active.contains(&name),
            changeable: changeable.contains(&name) && !fixed.contains(&name),
            name,
        });
        Ok(all.collect())
    }

    pub(super) fn set_combined(&mut self, queues: u32) -> io::Result<()> {
        self.set(CHANNELS_SET, CHANNELS_COMBINED, queues)
    }

    pub(super) fn set_receive_queues(&mut self, queues: u32) -> io::Result<()> {
        self.set(CHANNELS_SET, CHANNELS_RX, queues)
    }

    pub(super) fn set_receive_ring(&mut self, descriptors: u32) -> io::Result<()> {
        self.set(RINGS_SET, RINGS_RX, descriptors)
    }

    pub(super) fn set_send_ring(&mut self, descriptors: u32) -> io::Result<()> {
        self.set(RINGS_SET, RINGS_TX, descriptors)
    }

    pub(super) fn set_receive_us(&mut self, us: u32) -> io::Result<()> {
        self.set(COALESCE_SET, COALESCE_RX_USECS, us)
    }

    pub(super) fn set_adaptive(&mut self, on: bool) -> io::Result<()> {
        self.call(COALESCE_SET, &[attribute(COALESCE_ADAPTIVE_RX, &[u8::from(on)])])?;
        Ok(())
    }

    pub(super) fn set_pause(&mut self, pause: Pause) -> io::Result<()> {
        let flags = [
            (PAUSE_AUTONEG, pause.autoneg),
            (PAUSE_RX, pause.receive),
            (PAUSE_TX, pause.send),
        ];
        self.call(PAUSE_SET, &flags.map(|(kind, on)| attribute(kind, &[u8::from(on)])))?;
        Ok(())
    }

    pub(super) fn set_feature(&mut self, name: &str, on: bool) -> io::Result<()> {
        let wanted = 3;
        let mut text = name.as_bytes().to_vec();
        text.push(0);
        let mut bit = vec![attribute(BIT_NAME, &text)];
        if on {
            bit.push(attribute(BIT_VALUE, &[]));
        }
        let bits = nest(BITSET_BITS, &[nest(1, &bit)]);
        self.call(FEATURES_SET, &[nest(wanted, &[bits])])?;
        // The kernel takes a wish that it cannot grant without an error.
        let granted = self.features()?.iter().any(|f| f.name == name && f.on == on);
        granted
            .then_some(())
            .ok_or_else(|| io::Error::other("the driver keeps it as it is"))
    }

    fn set(&mut self, command: u8, kind: u16, value: u32) -> io::Result<()> {
        self.call(command, &[attribute(kind, &value.to_ne_bytes())])?;
        Ok(())
    }
}

//! A client that asks for everything that was ever sent, again and again, and listens to no answer.

use std::net::{SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use seqcast_proto::seq::{Seq, SeqRange, Session, Stream};
use seqcast_proto::wire::{Kind, MAX_RANGES, Stamp, flags};

use crate::pair::Side;

/// Pause between two NAKs.
const EVERY: Duration = Duration::from_micros(50);
/// Looks after which the time is read.
const LOOKS: u32 = 32;

/// Sends NAKs to the stream's group, beside an honest client on the same thread.
pub(crate) struct Greedy {
    socket: UdpSocket,
    group: SocketAddrV4,
    stream: Stream,
    frame: [u8; 1472],
    looks: u32,
    due: Instant,
}

impl Greedy {
    pub(crate) fn open(side: &Side, group: SocketAddrV4, stream: Stream) -> Result<Greedy> {
        let socket = UdpSocket::bind((side.address, 0)).context("no socket for the greedy client")?;
        socket.set_nonblocking(true)?;
        socket2::SockRef::from(&socket).set_multicast_if_v4(&side.address)?;
        Ok(Greedy {
            socket,
            group,
            stream,
            frame: [0; 1472],
            looks: 0,
            due: Instant::now(),
        })
    }

    /// Asks for everything before `next`, when it is time.
    #[inline]
    pub(crate) fn ask(&mut self, session: Session, next: Seq) -> Result<()> {
        self.looks += 1;
        if !self.looks.is_multiple_of(LOOKS) || next <= Seq::FIRST {
            return Ok(());
        }
        let now = Instant::now();
        if now < self.due {
            return Ok(());
        }
        self.due = now + EVERY;
        let stamp = Stamp {
            stream: self.stream,
            session,
            sequence: Seq(0),
            time: 0,
            flags: flags::ASK_SERVER,
            origin: 0x6eed,
        };
        let all = next.0 - 1;
        let piece = all.div_ceil(MAX_RANGES as u32);
        let ranges = (0..all)
            .step_by(piece as usize)
            .filter_map(|before| SeqRange::new(Seq(before + 1), Seq((before + piece).min(all))));
        let length = stamp.ranges(&mut self.frame, Kind::Nak, ranges);
        match self.socket.send_to(&self.frame[..length], self.group) {
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                Err(error).context("the greedy client cannot send")
            }
            _ => Ok(()),
        }
    }
}

//! A host of a lab that means no good: it asks for everything without end, or sends messages of its
//! own under the numbers of the server.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use seqcast_proto::seq::{Seq, SeqRange, Session, Stream};
use seqcast_proto::wire::{Block, Body, Frame, Kind, MAX_RANGES, Message, Role, Stamp, flags, put_message};

use super::Host;

/// What it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Malice {
    /// Sends NAKs for all that was ever sent, each of as many ranges as fit, to server and archive
    /// in turn, directly and to the group.
    AskForAll,
    /// Sends DATA of the server's session with numbers just ahead of the server's.
    Forge,
}

/// A hostile host at work; dropping it ends it.
pub(super) struct Hostile {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<u64>>>,
}

/// What it has overheard.
struct Heard {
    stream: Stream,
    session: Session,
    next: Seq,
    server: SocketAddrV4,
    archive: Option<SocketAddrV4>,
}

/// How often it looks at the time and at what the server says.
const TICK: Duration = Duration::from_millis(1);
const FRAME: usize = 1472;

impl Hostile {
    /// Sets it to work on `host`, with this many frames a second.
    ///
    /// # Errors
    /// When its sockets cannot be opened.
    pub(super) fn start(host: &Host, group: SocketAddrV4, malice: Malice, rate: u32) -> Result<Hostile> {
        let sockets = host
            .udp_socket(group.port())
            .and_then(|listener| Ok((listener, host.udp_socket(0)?)));
        let (listener, sender) = sockets.with_context(|| format!("no socket on host {}", host.name()))?;
        listener.join_multicast_v4(group.ip(), &host.address())?;
        listener.set_nonblocking(true)?;
        sender.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let own = host.address();
        let work = move || harass(&listener, &sender, own, group, malice, rate, &told);
        let thread = std::thread::Builder::new().name("hostile".into()).spawn(work)?;
        Ok(Hostile {
            stop,
            thread: Some(thread),
        })
    }

    /// Ends it; returns how many frames it sent.
    ///
    /// # Errors
    /// When it failed.
    pub(super) fn stop(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        match ended {
            Some(Ok(sent)) => Ok(sent.context("the hostile host failed")?),
            _ => anyhow::bail!("the hostile host panicked"),
        }
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of its thread has been printed.
            let _ = thread.join();
        }
    }
}

fn harass(
    listener: &UdpSocket,
    sender: &UdpSocket,
    own: Ipv4Addr,
    group: SocketAddrV4,
    malice: Malice,
    rate: u32,
    stop: &AtomicBool,
) -> io::Result<u64> {
    let (mut heard, mut sent) = (None, 0u64);
    let mut frame = [0; FRAME];
    let start = Instant::now();
    // What was due while the server was not heard is not made up for.
    let mut skipped = 0u64;
    while !stop.load(Ordering::Relaxed) {
        listen(listener, own, &mut heard);
        let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as u64 - skipped;
        match &heard {
            None => skipped += due - sent,
            Some(heard) => {
                while sent < due {
                    let length = match malice {
                        Malice::AskForAll => ask(&mut frame, heard, sent),
                        Malice::Forge => forge(&mut frame, heard, sent),
                    };
                    let to = match (malice, sent % 4) {
                        (Malice::AskForAll, 0) => heard.server,
                        (Malice::AskForAll, 1) => heard.archive.unwrap_or(heard.server),
                        _ => group,
                    };
                    // A pulled cable or a full queue loses its frame, as it would anyone's.
                    let _ = sender.send_to(&frame[..length], to);
                    sent += 1;
                }
            }
        }
        std::thread::sleep(TICK);
    }
    Ok(sent)
}

/// Learns from what the server has sent since the last call.
fn listen(listener: &UdpSocket, own: Ipv4Addr, heard: &mut Option<Heard>) {
    let mut bytes = [0; 9000];
    while let Ok((length, SocketAddr::V4(from))) = listener.recv_from(&mut bytes) {
        let Ok(frame) = Frame::parse(&bytes[..length]) else {
            continue;
        };
        if *from.ip() == own {
            continue;
        }
        let session = frame.header.session();
        let mut archive = heard.as_ref().and_then(|h| h.archive);
        let next = match frame.body {
            Body::Data(block) => match block.range() {
                Some(range) => range.end(),
                None => continue,
            },
            Body::Heartbeat(_, endpoints) => {
                let found = endpoints.iter().find(|e| e.is(Role::Archive));
                archive = found.map(|e| e.addr()).or(archive);
                frame.header.sequence()
            }
            _ => continue,
        };
        *heard = Some(Heard {
            stream: frame.header.stream(),
            session,
            next,
            server: from,
            archive,
        });
    }
}

fn stamp(heard: &Heard, sequence: Seq, flags: u16, sent: u64) -> Stamp {
    Stamp {
        stream: heard.stream,
        session: heard.session,
        sequence,
        time: 0,
        flags,
        // A new one now and then: another requester, by its word.
        origin: 0xbad0_0000 | (sent / 64 % 0xffff) as u32,
    }
}

/// All that there is, in as many ranges as a NAK can have.
fn ask(frame: &mut [u8], heard: &Heard, sent: u64) -> usize {
    let whom = match sent % 4 {
        0 => flags::ASK_SERVER,
        1 => flags::ASK_ARCHIVE,
        _ => flags::ASK_SERVER | flags::ASK_ARCHIVE,
    };
    let all = heard.next.0.saturating_sub(1);
    let piece = (all / MAX_RANGES as u32).max(1);
    let ranges = (0..MAX_RANGES as u32)
        .map(|i| (i * piece + 1, (i + 1) * piece))
        .filter(|(_, last)| *last <= all)
        .filter_map(|(first, last)| SeqRange::new(Seq(first), Seq(last)));
    stamp(heard, Seq(0), whom, sent).ranges(frame, Kind::Nak, ranges)
}

/// One message that the server never sent.
fn forge(frame: &mut [u8], heard: &Heard, sent: u64) -> usize {
    let first = heard.next.plus((sent % 100) as u32);
    let message = Message {
        subject: b"",
        payload: b"forged",
    };
    let mut bytes = [0; 32];
    let length = put_message(&mut bytes, &message).unwrap_or(0);
    let block = Block::trusted(first, 1, &bytes[..length]);
    stamp(heard, first, 0, 0).block(frame, Kind::Data, &block)
}

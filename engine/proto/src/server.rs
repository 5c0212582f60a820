//! The server: numbers messages, sends them, and keeps each until archives have acknowledged it.

use alloc::vec::Vec;
use core::net::SocketAddrV4;

use zerocopy::byteorder::little_endian::U32;

use crate::io::{End, Outbox, Record, Refused, ServerStore};
use crate::limit::Bucket;
use crate::lines::Line;
use crate::parties::MAX_ARCHIVES;
use crate::ranges::RangeSet;
use crate::responder::{RepairConfig, Responder, ResponderStats};
use crate::seq::{Seq, SeqRange, Session, Stream};
use crate::share::{Amount, Share};
use crate::time::{MILLIS, Nanos, Now, SECONDS};
use crate::wire::{
    Block, Body, Endpoint, Frame, HEADER, HeartbeatBody, Kind, MAX_ENDPOINTS, Message, Role, Stamp, flags, put_message,
};

/// Settings of a server.
#[derive(Clone, Copy, Debug)]
pub struct ServerConfig {
    /// The stream.
    pub stream: Stream,
    /// Where frames go.
    pub group: SocketAddrV4,
    /// Where queries reach this server.
    pub local: SocketAddrV4,
    /// Where they reach it over line B, if that is elsewhere.
    pub local_b: Option<SocketAddrV4>,
    /// A random number for this run, so that a second server under the same identity is noticed.
    pub origin: u32,
    /// A message is kept until this many archives have acknowledged it. With 0, the store's own
    /// bound decides how long.
    pub archives: usize,
    /// First pause between the last data and a heartbeat; it doubles up to the longest.
    pub heartbeat_min: Nanos,
    /// Longest pause between heartbeats. While data flows, heartbeats still come this often, since
    /// they carry the addresses for queries.
    pub heartbeat_max: Nanos,
    /// The last sequence number of a session before the next is opened.
    pub range_end: Seq,
    /// An archive that has not acknowledged anything for this long is no longer named as one to
    /// ask. What it acknowledged stays acknowledged.
    pub archive_timeout: Nanos,
    /// Least time between the end and the server's leave, in which clients can still ask.
    pub linger: Nanos,
    /// Longest wait for outstanding acknowledgements at the end.
    pub linger_max: Nanos,
    /// How fast new messages are sent at most.
    pub rate: RateLimit,
    /// Most messages sent and not acknowledged before producers are held back; 0: only the
    /// store's room counts.
    pub unacknowledged_max: u64,
    /// How repairs are given.
    pub repair: RepairConfig,
}

/// Limits on what a server sends of its own accord. 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Bytes of UDP payload a second.
    pub bytes_per_second: u64,
    /// Frames a second.
    pub frames_per_second: u64,
    /// Bytes at once after a pause; frames in the same proportion.
    pub burst_bytes: u64,
}

impl ServerConfig {
    /// The defaults for a stream.
    #[must_use]
    pub fn new(stream: Stream, group: SocketAddrV4, local: SocketAddrV4, origin: u32) -> ServerConfig {
        ServerConfig {
            stream,
            group,
            local,
            local_b: None,
            origin,
            archives: 0,
            heartbeat_min: MILLIS,
            heartbeat_max: 100 * MILLIS,
            range_end: Seq::LAST,
            archive_timeout: 5 * SECONDS,
            linger: 500 * MILLIS,
            linger_max: 10 * SECONDS,
            rate: RateLimit::default(),
            unacknowledged_max: 0,
            repair: RepairConfig::new(group),
        }
    }
}

/// Where messages to publish come from.
pub trait Source {
    /// The next message, the same until [`Source::advance`].
    fn peek(&mut self) -> Option<Message<'_>>;

    /// The message was taken.
    fn advance(&mut self);

    /// Whether no message will ever come again.
    fn is_finished(&self) -> bool {
        false
    }

    /// Takes waiting messages, `most` at most and as many as fit, and writes them into `room` in wire
    /// form. One call a frame: behind a `dyn Source` the calls for each message are then direct ones.
    fn pack(&mut self, room: &mut [u8], most: u16) -> Packed {
        pack(self, room, most)
    }
}

/// What [`Source::pack`] has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Messages written.
    pub count: u16,
    /// Bytes written.
    pub len: usize,
    /// Bytes of their payloads.
    pub payload: u64,
    /// Messages dropped because no frame of this link takes them.
    pub oversize: u64,
}

/// [`Source::pack`] for any source, message by message.
#[inline]
pub fn pack<S: Source + ?Sized>(source: &mut S, room: &mut [u8], most: u16) -> Packed {
    let mut packed = Packed::default();
    while packed.count < most
        && let Some(message) = source.peek()
    {
        if let Some(len) = put_message(&mut room[packed.len..], &message) {
            packed.count += 1;
            packed.len += len;
            packed.payload += message.payload.len() as u64;
        } else if packed.count > 0 {
            break;
        } else {
            // Programs are told the largest size; one that does not heed it is not sent.
            packed.oversize += 1;
        }
        source.advance();
    }
    packed
}

/// Why a server takes no more messages for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// As many messages as are allowed to be are sent and not acknowledged.
    Unacknowledged,
    /// What is not acknowledged fills the room for it.
    Full,
    /// The configured rate is reached; there is room again at this time.
    Rate(Nanos),
    /// No transmit buffer is free.
    NoBuffer,
    /// The store has failed; the server cannot go on.
    StoreFailed,
    /// The server was closed.
    Closed,
    /// A server at this address has opened a later session of the stream: this one is out.
    Superseded(SocketAddrV4),
}

/// What a server has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// Messages sent for the first time.
    pub messages: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// DATA frames.
    pub frames: u64,
    /// Heartbeats and ENDs.
    pub heartbeats: u64,
    /// Messages of all sessions that as many archives as required have acknowledged in this run.
    pub acknowledged: u64,
    /// ACK frames received.
    pub acks: u64,
    /// Messages refused because they fit no frame.
    pub oversize: u64,
    /// Frames of another server under the identity of this one.
    pub foreign: u64,
    /// Sessions opened because the range of numbers was used up.
    pub rolls: u64,
    /// Bytes that were no frame.
    pub malformed: u64,
    /// NAKs dropped because repairs had their share of the time.
    pub naks_dropped: u64,
    /// Repairs.
    pub repairs: ResponderStats,
}

/// A finished DATA frame that its store had no room for. It must be kept before it is sent.
#[derive(Debug)]
struct Pending {
    first: Seq,
    frame: Vec<u8>,
    kept: bool,
}

#[derive(Debug)]
struct Peer {
    id: u32,
    heard: Nanos,
    /// Where it was heard last over each line, and when.
    ways: [Option<(SocketAddrV4, Nanos)>; 2],
}

/// A session that is open, or ended and not acknowledged throughout.
#[derive(Debug)]
struct Kept {
    session: Session,
    previous: Session,
    /// The next number to use.
    next: Seq,
    end: Option<End>,
    /// One set for each archive, by place in the list of peers.
    acked: Vec<RangeSet>,
    /// Every number below is acknowledged by as many archives as required, or given up.
    floor: Seq,
}

impl Kept {
    /// Takes note of what the store gave up to make room: nobody can acknowledge it any more.
    fn forget(&mut self, below: Seq) {
        if below > self.floor {
            self.floor = below;
            self.acked.iter_mut().for_each(|set| set.remove_below(below));
        }
    }
}

fn bucket(per_second: u64, burst: u64, now: Nanos) -> Option<Bucket> {
    (per_second > 0).then(|| Bucket::new(per_second, burst, now))
}

/// Most sessions kept at once: the open one and those that no archive has got in full.
const MAX_KEPT: usize = 64;
/// Sessions kept for their ends alone, the open one included.
const KEEP_ENDED: usize = 8;
/// Most archives that acknowledge one stream.
const MAX_PEERS: usize = MAX_ARCHIVES;
/// Ranges remembered for one archive and session. Acknowledgements come mostly in order; what
/// does not fit comes again with a later ACK.
const ACKED_RANGES: usize = 1024;
/// Repair ranges that wait at most.
const REPAIR_JOBS: usize = 1024;

/// A session as its store knows it at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// The session.
    pub session: Session,
    /// The one before it.
    pub previous: Session,
    /// How it ended; a session that was cut off by a crash ended with its last stored number.
    pub end: End,
}

/// The state machine.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    /// Ascending; the last is the open one.
    kept: Vec<Kept>,
    peers: Vec<Peer>,
    responder: Responder,
    share: Share,
    heartbeat_due: Nanos,
    heartbeat_pause: Nanos,
    endpoints_due: Nanos,
    /// The ended session of which archives were reminded last.
    reminded: Session,
    pending: Option<Pending>,
    bytes: Option<Bucket>,
    frames: Option<Bucket>,
    superseded: Option<SocketAddrV4>,
    rival: Option<SocketAddrV4>,
    failed: bool,
    closed_at: Option<Nanos>,
    stats: ServerStats,
}

impl Server {
    /// A server that opens `session` behind those that it inherits from an earlier run, ascending.
    ///
    /// # Errors
    /// When the store cannot open the session.
    pub fn open<S: ServerStore>(
        config: ServerConfig,
        session: Session,
        inherited: &[Inherited],
        now: Nanos,
        store: &mut S,
    ) -> Result<Server, Refused> {
        let mut server = Server {
            responder: Responder::new(config.stream, config.origin, true, config.repair, REPAIR_JOBS),
            share: Share::new(now),
            kept: Vec::with_capacity(MAX_KEPT),
            peers: Vec::with_capacity(MAX_PEERS),
            heartbeat_due: now,
            heartbeat_pause: config.heartbeat_min,
            endpoints_due: now,
            reminded: Session::NONE,
            pending: None,
            bytes: bucket(config.rate.bytes_per_second, config.rate.burst_bytes, now),
            frames: bucket(config.rate.frames_per_second, config.rate.burst_bytes / 1500, now),
            superseded: None,
            rival: None,
            failed: false,
            closed_at: None,
            stats: ServerStats::default(),
            config,
        };
        let mut previous = Session::NONE;
        for old in inherited.iter().rev().take(MAX_KEPT - 1).rev() {
            previous = old.session;
            server.kept.push(Kept {
                session: old.session,
                previous: old.previous,
                next: old.end.last.next(),
                end: Some(old.end),
                acked: Vec::with_capacity(MAX_PEERS),
                floor: store.oldest(old.session),
            });
        }
        for at in 0..server.kept.len() {
            // The last run could not know what follows it; of an older one a loss of power may have
            // undone what the next had noted.
            let next = match server.kept.get(at + 1) {
                None => session,
                Some(next) if next.previous == server.kept[at].session => next.session,
                // What came between has been dropped.
                Some(_) => Session::NONE,
            };
            let kept = &mut server.kept[at];
            if next == session || store.end_of(kept.session).is_none() {
                let end = End {
                    last: kept.next.prev(),
                    next,
                };
                kept.end = Some(end);
                store.close_session(kept.session, end)?;
            }
        }
        store.open_session(session, previous)?;
        server.push_session(session, previous);
        server.sweep(store);
        Ok(server)
    }

    fn push_session(&mut self, session: Session, previous: Session) {
        let mut acked = Vec::with_capacity(MAX_PEERS);
        acked.resize_with(self.peers.len(), || RangeSet::new(ACKED_RANGES));
        self.kept.push(Kept {
            session,
            previous,
            next: Seq::FIRST,
            end: None,
            acked,
            floor: Seq::FIRST,
        });
    }

    fn current(&self) -> &Kept {
        // There is always an open session: `open` pushes one and only older ones are dropped.
        &self.kept[self.kept.len() - 1]
    }

    /// The open session and the next number in it.
    #[must_use]
    pub fn position(&self) -> (Session, Seq) {
        let current = self.current();
        (current.session, current.next)
    }

    /// Other limits from now on. What is kept and unacknowledged stays so.
    pub fn set_limits(&mut self, rate: RateLimit, unacknowledged_max: u64, repair: RepairConfig, now: Nanos) {
        if rate != self.config.rate {
            self.bytes = bucket(rate.bytes_per_second, rate.burst_bytes, now);
            self.frames = bucket(rate.frames_per_second, rate.burst_bytes / 1500, now);
        }
        self.responder.set_config(repair, now);
        self.config = ServerConfig {
            rate,
            unacknowledged_max,
            repair,
            ..self.config
        };
    }

    /// What has been done so far.
    #[must_use]
    pub fn stats(&self) -> ServerStats {
        ServerStats {
            repairs: self.responder.stats(),
            ..self.stats
        }
    }

    /// Who has asked for repairs lately, with the number of its NAK frames.
    pub fn askers(&self) -> impl Iterator<Item = (SocketAddrV4, u64)> {
        self.responder.askers()
    }

    /// Messages sent and not yet acknowledged by as many archives as required, over all sessions.
    #[must_use]
    pub fn unacknowledged(&self) -> u64 {
        if self.config.archives == 0 {
            return 0;
        }
        self.kept.iter().map(|k| u64::from(k.next.since(k.floor))).sum()
    }

    /// Archives that have acknowledged something lately.
    #[must_use]
    pub fn archives(&self, now: Nanos) -> usize {
        self.peers.iter().filter(|p| self.is_near(p, now)).count()
    }

    fn is_near(&self, peer: &Peer, now: Nanos) -> bool {
        self.is_recent(peer.heard, now)
    }

    fn is_recent(&self, heard: Nanos, now: Nanos) -> bool {
        now.saturating_sub(heard) < self.config.archive_timeout
    }

    /// Sends waiting messages in at most `budget` frames, each filled with what is there. Returns
    /// how many messages were taken, and why no more were if there are more.
    pub fn publish(
        &mut self,
        now: Now,
        budget: usize,
        source: &mut impl Source,
        store: &mut impl ServerStore,
        out: &mut impl Outbox,
    ) -> (u64, Option<Blocked>) {
        self.share.turn(now.mono);
        let ServerStats {
            messages,
            frames,
            rolls,
            ..
        } = self.stats;
        let mut blocked = None;
        for _ in 0..budget {
            if source.peek().is_none() && self.pending.is_none() {
                break;
            }
            blocked = self.publish_frame(now, source, store, out).err();
            if blocked.is_some() {
                break;
            }
        }
        self.share.published(self.stats.frames - frames);
        let sent = self.stats.messages - messages;
        // The heartbeat of a session that was just opened is not put off.
        if sent > 0 && self.stats.rolls == rolls {
            self.heartbeat_pause = self.config.heartbeat_min;
            self.heartbeat_due = now.mono + self.heartbeat_pause;
        }
        (sent, blocked)
    }

    /// Messages dropped because no frame of this link takes them.
    #[must_use]
    pub fn oversize(&self) -> u64 {
        self.stats.oversize
    }

    /// Whether all that was taken from the source is kept: it outlives this server if the store does.
    #[must_use]
    pub fn keeps_all(&self) -> bool {
        !self.failed && self.pending.as_ref().is_none_or(|pending| pending.kept)
    }

    fn publish_frame(
        &mut self,
        now: Now,
        source: &mut impl Source,
        store: &mut impl ServerStore,
        out: &mut impl Outbox,
    ) -> Result<(), Blocked> {
        if self.closed_at.is_some() {
            return Err(Blocked::Closed);
        }
        if let Some(by) = self.superseded {
            return Err(Blocked::Superseded(by));
        }
        if self.failed {
            return Err(Blocked::StoreFailed);
        }
        self.send_pending(store, out)?;
        for bucket in [&mut self.bytes, &mut self.frames].into_iter().flatten() {
            if !bucket.is_open(now.mono) {
                return Err(Blocked::Rate(bucket.opens_at()));
            }
        }
        let most = self.config.unacknowledged_max;
        if most > 0 && self.unacknowledged() >= most && !planted!(IgnoreLimit) {
            return Err(Blocked::Unacknowledged);
        }
        let max = out.max_frame();
        if !store.has_room(max - HEADER) {
            return Err(Blocked::Full);
        }
        if self.current().next > self.config.range_end {
            self.roll(now, store)?;
        }
        let current = self.current();
        let (session, first) = (current.session, current.next);
        let left = self.config.range_end.next().since(first);
        let most = u16::try_from(left).unwrap_or(u16::MAX);
        let stamp = Stamp {
            stream: self.config.stream,
            session,
            sequence: first,
            time: now.wall,
            flags: 0,
            origin: self.config.origin,
        };
        let stamp = if planted!(ReuseSession) && self.stats.rolls > 0 {
            Stamp {
                session: current.previous,
                ..stamp
            }
        } else {
            stamp
        };
        let (stats, pending) = (&mut self.stats, &mut self.pending);
        let mut result = Ok(0);
        let mut size = 0;
        let mut build = |buf: &mut [u8]| {
            let packed = source.pack(&mut buf[HEADER..max], most);
            let (count, len) = (packed.count, HEADER + packed.len);
            stats.bytes += packed.payload;
            stats.oversize += packed.oversize;
            if count == 0 {
                return 0;
            }
            stamp.write(buf, Kind::Data, count + u16::from(planted!(WrongCount)));
            let block = Block::trusted(first, count, &buf[HEADER..len]);
            // Kept before it is sent: after a crash the store knows all that was on the wire.
            let refused = store.append(session, &Record { block, time: now.wall });
            result = refused.map(|()| count);
            if refused == Err(Refused::Full) {
                result = Ok(count);
                if planted!(SendUnkept) {
                    return len;
                }
                *pending = Some(Pending {
                    first,
                    frame: buf[..len].to_vec(),
                    kept: false,
                });
            }
            size = len;
            if pending.is_some() || refused.is_err() { 0 } else { len }
        };
        // By reference: what it captures was just stored, and is not there yet to be moved in wider pieces.
        if !out.send(self.config.group, &mut build) {
            return Err(Blocked::NoBuffer);
        }
        let Ok(count) = result else {
            // Messages were taken that can be neither kept nor sent: the run cannot go on.
            self.failed = true;
            return Err(Blocked::StoreFailed);
        };
        let at = self.kept.len() - 1;
        self.kept[at].next = first.plus(u32::from(count));
        self.stats.messages += u64::from(count);
        self.stats.frames += u64::from(count > 0);
        for (bucket, cost) in [(&mut self.bytes, size as u64), (&mut self.frames, 1)] {
            if let Some(bucket) = bucket {
                bucket.take(cost, now.mono);
            }
        }
        if self.pending.is_some() {
            Err(Blocked::Full)
        } else {
            Ok(())
        }
    }

    /// Keeps and sends the frame for which there was no room.
    fn send_pending(&mut self, store: &mut impl ServerStore, out: &mut impl Outbox) -> Result<(), Blocked> {
        let Some(mut pending) = self.pending.take() else {
            return Ok(());
        };
        let Ok(Frame {
            header,
            body: Body::Data(block),
        }) = Frame::parse(&pending.frame)
        else {
            return Ok(());
        };
        if !pending.kept {
            let record = Record {
                block,
                time: header.time.get(),
            };
            match store.append(header.session(), &record) {
                Ok(()) => pending.kept = true,
                Err(Refused::Full) => {
                    self.pending = Some(pending);
                    return Err(Blocked::Full);
                }
                Err(Refused::Failed) => {
                    self.failed = true;
                    return Err(Blocked::StoreFailed);
                }
            }
        }
        let sent = out.send(self.config.group, |buf| {
            buf[..pending.frame.len()].copy_from_slice(&pending.frame);
            pending.frame.len()
        });
        if !sent {
            self.pending = Some(pending);
            return Err(Blocked::NoBuffer);
        }
        Ok(())
    }

    /// The numbers of the session are used up: opens the next one.
    fn roll(&mut self, now: Now, store: &mut impl ServerStore) -> Result<(), Blocked> {
        self.sweep(store);
        if self.kept.len() == MAX_KEPT {
            return Err(Blocked::Full);
        }
        let old = self.current();
        let (session, last) = (old.session, old.next.prev());
        // Named after a second that is over: a run that starts without a memory is named after a later one.
        let next = Session(
            session
                .0
                .saturating_add(1)
                .max(u32::try_from((now.wall / SECONDS).saturating_sub(1)).unwrap_or(u32::MAX)),
        );
        let end = End { last, next };
        let opened = store
            .close_session(session, end)
            .and_then(|()| store.open_session(next, session));
        if opened.is_err() {
            self.failed = true;
            return Err(Blocked::StoreFailed);
        }
        let at = self.kept.len() - 1;
        self.kept[at].end = Some(end);
        self.push_session(next, session);
        self.stats.rolls += 1;
        self.heartbeat_due = now.mono;
        Ok(())
    }

    /// Ends the stream: nothing more is taken, and END is sent until [`Server::finished`].
    ///
    /// # Errors
    /// When the end cannot be recorded; the stream is ended all the same.
    pub fn close(&mut self, now: Now, store: &mut impl ServerStore) -> Result<(), Refused> {
        if self.closed_at.is_some() {
            return Ok(());
        }
        self.closed_at = Some(now.mono);
        self.heartbeat_due = now.mono;
        self.heartbeat_pause = self.config.heartbeat_min;
        let at = self.kept.len() - 1;
        if let Some(pending) = self.pending.take().filter(|p| !p.kept) {
            // Neither kept nor sent: for everyone else these messages never were.
            self.stats.messages -= u64::from(self.kept[at].next.since(pending.first));
            self.kept[at].next = pending.first;
        }
        let end = End {
            last: self.kept[at].next.prev(),
            next: Session::NONE,
        };
        self.kept[at].end = Some(end);
        store.close_session(self.kept[at].session, end)
    }

    /// Whether a frame waits for room in the store; a stream should not be closed before it is out.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.pending.is_some()
    }

    /// Whether a closed server may leave: everything is acknowledged and clients had time to ask,
    /// or the wait took too long.
    #[must_use]
    pub fn finished(&self, now: Nanos) -> bool {
        let Some(closed) = self.closed_at else { return false };
        let waited = now.saturating_sub(closed);
        let quiet = waited >= self.config.linger && self.responder.is_idle();
        quiet && self.unacknowledged() == 0 || waited >= self.config.linger_max
    }

    /// Takes one received frame of this stream: ACKs, and NAKs for the server.
    pub fn on_frame(
        &mut self,
        now: Now,
        from: SocketAddrV4,
        bytes: &[u8],
        store: &mut impl ServerStore,
        out: &mut impl Outbox,
    ) {
        self.on_line_frame(now, Line::A, from, bytes, store, out);
    }

    /// As [`Server::on_frame`], of a frame that came over `line`.
    pub fn on_line_frame(
        &mut self,
        now: Now,
        line: Line,
        from: SocketAddrV4,
        bytes: &[u8],
        store: &mut impl ServerStore,
        out: &mut impl Outbox,
    ) {
        let Ok(frame) = Frame::parse(bytes) else {
            self.stats.malformed += 1;
            return;
        };
        let session = frame.header.session();
        match frame.body {
            Body::Ack(ranges) => {
                self.stats.acks += 1;
                let id = frame.header.origin.get();
                if let Some(place) = self.heard(now.mono, line, from, id) {
                    self.on_ack(place, session, ranges.iter(), store);
                }
            }
            Body::Nak(ranges) if frame.header.has(flags::ASK_SERVER) => {
                let published = Amount {
                    messages: self.stats.messages,
                    frames: self.stats.frames,
                };
                if self.share.admits(from, ranges.iter(), published) {
                    self.responder.on_nak(now, from, frame.header, &ranges, out);
                } else {
                    self.stats.naks_dropped += 1;
                    self.responder.on_dropped_nak(from);
                }
            }
            Body::Data(_) | Body::Heartbeat(..) if frame.header.origin.get() != self.config.origin => {
                self.on_other_server(from, session);
            }
            _ => {}
        }
    }

    /// Another server speaks on this stream. A later session means that it has taken over, as
    /// after a pause of this one that was taken for its end.
    fn on_other_server(&mut self, from: SocketAddrV4, session: Session) {
        let own = self.current().session;
        if session > own {
            self.superseded = Some(from);
        } else if session == own {
            self.stats.foreign += 1;
            self.rival = Some(from);
        }
    }

    /// The address of another server that uses the session of this one, if one was heard.
    #[must_use]
    pub fn rival(&self) -> Option<SocketAddrV4> {
        self.rival
    }

    /// The address of a server that has opened a later session of this stream, if one was heard.
    #[must_use]
    pub fn superseded(&self) -> Option<SocketAddrV4> {
        self.superseded
    }

    /// Notes that an archive lives and where; its place among the peers.
    fn heard(&mut self, now: Nanos, line: Line, from: SocketAddrV4, id: u32) -> Option<usize> {
        let place = self.place_of(now, id)?;
        let peer = &mut self.peers[place];
        peer.heard = now;
        peer.ways[line as usize] = Some((from, now));
        Some(place)
    }

    fn on_ack(
        &mut self,
        place: usize,
        session: Session,
        ranges: impl Iterator<Item = SeqRange>,
        store: &mut impl ServerStore,
    ) {
        let Some(at) = self.kept.iter().position(|k| k.session == session) else {
            return;
        };
        let kept = &mut self.kept[at];
        for range in ranges {
            // What was never sent cannot be acknowledged.
            let sent = SeqRange::new(Seq::FIRST, kept.next.prev()).and_then(|all| all.intersect(range));
            if let Some(range) = sent.and_then(|r| SeqRange::new(r.first.max(kept.floor), r.last)) {
                let _ = kept.acked[place].insert(range);
            }
        }
        self.release(at, store);
    }

    /// The place of an archive among the peers; a newcomer takes a free one, or that of an archive
    /// that has been away.
    fn place_of(&mut self, now: Nanos, id: u32) -> Option<usize> {
        if let Some(place) = self.peers.iter().position(|p| p.id == id) {
            return Some(place);
        }
        let peer = Peer {
            id,
            heard: now,
            ways: [None; 2],
        };
        let place = if self.peers.len() < MAX_PEERS {
            self.peers.push(peer);
            self.peers.len() - 1
        } else {
            let away = self.peers.iter().position(|p| !self.is_near(p, now))?;
            self.peers[away] = peer;
            away
        };
        for kept in &mut self.kept {
            kept.acked.resize_with(self.peers.len(), || RangeSet::new(ACKED_RANGES));
            kept.acked[place].clear();
        }
        // Clients shall know the newcomer soon.
        self.endpoints_due = now;
        Some(place)
    }

    /// Lets the store drop what as many archives as required have stored.
    fn release(&mut self, at: usize, store: &mut impl ServerStore) {
        let required = self.config.archives;
        if required == 0 {
            return;
        }
        let kept = &mut self.kept[at];
        kept.forget(store.oldest(kept.session));
        // The highest number below which at least `required` archives have everything.
        let mut floor = kept.floor;
        for set in &kept.acked {
            let reach = set.first_absent(kept.floor);
            let backed = kept
                .acked
                .iter()
                .filter(|s| s.first_absent(kept.floor) >= reach)
                .count();
            if backed >= required {
                floor = floor.max(reach);
            }
        }
        if floor == kept.floor {
            return;
        }
        self.stats.acknowledged += u64::from(floor.since(kept.floor));
        kept.floor = floor;
        for set in &mut kept.acked {
            set.remove_below(floor);
        }
        let released = if planted!(ReleaseEarly) { floor.next() } else { floor };
        store.release_below(kept.session, released);
        self.sweep(store);
    }

    /// Drops ended sessions that nobody needs from this server any more. The latest stay, empty:
    /// clients may still have to learn how they ended and what followed.
    fn sweep(&mut self, store: &mut impl ServerStore) {
        let mut at = 0;
        while at + KEEP_ENDED < self.kept.len() {
            let kept = &self.kept[at];
            let acknowledged = kept.end.is_some_and(|end| kept.floor > end.last);
            // Without archives nobody will ever fetch an ended session as a whole.
            if acknowledged || self.config.archives == 0 {
                let kept = self.kept.remove(at);
                store.drop_session(kept.session);
            } else {
                at += 1;
            }
        }
    }

    /// Runs what is due: repairs, in at most `budget` frames and within their share of the time, and
    /// heartbeats. Returns when to call again at the latest.
    pub fn poll(&mut self, now: Now, budget: usize, store: &mut impl ServerStore, out: &mut impl Outbox) -> Nanos {
        self.share.turn(now.mono);
        let answers = self.responder.pump(now, budget.min(self.share.budget()), store, out);
        self.share.repaired(answers as u64, !self.responder.is_idle());
        if self.superseded.is_some() {
            // It still answers for what it kept.
            return self.responder.next_due(now.mono);
        }
        if now.mono >= self.heartbeat_due.min(self.endpoints_due) {
            self.beat(now, store, out);
        }
        let repairs = self.responder.next_due(now.mono);
        repairs.min(self.heartbeat_due).min(self.endpoints_due)
    }

    /// Tells of one ended session that too few archives have acknowledged, in turn: one that was
    /// away for all of it cannot know that there is something to ask for.
    fn remind(&mut self, out: &mut impl Outbox) {
        if self.config.archives == 0 {
            return;
        }
        let waits = |k: &Kept| k.end.is_some_and(|end| k.floor <= end.last);
        let older = &self.kept[..self.kept.len() - 1];
        let turn = older.partition_point(|k| k.session <= self.reminded);
        let mut places = (turn..older.len()).chain(0..turn);
        let Some(at) = places.find(|at| waits(&older[*at])) else {
            return;
        };
        let (session, previous) = (older[at].session, older[at].previous);
        let known = older[at].end.map_or(Session::NONE, |end| end.next).known();
        let next = known.unwrap_or(self.kept[at + 1].session);
        let unsure = if known.is_none() { flags::UNSURE } else { 0 };
        let stamp = Stamp {
            stream: self.config.stream,
            session,
            sequence: older[at].next,
            time: 0,
            flags: flags::FROM_SERVER | unsure,
            origin: self.config.origin,
        };
        if out.send(self.config.group, |buf| stamp.end(buf, next, previous)) {
            self.reminded = session;
        }
    }

    fn beat(&mut self, now: Now, store: &mut impl ServerStore, out: &mut impl Outbox) {
        if self.config.archives > 0 {
            for kept in &mut self.kept {
                kept.forget(store.oldest(kept.session));
            }
        }
        let current = self.current();
        let before = self.kept.len().checked_sub(2).map(|i| &self.kept[i]);
        let stamp = Stamp {
            stream: self.config.stream,
            session: current.session,
            // What is not kept yet has not been on the wire either.
            sequence: match &self.pending {
                _ if planted!(HideTail) => current.next.prev().max(Seq::FIRST),
                Some(pending) => pending.first,
                None => current.next,
            },
            time: now.wall,
            flags: if self.config.archives > 0 { flags::ARCHIVED } else { 0 },
            origin: self.config.origin,
        };
        let body = HeartbeatBody {
            previous_session: U32::new(current.previous.0),
            previous_last: U32::new(before.map_or(0, |k| k.next.prev().0)),
            oldest: U32::new(store.oldest(current.session).0),
            acknowledged: U32::new(if self.config.archives > 0 { current.floor.0 } else { 0 }),
        };
        let mut endpoints = [Endpoint::new(self.config.local, Role::Server); MAX_ENDPOINTS];
        let mut count = 1;
        if let Some(local) = self.config.local_b {
            endpoints[count] = Endpoint::new(local, Role::Server).twin();
            count += 1;
        }
        for peer in &self.peers {
            let way = |line: Line| peer.ways[line as usize].filter(|(_, heard)| self.is_recent(*heard, now.mono));
            let [a, b] = Line::BOTH.map(|line| Some(Endpoint::new(way(line)?.0, Role::Archive)));
            let b = b.map(|b| if a.is_some() { b.twin() } else { b.over(Line::B) });
            for endpoint in [a, b].into_iter().flatten() {
                endpoints[count] = endpoint;
                count += 1;
            }
        }
        let mut sent = out.send(self.config.group, |buf| {
            stamp.heartbeat(buf, &body, &endpoints[..count])
        });
        if self.closed_at.is_some() {
            let stamp = Stamp {
                time: 0,
                flags: flags::FROM_SERVER,
                ..stamp
            };
            sent &= out.send(self.config.group, |buf| stamp.end(buf, Session::NONE, current.previous));
        }
        self.remind(out);
        if !sent {
            self.heartbeat_due = now.mono + self.config.heartbeat_min;
            self.endpoints_due = self.heartbeat_due;
            return;
        }
        self.stats.heartbeats += 1;
        if now.mono >= self.heartbeat_due {
            self.heartbeat_pause = (2 * self.heartbeat_pause).min(self.config.heartbeat_max);
            self.heartbeat_due = now.mono + self.heartbeat_pause;
        }
        self.endpoints_due = now.mono + self.config.heartbeat_max;
    }
}

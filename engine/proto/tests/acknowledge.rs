//! What archives say of sessions that their server still waits for.

mod common;

use common::{Disk, GROUP, STREAM, addr};
use seqcast_proto::archiver::{Archiver, ArchiverConfig};
use seqcast_proto::io::{ArchiveStore, End, Outbox, Record};
use seqcast_proto::seq::{Seq, SeqRange, Session};
use seqcast_proto::time::{Now, SECONDS};
use seqcast_proto::wire::{Block, Body, Endpoint, Frame, HeartbeatBody, Role, Stamp, flags};

/// More than an archiver watches at a time.
const SESSIONS: u32 = 70;

/// ACKs and NAKs, by session.
#[derive(Default)]
struct Said {
    held: Vec<(Session, Vec<SeqRange>)>,
    asked: Vec<Session>,
}

impl Outbox for Said {
    fn send(&mut self, _: std::net::SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let mut buf = [0; 576];
        let len = build(&mut buf);
        let frame = Frame::parse(&buf[..len]).unwrap();
        match frame.body {
            Body::Ack(ranges) => self.held.push((frame.header.session(), ranges.iter().collect())),
            Body::Nak(_) => self.asked.push(frame.header.session()),
            _ => {}
        }
        true
    }

    fn max_frame(&self) -> usize {
        576
    }
}

fn stamp(session: u32, sequence: u32, flags: u16) -> Stamp {
    Stamp {
        stream: STREAM,
        session: Session(session),
        sequence: Seq(sequence),
        time: 0,
        flags,
        origin: 1,
    }
}

/// An archive that holds two messages of each session from `first` on, and hears the server's newest.
struct Archive {
    machine: Archiver,
    disk: Disk,
    now: Now,
    said: Said,
}

impl Archive {
    fn new(first: u32) -> Archive {
        let mut disk = Disk::default();
        for session in first..=SESSIONS {
            let block = Block::parse(Seq::FIRST, 2, &[0; 8]).unwrap();
            let end = End {
                last: Seq(2),
                next: Session(session + 1),
            };
            let store: &mut dyn ArchiveStore = &mut disk;
            store.open_session(Session(session), Session(session - 1), 1).unwrap();
            store.append(Session(session), &Record { block, time: 0 }, 0).unwrap();
            store.close_session(Session(session), end).unwrap();
        }
        let now = Now {
            mono: SECONDS,
            wall: SECONDS,
        };
        let config = ArchiverConfig::new(STREAM, GROUP, addr(2), 77);
        let mut archive = Archive {
            machine: Archiver::new(config, now.mono, &mut disk),
            disk,
            now,
            said: Said::default(),
        };
        archive.hear_heartbeat();
        archive
    }

    /// The server's heartbeat in the session behind all others.
    fn hear_heartbeat(&mut self) {
        let body = HeartbeatBody {
            previous_session: SESSIONS.into(),
            previous_last: 2.into(),
            oldest: 1.into(),
            acknowledged: 1.into(),
        };
        let server = [Endpoint::new(addr(1), Role::Server)];
        self.hear(|buf| stamp(SESSIONS + 1, 1, flags::ARCHIVED).heartbeat(buf, &body, &server));
    }

    /// A turn a second later.
    fn wait(&mut self) {
        self.now.mono += SECONDS;
        self.machine.poll(self.now, 8, &mut self.disk, &mut self.said);
    }

    /// A frame of the server, and the turn after it.
    fn hear(&mut self, write: impl FnOnce(&mut [u8]) -> usize) {
        let mut frame = [0; 576];
        let len = write(&mut frame);
        self.said = Said::default();
        self.machine
            .on_frame(self.now, addr(1), &frame[..len], &mut self.disk, &mut self.said);
        self.machine.poll(self.now, 8, &mut self.disk, &mut self.said);
    }

    /// The server reminds of a session of two messages.
    fn remind(&mut self, session: u32) {
        let stamp = stamp(session, 3, flags::FROM_SERVER);
        self.hear(|buf| stamp.end(buf, Session(session + 1), Session(session - 1)));
    }
}

#[test]
fn a_session_that_is_held_but_no_longer_watched_is_acknowledged_at_once() {
    let mut archive = Archive::new(1);
    for session in [1, 2, 3, 1] {
        archive.remind(session);
        let all = vec![SeqRange::of(Seq::FIRST, 2).unwrap()];
        let said = &archive.said.held;
        assert!(said.contains(&(Session(session), all)), "{session}: {said:?}");
    }
}

#[test]
fn a_session_that_was_missed_as_a_whole_is_fetched_when_the_server_tells_of_it() {
    let mut archive = Archive::new(60);
    archive.remind(50);
    archive.wait();
    assert!(archive.said.asked.contains(&Session(50)), "{:?}", archive.said.asked);
}

#[test]
fn what_a_log_has_lost_of_an_older_session_is_asked_for_when_the_server_reminds_of_it() {
    let mut archive = Archive::new(60);
    let log: &mut dyn ArchiveStore = &mut archive.disk;
    log.open_session(Session(50), Session(49), 1).unwrap();
    let block = Block::parse(Seq(2), 1, &[0; 4]).unwrap();
    // Neither the first message nor the end has outlived a loss of power.
    log.append(Session(50), &Record { block, time: 0 }, 0).unwrap();
    let config = ArchiverConfig::new(STREAM, GROUP, addr(2), 77);
    archive.machine = Archiver::new(config, archive.now.mono, &mut archive.disk);
    archive.hear_heartbeat();
    archive.remind(50);
    archive.wait();
    assert!(archive.said.asked.contains(&Session(50)), "{:?}", archive.said.asked);
}

//! What an archive concludes, and says, of messages that their server is about to let go of, or has.

mod common;

use std::net::SocketAddrV4;

use common::{Disk, GROUP, STREAM, addr};
use seqcast_proto::archiver::{Archiver, ArchiverConfig};
use seqcast_proto::io::{ArchiveStore, Outbox, Record};
use seqcast_proto::seq::{Seq, SeqRange, Session};
use seqcast_proto::time::{MILLIS, Now, SECONDS};
use seqcast_proto::wire::{Block, Body, Endpoint, Frame, HeartbeatBody, Kind, Reason, Role, Stamp, flags};

const SERVER: u16 = 1;
const OWN: u16 = 2;
const OTHER: u16 = 3;
const CLIENT: u16 = 9;
const NOW_OPEN: Session = Session(100);
const OLDER: Session = Session(50);

fn range(first: u32, last: u32) -> SeqRange {
    SeqRange::new(Seq(first), Seq(last)).unwrap()
}

/// What was sent, in order.
#[derive(Default)]
struct Said(Vec<(SocketAddrV4, Vec<u8>)>);

impl Outbox for Said {
    fn send(&mut self, to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let mut frame = vec![0; 576];
        let len = build(&mut frame);
        frame.truncate(len);
        self.0.push((to, frame));
        true
    }

    fn max_frame(&self) -> usize {
        576
    }
}

impl Said {
    /// Questions to `host` about the older session: their numbers, and what they ask for.
    fn asked(&self, host: u16) -> Vec<(u64, SeqRange)> {
        let frames = self.0.iter().filter(|(to, _)| *to == addr(host));
        let parsed = frames.map(|(_, bytes)| Frame::parse(bytes).unwrap());
        let asked = parsed
            .filter(|f| f.header.session() == OLDER)
            .flat_map(|f| match f.body {
                Body::Nak(ranges) => ranges.iter().map(|r| (f.header.question(), r)).collect(),
                _ => Vec::new(),
            });
        asked.collect()
    }

    fn acknowledged(&self) -> Vec<SeqRange> {
        let parsed = self.0.iter().map(|(_, bytes)| Frame::parse(bytes).unwrap());
        let acked = parsed
            .filter(|f| f.header.session() == OLDER)
            .flat_map(|f| match f.body {
                Body::Ack(ranges) => ranges.iter().collect(),
                _ => Vec::new(),
            });
        acked.collect()
    }

    fn refused(&self) -> Vec<(SeqRange, Reason)> {
        let parsed = self.0.iter().map(|(_, bytes)| Frame::parse(bytes).unwrap());
        let refused = parsed.flat_map(|f| match f.body {
            Body::Unavailable(refusals) => refusals.iter().map(|(range, reason, _)| (range, reason)).collect(),
            _ => Vec::new(),
        });
        refused.collect()
    }
}

/// An archive whose server has been heard for long enough to have named every other.
struct Archive {
    machine: Archiver,
    disk: Disk,
    now: Now,
    said: Said,
    others: bool,
}

impl Archive {
    fn new(mut disk: Disk, others: bool) -> Archive {
        let now = Now {
            mono: SECONDS,
            wall: SECONDS,
        };
        let config = ArchiverConfig::new(STREAM, GROUP, addr(OWN), 77);
        let mut archive = Archive {
            machine: Archiver::new(config, now.mono, &mut disk),
            disk,
            now,
            said: Said::default(),
            others,
        };
        archive.heartbeat();
        archive.wait(6 * SECONDS);
        archive.heartbeat();
        archive.said = Said::default();
        archive
    }

    fn stamp(&self, session: Session, sequence: u32, time: u64, flags: u16) -> Stamp {
        Stamp {
            stream: STREAM,
            session,
            sequence: Seq(sequence),
            time,
            flags,
            origin: 1,
        }
    }

    fn hear(&mut self, from: u16, write: impl FnOnce(&mut [u8]) -> usize) {
        let mut frame = [0; 576];
        let len = write(&mut frame);
        self.machine
            .on_frame(self.now, addr(from), &frame[..len], &mut self.disk, &mut self.said);
        self.machine.poll(self.now, 8, &mut self.disk, &mut self.said);
    }

    fn wait(&mut self, time: u64) {
        self.now.mono += time;
        self.now.wall += time;
        self.machine.poll(self.now, 8, &mut self.disk, &mut self.said);
    }

    fn heartbeat(&mut self) {
        let body = HeartbeatBody {
            previous_session: 0.into(),
            previous_last: 0.into(),
            oldest: 1.into(),
            acknowledged: 1.into(),
        };
        let named = [
            Endpoint::new(addr(SERVER), Role::Server),
            Endpoint::new(addr(OWN), Role::Archive),
            Endpoint::new(addr(OTHER), Role::Archive),
        ];
        let named = &named[..if self.others { 3 } else { 2 }];
        let stamp = self.stamp(NOW_OPEN, 1, 0, flags::ARCHIVED);
        self.hear(SERVER, |buf| stamp.heartbeat(buf, &body, named));
    }

    /// The server tells of its own accord that the older session ended with message 2.
    fn remind(&mut self) {
        let stamp = self.stamp(OLDER, 3, 0, flags::FROM_SERVER);
        self.hear(SERVER, |buf| stamp.end(buf, NOW_OPEN, Session::NONE));
    }

    /// Waits for the next question to `host`, and refuses all that it asks for.
    fn refuse(&mut self, host: u16, reason: Reason) -> SeqRange {
        let (question, asked) = (0..1000)
            .find_map(|_| {
                self.wait(MILLIS);
                let asked = self.said.asked(host);
                self.said = Said::default();
                let (question, last) = *asked.last()?;
                let first = asked.iter().find(|(q, _)| *q == question)?.1;
                Some((question, range(first.first.0, last.last.0)))
            })
            .expect("a question");
        let flags = if host == SERVER { flags::FROM_SERVER } else { 0 };
        let stamp = self.stamp(OLDER, 0, question, flags);
        self.hear(host, |buf| stamp.unavailable(buf, asked, reason, 0));
        asked
    }

    /// A client asks for messages of the older session: what it is refused.
    fn refuses(&mut self, wanted: SeqRange) -> Vec<(SeqRange, Reason)> {
        self.said = Said::default();
        let stamp = self.stamp(OLDER, 0, self.now.wall, flags::ASK_ARCHIVE);
        self.hear(CLIENT, |buf| stamp.ranges(buf, Kind::Nak, [wanted]));
        self.said.refused()
    }
}

#[test]
fn what_nobody_has_of_a_session_missed_as_a_whole_is_recorded_as_lost_and_acknowledged() {
    let mut archive = Archive::new(Disk::default(), false);
    archive.remind();
    assert_eq!(archive.refuse(SERVER, Reason::TooOld), range(1, 2));
    archive.wait(SECONDS);
    assert_eq!(archive.machine.stats().lost, 2);
    let acknowledged = archive.said.acknowledged();
    assert_eq!(acknowledged.first(), Some(&range(1, 2)), "its server waits for that");
}

#[test]
fn the_end_that_a_server_tells_of_its_own_accord_loses_nothing() {
    let mut archive = Archive::new(Disk::default(), false);
    archive.remind();
    archive.remind();
    archive.wait(SECONDS);
    assert_eq!(archive.machine.stats().lost, 0);
    assert!(!archive.said.asked(SERVER).is_empty());
}

#[test]
fn numbers_that_a_server_calls_too_old_were_used_and_are_not_passed_over() {
    let mut disk = Disk::default();
    let log: &mut dyn ArchiveStore = &mut disk;
    log.open_session(OLDER, Session(49), 1).unwrap();
    let mut archive = Archive::new(disk, false);
    let stamp = archive.stamp(OLDER, 0, 0, flags::FROM_SERVER);
    archive.hear(SERVER, |buf| stamp.unavailable(buf, range(1, 3), Reason::TooOld, 0));
    // Nobody knows what lies behind them.
    archive.refuse(SERVER, Reason::UnknownSession);
    archive.wait(SECONDS);
    archive.wait(SECONDS);
    assert_eq!(archive.machine.stats().lost, 3);
    assert!(archive.said.acknowledged().contains(&range(1, 3)));
}

#[test]
fn two_archives_that_miss_the_same_do_not_wait_for_each_other() {
    let mut disk = Disk::default();
    let log: &mut dyn ArchiveStore = &mut disk;
    log.open_session(OLDER, Session(49), 1).unwrap();
    let mut archive = Archive::new(disk, true);
    archive.remind();
    archive.refuse(SERVER, Reason::TooOld);
    assert_eq!(
        archive.refuses(range(1, 2)),
        [(range(1, 2), Reason::NotYet)],
        "it may come"
    );
    for _ in 0..6 {
        archive.wait(SECONDS);
        archive.heartbeat();
    }
    assert_eq!(archive.refuses(range(1, 2)), [(range(1, 2), Reason::TooOld)]);
}

#[test]
fn what_is_not_asked_for_any_more_will_not_come() {
    let mut disk = Disk::default();
    let log: &mut dyn ArchiveStore = &mut disk;
    // More sessions than are watched; of the oldest, message 1 and the end are missing.
    for session in OLDER.0..OLDER.0 + 65 {
        let session = Session(session);
        log.open_session(session, Session(session.0 - 1), 1).unwrap();
        let block = Block::parse(Seq(2), 1, &[0; 4]).unwrap();
        log.append(session, &Record { block, time: 0 }, 0).unwrap();
    }
    let mut archive = Archive::new(disk, false);
    assert_eq!(archive.refuses(range(1, 1)), [(range(1, 1), Reason::UnknownSession)]);
}

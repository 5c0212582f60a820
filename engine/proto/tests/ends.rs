//! A server that lost its power, and with it the last of what it had sent.

mod common;

use common::{Disk, GROUP, Net, STREAM, World, addr};
use seqcast_proto::archiver::{Archiver, ArchiverConfig};
use seqcast_proto::io::{End, Lookup, Store};
use seqcast_proto::seq::{Seq, Session};
use seqcast_proto::time::{Now, SECONDS};
use seqcast_proto::wire::{Block, Endpoint, HeartbeatBody, Kind, Message, Role, Stamp, put_message};

const OLD: Session = Session(10);
const NEW: Session = Session(20);
const NO_FAULTS: Net = Net {
    loss: 0,
    double: 0,
    jitter: 0,
};

fn stamp(session: Session, sequence: u32) -> Stamp {
    Stamp {
        stream: STREAM,
        session,
        sequence: Seq(sequence),
        time: 0,
        flags: 0,
        origin: session.0,
    }
}

fn data(session: Session, sequence: u32) -> Vec<u8> {
    let mut body = [0; 64];
    let message = Message {
        subject: b"",
        payload: b"late",
    };
    let len = put_message(&mut body, &message).unwrap();
    let block = Block::parse(Seq(sequence), 1, &body[..len]).unwrap();
    let mut frame = vec![0; 128];
    let len = stamp(session, sequence).block(&mut frame, Kind::Data, &block);
    frame.truncate(len);
    frame
}

#[test]
fn what_comes_from_behind_a_told_end_is_not_stored() {
    let world = World::new(1, NO_FAULTS, 0);
    let mut frames = Vec::new();
    let mut disk = Disk::default();
    let mut archive = Archiver::new(ArchiverConfig::new(STREAM, GROUP, addr(2), 77), 0, &mut disk);
    let mut take = |frame: &[u8], disk: &mut Disk| {
        archive.on_frame(Now::default(), addr(1), frame, disk, &mut world.out(&mut frames));
        (archive.stats(), archive.missing())
    };
    take(&data(OLD, 1), &mut disk);
    // Its next run knows of messages 1 to 3 only.
    let body = HeartbeatBody {
        previous_session: OLD.0.into(),
        previous_last: 3.into(),
        oldest: 1.into(),
        acknowledged: 1.into(),
    };
    let mut beat = vec![0; 128];
    let len = stamp(NEW, 1).heartbeat(&mut beat, &body, &[Endpoint::new(addr(1), Role::Server)]);
    take(&beat[..len], &mut disk);
    // Frames that were on their way meanwhile.
    let (_, missing) = take(&data(OLD, 2), &mut disk);
    assert_eq!(missing, 1, "message 3");
    let (stats, missing) = take(&data(OLD, 5), &mut disk);
    assert_eq!((stats.stored, stats.late, stats.failed, missing), (2, 1, 0, 1));
    let end = End {
        last: Seq(3),
        next: NEW,
    };
    assert_eq!(disk.end_of(OLD), Some(end));
    assert!(matches!(disk.look_up(OLD, Seq(2)), Lookup::Found(_)));
    assert!(matches!(disk.look_up(OLD, Seq(5)), Lookup::Absent(..)));
}

#[test]
fn an_end_that_a_full_disk_refused_is_noted_when_there_is_room() {
    let world = World::new(1, NO_FAULTS, 0);
    let mut frames = Vec::new();
    let mut disk = Disk::default();
    let mut archive = Archiver::new(ArchiverConfig::new(STREAM, GROUP, addr(2), 77), 0, &mut disk);
    let out = &mut world.out(&mut frames);
    archive.on_frame(Now::default(), addr(1), &data(OLD, 1), &mut disk, out);
    disk.full = true;
    let mut told = vec![0; 128];
    let len = stamp(OLD, 2).end(&mut told, NEW, Session::NONE);
    archive.on_frame(Now::default(), addr(1), &told[..len], &mut disk, out);
    assert_eq!((disk.end_of(OLD), archive.stats().failed), (None, 1));
    disk.full = false;
    // Nobody has to say it again.
    let later = Now {
        mono: 10 * SECONDS,
        wall: 0,
    };
    archive.poll(later, 1, &mut disk, out);
    let end = End {
        last: Seq(1),
        next: NEW,
    };
    assert_eq!(disk.end_of(OLD), Some(end));
}

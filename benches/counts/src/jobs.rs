//! The hot functions, each called so many times with all that it needs made before.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, ensure};
use seqcast_archive::{Archive, Options, SessionMeta};
use seqcast_proto::archiver::{Archiver, ArchiverConfig};
use seqcast_proto::client::{Client, ClientConfig};
use seqcast_proto::io::Outbox;
use seqcast_proto::seq::{Seq, SeqRange, Session, Stream};
use seqcast_proto::server::{Server, ServerConfig};
use seqcast_proto::subject::{Matcher, Pattern};
use seqcast_proto::time::{MILLIS, Now, SECONDS};
use seqcast_proto::wire::{Kind, Stamp, flags};
use seqcast_ring::{Read, broadcast, lane};

use crate::world::{Blocks, Counter, Frames, Messages};

/// Items of each job; a count is divided by it.
pub(crate) const ITEMS: u32 = 2000;

type Job = fn() -> Result<()>;

/// In the order of the report.
pub(crate) const JOBS: &[(&str, Job)] = &[
    ("lane-push-64", lane_push),
    ("lane-pop-64", lane_pop),
    ("broadcast-publish-64", broadcast_publish),
    ("broadcast-read-64", broadcast_read),
    ("server-publish-1-message", || publish(1)),
    ("server-publish-21-messages", || publish(21)),
    ("server-answer-nak", answer),
    ("client-data-1-message", || receive(1)),
    ("client-data-21-messages", || receive(21)),
    ("archiver-data-21-messages", record),
    ("log-append-1400", append),
    ("matcher-find", find),
];

const STREAM: Stream = Stream(7);
const SESSION: Session = Session(1);
const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 82, 0, 1), 5000);
const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 82, 0, 1), 4000);
const OTHER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 82, 0, 2), 4000);
const ORIGIN: u32 = 82;

pub(crate) fn run(name: &str) -> Result<()> {
    let (_, job) = JOBS.iter().find(|(job, _)| *job == name).context("no such job")?;
    job()
}

/// Callgrind counts while this is on the stack, by its name.
#[inline(never)]
fn counted(mut each: impl FnMut(u32)) {
    for item in 0..black_box(ITEMS) {
        each(item);
    }
}

fn at(item: u32) -> Now {
    let mono = SECONDS + u64::from(item) * 100 * MILLIS;
    Now {
        mono,
        wall: 1_700_000_000 * SECONDS + mono,
    }
}

fn lane_push() -> Result<()> {
    let (mut producer, _consumer) = lane(1 << 20);
    let message = black_box([7; 64]);
    let mut full = 0;
    counted(|item| full += u32::from(producer.try_push(item, &[&message]).is_err()));
    ensure!(full == 0);
    Ok(())
}

fn lane_pop() -> Result<()> {
    let (mut producer, mut consumer) = lane(1 << 20);
    for item in 0..ITEMS {
        producer.try_push(item, &[&[7; 64]])?;
    }
    let mut sum = 0u64;
    counted(|_| {
        sum += consumer.peek().map_or(0, |entry| u64::from(entry.bytes[63]));
        consumer.advance();
    });
    ensure!(sum == u64::from(ITEMS) * 7);
    Ok(())
}

fn broadcast_publish() -> Result<()> {
    let (mut writer, _reader) = broadcast(4096, 64);
    let message = black_box([7; 64]);
    counted(|item| {
        let _ = black_box(writer.publish(item, &message));
    });
    ensure!(writer.next() == u64::from(ITEMS));
    Ok(())
}

fn broadcast_read() -> Result<()> {
    let (mut writer, mut reader) = broadcast(4096, 64);
    for item in 0..ITEMS {
        writer.publish(item, &[7; 64])?;
    }
    let mut sum = 0u64;
    counted(|_| {
        if let Some(Read::Message { bytes, .. }) = reader.read() {
            sum += u64::from(bytes[63]);
        }
    });
    ensure!(sum == u64::from(ITEMS) * 7);
    Ok(())
}

fn server(store: &mut Blocks) -> Result<Server> {
    let config = ServerConfig::new(STREAM, GROUP, SERVER, ORIGIN);
    let server = Server::open(config, SESSION, &[], at(0).mono, store);
    server.ok().context("no server")
}

/// Publishes frames of so many messages, `step` apart in time.
fn publish_into(server: &mut Server, store: &mut Blocks, out: &mut Frames, messages: u32, item: u32) -> u64 {
    let mut source = Messages {
        left: messages,
        message: [7; 64],
    };
    server.publish(at(item), 1, &mut source, store, out).0
}

fn publish(messages: u32) -> Result<()> {
    let mut store = Blocks::with_room(ITEMS as usize);
    let (mut server, mut out) = (server(&mut store)?, Frames::new(false));
    let mut sent = 0;
    counted(|item| sent += publish_into(&mut server, &mut store, &mut out, messages, item));
    ensure!(sent == u64::from(ITEMS * messages) && out.sent == u64::from(ITEMS));
    Ok(())
}

type Sent = Vec<Box<[u8]>>;

/// Data frames of so many messages each, and the store of their server.
fn frames(messages: u32) -> Result<(Server, Blocks, Sent)> {
    let mut store = Blocks::with_room(ITEMS as usize);
    let (mut server, mut out) = (server(&mut store)?, Frames::new(true));
    for item in 0..ITEMS {
        publish_into(&mut server, &mut store, &mut out, messages, item);
    }
    Ok((server, store, out.kept.unwrap_or_default()))
}

/// Each NAK asks for one frame.
fn answer() -> Result<()> {
    const COUNT: u32 = 21;
    let (mut server, mut store, _) = frames(COUNT)?;
    let mut out = Frames::new(true);
    for item in 0..ITEMS {
        let stamp = Stamp {
            stream: STREAM,
            session: SESSION,
            sequence: Seq(0),
            origin: 1,
            time: 0,
            flags: flags::ASK_SERVER,
        };
        let range = SeqRange::of(Seq(1 + item * COUNT), COUNT).context("a range")?;
        out.send(SERVER, |buffer| stamp.ranges(buffer, Kind::Nak, [range]));
    }
    let naks = out.kept.take().context("frames")?;
    let before = out.sent;
    counted(|item| {
        let now = at(ITEMS + item);
        server.on_frame(now, OTHER, &naks[item as usize], &mut store, &mut out);
        server.poll(now, 1, &mut store, &mut out);
    });
    ensure!(server.stats().repairs.naks == u64::from(ITEMS) && out.sent >= before + u64::from(ITEMS));
    Ok(())
}

fn receive(messages: u32) -> Result<()> {
    let (_, _, frames) = frames(messages)?;
    let mut client: Client<&[u8]> = Client::new(ClientConfig::new(STREAM, 1), at(0).mono);
    let mut counter = Counter::default();
    counted(|item| client.on_frame(at(item), SERVER, &frames[item as usize], &mut counter));
    ensure!(counter.0 == u64::from(ITEMS * messages) * 7);
    Ok(())
}

fn record() -> Result<()> {
    let (_, _, frames) = frames(21)?;
    let mut store = Blocks::with_room(ITEMS as usize);
    let config = ArchiverConfig::new(STREAM, GROUP, OTHER, 2);
    let mut archiver = Archiver::new(config, at(0).mono, &mut store);
    let mut out = Frames::new(false);
    counted(|item| archiver.on_frame(at(item), SERVER, &frames[item as usize], &mut store, &mut out));
    ensure!(archiver.missing() == 0);
    Ok(())
}

fn append() -> Result<()> {
    let mut archive = Archive::in_memory(STREAM, Options::default())?;
    let meta = SessionMeta {
        previous: Session::NONE,
        origin: 1,
        user: 0,
    };
    let log = archive.create_session(SESSION, meta)?;
    let block = [0x5a; 1400];
    let mut refused = 0;
    counted(|item| {
        let number = u64::from(item) + 1;
        refused += u32::from(log.append(Seq(item + 1), 1, number, number, 0, &block).is_err());
    });
    ensure!(refused == 0);
    Ok(())
}

fn find() -> Result<()> {
    let patterns: Vec<Pattern> = (0..100)
        .map(|n| Pattern::parse(&format!("md.eq.s{n}.*")))
        .collect::<Result<_, _>>()?;
    let subjects: Vec<String> = (0..100).map(|n| format!("md.eq.s{n}.trade")).collect();
    let mut matcher = Matcher::new(patterns.iter().zip(0..), Matcher::SLOTS);
    let mut found = 0;
    counted(|item| found += matcher.find(subjects[item as usize % 100].as_bytes()).len());
    ensure!(found == ITEMS as usize);
    Ok(())
}

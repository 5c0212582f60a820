//! Programs beside an engine of this process, over loopback.

mod access;

use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use seqcast_client::protocol::{Request, Role, VERSION, Wait};
use seqcast_client::socket::{MAX_MESSAGE, Socket};
use seqcast_client::{
    Engine, Error, EventKind, From, Position, Publisher, PublisherOptions, Received, Refusal, Subscriber,
    SubscriberOptions,
};
use seqcast_engine::config::Config;
use seqcast_engine::link::udp::{UdpConfig, UdpLink};
use seqcast_engine::node::{Node, Programs, StopRequests};
use seqcast_engine::report::Report;
use seqcast_proto::rng::Rng;

const LONG: Option<Duration> = Some(Duration::from_secs(30));

/// An engine on a thread; it ends with this.
struct Running {
    engine: Engine,
    stop: StopRequests,
    thread: Option<JoinHandle<Report>>,
}

impl Running {
    fn start(text: &str) -> Running {
        let config = Config::parse(text, Path::new("test")).unwrap();
        let stop = StopRequests::default();
        let (tell, told) = std::sync::mpsc::channel();
        let theirs = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let link = UdpLink::open(UdpConfig {
                interface: "lo".into(),
                ..UdpConfig::default()
            })
            .unwrap();
            let node = Node::open(&config, link, 1024, theirs, Programs::default()).unwrap();
            tell.send(node.programs().unwrap()).unwrap();
            let (report, result) = node.run();
            result.unwrap();
            report
        });
        Running {
            engine: told.recv().unwrap(),
            stop,
            thread: Some(thread),
        }
    }

    fn end(mut self) -> Report {
        self.stop.fetch_add(1, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.stop.store(2, Ordering::Relaxed);
            let _ = thread.join();
        }
    }
}

/// A group that no other test of this machine uses.
fn group() -> SocketAddrV4 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let [_, _, c, d] = std::process::id().to_be_bytes();
    let port = 21_000 + NEXT.fetch_add(1, Ordering::Relaxed) as u16;
    format!("239.84.{c}.{d}:{port}").parse().unwrap()
}

/// An engine that publishes and receives the same stream for programs.
fn both(group: SocketAddrV4, engine: &str, programs: &str, more: &str) -> String {
    format!(
        "[engine]\ninterface = \"lo\"\nidle = \"block\"\n{engine}\n[programs]\n{programs}\n\
         [[publish]]\nstream = \"{group}\"\nsource = {{ program = true }}\nlinger_ms = 0\n{more}\n\
         [[subscribe]]\nstream = \"{group}\"\nsink = {{ program = true }}\n"
    )
}

fn attach(engine: &Engine) -> (Publisher, Subscriber) {
    let publisher = Publisher::attach(engine, &PublisherOptions::default()).unwrap();
    let subscriber = Subscriber::attach(engine, &SubscriberOptions::default()).unwrap();
    (publisher, subscriber)
}

/// The next message; events that may come before it.
fn message(subscriber: &mut Subscriber, events: &mut Vec<EventKind>) -> (Position, String, Vec<u8>) {
    loop {
        match subscriber.next(LONG).unwrap().expect("a message within the time") {
            Received::Event(event) => events.push(event.kind),
            Received::Message(m) => {
                let position = Position {
                    session: m.session,
                    sequence: m.sequence,
                };
                return (position, String::from_utf8_lossy(m.subject).into(), m.payload.to_vec());
            }
        }
    }
}

#[test]
fn what_one_program_publishes_all_others_get() {
    let group = group();
    let running = Running::start(&both(group, "", "", ""));
    let info = running.engine.streams().unwrap();
    assert_eq!((info.len(), info[0].group), (1, group));
    assert!(info[0].publish && info[0].subscribe);
    let (mut publisher, first) = attach(&running.engine);
    let second = Subscriber::attach(&running.engine, &SubscriberOptions::default()).unwrap();
    let wanted = SubscriberOptions {
        subjects: vec!["a.*".into()],
        ..SubscriberOptions::default()
    };
    let filtered = Subscriber::attach(&running.engine, &wanted).unwrap();
    for n in 0..2000_u32 {
        let mut claim = loop {
            match publisher.claim(["a.x", "b.x", ""][n as usize % 3], 4 + n as usize % 90) {
                Ok(claim) => break claim,
                Err(Error::Full) => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        };
        claim[..4].copy_from_slice(&n.to_le_bytes());
        claim[4..].fill(n as u8);
        claim.commit();
    }
    publisher.flush(LONG).unwrap();
    for (mut subscriber, step) in [(first, 1), (second, 1), (filtered, 3)] {
        let mut events = Vec::new();
        for n in (0..2000_u32).step_by(step) {
            let (position, subject, payload) = message(&mut subscriber, &mut events);
            assert_eq!(position.sequence, n + 1);
            assert_eq!(subject, ["a.x", "b.x", ""][n as usize % 3]);
            assert_eq!(payload[..4], n.to_le_bytes());
            assert!(payload.len() == 4 + n as usize % 90 && payload[4..].iter().all(|b| *b == n as u8));
        }
        assert_eq!(events, [EventKind::Joined]);
        let _ = subscriber.try_next().unwrap();
        assert_eq!(subscriber.position().unwrap().sequence, 2000);
    }
    let report = running.end();
    let programs = report.programs.unwrap();
    assert_eq!((programs.attached, programs.broken), (4, 0));
    assert_eq!(report.publications[0].messages, 2000);
}

#[test]
fn a_program_that_is_too_slow_gets_what_it_missed_from_the_archive() {
    let group = group();
    let dir = tempfile::tempdir().unwrap();
    let archive = format!(
        "archives = 1\n[[archive]]\nstream = \"{group}\"\ndir = {:?}",
        dir.path()
    );
    let running = Running::start(&both(group, "", "ring = \"256 KiB\"", &archive));
    let (mut publisher, mut slow) = attach(&running.engine);
    let options = SubscriberOptions {
        recover: false,
        ..SubscriberOptions::default()
    };
    let mut reports = Subscriber::attach(&running.engine, &options).unwrap();
    let payload = |n: u32| [&n.to_le_bytes()[..], &[n as u8; 600]].concat();
    publisher.publish("", &payload(1), LONG).unwrap();
    let mut events = Vec::new();
    assert_eq!(message(&mut slow, &mut events).0.sequence, 1);
    assert_eq!(message(&mut reports, &mut events).0.sequence, 1);
    // Some ten times the ring.
    let last = 4000;
    for n in 2..=last {
        publisher.publish("", &payload(n), LONG).unwrap();
    }
    publisher.flush(LONG).unwrap();
    events.clear();
    for n in 2..=last {
        let (position, _, bytes) = message(&mut slow, &mut events);
        assert_eq!((position.sequence, bytes), (n, payload(n)));
    }
    assert_eq!(events[0], EventKind::CatchingUp);
    // It is back in the ring with one of the next messages.
    for n in last + 1.. {
        assert!(n < last + 1000, "{events:?}");
        publisher.publish("", &payload(n), LONG).unwrap();
        assert_eq!(message(&mut slow, &mut events).0.sequence, n);
        if events.last() == Some(&EventKind::CaughtUp) {
            break;
        }
    }
    // The other one is told what it has missed, exactly.
    let mut next = 2;
    let mut missed = 0;
    while next <= last {
        match reports.next(LONG).unwrap().unwrap() {
            Received::Message(m) => {
                assert_eq!(m.sequence, next);
                next += 1;
            }
            Received::Event(event) => {
                assert_eq!((event.kind, event.first), (EventKind::Missed, next));
                missed += event.last - event.first + 1;
                next = event.last + 1;
            }
        }
    }
    assert!(missed > 1000, "{missed}");
    assert_eq!(running.end().programs.unwrap().broken, 0);
}

#[test]
fn a_program_begins_where_it_wants() {
    let group = group();
    let running = Running::start(&both(group, "", "", ""));
    let (mut publisher, mut subscriber) = attach(&running.engine);
    for n in 1..=50_u32 {
        publisher.publish("", &n.to_le_bytes(), LONG).unwrap();
    }
    let mut events = Vec::new();
    let last = (1..=50)
        .map(|_| message(&mut subscriber, &mut events).0)
        .last()
        .unwrap();
    for (from, first) in [(From::Session, 1), (From::After(Position { sequence: 20, ..last }), 21)] {
        let options = SubscriberOptions {
            from,
            ..SubscriberOptions::default()
        };
        let mut late = Subscriber::attach(&running.engine, &options).unwrap();
        for n in first..=50 {
            assert_eq!(message(&mut late, &mut events).0.sequence, n);
        }
        assert_eq!(late.position(), Some(last));
    }
}

#[test]
fn a_program_is_told_exactly_what_nobody_has_any_more() {
    let group = group();
    let running = Running::start(&both(group, "", "", "retain = \"8 MiB\""));
    let (mut publisher, mut live) = attach(&running.engine);
    let last = 12_000_u32;
    for n in 1..=last {
        publisher
            .publish("", &[&n.to_le_bytes()[..], &[7; 1200]].concat(), LONG)
            .unwrap();
    }
    let mut events = Vec::new();
    while message(&mut live, &mut events).0.sequence < last {}
    let options = SubscriberOptions {
        from: From::Session,
        ..SubscriberOptions::default()
    };
    let mut late = Subscriber::attach(&running.engine, &options).unwrap();
    let (mut next, mut lost) = (1, 0);
    while next <= last {
        match late.next(LONG).unwrap().expect("something within the time") {
            Received::Event(event) if event.kind == EventKind::Lost => {
                assert_eq!(event.first, next);
                lost += event.last - event.first + 1;
                next = event.last + 1;
            }
            Received::Event(_) => {}
            Received::Message(message) => {
                assert_eq!(message.sequence, next);
                assert_eq!(message.payload[..4], next.to_le_bytes());
                next += 1;
            }
        }
    }
    assert!((1000..last).contains(&lost), "{lost}");
}

#[test]
fn who_is_refused_learns_why() {
    let group = group();
    let running = Running::start(&both(group, "", "max = 2", ""));
    let other = PublisherOptions {
        stream: Some("239.1.1.1:9".parse().unwrap()),
        ..PublisherOptions::default()
    };
    let why = |result: Result<Publisher, Error>| match result {
        Err(Error::Refused { why, .. }) => why,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("not refused"),
    };
    assert_eq!(why(Publisher::attach(&running.engine, &other)), Refusal::Stream);
    let (mut publisher, _subscriber) = attach(&running.engine);
    let options = PublisherOptions::default();
    assert_eq!(why(Publisher::attach(&running.engine, &options)), Refusal::Full);
    let max = publisher.max_message();
    assert!(matches!(
        publisher.publish("", &vec![0; max + 1], LONG),
        Err(Error::TooLarge { .. })
    ));
    assert!(matches!(publisher.publish("a..b", b"", LONG), Err(Error::Subject(_))));
    publisher.publish("", &vec![7; max], LONG).unwrap();
    publisher.flush(LONG).unwrap();
    let gone = Publisher::attach(&Engine::at("/nonexistent/socket"), &options);
    assert_eq!(gone.err().unwrap().code(), 3);
}

#[test]
fn programs_notice_that_their_engine_has_ended() {
    let group = group();
    let running = Running::start(&both(group, "", "", ""));
    let (mut publisher, mut subscriber) = attach(&running.engine);
    publisher.publish("", b"last", LONG).unwrap();
    publisher.flush(LONG).unwrap();
    running.end();
    let mut events = Vec::new();
    assert_eq!(message(&mut subscriber, &mut events).2, b"last");
    let gone = loop {
        if let Some(Received::Event(event)) = subscriber.next(LONG).unwrap()
            && event.kind == EventKind::EngineGone
        {
            break true;
        }
    };
    assert!(gone && !subscriber.is_attached());
    let gone = loop {
        if let Some(event) = publisher.poll().unwrap() {
            break event.kind;
        }
    };
    assert_eq!(gone, EventKind::EngineGone);
    assert!(matches!(publisher.try_publish("", b"x"), Err(Error::Gone(_))));
    let short = Some(Duration::from_millis(20));
    assert!(matches!(publisher.publish("", b"x", short), Err(Error::Timeout)));
    assert!(subscriber.next(short).unwrap().is_none());
}

#[test]
fn a_program_of_another_version_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let _running = Running::start(&both(group(), "", &format!("socket = {path:?}"), ""));
    let socket = Socket::connect(&path).unwrap();
    let request = Request::Attach {
        version: VERSION + 1,
        role: Role::Publish,
        stream: None,
        name: "newer".into(),
    };
    socket.send(&request.encode(), &[]).unwrap();
    let mut buffer = [0; MAX_MESSAGE];
    let said = loop {
        match socket.receive(&mut buffer).unwrap() {
            Some((length, _)) => break String::from_utf8_lossy(&buffer[..length]).into_owned(),
            None => drop(socket.wait(LONG)),
        }
    };
    let words = format!(
        "version {VERSION} of the programs' protocol, the program {}",
        VERSION + 1
    );
    assert!(
        said.contains(&words) && said.contains("use the same release"),
        "{said:?}"
    );
}

/// The descriptors of the next message.
fn received(socket: &Socket) -> Vec<OwnedFd> {
    let mut buffer = [0; MAX_MESSAGE];
    loop {
        match socket.receive(&mut buffer).unwrap() {
            Some((_, fds)) => return fds,
            None => drop(socket.wait(LONG)),
        }
    }
}

/// Writes anything anywhere into the lane that it has been given, and says anything over the socket, while
/// others go on undisturbed.
#[test]
fn a_hostile_program_harms_itself_only() {
    let group = group();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let running = Running::start(&both(group, "", &format!("socket = {path:?}\nmax = 40"), ""));
    let target = Engine::at(&path);
    let (mut publisher, mut subscriber) = attach(&target);
    let mut rng = Rng::new(3);
    let mut number = 0_u32;
    for round in 0..24 {
        let socket = Socket::connect(&path).unwrap();
        let request = Request::Attach {
            version: VERSION,
            role: if round % 4 == 3 { Role::Subscribe } else { Role::Publish },
            stream: None,
            name: "hostile".into(),
        };
        socket.send(&request.encode(), &[]).unwrap();
        let memory = std::fs::File::from(received(&socket).remove(0));
        assert!(memory.set_len(0).is_err(), "its memory cannot be taken away");
        // Every other subscriber is given what it has missed, in memory that it can write too.
        let catch_up = (round % 8 == 3).then(|| {
            let request = Request::CatchUp {
                session: 1,
                sequence: 0,
            };
            socket.send(&request.encode(), &[]).unwrap();
            std::fs::File::from(received(&socket).remove(0))
        });
        for _ in 0..200 {
            // Mostly where positions and the first entries lie.
            let at = if rng.below(4) == 0 {
                rng.below(1 << 16)
            } else {
                rng.below(64) * 8
            };
            let word = match rng.below(3) {
                0 => rng.next_u64(),
                1 => rng.below(4096),
                _ => rng.below(300) | rng.below(300) << 32,
            };
            let written = memory.write_at(&word.to_le_bytes(), at);
            assert_eq!(written.is_err(), round % 4 == 3, "a ring cannot be written, a lane can");
            if let Some(lane) = &catch_up {
                lane.write_at(&word.to_le_bytes(), at).unwrap();
            }
            let noise = rng.next_u64().to_le_bytes();
            // It may have been cut off by now.
            let _ = match rng.below(8) {
                0 if round % 2 == 0 => socket.send(&noise, &[]),
                1 => socket.send(&Request::Wait(Wait::Room(rng.below(9))).encode(), &[]),
                2 => socket.send(
                    &Request::CatchUp {
                        session: 1,
                        sequence: 7,
                    }
                    .encode(),
                    &[],
                ),
                _ => Ok(()),
            };
            publisher.publish("good", &number.to_le_bytes(), LONG).unwrap();
            number += 1;
        }
        // Some stay until the end.
        if round % 3 == 0 {
            std::mem::forget(socket);
        }
    }
    publisher.flush(LONG).unwrap();
    let mut next = 0_u32;
    while next < number {
        match subscriber.next(LONG).unwrap().expect("something within the time") {
            Received::Event(event) => assert_ne!(event.kind, EventKind::Lost),
            Received::Message(message) if message.subject == b"good" => {
                assert_eq!(message.payload, next.to_le_bytes());
                next += 1;
            }
            // What the other one managed to publish.
            Received::Message(message) => assert!(message.subject.len() <= 255),
        }
    }
    let report = running.end();
    assert!(report.programs.unwrap().broken > 0);
    assert!(!path.exists());
}

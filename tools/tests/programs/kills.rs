//! Whatever is killed, at whatever moment, harms nobody else.

use std::collections::HashMap;
use std::fs;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use seqcast_client::{Engine, EventKind, Received};
use seqcast_proto::rng::Rng;
use serde_json::Value;

use crate::common::{self, kill, terminate};
use crate::host::{Host, LONG, Tool, number_of, numbered, publisher, subscriber};

/// Publishes numbers until it is done, which the last message says in its subject; how many it were. Rests after
/// each `so_many`: the disk of a small machine is no match for it, and the tests are not about that.
fn publish_until(done: &AtomicBool, sent: &AtomicU32, so_many: u32, target: &Engine) -> u32 {
    let mut publisher = publisher(target);
    let mut number = 0;
    while !done.load(Ordering::Relaxed) {
        publisher.publish("", &numbered(number), LONG).unwrap();
        number += 1;
        sent.store(number, Ordering::Release);
        if number % so_many == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    publisher.publish("end", b"", LONG).unwrap();
    publisher.flush(LONG).unwrap();
    number
}

#[test]
fn an_engine_is_killed_under_its_programs_and_they_go_on() {
    let mut host = Host::new();
    let mut running = host.start();
    let target = host.engine();
    let done = AtomicBool::new(false);
    let sent = AtomicU32::new(0);
    let running = std::thread::scope(|scope| {
        let writer = scope.spawn(|| publish_until(&done, &sent, 256, &target));
        let reader = scope.spawn(|| {
            let mut subscriber = subscriber(&target);
            let (mut next, mut again) = (0, 0);
            let mut events = Vec::new();
            loop {
                match subscriber.next(LONG).unwrap().expect("something within the time") {
                    Received::Event(event) => {
                        assert!(!matches!(event.kind, EventKind::Lost | EventKind::Missed), "{event:?}");
                        events.push(event.kind);
                    }
                    Received::Message(message) if message.subject == b"end" => return (next, again, events),
                    Received::Message(message) => {
                        let number = number_of(message.payload);
                        assert!(number <= next, "{number} instead of {next}: something is missing");
                        // What the engine had taken in its last turn comes once more, in the next session.
                        again += u32::from(number < next);
                        next = next.max(number + 1);
                    }
                }
            }
        });
        for round in 1..=3 {
            let goal = sent.load(Ordering::Acquire) + 3000;
            common::until("messages were published", || sent.load(Ordering::Acquire) >= goal);
            kill(running);
            running = host.start();
            assert_eq!(host.starts, round + 1);
        }
        let goal = sent.load(Ordering::Acquire) + 3000;
        common::until("messages were published", || sent.load(Ordering::Acquire) >= goal);
        done.store(true, Ordering::Relaxed);
        let published = writer.join().unwrap();
        let (received, again, events) = reader.join().unwrap();
        assert_eq!(received, published);
        let count = |kind| events.iter().filter(|event| **event == kind).count();
        assert_eq!((count(EventKind::EngineGone), count(EventKind::EngineBack)), (3, 3));
        assert_eq!(count(EventKind::SessionStarted), 3, "{events:?}");
        // At most a turn's worth of frames each time.
        assert!(again <= 3 * 64 * 160, "{again}");
        running
    });
    terminate(running);
    assert!(!host.path("socket").exists());
}

#[test]
fn publishers_are_killed_while_they_write_and_leave_nothing_half() {
    let mut host = Host::new();
    let running = host.start();
    let target = host.engine();
    let mut reader = subscriber(&target);
    // One that nobody kills, beside them.
    let mut beside = publisher(&target);
    let input = host.path("input");
    let line = |number: u32| format!("{number} {:x<1$}", "", number as usize % 300);
    let text: String = (0..30_000).map(|number| line(number) + "\n").collect();
    fs::write(&input, text).unwrap();
    let mut rng = Rng::new(7);
    for _ in 0..8 {
        let mut killed = Some(host.tool(&["publish", &input.display().to_string()], Stdio::null()));
        let stop_at = rng.below(3000) as u32 + 1;
        let (mut expected, mut marked) = (0, false);
        // Until the other one's mark and some quiet: its lane is served in turn with the dead one's.
        loop {
            let quiet = if marked { Some(Duration::from_millis(100)) } else { LONG };
            match reader.next(quiet).unwrap() {
                None => break,
                Some(Received::Event(event)) => assert_ne!(event.kind, EventKind::Lost),
                Some(Received::Message(message)) if message.subject == b"mark" => marked = true,
                Some(Received::Message(message)) => {
                    assert_eq!(String::from_utf8_lossy(message.payload), line(expected));
                    expected += 1;
                    if expected == stop_at {
                        killed = None;
                        beside.publish("mark", b"", LONG).unwrap();
                    }
                }
            }
        }
        assert!(killed.is_none() && marked && expected >= stop_at);
    }
    terminate(running);
    let programs = &host.report()["programs"];
    assert_eq!(
        (&programs["broken"], &programs["attached"]),
        (&Value::from(0), &Value::from(10))
    );
}

#[test]
fn subscribers_are_killed_and_the_others_do_not_notice() {
    let mut host = Host::new();
    let running = host.start();
    let target = host.engine();
    let mut reader = subscriber(&target);
    let mut writer = publisher(&target);
    let mut rng = Rng::new(11);
    let mut number = 0;
    for _ in 0..8 {
        let mut victims: Vec<_> = (0..3)
            .map(|_| host.tool(&["subscribe", "--from", "session"], Stdio::null()))
            .collect();
        for _ in 0..3 {
            for _ in 0..rng.below(2000) {
                writer.publish("", &numbered(number), LONG).unwrap();
                number += 1;
            }
            victims.pop();
        }
    }
    writer.publish("", b"end", LONG).unwrap();
    let mut next = 0;
    loop {
        match reader.next(LONG).unwrap().expect("something within the time") {
            Received::Event(event) => assert_ne!(event.kind, EventKind::Lost),
            Received::Message(message) if message.payload == b"end" => break,
            Received::Message(message) => {
                assert_eq!(number_of(message.payload), next);
                next += 1;
            }
        }
    }
    assert_eq!(next, number);
    terminate(running);
    assert_eq!(host.report()["programs"]["broken"], 0);
}

/// What of it is a number in the environment, or `otherwise`.
fn number_in_environment(name: &str, otherwise: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(otherwise, |text| {
        text.parse().unwrap_or_else(|_| panic!("{name} is no number"))
    })
}

/// A publisher's input: its own subject, a number, and as many bytes as that says.
fn lines_of(subject: &str) -> String {
    (0..20_000)
        .map(|number| format!("{subject} {number} {:x<1$}\n", "", number % 300))
        .collect()
}

/// A line's number, if it is whole.
fn number_of_line(payload: &[u8]) -> u32 {
    let text = std::str::from_utf8(payload).unwrap();
    let (number, rest) = text.split_once(' ').unwrap();
    let number: u32 = number.parse().unwrap();
    assert!(
        rest.len() == number as usize % 300 && rest.bytes().all(|b| b == b'x'),
        "not whole: {text}"
    );
    number
}

/// Engine, publishers and subscribers are killed by chance, one after another, while others come; a publisher and a
/// subscriber live through all of it. `KILLS` and `SEED` make it longer and another one.
#[test]
fn kills_at_random_cost_nobody_else_a_message() {
    let (kills, seed) = (number_in_environment("KILLS", 24), number_in_environment("SEED", 5));
    let mut host = Host::new();
    let mut rng = Rng::new(seed);
    let mut running = host.start();
    let target = host.engine();
    let (done, sent) = (AtomicBool::new(false), AtomicU32::new(0));
    let (engines, running) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| publish_until(&done, &sent, 64, &target));
        let reader = scope.spawn(|| {
            let mut subscriber = subscriber(&target);
            let (mut next, mut of_others) = (0, HashMap::<Vec<u8>, u32>::new());
            let mut backs = 0;
            loop {
                match subscriber.next(LONG).unwrap().expect("something within the time") {
                    Received::Event(event) => {
                        assert!(!matches!(event.kind, EventKind::Lost | EventKind::Missed), "{event:?}");
                        backs += u64::from(event.kind == EventKind::EngineBack);
                    }
                    Received::Message(message) if message.subject == b"end" => return (next, backs, of_others.len()),
                    Received::Message(message) => {
                        let (number, next) = if message.subject.is_empty() {
                            (number_of(message.payload), &mut next)
                        } else {
                            let next = of_others.entry(message.subject.to_vec()).or_default();
                            (number_of_line(message.payload), next)
                        };
                        // What a killed engine had taken in its last turn may come twice; nothing is left out.
                        assert!(number <= *next, "{number} instead of {next}: something is missing");
                        *next = (*next).max(number + 1);
                    }
                }
            }
        });
        let input = host.path("input");
        let (mut publishers, mut readers) = (Vec::<Tool>::new(), Vec::<Tool>::new());
        let (mut engines, mut spoke) = (0, 0_u32);
        for _ in 0..kills {
            while publishers.len() < 2 {
                fs::write(&input, lines_of(&format!("by.{spoke}"))).unwrap();
                let file = Stdio::from(fs::File::open(&input).unwrap());
                let rate = (1000 + rng.below(9000)).to_string();
                let arguments = ["publish", "--format", "subject-lines", "--wait", "30", "--rate", &rate];
                publishers.push(host.tool(&arguments, file));
                // The next one's input is another file.
                fs::remove_file(&input).unwrap();
                spoke += 1;
            }
            while readers.len() < 2 {
                // Half of them end up waiting for somebody to take what they print.
                let out: &[&str] = if rng.below(2) == 0 {
                    &["--out", "/dev/null"]
                } else {
                    &[]
                };
                let arguments = [&["subscribe", "--from", "session", "--wait", "30"], out].concat();
                readers.push(host.tool(&arguments, Stdio::null()));
            }
            let goal = sent.load(Ordering::Acquire) + rng.below(1500) as u32;
            common::until("messages were published", || sent.load(Ordering::Acquire) >= goal);
            let one = rng.below(2) as usize;
            match rng.below(4) {
                0 => {
                    kill(running);
                    running = host.start();
                    engines += 1;
                }
                1 => drop(readers.swap_remove(one)),
                _ => drop(publishers.swap_remove(one)),
            }
        }
        done.store(true, Ordering::Relaxed);
        let published = writer.join().unwrap();
        drop((publishers, readers));
        let (received, backs, others) = reader.join().unwrap();
        assert_eq!(received, published, "seed {seed}");
        // An engine may be killed before the reader has found it.
        assert!(
            (1..=engines).contains(&backs),
            "{backs} of {engines} engines, seed {seed}"
        );
        assert!(others > 0);
        (engines, running)
    });
    assert!(engines > 0, "seed {seed} kills no engine: take another");
    terminate(running);
    assert_eq!(host.report()["programs"]["broken"], 0);
}

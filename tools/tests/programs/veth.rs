//! Programs on two hosts of a veth lab, AF_XDP between their engines.

use seqcast_client::{Engine, EventKind, From, Publisher, PublisherOptions, Received, Subscriber, SubscriberOptions};

use crate::common::{World, terminate};
use crate::host::{LONG, number_of, numbered};

#[test]
fn what_a_program_publishes_on_one_host_a_program_gets_on_another() {
    let world = World::new(&["server", "archive", "client"], 100);
    let stream = &world.stream;
    let socket = |host: &str| world.path(&format!("{host}.sock"));
    let programs = |host: &str| format!("[programs]\nsocket = {:?}\n", socket(host));
    let archive = world.start("archive", false, &world.archive());
    // It loses frames on purpose, a burst among them.
    let client = world.start(
        "client",
        true,
        &format!(
            "{}[[subscribe]]\nstream = \"{stream}\"\nsink = {{ program = true }}\n",
            programs("client")
        ),
    );
    let server = world.start(
        "server",
        false,
        &format!(
            "{}[[publish]]\nstream = \"{stream}\"\narchives = 1\nsource = {{ program = true }}\n",
            programs("server")
        ),
    );
    let mut publisher = Publisher::attach(&Engine::at(socket("server")), &PublisherOptions::default()).unwrap();
    let mut subscriber = Subscriber::attach(&Engine::at(socket("client")), &SubscriberOptions::default()).unwrap();
    let last = 30_000;
    let writer = std::thread::spawn(move || {
        for number in 0..last {
            publisher.publish("a.b", &numbered(number), LONG).unwrap();
        }
        publisher.flush(LONG).unwrap();
    });
    let (mut next, mut repaired, mut gaps) = (0, 0, 0);
    while next < last {
        match subscriber.next(LONG).unwrap().expect("something within the time") {
            Received::Event(event) => {
                assert!(!matches!(event.kind, EventKind::Lost | EventKind::Missed), "{event:?}");
                gaps += u32::from(event.kind == EventKind::Gap);
            }
            Received::Message(message) => {
                assert_eq!((message.subject, number_of(message.payload)), (&b"a.b"[..], next));
                repaired += u32::from(message.flags & seqcast_client::flags::REPAIRED != 0);
                next += 1;
            }
        }
    }
    writer.join().unwrap();
    assert!(repaired > 0 && gaps > 0, "nothing was lost on the way");
    // Who comes late gets all of it from the archive, on the third host.
    let options = SubscriberOptions {
        from: From::Session,
        ..SubscriberOptions::default()
    };
    let mut late = Subscriber::attach(&Engine::at(socket("client")), &options).unwrap();
    let mut next = 0;
    while next < last {
        if let Received::Message(message) = late.next(LONG).unwrap().expect("something within the time") {
            assert_eq!(number_of(message.payload), next);
            next += 1;
        }
    }
    for engine in [server, client, archive] {
        terminate(engine);
    }
    let report = world.report("client");
    let parts = &report["programs"];
    assert_eq!((&parts["attached"], &parts["broken"]), (&2.into(), &0.into()));
}

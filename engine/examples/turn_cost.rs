//! What the engine itself costs on either side, without a network: nanoseconds of an empty turn, of a
//! frame published into a link that goes nowhere, and of a frame delivered from a link that always has
//! some. What a real link adds is in `scripts/bench`.
//!
//! With the argument `unwatched` or `watched` the link is one that `seqcast capture` can watch, without and with a
//! capture that takes everything; without an argument it is not.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use seqcast_engine::capture::request::Request;
use seqcast_engine::capture::{Socket, Tapped};
use seqcast_engine::config::Config;
use seqcast_engine::link::{Datagram, Link, LinkStats};
use seqcast_engine::node::{Node, Programs, StopRequests};
use seqcast_proto::io::{Application, Delivery, Event};
use seqcast_proto::server::Source;
use seqcast_proto::wire::{Kind, Message, peek};

const STREAM: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 1, 1, 1), 5000);
const HOST: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);
const MAX_PAYLOAD: usize = 1472;
/// Frames that are handed out in turn, as many as a receive ring has.
const FRAMES: usize = 2048;
const ROUNDS: usize = 20;
const ROUND: Duration = Duration::from_millis(20);

/// Swallows what is sent, but keeps the first data frame; or hands that out again and again, under
/// the numbers that follow.
#[derive(Default)]
struct Wire {
    sample: RefCell<Vec<u8>>,
    free: RefCell<VecDeque<Box<[u8]>>>,
    per_frame: Cell<u32>,
    next: Cell<u32>,
    at_once: Cell<usize>,
}

struct Plug {
    wire: Rc<Wire>,
    scratch: Box<[u8]>,
}

struct Handed {
    bytes: Box<[u8]>,
    wire: Rc<Wire>,
}

impl AsRef<[u8]> for Handed {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Handed {
    #[inline]
    fn drop(&mut self) {
        self.wire.free.borrow_mut().push_back(std::mem::take(&mut self.bytes));
    }
}

impl Link for Plug {
    type Frame = Handed;

    #[inline]
    fn receive(&mut self, max: usize, mut each: impl FnMut(Datagram<Handed>)) -> io::Result<usize> {
        let count = max.min(self.wire.at_once.get());
        for _ in 0..count {
            let Some(mut bytes) = self.wire.free.borrow_mut().pop_front() else {
                return Ok(0);
            };
            // Where the frame's first number lies.
            bytes[12..16].copy_from_slice(&self.wire.next.get().to_le_bytes());
            self.wire.next.set(self.wire.next.get() + self.wire.per_frame.get());
            let wire = Rc::clone(&self.wire);
            each(Datagram {
                from: HOST,
                to: STREAM,
                frame: Handed { bytes, wire },
            });
        }
        Ok(count)
    }

    #[inline]
    fn send(&mut self, _to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let len = build(&mut self.scratch);
        let mut sample = self.wire.sample.borrow_mut();
        if sample.is_empty() && matches!(peek(&self.scratch[..len]), Some((_, Kind::Data))) {
            *sample = self.scratch[..len].to_vec();
        }
        true
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn join(&mut self, _group: SocketAddrV4) -> io::Result<()> {
        Ok(())
    }

    fn wait(&mut self, _wake: BorrowedFd<'_>, _timeout: Duration) -> io::Result<()> {
        Ok(())
    }

    fn max_payload(&self) -> usize {
        MAX_PAYLOAD
    }

    fn local(&self) -> SocketAddrV4 {
        HOST
    }

    fn mode(&self) -> String {
        "nowhere".into()
    }

    fn stats(&mut self) -> LinkStats {
        LinkStats::default()
    }
}

/// Has as many messages as it is told to.
struct Given {
    message: Vec<u8>,
    left: Rc<Cell<u32>>,
}

impl Source for Given {
    #[inline]
    fn peek(&mut self) -> Option<Message<'_>> {
        (self.left.get() > 0).then_some(Message {
            subject: b"",
            payload: &self.message,
        })
    }

    #[inline]
    fn advance(&mut self) {
        self.left.set(self.left.get() - 1);
    }
}

/// Reads a word of every message.
struct Reader(Rc<Cell<u64>>);

impl Application for Reader {
    #[inline]
    fn deliver(&mut self, delivery: &Delivery<'_>) -> bool {
        let words = delivery.block.messages().map(|(_, m)| u64::from(m.payload[0]));
        self.0.set(self.0.get() + words.sum::<u64>());
        true
    }

    fn event(&mut self, _event: Event) {}
}

fn open<L: Link>(wire: &Rc<Wire>, table: &str, programs: Programs, wrap: &impl Fn(Plug) -> L) -> Node<L> {
    let text = format!("[engine]\ninterface = \"x\"\n[[{table}]]\nstream = \"{STREAM}\"\n");
    let end = if table == "publish" { "source" } else { "sink" };
    let config = Config::parse(&format!("{text}{end} = {{ program = true }}\n"), Path::new("x"));
    let plug = Plug {
        wire: Rc::clone(wire),
        scratch: vec![0; 2048].into(),
    };
    let config = config.expect("a configuration");
    Node::open(&config, wrap(plug), 4096, StopRequests::default(), programs).expect("an engine")
}

/// The least nanoseconds of one turn, over several rounds: what disturbs only adds.
fn least(mut turn: impl FnMut()) -> f64 {
    let mut least = f64::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut turns = 0u32;
        while start.elapsed() < ROUND {
            (0..16).for_each(|_| turn());
            turns += 16;
        }
        least = least.min(start.elapsed().as_nanos() as f64 / f64::from(turns));
    }
    least
}

/// Takes all that an engine shows, until it ends.
fn watch(path: &Path) {
    let mut socket = UnixStream::connect(path).expect("an engine");
    socket.write_all(&Request::default().to_bytes()).expect("an engine");
    let mut buffer = vec![0; 1 << 20];
    while matches!(socket.read(&mut buffer), Ok(1..)) {}
}

fn main() {
    match std::env::args().nth(1).as_deref() {
        None => measure(&|plug| plug),
        Some("unwatched") => measure(&|plug| Tapped::new(plug, None)),
        Some("watched") => {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("socket");
            // One for each engine: it must outlive it, and takes no others.
            let sockets = RefCell::new(Vec::new());
            measure(&|plug| {
                let path = path.with_extension(sockets.borrow().len().to_string());
                let socket = Socket::open(&path, String::new()).expect("a socket");
                std::thread::spawn({
                    let path = path.clone();
                    move || watch(&path)
                });
                while !socket.is_watched() {
                    std::thread::yield_now();
                }
                let tapped = Tapped::new(plug, Some(&socket));
                sockets.borrow_mut().push(socket);
                tapped
            });
        }
        Some(other) => panic!("{other}: unwatched, watched or nothing"),
    }
}

fn measure<L: Link>(wrap: &impl Fn(Plug) -> L) {
    println!("nanoseconds            empty turn   alone: publish  deliver   in 64: publish  deliver, a frame");
    for (what, size, per_frame) in [("64 B", 64, 1), ("64 B, 21 a frame", 64, 21), ("1 KiB", 1024, 1)] {
        let wire = Rc::new(Wire::default());
        let left = Rc::new(Cell::new(0));
        let given = Given {
            message: vec![7; size],
            left: Rc::clone(&left),
        };
        let programs = Programs {
            publishers: vec![(STREAM, Box::new(given))],
            ..Programs::default()
        };
        let mut server = open(&wire, "publish", programs, wrap);
        // A run without a state directory waits for its second to be over.
        while wire.sample.borrow().is_empty() {
            left.set(per_frame);
            server.poll().expect("a turn");
        }
        left.set(0);
        let empty = least(|| {
            server.poll().expect("a turn");
        });
        let mut publish = |frames| {
            least(|| {
                left.set(per_frame * frames);
                server.poll().expect("a turn");
            }) / f64::from(frames)
        };
        let published = [publish(1), publish(64)];

        let first = wire.sample.borrow().clone();
        *wire.free.borrow_mut() = (0..FRAMES).map(|_| first.clone().into_boxed_slice()).collect();
        wire.per_frame.set(per_frame);
        wire.next.set(1);
        let programs = Programs {
            handlers: vec![(STREAM, Box::new(Reader(Rc::default())))],
            ..Programs::default()
        };
        let mut client = open(&wire, "subscribe", programs, wrap);
        let mut deliver = |frames: usize| {
            wire.at_once.set(frames);
            least(|| {
                client.poll().expect("a turn");
            }) / frames as f64
        };
        let delivered = [deliver(1), deliver(64)];
        println!(
            "{what:<20} {empty:>12.0} {:>16.0} {:>8.0} {:>16.0} {:>8.0}",
            published[0], delivered[0], published[1], delivered[1]
        );
    }
}

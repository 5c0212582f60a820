//! The hot path allocates nothing per packet: counted, over whole engines that lose frames and repair them.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use seqcast_engine::config::Config;
use seqcast_engine::keys;
use seqcast_engine::link::{Datagram, Link, LinkStats};
use seqcast_engine::node::{Node, Programs, StopRequests};
use seqcast_proto::io::{Application, Delivery, Event};
use seqcast_proto::rng::Rng;

/// Counts what the testing thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending has no counter any more, and is not the one that is measured.
    let _ = ALLOCATIONS.try_with(|c| c.set(c.get() + 1));
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const FRAME: usize = 1472;
const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 1, 1, 1), 5000);
/// Line B's.
const GROUP_B: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 2, 1, 1), 5000);

/// A wire in memory: every frame goes to all ports that it is for, but for some that are lost.
struct Wire {
    free: RefCell<Vec<Box<[u8]>>>,
    ports: RefCell<Vec<Port>>,
    sent: Cell<u64>,
    luck: RefCell<Rng>,
}

struct Port {
    addr: SocketAddrV4,
    joined: Vec<SocketAddrV4>,
    waiting: VecDeque<Datagram<Held>>,
}

struct Held {
    bytes: Box<[u8]>,
    len: usize,
    wire: Rc<Wire>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.wire.free.borrow_mut().push(std::mem::take(&mut self.bytes));
    }
}

struct Plug {
    wire: Rc<Wire>,
    at: usize,
    scratch: Box<[u8]>,
}

impl Plug {
    fn new(wire: &Rc<Wire>) -> Plug {
        let mut ports = wire.ports.borrow_mut();
        let host = ports.len() as u8 + 1;
        ports.push(Port {
            addr: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, host), 4000),
            joined: Vec::new(),
            waiting: VecDeque::with_capacity(8192),
        });
        Plug {
            wire: Rc::clone(wire),
            at: ports.len() - 1,
            scratch: vec![0; FRAME].into_boxed_slice(),
        }
    }
}

impl Link for Plug {
    type Frame = Held;

    fn receive(&mut self, max: usize, mut each: impl FnMut(Datagram<Held>)) -> io::Result<usize> {
        for n in 0..max {
            let next = self.wire.ports.borrow_mut()[self.at].waiting.pop_front();
            match next {
                Some(datagram) => each(datagram),
                None => return Ok(n),
            }
        }
        Ok(max)
    }

    fn send(&mut self, to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let len = build(&mut self.scratch);
        let mut ports = self.wire.ports.borrow_mut();
        let from = ports[self.at].addr;
        for (at, port) in ports.iter_mut().enumerate() {
            let wanted = port.addr == to || port.joined.contains(&to) && at != self.at;
            if !wanted || len == 0 {
                continue;
            }
            let sent = self.wire.sent.get() + 1;
            self.wire.sent.set(sent);
            // One frame in 50 is lost at random, and now and then 40 in a row.
            if self.wire.luck.borrow_mut().below(50) == 0 || sent % 20_000 < 40 {
                continue;
            }
            let Some(mut bytes) = self.wire.free.borrow_mut().pop() else {
                continue;
            };
            bytes[..len].copy_from_slice(&self.scratch[..len]);
            let frame = Held {
                bytes,
                len,
                wire: Rc::clone(&self.wire),
            };
            port.waiting.push_back(Datagram { from, to, frame });
        }
        true
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn join(&mut self, group: SocketAddrV4) -> io::Result<()> {
        self.wire.ports.borrow_mut()[self.at].joined.push(group);
        Ok(())
    }

    fn wait(&mut self, _wake: BorrowedFd<'_>, _timeout: Duration) -> io::Result<()> {
        Ok(())
    }

    fn max_payload(&self) -> usize {
        FRAME
    }

    fn local(&self) -> SocketAddrV4 {
        self.wire.ports.borrow()[self.at].addr
    }

    fn mode(&self) -> String {
        "memory".into()
    }

    fn stats(&mut self) -> LinkStats {
        LinkStats::default()
    }
}

/// Counts what it is given, and looks that no byte of it was copied on the way.
struct Counter {
    got: Rc<Cell<u64>>,
    /// The link's receive buffers.
    buffers: BTreeSet<usize>,
}

impl Application for Counter {
    fn deliver(&mut self, delivery: &Delivery<'_>) -> bool {
        for (_, message) in delivery.block.messages() {
            let at = message.payload.as_ptr() as usize;
            let buffer = self.buffers.range(..=at).next_back().unwrap();
            assert!(
                at + message.payload.len() <= buffer + FRAME,
                "in the frame that was received"
            );
            let number = u64::from_le_bytes(message.payload[..8].try_into().unwrap());
            assert_eq!(number, self.got.get(), "in order, each once");
            self.got.set(number + 1);
        }
        true
    }

    fn event(&mut self, _event: Event) {}
}

fn node(wire: &Rc<Wire>, role: &str, programs: Programs) -> Node<Plug> {
    let text = format!("[engine]\ninterface = \"memory\"\nidle = \"spin\"\n{role}");
    let config = Config::parse(&text, Path::new("test")).unwrap();
    Node::open(&config, Plug::new(wire), 2048, StopRequests::default(), programs).unwrap()
}

#[test]
fn publishing_archiving_repairing_and_delivering_allocate_nothing_per_packet() {
    allocates_nothing_per_packet("", 1_000);
}

#[test]
fn sealing_and_opening_allocate_nothing_per_packet() {
    let dir = tempfile::TempDir::new().unwrap();
    let key = dir.path().join("key");
    keys::write(&key, &[keys::Entry::random(1).unwrap()], false).unwrap();
    let keys = format!("trust = {{ key = {key:?}, allow = [\"0.0.0.0/0\"] }}");
    allocates_nothing_per_packet(&keys, 1_000);
    // Few frames are lost on both lines.
    allocates_nothing_per_packet(&format!("{keys}\nlines = {{ b = \"{GROUP_B}\" }}"), 50);
}

#[test]
fn arbitrating_two_lines_allocates_nothing_per_packet() {
    allocates_nothing_per_packet(&format!("lines = {{ b = \"{GROUP_B}\" }}"), 50);
}

/// Runs a stream whose tables have `more` keys, and loses so much that at least `repaired` messages are
/// repaired.
fn allocates_nothing_per_packet(more: &str, repaired: u64) {
    let wire = Rc::new(Wire {
        free: RefCell::new((0..16_384).map(|_| vec![0; FRAME].into_boxed_slice()).collect()),
        ports: RefCell::default(),
        sent: Cell::new(0),
        luck: RefCell::new(Rng::new(1)),
    });
    let dir = tempfile::TempDir::new().unwrap();
    let (mut lane, consumer) = seqcast_ring::lane(1 << 20);
    let got = Rc::new(Cell::new(0));
    let counter = Counter {
        got: Rc::clone(&got),
        buffers: wire.free.borrow().iter().map(|b| b.as_ptr() as usize).collect(),
    };
    let mut archive = node(
        &wire,
        &format!(
            "[[archive]]\nstream = \"{GROUP}\"\ndir = \"{}\"\n{more}",
            dir.path().join("a").display()
        ),
        Programs::default(),
    );
    let mut client = node(
        &wire,
        &format!("[[subscribe]]\nstream = \"{GROUP}\"\nfrom = \"session\"\nsink = {{ program = true }}\n{more}"),
        Programs {
            handlers: vec![(GROUP, Box::new(counter))],
            ..Programs::default()
        },
    );
    let mut server = node(
        &wire,
        &format!(
            "[[publish]]\nstream = \"{GROUP}\"\narchives = 1\nstate = \"{}\"\nsource = {{ program = true }}\n{more}",
            dir.path().join("s").display()
        ),
        Programs {
            sources: vec![(GROUP, consumer)],
            ..Programs::default()
        },
    );

    let mut put = 0u64;
    let mut run = |until: u64| {
        while got.get() < until {
            let mut payload = [0; 64];
            while put < until {
                payload[..8].copy_from_slice(&put.to_le_bytes());
                if lane.try_push(0, &[&payload]).is_err() {
                    break;
                }
                put += 1;
            }
            server.poll().unwrap();
            archive.poll().unwrap();
            client.poll().unwrap();
        }
    };
    // Buffers that grow to their bound do so at first.
    run(200_000);
    // What is left is one burst of book-keeping when a log begins a segment of 16 MiB, away from
    // almost every packet: 500 000 messages of 68 bytes make each of the two logs do so twice or
    // three times, and the server's log give segments back as often.
    let mut allocating = 0;
    for step in 1..=5_000 {
        let before = ALLOCATIONS.get();
        run(200_000 + step * 100);
        allocating += u64::from(ALLOCATIONS.get() > before);
    }
    let report = client.report();
    assert_eq!(report.trust.len(), usize::from(more.contains("trust")));
    assert!(report.trust.iter().all(|t| t.opened > 1_000 && t.forged == 0));
    let subscription = &report.subscriptions[0];
    let lines = &subscription.lines;
    assert_eq!(lines.len(), if more.contains("lines") { 2 } else { 0 });
    assert!(lines.iter().all(|l| l.first > 100 && l.missed > 1_000), "{lines:?}");
    assert!(
        subscription.repaired_archive > repaired,
        "loss was there and was made good: {subscription:?}"
    );
    assert!(
        allocating <= 10,
        "{allocating} of 5000 times 100 messages needed memory"
    );
}

//! The engine, and its links alone.

use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path as FilePath;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use seqcast_engine::config::Config;
use seqcast_engine::link::udp::{UdpConfig, UdpLink};
#[cfg(feature = "xdp")]
use seqcast_engine::link::xdp::{Attach, Bind, XdpConfig, XdpLink};
use seqcast_engine::link::{Fault, Link, LinkStats};
use seqcast_engine::node::{Node, Programs};
use seqcast_engine::stream_id;
use seqcast_proto::io::{Application, Delivery, Event, Path};
use seqcast_proto::seq::{Seq, SeqRange, Session};
use seqcast_proto::server::Source;
use seqcast_proto::wire::Message;
use tempfile::TempDir;

#[cfg(feature = "xdp")]
use crate::bare::{Mode, frame_size};
use crate::duel::{BATCH, Counters, Port, Received, Words, word_of};
use crate::greedy::Greedy;
use crate::pair::{End, Side};

/// What each end sends to the other.
fn stream(from: End) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(239, 82, 0, 1 + from as u8), 7801)
}

/// Opens the AF_XDP link; `drop` is the share of arriving frames to lose on purpose.
#[cfg(feature = "xdp")]
pub(crate) fn xdp(side: &Side, mode: Mode, drop: f64) -> Result<(XdpLink, u32)> {
    let config = XdpConfig {
        attach: match mode {
            Mode::Driver => Attach::Driver,
            Mode::Generic => Attach::Generic,
        },
        bind: if side.zero_copy && mode == Mode::Driver {
            Bind::ZeroCopy
        } else {
            Bind::Copy
        },
        frame_size: frame_size(side.mtu),
        fault: fault(drop),
        ..XdpConfig::new(side.interface.clone())
    };
    Ok((XdpLink::open(&config)?, config.may_hold()))
}

/// Opens the link over kernel sockets.
pub(crate) fn udp(side: &Side, drop: f64) -> Result<(UdpLink, u32)> {
    let config = UdpConfig {
        interface: side.interface.clone(),
        fault: fault(drop),
        ..UdpConfig::default()
    };
    let may_hold = (config.frames / 2) as u32;
    Ok((UdpLink::open(config)?, may_hold))
}

fn fault(drop: f64) -> Fault {
    Fault {
        drop_share: drop,
        seed: 82,
        ..Fault::default()
    }
}

/// An engine that publishes this end's stream and receives the other's. All settings but `idle` and those of
/// the link, which stands for what the text says of it, are the engine's defaults.
pub(crate) fn config(side: &Side, more: &str) -> Result<Config> {
    let text = format!(
        "[engine]\nname = \"bench\"\ninterface = \"{}\"\n{more}\n\
         [[publish]]\nstream = \"{}\"\nsource = {{ program = true }}\n\
         [[subscribe]]\nstream = \"{}\"\nsink = {{ program = true }}\n",
        side.interface,
        stream(side.end),
        stream(side.end.other())
    );
    Config::parse(&text, FilePath::new("benchmark")).map_err(|error| anyhow!("{error}"))
}

const SPIN: &str = "idle = \"spin\"";

/// A link without a protocol above it.
pub(crate) struct LinkPort<L> {
    link: L,
    to: SocketAddrV4,
    words: Words,
}

impl<L: Link> LinkPort<L> {
    pub(crate) fn new(side: &Side, mut link: L) -> Result<LinkPort<L>> {
        link.join(stream(side.end.other()))?;
        Ok(LinkPort {
            link,
            to: stream(side.end),
            words: Words::default(),
        })
    }
}

impl<L: Link> Port for LinkPort<L> {
    fn send(&mut self, word: u64, size: usize, count: usize) -> Result<usize> {
        let mut sent = 0;
        while sent < count {
            let queued = self.link.send(self.to, |buffer| {
                buffer[..8].copy_from_slice(&word.to_ne_bytes());
                size
            });
            if !queued {
                break;
            }
            sent += 1;
        }
        self.link.flush()?;
        Ok(sent)
    }

    fn receive(&mut self) -> Result<Received> {
        let mut word = 0;
        let messages = self.link.receive(BATCH, |datagram| {
            word = word_of(datagram.frame.as_ref());
            self.words.note(word, false);
        })?;
        Ok(Received { messages, word })
    }

    fn words(&mut self, with: impl FnOnce(&mut Words)) {
        with(&mut self.words);
    }

    fn counters(&mut self) -> Counters {
        counters(self.link.stats())
    }
}

pub(crate) fn counters(stats: LinkStats) -> Counters {
    Counters {
        frames: stats.sent,
        syscalls: stats.syscalls,
    }
}

/// What the handler has seen since it was last asked.
#[derive(Default)]
struct Seen {
    received: Cell<Received>,
    /// One past what was delivered last.
    next: Cell<Option<(Session, Seq)>>,
    lost: Cell<u64>,
    words: RefCell<Words>,
}

struct Handler(Rc<Seen>);

impl Application for Handler {
    #[inline]
    fn deliver(&mut self, delivery: &Delivery<'_>) -> bool {
        let mut received = self.0.received.get();
        let mut words = self.0.words.borrow_mut();
        let repaired = delivery.path != Path::Live;
        for (_, message) in delivery.block.messages() {
            received.messages += 1;
            received.word = word_of(message.payload);
            words.note(received.word, repaired);
        }
        self.0.received.set(received);
        let next = delivery.block.range().map_or(Seq::FIRST, SeqRange::end);
        self.0.next.set(Some((delivery.session, next)));
        true
    }

    fn event(&mut self, event: Event) {
        if let Event::Lost { range, .. } = event {
            self.0
                .lost
                .set(self.0.lost.get() + u64::from(range.last.since(range.first)) + 1);
        }
    }
}

/// Messages that the program makes ahead of the engine.
const AHEAD: usize = 16;

/// What the program has to send: the same message so many times.
#[derive(Default)]
struct Outgoing {
    word: Cell<u64>,
    size: Cell<usize>,
    left: Cell<usize>,
}

/// The program as the engine's source: it runs on the engine's thread, so no lane lies between. As
/// from a lane, a message is taken some time after it was written: what is written in pieces and
/// read as a whole at once stalls the processor.
struct Publisher {
    outgoing: Rc<Outgoing>,
    messages: [Box<[u8]>; AHEAD],
    next: usize,
    /// With which they begin.
    word: u64,
}

impl Publisher {
    fn new(outgoing: Rc<Outgoing>) -> Publisher {
        Publisher {
            outgoing,
            messages: std::array::from_fn(|_| vec![0; 2048].into()),
            next: 0,
            word: 0,
        }
    }

    #[cold]
    fn begin_with(&mut self, word: u64) {
        self.word = word;
        (0..AHEAD).for_each(|at| self.make(at));
    }

    #[inline]
    fn make(&mut self, at: usize) {
        self.messages[at][..8].copy_from_slice(&self.word.to_ne_bytes());
    }
}

impl Source for Publisher {
    #[inline]
    fn peek(&mut self) -> Option<Message<'_>> {
        let (word, size) = (self.outgoing.word.get(), self.outgoing.size.get());
        if self.outgoing.left.get() == 0 {
            return None;
        }
        if self.word != word {
            self.begin_with(word);
        }
        Some(Message {
            subject: b"",
            payload: &self.messages[self.next][..size],
        })
    }

    #[inline]
    fn advance(&mut self) {
        // A message is made anew for each number, as a program would.
        self.make(self.next);
        self.next = (self.next + 1) % AHEAD;
        self.outgoing.left.set(self.outgoing.left.get() - 1);
    }
}

/// An engine that is driven by the program that publishes and receives, on one thread: publishes
/// one stream, receives the other end's.
pub(crate) struct EnginePort<L: Link> {
    node: Node<L>,
    outgoing: Rc<Outgoing>,
    seen: Rc<Seen>,
    greedy: Option<Greedy>,
    /// Where the far end records the stream.
    _archive: Option<TempDir>,
}

impl<L: Link> EnginePort<L> {
    /// With a client beside it that asks for everything, at the far end.
    pub(crate) fn open_greedy(side: &Side, link: (L, u32)) -> Result<EnginePort<L>> {
        let mut port = EnginePort::open(side, link)?;
        if side.end == End::Far {
            let group = stream(side.end.other());
            port.greedy = Some(Greedy::open(side, group, stream_id(group, None))?);
        }
        Ok(port)
    }

    /// With an archive of the near end's stream in the far end's engine, below `directory`.
    pub(crate) fn open_archiving(side: &Side, link: (L, u32), directory: &FilePath) -> Result<EnginePort<L>> {
        if side.end == End::Near {
            return EnginePort::open(side, link);
        }
        let archive = TempDir::new_in(directory)?;
        let table = format!(
            "{SPIN}\n[[archive]]\nstream = \"{}\"\ndir = {:?}\nkeep_bytes = \"2 GiB\"",
            stream(side.end.other()),
            archive.path(),
        );
        let mut port = EnginePort::with(side, link, &table)?;
        port._archive = Some(archive);
        Ok(port)
    }

    pub(crate) fn open(side: &Side, link: (L, u32)) -> Result<EnginePort<L>> {
        EnginePort::with(side, link, SPIN)
    }

    fn with(side: &Side, (link, may_hold): (L, u32), more: &str) -> Result<EnginePort<L>> {
        let (ours, theirs) = (stream(side.end), stream(side.end.other()));
        let config = config(side, more)?;
        let outgoing = Rc::new(Outgoing::default());
        let publisher = Publisher::new(Rc::clone(&outgoing));
        let seen = Rc::new(Seen::default());
        let programs = Programs {
            publishers: vec![(ours, Box::new(publisher))],
            handlers: vec![(theirs, Box::new(Handler(Rc::clone(&seen))))],
            ..Programs::default()
        };
        Ok(EnginePort {
            node: Node::open(&config, link, may_hold, Arc::default(), programs)?,
            outgoing,
            seen,
            greedy: None,
            _archive: None,
        })
    }
}

impl<L: Link> Port for EnginePort<L> {
    const REPAIRS: bool = true;

    #[inline]
    fn send(&mut self, word: u64, size: usize, count: usize) -> Result<usize> {
        self.outgoing.word.set(word);
        self.outgoing.size.set(size);
        self.outgoing.left.set(count);
        self.node.poll()?;
        // What found no room now is offered again by the caller.
        Ok(count - self.outgoing.left.take())
    }

    #[inline]
    fn receive(&mut self) -> Result<Received> {
        self.node.poll()?;
        if let (Some(greedy), Some((session, next))) = (&mut self.greedy, self.seen.next.get()) {
            greedy.ask(session, next)?;
        }
        Ok(self.seen.received.take())
    }

    fn words(&mut self, with: impl FnOnce(&mut Words)) {
        with(&mut self.seen.words.borrow_mut());
    }

    fn counters(&mut self) -> Counters {
        counters(self.node.report().link)
    }

    fn lost(&mut self) -> u64 {
        self.seen.lost.get()
    }
}

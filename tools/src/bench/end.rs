//! An engine that is driven by the thread that measures.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use seqcast_engine::config::{Config, Core, LinkKind};
use seqcast_engine::cores;
use seqcast_engine::link::Link;
use seqcast_engine::node::{Node, Programs};
use seqcast_engine::open::{self, OnLink};
use seqcast_engine::report;
use seqcast_proto::io::{Application, Delivery, Event, Path};
use seqcast_proto::server::Source;
use seqcast_proto::wire::Message;

use super::talk::{HEAD, Head};

/// Longest message.
pub(super) const LONGEST: usize = 9000;
/// Messages that may wait to be published: more than a window of answers.
const WAITING: usize = 1 << 16;

/// What is to be published.
pub(super) struct Outbox {
    waiting: VecDeque<(Head, usize)>,
    /// What stands behind the head of a greeting.
    pub(super) text: Vec<u8>,
}

impl Outbox {
    /// Publishes a message of `size` bytes in the next turn; false when too many wait.
    pub(super) fn put(&mut self, head: Head, size: usize) -> bool {
        let room = self.waiting.len() < WAITING;
        if room {
            self.waiting.push_back((head, size.clamp(HEAD, LONGEST)));
        }
        room
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// The bytes are those of the message at hand.
struct Publisher(Rc<RefCell<Outbox>>, Box<[u8]>);

impl Source for Publisher {
    fn peek(&mut self) -> Option<Message<'_>> {
        let outbox = self.0.borrow();
        let (head, size) = outbox.waiting.front()?;
        let bytes = &mut self.1[..*size];
        let (front, behind) = bytes.split_at_mut(HEAD);
        head.write(front);
        let text = outbox.text.len().min(behind.len());
        behind[..text].copy_from_slice(&outbox.text[..text]);
        Some(Message {
            subject: b"",
            payload: bytes,
        })
    }

    fn advance(&mut self) {
        self.0.borrow_mut().waiting.pop_front();
    }
}

/// A message that came.
pub(super) struct Arrival<'a> {
    pub(super) head: Head,
    pub(super) bytes: &'a [u8],
    /// It had been lost, and was repaired.
    pub(super) repaired: bool,
}

struct Handler<F> {
    take: F,
    outbox: Rc<RefCell<Outbox>>,
    lost: Rc<RefCell<u64>>,
}

impl<F: FnMut(Arrival<'_>, &mut Outbox)> Application for Handler<F> {
    fn deliver(&mut self, delivery: &Delivery<'_>) -> bool {
        let outbox = &mut *self.outbox.borrow_mut();
        for (_, message) in delivery.block.messages() {
            if let Some(head) = Head::read(message.payload) {
                let arrival = Arrival {
                    head,
                    bytes: message.payload,
                    repaired: delivery.path != Path::Live,
                };
                (self.take)(arrival, outbox);
            }
        }
        true
    }

    fn event(&mut self, event: Event) {
        if let Event::Lost { range, .. } = event {
            *self.lost.borrow_mut() += u64::from(range.last.since(range.first)) + 1;
        }
    }
}

/// What drives an engine, whatever its link is.
trait Turn {
    fn poll(&mut self) -> Result<bool>;
    fn rest(&mut self, longest: Duration) -> Result<bool>;
    fn report(&mut self) -> report::Report;
    fn mode(&self) -> String;
}

impl<L: Link> Turn for Node<L> {
    fn poll(&mut self) -> Result<bool> {
        Node::poll(self)
    }
    fn rest(&mut self, longest: Duration) -> Result<bool> {
        Node::rest(self, longest)
    }
    fn report(&mut self) -> report::Report {
        Node::report(self)
    }
    fn mode(&self) -> String {
        Node::mode(self)
    }
}

/// An open end.
pub(super) struct End {
    node: Box<dyn Turn>,
    pub(super) outbox: Rc<RefCell<Outbox>>,
    lost: Rc<RefCell<u64>>,
}

/// Turns between two looks at what needs no look in every turn.
const LOOK_EVERY: u32 = 4096;

impl End {
    /// Opens the engine; `take` gets what arrives on any stream, and may answer.
    pub(super) fn open(config: &Config, take: impl FnMut(Arrival<'_>, &mut Outbox) + Clone + 'static) -> Result<End> {
        let outbox = Rc::new(RefCell::new(Outbox {
            waiting: VecDeque::with_capacity(WAITING),
            text: Vec::new(),
        }));
        let lost = Rc::new(RefCell::new(0));
        let handler = |stream: SocketAddrV4| -> (SocketAddrV4, Box<dyn Application>) {
            let handler = Handler {
                take: take.clone(),
                outbox: Rc::clone(&outbox),
                lost: Rc::clone(&lost),
            };
            (stream, Box::new(handler))
        };
        let publisher = || Publisher(Rc::clone(&outbox), vec![0; LONGEST].into());
        let mut parts = config.split();
        cores::assign(&mut parts)?;
        let config = &parts.first().context("an end has streams")?.config;
        let programs = Programs {
            publishers: config
                .publish
                .iter()
                .map(|p| (p.stream, Box::new(publisher()) as Box<_>))
                .collect(),
            handlers: config.subscribe.iter().map(|s| handler(s.stream)).collect(),
            ..Programs::default()
        };
        let node = open::link(config, Open { config, programs })?;
        if let Some(core) = config.engine.core.and_then(Core::number) {
            cores::pin(core)?;
        }
        Ok(End { node, outbox, lost })
    }

    /// One turn of the engine.
    #[inline]
    pub(super) fn turn(&mut self, count: u32) -> Result<bool> {
        if count.is_multiple_of(LOOK_EVERY) {
            self.rest(Duration::ZERO)?;
        }
        self.node.poll()
    }

    /// Waits for a frame or a timer.
    pub(super) fn rest(&mut self, longest: Duration) -> Result<()> {
        if self.node.rest(longest)? {
            bail!("the engine has ended");
        }
        Ok(())
    }

    pub(super) fn mode(&self) -> String {
        self.node.mode()
    }

    pub(super) fn report(&mut self) -> report::Report {
        self.node.report()
    }

    /// Messages that were given up for lost.
    pub(super) fn lost(&self) -> u64 {
        *self.lost.borrow()
    }
}

/// Opens the node on the link that the configuration asks for.
struct Open<'a> {
    config: &'a Config,
    programs: Programs,
}

impl OnLink for Open<'_> {
    type Output = Box<dyn Turn>;

    fn run<L: Link + 'static>(self, link: L, _: LinkKind, may_hold: u32) -> Result<Box<dyn Turn>> {
        let Open { config, programs } = self;
        let node = Node::open(config, link, may_hold, Arc::default(), programs)?;
        Ok(Box::new(node))
    }
}

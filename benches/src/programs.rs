//! Programs beside the engine, through its shared memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use seqcast_client::{
    Engine, Error, EventKind, Publisher, PublisherOptions, Received as Got, Subscriber, SubscriberOptions, flags,
};
use seqcast_engine::link::Link;
use seqcast_engine::node::{Node, Programs, StopRequests};

use crate::duel::{Counters, Port, Received, Words, word_of};
use crate::engine::{config, counters};
use crate::pair::Side;

#[cfg(feature = "xdp")]
pub(crate) mod across;

/// A program: a lane into the engine and a reader of its ring, as in a process of its own.
struct Program {
    publisher: Publisher,
    subscriber: Subscriber,
    message: Box<[u8]>,
    words: Words,
    lost: u64,
}

impl Program {
    fn attach(engine: &Engine) -> Result<Program> {
        Ok(Program {
            publisher: Publisher::attach(engine, &PublisherOptions::default())?,
            subscriber: Subscriber::attach(engine, &SubscriberOptions::default())?,
            message: vec![0; 2048].into(),
            words: Words::default(),
            lost: 0,
        })
    }

    /// Publishes up to `count` messages; how many the lane took.
    fn publish(&mut self, word: u64, size: usize, count: usize) -> Result<usize> {
        self.message[..8].copy_from_slice(&word.to_ne_bytes());
        for done in 0..count {
            match self.publisher.try_publish("", &self.message[..size]) {
                Ok(()) => {}
                Err(Error::Full) => return Ok(done),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(count)
    }

    /// Takes what is there; waits for the first at most `timeout`.
    fn take(&mut self, timeout: Option<Duration>) -> Result<Received> {
        let mut received = Received::default();
        let mut got = match timeout {
            Some(_) => self.subscriber.next(timeout)?,
            None => self.subscriber.try_next()?,
        };
        while let Some(one) = got {
            match one {
                Got::Message(message) => {
                    received.messages += 1;
                    received.word = word_of(message.payload);
                    self.words.note(received.word, message.flags & flags::REPAIRED != 0);
                }
                Got::Event(event) if matches!(event.kind, EventKind::Lost | EventKind::Missed) => {
                    self.lost += u64::from(event.last - event.first) + 1;
                }
                Got::Event(_) => {}
            }
            got = self.subscriber.try_next()?;
        }
        Ok(received)
    }
}

/// An engine that takes programs and never sleeps, to be turned by hand, and what programs attach to. `more` are settings
/// of `[programs]`.
fn spinning<L: Link>(side: &Side, (link, may_hold): (L, u32), more: &str) -> Result<(Node<L>, Engine)> {
    let config = config(side, &format!("idle = \"spin\"\n[programs]\n{more}"))?;
    let node = Node::open(&config, link, may_hold, Arc::default(), Programs::default())?;
    let engine = node.programs().context("it has no programs")?;
    Ok((node, engine))
}

/// Engine and program take turns on one thread: everything that a message meets on its way between
/// processes, but for the way of a cache line from one core to another.
pub(crate) struct InTurn<L: Link> {
    program: Program,
    node: Node<L>,
}

impl<L: Link> InTurn<L> {
    pub(crate) fn open(side: &Side, link: (L, u32)) -> Result<InTurn<L>> {
        let (node, engine) = spinning(side, link, "")?;
        Ok(InTurn {
            program: Program::attach(&engine)?,
            node,
        })
    }
}

impl<L: Link> Port for InTurn<L> {
    const REPAIRS: bool = true;

    #[inline]
    fn send(&mut self, word: u64, size: usize, count: usize) -> Result<usize> {
        let taken = self.program.publish(word, size, count)?;
        self.node.poll()?;
        Ok(taken)
    }

    #[inline]
    fn receive(&mut self) -> Result<Received> {
        self.node.poll()?;
        self.program.take(None)
    }

    fn words(&mut self, with: impl FnOnce(&mut Words)) {
        with(&mut self.program.words);
    }

    fn counters(&mut self) -> Counters {
        counters(self.node.report().link)
    }

    fn lost(&mut self) -> u64 {
        self.program.lost
    }
}

/// Engine and program on threads of their own that share a core, and sleep when they have nothing to do:
/// the scheduler, and the thread that wakes programs, are part of it.
pub(crate) struct Apart {
    program: Program,
    stop: StopRequests,
    engine: Option<JoinHandle<Result<()>>>,
}

/// Longest sleep of a program that waits for a message.
const SLEEP: Duration = Duration::from_millis(1);

impl Apart {
    /// `link` is called on the engine's thread.
    pub(crate) fn open<L: Link>(
        side: &Side,
        link: impl FnOnce(&Side) -> Result<(L, u32)> + Send + 'static,
    ) -> Result<Apart> {
        let config = config(side, "idle = \"block\"\n[programs]")?;
        let stop = StopRequests::default();
        let (tell, told) = mpsc::channel();
        let (side, theirs) = (side.clone(), Arc::clone(&stop));
        let engine = std::thread::spawn(move || {
            let (link, may_hold) = link(&side)?;
            let node = Node::open(&config, link, may_hold, theirs, Programs::default())?;
            side.pin()?;
            // Nobody listens if the program has given up.
            let _ = tell.send(node.programs());
            node.run().1
        });
        let Ok(at) = told.recv() else {
            let ended = engine.join().map_err(|_| anyhow!("the engine panicked"))?;
            return Err(ended.err().unwrap_or_else(|| anyhow!("the engine ended")));
        };
        let mut apart = Apart {
            program: Program::attach(&at.context("it has no programs")?)?,
            stop,
            engine: None,
        };
        apart.engine = Some(engine);
        Ok(apart)
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        self.stop.store(2, Ordering::Relaxed);
        if let Some(engine) = self.engine.take() {
            // What was measured is known by now.
            let _ = engine.join();
        }
    }
}

impl Port for Apart {
    const REPAIRS: bool = true;

    fn send(&mut self, word: u64, size: usize, count: usize) -> Result<usize> {
        self.program.publish(word, size, count)
    }

    fn receive(&mut self) -> Result<Received> {
        self.program.take(Some(SLEEP))
    }

    fn words(&mut self, with: impl FnOnce(&mut Words)) {
        with(&mut self.program.words);
    }

    /// The engine's are on another thread.
    fn counters(&mut self) -> Counters {
        Counters::default()
    }

    fn lost(&mut self) -> u64 {
        self.program.lost
    }
}

//! Lets only messages with wanted subjects through to a sink.

use seqcast_proto::io::Delivery;
use seqcast_proto::seq::Seq;
use seqcast_proto::subject::{Matcher, Pattern};
use seqcast_proto::wire::{Block, MESSAGE_HEADER};

use crate::feed::sink::Sink;

/// Unwanted messages after which a durable sink is told how far the stream has come.
const TELL_EVERY: u64 = 4096;

/// The subjects that a subscription wants.
pub(super) struct Filter {
    matcher: Matcher,
    /// The wanted parts of the block at hand.
    runs: Vec<Run>,
    /// Unwanted messages in front of which the sink's position stays.
    behind: u64,
    unwanted: u64,
}

/// Consecutive wanted messages, as bytes of their block.
struct Run {
    first: Seq,
    count: u16,
    start: usize,
    end: usize,
}

/// What of a delivery was wanted.
#[derive(Clone, Copy, Default)]
pub(super) struct Wanted {
    /// Messages.
    pub(super) messages: u64,
    /// Their payload bytes.
    pub(super) bytes: u64,
}

impl Wanted {
    /// All of a block.
    pub(super) fn all(block: &Block<'_>) -> Wanted {
        Wanted {
            messages: u64::from(block.count()),
            bytes: block.payload_bytes(),
        }
    }
}

impl Filter {
    /// `max_frame` is the link's largest frame, which bounds the parts of a block.
    pub(super) fn new(patterns: &[Pattern], max_frame: usize) -> Filter {
        Filter {
            matcher: Matcher::new(patterns.iter().map(|p| (p, 0)), Matcher::SLOTS),
            // Between two parts lies at least one message.
            runs: Vec::with_capacity(max_frame / (2 * MESSAGE_HEADER) + 1),
            behind: 0,
            unwanted: 0,
        }
    }

    /// Messages so far that were not wanted.
    pub(super) fn unwanted(&self) -> u64 {
        self.unwanted
    }

    /// Gives the wanted messages to the sink, all or none: `None` when it has no room now.
    pub(super) fn put(&mut self, delivery: &Delivery<'_>, sink: &mut Sink) -> Option<Wanted> {
        let block = &delivery.block;
        let wanted = self.find_runs(block);
        let unwanted = u64::from(block.count()) - wanted.messages;
        let is_late = sink.is_durable() && self.behind + unwanted >= TELL_EVERY;
        if wanted.messages > 0 || is_late {
            let runs = self
                .runs
                .iter()
                .map(|r| Block::trusted(r.first, r.count, &block.bytes()[r.start..r.end]));
            if !sink.put(delivery, runs) {
                return None;
            }
            self.behind = 0;
        } else {
            self.behind += unwanted;
        }
        self.unwanted += unwanted;
        Some(wanted)
    }

    fn find_runs(&mut self, block: &Block<'_>) -> Wanted {
        self.runs.clear();
        let mut wanted = Wanted::default();
        let mut end = 0;
        for (seq, message) in block.messages() {
            let start = end;
            end += message.encoded_len();
            if self.matcher.find(message.subject).is_empty() {
                continue;
            }
            wanted.messages += 1;
            wanted.bytes += message.payload.len() as u64;
            match self.runs.last_mut() {
                Some(run) if run.end == start => {
                    run.count += 1;
                    run.end = end;
                }
                _ => self.runs.push(Run {
                    first: seq,
                    count: 1,
                    start,
                    end,
                }),
            }
        }
        wanted
    }
}

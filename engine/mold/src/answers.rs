//! The re-request server: one packet for each request, to who asked.

use alloc::vec::Vec;
use core::net::Ipv4Addr;

use seqcast_proto::limit::Bucket;
use seqcast_proto::time::Nanos;

use crate::packet::{Builder, Request, SessionName, Variant, write_beat};

/// Askers that are told apart; of more, those that asked last.
const ASKERS: usize = 64;
/// All askers together get so many times what one may have.
const TOGETHER: u64 = 4;

/// What can be asked for.
pub trait Library {
    /// Hands messages from `number` on to `each`, until it says no or one is not there.
    fn read(&self, session: &SessionName, number: u64, each: &mut dyn FnMut(&[u8]) -> bool);

    /// One past the last message of a session that has ended.
    fn end(&self, session: &SessionName) -> Option<u64>;
}

/// What was asked and answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnswerStats {
    /// Requests, of whatever kind.
    pub requests: u64,
    /// Packets sent in answer.
    pub answers: u64,
    /// Messages in them.
    pub messages: u64,
    /// Requests for what is not there.
    pub absent: u64,
    /// Requests that were no requests.
    pub malformed: u64,
    /// Requests not answered because their asker, or all together, had enough.
    pub limited: u64,
}

/// Answers requests.
#[derive(Debug)]
pub struct Answers {
    variant: Variant,
    builder: Builder,
    beat: Vec<u8>,
    per_asker: u64,
    burst: u64,
    all: Bucket,
    /// Who asked lately, the last one last.
    askers: Vec<(Ipv4Addr, Bucket)>,
    stats: AnswerStats,
}

impl Answers {
    /// Answers with packets of at most `most` bytes, and each asker with at most `per_asker` bytes a
    /// second; all together get four times as much.
    #[must_use]
    pub fn new(variant: Variant, most: usize, per_asker: u64, now: Nanos) -> Answers {
        let burst = per_asker.div_ceil(10).max(most as u64);
        Answers {
            variant,
            builder: Builder::new(variant, most),
            beat: alloc::vec![0; variant.header() + crate::packet::BLOCK],
            per_asker,
            burst,
            all: Bucket::new(per_asker.saturating_mul(TOGETHER), burst.saturating_mul(TOGETHER), now),
            askers: Vec::with_capacity(ASKERS),
            stats: AnswerStats::default(),
        }
    }

    /// The answer to a request, if there is one: as many of the messages as fit one packet. For what lies
    /// behind the last message of a session that has ended it is the end again.
    pub fn answer(&mut self, now: Nanos, from: Ipv4Addr, request: &[u8], library: &impl Library) -> Option<&[u8]> {
        self.stats.requests += 1;
        let Ok(request) = Request::parse(self.variant, request) else {
            self.stats.malformed += 1;
            return None;
        };
        let asker = self.asker(now, from);
        if !(self.askers[asker].1.is_open(now) && self.all.is_open(now)) {
            self.stats.limited += 1;
            return None;
        }
        let (builder, mut number) = (&mut self.builder, request.first);
        library.read(&request.session, number, &mut |message| {
            let pushed = number - request.first < u64::from(request.count)
                && builder.push(&request.session, number, message).is_ok();
            number += u64::from(pushed);
            pushed
        });
        let count = builder.count();
        let end = library
            .end(&request.session)
            .filter(|end| count == 0 && request.first >= *end);
        let answer = match (builder.take(), end) {
            (Some(packet), _) => packet,
            (None, Some(end)) => {
                let length = write_beat(self.variant, &mut self.beat, &request.session, end, true);
                &self.beat[..length]
            }
            (None, None) => {
                self.stats.absent += 1;
                return None;
            }
        };
        self.stats.answers += 1;
        self.stats.messages += u64::from(count);
        self.askers[asker].1.take(answer.len() as u64, now);
        self.all.take(answer.len() as u64, now);
        Some(answer)
    }

    fn asker(&mut self, now: Nanos, from: Ipv4Addr) -> usize {
        let asker = match self.askers.iter().position(|(who, _)| *who == from) {
            Some(at) => self.askers.remove(at),
            None => {
                if self.askers.len() == ASKERS {
                    self.askers.remove(0);
                }
                (from, Bucket::new(self.per_asker, self.burst, now))
            }
        };
        self.askers.push(asker);
        self.askers.len() - 1
    }

    /// What was asked and answered so far.
    #[must_use]
    pub fn stats(&self) -> AnswerStats {
        self.stats
    }
}

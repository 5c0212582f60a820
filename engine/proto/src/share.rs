//! How much of its time a server gives to repairs, so that no client takes it from the others.
//!
//! Who asks for what a receiver may well have lost, up to one message in 8 of those published since it
//! asked before and no more ranges than one for 8 frames, is answered at once. Who asks for more, be it that it catches up, or that it asks for
//! everything, for ever, gets the time that the stream leaves, and beyond that one part in 128 together
//! with all others of its kind; reading their NAKs counts. When nothing is left, their NAKs are dropped:
//! whoever still needs the answer asks again.
//!
//! Time is counted in frames: the time that one frame of the stream has taken lately.

use alloc::vec::Vec;
use core::net::SocketAddrV4;

use crate::seq::SeqRange;
use crate::time::{MICROS, Nanos};

/// One frame in so many is a repair for the greedy when the stream takes all there is.
const PART: f32 = 1.0 / 128.0;
/// Most frames saved, or owed.
const MOST: f32 = 64.0;
/// What one NAK and one range in it cost, in frames.
const NAK: f32 = 0.125;
const RANGE: f32 = 0.125;
/// What a frame takes, until it is known.
const FIRST_GUESS: Nanos = 2 * MICROS;
/// Frames in a turn from which on its time tells what one takes, unless it took so many times as long as
/// it should: then the engine has paused.
const SAMPLE: u64 = 32;
const PAUSE: f32 = 4.0;

/// One frame in so many may be lost on the way to a client that is not greedy, and its messages with it.
const LOSS: u64 = 8;
/// Messages, or ranges, that such a client may ask for at once: those of a long burst of losses.
const BURST: u64 = 1 << 16;
/// Askers that are told apart; of more, those that asked last.
const ASKERS: usize = 64;

/// What one client has asked for lately.
#[derive(Debug)]
struct Asker {
    addr: SocketAddrV4,
    /// [`LOSS`] times what it asked for, less what was published meanwhile.
    demand: Amount,
    /// Published when it asked last.
    at: Amount,
}

/// Of what was asked for or published: a range takes a frame at least, be it of one message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) messages: u64,
    /// Frames, or ranges.
    pub(crate) frames: u64,
}

impl Amount {
    fn of_each(self, other: Amount, of: impl Fn(u64, u64) -> u64) -> Amount {
        Amount {
            messages: of(self.messages, other.messages),
            frames: of(self.frames, other.frames),
        }
    }
}

/// The time that repairs may take.
#[derive(Debug)]
pub(crate) struct Share {
    last: Nanos,
    /// Frames published, and spent on repairs, since then.
    published: u64,
    spent: f32,
    /// Nanoseconds of one frame, smoothed.
    cost: f32,
    /// Frames that may be spent on the greedy.
    credit: f32,
    /// Messages that clients which are not greedy wait for, at most.
    owed: u64,
    askers: Vec<Asker>,
}

impl Share {
    pub(crate) fn new(now: Nanos) -> Share {
        Share {
            last: now,
            published: 0,
            spent: 0.0,
            cost: FIRST_GUESS as f32,
            credit: MOST,
            owed: 0,
            askers: Vec::with_capacity(ASKERS),
        }
    }

    /// A turn begins.
    #[inline]
    pub(crate) fn turn(&mut self, now: Nanos) {
        if now <= self.last {
            // Two turns with one look at the clock are one.
            return;
        }
        let published = self.published as f32;
        let work = published + self.spent;
        let time = (now - self.last) as f32;
        // Frames' worth of time beyond the work that is known of.
        let beyond = time / self.cost - work;
        let busy = self.published >= SAMPLE && beyond < PAUSE * work;
        let earned = match (busy, self.spent > 0.0) {
            (true, false) => {
                self.cost += (time / work - self.cost) / 16.0;
                0.0
            }
            // Repairs and NAKs took longer than frames of the stream do.
            (true, true) => -beyond.max(0.0),
            // Idle.
            (false, _) => beyond,
        };
        self.credit = (self.credit + earned + published * PART).clamp(-MOST, MOST);
        (self.last, self.published, self.spent) = (now, 0, 0.0);
    }

    /// Frames of the stream were sent in this turn.
    #[inline]
    pub(crate) fn published(&mut self, frames: u64) {
        self.published += frames;
    }

    /// Frames of answers that may be sent in this turn.
    #[inline]
    pub(crate) fn budget(&self) -> usize {
        let most = MOST as u64;
        // A negative credit becomes 0.
        (self.credit as u64 + self.owed.min(most)).min(most) as usize
    }

    /// Frames of answers were sent, or none, while `waiting` says whether more are to come.
    #[inline]
    pub(crate) fn repaired(&mut self, frames: u64, waiting: bool) {
        let owed = frames.min(self.owed);
        // Most frames answer for several messages.
        self.owed = if waiting { self.owed - owed } else { 0 };
        self.spent += owed as f32;
        self.spend((frames - owed) as f32);
    }

    /// Whether a NAK for these ranges shall be read, when so much has been published in all.
    pub(crate) fn admits(
        &mut self,
        from: SocketAddrV4,
        ranges: impl Iterator<Item = SeqRange>,
        published: Amount,
    ) -> bool {
        let asked = ranges.fold(Amount::default(), |sum, range| Amount {
            messages: sum.messages + u64::from(range.len()),
            frames: sum.frames + 1,
        });
        let demand = self.demand(from, asked, published);
        if demand.messages.max(demand.frames) <= LOSS * BURST {
            self.owed += asked.messages;
            return true;
        }
        if self.credit <= 0.0 {
            return false;
        }
        self.spend(NAK + RANGE * asked.frames as f32);
        true
    }

    /// Notes what a client asks for; [`LOSS`] times what it has asked for lately.
    fn demand(&mut self, from: SocketAddrV4, asked: Amount, published: Amount) -> Amount {
        let place = self.askers.iter().position(|a| a.addr == from).unwrap_or_else(|| {
            let asker = Asker {
                addr: from,
                demand: Amount::default(),
                at: published,
            };
            if self.askers.len() < ASKERS {
                self.askers.push(asker);
                return self.askers.len() - 1;
            }
            let oldest = self.askers.iter().enumerate().min_by_key(|(_, a)| a.at.messages);
            let place = oldest.map_or(0, |(place, _)| place);
            self.askers[place] = asker;
            place
        });
        let asker = &mut self.askers[place];
        let meanwhile = published.of_each(asker.at, u64::saturating_sub);
        let left = asker.demand.of_each(meanwhile, u64::saturating_sub);
        // Bounded, so that it is forgiven after a while.
        asker.demand = left.of_each(asked, |left, asked| (left + LOSS * asked).min(2 * LOSS * BURST));
        asker.at = published;
        asker.demand
    }

    fn spend(&mut self, frames: f32) {
        self.spent += frames;
        self.credit -= frames;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seq::Seq;

    const FRAME: Nanos = 800;
    const ASKER: SocketAddrV4 = SocketAddrV4::new(core::net::Ipv4Addr::LOCALHOST, 1);

    /// A client asks for so many messages, in up to 40 ranges, before each of 10 000 turns: REPAIR frames sent, NAKs read.
    fn ask(messages: u64, published: u64, idle: Nanos) -> (u64, u64) {
        ask_at(messages, published, idle, FRAME)
    }

    /// The same, where a REPAIR frame takes as long as given. One message a frame.
    fn ask_at(messages: u64, published: u64, idle: Nanos, repair: Nanos) -> (u64, u64) {
        let mut share = Share::new(0);
        let (mut now, mut repairs, mut naks, mut waiting) = (0, 0, 0, 0);
        for turn in 0..10_000 {
            let piece = messages.div_ceil(40) as u32;
            let pieces = (0..messages as u32 / piece).filter_map(|i| SeqRange::of(Seq(i * piece + 1), piece));
            let read = share.admits(ASKER, pieces, amount(turn * published, 1));
            waiting += if read { messages } else { 0 };
            share.turn(now);
            // Whoever looks at the clock once may have two turns.
            share.turn(now);
            share.published(published);
            let sent = waiting.min(share.budget() as u64);
            waiting -= sent;
            share.repaired(sent, waiting > 0);
            repairs += sent;
            naks += u64::from(read);
            now += published * FRAME + sent * repair + u64::from(read) * 4 * FRAME + idle;
        }
        (repairs, naks)
    }

    fn amount(frames: u64, messages_each: u64) -> Amount {
        Amount {
            messages: frames * messages_each,
            frames,
        }
    }

    /// Of a million frames of a stream that takes all there is, one in `every` is lost, and asked for in a NAK of
    /// its own by the range given: how many NAKs are read.
    fn lose(every: u64, messages_each: u64, range: u32) -> u64 {
        let mut share = Share::new(0);
        (0..1_000_000 / every)
            .filter(|loss| {
                let frames = (loss + 1) * every;
                share.turn(frames * FRAME);
                share.published(every);
                let range = SeqRange::of(Seq((loss * every * messages_each) as u32 + 1), range);
                let read = share.admits(ASKER, range.into_iter(), amount(frames, messages_each));
                share.repaired(share.budget().min(1) as u64, false);
                read
            })
            .count() as u64
    }

    #[test]
    fn a_stream_that_takes_all_there_is_leaves_the_greedy_one_frame_in_128() {
        let (repairs, naks) = ask(100_000, 64, 0);
        let spent = repairs + 5 * naks;
        assert!(
            (4_500..6_500).contains(&spent) && naks > 0 && repairs > 0,
            "{repairs} frames and {naks} NAKs in 10 000 turns of 64"
        );
    }

    #[test]
    fn repairs_that_take_longer_are_fewer() {
        let (repairs, naks) = ask_at(100_000, 64, 0, 8 * FRAME);
        let took = 8 * repairs + 4 * naks;
        assert!(
            (4_000..6_500).contains(&took) && repairs > 0,
            "{repairs} frames and {naks} NAKs"
        );
    }

    #[test]
    fn what_may_well_be_lost_is_repaired_at_once() {
        // One message in 16, and what a NAK counts besides; one frame each.
        let (repairs, naks) = ask(64, 1024, 0);
        assert_eq!((repairs, naks), (640_000, 10_000));
    }

    #[test]
    fn one_lost_frame_in_ten_is_no_greed_however_many_messages_a_frame_has() {
        for messages in [1, 21] {
            assert_eq!(
                lose(10, messages, messages as u32),
                100_000,
                "{messages} messages a frame"
            );
        }
    }

    #[test]
    fn a_frame_for_each_message_is_greed_where_frames_have_many() {
        // One message in 84, but a range for every fourth frame.
        let read = lose(4, 21, 1);
        assert!((65_536..200_000).contains(&read), "{read}");
    }

    #[test]
    fn idle_time_is_for_everyone() {
        let (repairs, _) = ask(100_000, 0, 100 * FRAME);
        assert!(repairs > 150_000, "{repairs}");
    }
}

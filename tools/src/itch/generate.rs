//! A made trading day, one message at a time.
//!
//! Each symbol has a book in price-time priority around a fair price that walks at random. Orders
//! join near the fair price; when it moves through the best order, that order is executed. So every
//! execution, cancel, delete and replace names a live order, and no book is ever crossed. All
//! arithmetic is on integers: a seed gives the same bytes on every machine.

use super::message_length;
use super::random::Random;

/// One hour in ns.
const HOUR: u64 = 3_600_000_000_000;
const START_OF_MESSAGES: u64 = 3 * HOUR;
const START_OF_HOURS: u64 = 4 * HOUR;
const MARKET_OPEN: u64 = 9 * HOUR + HOUR / 2;
const MARKET_CLOSE: u64 = 16 * HOUR;
const END_OF_HOURS: u64 = 20 * HOUR;
const END_OF_MESSAGES: u64 = 20 * HOUR + HOUR / 12;

/// One cent; prices have four decimals.
const TICK: u32 = 100;
const PRICE_MIN: u32 = 100 * TICK;
const PRICE_MAX: u32 = 1_000_000 * TICK;
/// Live orders on one side of one book, which bounds the memory.
const SIDE_MAX: usize = 128;

/// The longest message that trading makes ('P') and the mean over the mix, with length prefixes.
const TRADING_FRAME_MAX: u64 = 2 + 44;
const TRADING_FRAME_MEAN: u64 = 2 + 28;

const PARTICIPANTS: [&[u8; 4]; 8] = [b"NITE", b"FLTU", b"LEHM", b"TMBR", b"GSCO", b"UBSS", b"JPMS", b"VIRT"];

/// How long a session shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Exactly this many messages.
    Messages(u64),
    /// At most this many bytes in BinaryFILE framing, and fewer than 46 below it.
    Bytes(u64),
}

/// What session to make. The same specification always gives the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// How long it shall be.
    pub length: Length,
    /// How many stocks trade, 1 to 65535; fewer are used when a short session has no room for them.
    pub symbols: u16,
    /// Chooses the session.
    pub seed: u64,
}

/// Why no session can be made from a [`Spec`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A stock exchange without stocks.
    #[error("a session needs at least 1 symbol")]
    NoSymbols,
    /// Not even the messages that open and close one stock's day fit.
    #[error("a session takes at least {messages} messages or {bytes} bytes: it opens and closes one stock's day")]
    TooShort {
        /// The fewest messages.
        messages: u64,
        /// The fewest bytes.
        bytes: u64,
    },
}

/// Makes one session. Memory depends on the number of symbols alone (up to 4 KiB each).
pub struct Generator {
    random: Random,
    length: Length,
    symbols: Vec<Symbol>,
    /// Running sums of the symbols' shares of the traffic.
    popularity: Vec<u32>,
    current: usize,
    sent: u64,
    sent_bytes: u64,
    closing: u64,
    now: u64,
    next_reference: u64,
    next_match: u64,
    message: Message,
}

struct Symbol {
    name: [u8; 8],
    fair: u32,
    /// Bids, then asks; the best order is last in each.
    sides: [Vec<Order>; 2],
    last_price: u32,
}

#[derive(Clone, Copy)]
struct Order {
    reference: u64,
    price: u32,
    shares: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Bid,
    Ask,
}

impl Side {
    fn code(self) -> u8 {
        match self {
            Side::Bid => b'B',
            Side::Ask => b'S',
        }
    }

    fn other(self) -> Side {
        match self {
            Side::Bid => Side::Ask,
            Side::Ask => Side::Bid,
        }
    }
}

impl Generator {
    /// Prepares a session.
    ///
    /// # Errors
    /// When there are no symbols or the session is too short to open and close.
    pub fn new(spec: Spec) -> Result<Self, SpecError> {
        if spec.symbols == 0 {
            return Err(SpecError::NoSymbols);
        }
        let frame = |kind| message_length(kind).map_or(0, |n| n as u64 + 2);
        let (fixed, per_symbol, available) = match spec.length {
            Length::Messages(n) => (6, 4, n),
            Length::Bytes(n) => (6 * frame(b'S'), frame(b'R') + frame(b'H') + 2 * frame(b'Q'), n),
        };
        if available < fixed + per_symbol {
            return Err(SpecError::TooShort {
                messages: 10,
                bytes: 6 * frame(b'S') + frame(b'R') + frame(b'H') + 2 * frame(b'Q'),
            });
        }
        // A short session keeps half of itself for trading.
        let room = ((available - fixed) / (2 * per_symbol)).max(1);
        let count = usize::from(spec.symbols).min(usize::try_from(room).unwrap_or(usize::MAX));

        let mut random = Random::new(spec.seed);
        let symbols = (0..count).map(|i| Symbol::new(i, &mut random)).collect();
        let mut sum = 0;
        let popularity = (0..count as u32)
            .map(|rank| {
                sum += (100_000_000 / (rank + 4)).max(1);
                sum
            })
            .collect();
        Ok(Generator {
            random,
            length: spec.length,
            symbols,
            popularity,
            current: 0,
            sent: 0,
            sent_bytes: 0,
            closing: 0,
            now: 0,
            next_reference: 1,
            next_match: 1,
            message: Message {
                buffer: [0; 44],
                length: 0,
            },
        })
    }

    /// The next message, without framing, or `None` when the session is over.
    pub fn next_message(&mut self) -> Option<&[u8]> {
        let symbols = self.symbols.len() as u64;
        if self.sent < 3 * symbols + 3 {
            self.open(self.sent, symbols);
        } else if self.trading_left(symbols) > 0 {
            self.trade(symbols);
        } else if self.closing < symbols + 3 {
            self.close(self.closing, symbols);
            self.closing += 1;
        } else {
            return None;
        }
        let message = self.message.bytes();
        debug_assert_eq!(Some(message.len()), message_length(message[0]));
        self.sent += 1;
        self.sent_bytes += message.len() as u64 + 2;
        Some(message)
    }

    /// How many trading messages still fit before the close, exactly 0 when none does.
    fn trading_left(&self, symbols: u64) -> u64 {
        if self.closing > 0 {
            return 0;
        }
        match self.length {
            Length::Messages(n) => n.saturating_sub(self.sent + symbols + 3),
            Length::Bytes(n) => {
                let close = 3 * (12 + 2) + symbols * (40 + 2);
                let left = n.saturating_sub(self.sent_bytes + close);
                if left < TRADING_FRAME_MAX {
                    0
                } else {
                    left / TRADING_FRAME_MEAN
                }
            }
        }
    }

    /// Message `step` of the opening: directory and trading state of each stock, then the crosses.
    fn open(&mut self, step: u64, symbols: u64) {
        match step {
            0 => self.system_event(b'O', START_OF_MESSAGES),
            n if n <= 2 * symbols => {
                self.pause(2_000);
                let index = ((n - 1) / 2) as usize;
                if n % 2 == 1 {
                    self.directory(index);
                } else {
                    self.trading_action(index);
                }
            }
            n if n == 2 * symbols + 1 => self.system_event(b'S', START_OF_HOURS),
            n if n == 2 * symbols + 2 => self.system_event(b'Q', MARKET_OPEN),
            n => self.cross((n - 2 * symbols - 3) as usize, b'O'),
        }
    }

    /// Message `step` of the close: the crosses, and the ends of market, hours and messages.
    fn close(&mut self, step: u64, symbols: u64) {
        match step {
            0 => self.system_event(b'M', MARKET_CLOSE),
            n if n <= symbols => self.cross((n - 1) as usize, b'C'),
            n if n == symbols + 1 => self.system_event(b'E', END_OF_HOURS),
            _ => self.system_event(b'C', END_OF_MESSAGES),
        }
    }

    fn trade(&mut self, symbols: u64) {
        self.arrive(symbols);
        // Traffic comes in runs for one stock; else a stock is drawn by its popularity.
        if self.random.below(8) >= 3 {
            let total = self.popularity[self.popularity.len() - 1];
            let draw = self.random.below(total);
            self.current = self.popularity.partition_point(|&sum| sum <= draw);
        }
        let symbol = &mut self.symbols[self.current];
        symbol.walk(&mut self.random);
        if let Some(side) = symbol.crossed() {
            return self.execute(side, false);
        }
        let side = if self.random.next() >> 63 == 0 {
            Side::Bid
        } else {
            Side::Ask
        };
        let live = self.symbols[self.current].sides[side as usize].len();
        match self.random.below(1000) {
            _ if live == 0 => self.add(side),
            0..460 if live < SIDE_MAX => self.add(side),
            460..560 => self.replace(side),
            560..575 => self.cancel(side),
            575..582 => self.hidden_trade(),
            582..584 => self.execute(side, true),
            584..600 => self.execute(side, false),
            _ => self.delete(side),
        }
    }

    /// Moves the clock by a heavy-tailed pause (Pareto, index 1, cut off) whose mean spreads what
    /// is left of the session over what is left of the trading day.
    fn arrive(&mut self, symbols: u64) {
        let left = MARKET_CLOSE - 1 - self.now;
        let mean = left / (self.trading_left(symbols) + 1);
        let bits = self.random.next();
        let factor = u128::from(65_536 + (bits & 0xffff)) << (bits >> 16).trailing_zeros().min(20);
        // The factor's mean is 15.75 * 2^16.
        let pause = ((u128::from(mean) * factor) >> 20) as u64;
        self.now += pause.clamp(1, (left / 8).max(1)).min(left);
    }

    /// Moves the clock by 1 to `max` ns.
    fn pause(&mut self, max: u32) {
        self.now += 1 + u64::from(self.random.below(max));
    }

    fn system_event(&mut self, event: u8, time: u64) {
        self.now = time.max(self.now + 1);
        self.message.start(b'S', 0, self.now);
        self.message.put(&[event]);
    }

    fn directory(&mut self, index: usize) {
        let name = self.start(b'R', index);
        let category = [b'Q', b'G', b'S', b'N'][index % 4];
        let tier = if index < 100 { b'1' } else { b'2' };
        self.message.put(&name);
        self.message.put(&[category, b'N']);
        self.message.put(&100u32.to_be_bytes());
        // All lot sizes, common stock, live, no short-sale threshold, no IPO, LULD tier, no ETP.
        self.message
            .put(&[b'N', b'C', b'Z', b' ', b'P', b'N', b'N', tier, b'N']);
        self.message.put(&0u32.to_be_bytes());
        self.message.put(b"N");
    }

    fn trading_action(&mut self, index: usize) {
        let name = self.start(b'H', index);
        self.message.put(&name);
        self.message.put(b"T     ");
    }

    fn cross(&mut self, index: usize, kind: u8) {
        self.pause(20_000);
        let magnitude = 8 + self.random.halvings(10);
        let shares = 100 * (1 + u64::from(self.random.below(1 << magnitude)));
        let price = self.symbols[index].last_price;
        let trade = self.next_match();
        let name = self.start(b'Q', index);
        self.message.put(&shares.to_be_bytes());
        self.message.put(&name);
        self.message.put(&price.to_be_bytes());
        self.message.put(&trade.to_be_bytes());
        self.message.put(&[kind]);
    }

    fn add(&mut self, side: Side) {
        let order = Order {
            reference: self.next_reference(),
            price: self.symbols[self.current].quote(side, &mut self.random),
            shares: shares(&mut self.random),
        };
        let attributed = self.random.below(64) == 0;
        self.symbols[self.current].insert(side, order);
        let name = self.start(if attributed { b'F' } else { b'A' }, self.current);
        self.message.put(&order.reference.to_be_bytes());
        self.message.put(&[side.code()]);
        self.message.put(&order.shares.to_be_bytes());
        self.message.put(&name);
        self.message.put(&order.price.to_be_bytes());
        if attributed {
            let who = self.random.below(PARTICIPANTS.len() as u32);
            self.message.put(PARTICIPANTS[who as usize]);
        }
    }

    /// Trades with the best order of a side that has one, in whole or in part, at its own price or
    /// one tick better.
    fn execute(&mut self, side: Side, with_price: bool) {
        let whole = self.random.below(4) != 0;
        let wanted = shares(&mut self.random);
        let symbol = &mut self.symbols[self.current];
        let best = symbol.sides[side as usize].len() - 1;
        let order = symbol.sides[side as usize][best];
        let executed = if whole { order.shares } else { wanted.min(order.shares) };
        symbol.take(side, best, executed);
        let price = match (with_price, side) {
            (false, _) => order.price,
            (true, Side::Bid) => order.price + TICK,
            (true, Side::Ask) => order.price - TICK,
        };
        symbol.last_price = price;
        let trade = self.next_match();
        self.start(if with_price { b'C' } else { b'E' }, self.current);
        self.message.put(&order.reference.to_be_bytes());
        self.message.put(&executed.to_be_bytes());
        self.message.put(&trade.to_be_bytes());
        if with_price {
            let printable = if self.random.below(4) == 0 { b'N' } else { b'Y' };
            self.message.put(&[printable]);
            self.message.put(&price.to_be_bytes());
        }
    }

    /// Takes some shares, never all, off a live order; a deletion if it has one share only.
    fn cancel(&mut self, side: Side) {
        let symbol = &self.symbols[self.current];
        let index = pick(symbol.sides[side as usize].len(), &mut self.random);
        let order = symbol.sides[side as usize][index];
        if order.shares == 1 {
            return self.delete(side);
        }
        let cancelled = 1 + self.random.below(order.shares - 1);
        self.symbols[self.current].take(side, index, cancelled);
        self.start(b'X', self.current);
        self.message.put(&order.reference.to_be_bytes());
        self.message.put(&cancelled.to_be_bytes());
    }

    fn delete(&mut self, side: Side) {
        let book = &mut self.symbols[self.current].sides[side as usize];
        let order = book.remove(pick(book.len(), &mut self.random));
        self.start(b'D', self.current);
        self.message.put(&order.reference.to_be_bytes());
    }

    fn replace(&mut self, side: Side) {
        let symbol = &mut self.symbols[self.current];
        let book = &mut symbol.sides[side as usize];
        let old = book.remove(pick(book.len(), &mut self.random));
        let order = Order {
            reference: self.next_reference,
            price: symbol.quote(side, &mut self.random),
            shares: shares(&mut self.random),
        };
        symbol.insert(side, order);
        self.next_reference += 1;
        self.start(b'U', self.current);
        self.message.put(&old.reference.to_be_bytes());
        self.message.put(&order.reference.to_be_bytes());
        self.message.put(&order.shares.to_be_bytes());
        self.message.put(&order.price.to_be_bytes());
    }

    /// A match against an order that the book does not show.
    fn hidden_trade(&mut self) {
        let shares = shares(&mut self.random);
        let symbol = &mut self.symbols[self.current];
        symbol.last_price = symbol.fair;
        let price = symbol.fair;
        let trade = self.next_match();
        let name = self.start(b'P', self.current);
        // Since 2014 the reference is 0 and the side always "buy".
        self.message.put(&0u64.to_be_bytes());
        self.message.put(b"B");
        self.message.put(&shares.to_be_bytes());
        self.message.put(&name);
        self.message.put(&price.to_be_bytes());
        self.message.put(&trade.to_be_bytes());
    }

    /// Starts a message about a symbol and returns the symbol's name.
    fn start(&mut self, kind: u8, index: usize) -> [u8; 8] {
        self.message.start(kind, index as u16 + 1, self.now);
        self.symbols[index].name
    }

    fn next_reference(&mut self) -> u64 {
        self.next_reference += 1;
        self.next_reference - 1
    }

    fn next_match(&mut self) -> u64 {
        self.next_match += 1;
        self.next_match - 1
    }
}

impl Symbol {
    fn new(index: usize, random: &mut Random) -> Self {
        // Multiplying by a number coprime to 26^4 scatters the names and keeps them distinct.
        let mut code = (index as u32 * 123_457 + 20_000) % 456_976;
        let mut name = *b"        ";
        for letter in name[..4].iter_mut().rev() {
            *letter = b'A' + (code % 26) as u8;
            code /= 26;
        }
        // 4 to 512 dollars, each doubling equally likely.
        let doubling = 1 << random.below(7);
        let fair = doubling * (400 + random.below(400)) * TICK;
        Symbol {
            name,
            fair,
            sides: [const { Vec::new() }; 2],
            last_price: fair,
        }
    }

    /// Moves the fair price by some ticks, now and then; dearer stocks move further.
    fn walk(&mut self, random: &mut Random) {
        let bits = random.next();
        if bits & 63 != 0 {
            return;
        }
        let step = (1 + self.fair / (10_000 * TICK)) * TICK;
        self.fair = if bits >> 63 == 0 {
            self.fair + step
        } else {
            self.fair - step
        }
        .clamp(PRICE_MIN, PRICE_MAX);
    }

    /// The side whose best order the fair price has moved through.
    fn crossed(&self) -> Option<Side> {
        let best = |side: Side| self.sides[side as usize].last().map(|order| order.price);
        if best(Side::Bid).is_some_and(|price| price > self.fair) {
            Some(Side::Bid)
        } else if best(Side::Ask).is_some_and(|price| price < self.fair) {
            Some(Side::Ask)
        } else {
            None
        }
    }

    /// A price for a new order: mostly near the fair price, never through the other side.
    fn quote(&self, side: Side, random: &mut Random) -> u32 {
        let spread = 2 << random.halvings(6);
        let away = (1 + random.below(spread)) * TICK;
        let other = self.sides[side.other() as usize].last();
        match side {
            Side::Bid => {
                let limit = other.map_or(PRICE_MAX, |ask| ask.price - TICK);
                (self.fair - away.min(self.fair - TICK)).min(limit)
            }
            Side::Ask => {
                let limit = other.map_or(TICK, |bid| bid.price + TICK);
                (self.fair + away).max(limit)
            }
        }
    }

    /// Queues an order behind those of its price.
    fn insert(&mut self, side: Side, order: Order) {
        let book = &mut self.sides[side as usize];
        let at = match side {
            Side::Bid => book.partition_point(|o| o.price < order.price),
            Side::Ask => book.partition_point(|o| o.price > order.price),
        };
        book.insert(at, order);
    }

    /// Takes shares off a live order; it leaves the book with its last share.
    fn take(&mut self, side: Side, index: usize, shares: u32) {
        let book = &mut self.sides[side as usize];
        book[index].shares -= shares;
        if book[index].shares == 0 {
            book.remove(index);
        }
    }
}

/// An index into a side of `len` orders, more often near its best end.
fn pick(len: usize, random: &mut Random) -> usize {
    let bits = random.next();
    let skewed = ((bits >> 32) * (bits & 0xffff_ffff)) >> 32;
    len - 1 - ((skewed as usize * len) >> 32)
}

/// A size: mostly a few round lots, one in eight odd.
fn shares(random: &mut Random) -> u32 {
    if random.below(8) == 0 {
        1 + random.below(99)
    } else {
        100 << random.halvings(7)
    }
}

/// A message under construction.
struct Message {
    buffer: [u8; 44],
    length: usize,
}

impl Message {
    fn start(&mut self, kind: u8, locate: u16, time: u64) {
        self.length = 0;
        self.put(&[kind]);
        self.put(&locate.to_be_bytes());
        self.put(&0u16.to_be_bytes()); // tracking number
        self.put(&time.to_be_bytes()[2..]);
    }

    fn put(&mut self, bytes: &[u8]) {
        self.buffer[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap, HashSet};

    use super::*;
    use crate::itch::timestamp_ns;

    fn session(length: Length, symbols: u16, seed: u64) -> Vec<Vec<u8>> {
        let mut generator = Generator::new(Spec { length, symbols, seed }).unwrap();
        let mut messages = Vec::new();
        while let Some(message) = generator.next_message() {
            messages.push(message.to_vec());
        }
        messages
    }

    fn number(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0, |n, &b| n << 8 | u64::from(b))
    }

    /// A book as a subscriber would build it: reference to (locate, side, shares, price).
    type Live = HashMap<u64, (u64, u8, u64, u64)>;

    fn best(live: &Live, locate: u64, side: u8) -> Option<u64> {
        let prices = live.values().filter(|o| o.0 == locate && o.1 == side);
        let prices = prices.map(|o| o.3);
        if side == b'B' { prices.max() } else { prices.min() }
    }

    #[test]
    fn a_subscriber_can_rebuild_every_book_from_the_messages() {
        let mut live = Live::new();
        let mut names = HashMap::new();
        let mut matches = HashSet::new();
        let mut kinds = BTreeMap::<char, u64>::new();
        for m in session(Length::Messages(60_000), 20, 1) {
            *kinds.entry(m[0] as char).or_default() += 1;
            assert_eq!(message_length(m[0]), Some(m.len()));
            let locate = number(&m[1..3]);
            let reference = if m.len() >= 19 { number(&m[11..19]) } else { 0 };
            let check_name = |name: &[u8]| assert_eq!(names.get(&locate), Some(&name.to_vec()));
            match m[0] {
                b'S' => assert_eq!(locate, 0),
                b'R' => assert_eq!(names.insert(locate, m[11..19].to_vec()), None),
                b'H' => check_name(&m[11..19]),
                b'Q' => {
                    check_name(&m[19..27]);
                    assert!(number(&m[11..19]) > 0 && number(&m[27..31]) > 0);
                    assert!(matches.insert(number(&m[31..39])));
                }
                b'P' => {
                    check_name(&m[24..32]);
                    assert!(number(&m[20..24]) > 0 && number(&m[32..36]) > 0);
                    assert!(matches.insert(number(&m[36..44])));
                }
                b'A' | b'F' => {
                    check_name(&m[24..32]);
                    let order = (locate, m[19], number(&m[20..24]), number(&m[32..36]));
                    assert!(matches!(m[19], b'B' | b'S') && order.2 > 0);
                    assert_eq!(live.insert(reference, order), None);
                }
                b'E' | b'C' | b'X' => {
                    let order = live[&reference];
                    let taken = number(&m[19..23]);
                    assert!(order.0 == locate && 0 < taken && taken <= order.2);
                    if m[0] != b'X' {
                        assert_eq!(Some(order.3), best(&live, locate, order.1));
                        assert!(matches.insert(number(&m[23..31])));
                    }
                    if taken == order.2 {
                        assert_ne!(m[0], b'X', "a cancel leaves at least one share");
                        live.remove(&reference);
                    } else {
                        live.get_mut(&reference).unwrap().2 -= taken;
                    }
                }
                b'D' => assert_eq!(live.remove(&reference).unwrap().0, locate),
                b'U' => {
                    let old = live.remove(&reference).unwrap();
                    let order = (locate, old.1, number(&m[27..31]), number(&m[31..35]));
                    assert!(old.0 == locate && order.2 > 0);
                    assert_eq!(live.insert(number(&m[19..27]), order), None);
                }
                other => panic!("unexpected type {}", other as char),
            }
            if matches!(m[0], b'A' | b'F' | b'U') {
                let (bid, ask) = (best(&live, locate, b'B'), best(&live, locate, b'S'));
                assert!(bid.zip(ask).is_none_or(|(bid, ask)| bid < ask), "crossed book");
            }
        }
        let types: String = kinds.keys().collect();
        assert_eq!(types, "ACDEFHPQRSUX");
        assert!(kinds[&'A'] > 20_000 && kinds[&'D'] > 15_000, "{kinds:?}");
        assert!(kinds.values().all(|&n| n >= 6), "{kinds:?}");
    }

    #[test]
    fn the_day_opens_and_closes_in_order_and_time_only_grows() {
        let messages = session(Length::Messages(5_000), 30, 2);
        let times: Vec<u64> = messages.iter().map(|m| timestamp_ns(m).unwrap()).collect();
        assert!(times.is_sorted());
        assert!(times[times.len() - 1] < 24 * HOUR);
        let events: Vec<u8> = messages.iter().filter(|m| m[0] == b'S').map(|m| m[11]).collect();
        assert_eq!(events, b"OSQMEC");
        let hours = MARKET_OPEN..=MARKET_CLOSE;
        let trading = |m: &&Vec<u8>| matches!(m[0], b'A'..=b'F' | b'U' | b'X' | b'P');
        assert!(
            messages
                .iter()
                .filter(trading)
                .all(|m| hours.contains(&timestamp_ns(m).unwrap()))
        );
    }

    #[test]
    fn arrivals_come_in_bursts_and_symbols_are_not_equal() {
        let messages = session(Length::Messages(50_000), 100, 3);
        let trading = &messages[303..messages.len() - 103];
        let times: Vec<u64> = trading.iter().map(|m| timestamp_ns(m).unwrap()).collect();
        let mut pauses: Vec<u64> = times.windows(2).map(|w| w[1] - w[0]).collect();
        pauses.sort_unstable();
        let (median, mean) = (
            pauses[pauses.len() / 2],
            (times[times.len() - 1] - times[0]) / times.len() as u64,
        );
        assert!(mean > 4 * median, "mean {mean} median {median}");
        // The whole day is used, not just its start.
        assert!(times[times.len() - 1] - times[0] > 4 * HOUR);
        let of = |locate| trading.iter().filter(|m| number(&m[1..3]) == locate).count();
        assert!(of(1) > 5 * of(100) && of(100) > 0);
    }

    #[test]
    fn lengths_are_kept_to_the_message_and_to_the_byte() {
        for n in [10, 11, 99, 10_000] {
            assert_eq!(session(Length::Messages(n), 300, 4).len() as u64, n);
        }
        for n in [278, 1_000, 100_003] {
            let messages = session(Length::Bytes(n), 300, 4);
            let bytes: u64 = messages.iter().map(|m| m.len() as u64 + 2).sum();
            assert!(bytes <= n && n - bytes < TRADING_FRAME_MAX, "{bytes} of {n}");
            assert_eq!(messages[messages.len() - 1][11], b'C');
        }
    }

    #[test]
    fn a_specification_always_gives_the_same_session() {
        use sha2::{Digest, Sha256};
        let digest = |seed| {
            let mut hash = Sha256::new();
            for message in session(Length::Messages(20_000), 300, seed) {
                hash.update(message);
            }
            let hex: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
            hex
        };
        assert_ne!(digest(1), digest(2));
        // Pinned: files made by one version are made by the next.
        assert_eq!(
            digest(1),
            "ee9b991a51363c4e424f5fc0bde179ac30ae353c9037b122c30338cb77db0d35"
        );
    }

    #[test]
    fn what_cannot_be_made_is_refused_with_the_reason() {
        let make = |length, symbols| {
            Generator::new(Spec {
                length,
                symbols,
                seed: 0,
            })
            .err()
        };
        assert_eq!(make(Length::Messages(100), 0), Some(SpecError::NoSymbols));
        for length in [Length::Messages(9), Length::Bytes(235)] {
            let error = make(length, 300).unwrap().to_string();
            assert!(error.contains("at least 10 messages or 236 bytes"), "{error}");
        }
        assert_eq!(make(Length::Messages(10), 300), None);
        assert_eq!(make(Length::Bytes(236), 300), None);
    }
}

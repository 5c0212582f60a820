//! Finding who wants a subject among 1000 subscriptions, beside what no look-up by name can beat by
//! much: the standard library's hash map with the same subjects as keys.

use std::collections::HashMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::Result;
use core_affinity::CoreId;
use seqcast_proto::rng::Rng;
use seqcast_proto::subject::{Matcher, Pattern};

use crate::pair::pin;

/// Subscriptions, a third of them with wildcards.
const SUBSCRIPTIONS: usize = 1000;
/// Look-ups in the order in which they are made, again and again.
const ORDER: usize = 1 << 16;

/// What finds a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finder {
    HashMap,
    Matcher,
}

impl Finder {
    pub(crate) const ALL: [Finder; 2] = [Finder::HashMap, Finder::Matcher];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Finder::HashMap => "std HashMap",
            Finder::Matcher => "Seqcast matcher",
        }
    }
}

/// How many subjects are looked up, in random order: the cache holds the first, hardly the second.
pub(crate) const SUBJECTS: [(usize, &str); 2] = [(1000, "1000 subjects"), (100_000, "100000 subjects")];

fn subject(n: usize) -> String {
    let markets = ["US", "DE", "JP", "GB"];
    format!("EQ.{}.S{:05}", markets[n % markets.len()], n)
}

fn subscriptions() -> Result<Vec<Pattern>> {
    let text = |n: usize| match n % 9 {
        0 => format!("EQ.*.S{n:05}"),
        1 => format!("*.{}.S{n:05}", ["US", "DE"][n % 2]),
        2 => format!("FX.S{n:05}.>"),
        _ => subject(n),
    };
    Ok((0..SUBSCRIPTIONS)
        .map(|n| Pattern::parse(&text(n)))
        .collect::<Result<_, _>>()?)
}

/// Look-ups a second of `count` subjects on a pinned thread.
pub(crate) fn find(finder: Finder, count: usize, core: CoreId, time: Duration) -> Result<f64> {
    let names: Vec<String> = (0..count).map(subject).collect();
    let mut random = Rng::new(82);
    let order: Vec<&[u8]> = (0..ORDER)
        .map(|_| names[random.below(count as u64) as usize].as_bytes())
        .collect();
    let patterns = subscriptions()?;
    std::thread::scope(|scope| {
        let job = scope.spawn(|| {
            pin(core)?;
            Ok(match finder {
                Finder::HashMap => {
                    let map: HashMap<&[u8], u32> = names.iter().map(String::as_bytes).zip(0..).collect();
                    rate(&order, time, |name| map.get(name).copied().unwrap_or_default())
                }
                Finder::Matcher => {
                    let mut matcher = Matcher::new(patterns.iter().zip(0..), Matcher::SLOTS);
                    rate(&order, time, |name| matcher.find(name).len() as u32)
                }
            })
        });
        job.join().unwrap_or_else(|_| anyhow::bail!("the thread panicked"))
    })
}

/// One round to warm up, then as many as the time allows.
fn rate(order: &[&[u8]], time: Duration, mut find: impl FnMut(&[u8]) -> u32) -> f64 {
    let mut round = || {
        for name in order {
            black_box(find(black_box(name)));
        }
    };
    round();
    let start = Instant::now();
    let mut rounds = 0;
    while start.elapsed() < time {
        round();
        rounds += 1;
    }
    (rounds * order.len()) as f64 / start.elapsed().as_secs_f64()
}

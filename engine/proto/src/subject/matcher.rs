//! Many patterns against one subject: a trie of elements behind a cache of recent subjects.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use super::{ANY, Pattern, REST, check, elements};
use crate::wire::Message;

/// Slots of the cache that one subject may be in.
const WAYS: usize = 2;
/// Bytes of subjects that the cache has room for, for each slot.
const KEY_BYTES: usize = 32;
/// Numbers of patterns that the cache has room for, for each slot.
const KEY_IDS: usize = 4;
/// The trie's root.
const ROOT: u32 = 0;

/// Finds the subscriptions that want a subject.
///
/// All memory is taken when it is made; matching takes none. A subject that was asked for lately
/// costs a hash and a comparison, any other one a walk through the trie: at most one step for each
/// of its nodes, in practice one for each element and each `*` on the way. What senders choose as
/// subjects can make the cache useless, but never wrong or larger.
#[derive(Debug)]
pub struct Matcher {
    nodes: Vec<Node>,
    patterns: usize,
    /// Nodes still to visit, each with the rest of the subject from a byte on. A step takes one
    /// off and puts at most two on, so there are never more than elements in a subject, and one.
    pending: Vec<(u32, usize)>,
    cache: Cache,
}

#[derive(Debug, Default)]
struct Node {
    /// Patterns that go on with this element.
    exact: BTreeMap<Box<[u8]>, u32>,
    /// Patterns that go on with `*`.
    any: Option<u32>,
    /// Patterns that end here.
    here: Vec<u32>,
    /// Patterns that end here with `>`.
    rest: Vec<u32>,
}

/// Subjects and their results. A subject is in one of [`WAYS`] slots that its hash names.
#[derive(Debug)]
struct Cache {
    slots: Box<[[Slot; WAYS]]>,
    /// Slots of other epochs are free: forgetting all at once takes no longer than one subject.
    epoch: u16,
    /// Subjects of the slots, and of replaced slots: when it is full, all is forgotten.
    keys: Vec<u8>,
    /// Results of the slots, likewise.
    ids: Vec<u32>,
}

/// A subject and its result, as places in [`Cache::keys`] and [`Cache::ids`].
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    hash: u64,
    key: u32,
    /// At most [`Message::MAX_SUBJECT`].
    key_len: u16,
    /// 0 in a slot that was never used.
    epoch: u16,
    ids: u32,
    ids_len: u32,
}

impl Matcher {
    /// Subjects for which the cache suits most uses. It takes 3 MiB, and up to 6 MiB more as subjects
    /// come, 48 bytes for each.
    pub const SLOTS: usize = 1 << 17;

    /// A matcher for patterns, each with the number under which it is reported; several patterns
    /// may share one. The cache remembers at most `slots` subjects, rounded up to a power of two
    /// from 2 to 2^20.
    #[must_use]
    pub fn new<'a>(subscriptions: impl IntoIterator<Item = (&'a Pattern, u32)>, slots: usize) -> Matcher {
        let mut nodes = vec![Node::default()];
        let mut patterns = 0;
        for (pattern, id) in subscriptions {
            insert(&mut nodes, pattern, id);
            patterns += 1;
        }
        let slots = slots.clamp(WAYS, 1 << 20).next_power_of_two();
        Matcher {
            nodes,
            patterns,
            pending: Vec::with_capacity(Message::MAX_SUBJECT / 2 + 2),
            cache: Cache {
                slots: vec![[Slot::default(); WAYS]; slots / WAYS].into(),
                epoch: 1,
                keys: Vec::with_capacity(slots * KEY_BYTES + Message::MAX_SUBJECT),
                ids: Vec::with_capacity(slots * KEY_IDS + patterns),
            },
        }
    }

    /// The numbers of the patterns that match, ascending, each once. What is no subject, as the
    /// empty one, matches nothing.
    #[inline]
    pub fn find(&mut self, subject: &[u8]) -> &[u32] {
        if subject.is_empty() || subject.len() > Message::MAX_SUBJECT {
            return &[];
        }
        let hash = hash(subject);
        let slot = match self.cache.find(hash, subject) {
            Some(slot) => slot,
            None => self.walk(hash, subject),
        };
        &self.cache.ids[slot.ids as usize..][..slot.ids_len as usize]
    }

    /// Matches through the trie and remembers the result.
    #[cold]
    fn walk(&mut self, hash: u64, subject: &[u8]) -> Slot {
        let (nodes, pending, cache) = (&self.nodes, &mut self.pending, &mut self.cache);
        cache.make_room(subject.len(), self.patterns);
        let ids = &mut cache.ids;
        let first = ids.len();
        if check(subject).is_ok() {
            pending.push((ROOT, 0));
        }
        while let Some((node, at)) = pending.pop() {
            let node = &nodes[node as usize];
            // One behind the last byte: no element is left.
            let Some(left) = subject.get(at..) else {
                ids.extend_from_slice(&node.here);
                continue;
            };
            ids.extend_from_slice(&node.rest);
            let element = elements(left).next().unwrap_or_default();
            let next = at + element.len() + 1;
            pending.extend(node.any.map(|n| (n, next)));
            pending.extend(node.exact.get(element).map(|n| (*n, next)));
        }
        ids[first..].sort_unstable();
        let mut end = first;
        for at in first..ids.len() {
            if end == first || ids[end - 1] != ids[at] {
                ids[end] = ids[at];
                end += 1;
            }
        }
        ids.truncate(end);
        cache.put(hash, subject, first)
    }
}

#[cfg(test)]
impl Matcher {
    /// Entries for which memory was taken, of each part that could grow.
    pub(super) fn capacities(&self) -> [usize; 3] {
        [
            self.pending.capacity(),
            self.cache.keys.capacity(),
            self.cache.ids.capacity(),
        ]
    }
}

impl Cache {
    #[inline]
    fn set_of(&self, hash: u64) -> usize {
        hash as usize & (self.slots.len() - 1)
    }

    #[inline]
    fn find(&self, hash: u64, subject: &[u8]) -> Option<Slot> {
        let set = &self.slots[self.set_of(hash)];
        let is_it = |slot: &&Slot| {
            slot.hash == hash
                && slot.epoch == self.epoch
                && self.keys[slot.key as usize..][..usize::from(slot.key_len)] == *subject
        };
        set.iter().find(is_it).copied()
    }

    /// Makes room for one subject and its result, so that neither vector ever grows.
    fn make_room(&mut self, key_len: usize, ids_len: usize) {
        let full = self.keys.capacity() - self.keys.len() < key_len || self.ids.capacity() - self.ids.len() < ids_len;
        if full {
            self.epoch = self.epoch.wrapping_add(1);
            if self.epoch == 0 {
                self.slots.fill([Slot::default(); WAYS]);
                self.epoch = 1;
            }
            self.keys.clear();
            self.ids.clear();
        }
    }

    /// Remembers a subject whose result are the numbers from `first` on. The older subject of its
    /// set goes.
    fn put(&mut self, hash: u64, subject: &[u8], first: usize) -> Slot {
        // The capacities are far below 2^32.
        let slot = Slot {
            hash,
            key: self.keys.len() as u32,
            key_len: subject.len() as u16,
            epoch: self.epoch,
            ids: first as u32,
            ids_len: (self.ids.len() - first) as u32,
        };
        self.keys.extend_from_slice(subject);
        let set = self.set_of(hash);
        self.slots[set].rotate_right(1);
        self.slots[set][0] = slot;
        slot
    }
}

fn insert(nodes: &mut Vec<Node>, pattern: &Pattern, id: u32) {
    let mut at = ROOT as usize;
    for element in elements(pattern.as_str().as_bytes()) {
        if element == REST {
            return nodes[at].rest.push(id);
        }
        // A pattern has at most 128 elements: numbers of nodes fit.
        let new = nodes.len() as u32;
        let child = if element == ANY {
            *nodes[at].any.get_or_insert(new)
        } else {
            *nodes[at].exact.entry(element.into()).or_insert(new)
        };
        if child == new {
            nodes.push(Node::default());
        }
        at = child as usize;
    }
    nodes[at].here.push(id);
}

/// Spreads subjects over the slots: good and fast, not meant to withstand those who look for
/// collisions, as these cost no more than a walk each.
#[inline]
fn hash(bytes: &[u8]) -> u64 {
    let (words, tail) = bytes.as_chunks::<8>();
    let mut hash = bytes.len() as u64;
    for word in words {
        hash = fold(hash ^ u64::from_le_bytes(*word));
    }
    if tail.is_empty() {
        return hash;
    }
    let last = bytes.last_chunk::<8>().copied().unwrap_or_else(|| {
        let mut short = [0; 8];
        short[..tail.len()].copy_from_slice(tail);
        short
    });
    fold(hash ^ u64::from_le_bytes(last))
}

/// Multiplies by an odd constant (the golden ratio) and lets the upper half of the product have
/// its say in the lower one.
#[inline]
fn fold(word: u64) -> u64 {
    let product = u128::from(word) * 0x9e37_79b9_7f4a_7c15;
    product as u64 ^ (product >> 64) as u64
}

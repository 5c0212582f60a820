//! Who can be asked for repairs, whose answers count, and how often each was asked.

use alloc::vec::Vec;
use core::net::{Ipv4Addr, SocketAddrV4};

use crate::time::{Nanos, SECONDS};
use crate::wire::{Header, MAX_ENDPOINTS, flags};

/// Most archives that are asked in turn: all that a heartbeat can name.
pub const MAX_ARCHIVES: usize = MAX_ENDPOINTS / 2 - 1;
/// Parties that are known no more whose answers are still taken.
const FORMER: usize = 8;

/// Who can be asked.
#[derive(Clone, Debug)]
pub struct Parties {
    archives: [Option<SocketAddrV4>; MAX_ARCHIVES],
    server: Option<SocketAddrV4>,
    /// Known before, the latest first.
    former: [Option<Former>; FORMER],
    /// Where this party itself is, on either line.
    own: [Option<Ipv4Addr>; 2],
    /// A heartbeat has named them.
    named: bool,
    /// Where NAKs go when they are multicast; then no address need be known.
    pub group: Option<SocketAddrV4>,
    /// Whether an archive exists, known by address or not. Then no message is given up on the
    /// server's word alone.
    pub archived: bool,
    /// The run of the server that was heard last.
    run: u32,
    /// When it will have named every archive.
    complete_at: Nanos,
}

#[derive(Clone, Copy, Debug)]
struct Former {
    addr: SocketAddrV4,
    /// An archive: until then nothing is lost that it may hold.
    awaited_until: Nanos,
}

/// A server names the archives that it has heard, and each is heard at least this often.
pub const NAMED: Nanos = 5 * SECONDS;
/// How long an archive that is named no more is waited for: it may be starting again, with what nobody
/// else holds.
pub const AWAITED: Nanos = 15 * SECONDS;

impl Parties {
    /// Nobody known yet; `archived` as in [`Parties::archived`].
    #[must_use]
    pub fn new(archived: bool) -> Parties {
        Parties {
            archives: [None; MAX_ARCHIVES],
            server: None,
            former: [None; FORMER],
            own: [None; 2],
            named: false,
            group: None,
            archived,
            run: 0,
            complete_at: 0,
        }
    }

    /// The same for an archive that is at these addresses: what was there before is what it was itself.
    #[must_use]
    pub fn of_archive(self, own: [Option<SocketAddrV4>; 2]) -> Parties {
        Parties {
            own: own.map(|addr| addr.map(|a| *a.ip())),
            ..self
        }
    }

    /// The same, asked by multicast if a group is given.
    #[must_use]
    pub fn by_multicast(self, group: Option<SocketAddrV4>) -> Parties {
        Parties { group, ..self }
    }

    /// A heartbeat has come from this run of the server, and says whether it is another than before. One
    /// that has just started does not know all archives yet.
    #[must_use]
    pub fn heard(&mut self, run: u32, now: Nanos) -> bool {
        let changed = self.run != run;
        if changed {
            self.run = run;
            self.complete_at = now + NAMED;
        }
        changed
    }

    /// Takes the archives that a heartbeat names, and says whether they are others than before.
    /// Archives that stay keep their place.
    pub fn set_archives(&mut self, named: impl Iterator<Item = SocketAddrV4> + Clone, now: Nanos) -> bool {
        let mut changed = false;
        self.named = true;
        for at in 0..self.archives.len() {
            if let Some(gone) = self.archives[at].filter(|a| named.clone().all(|n| n != *a)) {
                self.archives[at] = None;
                // On the same host with another port it is back already, or is who asks.
                let is_back = named.clone().any(|n| n.ip() == gone.ip()) || self.own.contains(&Some(*gone.ip()));
                self.remember(gone, if is_back { 0 } else { now + AWAITED });
                changed = true;
            }
        }
        for addr in named {
            if !self.archives.contains(&Some(addr))
                && let Some(free) = self.archives.iter_mut().find(|p| p.is_none())
            {
                *free = Some(addr);
                changed = true;
                let back = self.former.iter_mut().flatten().find(|f| f.addr == addr);
                back.into_iter().for_each(|f| f.awaited_until = 0);
            }
        }
        changed
    }

    /// The server's address, once known.
    #[must_use]
    pub fn server(&self) -> Option<SocketAddrV4> {
        self.server
    }

    /// Takes the server's address, and says whether it is another than before.
    pub fn set_server(&mut self, server: SocketAddrV4) -> bool {
        let changed = self.server != Some(server);
        if changed && let Some(gone) = self.server.replace(server) {
            self.remember(gone, 0);
        }
        changed
    }

    fn remember(&mut self, addr: SocketAddrV4, awaited_until: Nanos) {
        let known = self.former.iter().position(|f| f.is_some_and(|f| f.addr == addr));
        self.former[..=known.unwrap_or(FORMER - 1)].rotate_right(1);
        self.former[0] = Some(Former { addr, awaited_until });
    }

    /// Whether an answer from this address counts: it is that of the server or an archive, now or
    /// lately. Before a heartbeat has named them anyone may answer what was asked by multicast.
    #[must_use]
    pub fn may_answer(&self, from: SocketAddrV4) -> bool {
        self.server == Some(from)
            || self.archives.contains(&Some(from))
            || self.former.iter().flatten().any(|f| f.addr == from)
            || self.group.is_some() && !self.named
    }

    /// The `n`-th known archive, counted round and round.
    fn archive(&self, n: u32) -> Option<(usize, SocketAddrV4)> {
        let known = self.archives.iter().flatten().count() as u32;
        let n = n.checked_rem(known)? as usize;
        self.places().nth(n)
    }

    fn places(&self) -> impl Iterator<Item = (usize, SocketAddrV4)> + '_ {
        self.archives.iter().enumerate().filter_map(|(i, a)| Some((i, (*a)?)))
    }

    pub(crate) fn place_of(&self, addr: SocketAddrV4) -> Option<usize> {
        self.places().find(|(_, a)| *a == addr).map(|(i, _)| i)
    }

    /// Whom to ask on a gap's next try, and whether that is the server. Archives have even turns,
    /// the server odd ones; who is not known is passed over, and so is a server that has `let_go`
    /// of it if there is an archive.
    pub(crate) fn turn(&self, tries: &mut u32, let_go: bool) -> Option<(SocketAddrV4, bool)> {
        let has_archive = self.has_archive();
        if let_go && has_archive && !tries.is_multiple_of(2) {
            *tries += 1;
        }
        if let Some(group) = self.group {
            if !has_archive && tries.is_multiple_of(2) {
                *tries += 1;
            }
            return Some((group, !tries.is_multiple_of(2)));
        }
        let archive = self.archive(*tries / 2);
        if tries.is_multiple_of(2) && archive.is_none() || !tries.is_multiple_of(2) && self.server.is_none() {
            *tries += 1;
        }
        if tries.is_multiple_of(2) {
            self.archive(*tries / 2).map(|(_, addr)| (addr, false))
        } else {
            self.server.map(|addr| (addr, true))
        }
    }

    /// Whether there is an archive to be asked.
    pub(crate) fn has_archive(&self) -> bool {
        match self.group {
            Some(_) => self.archived,
            None => self.archive(0).is_some(),
        }
    }

    /// Whether a known archive is not among those that have refused.
    pub(crate) fn has_others(&self, refused_by: u16) -> bool {
        self.places().any(|(i, _)| refused_by & 1 << i == 0)
    }

    pub(crate) fn nobody(&self) -> bool {
        self.group.is_none() && self.server.is_none() && self.places().next().is_none()
    }

    /// Whether everyone who could have a number has refused it for good.
    pub(crate) fn all_refuse(&self, refused_by: u16, now: Nanos) -> bool {
        if planted!(TrustOneRefusal) && refused_by != 0 {
            return true;
        }
        let awaited = self.former.iter().flatten().any(|f| now < f.awaited_until);
        if awaited || self.archived && now < self.complete_at {
            return false;
        }
        let all: u16 = self.places().map(|(i, _)| 1 << i).sum();
        let archives_done = if all == 0 {
            !self.archived
        } else {
            refused_by & all == all
        };
        archives_done && self.server.is_some() && refused_by & REFUSED_BY_SERVER != 0
    }
}

/// The bit of the server among those who refuse; archives have theirs by place.
pub(crate) const REFUSED_BY_SERVER: u16 = 1 << MAX_ARCHIVES;

/// Who refuses, and what he was asked.
#[derive(Clone, Copy, Debug)]
pub struct Refuser {
    pub(crate) from: SocketAddrV4,
    pub(crate) is_server: bool,
    /// See [`Header::question`].
    pub(crate) question: u64,
}

impl Refuser {
    /// The sender of an UNAVAILABLE or END.
    #[must_use]
    pub fn new(from: SocketAddrV4, header: &Header) -> Refuser {
        Refuser {
            from,
            is_server: header.has(flags::FROM_SERVER),
            question: header.question(),
        }
    }
}

/// Parties whose NAKs are counted one by one: all there are at a time, and some that are gone.
const ASKED: usize = 2 * (MAX_ARCHIVES + 2);

/// NAK frames sent, by whom they went to.
#[derive(Clone, Debug)]
pub struct Questions {
    all: u64,
    to: Vec<(SocketAddrV4, u64)>,
}

impl Questions {
    /// None yet. All memory is taken now.
    #[must_use]
    pub fn new() -> Questions {
        Questions {
            all: 0,
            to: Vec::with_capacity(ASKED),
        }
    }

    pub(crate) fn note(&mut self, to: SocketAddrV4, naks: u64) {
        self.all += naks;
        if let Some((_, sum)) = self.to.iter_mut().find(|(party, _)| *party == to) {
            *sum += naks;
        } else if self.to.len() < ASKED {
            self.to.push((to, naks));
        } else if let Some(least) = self.to.iter_mut().min_by_key(|(_, sum)| *sum) {
            *least = (to, naks);
        }
    }

    /// Moves all of them to another count.
    pub fn pour(&mut self, into: &mut Questions) {
        self.all = 0;
        for (to, naks) in self.to.drain(..) {
            into.note(to, naks);
        }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.all
    }

    /// Who was asked, and how often. Of more than 34 parties, those asked least are forgotten.
    pub fn by_party(&self) -> impl Iterator<Item = (SocketAddrV4, u64)> {
        self.to.iter().copied()
    }
}

impl Default for Questions {
    fn default() -> Questions {
        Questions::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARCHIVE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 2);
    const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 1);

    #[test]
    fn who_was_asked_may_answer_and_nobody_else() {
        let other = |n: u16| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 9), n);
        let mut parties = Parties::new(true).by_multicast(Some(other(1)));
        assert!(parties.may_answer(other(7)), "everyone was asked");
        parties.set_server(SERVER);
        parties.set_archives([ARCHIVE].into_iter(), 0);
        assert!(parties.may_answer(SERVER) && parties.may_answer(ARCHIVE) && !parties.may_answer(other(7)));
        // What is on its way from those that have gone still counts, without end it does not.
        parties.set_archives([].into_iter(), 0);
        assert!(parties.set_server(other(2)) && !parties.set_server(other(2)));
        assert!(parties.may_answer(SERVER) && parties.may_answer(ARCHIVE));
        for n in 3..3 + FORMER as u16 {
            parties.set_server(other(n));
        }
        assert!(!parties.may_answer(SERVER) && parties.may_answer(other(2)));
    }
}

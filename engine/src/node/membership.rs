//! Says again to the network that a group is wanted, when its server is not heard.
//!
//! A switch that was restarted, or a port that lost its carrier while the querier asked, forwards
//! nothing until the next query: two minutes by default. Leaving and joining makes the kernel report
//! at once.

use std::io;
use std::net::SocketAddrV4;

use seqcast_proto::time::{Nanos, SECONDS};

use crate::link::Link;

/// A server that is well beats ten times in this time.
const SILENCE: Nanos = SECONDS;
/// The longest time between two reports.
const LONGEST: Nanos = 64 * SECONDS;

/// The groups that are received.
pub(super) struct Memberships(Vec<Membership>);

struct Membership {
    group: SocketAddrV4,
    /// When its server was last heard, or the group last joined.
    heard: Nanos,
    /// How long silence may last before it is joined again.
    patience: Nanos,
}

impl Memberships {
    /// Of groups that have just been joined.
    pub(super) fn new(received: impl Iterator<Item = SocketAddrV4>, now: Nanos) -> Memberships {
        let membership = |group| Membership {
            group,
            heard: now,
            patience: SILENCE,
        };
        let mut all: Vec<Membership> = received.map(membership).collect();
        all.sort_unstable_by_key(|m| m.group);
        all.dedup_by_key(|m| m.group);
        Memberships(all)
    }

    /// A heartbeat has come to `group`. They come to groups alone, while data flows as well.
    #[inline]
    pub(super) fn heard(&mut self, group: SocketAddrV4, now: Nanos) {
        for membership in self.0.iter_mut().filter(|m| m.group == group) {
            membership.heard = now;
            membership.patience = SILENCE;
        }
    }

    /// Joins again what has been silent; each time in vain it waits twice as long.
    pub(super) fn look<L: Link>(&mut self, now: Nanos, link: &mut L) -> io::Result<()> {
        for membership in &mut self.0 {
            if now.saturating_sub(membership.heard) >= membership.patience {
                link.rejoin(membership.group)?;
                membership.heard = now;
                membership.patience = (membership.patience * 2).min(LONGEST);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;
    use std::time::Duration;

    use super::*;
    use crate::link::{Datagram, LinkStats};

    /// Counts how often each group is joined again.
    #[derive(Default)]
    struct Counting(Vec<SocketAddrV4>);

    impl Link for Counting {
        type Frame = Vec<u8>;
        fn receive(&mut self, _: usize, _: impl FnMut(Datagram<Vec<u8>>)) -> io::Result<usize> {
            Ok(0)
        }
        fn send(&mut self, _: SocketAddrV4, _: impl FnOnce(&mut [u8]) -> usize) -> bool {
            false
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
        fn join(&mut self, _: SocketAddrV4) -> io::Result<()> {
            Ok(())
        }
        fn rejoin(&mut self, group: SocketAddrV4) -> io::Result<()> {
            self.0.push(group);
            Ok(())
        }
        fn wait(&mut self, _: BorrowedFd<'_>, _: Duration) -> io::Result<()> {
            Ok(())
        }
        fn max_payload(&self) -> usize {
            0
        }
        fn local(&self) -> SocketAddrV4 {
            SocketAddrV4::new([127, 0, 0, 1].into(), 1)
        }
        fn mode(&self) -> String {
            String::new()
        }
        fn stats(&mut self) -> LinkStats {
            LinkStats::default()
        }
    }

    #[test]
    fn only_a_silent_group_is_joined_again_and_ever_more_rarely() {
        let groups = [1, 2].map(|n| SocketAddrV4::new([239, 1, 1, n].into(), 5000));
        let mut memberships = Memberships::new(groups.into_iter(), 0);
        let mut link = Counting::default();
        for tenth in 1..=100 {
            let now = tenth * SECONDS / 10;
            memberships.heard(groups[1], now);
            memberships.look(now, &mut link).unwrap();
        }
        // After 1, 3 and 7 seconds.
        assert_eq!(link.0, [groups[0]; 3]);
        memberships.heard(groups[0], 10 * SECONDS);
        memberships.look(11 * SECONDS, &mut link).unwrap();
        assert_eq!(link.0[3..], groups, "heard, it is patient for a second again");
    }
}

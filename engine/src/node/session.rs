//! Which session a server's run opens, so that no other run ever has the same, whatever is forgotten.

use seqcast_proto::seq::Session;
use seqcast_proto::time::{Nanos, SECONDS};

/// Sessions farther ahead of the clock than this are those of a clock that was set back, or of runs that
/// were started again many times a second: they are not waited for, and only memory tells them apart.
const LONGEST: Nanos = 5 * SECONDS;

/// The session of a run that starts at `wall` (Unix time), and how long it sends nothing. `newest` is the
/// newest session that its log knows; of a log that is new, was lost or is in memory, none.
///
/// What is sent in a session is sent when the second that it is named after is over. A run that starts
/// later without any memory is named after a later second, so it cannot meet the sessions before it. Who
/// remembers them takes the second before, which is over already.
pub(super) fn open(wall: Nanos, newest: Option<Session>) -> (Session, Nanos) {
    let second = u32::try_from(wall / SECONDS).unwrap_or(u32::MAX);
    let session = newest.map_or(second, |newest| {
        second.saturating_sub(1).max(newest.0.saturating_add(1))
    });
    let over = (Nanos::from(session) + 1) * SECONDS;
    let wait = over.saturating_sub(wall);
    (Session(session), if wait > LONGEST { 0 } else { wait })
}

#[cfg(test)]
mod tests {
    use super::*;
    use seqcast_proto::rng::Rng;

    #[test]
    fn runs_that_forget_and_runs_that_do_not_never_share_a_session() {
        let mut random = Rng::new(4);
        let mut wall = 1_000 * SECONDS;
        let mut newest: Option<Session> = None;
        let mut used = Session(0);
        for _ in 0..10_000 {
            let memory = newest.filter(|_| random.below(4) > 0);
            let (session, wait) = open(wall, memory);
            // It is killed before it has sent anything, or behind that.
            if random.below(2) > 0 {
                wall += wait;
                assert!(session > used, "{session} after {used}");
                used = session;
            }
            wall += SECONDS / 2 + random.below(SECONDS);
            newest = Some(session);
        }
    }

    #[test]
    fn who_remembers_and_is_not_in_a_hurry_does_not_wait() {
        let wall = 2_000 * SECONDS + 1;
        assert_eq!(open(wall, Some(Session(1_998))), (Session(1_999), 0));
        assert_eq!(open(wall, Some(Session(9_000))), (Session(9_001), 0));
        assert_eq!(open(wall, None), (Session(2_000), SECONDS - 1));
        assert_eq!(open(wall, Some(Session(1_999))), (Session(2_000), SECONDS - 1));
    }
}

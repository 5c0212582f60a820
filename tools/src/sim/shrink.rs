//! Makes a failing plan smaller.

use seqcast_proto::responder::Cast;

use super::oracle::{Failure, Oracle};
use super::plan::{Fault, Medium, Plan};
use super::run;

/// The smallest plan found within `runs` runs that breaks the same rule as `failure`, and how it
/// breaks it. Faults go one by one, then what the network does, then messages and clients, then
/// time.
#[must_use]
pub fn shrink(plan: &Plan, failure: Failure, runs: usize) -> (Plan, Failure) {
    let mut best = (plan.clone(), failure);
    let mut left = runs;
    loop {
        let mut smaller = false;
        let mut at = 0;
        while let Some(candidate) = candidate(&best.0, at) {
            if left == 0 {
                return best;
            }
            left -= 1;
            match fails(&candidate, best.1.oracle) {
                // The list of what can be left out has changed: the same place is the next one.
                Some(failure) => {
                    best = (candidate, failure);
                    smaller = true;
                }
                None => at += 1,
            }
        }
        if !smaller {
            return best;
        }
    }
}

fn fails(plan: &Plan, oracle: Oracle) -> Option<Failure> {
    run(plan, None).failure.filter(|f| f.oracle == oracle)
}

/// The `at`-th way to make a plan smaller.
fn candidate(plan: &Plan, at: usize) -> Option<Plan> {
    ways(plan).nth(at)
}

/// One thing taken away from a plan.
type Edit = fn(&mut Plan);

fn ways(plan: &Plan) -> impl Iterator<Item = Plan> + '_ {
    let edit = |change: &dyn Fn(&mut Plan)| {
        let mut smaller = plan.clone();
        change(&mut smaller);
        smaller
    };
    let faults = (0..plan.faults.len()).map(move |n| {
        edit(&|p| {
            p.faults.remove(n);
        })
    });
    // The host of the last client alone goes, so that the names of the others stay.
    let last = plan.clients.len() as u16;
    let clients = (last > 1)
        .then(|| {
            edit(&|p| {
                p.clients.pop();
                p.faults
                    .retain(|f| f.fault.hosts().iter().all(|h| *h != super::Host::Client(last - 1)));
            })
        })
        .into_iter();
    let settings: [(bool, Edit); 19] = [
        (plan.messages > 1, |p| p.messages /= 2),
        (plan.messages > 1, |p| p.messages -= (p.messages / 8).max(1)),
        (plan.net.loss > 0, |p| p.net.loss = 0),
        (plan.net.bursts > 0, |p| p.net.bursts = 0),
        (plan.net.doubles > 0, |p| p.net.doubles = 0),
        (plan.net.jitter > 0, |p| p.net.jitter = 0),
        (plan.net.garbage > 0, |p| p.net.garbage = 0),
        (plan.net.no_buffer > 0, |p| p.net.no_buffer = 0),
        (plan.medium == Medium::Log, |p| p.medium = Medium::Table),
        (plan.rate > 0, |p| p.rate = 0),
        (plan.unacknowledged_max > 0, |p| p.unacknowledged_max = 0),
        (plan.repair_rate.is_some(), |p| p.repair_rate = None),
        (plan.ask_group, |p| p.ask_group = false),
        (plan.cast != Cast::Auto, |p| p.cast = Cast::Auto),
        (plan.close, |p| p.close = false),
        (plan.keyed, |p| p.keyed = false),
        (plan.lines.is_some(), |p| {
            p.lines = None;
            p.faults.retain(|f| !matches!(f.fault, Fault::LineDown(_)));
        }),
        (plan.range_end.is_some(), |p| p.range_end = None),
        (plan.active > 1_000_000, |p| {
            // Everything closer together.
            p.active /= 2;
            for timed in &mut p.faults {
                timed.at /= 2;
                timed.until /= 2;
            }
            for client in &mut p.clients {
                client.joins /= 2;
            }
        }),
    ];
    let settings = settings
        .into_iter()
        .filter(|(applies, _)| *applies)
        .map(move |(_, change)| edit(&change));
    faults.chain(clients).chain(settings).collect::<Vec<_>>().into_iter()
}

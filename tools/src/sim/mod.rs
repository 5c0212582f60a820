//! Deterministic simulation: servers, archives and clients of production, run from a seed.
//!
//! A seed decides a [`Plan`]: who takes part and what goes wrong. [`run`] plays it in simulated
//! time and checks the rules of [`Oracle`] at every step; the same plan gives the same run. When a
//! rule is broken, [`shrink`] looks for a smaller plan that still breaks it.

mod disk;
mod oracle;
mod plan;
mod shrink;
mod trace;
mod world;

pub use oracle::{Failure, Oracle};
pub use plan::{ClientPlan, Fault, Host, Lines, Listen, Medium, Net, Plan, Timed};
pub use shrink::shrink;
pub use trace::Trace;
pub use world::Counts;

/// What became of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What it did.
    pub counts: Counts,
    /// The first rule that was broken, if one was.
    pub failure: Option<Failure>,
    /// The timeline, if one was asked for.
    pub trace: Option<Trace>,
}

/// Plays a plan. `trace` takes the timeline.
#[must_use]
pub fn run(plan: &Plan, trace: Option<Trace>) -> Outcome {
    let mut world = world::World::new(plan, trace);
    let (counts, failure) = world.run();
    Outcome {
        counts,
        failure,
        trace: world.trace.take(),
    }
}

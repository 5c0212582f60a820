//! What is right for an engine. Each rule takes facts and wishes and gives a finding, or nothing where
//! it does not apply.

mod core;
mod device;
mod limits;
mod network;

use super::facts::Facts;
use super::{Change, Finding, Remedy, Setting, State, Wish};

type Rule = fn(&Facts, &Wish) -> Option<Finding>;

/// In the order in which they are shown.
const RULES: &[Rule] = &[
    device::kind,
    device::up,
    device::port_of,
    limits::kernel,
    device::zero_copy,
    device::program,
    limits::capabilities,
    limits::locked_memory,
    device::mtu,
    device::queues,
    device::steering,
    device::rings,
    device::coalescing,
    device::flow_control,
    device::large_receive,
    device::vlan,
    network::deferral,
    network::busy_poll,
    network::igmp,
    network::memberships,
    network::reverse_path,
    network::receive_buffer,
    core::pinned,
    core::isolated,
    core::siblings,
    core::node,
    core::governor,
    core::sleep,
    core::interrupts,
    limits::huge_pages,
    limits::jit,
    limits::clock_source,
    limits::clock_in_step,
];

pub(super) fn judge(facts: &Facts, wish: &Wish) -> Vec<Finding> {
    RULES.iter().filter_map(|rule| rule(facts, wish)).collect()
}

fn good(topic: &'static str, is: impl Into<String>, why: &'static str) -> Finding {
    Finding {
        topic,
        state: State::Good,
        is: is.into(),
        why,
        remedy: None,
    }
}

impl Finding {
    fn note(mut self) -> Finding {
        self.state = State::Note;
        self
    }

    /// Not as it should be, with what helps.
    fn but(mut self, state: State, remedy: Remedy) -> Finding {
        (self.state, self.remedy) = (state, Some(remedy));
        self
    }
}

fn advice(text: impl Into<String>) -> Remedy {
    Remedy::Advice(text.into())
}

fn set(wish: &Wish, setting: Setting, value: impl ToString) -> Remedy {
    Remedy::Change(vec![change(wish, setting, value)])
}

fn change(wish: &Wish, setting: Setting, value: impl ToString) -> Change {
    Change {
        interface: wish.interface.clone(),
        setting,
        value: value.to_string(),
    }
}

#[cfg(test)]
mod tests;

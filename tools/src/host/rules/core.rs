//! The core that the engine runs on.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::super::facts::Facts;
use super::{Finding, Setting, State, Wish, advice, change, good, set};
use crate::host::Remedy;

/// A sleep from which a core wakes within so many microseconds is no matter.
const SHORT: u64 = 2;

fn list(cores: &BTreeSet<usize>) -> String {
    let names: Vec<String> = cores.iter().map(ToString::to_string).collect();
    names.join(",")
}

pub(super) fn pinned(facts: &Facts, wish: &Wish) -> Option<Finding> {
    let why = "a thread that moves between cores leaves its caches behind, and one that shares a core waits for it";
    let all = format!("{} cores", facts.online.len());
    Some(match wish.core {
        None => good("core", format!("any of {all}"), why).but(
            State::Poor,
            advice("core = N in [engine], or --core N here, to see what is said of it"),
        ),
        Some(core) if !facts.online.contains(&core) => good("core", format!("{core}, of {all}"), why).but(
            State::Bad,
            advice(format!("there is no core {core}: one of {}", list(&facts.online))),
        ),
        Some(core) => good("core", format!("{core}, of {all}"), why),
    })
}

pub(super) fn isolated(facts: &Facts, _: &Wish) -> Option<Finding> {
    let core = facts.core.as_ref()?.number;
    let finding = good(
        "isolation",
        match (facts.isolated.contains(&core), facts.tickless.contains(&core)) {
            (true, true) => "isolated, without ticks",
            (true, false) => "isolated",
            (false, true) => "without ticks",
            (false, false) => "none",
        },
        "other threads and the scheduler's tick take the core away, for microseconds to milliseconds",
    );
    Some(if facts.isolated.contains(&core) && facts.tickless.contains(&core) {
        finding
    } else if facts.online.len() < 3 {
        // On two cores the one that is left would have all the rest to do.
        finding.note()
    } else {
        finding.but(
            State::Poor,
            advice(format!(
                "kernel command line: isolcpus={core} nohz_full={core} rcu_nocbs={core}, and restart"
            )),
        )
    })
}

pub(super) fn siblings(facts: &Facts, _: &Wish) -> Option<Finding> {
    let core = facts.core.as_ref()?;
    let why = "two hardware threads share one core's caches and units: what runs on the other slows the engine";
    Some(if core.siblings.is_empty() {
        good("siblings", "none", why)
    } else {
        let siblings = list(&core.siblings);
        let first = core.siblings.first().copied().unwrap_or(0);
        let finding = good("siblings", siblings, why);
        if core.siblings.is_subset(&facts.isolated) {
            return Some(finding);
        }
        finding.but(
            State::Poor,
            advice(format!(
                "keep it empty: isolate it as well, or echo 0 > /sys/devices/system/cpu/cpu{first}/online"
            )),
        )
    })
}

pub(super) fn node(facts: &Facts, _: &Wish) -> Option<Finding> {
    let core = facts.core.as_ref()?;
    let (node, nic) = (core.numa_node?, facts.nic.numa_node?);
    let finding = good(
        "NUMA",
        format!("core on node {node}, NIC on node {nic}"),
        "frames that cross to the other node's memory take longer, each",
    );
    Some(if node == nic {
        finding
    } else {
        finding.but(
            State::Poor,
            advice(format!(
                "a core of the NIC's node: /sys/devices/system/node/node{nic}/cpulist"
            )),
        )
    })
}

pub(super) fn governor(facts: &Facts, wish: &Wish) -> Option<Finding> {
    let core = facts.core.as_ref()?;
    let governor = core.governor.as_deref()?;
    let finding = good(
        "governor",
        governor,
        "a core that slows down when little is to do is slow when the next burst comes",
    );
    if governor == "performance" {
        return Some(finding);
    }
    let file = format!("/sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor", core.number);
    Some(finding.but(State::Poor, set(wish, Setting::File(file.into()), "performance")))
}

pub(super) fn sleep(facts: &Facts, wish: &Wish) -> Option<Finding> {
    let core = facts.core.as_ref()?;
    let why = "an idle core takes so long to wake; one that spins is never idle";
    let long: Vec<_> = core.sleeps.iter().filter(|sleep| sleep.wake_us > SHORT).collect();
    let Some(longest) = long.iter().max_by_key(|sleep| sleep.wake_us) else {
        return Some(good("sleep", "short or none", why));
    };
    let finding = good(
        "sleep",
        format!("{}: {} us to wake", longest.name, longest.wake_us),
        why,
    );
    if wish.spins {
        return Some(finding);
    }
    let off = long
        .iter()
        .map(|sleep| change(wish, Setting::File(sleep.switch.clone()), 1));
    Some(finding.but(State::Poor, Remedy::Change(off.collect())))
}

pub(super) fn interrupts(facts: &Facts, wish: &Wish) -> Option<Finding> {
    let core = facts.core.as_ref()?.number;
    if facts.nic.irqs.is_empty() {
        return None;
    }
    let why = "an interrupt on the engine's core stops it; in copy mode the kernel's whole receive path runs there";
    let here: Vec<_> = facts.nic.irqs.iter().filter(|irq| irq.cores.contains(&core)).collect();
    if here.is_empty() {
        return Some(good("interrupts", "on other cores", why));
    }
    let finding = good("interrupts", format!("{} of the NIC on core {core}", here.len()), why);
    if facts.irqbalance {
        let text = format!("IRQBALANCE_BANNED_CPULIST={core} for irqbalance, or stop it and look here again");
        return Some(finding.but(State::Poor, advice(text)));
    }
    let others: BTreeSet<usize> = facts.online.iter().copied().filter(|c| *c != core).collect();
    if others.is_empty() {
        return Some(finding.note());
    }
    let moved = here.iter().map(|irq| {
        let file = PathBuf::from(format!("/proc/irq/{}/smp_affinity_list", irq.number));
        change(wish, Setting::File(file), list(&others))
    });
    Some(finding.but(State::Poor, Remedy::Change(moved.collect())))
}

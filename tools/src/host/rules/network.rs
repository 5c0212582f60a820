//! What the kernel's network stack adds.

use std::path::PathBuf;

use super::super::facts::Facts;
use super::{Finding, Setting, State, Wish, advice, change, good, set};
use crate::host::Remedy;

fn sysfs(wish: &Wish, file: &str) -> Setting {
    Setting::File(PathBuf::from("/sys/class/net").join(&wish.interface).join(file))
}

fn sysctl(wish: &Wish, file: &str) -> Setting {
    Setting::File(
        PathBuf::from("/proc/sys/net/ipv4/conf")
            .join(&wish.interface)
            .join(file),
    )
}

pub(super) fn deferral(facts: &Facts, wish: &Wish) -> Option<Finding> {
    let (timeout, deferred) = (facts.nic.gro_flush_timeout?, facts.nic.defer_hard_irqs?);
    let finding = good(
        "deferral",
        format!("{deferred} polls, {timeout} ns"),
        "interrupts that are put off leave packets lying in the NIC until a timer or a poll comes",
    );
    if timeout == 0 && deferred == 0 {
        return Some(finding);
    }
    let changes = vec![
        change(wish, sysfs(wish, "napi_defer_hard_irqs"), 0),
        change(wish, sysfs(wish, "gro_flush_timeout"), 0),
    ];
    Some(finding.but(State::Poor, Remedy::Change(changes)))
}

pub(super) fn busy_poll(facts: &Facts, wish: &Wish) -> Option<Finding> {
    let us = facts.busy_poll_us?;
    let finding = good(
        "busy poll",
        format!("{us} us"),
        "with the udp link, a wait that polls the NIC for so long saves the way over an interrupt",
    );
    if wish.xdp || !wish.spins || us > 0 {
        return Some(finding);
    }
    Some(finding.note())
}

pub(super) fn igmp(facts: &Facts, wish: &Wish) -> Option<Finding> {
    let why =
        "reports of version 1 or 2 are held back when another host reports, and a switch may then forget this one";
    let forced = facts.nic.forced_igmp.unwrap_or(0);
    if matches!(forced, 1 | 2) {
        let remedy = set(wish, sysctl(wish, "force_igmp_version"), 0);
        return Some(good("IGMP", format!("version {forced}, forced"), why).but(State::Poor, remedy));
    }
    match facts.nic.igmp.as_deref() {
        None | Some("V3") => Some(good("IGMP", "version 3", why)),
        Some(version) => {
            let is = format!(
                "version {}, because a querier speaks it",
                version.trim_start_matches('V')
            );
            let remedy = advice("let the querier, a switch or router, speak version 3");
            Some(good("IGMP", is, why).but(State::Poor, remedy))
        }
    }
}

pub(super) fn memberships(facts: &Facts, wish: &Wish) -> Option<Finding> {
    let limit = facts.memberships_limit?;
    let finding = good(
        "groups",
        format!("{} wanted, {limit} allowed for a socket", wish.groups),
        "the engine joins the groups of the xdp link on one socket; one too many is refused",
    );
    if !wish.xdp || wish.groups as u64 <= limit {
        return Some(finding);
    }
    let file = Setting::File("/proc/sys/net/ipv4/igmp_max_memberships".into());
    Some(finding.but(State::Bad, set(wish, file, wish.groups)))
}

pub(super) fn reverse_path(facts: &Facts, wish: &Wish) -> Option<Finding> {
    let filter = facts.nic.reverse_path_filter?;
    let finding = good(
        "return path",
        match filter {
            0 => "not checked",
            1 => "strict",
            _ => "loose",
        },
        "a strict kernel drops multicast whose sender it would answer over another interface, without a word",
    );
    Some(match (filter, wish.xdp) {
        // Data comes past the kernel; the rest are questions from known routes.
        (1, true) => finding.note(),
        (1, false) => finding.but(State::Poor, set(wish, sysctl(wish, "rp_filter"), 2)),
        _ => finding,
    })
}

pub(super) fn receive_buffer(facts: &Facts, wish: &Wish) -> Option<Finding> {
    const CAP_NET_ADMIN: u32 = 12;
    if wish.xdp {
        return None;
    }
    let limit = facts.receive_buffer_limit?;
    let finding = good(
        "receive buffer",
        format!("{} wanted, {limit} allowed", wish.receive_buffer),
        "what arrives while the engine is busy waits there; what does not fit is lost and asked for again",
    );
    if limit >= wish.receive_buffer as u64 || facts.capabilities & (1 << CAP_NET_ADMIN) != 0 {
        return Some(finding);
    }
    let file = Setting::File("/proc/sys/net/core/rmem_max".into());
    Some(finding.but(State::Poor, set(wish, file, wish.receive_buffer)))
}

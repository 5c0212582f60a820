//! The kernel, and what it grants this process.

use super::super::facts::Facts;
use super::{Finding, Setting, State, Wish, advice, good, set};

const OLDEST_KERNEL: (u32, u32) = (5, 18);
/// Capabilities that the xdp link needs, with their numbers.
const NEEDED: [(&str, u32); 3] = [("cap_net_admin", 12), ("cap_net_raw", 13), ("cap_bpf", 39)];
const CAP_IPC_LOCK: u32 = 14;
/// Clocks that are read without a system call.
const FAST_CLOCKS: [&str; 4] = ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"];

pub(super) fn kernel(facts: &Facts, wish: &Wish) -> Option<Finding> {
    let finding = good(
        "kernel",
        facts.kernel.clone(),
        "AF_XDP as the engine uses it came with Linux 5.18",
    );
    Some(if wish.xdp && facts.kernel_version() < OLDEST_KERNEL {
        finding.but(State::Bad, advice("a newer kernel, or link = \"udp\" in [engine]"))
    } else {
        finding
    })
}

fn has(facts: &Facts, capability: u32) -> bool {
    facts.capabilities & (1 << capability) != 0
}

pub(super) fn capabilities(facts: &Facts, wish: &Wish) -> Option<Finding> {
    if !wish.xdp {
        return None;
    }
    let why = "the kernel lets nobody else load a filter or open AF_XDP sockets; this process was looked at";
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(_, n)| !has(facts, *n))
        .map(|(name, _)| *name)
        .collect();
    Some(if missing.is_empty() {
        good("capabilities", "all", why)
    } else {
        good("capabilities", format!("without {}", missing.join(", ")), why).but(
            State::Bad,
            advice("setcap cap_bpf,cap_net_admin,cap_net_raw,cap_ipc_lock+ep PROGRAM, or root"),
        )
    })
}

pub(super) fn locked_memory(facts: &Facts, wish: &Wish) -> Option<Finding> {
    if !wish.xdp {
        return None;
    }
    let needed = u64::from(wish.frames) * u64::from(wish.frame_size) * wish.queues.len() as u64;
    let why = "the kernel pins the frames of AF_XDP";
    let Some(limit) = facts.locked_memory.filter(|_| !has(facts, CAP_IPC_LOCK)) else {
        return Some(good("locked memory", format!("{needed} needed, no limit"), why));
    };
    let finding = good("locked memory", format!("{needed} needed, {limit} allowed"), why);
    if limit >= needed {
        return Some(finding);
    }
    let kib = needed.div_ceil(1024);
    let text = format!("ulimit -l {kib}; LimitMEMLOCK={needed} in a systemd unit; or cap_ipc_lock");
    Some(finding.but(State::Bad, advice(text)))
}

pub(super) fn huge_pages(facts: &Facts, wish: &Wish) -> Option<Finding> {
    let pages = facts
        .huge_pages
        .map_or(String::new(), |pages| format!(", {pages} reserved"));
    let mode = facts.transparent_huge_pages.as_deref()?;
    let finding = good(
        "huge pages",
        format!("{mode}{pages}"),
        "the kernel stops a thread whose pages it joins; the engine asks for huge pages where they help",
    );
    if mode != "always" {
        return Some(finding);
    }
    let file = Setting::File("/sys/kernel/mm/transparent_hugepage/enabled".into());
    Some(finding.but(State::Poor, set(wish, file, "madvise")))
}

pub(super) fn jit(facts: &Facts, wish: &Wish) -> Option<Finding> {
    let on = facts.bpf_jit.filter(|_| wish.xdp)?;
    let finding = good(
        "BPF compiler",
        if on == 0 { "off" } else { "on" },
        "an interpreted filter takes several times as long for each packet",
    );
    if on != 0 {
        return Some(finding);
    }
    let file = Setting::File("/proc/sys/net/core/bpf_jit_enable".into());
    Some(finding.but(State::Poor, set(wish, file, 1)))
}

pub(super) fn clock_source(facts: &Facts, _: &Wish) -> Option<Finding> {
    let source = facts.clock_source.as_deref()?;
    let finding = good(
        "clock source",
        source,
        "a slow clock costs a system call, a microsecond or more, in each turn of the engine",
    );
    if FAST_CLOCKS.contains(&source) {
        return Some(finding);
    }
    let text =
        "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource, if the machine's is stable";
    Some(finding.but(State::Poor, advice(text)))
}

pub(super) fn clock_in_step(facts: &Facts, _: &Wish) -> Option<Finding> {
    let why = "one-way latencies and the archive's times are as right as the clocks of the hosts agree";
    let own = facts.nic.clock.map(|n| format!("/dev/ptp{n}"));
    let step = facts.clock_in_step?;
    let is = match (step, &own) {
        (true, Some(ptp)) => format!("in step; the NIC has {ptp}"),
        (true, None) => "in step".to_owned(),
        (false, Some(ptp)) => format!("free; the NIC has {ptp}"),
        (false, None) => "free".to_owned(),
    };
    let finding = good("clock", is, why);
    Some(match (step, own) {
        (true, _) => finding,
        (false, Some(_)) => finding.but(
            State::Poor,
            advice(format!(
                "ptp4l -i {} and phc2sys -a -r (package linuxptp), or chrony",
                facts.nic.link.name
            )),
        ),
        (false, None) => finding.but(State::Poor, advice("chrony, or another daemon that keeps time")),
    })
}

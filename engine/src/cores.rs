//! Which cores an engine's workers are pinned to.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};
use core_affinity::CoreId;

use crate::config::{Core, Idle, Part};
use crate::log;

/// Cores that workers leave to the rest of the machine before they spin unasked.
const LEFT: usize = 3;

/// Puts a number in place of each `core = "auto"`, and a strategy in place of `idle = "auto"` where several
/// workers share the machine. Says where a worker is far from its network card.
///
/// # Errors
/// When a core is not there, or more workers want to spin than there are cores.
pub fn assign(parts: &mut [Part]) -> Result<()> {
    let there: Vec<usize> = core_affinity::get_core_ids()
        .unwrap_or_default()
        .iter()
        .map(|c| c.id)
        .collect();
    assign_of(parts, &there, cores_near)
}

fn assign_of(parts: &mut [Part], there: &[usize], near: impl Fn(&str) -> Option<Vec<usize>>) -> Result<()> {
    let listed = || there.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let mut taken = Vec::new();
    for part in parts.iter() {
        let Some(Core::Number(core)) = part.config.engine.core else {
            continue;
        };
        if !there.contains(&core) {
            bail!(
                "{} core = {core} is not there; this process may use cores {}",
                part.title(),
                listed()
            );
        }
        taken.push(core);
    }
    let several = parts.len() > 1;
    let may_spin_unasked = there.len() >= parts.len() + LEFT;
    for part in parts.iter_mut() {
        let title = part.title();
        let engine = &mut part.config.engine;
        let near = near(&engine.interface);
        match engine.core {
            Some(Core::Number(core)) if near.as_ref().is_some_and(|near| !near.contains(&core)) => tracing::warn!(
                target: log::ENGINE, engine = engine.name, core,
                "{title} core = {core} is on another NUMA node than {}: core = \"auto\" takes one beside it",
                engine.interface
            ),
            Some(Core::Auto) => {
                let free = there.iter().copied().filter(|core| !taken.contains(core));
                let core = choose(free, near.as_deref());
                taken.extend(core);
                engine.core = core.map(Core::Number);
                if core.is_none() {
                    tracing::warn!(
                        target: log::ENGINE, engine = engine.name,
                        "{title} core = \"auto\": no core is left, so that it is not pinned; this process may use cores {}",
                        listed()
                    );
                }
            }
            Some(Core::Number(_)) | None => {}
        }
        if several && engine.idle == Idle::Auto && !may_spin_unasked {
            engine.idle = Idle::Block;
        }
    }
    let spins = |part: &&Part| {
        let engine = &part.config.engine;
        engine.idle.in_force(engine.core.is_some()) == Idle::Spin
    };
    let spinning = parts.iter().filter(spins).count();
    if several && spinning > there.len() {
        bail!(
            "{spinning} workers have idle = \"spin\", and this process may use cores {}: give what is left over idle = \"block\", or join workers",
            listed()
        );
    }
    Ok(())
}

/// The best of the free cores: one near the card, and of these the last, since the first ones get
/// most interrupts.
fn choose(free: impl Iterator<Item = usize>, near: Option<&[usize]>) -> Option<usize> {
    free.max_by_key(|core| (near.is_some_and(|near| near.contains(core)), *core))
}

/// The cores of the NUMA node of an interface's card; `None` if it has none.
fn cores_near(interface: &str) -> Option<Vec<usize>> {
    let node = Path::new("/sys/class/net").join(interface).join("device/numa_node");
    // -1 where the machine does not tell.
    let node: usize = fs::read_to_string(node).ok()?.trim().parse().ok()?;
    let list = fs::read_to_string(format!("/sys/devices/system/node/node{node}/cpulist")).ok()?;
    cores_of(list.trim())
}

/// Reads a list of cores as the kernel writes it: `0-3,8`.
fn cores_of(list: &str) -> Option<Vec<usize>> {
    let mut cores = Vec::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cores.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(cores)
}

/// Binds the calling thread to a core that [`assign`] has seen.
///
/// # Errors
/// When the kernel refuses.
pub fn pin(core: usize) -> Result<()> {
    if !core_affinity::set_for_current(CoreId { id: core }) {
        bail!("core = {core}: the kernel refuses to pin the engine's thread to it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn parts(engine: &str, worker: &str) -> Vec<Part> {
        let text = format!(
            "[engine]\ninterface = \"eth1\"\n{engine}\n[[worker]]\nname = \"b\"\ninterface = \"eth2\"\n{worker}\n\
             [[archive]]\nstream = \"239.1.1.1:5000\"\ndir = \"a\"\n\
             [[archive]]\nstream = \"239.1.1.2:5000\"\ndir = \"b\"\nworker = \"b\""
        );
        Config::parse(&text, Path::new("x.toml")).unwrap().split()
    }

    fn near(interface: &str) -> Option<Vec<usize>> {
        (interface == "eth2").then(|| vec![0, 1])
    }

    /// The core of each worker of a machine with so many.
    fn cores(engine: &str, worker: &str, there: usize) -> Result<Vec<Option<usize>>, String> {
        let mut parts = parts(engine, worker);
        let there: Vec<usize> = (0..there).collect();
        assign_of(&mut parts, &there, near).map_err(|e| e.to_string())?;
        let number = |part: &Part| part.config.engine.core.and_then(Core::number);
        Ok(parts.iter().map(number).collect())
    }

    #[test]
    fn a_core_beside_the_card_comes_first() {
        assert_eq!(cores_of("0-2,8"), Some(vec![0, 1, 2, 8]));
        assert_eq!(cores_of("3"), Some(vec![3]));
        assert_eq!(cores_of(""), None);
        for (engine, worker, expected) in [
            ("", "", [None, None]),
            ("core = \"auto\"", "core = 7", [Some(6), Some(7)]),
            ("core = \"auto\"", "", [Some(7), Some(1)]),
            ("core = 1", "", [Some(1), Some(0)]),
            ("core = 0", "core = 0", [Some(0), Some(0)]),
        ] {
            assert_eq!(
                cores(&format!("{engine}\nidle = \"block\""), worker, 8).unwrap(),
                expected
            );
        }
    }

    #[test]
    fn what_the_machine_has_not_is_refused_or_left_out() {
        let missing = cores("core = 8", "", 8).unwrap_err();
        assert_eq!(
            missing,
            "[engine] core = 8 is not there; this process may use cores 0, 1, 2, 3, 4, 5, 6, 7"
        );
        assert_eq!(
            cores("core = 0", "", 1).unwrap(),
            [Some(0), None],
            "no core is left for the second"
        );
        let both_spin = cores("core = 0\nidle = \"spin\"", "core = \"auto\"", 1).unwrap_err();
        assert!(both_spin.contains("2 workers have idle = \"spin\""), "{both_spin}");
    }

    #[test]
    fn unasked_workers_spin_only_where_cores_are_left() {
        for (there, left) in [(4, false), (5, true)] {
            let mut parts = parts("core = \"auto\"", "");
            let there: Vec<usize> = (0..there).collect();
            assign_of(&mut parts, &there, near).unwrap();
            let idle = parts[1].config.engine.idle;
            assert_eq!(idle == Idle::Auto, left, "{there:?}: {idle:?}");
        }
    }
}

//! What the engine gives back once its link is open: it needs no capability any more.

use anyhow::{Context, Result};
use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::Uid;

/// Drops this thread's capabilities but `kept`, and those of all threads that it starts from now on, and
/// lets no program that it starts gain any. Root keeps its access to files.
///
/// # Errors
/// When the kernel refuses, as it should not.
pub(crate) fn drop_all_but(kept: &[Capability]) -> Result<()> {
    let held = caps::read(None, CapSet::Permitted).context("cannot read this process's capabilities")?;
    let files = [Capability::CAP_DAC_OVERRIDE, Capability::CAP_DAC_READ_SEARCH];
    let files = files.into_iter().filter(|_| Uid::effective().is_root());
    let kept: CapsHashSet = kept
        .iter()
        .copied()
        .chain(files)
        .filter(|cap| held.contains(cap))
        .collect();
    nix::sys::prctl::set_no_new_privs().context("cannot forbid new privileges")?;
    // Ambient ones go with the inheritable.
    for (set, kept) in [
        (CapSet::Inheritable, &CapsHashSet::new()),
        (CapSet::Effective, &kept),
        (CapSet::Permitted, &kept),
    ] {
        caps::set(None, set, kept).context("cannot drop capabilities")?;
    }
    Ok(())
}

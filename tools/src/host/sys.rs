//! The one thing that neither a file nor netlink tells.

/// Whether somebody keeps the system's clock in step, as `adjtimex(2)` tells; nothing if it does not.
pub(super) fn clock_in_step() -> Option<bool> {
    // SAFETY: the structure holds integers only, for which all zeros is a value; zero in `modes` asks
    // and changes nothing.
    let mut asked: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure, which is live.
    let state = unsafe { libc::adjtimex(&raw mut asked) };
    (state >= 0).then_some(asked.status & libc::STA_UNSYNC == 0)
}

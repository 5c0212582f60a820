//! Other processes of this machine.

use std::fs;

/// When a process started, in clock ticks since the machine did, so that a reused number is not taken for
/// it; nothing if it is gone or only a zombie.
#[must_use]
pub fn started_at(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may hold blanks and parentheses; what follows the last one does not.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18)?.parse().ok())?
}

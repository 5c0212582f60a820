//! What archives hold: summaries, messages in order, captures; playing it again; copies from archive
//! to archive, on disk and over the network, repair, and the removal of old sessions.
//!
//! Reading works beside an engine that writes to the same archive: a session is seen as it was when
//! it was opened. [`prune`], [`repair`] and the target of [`sync`] and [`fetch`]
//! need the archive for themselves.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub mod fetch;
pub mod pace;
#[cfg(feature = "parquet")]
pub mod parquet;
pub mod pcapng;
pub mod prune;
pub mod repair;
pub mod replay;
pub mod select;
pub mod summary;
pub mod sync;
pub mod text;

/// A time of the archive's in UTC, to the millisecond (24 characters).
#[must_use]
pub fn utc_millis(ns: u64) -> String {
    humantime::format_rfc3339_millis(system_time(ns)).to_string()
}

/// A time of the archive's in UTC, to the nanosecond (30 characters).
#[must_use]
pub fn utc_nanos(ns: u64) -> String {
    humantime::format_rfc3339_nanos(system_time(ns)).to_string()
}

/// All of a u64's nanoseconds lie before the year 2555.
fn system_time(ns: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(ns)
}

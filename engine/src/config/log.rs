//! `[log]`: what is said to operators, and how.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::log::{Format, parse_filter};

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// From which level on, and of which part: `"info"`, `"warn,client=debug"`.
    pub level: String,
    /// How a line looks.
    pub format: Format,
    /// The file to append to; standard error without it.
    pub file: Option<PathBuf>,
    /// How often the same is said in an interval; 0: as often as it happens.
    pub burst: u32,
    /// The interval, in seconds.
    pub interval_s: u64,
}

impl Default for Log {
    fn default() -> Log {
        Log {
            level: "info".to_owned(),
            format: Format::Text,
            file: None,
            burst: 20,
            interval_s: 10,
        }
    }
}

impl Log {
    /// The time in which `burst` counts.
    #[must_use]
    pub fn interval(&self) -> Duration {
        Duration::from_secs(self.interval_s)
    }

    /// What makes no sense, if anything.
    pub(super) fn check(&self) -> Result<(), String> {
        parse_filter(&self.level).map_err(|error| format!("[log] level: {error}"))?;
        if !(1..=86_400).contains(&self.interval_s) {
            return Err("[log] `interval_s` must be 1 to 86400".to_owned());
        }
        Ok(())
    }
}

//! `[programs]`: programs beside the engine.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Bytes;

/// `[programs]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Programs {
    /// Where programs connect; without it only those of the engine's own process do.
    pub socket: Option<PathBuf>,
    /// Permission bits of the socket, octal.
    #[serde(deserialize_with = "mode", serialize_with = "octal")]
    pub mode: u32,
    /// Owner of the socket, by name or number; the engine's user by default.
    #[serde(deserialize_with = "name_or_number")]
    pub user: Option<String>,
    /// Group of the socket, by name or number; the engine's by default.
    #[serde(deserialize_with = "name_or_number")]
    pub group: Option<String>,
    /// Most publishers and subscribers at once.
    pub max: usize,
    /// Bytes of each publisher's lane.
    pub lane: Bytes,
    /// Bytes of each subscribed stream's ring, at most.
    pub ring: Bytes,
    /// Subscribers of a stream that fetch what they missed at once, at most.
    pub catch_ups: usize,
}

impl Default for Programs {
    fn default() -> Programs {
        Programs {
            socket: None,
            mode: 0o660,
            user: None,
            group: None,
            max: 64,
            lane: Bytes(1 << 20),
            ring: Bytes(8 << 20),
            catch_ups: 4,
        }
    }
}

fn mode<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let text = String::deserialize(deserializer)?;
    u32::from_str_radix(&text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| {
            serde::de::Error::custom(format!(
                "{text:?} is no mode; write it in octal digits, such as \"0660\""
            ))
        })
}

fn octal<S: serde::Serializer>(mode: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{mode:04o}"))
}

fn name_or_number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u32),
        Text(String),
    }
    Ok(Some(match Either::deserialize(deserializer)? {
        Either::Number(n) => n.to_string(),
        Either::Text(text) => text,
    }))
}

impl Programs {
    /// What makes no sense, if anything.
    pub(super) fn check(&self) -> Result<(), String> {
        let within = |name: &str, good: bool, range: &str| {
            if good {
                Ok(())
            } else {
                Err(format!("[programs] `{name}` must be {range}"))
            }
        };
        within("max", (1..=1024).contains(&self.max), "1 to 1024")?;
        within("catch_ups", self.catch_ups <= 64, "at most 64")?;
        let lane = (64 << 10..=1 << 30).contains(&self.lane.0);
        within("lane", lane, "\"64 KiB\" to \"1 GiB\"")?;
        let ring = (256 << 10..=4 << 30).contains(&self.ring.0);
        within("ring", ring, "\"256 KiB\" to \"4 GiB\"")
    }
}

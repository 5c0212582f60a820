//! `trust` of a stream: its keys, and who may send what.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Serialize, Serializer};

/// `trust` of `[[publish]]`, `[[subscribe]]` and `[[archive]]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Trust {
    /// File of the stream's keys, see [`crate::keys`]; without it frames are not sealed.
    pub key: Option<PathBuf>,
    /// Whose frames are used.
    pub allow: Allow,
    /// How far the clocks of the stream's hosts may differ, in milliseconds, 100 to 3 600 000.
    pub clock_skew_ms: u64,
}

impl Default for Trust {
    fn default() -> Trust {
        Trust {
            key: None,
            allow: Allow::default(),
            clock_skew_ms: 10_000,
        }
    }
}

/// Writes what is in force: no `trust` is one that lets anyone in.
pub(super) fn in_full<S: Serializer>(trust: &Option<Trust>, serializer: S) -> Result<S::Ok, S::Error> {
    match trust {
        Some(trust) => trust.serialize(serializer),
        None => Trust::default().serialize(serializer),
    }
}

/// Sources by what they may send; `None`: anyone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Allow {
    /// DATA and HEARTBEAT, and what a server answers.
    pub servers: Option<Vec<Net>>,
    /// ACK and NAK, and what an archive answers.
    pub archives: Option<Vec<Net>>,
    /// NAK.
    pub clients: Option<Vec<Net>>,
}

impl<'de> Deserialize<'de> for Allow {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Allow, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Parts {
            servers: Option<Vec<Net>>,
            archives: Option<Vec<Net>>,
            clients: Option<Vec<Net>>,
        }
        match toml::Value::deserialize(deserializer)? {
            list @ toml::Value::Array(_) => {
                let all: Option<Vec<Net>> = Some(list.try_into().map_err(D::Error::custom)?);
                Ok(Allow {
                    servers: all.clone(),
                    archives: all.clone(),
                    clients: all,
                })
            }
            parts => {
                let parts: Parts = parts.try_into().map_err(D::Error::custom)?;
                Ok(Allow {
                    servers: parts.servers,
                    archives: parts.archives,
                    clients: parts.clients,
                })
            }
        }
    }
}

/// A network of IPv4 addresses, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net {
    address: u32,
    mask: u32,
}

impl Net {
    /// Whether the address lies in it.
    #[inline]
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask == self.address
    }
}

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Net, String> {
        let wrong = || format!("{text:?} is no source; write \"10.0.0.7\" or \"10.0.0.0/24\"");
        let (address, bits) = text.split_once('/').unwrap_or((text, "32"));
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let bits: u32 = bits.parse().ok().filter(|b| *b <= 32).ok_or_else(wrong)?;
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        let network = u32::from(address) & mask;
        if network != u32::from(address) {
            let network = Ipv4Addr::from(network);
            return Err(format!("{text:?} has bits behind its mask; write \"{network}/{bits}\""));
        }
        Ok(Net { address: network, mask })
    }
}

impl Serialize for Net {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (address, bits) = (Ipv4Addr::from(self.address), self.mask.count_ones());
        serializer.collect_str(&format_args!("{address}/{bits}"))
    }
}

impl<'de> Deserialize<'de> for Net {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Net, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Trust {
    /// What is wrong with it.
    pub(super) fn check(&self) -> Result<(), String> {
        if !(100..=3_600_000).contains(&self.clock_skew_ms) {
            return Err("`trust.clock_skew_ms` must be 100 to 3600000".into());
        }
        let lists = [&self.allow.servers, &self.allow.archives, &self.allow.clients];
        if lists.into_iter().flatten().any(Vec::is_empty) {
            return Err("an empty list in `trust.allow` lets nobody in: leave it out, or name sources".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_their_addresses_and_no_others() {
        for (net, inside, outside) in [
            ("10.0.0.0/24", "10.0.0.255", "10.0.1.0"),
            ("10.0.0.7", "10.0.0.7", "10.0.0.8"),
            ("172.16.0.0/12", "172.31.255.1", "172.32.0.0"),
        ] {
            let net: Net = net.parse().unwrap();
            assert!(net.contains(inside.parse().unwrap()) && !net.contains(outside.parse().unwrap()));
        }
        assert!("0.0.0.0/0".parse::<Net>().unwrap().contains(Ipv4Addr::BROADCAST));
        for wrong in ["", "10.0.0.0/33", "10.0.0/8", "10.0.0.1/24", "host", "10.0.0.0/-1"] {
            assert!(wrong.parse::<Net>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_list_is_for_all_and_parts_are_for_theirs() {
        let trust: Trust = toml::from_str("allow = [\"10.0.0.0/8\"]").unwrap();
        assert_eq!(trust.allow.servers, trust.allow.clients);
        let trust: Trust = toml::from_str("allow = { archives = [\"10.0.0.1\"] }").unwrap();
        assert!(trust.allow.servers.is_none() && trust.allow.archives.is_some());
        assert!(toml::from_str::<Trust>("allow = { archvies = [] }").is_err());
        assert!(toml::from_str::<Trust>("allow = []").unwrap().check().is_err());
        assert!(toml::from_str::<Trust>("clock_skew_ms = 1").unwrap().check().is_err());
    }
}

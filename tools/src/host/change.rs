//! Settings that `seqcast tune` changes, each with its value as text.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::facts::{self, Pause};
use super::netlink::Ethtool;

/// A setting of an interface or of the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Setting {
    /// How many queues an interface has that both receive and send.
    Queues,
    /// How many queues it has that only receive.
    ReceiveQueues,
    /// Descriptors of a NIC's receive ring.
    ReceiveRing,
    /// Descriptors of a NIC's transmit ring.
    SendRing,
    /// Whether a NIC itself chooses how long to wait before it tells of packets: on, off.
    AdaptiveCoalescing,
    /// How long it waits, in microseconds.
    Coalescing,
    /// Ethernet flow control: autoneg, rx, tx, joined by "+", or "off".
    Pause,
    /// An offload: on, off.
    Feature(String),
    /// A file of sysfs or procfs.
    File(PathBuf),
}

/// What a setting shall be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The interface that it is for, or that it helps.
    pub interface: String,
    /// What is changed.
    pub setting: Setting,
    /// To what.
    pub value: String,
}

fn invalid(value: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{value:?} is no value of it"))
}

fn on(value: &str) -> io::Result<bool> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(invalid(value)),
    }
}

fn word(on: bool) -> String {
    if on { "on" } else { "off" }.to_owned()
}

impl Pause {
    fn to_value(self) -> String {
        let parts = [("autoneg", self.autoneg), ("rx", self.receive), ("tx", self.send)];
        let parts: Vec<&str> = parts.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
        if parts.is_empty() {
            "off".to_owned()
        } else {
            parts.join("+")
        }
    }

    fn of(value: &str) -> Pause {
        let has = |name| value.split('+').any(|part| part == name);
        Pause {
            autoneg: has("autoneg"),
            receive: has("rx"),
            send: has("tx"),
        }
    }
}

impl Change {
    /// What the setting is now.
    ///
    /// # Errors
    /// If the driver or the kernel has no such setting, or it cannot be read.
    pub fn now(&self) -> io::Result<String> {
        let missing = || io::Error::new(io::ErrorKind::Unsupported, "there is no such setting here");
        if let Setting::File(path) = &self.setting {
            let text = fs::read_to_string(path)?;
            // Where one word of several is chosen, that one is the value.
            return Ok(facts::chosen(path).unwrap_or_else(|| text.trim().to_owned()));
        }
        let mut ethtool = Ethtool::open(&self.interface)?;
        let value = match &self.setting {
            Setting::Queues => ethtool.channels()?.map(|c| c.combined.to_string()),
            Setting::ReceiveQueues => ethtool.channels()?.map(|c| c.receive.to_string()),
            Setting::ReceiveRing => ethtool.rings()?.map(|r| r.receive.to_string()),
            Setting::SendRing => ethtool.rings()?.map(|r| r.send.to_string()),
            Setting::AdaptiveCoalescing => ethtool.coalesce()?.and_then(|c| c.adaptive).map(word),
            Setting::Coalescing => ethtool.coalesce()?.and_then(|c| c.receive_us).map(|us| us.to_string()),
            Setting::Pause => ethtool.pause()?.map(Pause::to_value),
            Setting::Feature(name) => {
                let all = ethtool.features()?;
                all.iter()
                    .find(|feature| feature.name == *name)
                    .map(|feature| word(feature.on))
            }
            Setting::File(_) => None,
        };
        value.ok_or_else(missing)
    }

    /// Makes it so.
    ///
    /// # Errors
    /// What the driver or the kernel says, without right for instance.
    pub fn apply(&self) -> io::Result<()> {
        let value = self.value.as_str();
        if let Setting::File(path) = &self.setting {
            return fs::write(path, value);
        }
        let number = || value.parse().map_err(|_| invalid(value));
        let mut ethtool = Ethtool::open(&self.interface)?;
        match &self.setting {
            Setting::Queues => ethtool.set_combined(number()?),
            Setting::ReceiveQueues => ethtool.set_receive_queues(number()?),
            Setting::ReceiveRing => ethtool.set_receive_ring(number()?),
            Setting::SendRing => ethtool.set_send_ring(number()?),
            Setting::AdaptiveCoalescing => ethtool.set_adaptive(on(value)?),
            Setting::Coalescing => ethtool.set_receive_us(number()?),
            Setting::Pause => ethtool.set_pause(Pause::of(value)),
            Setting::Feature(name) => ethtool.set_feature(name, on(value)?),
            Setting::File(_) => Ok(()),
        }
    }

    /// The same setting with another value.
    #[must_use]
    pub fn with(&self, value: String) -> Change {
        Change { value, ..self.clone() }
    }
}

/// The command that does the same by hand.
impl Display for Change {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (name, value) = (&self.interface, &self.value);
        match &self.setting {
            Setting::Queues => write!(f, "ethtool -L {name} combined {value}"),
            Setting::ReceiveQueues => write!(f, "ethtool -L {name} rx {value}"),
            Setting::ReceiveRing => write!(f, "ethtool -G {name} rx {value}"),
            Setting::SendRing => write!(f, "ethtool -G {name} tx {value}"),
            Setting::AdaptiveCoalescing => write!(f, "ethtool -C {name} adaptive-rx {value}"),
            Setting::Coalescing => write!(f, "ethtool -C {name} rx-usecs {value}"),
            Setting::Pause => {
                let Pause { autoneg, receive, send } = Pause::of(value);
                let [autoneg, receive, send] = [autoneg, receive, send].map(word);
                write!(f, "ethtool -A {name} autoneg {autoneg} rx {receive} tx {send}")
            }
            Setting::Feature(feature) => write!(f, "ethtool -K {name} {feature} {value}"),
            Setting::File(path) => match sysctl(path) {
                Some(key) => write!(f, "sysctl -w {key}={value}"),
                None => write!(f, "echo {value} > {}", path.display()),
            },
        }
    }
}

/// A file of procfs as `sysctl` names it. Names of interfaces may have dots.
fn sysctl(path: &Path) -> Option<String> {
    let key = path.strip_prefix("/proc/sys").ok()?.to_str()?;
    Some(key.replace('.', "\u{0}").replace('/', ".").replace('\u{0}', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(setting: Setting, value: &str) -> String {
        let change = Change {
            interface: "eth1".into(),
            setting,
            value: value.into(),
        };
        change.to_string()
    }

    #[test]
    fn each_change_is_told_as_the_command_for_it() {
        assert_eq!(shown(Setting::Queues, "1"), "ethtool -L eth1 combined 1");
        assert_eq!(
            shown(Setting::Feature("rx-lro".into()), "off"),
            "ethtool -K eth1 rx-lro off"
        );
        assert_eq!(
            shown(Setting::Pause, "off"),
            "ethtool -A eth1 autoneg off rx off tx off"
        );
        assert_eq!(
            shown(Setting::File("/proc/sys/net/ipv4/conf/eth1.7/rp_filter".into()), "2"),
            "sysctl -w net.ipv4.conf.eth1/7.rp_filter=2"
        );
        assert_eq!(
            shown(Setting::File("/sys/class/net/eth1/gro_flush_timeout".into()), "0"),
            "echo 0 > /sys/class/net/eth1/gro_flush_timeout"
        );
    }

    #[test]
    fn flow_control_is_read_as_it_is_written() {
        for value in ["off", "rx+tx", "autoneg+rx"] {
            assert_eq!(Pause::of(value).to_value(), value);
        }
    }
}

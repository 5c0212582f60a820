//! Measures an engine between two ends of a user's own link: round trips, one way, throughput, repairs.
//!
//! Each end drives a production engine on its own thread, as a program that embeds one does. The near end
//! measures; the far end answers. All they say to each other goes over streams of the engines, so
//! nothing else has to be open between the hosts.

mod end;
mod far;
mod near;
mod noise;
mod report;
mod talk;

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, ensure};
use seqcast_engine::config::Config;

pub use far::answer;
pub use near::{Plan, measure};
pub use noise::Noise;
pub use report::{Latency, Machine, OneWay, Recovery, Report, Size};

/// The streams between both ends.
#[derive(Clone, Copy, Debug)]
pub struct Streams {
    /// From near to far.
    pub out: SocketAddrV4,
    /// From far to near.
    pub back: SocketAddrV4,
    /// From near to far, when the near end loses frames on purpose.
    pub lossy: SocketAddrV4,
}

impl Streams {
    /// The group that is given, and the two behind it.
    ///
    /// # Errors
    /// When they are not all multicast groups.
    pub fn at(group: SocketAddrV4) -> Result<Streams> {
        let nth = |n| {
            let ip = Ipv4Addr::from(u32::from(*group.ip()).saturating_add(n));
            SocketAddrV4::new(ip, group.port())
        };
        let streams = Streams {
            out: group,
            back: nth(1),
            lossy: nth(2),
        };
        let all = [streams.out, streams.back, streams.lossy];
        ensure!(
            group.port() > 0 && all.iter().all(|s| s.ip().is_multicast()),
            "{group} and the two groups behind it are not multicast groups with a port, such as 239.255.82.1:7801"
        );
        Ok(streams)
    }
}

/// What an end's engine is: the `[engine]` of a configuration, or an interface and the defaults.
#[derive(Clone, Debug, Default)]
pub struct Setting {
    /// A configuration, of which `[engine]` counts.
    pub text: Option<String>,
    /// The interface, instead of the one there.
    pub interface: Option<String>,
    /// "auto", "xdp" or "udp", instead of what is there.
    pub link: Option<String>,
    /// The core, instead of the one there.
    pub core: Option<usize>,
}

impl Setting {
    /// An engine's configuration with one stream out and some in. `drop` is the share of arriving frames to lose.
    fn config(&self, out: SocketAddrV4, back: &[SocketAddrV4], drop: f64) -> Result<(Config, String)> {
        let given: toml::Table =
            toml::from_str(self.text.as_deref().unwrap_or_default()).context("the configuration is no TOML")?;
        let mut engine = match given.get("engine") {
            Some(toml::Value::Table(engine)) => engine.clone(),
            _ => toml::Table::new(),
        };
        // What belongs to the engine in service, not to this one.
        for key in ["capture", "report", "counters", "line_b"] {
            engine.remove(key);
        }
        engine.insert("name".into(), "bench".into());
        let words = [("interface", &self.interface), ("link", &self.link)];
        for (key, value) in words {
            if let Some(value) = value {
                engine.insert(key.into(), value.as_str().into());
            }
        }
        if let Some(core) = self.core {
            engine.insert("core".into(), i64::try_from(core).unwrap_or(i64::MAX).into());
        }
        if drop > 0.0 {
            let mut fault = toml::Table::new();
            fault.insert("drop".into(), drop.into());
            engine.insert("fault".into(), fault.into());
        }
        let mut text = toml::to_string(&toml::Table::from_iter([("engine".to_owned(), engine.into())]))?;
        text += &format!("[[publish]]\nstream = \"{out}\"\nsource = {{ program = true }}\nlinger_ms = 0\n");
        for stream in back {
            text += &format!("[[subscribe]]\nstream = \"{stream}\"\nsink = {{ program = true }}\n");
        }
        Ok((Config::parse(&text, std::path::Path::new("bench"))?, text))
    }
}

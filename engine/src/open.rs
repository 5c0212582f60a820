//! Opens links as the configuration says.

#[cfg(not(feature = "xdp"))]
use anyhow::bail;
use anyhow::{Context, Result};

use crate::config::{Config, Engine, LinkKind, Part};
use crate::link::Link;
use crate::link::pair::Pair;
use crate::link::udp::{UdpConfig, UdpLink};
#[cfg(feature = "xdp")]
use crate::link::xdp::{Card, XdpConfig, XdpLink};

/// What is done with an engine's link, whatever it is.
pub trait OnLink {
    /// What comes of it.
    type Output;

    /// Does it. `kind` is what the link really is, `may_hold` how many received frames it can spare.
    ///
    /// # Errors
    /// Its own.
    fn run<L: Link + 'static>(self, link: L, kind: LinkKind, may_hold: u32) -> Result<Self::Output>;
}

/// The interfaces of an engine's workers that several of them use over AF_XDP.
#[derive(Clone, Debug, Default)]
pub struct Cards {
    #[cfg(feature = "xdp")]
    shared: Vec<(String, Card)>,
}

impl Cards {
    /// Those of these workers.
    #[cfg(feature = "xdp")]
    #[must_use]
    pub fn of(workers: &[Part]) -> Cards {
        let lines: Vec<Engine> = workers
            .iter()
            .flat_map(Part::lines)
            .filter(|line| line.link != LinkKind::Udp)
            .collect();
        let mut shared: Vec<(String, Card)> = Vec::new();
        for (at, Engine { interface, .. }) in lines.iter().enumerate() {
            let same = || lines.iter().filter(|line| line.interface == *interface);
            if same().count() > 1 && lines[..at].iter().all(|line| line.interface != *interface) {
                let card = Card::new(same().flat_map(|line| line.xdp.queues.iter().copied()));
                shared.push((interface.clone(), card));
            }
        }
        Cards { shared }
    }

    /// Kernel sockets share an interface without more.
    #[cfg(not(feature = "xdp"))]
    #[must_use]
    pub fn of(_: &[Part]) -> Cards {
        Cards::default()
    }
}

/// Opens the link that a configuration asks for, and hands it on.
///
/// # Errors
/// When it cannot be opened, with the interface's name; or those of `then`.
pub fn link<T: OnLink>(config: &Config, then: T) -> Result<T::Output> {
    link_on(&Cards::default(), config, then)
}

/// The same for a program without a configuration: one interface, and all else by default.
///
/// # Errors
/// As for [`link`].
pub fn link_by<T: OnLink>(interface: &str, kind: LinkKind, mtu: Option<usize>, then: T) -> Result<T::Output> {
    let engine = Engine {
        link: kind,
        mtu,
        ..Engine::on(interface)
    };
    link(&Config::of(engine), then)
}

/// The same for one worker of an engine.
///
/// # Errors
/// As for [`link`].
#[cfg_attr(not(feature = "xdp"), allow(unused_variables))]
pub fn link_on<T: OnLink>(cards: &Cards, config: &Config, then: T) -> Result<T::Output> {
    #[cfg(feature = "xdp")]
    if config.engine.link != LinkKind::Udp {
        match each_line(config, |engine| xdp(cards, engine)) {
            Ok(lines) => return lines.hand_on(then, LinkKind::Xdp, xdp_config(&config.engine).may_hold()),
            Err(why) if config.engine.link == LinkKind::Auto => tracing::warn!(
                target: crate::log::ENGINE, engine = config.engine.name,
                "AF_XDP does not work here, using kernel sockets: {why:#}"
            ),
            Err(why) => return Err(why),
        }
    }
    #[cfg(not(feature = "xdp"))]
    if config.engine.link == LinkKind::Xdp {
        bail!(
            "[engine] link = \"xdp\": this binary was built without AF_XDP; build it with the default features, or use link = \"udp\""
        );
    }
    let may_hold = u32::try_from(config.engine.udp.frames / 2).unwrap_or(u32::MAX);
    each_line(config, udp)?.hand_on(then, LinkKind::Udp, may_hold)
}

/// The links of an engine.
enum Lines<L> {
    One(L),
    /// Line B has an interface of its own.
    Two(Pair<L>),
}

impl<L: Link + 'static> Lines<L> {
    fn hand_on<T: OnLink>(self, then: T, kind: LinkKind, may_hold: u32) -> Result<T::Output> {
        match self {
            Lines::One(link) => then.run(link, kind, may_hold),
            Lines::Two(pair) => then.run(pair, kind, may_hold),
        }
    }
}

/// Opens the link of each line with `open`.
fn each_line<L: Link>(config: &Config, open: impl Fn(&Engine) -> Result<L>) -> Result<Lines<L>> {
    let first = open(&config.engine)?;
    Ok(match config.engine.on_line_b() {
        None => Lines::One(first),
        Some(second) => Lines::Two(Pair::new(first, open(&second)?, config.groups_b())),
    })
}

/// Kernel sockets.
fn udp(engine: &Engine) -> Result<UdpLink> {
    let udp = UdpConfig {
        interface: engine.interface.clone(),
        port: engine.port,
        receive_buffer: engine.udp.receive_buffer,
        frames: engine.udp.frames,
        fault: engine.fault.into(),
        ttl: engine.ttl,
        mtu: engine.mtu,
        gso: engine.udp.gso,
    };
    UdpLink::open(udp).with_context(|| format!("cannot open kernel sockets on {}", engine.interface))
}

#[cfg(feature = "xdp")]
fn xdp_config(engine: &Engine) -> XdpConfig {
    XdpConfig {
        queues: engine.xdp.queues.clone(),
        attach: engine.xdp.attach,
        bind: engine.xdp.bind,
        frame_size: engine.xdp.frame_size,
        frames: engine.xdp.frames,
        rx_ring: engine.xdp.rx_ring,
        tx_ring: engine.xdp.tx_ring,
        mtu: engine.mtu,
        port: engine.port,
        ttl: engine.ttl,
        fault: engine.fault.into(),
        ..XdpConfig::new(engine.interface.clone())
    }
}

/// AF_XDP.
#[cfg(feature = "xdp")]
fn xdp(cards: &Cards, engine: &Engine) -> Result<XdpLink> {
    let config = xdp_config(engine);
    let shared = cards.shared.iter().find(|(name, _)| *name == engine.interface);
    let link = match shared {
        Some((_, card)) => XdpLink::open_on(card, &config),
        None => XdpLink::open(&config),
    };
    link.with_context(|| format!("cannot open AF_XDP on {}", engine.interface))
}

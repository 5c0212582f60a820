//! Opens links as the configuration says.

use anyhow::{Context, Result, bail};

use crate::config::{Config, Engine, LinkKind};
use crate::link::Link;
use crate::link::pair::Pair;
use crate::link::udp::{UdpConfig, UdpLink};
#[cfg(feature = "xdp")]
use crate::link::xdp::{XdpConfig, XdpLink};

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

/// Opens the link that a configuration asks for, and hands it on.
///
/// # Errors
/// When it cannot be opened, with the interface's name; or those of `then`.
pub fn link<T: OnLink>(config: &Config, then: T) -> Result<T::Output> {
    #[cfg(feature = "xdp")]
    if config.engine.link != LinkKind::Udp {
        match each_line(config, xdp) {
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
fn xdp(engine: &Engine) -> Result<XdpLink> {
    XdpLink::open(&xdp_config(engine)).with_context(|| format!("cannot open AF_XDP on {}", engine.interface))
}

/// Binds the calling thread to a core.
///
/// # Errors
/// When this process may not use it; names those that it may.
pub fn pin(core: usize) -> Result<()> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let Some(id) = cores.iter().find(|c| c.id == core) else {
        let known: Vec<String> = cores.iter().map(|c| c.id.to_string()).collect();
        bail!(
            "[engine] core = {core} is not there; this process may use cores {}",
            known.join(", ")
        );
    };
    if !core_affinity::set_for_current(*id) {
        bail!("[engine] core = {core}: the kernel refuses to pin the engine to it");
    }
    Ok(())
}

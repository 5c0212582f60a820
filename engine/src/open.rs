//! Opens links as the configuration says.

use anyhow::{Context, Result};
use seqcast_engine::config::{Config, Engine};
use seqcast_engine::link::Link;
use seqcast_engine::link::pair::Pair;
use seqcast_engine::link::udp::{UdpConfig, UdpLink};
#[cfg(feature = "xdp")]
use seqcast_engine::link::xdp::{XdpConfig, XdpLink};

/// The links of an engine.
pub(crate) enum Links<L> {
    One(L),
    /// Line B has an interface of its own.
    Two(Pair<L>),
}

/// Opens the link of each line with `open`.
pub(crate) fn links<L: Link>(config: &Config, open: impl Fn(&Engine) -> Result<L>) -> Result<Links<L>> {
    let first = open(&config.engine)?;
    Ok(match config.engine.on_line_b() {
        None => Links::One(first),
        Some(second) => Links::Two(Pair::new(first, open(&second)?, config.groups_b())),
    })
}

/// Kernel sockets.
pub(crate) fn udp(engine: &Engine) -> Result<UdpLink> {
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

/// Received frames that the kernel link can spare.
pub(crate) fn udp_may_hold(config: &Config) -> u32 {
    u32::try_from(config.engine.udp.frames / 2).unwrap_or(u32::MAX)
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
pub(crate) fn xdp(engine: &Engine) -> Result<XdpLink> {
    XdpLink::open(&xdp_config(engine)).with_context(|| format!("cannot open AF_XDP on {}", engine.interface))
}

/// Received frames that the AF_XDP link can spare.
#[cfg(feature = "xdp")]
pub(crate) fn xdp_may_hold(config: &Config) -> u32 {
    xdp_config(&config.engine).may_hold()
}

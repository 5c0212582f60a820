//! Opens links as the configuration says.

use crate::config::{Config, Engine};
use crate::link::Link;
use crate::link::pair::Pair;
use crate::link::udp::{UdpConfig, UdpLink};
#[cfg(feature = "xdp")]
use crate::link::xdp::{XdpConfig, XdpLink};
use anyhow::{Context, Result, bail};

/// The links of an engine.
pub enum Links<L> {
    /// All lines over one interface.
    One(L),
    /// Line B has an interface of its own.
    Two(Pair<L>),
}

/// Opens the link of each line with `open`.
///
/// # Errors
/// When a link cannot be opened.
pub fn links<L: Link>(config: &Config, open: impl Fn(&Engine) -> Result<L>) -> Result<Links<L>> {
    let first = open(&config.engine)?;
    Ok(match config.engine.on_line_b() {
        None => Links::One(first),
        Some(second) => Links::Two(Pair::new(first, open(&second)?, config.groups_b())),
    })
}

/// Kernel sockets.
///
/// # Errors
/// When sockets cannot be had, with the interface's name.
pub fn udp(engine: &Engine) -> Result<UdpLink> {
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
#[must_use]
pub fn udp_may_hold(config: &Config) -> u32 {
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
///
/// # Errors
/// When AF_XDP cannot be had there, with the interface's name.
#[cfg(feature = "xdp")]
pub fn xdp(engine: &Engine) -> Result<XdpLink> {
    XdpLink::open(&xdp_config(engine)).with_context(|| format!("cannot open AF_XDP on {}", engine.interface))
}

/// Received frames that the AF_XDP link can spare.
#[cfg(feature = "xdp")]
#[must_use]
pub fn xdp_may_hold(config: &Config) -> u32 {
    xdp_config(&config.engine).may_hold()
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

use std::io;

use super::invalid;
use crate::link::{Attach, Bind, Fault};

/// How to open an [`XdpLink`](super::XdpLink).
#[derive(Clone, Debug, PartialEq)]
pub struct XdpConfig {
    /// The interface's name. It must be up and have an IPv4 address.
    pub interface: String,
    /// The receive queues to serve: all that the interface has. The first one also sends.
    pub queues: Vec<u32>,
    /// Where the filter runs.
    pub attach: Attach,
    /// Who copies.
    pub bind: Bind,
    /// Bytes of a frame: 2048 for an MTU of up to 1770 bytes, 4096 for one of up to 3818. Zero-copy
    /// takes 4096 by itself for an MTU above 1002, and none above 3050.
    pub frame_size: u32,
    /// Frames per queue, at least twice `rx_ring` + `tx_ring`. The engine may hold half of them.
    pub frames: u32,
    /// Descriptors of each receive ring, a power of two from 64: the burst that fits while the
    /// engine is away.
    pub rx_ring: u32,
    /// Frames that may wait to be sent, a power of two from 64.
    pub tx_ring: u32,
    /// The link's own UDP port; 0 lets the kernel choose one.
    pub port: u16,
    /// Time to live of what is sent: how many routers it may pass, plus one.
    pub ttl: u8,
    /// Largest IP packet to send, in bytes, 576 to the interface's MTU, which is the default.
    pub mtu: Option<usize>,
    /// Losses among what arrives, for tests and labs.
    pub fault: Fault,
}

impl XdpConfig {
    /// Queue 0 of `interface`, 16 MiB of frames, the best modes that it supports.
    #[must_use]
    pub fn new(interface: impl Into<String>) -> XdpConfig {
        XdpConfig {
            interface: interface.into(),
            queues: vec![0],
            attach: Attach::Auto,
            bind: Bind::Auto,
            frame_size: 2048,
            frames: 8192,
            rx_ring: 2048,
            tx_ring: 2048,
            port: 0,
            ttl: 1,
            mtu: None,
            fault: Fault::default(),
        }
    }

    /// How many received frames of each queue the engine may hold before the link runs short.
    #[must_use]
    pub fn may_hold(&self) -> u32 {
        self.frames / 2
    }

    pub(super) fn check(&self) -> io::Result<()> {
        for (name, ring) in [("rx_ring", self.rx_ring), ("tx_ring", self.tx_ring)] {
            if !ring.is_power_of_two() || !(MIN_RING..=MAX_RING).contains(&ring) {
                return Err(invalid(format!(
                    "{name} = {ring} is not a power of two from {MIN_RING} to {MAX_RING}"
                )));
            }
        }
        let wrong = if !matches!(self.frame_size, 2048 | 4096) {
            format!("frame_size = {}; it must be 2048 or 4096", self.frame_size)
        } else if self.frames / 2 < self.rx_ring + self.tx_ring || self.frames > MAX_FRAMES {
            format!(
                "frames = {}; it must be at least {} (twice rx_ring + tx_ring) and at most {MAX_FRAMES}",
                self.frames,
                2 * (self.rx_ring + self.tx_ring)
            )
        } else if self.queues.is_empty() {
            "queues is empty; name at least one receive queue, such as [0]".into()
        } else if let Some((i, queue)) = self
            .queues
            .iter()
            .enumerate()
            .find(|(i, q)| self.queues[..*i].contains(q))
        {
            format!("queues names queue {queue} again at position {i}; name each queue once")
        } else if self.ttl == 0 {
            "ttl = 0; what is sent needs at least 1 to leave this host".into()
        } else if !(0.0..=1.0).contains(&self.fault.drop_share) {
            format!(
                "fault.drop_share = {}; it must be from 0.0 to 1.0",
                self.fault.drop_share
            )
        } else {
            return Ok(());
        };
        Err(invalid(wrong))
    }
}

const MIN_RING: u32 = 64;
const MAX_RING: u32 = 1 << 15;
/// 4 GiB of frames of 4096 bytes.
const MAX_FRAMES: u32 = 1 << 20;

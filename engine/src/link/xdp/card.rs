//! A card whose queues several links share out among them.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use seqcast_bpf::{Filter, Mode};

use super::config::XdpConfig;
use super::interface::Interface;
use super::start;

/// One interface for several links of this process, each on a thread of its own with queues of its own.
/// They share one filter, which stays attached until the last of them is dropped.
#[derive(Clone, Debug)]
pub struct Card {
    queues: Arc<[u32]>,
    filter: Arc<Mutex<Weak<Attached>>>,
}

/// A filter on its interface.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) filter: Filter,
    pub(super) mode: Mode,
    /// Why it is not driver mode, if that was tried.
    pub(super) no_driver: Option<String>,
}

impl Card {
    /// `queues` are those of all the links together.
    #[must_use]
    pub fn new(queues: impl IntoIterator<Item = u32>) -> Card {
        Card {
            queues: queues.into_iter().collect(),
            filter: Arc::default(),
        }
    }

    pub(super) fn queues(&self) -> &[u32] {
        &self.queues
    }

    /// The filter on the interface, and whether it is there from now on: the first link attaches it.
    pub(super) fn attach(&self, config: &XdpConfig, interface: &Interface) -> io::Result<(Arc<Attached>, bool)> {
        let mut filter = self.filter.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(attached) = filter.upgrade() {
            return Ok((attached, false));
        }
        let attached = Arc::new(Attached::new(config, interface)?);
        *filter = Arc::downgrade(&attached);
        Ok((attached, true))
    }
}

impl Attached {
    fn new(config: &XdpConfig, interface: &Interface) -> io::Result<Attached> {
        let mut filter = Filter::load(&start::fault(config), interface.queues)?;
        let (mode, no_driver) = start::attach(&mut filter, interface, config.attach)?;
        Ok(Attached {
            filter,
            mode,
            no_driver,
        })
    }
}

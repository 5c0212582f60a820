//! iceoryx2's publish and subscribe, within a process as the other queues. Its messages lie in a pool, and
//! their places go through the queue.

use std::fmt::Debug;

use anyhow::{Result, anyhow};
use iceoryx2::node::NodeBuilder;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::{BackpressureStrategy, LogLevel, set_log_level};
// Its ports may go to other threads, for a lock in each call that nobody else wants.
use iceoryx2::service::local_threadsafe::Service;

use super::contenders::{Put, Take};
use super::{DEPTH, Message};

pub(super) struct Publishing(Publisher<Service, Message, ()>);
pub(super) struct Subscribing(Subscriber<Service, Message, ()>);

/// A topic named `name` with `N` publishers and one subscriber. Who finds the subscriber's queue full tries again.
pub(super) fn topic<const N: usize>(name: &str) -> Result<([Publishing; N], Subscribing)> {
    set_log_level(LogLevel::Error);
    let node = NodeBuilder::new().create::<Service>().map_err(failed)?;
    let service = node
        .service_builder(&name.try_into().map_err(failed)?)
        .publish_subscribe::<Message>()
        .enable_safe_overflow(false)
        .subscriber_max_buffer_size(DEPTH)
        .max_publishers(N)
        .create()
        .map_err(failed)?;
    let subscriber = service.subscriber_builder().create().map_err(failed)?;
    let mut publishers = Vec::with_capacity(N);
    for _ in 0..N {
        let builder = service.publisher_builder();
        let publisher = builder
            .backpressure_strategy(BackpressureStrategy::DiscardData)
            .create();
        publishers.push(Publishing(publisher.map_err(failed)?));
    }
    let publishers = publishers.try_into().map_err(|_| anyhow!("a publisher is missing"))?;
    Ok((publishers, Subscribing(subscriber)))
}

fn failed(error: impl Debug) -> anyhow::Error {
    anyhow!("iceoryx2: {error:?}")
}

impl Put for Publishing {
    #[inline]
    fn put(&mut self, count: usize, next: &mut impl FnMut() -> Message) -> usize {
        (0..count)
            .take_while(|_| {
                let sample = self.0.loan_uninit().map(|sample| sample.write_payload(next()));
                // A full queue receives nothing.
                sample.is_ok_and(|sample| sample.send().is_ok_and(|receivers| receivers == 1))
            })
            .count()
    }
}

impl Take for Subscribing {
    #[inline]
    fn take(&mut self, each: &mut impl FnMut(Message)) -> usize {
        match self.0.receive() {
            Ok(Some(sample)) => {
                each(*sample);
                1
            }
            // An error would show as a lower rate.
            Ok(None) | Err(_) => 0,
        }
    }
}

//! Aeron at its best on two cores: its media driver and client run in the thread that sends or
//! receives, one pinned thread an end; NAK delays as short as they go.

use std::ffi::CString;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rusteron_client::{Aeron, AeronContext, AeronExclusivePublication, AeronSubscription, Handlers};
use rusteron_media_driver::bindings::aeron_threading_mode_enum::AERON_THREADING_MODE_INVOKER;
use rusteron_media_driver::{AeronDriver, AeronDriverContext, AeronUdpChannelInterceptorBindings};
use tempfile::TempDir;

use crate::duel::{Counters, Port, Received, Words, word_of};
use crate::pair::{End, Side};

const STREAM: i32 = 82;
/// Of the near end's stream. The far end's has another: of two groups on one port, joined by two sockets, the
/// kernel brings the frames of one to neither.
const PORT: u16 = 7802;
const TERM: usize = 16 << 20;
/// Between two NAKs of the same range; as the engine's least time-out.
const RETRY_NS: u64 = 25_000;
/// The largest that a kernel gives without a change of its settings.
const SOCKET_BUFFER: usize = 212_992;
/// Frames that one turn may send, and receive.
const FRAMES: usize = 16;
/// Turns of the driver between two of the client's own, which only watches over liveness.
const KEEP_ALIVE: u32 = 1024;
/// The longest wait for the two ends to find each other.
const PATIENCE: Duration = Duration::from_secs(10);
/// Messages that one poll may hand over.
const FRAGMENTS: usize = 4096;

/// One end: publishes one stream, receives the other's.
pub(crate) struct AeronPort {
    publication: AeronExclusivePublication,
    subscription: AeronSubscription,
    client: Aeron,
    driver: AeronDriver,
    turns: u32,
    buffer: Box<[u8]>,
    words: Words,
    counters: Counters,
    /// Where driver and client meet; in memory.
    _directory: TempDir,
}

/// Aeron's own way to lose arriving frames. Not in the bindings.
#[repr(C)]
struct Loss {
    rate: f64,
    /// Bits of the kinds of frames.
    kinds: std::ffi::c_ulong,
    seed: std::ffi::c_ulonglong,
}

unsafe extern "C" {
    fn aeron_udp_channel_interceptor_loss_configure(loss: *const Loss) -> std::ffi::c_int;
}

/// Aeron keeps the reason of an error aside, in each of its two libraries.
fn driver_error(error: rusteron_media_driver::AeronCError) -> anyhow::Error {
    anyhow::Error::new(error.capture_errmsg()).context("Aeron's media driver")
}

fn client_error(error: rusteron_client::AeronCError) -> anyhow::Error {
    anyhow::Error::new(error.capture_errmsg()).context("Aeron's client")
}

impl AeronPort {
    /// `lost` is the share of all arriving frames to lose on purpose.
    pub(crate) fn open(side: &Side, lost: f64) -> Result<AeronPort> {
        let directory = tempfile::Builder::new()
            .prefix("seqcast-bench-")
            .tempdir_in("/dev/shm")?;
        let path = directory.path().join("aeron");
        let path = CString::new(path.to_str().context("a path that is no text")?)?;
        let context = AeronDriverContext::new()?;
        context.set_dir(&path)?;
        context.set_dir_delete_on_shutdown(true)?;
        context.set_threading_mode(AERON_THREADING_MODE_INVOKER)?;
        // What fits a packet beside the headers of IPv4 and UDP, rounded down to what Aeron takes.
        context.set_mtu_length((side.mtu as usize - 28) / 32 * 32)?;
        context.set_term_buffer_length(TERM)?;
        context.set_term_buffer_sparse_file(false)?;
        context.set_nak_multicast_group_size(1)?;
        context.set_nak_multicast_max_backoff_ns(RETRY_NS)?;
        // A range asked for again within this time is not sent again.
        context.set_retransmit_unicast_linger_ns(RETRY_NS)?;
        context.set_rcv_initial_window_length(SOCKET_BUFFER)?;
        context.set_socket_so_rcvbuf(SOCKET_BUFFER)?;
        context.set_socket_so_sndbuf(SOCKET_BUFFER)?;
        context.set_max_resend(256)?;
        context.set_sender_io_vector_capacity(FRAMES as u32)?;
        context.set_receiver_io_vector_capacity(FRAMES as u32)?;
        context.set_network_publication_max_messages_per_send(FRAMES as u32)?;
        if lost > 0.0 {
            let none = AeronUdpChannelInterceptorBindings::from(std::ptr::null_mut());
            let loss = AeronUdpChannelInterceptorBindings::load(&none, c"loss");
            context.set_udp_channel_incoming_interceptors(&loss)?;
        }
        let driver = AeronDriver::new(&context).map_err(driver_error)?;
        driver.start(true).map_err(driver_error)?;

        let context = AeronContext::new()?;
        context.set_dir(&path)?;
        context.set_use_conductor_agent_invoker(true)?;
        let client = Aeron::new(&context).map_err(client_error)?;
        client.start().map_err(client_error)?;
        let channel = |from: End| {
            // Data goes to odd addresses; the next one is for control.
            let (group, port) = (1 + 2 * from as u8, PORT + from as u16);
            let text = format!("aeron:udp?endpoint=239.82.1.{group}:{port}|interface={}", side.address);
            CString::new(text).expect("no zero inside")
        };
        let publishing = client.async_add_exclusive_publication(&channel(side.end), STREAM)?;
        let subscribing =
            client.async_add_subscription(&channel(side.end.other()), STREAM, Handlers::NONE, Handlers::NONE)?;
        let (mut publication, mut subscription) = (None, None);
        let until = Instant::now() + PATIENCE;
        loop {
            driver.main_do_work().map_err(driver_error)?;
            client.main_do_work().map_err(client_error)?;
            if publication.is_none() {
                publication = publishing.poll().map_err(client_error)?;
            }
            if subscription.is_none() {
                subscription = subscribing.poll().map_err(client_error)?;
            }
            if let (Some(publication), Some(subscription)) = (&publication, &subscription)
                && publication.is_connected()
                && subscription.is_connected()
            {
                break;
            }
            if Instant::now() > until {
                bail!("the two ends of Aeron do not find each other");
            }
        }
        if lost > 0.0 {
            let loss = Loss {
                rate: lost,
                kinds: 0xffff,
                seed: 82,
            };
            // SAFETY: the function copies the struct, whose layout is the one that its C declaration has.
            // It is called once the driver has read its environment, which would overwrite it.
            unsafe { aeron_udp_channel_interceptor_loss_configure(&raw const loss) };
        }
        Ok(AeronPort {
            publication: publication.ok_or_else(|| anyhow!("no publication"))?,
            subscription: subscription.ok_or_else(|| anyhow!("no subscription"))?,
            client,
            driver,
            turns: 0,
            buffer: vec![0; 2048].into(),
            words: Words::default(),
            counters: Counters::default(),
            _directory: directory,
        })
    }

    fn turn(&mut self) -> Result<()> {
        self.driver.main_do_work().map_err(driver_error)?;
        self.turns += 1;
        if self.turns == KEEP_ALIVE {
            self.turns = 0;
            self.client.main_do_work().map_err(client_error)?;
        }
        Ok(())
    }
}

impl Port for AeronPort {
    const REPAIRS: bool = true;

    fn send(&mut self, word: u64, size: usize, count: usize) -> Result<usize> {
        self.buffer[..8].copy_from_slice(&word.to_ne_bytes());
        let mut sent = 0;
        while sent < count {
            match self.publication.offer(&self.buffer[..size]) {
                Ok(_) => sent += 1,
                Err(error) if error.is_retryable() => break,
                Err(error) => return Err(error.into()),
            }
        }
        self.turn()?;
        self.counters.frames += sent as u64;
        Ok(sent)
    }

    fn receive(&mut self) -> Result<Received> {
        self.turn()?;
        let mut received = Received::default();
        let words = &mut self.words;
        let mut first = None;
        self.subscription.poll_fn(
            |message, _| {
                received.messages += 1;
                received.word = word_of(message);
                // Aeron does not say what was repaired. A repaired message comes first of those that it held up.
                match first {
                    None => first = Some(received.word),
                    Some(before) if received.messages == 2 => {
                        words.note(before, true);
                        words.note(received.word, false);
                    }
                    Some(_) => words.note(received.word, false),
                }
            },
            FRAGMENTS,
        )?;
        if let (1, Some(alone)) = (received.messages, first) {
            words.note(alone, false);
        }
        Ok(received)
    }

    fn words(&mut self, with: impl FnOnce(&mut Words)) {
        with(&mut self.words);
    }

    fn counters(&mut self) -> Counters {
        self.counters
    }
}

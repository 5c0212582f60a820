//! One receive queue: its frames (UMEM), its four rings and who owns which frame. All access to
//! memory that is shared with the kernel is here.
//!
//! A frame has one owner at any time, and the owner is checked whenever a frame changes hands, so
//! that neither a mistake here nor a bad descriptor from a driver can lend one frame twice.
//!
//! ```text
//! receive:  free -> fill (kernel, then receive ring) -> held (a token) -> free
//! transmit: free -> sending (transmit ring, kernel, completion ring)   -> free
//! ```
//! Receive and transmit frames never mix: an engine that holds many received frames can still send.

use std::cell::{Cell, RefCell};
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;

use xsk_rs::config::{BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem};

use super::config::XdpConfig;
use super::{invalid, sys};
use seqcast_archive::prefetch;

/// What is read of a packet when it arrives: the headers of Ethernet, IP, UDP and the stream.
const HEADERS: usize = 128;
/// Bytes of the next frame to send that are asked for while the present one is built.
const AHEAD: usize = 512;
/// Descriptors moved at a time.
const BATCH: usize = 64;
/// The smallest ring that the kernel's copy path and this module work with.
const SMALLEST_RING: u32 = 64;
/// Kicks of one flush. Each sends at least 32 frames if the device takes them.
const MAX_KICKS: u32 = 64;
/// What the kernel charges a socket for a packet in flight besides its bytes, rounded up.
const PACKET_OVERHEAD: u32 = 1024;

/// Who has a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Free,
    /// The kernel, to receive into; or the receive ring.
    Fill,
    /// A [`Held`] token.
    Held,
    /// The kernel, to send from; or the transmit or completion ring.
    Sending,
}

/// The frames of one queue. Tokens keep it alive.
struct Frames {
    umem: Umem,
    /// Every frame's descriptor as it was made: the address where the packet starts, no length.
    fresh: Box<[FrameDesc]>,
    owners: Box<[Cell<Owner>]>,
    /// Frames are 2 to the power of this many bytes long.
    frame_shift: u32,
    free: RefCell<Vec<FrameDesc>>,
    held: Cell<usize>,
}

impl Frames {
    /// Passes the frame at `address` from one owner to the next, and returns its number.
    #[inline]
    fn pass(&self, address: usize, from: Owner, to: Owner) -> io::Result<usize> {
        let frame = address >> self.frame_shift;
        match self.owners.get(frame) {
            Some(owner) if owner.get() == from => {
                owner.set(to);
                Ok(frame)
            }
            _ => Err(io::Error::other(format!(
                "the driver handed over frame {frame} of {}, which it does not have; update it, or use bind = copy",
                self.owners.len()
            ))),
        }
    }
}

/// A received frame. Dropping it gives the frame back to its queue.
pub(super) struct Held {
    frames: Rc<Frames>,
    packet: FrameDesc,
}

impl Held {
    /// The whole packet, from the Ethernet header on.
    #[inline]
    pub(super) fn packet(&self) -> &[u8] {
        // SAFETY: the packet lies within one frame of this UMEM (checked by `Queue::receive`), whose owner is this
        // token alone: the kernel gave the frame up and gets it back only after `drop`.
        unsafe { self.frames.umem.data(&self.packet) }.contents()
    }
}

impl Drop for Held {
    #[inline]
    fn drop(&mut self) {
        let frames = &*self.frames;
        // Never fails: a token exists only for a frame that it owns.
        if let Ok(frame) = frames.pass(self.packet.addr(), Owner::Held, Owner::Free) {
            frames.held.set(frames.held.get() - 1);
            frames.free.borrow_mut().push(frames.fresh[frame]);
        }
    }
}

/// How many frames are where. The parts always add up to `total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameCount {
    /// All frames of the link.
    pub total: usize,
    /// Waiting to be filled by the kernel or by [`Link::send`](crate::link::Link::send).
    pub free: usize,
    /// With the kernel to receive into, or received and not yet taken.
    pub fill: usize,
    /// Held by the engine.
    pub held: usize,
    /// Queued, on their way out, or sent and not yet taken back.
    pub sending: usize,
}

/// Drops counted by the kernel since the queue was opened.
pub(super) struct Drops {
    /// The receive ring was full, or no frame was there to receive into.
    pub(super) no_room: u64,
    /// Descriptors that the kernel refused.
    pub(super) invalid: u64,
}

/// A queue's rings, and the frames that they move.
pub(super) struct Queue {
    id: u32,
    zero_copy: bool,
    // The rings go before the frames: each keeps the socket open.
    receive: RxQueue,
    transmit: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
    frames: Rc<Frames>,
    batch: Box<[FrameDesc; BATCH]>,
    free_to_send: Vec<FrameDesc>,
    in_fill: usize,
    fill_target: usize,
    sending: usize,
    transmit_size: u32,
    /// Something may be in the transmit ring that the kernel has not taken.
    unsent: bool,
    pub(super) syscalls: u64,
}

impl Queue {
    /// Makes frames and rings and binds them to receive queue `id`. Nothing arrives before [`Queue::fill`].
    ///
    /// `sends` tells whether this queue is to send too. The error's code is the kernel's.
    pub(super) fn open(config: &XdpConfig, id: u32, sends: bool, zero_copy: bool) -> io::Result<Queue> {
        let transmit_size = if sends { config.tx_ring } else { SMALLEST_RING };
        let transmit_frames = if sends { config.tx_ring } else { 0 };
        let (umem, fresh) = Self::make_frames(config, transmit_size)?;
        let (to_send, to_fill) = fresh.split_at(transmit_frames as usize);

        let copy = if zero_copy {
            BindFlags::XDP_ZEROCOPY
        } else {
            BindFlags::XDP_COPY
        };
        let socket = SocketConfig::builder()
            .rx_queue_size(ring(config.rx_ring)?)
            // The kernel may take a frame, send it and complete it before it moves the ring on.
            .tx_queue_size(ring(transmit_size * 2)?)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(copy | BindFlags::XDP_USE_NEED_WAKEUP)
            .build();
        let interface: Interface = config
            .interface
            .parse()
            .map_err(|_| invalid("interface: a zero byte".into()))?;
        // SAFETY: the UMEM is new and bound once only; the call is unsafe for those bound twice to one queue.
        let opened = unsafe { Socket::new(socket, &umem, &interface, id) };
        let (transmit, receive, rings) = opened.map_err(|error| kernel_error(&error))?;
        let (fill, completion) = rings.ok_or_else(|| io::Error::other("libxdp made no fill ring"))?;

        let fd = receive.fd().as_raw_fd();
        sys::set_close_on_exec(fd)?;
        if sends {
            // Older kernels lack the first; both are for speed only.
            let _ = sys::set_transmit_budget(fd, transmit_size);
            let _ = sys::set_send_buffer(fd, config.tx_ring * (config.frame_size + PACKET_OVERHEAD));
        }
        let frames = Frames {
            umem,
            owners: vec![Cell::new(Owner::Free); fresh.len()].into(),
            frame_shift: config.frame_size.ilog2(),
            free: RefCell::new(to_fill.to_vec()),
            held: Cell::new(0),
            fresh: fresh.clone().into(),
        };
        Ok(Queue {
            id,
            zero_copy: sys::is_zero_copy(fd)?,
            receive,
            transmit,
            fill,
            completion,
            batch: Box::new([fresh[0]; BATCH]),
            free_to_send: to_send.to_vec(),
            frames: Rc::new(frames),
            in_fill: 0,
            fill_target: config.rx_ring as usize,
            sending: 0,
            transmit_size: transmit_size * 2,
            unsent: false,
            syscalls: 0,
        })
    }

    fn make_frames(config: &XdpConfig, transmit_size: u32) -> io::Result<(Umem, Vec<FrameDesc>)> {
        let umem = UmemConfig::builder()
            .frame_size(FrameSize::new(config.frame_size).map_err(|error| invalid(error.to_string()))?)
            // The kernel takes frames, and hands them on filled, before it moves the ring on: hence room for twice.
            .fill_queue_size(ring(config.rx_ring * 2)?)
            .comp_queue_size(ring(transmit_size)?)
            .build()
            .map_err(|error| invalid(error.to_string()))?;
        let count = NonZeroU32::new(config.frames).ok_or_else(|| invalid("frames = 0".into()))?;
        Umem::new(umem, count, false).map_err(|error| kernel_error(&error))
    }

    /// The receive queue's number.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Whether the kernel says that this queue is bound with zero-copy.
    pub(super) fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// The AF_XDP socket.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        sys::borrow(&self.receive)
    }

    /// The AF_XDP socket's number, for `poll`.
    pub(super) fn raw_fd(&self) -> RawFd {
        self.receive.fd().as_raw_fd()
    }

    /// Hands at most `max` received packets to `each`; returns how many. A packet that does not lie
    /// within its frame is handed over empty, at the frame's start.
    #[inline]
    pub(super) fn receive(&mut self, max: usize, mut each: impl FnMut(Held)) -> io::Result<usize> {
        let max = max.min(BATCH);
        // SAFETY: the ring fills in whatever it has; `batch` is only where to.
        let count = unsafe { self.receive.consume(&mut self.batch[..max]) };
        self.in_fill = self.in_fill.saturating_sub(count);
        for packet in &mut self.batch[..count] {
            let frame = self.frames.pass(packet.addr(), Owner::Fill, Owner::Held)?;
            self.frames.held.set(self.frames.held.get() + 1);
            let room = ((frame + 1) << self.frames.frame_shift) - packet.addr();
            if packet.lengths().data() > room {
                // An empty packet at the frame's own address, so that nothing can be read through the token.
                *packet = self.frames.fresh[frame];
            }
            // SAFETY: the packet lies within one frame of this UMEM, which nobody else has, see `pass`.
            let bytes = unsafe { self.frames.umem.data(packet) }.contents();
            // The kernel wrote it on another core, mostly.
            prefetch::to_read(&bytes[..bytes.len().min(HEADERS)]);
        }
        for packet in &self.batch[..count] {
            each(Held {
                frames: Rc::clone(&self.frames),
                packet: *packet,
            });
        }
        Ok(count)
    }

    /// Hands free frames to the kernel to receive into, and wakes it if it waits for them. Small
    /// amounts wait for more, unless the kernel has few.
    #[inline]
    pub(super) fn fill(&mut self) -> io::Result<()> {
        let wanted = self.fill_target - self.in_fill;
        if wanted >= BATCH.min(self.fill_target / 2) {
            let mut free = self.frames.free.borrow_mut();
            let rest = free.len() - wanted.min(free.len());
            // SAFETY: these frames are of this UMEM and free, so that nobody else reads or writes them until the
            // receive ring returns them. All or none of them are taken.
            let count = unsafe { self.fill.produce(&free[rest..]) };
            if count > 0 {
                self.in_fill += count;
                for frame in free.drain(rest..) {
                    self.frames.pass(frame.addr(), Owner::Free, Owner::Fill)?;
                }
            }
        }
        if self.fill.needs_wakeup() {
            self.syscalls += 1;
            self.fill.wakeup(self.receive.fd_mut(), 0)?;
        }
        Ok(())
    }

    /// Builds one packet in place and queues it: `build` gets a whole frame and returns the
    /// packet's length, 0 for none. Returns the length, or `None` when no frame is free.
    #[inline]
    pub(super) fn send(&mut self, build: impl FnOnce(&mut [u8]) -> usize) -> Option<usize> {
        if self.free_to_send.is_empty() {
            self.reap().ok()?;
        }
        let mut packet = *self.free_to_send.last()?;
        if self.transmit.nb_free(1) == 0 {
            return None;
        }
        // SAFETY: the frame is of this UMEM and free to send, so that nobody else reads or writes it.
        let mut data = unsafe { self.frames.umem.data_mut(&mut packet) };
        data.cursor().set_pos(usize::MAX);
        let room = data.contents().len();
        let length = build(data.contents_mut()).min(room);
        data.cursor().set_pos(length);
        if length == 0 {
            return Some(0);
        }
        self.frames.pass(packet.addr(), Owner::Free, Owner::Sending).ok()?;
        self.free_to_send.pop();
        // SAFETY: as above, and from here on nobody touches the frame until the completion ring returns it. There is
        // room in the ring, as this thread is its only producer.
        unsafe { self.transmit.produce_one(&packet) };
        self.sending += 1;
        self.unsent = true;
        if let Some(mut next) = self.free_to_send.last().copied() {
            // SAFETY: as above, of the frame that is going to be written next.
            let mut data = unsafe { self.frames.umem.data_mut(&mut next) };
            data.cursor().set_pos(AHEAD);
            prefetch::to_write(data.contents());
        }
        Some(length)
    }

    /// Makes the kernel send what is queued, as far as the device takes it, and takes back sent frames.
    #[inline]
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.unsent {
            let mut left = self.transmit_size - self.transmit.nb_free_exact();
            for _ in 0..MAX_KICKS {
                if left == 0 || !self.transmit.needs_wakeup() {
                    break;
                }
                self.syscalls += 1;
                // A full or sleeping device is no error: the frames stay in the ring for the next flush.
                self.transmit.wakeup()?;
                let now = self.transmit_size - self.transmit.nb_free_exact();
                if now == left {
                    break;
                }
                left = now;
            }
            self.unsent = left != 0;
        }
        // In lots, and soon: the frames that were sent last are in the cache, and are the next to be written.
        if self.sending >= BATCH {
            self.reap()?;
        }
        Ok(())
    }

    /// Whether packets wait in the transmit ring for the next [`Queue::flush`].
    pub(super) fn has_unsent(&self) -> bool {
        self.unsent
    }

    /// Takes back the frames that have been sent.
    fn reap(&mut self) -> io::Result<()> {
        loop {
            // SAFETY: the ring fills in whatever it has; `batch` is only where to.
            let count = unsafe { self.completion.consume(&mut self.batch[..]) };
            for packet in &self.batch[..count] {
                let frame = self.frames.pass(packet.addr(), Owner::Sending, Owner::Free)?;
                self.free_to_send.push(self.frames.fresh[frame]);
            }
            self.sending -= count;
            if count < BATCH {
                return Ok(());
            }
        }
    }

    /// Where this queue's frames are.
    pub(super) fn count(&self) -> FrameCount {
        FrameCount {
            total: self.frames.fresh.len(),
            free: self.frames.free.borrow().len() + self.free_to_send.len(),
            fill: self.in_fill,
            held: self.frames.held.get(),
            sending: self.sending,
        }
    }

    /// What the kernel has dropped.
    pub(super) fn drops(&self) -> io::Result<Drops> {
        let statistics = self.receive.fd().xdp_statistics()?;
        Ok(Drops {
            no_room: statistics.rx_dropped() + statistics.rx_ring_full(),
            invalid: statistics.rx_invalid_descs() + statistics.tx_invalid_descs(),
        })
    }
}

fn ring(size: u32) -> io::Result<QueueSize> {
    QueueSize::new(size).map_err(|error| invalid(error.to_string()))
}

/// The kernel's error code behind an error of xsk-rs.
fn kernel_error(error: &dyn std::error::Error) -> io::Error {
    let code = error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>()?.raw_os_error());
    code.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}

//! The limit: AF_XDP sockets with the engine's settings, and nothing above them.
//!
//! Frames are written once, when a size is chosen; sending one sets its first 8 bytes. The program
//! hands every frame to the socket in five instructions. The sockets are opened by xsk-rs, as the
//! engine's are.

use std::ffi::CString;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use xsk_rs::config::{BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem};

use crate::duel::{BATCH, Counters, Port, Received, Words, word_of};
use crate::pair::Side;

/// Where the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Driver,
    Generic,
}

/// As the engine's defaults.
const FRAMES: u32 = 8192;
const RING: u32 = 2048;
/// Bytes in front of the payload: what Ethernet, IPv4 and UDP take.
const HEADERS: usize = 42;
/// An Ethernet type for experiments.
const ETHER_TYPE: [u8; 2] = [0x88, 0xb5];
/// How long the queue may stay busy after another socket has left it.
const BUSY_FOR: Duration = Duration::from_secs(2);

/// One end.
pub(crate) struct BarePort {
    // Detached first; the rings go before the frames.
    _program: Program,
    receive: RxQueue,
    transmit: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
    umem: Umem,
    to_send: Vec<FrameDesc>,
    to_fill: Vec<FrameDesc>,
    batch: Vec<FrameDesc>,
    macs: [[u8; 6]; 2],
    words: Words,
    counters: Counters,
}

impl BarePort {
    pub(crate) fn open(side: &Side, mode: Mode) -> Result<BarePort> {
        let until = Instant::now() + BUSY_FOR;
        let (receive, transmit, fill, completion, umem, frames) = loop {
            match open_socket(side, mode) {
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
                Ok(opened) => break opened,
            }
        };
        let fd = receive.fd().as_raw_fd();
        // XDP_MAX_TX_SKB_BUDGET, for kernels that have it: frames that one kick may send.
        let _ = option(fd, libc::SOL_XDP, 9, RING as libc::c_int);
        let send_buffer = (RING * (frame_size(side.mtu) + 1024)) as libc::c_int;
        option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, send_buffer)?;
        let (to_send, to_fill) = frames.split_at(RING as usize);
        let mut port = BarePort {
            _program: Program::attach(&side.interface, mode, fd)?,
            receive,
            transmit,
            fill,
            completion,
            umem,
            to_send: to_send.to_vec(),
            to_fill: to_fill.to_vec(),
            batch: vec![frames[0]; BATCH],
            macs: [side.peer_mac, side.mac],
            words: Words::default(),
            counters: Counters::default(),
        };
        let given = RING as usize;
        // SAFETY: the frames are of this UMEM, and nobody else has them until the receive ring returns them.
        unsafe { port.fill.produce(&port.to_fill[..given]) };
        port.to_fill.drain(..given);
        Ok(port)
    }

    /// Makes the kernel send what is queued. One call does, unless the device's queue is full.
    fn kick(&mut self) -> Result<()> {
        let mut before = u32::MAX;
        loop {
            let left = 2 * RING - self.transmit.nb_free_exact();
            if left == 0 || left >= before || !self.transmit.needs_wakeup() {
                return Ok(());
            }
            before = left;
            self.counters.syscalls += 1;
            self.transmit.wakeup()?;
        }
    }

    /// Takes sent frames back.
    fn reap(&mut self) {
        loop {
            // SAFETY: the ring fills in what it has; `batch` is only where to.
            let count = unsafe { self.completion.consume(&mut self.batch) };
            self.to_send.extend_from_slice(&self.batch[..count]);
            if count < BATCH {
                return;
            }
        }
    }
}

impl Port for BarePort {
    fn prepare(&mut self, size: usize) -> Result<()> {
        let until = Instant::now() + BUSY_FOR;
        while self.to_send.len() < RING as usize {
            self.kick()?;
            self.reap();
            if Instant::now() > until {
                bail!("sent frames do not come back");
            }
        }
        for frame in &mut self.to_send {
            // SAFETY: the frame is of this UMEM and not with the kernel.
            let mut data = unsafe { self.umem.data_mut(frame) };
            data.cursor().set_pos(HEADERS + size);
            let packet = data.contents_mut();
            packet[..6].copy_from_slice(&self.macs[0]);
            packet[6..12].copy_from_slice(&self.macs[1]);
            packet[12..14].copy_from_slice(&ETHER_TYPE);
        }
        Ok(())
    }

    fn send(&mut self, word: u64, size: usize, count: usize) -> Result<usize> {
        // As the engine, in lots: the frames that were sent last are in the cache, and are the next to be written.
        if RING as usize - self.to_send.len() >= BATCH {
            self.reap();
        }
        let first = self.to_send.len() - count.min(self.to_send.len());
        for frame in &mut self.to_send[first..] {
            // SAFETY: the frame is of this UMEM and not with the kernel.
            let mut data = unsafe { self.umem.data_mut(frame) };
            // The completion ring does not return lengths.
            data.cursor().set_pos(HEADERS + size);
            data.contents_mut()[HEADERS..HEADERS + 8].copy_from_slice(&word.to_ne_bytes());
        }
        // SAFETY: as above, and nobody touches the frames until the completion ring returns them.
        let sent = unsafe { self.transmit.produce(&self.to_send[first..]) };
        if sent > 0 {
            self.to_send.truncate(first);
        }
        self.counters.frames += sent as u64;
        self.kick()?;
        Ok(sent)
    }

    fn receive(&mut self) -> Result<Received> {
        // SAFETY: the ring fills in what it has; `batch` is only where to.
        let messages = unsafe { self.receive.consume(&mut self.batch) };
        let mut word = 0;
        for frame in &self.batch[..messages] {
            // SAFETY: the receive ring has just given this frame up, and it is of this UMEM.
            let data = unsafe { self.umem.data(frame) };
            word = word_of(data.contents().get(HEADERS..).unwrap_or_default());
            self.words.note(word, false);
        }
        self.to_fill.extend_from_slice(&self.batch[..messages]);
        // As the engine: the fill ring is topped up in lots.
        let spare = (FRAMES - 2 * RING) as usize;
        if self.to_fill.len() >= spare + BATCH {
            // SAFETY: the frames are of this UMEM, and nobody else has them until the receive ring returns them.
            let given = unsafe { self.fill.produce(&self.to_fill[spare..]) };
            if given > 0 {
                self.to_fill.truncate(spare);
            }
        }
        if self.fill.needs_wakeup() {
            self.counters.syscalls += 1;
            let fd = self.receive.fd_mut();
            self.fill.wakeup(fd, 0)?;
        }
        Ok(Received { messages, word })
    }

    fn words(&mut self, with: impl FnOnce(&mut Words)) {
        with(&mut self.words);
    }

    fn counters(&mut self) -> Counters {
        self.counters
    }
}

/// Bytes of a frame that takes a packet of an MTU and what the kernel wants before it. The engine's default, or its
/// larger size.
pub(crate) fn frame_size(mtu: u32) -> u32 {
    if mtu <= 1770 { 2048 } else { 4096 }
}

type Opened = (RxQueue, TxQueue, FillQueue, CompQueue, Umem, Vec<FrameDesc>);

fn open_socket(side: &Side, mode: Mode) -> Result<Opened> {
    let ring = |size| QueueSize::new(size).map_err(|error| anyhow!("{error}"));
    let umem = UmemConfig::builder()
        .frame_size(FrameSize::new(frame_size(side.mtu)).map_err(|error| anyhow!("{error}"))?)
        .fill_queue_size(ring(2 * RING)?)
        .comp_queue_size(ring(RING)?)
        .build()
        .map_err(|error| anyhow!("{error}"))?;
    let count = NonZeroU32::new(FRAMES).context("no frames")?;
    let (umem, frames) = Umem::new(umem, count, false).map_err(|error| anyhow!("no memory for frames: {error}"))?;
    let copy = if side.zero_copy && mode == Mode::Driver {
        BindFlags::XDP_ZEROCOPY
    } else {
        BindFlags::XDP_COPY
    };
    let socket = SocketConfig::builder()
        .rx_queue_size(ring(RING)?)
        .tx_queue_size(ring(2 * RING)?)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(copy | BindFlags::XDP_USE_NEED_WAKEUP)
        .build();
    let interface: Interface = side.interface.parse().map_err(|_| anyhow!("bad interface name"))?;
    // SAFETY: the UMEM is new and bound once only; the call is unsafe for those bound twice to one queue.
    let opened = unsafe { Socket::new(socket, &umem, &interface, 0) };
    let (transmit, receive, rings) = opened.context("cannot open an AF_XDP socket")?;
    let (fill, completion) = rings.context("no fill ring")?;
    Ok((receive, transmit, fill, completion, umem, frames))
}

/// A program that redirects every frame to the socket of the queue it arrived on.
struct Program {
    link: OwnedFd,
    _map: OwnedFd,
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: passes the number of an open descriptor; no memory is involved.
        unsafe { libbpf_sys::bpf_link_detach(self.link.as_raw_fd()) };
    }
}

impl Program {
    fn attach(interface: &str, mode: Mode, socket: i32) -> Result<Program> {
        let name = CString::new(interface)?;
        // SAFETY: `name` is a live C string.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        // SAFETY: the name may be null, and null options are the defaults.
        let map = owned(unsafe {
            libbpf_sys::bpf_map_create(
                libbpf_sys::BPF_MAP_TYPE_XSKMAP,
                std::ptr::null(),
                4,
                4,
                1,
                std::ptr::null(),
            )
        })
        .context("cannot make a socket map")?;
        let instructions: [u64; 6] = [
            // r2 = context->rx_queue_index
            instruction(0x61, 2, 1, 16, 0),
            // r1 = the map (two slots)
            instruction(0x18, 1, 1, 0, map.as_raw_fd()),
            0,
            // r3 = XDP_PASS, for a queue without a socket
            instruction(0xb7, 3, 0, 0, 2),
            // r0 = bpf_redirect_map(r1, r2, r3)
            instruction(0x85, 0, 0, 0, 51),
            // return r0
            instruction(0x95, 0, 0, 0, 0),
        ];
        // SAFETY: an instruction is 8 bytes with the layout that `instruction` makes; the array is live and its
        // length is given; the license is a C string.
        let program = owned(unsafe {
            libbpf_sys::bpf_prog_load(
                libbpf_sys::BPF_PROG_TYPE_XDP,
                std::ptr::null(),
                c"GPL".as_ptr(),
                instructions.as_ptr().cast(),
                instructions.len() as libbpf_sys::size_t,
                std::ptr::null_mut(),
            )
        })
        .context("the kernel refuses the program")?;
        let options = libbpf_sys::bpf_link_create_opts {
            sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
            flags: match mode {
                Mode::Driver => libbpf_sys::XDP_FLAGS_DRV_MODE,
                Mode::Generic => libbpf_sys::XDP_FLAGS_SKB_MODE,
            },
            ..Default::default()
        };
        // SAFETY: the descriptor is open, and `options` is initialised and states its own size.
        let link = owned(unsafe {
            libbpf_sys::bpf_link_create(
                program.as_raw_fd(),
                index as i32,
                libbpf_sys::BPF_XDP,
                &raw const options,
            )
        })
        .with_context(|| format!("cannot attach to {interface}"))?;
        let (key, value) = (0u32, socket);
        // SAFETY: key and value are live and of the sizes that the map was made with.
        let result = unsafe {
            libbpf_sys::bpf_map_update_elem(map.as_raw_fd(), (&raw const key).cast(), (&raw const value).cast(), 0)
        };
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result)).context("cannot put the socket into the map");
        }
        Ok(Program { link, _map: map })
    }
}

/// `struct bpf_insn`.
fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> u64 {
    let [o0, o1] = offset.to_ne_bytes();
    let [i0, i1, i2, i3] = immediate.to_ne_bytes();
    u64::from_ne_bytes([code, to | from << 4, o0, o1, i0, i1, i2, i3])
}

fn owned(result: i32) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    // SAFETY: a result that is not negative is a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

fn option(fd: i32, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` is live and of the length given.
    match unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

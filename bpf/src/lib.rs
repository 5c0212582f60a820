//! The XDP filter that steers a stream into AF_XDP sockets: its byte code, loader and counters.
//!
//! The filter looks each UDP datagram's (address, port) up in a table. A hit goes to the AF_XDP
//! socket of the receive queue it arrived on; everything else, and a hit on a queue without a
//! socket, goes to the kernel untouched. See `filter.bpf.c`.
//!
//! Nothing is pinned. The program, its maps and the attachment are file descriptors of this
//! process, so that a killed process leaves nothing behind on the interface.

mod attach;
mod error;

use std::cell::RefCell;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use libbpf_rs::{MapCore, MapFlags, MapHandle, Object, ObjectBuilder, PrintLevel};

use attach::Attachment;
pub use attach::{Interface, Mode};
pub use error::Error;

static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/filter.bpf.o"));

/// What the filter drops on purpose, among the datagrams that it would redirect. For tests and
/// labs; the default drops nothing, and the kernel then removes the code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// Drops a datagram when a 32-bit hash of its index and the seed is below this: 0 drops none,
    /// 2^32 drops all.
    pub drop_below: u64,
    /// Index (from 0) of the datagram at which a burst of losses starts.
    pub burst_at: u64,
    /// How many datagrams in a row the burst drops; 0 means no burst.
    pub burst_len: u64,
    /// Seed of the hash. The same seed drops the same indices.
    pub seed: u64,
}

/// How many packets the filter has seen, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Wanted and handed to an AF_XDP socket. The socket may still drop one when its ring is full.
    pub redirected: u64,
    /// Wanted, but the receive queue has no socket: passed to the kernel.
    pub no_socket: u64,
    /// Passed: not IPv4, not UDP, or behind more than two VLAN tags.
    pub not_udp: u64,
    /// Passed: an IP fragment.
    pub fragment: u64,
    /// Passed: an IP header with options.
    pub options: u64,
    /// Passed: the packet ends before its headers or its stated length do.
    pub truncated: u64,
    /// Passed: UDP to an address and port that nobody asked for.
    pub no_match: u64,
    /// Passed: IP version, header length and UDP length do not agree.
    pub bad_length: u64,
    /// Wanted, and dropped by the configured [`Fault`].
    pub fault_dropped: u64,
}

/// The loaded filter and, once attached, its hold on one interface. Dropping it detaches.
pub struct Filter {
    // Declared first, so dropped first: the interface is free before the maps go.
    attached: Option<Attachment>,
    object: Object,
    wanted: MapHandle,
    sockets: MapHandle,
    counters: MapHandle,
}

impl Filter {
    /// Loads the filter for an interface with `queues` receive queues. Nothing is attached yet.
    ///
    /// # Errors
    /// When the process may not load programs, or the kernel refuses this one.
    pub fn load(fault: &Fault, queues: u32) -> Result<Filter, Error> {
        let failed = |error| Error::load(error, &take_libbpf_log());
        libbpf_rs::set_print(Some((PrintLevel::Warn, keep_libbpf_log)));
        take_libbpf_log();

        let mut object = ObjectBuilder::default().open_memory(OBJECT).map_err(failed)?;
        for mut map in object.maps_mut() {
            if map.name() == "sockets" {
                map.set_max_entries(queues.max(1)).map_err(failed)?;
            } else if map.name() == ".rodata.fault" {
                map.set_initial_value(&fault.to_bytes()).map_err(failed)?;
            }
        }
        let object = object.load().map_err(failed)?;
        let map = |name: &str| -> Result<MapHandle, Error> {
            let map = object.maps().find(|map| map.name() == name);
            MapHandle::try_from(&map.ok_or(Error::Object { name: name.into() })?).map_err(failed)
        };
        Ok(Filter {
            attached: None,
            wanted: map("wanted")?,
            sockets: map("sockets")?,
            counters: map("counters")?,
            object,
        })
    }

    /// Attaches the filter to an interface, replacing this filter's own earlier attachment if any.
    ///
    /// # Errors
    /// When another program is attached there, the driver cannot, or the process may not.
    pub fn attach(&mut self, interface: &Interface<'_>, mode: Mode) -> Result<(), Error> {
        self.attached = None;
        let link = attach::attach(self.program()?.as_fd(), interface, mode)?;
        self.attached = Some(link);
        Ok(())
    }

    /// Starts to redirect what is sent to `to`.
    ///
    /// # Errors
    /// When the table is full (1024 destinations).
    pub fn add(&self, to: SocketAddrV4) -> Result<(), Error> {
        self.wanted
            .update(&destination(to), &[1], MapFlags::ANY)
            .map_err(|error| Error::map(&format!("add {to} to the filter (at most 1024 destinations)"), error))
    }

    /// Stops redirecting what is sent to `to`.
    ///
    /// # Errors
    /// When it was never added.
    pub fn remove(&self, to: SocketAddrV4) -> Result<(), Error> {
        self.wanted
            .delete(&destination(to))
            .map_err(|error| Error::map(&format!("remove {to} from the filter"), error))
    }

    /// Hands what arrives on receive queue `queue` to an AF_XDP socket, which must have its
    /// receive ring.
    ///
    /// # Errors
    /// When the queue does not exist, or `socket` is no AF_XDP socket.
    pub fn insert_socket(&self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), Error> {
        self.sockets
            .update(&queue.to_ne_bytes(), &socket.as_raw_fd().to_ne_bytes(), MapFlags::ANY)
            .map_err(|error| Error::map(&format!("hand queue {queue} to its AF_XDP socket"), error))
    }

    /// Hands what arrives on receive queue `queue` to the kernel again.
    ///
    /// # Errors
    /// When the queue has no socket.
    pub fn remove_socket(&self, queue: u32) -> Result<(), Error> {
        self.sockets
            .delete(&queue.to_ne_bytes())
            .map_err(|error| Error::map(&format!("take queue {queue} from its AF_XDP socket"), error))
    }

    /// What the filter has counted since it was loaded, over all CPUs.
    ///
    /// # Errors
    /// When the kernel refuses to read the counters.
    pub fn counters(&self) -> Result<Counters, Error> {
        let read = |reason: u32| -> Result<u64, Error> {
            let per_cpu = self
                .counters
                .lookup_percpu(&reason.to_ne_bytes(), MapFlags::ANY)
                .map_err(|error| Error::map("read the filter's counters", error))?;
            let values = per_cpu.iter().flatten().filter_map(|value| value.first_chunk());
            Ok(values.fold(0, |sum, value| sum + u64::from_ne_bytes(*value)))
        };
        Ok(Counters {
            redirected: read(0)?,
            no_socket: read(1)?,
            not_udp: read(2)?,
            fragment: read(3)?,
            options: read(4)?,
            truncated: read(5)?,
            no_match: read(6)?,
            bad_length: read(7)?,
            fault_dropped: read(8)?,
        })
    }

    /// Runs the filter on one frame without a network, as if it came in on queue 0, and returns
    /// its verdict (`XDP_DROP` 1, `XDP_PASS` 2, `XDP_REDIRECT` 4).
    ///
    /// # Errors
    /// When the kernel takes no such frame (one of less than 14 bytes, for example).
    pub fn test_run(&self, frame: &[u8]) -> Result<u32, Error> {
        let input = libbpf_rs::ProgramInput {
            data_in: Some(frame),
            ..Default::default()
        };
        let output = self.program()?.test_run(input);
        Ok(output
            .map_err(|error| Error::map("test the filter", error))?
            .return_value)
    }

    fn program(&self) -> Result<libbpf_rs::ProgramMut<'_>, Error> {
        let name = "seqcast_filter";
        let program = self.object.progs_mut().find(|program| program.name() == name);
        program.ok_or(Error::Object { name: name.into() })
    }
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let attached = self.attached.is_some();
        f.debug_struct("Filter")
            .field("attached", &attached)
            .finish_non_exhaustive()
    }
}

impl Fault {
    /// The layout of `struct fault` in the program.
    fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let fields = [self.drop_below, self.burst_at, self.burst_len, self.seed];
        for (chunk, field) in bytes.chunks_exact_mut(8).zip(fields) {
            chunk.copy_from_slice(&field.to_ne_bytes());
        }
        bytes
    }
}

/// The layout of `struct destination` in the program.
fn destination(to: SocketAddrV4) -> [u8; 8] {
    let [a, b, c, d] = to.ip().octets();
    let [p, q] = to.port().to_be_bytes();
    [a, b, c, d, p, q, 0, 0]
}

/// The end of what libbpf says that is kept for an error message, in bytes.
const LOG_KEPT: usize = 4096;

thread_local! {
    /// libbpf explains a refused program only through its log, which by default goes to stderr.
    static LOG: RefCell<String> = const { RefCell::new(String::new()) };
}

fn keep_libbpf_log(_: PrintLevel, line: String) {
    LOG.with_borrow_mut(|log| {
        log.push_str(&line);
        let excess = log.len().saturating_sub(LOG_KEPT);
        let cut = (excess..=log.len()).find(|&at| log.is_char_boundary(at)).unwrap_or(0);
        log.drain(..cut);
    });
}

fn take_libbpf_log() -> String {
    LOG.take()
}

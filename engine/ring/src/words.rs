//! Memory that is seen as atomic words: of this process alone, or a mapping that others share.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// The first word's place: a pair of cache lines, which the processor fetches together.
const ALIGNMENT: usize = 128;

/// Words, zeroed at first.
pub(crate) struct Words {
    base: NonNull<AtomicU64>,
    count: usize,
    /// What holds them.
    _memory: Memory,
}

#[expect(dead_code, reason = "held to be dropped")]
enum Memory {
    /// Not a box: moving one would take the address from whoever else has it.
    Own(Vec<AtomicU64>),
    Mapped(Mapping),
}

// SAFETY: the memory is owned, lives until dropped, and is reached as atomic words only.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// Touches all pages, so that the first lap does not fault.
    pub(crate) fn new(count: usize) -> Words {
        let memory: Vec<AtomicU64> = (0..count + ALIGNMENT / size_of::<AtomicU64>())
            .map(|_| AtomicU64::new(0))
            .collect();
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Words {
            base: NonNull::from(&memory[start..][..count]).cast(),
            count,
            _memory: Memory::Own(memory),
        }
    }

    /// All of a mapping.
    pub(crate) fn mapped(mapping: Mapping) -> Words {
        Words {
            base: mapping.base,
            count: mapping.count,
            _memory: Memory::Mapped(mapping),
        }
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: `count` words that the memory held by `self` has, initialised and aligned. A mapping
        // keeps its size, as it is sealed, and readers map it without the right to write and load only.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.count) }
    }
}

/// A mapping of a memory file whose size is sealed: no process can make an access here fail.
pub(crate) struct Mapping {
    base: NonNull<AtomicU64>,
    count: usize,
}

impl Mapping {
    /// Makes a memory file of `count` words that keeps its size, mapped for writing here, and later by
    /// whoever gets the descriptor if `others_write`.
    pub(crate) fn create(count: usize, others_write: bool) -> io::Result<(Mapping, OwnedFd)> {
        // SAFETY: the name is a string that ends with a zero.
        let fd = check(unsafe {
            libc::memfd_create(c"seqcast-ring".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
        })?;
        // SAFETY: just opened and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let bytes = count * size_of::<AtomicU64>();
        // SAFETY: takes no pointers. It reserves the memory now: a page missing later would be SIGBUS.
        check(unsafe { libc::fallocate(fd.as_raw_fd(), 0, 0, bytes as libc::off_t) })?;
        let mapping = Mapping::new(fd.as_fd(), count, libc::PROT_READ | libc::PROT_WRITE)?;
        let size = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        let seals = size | if others_write { 0 } else { libc::F_SEAL_FUTURE_WRITE };
        // SAFETY: takes no pointers.
        check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) })?;
        Ok((mapping, fd))
    }

    /// Maps all of a memory file, for reading or also for writing.
    ///
    /// # Errors
    /// A file that could shrink under its user, or that may not be written.
    pub(crate) fn open(fd: BorrowedFd<'_>, write: bool) -> io::Result<Mapping> {
        // SAFETY: takes no pointers.
        let seals = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) })?;
        if seals & libc::F_SEAL_SHRINK == 0 {
            return Err(io::Error::other(
                "the ring's memory is not sealed: its owner could take it away",
            ));
        }
        // SAFETY: `stat` is plain data for which zero bits are valid.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: `stat` is live.
        check(unsafe { libc::fstat(fd.as_raw_fd(), &raw mut stat) })?;
        let bytes = usize::try_from(stat.st_size).unwrap_or(0);
        let protection = libc::PROT_READ | if write { libc::PROT_WRITE } else { 0 };
        Mapping::new(fd, bytes / size_of::<AtomicU64>(), protection)
    }

    /// Address and number of the words.
    pub(crate) fn words(&self) -> (NonNull<AtomicU64>, usize) {
        (self.base, self.count)
    }

    fn new(fd: BorrowedFd<'_>, count: usize, protection: libc::c_int) -> io::Result<Mapping> {
        // SAFETY: a new mapping, wherever the kernel likes; `words` is all that reaches it.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                count * size_of::<AtomicU64>(),
                protection,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("a mapping at address 0"))?;
        Ok(Mapping { base, count })
    }
}

// SAFETY: the mapping is owned and lives until dropped; what reaches it keeps accesses apart.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with the same length; no reference outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.count * size_of::<AtomicU64>()) };
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

//! Mapped memory: with [`fault`] the crate's only unsafe code.
//!
//! A [`Mapping`] owns the contents of a mapped file (or of anonymous memory) and lends them under
//! Rust's ordinary borrow rules. A [`Pages`] is a second handle on the same memory for what the
//! kernel does with it (fault in, let go, write to disk), which never reads or changes the
//! contents, so a helper thread may hold one while the owner appends.
//!
//! What makes lending sound: the file is ours alone. The archive's lock keeps a second writer out
//! and [`crate::Reader`] uses plain reads. What of a file cannot be read from the disk, or was truncated by
//! someone, is zeros ([`Mapping::faults`]).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Advice, MmapMut, MmapOptions, MmapRaw, UncheckedAdvice};

pub(crate) mod fault;

use fault::Region;

pub(crate) const PAGE: usize = 4096;

/// The owner of a mapped file's contents.
#[derive(Debug)]
pub struct Mapping {
    /// What makes up for pages that cannot be read; `None` of anonymous memory, which always can. Goes
    /// before the memory does.
    region: Option<Region>,
    raw: Arc<MmapRaw>,
}

/// A handle on the same memory for paging it in and writing it to disk; blind to the contents.
#[derive(Clone, Debug)]
pub struct Pages {
    raw: Arc<MmapRaw>,
    /// The contents are a file's, and stay when the memory is let go.
    file: bool,
}

impl Mapping {
    /// Maps the first `len` bytes of `file` shared and writable; the file must be that long, and
    /// nobody may write through one mapping of it while another is lent. Only this crate's
    /// storages call it, for files that the archive's one owner opens.
    ///
    /// # Errors
    /// When the kernel refuses, for example because the process has too many mappings.
    pub(crate) fn file(file: &File, len: usize) -> io::Result<Mapping> {
        let raw = Arc::new(MmapOptions::new().len(len).map_raw(file)?);
        let region = Some(Region::new(raw.as_ptr(), len));
        Ok(Mapping { region, raw })
    }

    /// `len` bytes of zeroed memory with no file behind them.
    ///
    /// # Errors
    /// When the kernel has no memory to give.
    pub fn anonymous(len: usize) -> io::Result<Mapping> {
        let raw = Arc::new(MmapRaw::from(MmapMut::map_anon(len)?));
        Ok(Mapping { region: None, raw })
    }

    /// How many pages could not be had from the file so far, because the disk could not read them or the
    /// file is shorter than it was. They are zeros, and what is written to them gets lost.
    #[must_use]
    pub fn faults(&self) -> u32 {
        self.region.as_ref().map_or(0, Region::faults)
    }

    /// Makes a page such as a disk cannot read: for storages that play a bad disk.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn spoil(&mut self, page: usize) -> io::Result<()> {
        let bytes = &mut self.bytes_mut()[page * PAGE..(page + 1) * PAGE];
        let empty = nameless(0)?;
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
        // SAFETY: a whole page inside the mapping, which nobody else sees while `self` is borrowed. Behind
        // the end of a file there is nothing to read, so the next access is a SIGBUS.
        let placed = unsafe { libc::mmap(bytes.as_mut_ptr().cast(), PAGE, access, kind, empty.as_raw_fd(), 0) };
        if placed == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// The contents.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the pointer and length are of one live mapping, kept by `raw`. Only a `&mut
        // Mapping` writes, and a `Mapping` is not `Clone`, so nothing writes while this is lent.
        unsafe { std::slice::from_raw_parts(self.raw.as_ptr(), self.raw.len()) }
    }

    /// The contents, to change them.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`, and `&mut self` makes this the only view of the contents.
        unsafe { std::slice::from_raw_parts_mut(self.raw.as_mut_ptr(), self.raw.len()) }
    }

    /// Stores a little-endian word after everything written before it: whoever sees the word, be
    /// it another process or recovery after a kill, sees all earlier writes too.
    ///
    /// # Panics
    /// When `at` is not 8-byte aligned or the word would not lie inside the mapping.
    pub fn publish(&mut self, at: usize, word: u64) {
        let place = self.bytes_mut()[at..at + 8].as_mut_ptr().cast::<u64>();
        assert!(place.is_aligned());
        // SAFETY: eight bytes inside the mapping (sliced above), aligned (asserted), and not
        // accessed otherwise while `&mut self` is held.
        unsafe { AtomicU64::from_ptr(place) }.store(word.to_le(), Ordering::Release);
    }

    /// Writes to every page so that later writes do not fault: for kernels that cannot do it
    /// themselves ([`Pages::populate`]). Changes nothing.
    pub fn touch(&mut self) {
        for page in self.bytes_mut().chunks_mut(PAGE) {
            // SAFETY: an aligned byte that `page` borrows mutably. Volatile, because a plain
            // store of the same value may be removed.
            unsafe { std::ptr::write_volatile(page.as_mut_ptr(), page[0]) };
        }
    }

    /// A handle for paging and syncing.
    #[must_use]
    pub fn pages(&self) -> Pages {
        Pages {
            raw: Arc::clone(&self.raw),
            file: self.region.is_some(),
        }
    }
}

impl Pages {
    /// Length in bytes.
    #[allow(clippy::len_without_is_empty)] // a mapping is never empty
    #[must_use]
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// Makes the pages of `range` present and writable, as if each had been written to, without
    /// changing them.
    ///
    /// # Errors
    /// Kernels before 5.14 do not know how (EINVAL).
    pub fn populate(&self, range: Range<usize>) -> io::Result<()> {
        let start = range.start / PAGE * PAGE;
        self.raw.advise_range(Advice::PopulateWrite, start, range.end - start)
    }

    /// Takes the whole pages of `range` out of the page table; the next access to one faults it in
    /// again from the page cache. Of a page that `range` ends in the middle of, nothing happens.
    ///
    /// A page that is mapped when it is written to disk is write-protected first, each with an
    /// interrupt to every core that runs this process. Letting many go costs one interrupt.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn let_go(&self, range: Range<usize>) -> io::Result<()> {
        let start = range.start / PAGE * PAGE;
        let end = range.end / PAGE * PAGE;
        if !self.file || start >= end {
            return Ok(());
        }
        // SAFETY: the mapping is of a file and shared (`Mapping::file`), so the contents are the
        // page cache's, which this does not touch: every later access finds the same bytes. Only
        // private pages would lose theirs: those put in place of what cannot be read, which are zeros.
        unsafe {
            self.raw
                .unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start)
        }
    }

    /// Has pages that are not in memory yet come one by one from here on, or again as many at once as
    /// the kernel likes.
    ///
    /// What comes at once is one piece to the kernel: when a page of it is written to disk, all of it is
    /// write-protected, with the pages that are being filled.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn come_singly(&self, singly: bool) -> io::Result<()> {
        self.raw.advise(if singly { Advice::Random } else { Advice::Normal })
    }

    /// Writes `range` to disk and waits for it (`msync`).
    ///
    /// # Errors
    /// When the disk does.
    pub fn sync(&self, range: Range<usize>) -> io::Result<()> {
        self.raw.flush_range(range.start, range.len())
    }

    /// Whether both handles are of one mapping.
    #[must_use]
    pub fn same(&self, other: &Pages) -> bool {
        Arc::ptr_eq(&self.raw, &other.raw)
    }
}

/// Reserves `len` bytes for `file` and makes it that long, so that no later write through a
/// mapping can find the disk full.
///
/// # Errors
/// When the disk is full or the file system cannot reserve space.
pub(crate) fn reserve(file: &File, len: u64) -> io::Result<()> {
    let len = libc::off_t::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
    loop {
        // SAFETY: a plain system call on a descriptor that `file` keeps open.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// A file of `len` zeros in memory, with no name.
///
/// # Errors
/// When the kernel has no memory or descriptor to give.
pub(crate) fn nameless(len: u64) -> io::Result<File> {
    // SAFETY: a plain system call on a string that lives for ever.
    let fd = unsafe { libc::memfd_create(c"seqcast".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, and nothing else has it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len)?;
    Ok(file)
}

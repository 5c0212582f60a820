//! The memory of a lane: the shared positions, then `capacity` bytes of entries.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::cursor::Indices;
use crate::lane::{MAX_CAPACITY, MIN_CAPACITY};
use crate::words::Mapping;

/// One allocation or mapping, `Indices` first. Offsets into the entries are checked here; who may touch which
/// bytes when is the business of the cursors. A clone is the same memory.
#[derive(Clone)]
pub(crate) struct Region {
    base: NonNull<u8>,
    capacity: usize,
    /// Each side has the address itself, one look-up nearer; this keeps it alive.
    _memory: Arc<Memory>,
}

#[expect(dead_code, reason = "held to be dropped")]
enum Memory {
    Own(Allocation),
    Mapped(Mapping),
}

struct Allocation {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the region shares its allocation, and all access to the entries goes through raw pointers
// whose users (the two sides of one lane) are kept apart by the index protocol.
unsafe impl Send for Region {}
// SAFETY: as above; `Indices` is made of atomics.
unsafe impl Sync for Region {}

const HEADER: usize = size_of::<Indices>();
const WORD: usize = size_of::<AtomicU64>();
const _: () = assert!(HEADER.is_multiple_of(8), "entries start 8-byte aligned");

impl Region {
    /// Allocates and touches all pages, so that the first lap does not fault.
    ///
    /// `capacity` is a power of two from [`crate::MIN_CAPACITY`] to [`crate::MAX_CAPACITY`].
    pub(crate) fn new(capacity: usize, start: u64) -> Self {
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is at least HEADER, thus not zero.
        let Some(base) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout);
        };
        // SAFETY: the allocation is HEADER + capacity bytes and aligned for Indices; nobody else
        // has it yet. The bytes were zero before: writing them again is what touches the pages.
        unsafe {
            base.add(HEADER).write_bytes(0, capacity);
            base.cast::<Indices>().write(Indices::new(start));
        }
        Region {
            base,
            capacity,
            _memory: Arc::new(Memory::Own(Allocation { base, layout })),
        }
    }

    /// Makes a region in a memory file that another process may write too. Sizes as in [`Self::new`].
    pub(crate) fn shared(capacity: usize) -> io::Result<(Self, OwnedFd)> {
        // What is mapped is zero, and so are the positions of a lane that starts at 0.
        let (mapping, fd) = Mapping::create((HEADER + capacity) / WORD, true)?;
        Ok((Self::mapped(mapping, capacity), fd))
    }

    /// Maps a region that [`Self::shared`] made.
    pub(crate) fn open(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let mapping = Mapping::open(fd, true)?;
        let capacity = (mapping.words().1 * WORD).checked_sub(HEADER);
        match capacity {
            Some(n) if n.is_power_of_two() && (MIN_CAPACITY..=MAX_CAPACITY).contains(&n) => {
                Ok(Self::mapped(mapping, n))
            }
            _ => Err(io::Error::other("this memory holds no lane")),
        }
    }

    fn mapped(mapping: Mapping, capacity: usize) -> Self {
        Region {
            base: mapping.words().0.cast(),
            capacity,
            _memory: Arc::new(Memory::Mapped(mapping)),
        }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(HEADER + capacity, align_of::<Indices>()).expect("capacity is at most MAX_CAPACITY")
    }

    #[inline]
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    #[inline]
    pub(crate) fn indices(&self) -> &Indices {
        // SAFETY: written in `new`, or all zero in a new mapping, which starts a page; it is made of atomics,
        // for which any bits are valid, lives as long as the region, and is only ever shared.
        unsafe { self.base.cast::<Indices>().as_ref() }
    }

    /// The address of `len` bytes of the entries at `offset`. Never leaves the region.
    #[inline]
    pub(crate) fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset <= self.capacity && len <= self.capacity - offset,
            "lane offset outside its region"
        );
        // SAFETY: offset is at most capacity, so the result is inside or at the end of the allocation.
        unsafe { self.base.add(HEADER + offset).as_ptr() }
    }

    /// The same bytes as words that somebody else may be writing. `offset` and `len` are multiples of 8.
    #[inline]
    pub(crate) fn words(&self, offset: usize, len: usize) -> &[AtomicU64] {
        let first = self.at(offset, len).cast::<AtomicU64>();
        debug_assert!(first.is_aligned());
        // SAFETY: `at` checked that the bytes lie in the region; entries start aligned and `offset` is a
        // multiple of 8. They are initialised and reached as atomics as long as the slice lives: the
        // other side of a lane that keeps to the protocol does not touch them, one in another process
        // that does not is beyond the language.
        unsafe { std::slice::from_raw_parts(first, len / WORD) }
    }
}

// SAFETY: nothing but the destructor reaches the allocation through this, on whichever thread is last.
unsafe impl Send for Allocation {}
// SAFETY: as above; it has no methods.
unsafe impl Sync for Allocation {}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: allocated in `Region::new` with the same layout; Indices has no destructor.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

//! The memory of a lane: the shared positions, then `capacity` bytes of entries.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::cursor::Indices;

/// One allocation, `Indices` first. Offsets into the entries are checked here; who may touch which
/// bytes when is the business of the cursors. A clone is the same memory.
#[derive(Clone)]
pub(crate) struct Region {
    base: NonNull<u8>,
    capacity: usize,
    /// Each side has the address itself, one look-up nearer; this keeps it alive.
    _memory: Arc<Memory>,
}

struct Memory {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the region shares its allocation, and all access to the entries goes through raw pointers
// whose users (the two sides of one lane) are kept apart by the index protocol.
unsafe impl Send for Region {}
// SAFETY: as above; `Indices` is made of atomics.
unsafe impl Sync for Region {}

const HEADER: usize = size_of::<Indices>();
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
        let memory = Arc::new(Memory { base, layout });
        Region {
            base,
            capacity,
            _memory: memory,
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
        // SAFETY: written in `new`, valid as long as the region, and only ever shared.
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
}

// SAFETY: nothing but the destructor reaches the allocation through this, on whichever thread is last.
unsafe impl Send for Memory {}
// SAFETY: as above; it has no methods.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `Region::new` with the same layout; Indices has no destructor.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

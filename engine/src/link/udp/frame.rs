//! Receive buffers and the frames that share them.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::rc::Rc;

use memmap2::{Advice, MmapMut};

/// A receive buffer. Sole ownership is the right to fill it.
pub(super) type Buffer = Rc<MmapMut>;

/// The free buffers. Never grows after creation.
pub(super) struct Pool(RefCell<Vec<Buffer>>);

impl Pool {
    /// `count` buffers of `len` bytes each. The first `touched` bytes, room for one datagram, are
    /// backed by memory at once; the others when a run first reaches them, page by page, so that a
    /// pool costs what is used of it.
    pub(super) fn new(count: usize, len: usize, touched: usize) -> io::Result<Rc<Self>> {
        let buffer = || {
            let mut bytes = MmapMut::map_anon(len)?;
            // A huge page would back the buffer whole, and its neighbours. Kernels without them
            // refuse the advice.
            let _ = bytes.advise(Advice::NoHugePage);
            bytes[..touched].fill(0);
            Ok(Rc::new(bytes))
        };
        let buffers: io::Result<_> = (0..count).map(|_| buffer()).collect();
        Ok(Rc::new(Pool(RefCell::new(buffers?))))
    }

    /// The buffer used last, which is the most likely to be in the cache.
    pub(super) fn take(&self) -> Option<Buffer> {
        self.0.borrow_mut().pop()
    }

    /// Takes a buffer back from one of its owners; it is free when the last has given it.
    pub(super) fn put(&self, buffer: Buffer) {
        if Rc::strong_count(&buffer) == 1 {
            self.0.borrow_mut().push(buffer);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }
}

/// The payload of one received datagram. Datagrams that the kernel delivered as one run share a
/// buffer, which goes back to the link when the last of them is dropped.
pub struct UdpFrame {
    /// Taken only on drop.
    buffer: Option<Buffer>,
    pool: Rc<Pool>,
    start: u32,
    end: u32,
}

impl UdpFrame {
    /// The bytes from `start` to `end` of `buffer`, which hold at most 64 KiB.
    pub(super) fn new(buffer: Buffer, pool: Rc<Pool>, start: usize, end: usize) -> Self {
        UdpFrame {
            buffer: Some(buffer),
            pool,
            start: start as u32,
            end: end as u32,
        }
    }
}

impl AsRef<[u8]> for UdpFrame {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        match &self.buffer {
            Some(buffer) => &buffer[self.start as usize..self.end as usize],
            None => &[],
        }
    }
}

impl Drop for UdpFrame {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.pool.put(buffer);
        }
    }
}

impl fmt::Debug for UdpFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UdpFrame({} bytes)", self.as_ref().len())
    }
}

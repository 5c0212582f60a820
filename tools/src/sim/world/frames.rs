//! The receive frames of a client, as a link lends them: each is free, or lent with a datagram in it.

use std::cell::Cell;
use std::rc::Rc;

/// All frames of one client.
pub(super) struct Frames {
    count: usize,
    lent: Rc<Cell<usize>>,
}

/// A frame that was lent. Dropping it gives it back.
pub(super) struct Lent {
    lent: Rc<Cell<usize>>,
    bytes: Rc<[u8]>,
    len: usize,
}

impl Frames {
    /// As many frames as may be held, and one to look at.
    pub(super) fn new(held: u32) -> Frames {
        Frames {
            count: held as usize + 1,
            lent: Rc::default(),
        }
    }

    /// Lends a frame with the first `len` of these bytes, if one is free.
    pub(super) fn lend(&self, bytes: Rc<[u8]>, len: usize) -> Option<Lent> {
        if self.lent() == self.count {
            return None;
        }
        self.lent.set(self.lent() + 1);
        let lent = Rc::clone(&self.lent);
        Some(Lent { lent, bytes, len })
    }

    /// How many frames are lent.
    pub(super) fn lent(&self) -> usize {
        self.lent.get()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.lent.set(self.lent.get() - 1);
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

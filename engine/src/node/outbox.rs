//! Where the parts of one engine put their frames: the link, and each other.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::rc::Rc;

use seqcast_proto::io::Outbox;
use seqcast_proto::seal::{Seal, TRAILER};
use seqcast_proto::time::{Nanos, Now};

use crate::link::Link;

/// Frames in flight between parts of the same engine, at most.
const LOCAL_FRAMES: usize = 1024;

/// A frame that an engine's part received, from the link or from another part.
pub(super) enum Frame<F> {
    /// It came over the link and lies in the link's memory.
    Link(F),
    /// The same, and its seal was found good; the frame ends in front of it.
    Sealed(F),
    /// It came from a part of this engine.
    Local(LocalFrame),
}

impl<F: AsRef<[u8]>> AsRef<[u8]> for Frame<F> {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        match self {
            Frame::Link(frame) => frame.as_ref(),
            Frame::Sealed(frame) => {
                let bytes = frame.as_ref();
                &bytes[..bytes.len() - TRAILER]
            }
            Frame::Local(frame) => frame.as_ref(),
        }
    }
}

pub(super) type Buffers = Rc<RefCell<Vec<Box<[u8]>>>>;

/// A frame in the engine's own memory; dropping it gives the memory back.
pub(super) struct LocalFrame {
    bytes: Box<[u8]>,
    len: usize,
    free: Buffers,
}

impl LocalFrame {
    /// A copy of a frame in one of these buffers; `None` when none is free, or it is too short.
    pub(super) fn copy(free: &Buffers, frame: &[u8]) -> Option<LocalFrame> {
        let mut bytes = free.borrow_mut().pop_if(|bytes| bytes.len() >= frame.len())?;
        bytes[..frame.len()].copy_from_slice(frame);
        Some(LocalFrame {
            bytes,
            len: frame.len(),
            free: Rc::clone(free),
        })
    }
}

impl AsRef<[u8]> for LocalFrame {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for LocalFrame {
    fn drop(&mut self) {
        self.free.borrow_mut().push(std::mem::take(&mut self.bytes));
    }
}

/// Frames between parts of one engine. A NIC does not hear itself: what a server multicasts must
/// reach the client and the archive in its own engine this way.
pub(super) struct Local {
    /// Groups that a part of this engine both sends to and receives from.
    groups: Vec<SocketAddrV4>,
    free: Buffers,
    waiting: VecDeque<(SocketAddrV4, LocalFrame)>,
    /// Frames for which no buffer was free.
    pub(super) dropped: u64,
}

impl Local {
    /// For these groups, with frames of `max` bytes. Takes no memory when there are none.
    pub(super) fn new(groups: Vec<SocketAddrV4>, max: usize) -> Local {
        let count = if groups.is_empty() { 0 } else { LOCAL_FRAMES };
        let buffers = (0..count).map(|_| vec![0; max].into_boxed_slice()).collect();
        Local {
            groups,
            free: Rc::new(RefCell::new(buffers)),
            waiting: VecDeque::with_capacity(count),
            dropped: 0,
        }
    }

    /// The next frame that a part has sent to this engine itself, and to which address.
    pub(super) fn next(&mut self) -> Option<(SocketAddrV4, LocalFrame)> {
        self.waiting.pop_front()
    }

    /// Whether frames wait.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn buffer(&mut self) -> Option<LocalFrame> {
        let bytes = self.free.borrow_mut().pop();
        self.dropped += u64::from(bytes.is_none());
        Some(LocalFrame {
            bytes: bytes?,
            len: 0,
            free: Rc::clone(&self.free),
        })
    }

    fn copy(&mut self, to: SocketAddrV4, frame: &[u8]) {
        if let Some(mut local) = self.buffer() {
            local.bytes[..frame.len()].copy_from_slice(frame);
            local.len = frame.len();
            self.waiting.push_back((to, local));
        }
    }
}

/// Frames whose copies wait for line B, at most.
const MIRRORED: usize = 64;

/// Copies for line B of what parts send to groups with two lines. They go out in runs, behind those
/// of line A: a kernel socket sends a run to one address at once.
pub(super) struct Mirror {
    /// Groups of line A, and those of line B that get the same.
    groups: Vec<(SocketAddrV4, SocketAddrV4)>,
    bytes: Box<[u8]>,
    max: usize,
    waiting: Vec<(SocketAddrV4, usize)>,
    sent: usize,
}

impl Mirror {
    /// For these groups, with frames of `max` bytes. Takes no memory when there are none.
    pub(super) fn new(groups: Vec<(SocketAddrV4, SocketAddrV4)>, max: usize) -> Mirror {
        let count = if groups.is_empty() { 0 } else { MIRRORED };
        Mirror {
            groups,
            bytes: vec![0; count * max].into(),
            max,
            waiting: Vec::with_capacity(count),
            sent: 0,
        }
    }

    #[inline]
    fn of(&self, group: SocketAddrV4) -> Option<SocketAddrV4> {
        self.groups.iter().find(|(a, _)| *a == group).map(|(_, b)| *b)
    }

    /// Each copy has a seal of its own: the same twice would be a replay.
    fn push(&mut self, to: SocketAddrV4, frame: &[u8], seal: Option<&mut Seal>, wall: Nanos) {
        let start = self.waiting.len() * self.max;
        let copy = &mut self.bytes[start..start + self.max];
        copy[..frame.len()].copy_from_slice(frame);
        let len = match seal {
            Some(seal) => seal.seal(wall, copy, frame.len()),
            None => frame.len(),
        };
        self.waiting.push((to, len));
    }

    /// Sends what waits, as far as the link takes it. Says whether there is room again.
    #[inline]
    pub(super) fn send(&mut self, link: &mut impl Link) -> bool {
        while let Some(&(to, len)) = self.waiting.get(self.sent) {
            let frame = &self.bytes[self.sent * self.max..][..len];
            let sent = link.send(to, |buf| {
                buf[..len].copy_from_slice(frame);
                len
            });
            if !sent {
                return self.waiting.len() < MIRRORED;
            }
            self.sent += 1;
        }
        self.waiting.clear();
        self.sent = 0;
        true
    }
}

/// The outbox of one turn.
pub(super) struct Out<'a, L> {
    /// The link.
    link: &'a mut L,
    /// The way to the engine's own parts.
    local: &'a mut Local,
    /// The way to line B.
    mirror: &'a mut Mirror,
    /// The link's own address.
    own: SocketAddrV4,
    /// What seals the frames that leave the engine; those between its parts need no seal.
    seal: Option<&'a mut Seal>,
    /// The present, for seals.
    wall: Nanos,
}

impl<'a, L> Out<'a, L> {
    /// The way out for one part.
    #[inline]
    pub(super) fn new(
        link: &'a mut L,
        local: &'a mut Local,
        mirror: &'a mut Mirror,
        own: SocketAddrV4,
        seal: Option<&'a mut Seal>,
        now: Now,
    ) -> Out<'a, L> {
        Out {
            link,
            local,
            mirror,
            own,
            seal,
            wall: now.wall,
        }
    }
}

impl<L: Link> Outbox for Out<'_, L> {
    fn send(&mut self, to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        if to == self.own {
            let Some(mut frame) = self.local.buffer() else {
                return false;
            };
            frame.len = build(&mut frame.bytes);
            if frame.len > 0 {
                self.local.waiting.push_back((to, frame));
            }
            return true;
        }
        let mine = self.local.groups.contains(&to);
        let also = self.mirror.of(to);
        let (local, mirror, seal) = (&mut *self.local, &mut *self.mirror, &mut self.seal);
        if !mine && also.is_none() && seal.is_none() {
            return self.link.send(to, build);
        }
        if also.is_some() && mirror.waiting.len() == MIRRORED && !mirror.send(self.link) {
            return false;
        }
        let wall = self.wall;
        self.link.send(to, |buf| {
            let len = build(buf);
            if len > 0 && mine {
                local.copy(to, &buf[..len]);
            }
            if len > 0
                && let Some(b) = also
            {
                mirror.push(b, &buf[..len], seal.as_deref_mut(), wall);
            }
            match seal {
                Some(seal) if len > 0 => seal.seal(wall, buf, len),
                _ => len,
            }
        })
    }

    fn max_frame(&self) -> usize {
        let seal = if self.seal.is_some() { TRAILER } else { 0 };
        self.link.max_payload() - seal
    }
}

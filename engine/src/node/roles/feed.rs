//! Where the messages of a stream come from.

use seqcast_proto::server::{Packed, Source as MessageSource, pack};
use seqcast_proto::wire::Message;
use seqcast_ring::{Consumer, Fill};

use crate::feed::source::Source;
use crate::programs::Lanes;

/// Where a server's messages come from.
pub(in crate::node) enum Feed {
    /// A thread of the engine that reads a file or a pipe.
    Thread(Source),
    /// A program in this process, through a lane.
    Lane(Consumer),
    /// A program on the engine's own thread.
    Pull(Box<dyn MessageSource>),
    /// Programs that come and go, each through a lane of its own.
    Attached(Lanes),
}

impl Feed {
    fn lane(&mut self) -> Option<&mut Consumer> {
        match self {
            Feed::Thread(source) => Some(&mut source.lane),
            Feed::Lane(lane) => Some(lane),
            Feed::Pull(_) | Feed::Attached(_) => None,
        }
    }

    /// Messages were taken.
    pub(in crate::node) fn taken(&mut self) {
        if let Some(lane) = self.lane() {
            lane.flush();
        }
        match self {
            Feed::Thread(source) => source.room.ring(),
            Feed::Attached(lanes) => lanes.flush(),
            Feed::Lane(_) | Feed::Pull(_) => {}
        }
    }

    /// How full the lanes are that it comes through.
    pub(in crate::node) fn each_fill(&self, each: impl FnMut(Fill)) {
        match self {
            Feed::Thread(source) => [source.lane.fill()].into_iter().for_each(each),
            Feed::Lane(lane) => [lane.fill()].into_iter().for_each(each),
            Feed::Attached(lanes) => lanes.fill().for_each(each),
            Feed::Pull(_) => {}
        }
    }

    pub(in crate::node) fn stop(&self) {
        if let Feed::Thread(source) = self {
            source.stop();
        }
    }

    /// Waits for the source's thread; what stopped it.
    pub(in crate::node) fn join(self) -> std::io::Result<()> {
        match self {
            Feed::Thread(source) => source.join(),
            Feed::Lane(_) | Feed::Pull(_) | Feed::Attached(_) => Ok(()),
        }
    }
}

impl MessageSource for Feed {
    #[inline]
    fn peek(&mut self) -> Option<Message<'_>> {
        let lane = match self {
            Feed::Thread(source) => &mut source.lane,
            Feed::Lane(lane) => lane,
            Feed::Pull(program) => return program.peek(),
            Feed::Attached(lanes) => return lanes.peek(),
        };
        let entry = lane.peek()?;
        // The tag is the length of the subject in front of the payload.
        let (subject, payload) = entry.bytes.split_at_checked(entry.tag as usize)?;
        Some(Message { subject, payload })
    }

    #[inline]
    fn advance(&mut self) {
        match self {
            Feed::Thread(source) => source.lane.advance(),
            Feed::Lane(lane) => lane.advance(),
            Feed::Pull(program) => program.advance(),
            Feed::Attached(lanes) => lanes.advance(),
        }
    }

    fn pack(&mut self, room: &mut [u8], most: u16) -> Packed {
        match self {
            Feed::Pull(program) => program.pack(room, most),
            Feed::Attached(lanes) => pack(lanes, room, most),
            Feed::Thread(_) | Feed::Lane(_) => pack(self, room, most),
        }
    }

    fn is_finished(&self) -> bool {
        match self {
            Feed::Thread(source) => source.is_finished(),
            Feed::Lane(lane) => lane.is_finished(),
            Feed::Pull(program) => program.is_finished(),
            Feed::Attached(_) => false,
        }
    }
}

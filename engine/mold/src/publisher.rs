//! Sends messages as downstream packets.

use seqcast_proto::time::Nanos;

use crate::packet::{BLOCK, Builder, Refused, SessionName, Variant, write_beat};

/// How a stream is sent.
#[derive(Clone, Copy, Debug)]
pub struct PublisherConfig {
    /// The format.
    pub variant: Variant,
    /// Bytes of a packet at most.
    pub most: usize,
    /// Pause after which a heartbeat, or the end again, is sent.
    pub heartbeat: Nanos,
    /// How long the end of a session is said.
    pub end: Nanos,
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublisherStats {
    /// Packets with messages.
    pub packets: u64,
    /// Messages.
    pub messages: u64,
    /// Heartbeats.
    pub heartbeats: u64,
    /// Packets that say the end of a session.
    pub ends: u64,
}

/// The sending side of one stream: one session after the other.
#[derive(Clone, Debug)]
pub struct Publisher {
    config: PublisherConfig,
    builder: Builder,
    /// The session and its next number; none before the first.
    session: Option<(SessionName, u64)>,
    /// Since when the session's end is said.
    ended: Option<Nanos>,
    beat_at: Nanos,
    stats: PublisherStats,
}

impl Publisher {
    /// A publisher without a session: it sends nothing.
    #[must_use]
    pub fn new(config: PublisherConfig) -> Publisher {
        Publisher {
            builder: Builder::new(config.variant, config.most),
            config,
            session: None,
            ended: None,
            beat_at: 0,
            stats: PublisherStats::default(),
        }
    }

    /// Opens a session whose next message is `next`, or goes on with the one that is open. Its first
    /// heartbeat is due at once.
    pub fn open(&mut self, now: Nanos, session: SessionName, next: u64, out: &mut impl FnMut(&[u8])) {
        self.flush(now, out);
        self.session = Some((session, next));
        self.ended = None;
        self.beat_at = now;
    }

    /// Takes a message of the open session; numbers may leave gaps. It waits in the packet for others until
    /// that is full or [`Publisher::flush`].
    ///
    /// # Errors
    /// When no packet can carry it; it is then left out.
    pub fn push(
        &mut self,
        now: Nanos,
        number: u64,
        message: &[u8],
        out: &mut impl FnMut(&[u8]),
    ) -> Result<(), Refused> {
        let Some((session, _)) = self.session else {
            return Ok(());
        };
        let mut pushed = self.builder.push(&session, number, message);
        if pushed == Err(Refused::Full) {
            self.flush(now, out);
            pushed = self.builder.push(&session, number, message);
        }
        pushed?;
        self.session = Some((session, number + 1));
        self.stats.messages += 1;
        Ok(())
    }

    /// Sends what waits.
    pub fn flush(&mut self, now: Nanos, out: &mut impl FnMut(&[u8])) {
        if let Some(packet) = self.builder.take() {
            out(packet);
            self.stats.packets += 1;
            self.beat_at = now + self.config.heartbeat;
        }
    }

    /// Says that the session has ended in front of `next`.
    pub fn end(&mut self, now: Nanos, next: u64, out: &mut impl FnMut(&[u8])) {
        self.flush(now, out);
        if let Some((_, at)) = &mut self.session {
            *at = next.max(*at);
            self.ended.get_or_insert(now);
            self.beat_at = now;
        }
    }

    /// Whether an end was said and has been for long enough.
    #[must_use]
    pub fn is_over(&self, now: Nanos) -> bool {
        self.session.is_none() || self.ended.is_some_and(|at| now.saturating_sub(at) >= self.config.end)
    }

    /// Whether the session has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// The session and its next number.
    #[must_use]
    pub fn position(&self) -> Option<(SessionName, u64)> {
        self.session
    }

    /// Sends what is due; says when it is to be called next.
    pub fn poll(&mut self, now: Nanos, out: &mut impl FnMut(&[u8])) -> Nanos {
        let Some((session, next)) = self.session else {
            return Nanos::MAX;
        };
        let end = self.ended.is_some();
        if end && self.is_over(now) {
            return Nanos::MAX;
        }
        if now >= self.beat_at {
            self.flush(now, out);
            // The longest header, and a message of no length.
            let mut beat = [0; Variant::Mold64.header() + BLOCK];
            let length = write_beat(self.config.variant, &mut beat, &session, next, end);
            out(&beat[..length]);
            *(if end {
                &mut self.stats.ends
            } else {
                &mut self.stats.heartbeats
            }) += 1;
            self.beat_at = now + self.config.heartbeat;
        }
        self.beat_at
    }

    /// What was sent so far.
    #[must_use]
    pub fn stats(&self) -> PublisherStats {
        self.stats
    }
}

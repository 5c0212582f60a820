//! Playing a range of an archive again: as fast as it goes, at the recorded pace or at a multiple.

use std::io::Write;
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use seqcast_archive::Reader;
use seqcast_engine::config::{Config, Trust};
use seqcast_engine::link::Link;
use seqcast_engine::node::{Node, Programs, StopRequests};
use seqcast_engine::report::PublicationReport;
use seqcast_engine::stream_id;
use seqcast_proto::seal::TRAILER;
use seqcast_proto::seq::{Seq, Session, Stream};
use seqcast_proto::wire::{self, Kind};
use seqcast_ring::{LaneError, Producer};

use super::pace::{Schedule, Speed};
use super::select::{Selection, Taken, Walked};
use super::text;

/// Where played messages go, and the clock they follow.
pub trait Stage {
    /// ns on a clock that never goes back.
    fn now(&self) -> u64;

    /// Waits until `due` on that clock, not at all if that has passed.
    ///
    /// # Errors
    /// [`Stopped`] when playing shall end; what keeps the stage from going on.
    fn wait(&mut self, due: u64) -> Result<()>;

    /// Takes the messages of one original frame.
    ///
    /// # Errors
    /// As for [`Stage::wait`].
    fn put(&mut self, taken: &Taken<'_>) -> Result<()>;
}

/// Playing was told to end before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped")]
pub struct Stopped;

/// How far playing is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Played {
    /// Where it is: the session and the last number played.
    pub at: Option<(Session, Seq)>,
    /// Messages played.
    pub messages: u64,
    /// Original frames, or parts of them, played.
    pub frames: u64,
    /// Bytes of these, without headers of frames.
    pub bytes: u64,
    /// What of the selection was not there; known at the end, if playing was not stopped before.
    pub walked: Option<Walked>,
}

/// Plays `selection` on `stage`. `progress` is called after each original frame.
///
/// # Errors
/// As for [`Selection::walk`], and when the stage fails. Being stopped is no error.
pub fn play(
    archive: &Reader,
    selection: &Selection,
    speed: Speed,
    stage: &mut dyn Stage,
    progress: &mut dyn FnMut(&Played),
) -> Result<Played> {
    let mut schedule = Schedule::new(speed);
    let mut played = Played::default();
    let walked = selection.walk(archive, &mut |taken| {
        stage.wait(schedule.due(taken.session, taken.sent, stage.now()))?;
        stage.put(&taken)?;
        played.at = taken.block.range().map(|range| (taken.session, range.last));
        played.messages += u64::from(taken.block.count());
        played.frames += 1;
        played.bytes += taken.block.bytes().len() as u64;
        progress(&played);
        Ok(())
    });
    match walked {
        Ok(walked) => played.walked = Some(walked),
        Err(error) if error.is::<Stopped>() => {}
        Err(error) => return Err(error),
    }
    Ok(played)
}

/// Set to anything but 0 to end playing.
pub type Stop = Arc<AtomicUsize>;

pub(super) fn check(stop: &Stop) -> Result<()> {
    ensure!(stop.load(Ordering::Relaxed) == 0, Stopped);
    Ok(())
}

/// A file or pipe as stage.
#[derive(Debug)]
pub struct Output<W> {
    writer: text::Writer<W>,
    stop: Stop,
    start: Instant,
}

impl<W: Write> Output<W> {
    /// Writes with `writer` until `stop` is set.
    pub fn new(writer: text::Writer<W>, stop: Stop) -> Output<W> {
        let start = Instant::now();
        Output { writer, stop, start }
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(self) -> Result<()> {
        Ok(self.writer.finish()?)
    }
}

impl<W: Write> Stage for Output<W> {
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn wait(&mut self, due: u64) -> Result<()> {
        check(&self.stop)?;
        if due > self.now() {
            // Whoever reads along gets what is played when it is.
            self.writer.flush()?;
        }
        while let Some(left) = due.checked_sub(self.now()).filter(|&left| left > 0) {
            check(&self.stop)?;
            thread::sleep(Duration::from_nanos(left).min(LOOK_EVERY));
        }
        Ok(())
    }

    fn put(&mut self, taken: &Taken<'_>) -> Result<()> {
        self.writer.write(taken)
    }
}

/// Longest sleep before looking whether to stop.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What is published anew, and how.
#[derive(Clone, Debug)]
pub struct Publication {
    /// The group and port.
    pub group: SocketAddrV4,
    /// The stream's identity; derived from group and port if not given.
    pub id: Option<u32>,
    /// Archives that must acknowledge each message before it is dropped.
    pub archives: usize,
    /// Bytes of messages kept for repairs.
    pub retain: u64,
    /// File of the stream's keys.
    pub key: Option<PathBuf>,
}

impl Publication {
    fn stream(&self) -> Stream {
        stream_id(self.group, self.id)
    }

    fn config(&self) -> Result<Config> {
        let id = self.id.map_or(String::new(), |id| format!("id = {id}\n"));
        // The link is opened already: its keys matter no more.
        let text = format!(
            "[engine]\nname = \"replay\"\ninterface = \"-\"\n\
             [[publish]]\nstream = \"{}\"\n{id}source = {{ program = true }}\narchives = {}\nretain = {}\n",
            self.group, self.archives, self.retain
        );
        let mut config = Config::parse(&text, "replay".as_ref())?;
        config.publish[0].trust = self.key.clone().map(|key| Trust {
            key: Some(key),
            ..Trust::default()
        });
        Ok(config)
    }
}

/// A new stream as stage: an engine with one server, turned by the player itself, so that the
/// messages of an original frame are all there when the server looks, and leave as one frame again.
pub struct Broadcast<L: Link> {
    node: Node<L>,
    lane: Producer,
    largest: usize,
    stop: Stop,
    node_stop: StopRequests,
    start: Instant,
    /// Frames put in since the last turn.
    waiting: u32,
    turns: u32,
}

/// Bytes of messages on their way to the server.
const LANE: usize = 4 << 20;
/// Frames put in before a turn, when there is no time to keep.
const BATCH: u32 = 32;
/// The kernel wakes late; so much of a wait is spent turning.
const SPIN: Duration = Duration::from_micros(100);
/// Turns after which the engine looks at what needs no look in every turn.
const LOOK_TURNS: u32 = 256;

impl<L: Link> Broadcast<L> {
    /// Starts a stream on `link`, of whose received frames `may_hold` can be kept. Listens first for
    /// a second, since a new session on a stream that has a server would put an end to that server.
    ///
    /// # Errors
    /// When the group has a server, the link fails, or [`Stopped`].
    pub fn open(publication: &Publication, mut link: L, may_hold: u32, stop: Stop) -> Result<Broadcast<L>> {
        let group = publication.group;
        if let Some(server) = listen(&mut link, publication, &stop)? {
            bail!("a server at {server} publishes on {group}: replay to another group, or stop it");
        }
        let seal = if publication.key.is_some() { TRAILER } else { 0 };
        let largest = wire::max_message(link.max_payload() - seal);
        let (lane, consumer) = seqcast_ring::lane(LANE);
        let programs = Programs {
            sources: vec![(group, consumer)],
            ..Programs::default()
        };
        let node_stop = StopRequests::default();
        let node = Node::open(&publication.config()?, link, may_hold, Arc::clone(&node_stop), programs)?;
        Ok(Broadcast {
            node,
            lane,
            largest,
            stop,
            node_stop,
            start: Instant::now(),
            waiting: 0,
            turns: 0,
        })
    }

    /// Waits until messages are sent at once: a server without a directory sends from the second
    /// after its session's number on.
    ///
    /// # Errors
    /// As for [`Stage::wait`].
    pub fn ready(&mut self) -> Result<()> {
        let into = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.subsec_nanos());
        self.wait(self.now() + 1_000_000_000 - u64::from(into))
    }

    /// What is in force, for people.
    pub fn mode(&self) -> String {
        self.node.mode()
    }

    /// Sends what was put in, announces the end, and stays for last questions. Says what was
    /// published, however it ends.
    ///
    /// # Errors
    /// When the engine fails before all is sent.
    pub fn finish(self) -> (Option<PublicationReport>, Result<()>) {
        drop(self.lane);
        if check(&self.stop).is_err() {
            self.node_stop.store(1, Ordering::Relaxed);
        }
        let (report, result) = self.node.run();
        (report.publications.into_iter().next(), result)
    }

    /// One turn of the engine; when nothing was to do it rests, for `longest` at most.
    fn turn(&mut self, longest: Duration) -> Result<()> {
        self.waiting = 0;
        self.turns = self.turns.wrapping_add(1);
        let worked = self.node.poll()?;
        if !worked && !longest.is_zero() || self.turns.is_multiple_of(LOOK_TURNS) {
            self.node.rest(if worked { Duration::ZERO } else { longest })?;
        }
        check(&self.stop)
    }
}

impl<L: Link> Stage for Broadcast<L> {
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn wait(&mut self, due: u64) -> Result<()> {
        if due == 0 && self.waiting < BATCH {
            return Ok(());
        }
        loop {
            let left = Duration::from_nanos(due.saturating_sub(self.now()));
            self.turn(left.saturating_sub(SPIN))?;
            if due <= self.now() {
                return Ok(());
            }
        }
    }

    fn put(&mut self, taken: &Taken<'_>) -> Result<()> {
        for (seq, message) in taken.block.messages() {
            let size = message.subject.len() + message.payload.len();
            ensure!(
                size <= self.largest,
                "message {seq} of session {} has {size} bytes with its subject, and a frame of this interface \
                 carries {}: use an interface with a larger MTU, or a larger --mtu",
                taken.session,
                self.largest
            );
            // The tag is the length of the subject in front of the payload.
            let tag = message.subject.len() as u32;
            loop {
                match self.lane.try_push(tag, &[message.subject, message.payload]) {
                    Ok(()) => break,
                    // Archives or the link hold the server back.
                    Err(LaneError::Full) => self.turn(Duration::from_millis(1))?,
                    Err(error @ LaneError::TooLarge) => return Err(error.into()),
                }
            }
        }
        self.waiting += 1;
        Ok(())
    }
}

/// Who publishes on the group, if anyone is heard for a second: ten heartbeats at their slowest.
fn listen<L: Link>(link: &mut L, publication: &Publication, stop: &Stop) -> Result<Option<SocketAddrV4>> {
    let group = publication.group;
    let (silence, _never_written) = UnixStream::pair().context("cannot make a socket pair")?;
    link.join(group).with_context(|| format!("cannot join {group}"))?;
    let end = Instant::now() + Duration::from_secs(1);
    let mut server = None;
    loop {
        link.receive(64, |datagram| {
            let frame = wire::peek(datagram.frame.as_ref());
            if let Some((stream, Kind::Data | Kind::Heartbeat)) = frame
                && stream == publication.stream()
            {
                server = Some(datagram.from);
            }
        })?;
        let left = end.saturating_duration_since(Instant::now());
        if server.is_some() || left.is_zero() {
            return Ok(server);
        }
        check(stop)?;
        link.wait(silence.as_fd(), left.min(LOOK_EVERY))?;
    }
}

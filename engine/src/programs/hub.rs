//! The thread that programs talk to. It makes their lanes, passes memory, wakes them, and notices
//! when they are gone.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use seqcast_client::Engine;
use seqcast_client::protocol::{Refusal, Reply, Request, Role, StreamInfo, VERSION, Wait};
use seqcast_client::socket::{MAX_MESSAGE, Socket};
use seqcast_ring::{Doorbell, Event, Guarded, LaneWatch, Producer};

use super::access::Listener;
use super::{Desks, Fate, Held, NewLane, PublishDesk, SubscribeDesk, Wakers, Wanted};
use crate::config::Programs;
use crate::counters::counts;
use crate::link::wait;
use crate::log;

/// Messages of one program that are answered before it is the next one's turn.
const TURN: usize = 16;
/// How long a connection may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest sleep.
const SLEEP: Duration = Duration::from_secs(1);
/// Bytes of the lane that what was missed comes through.
const CATCH_UP_LANE: usize = 1 << 20;

counts! {
    /// Counters of the programs beside an engine.
    pub struct HubReport {
        /// Publishers and subscribers that were attached.
        attached: Counter,
        /// Connections that were refused.
        refused: Counter,
        /// Programs that were cut off, because what they wrote or said made no sense.
        broken: Counter,
        /// Times that a subscriber fetched what it had missed.
        catch_ups: Counter,
    }
}

#[derive(Default)]
struct Counters {
    attached: AtomicU64,
    refused: AtomicU64,
    broken: AtomicU64,
    catch_ups: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What the hub's thread and its handles share.
struct Shared {
    /// Ends a sleep of the hub for anything but the rings.
    nudge: Event,
    stop: AtomicBool,
    /// No more programs.
    closed: AtomicBool,
    /// Connections made in this process.
    own: Mutex<Vec<Socket>>,
    counters: Counters,
}

/// The running thread. Dropping it ends all connections.
pub struct Hub {
    shared: Arc<Shared>,
    wakers: Arc<Wakers>,
    thread: Option<JoinHandle<()>>,
}

impl Hub {
    /// Starts to listen. `bell` is the engine's; `name` stands in front of messages.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub(crate) fn start(config: &Programs, desks: Desks, bell: Arc<Doorbell>, name: &str) -> Result<Hub> {
        let listener = match &config.socket {
            Some(path) => Some(Listener::open(path, config)?),
            None => None,
        };
        let shared = Arc::new(Shared {
            nudge: Event::new().context("cannot make an event descriptor")?,
            stop: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            own: Mutex::default(),
            counters: Counters::default(),
        });
        let wakers = Arc::clone(&desks.wakers);
        let desk = Desk {
            name: name.into(),
            config: config.clone(),
            desks,
            engine: bell,
            shared: Arc::clone(&shared),
            listener,
            programs: Vec::new(),
            leaving: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("programs".into())
            .spawn(move || desk.run());
        Ok(Hub {
            shared,
            wakers,
            thread: Some(thread.context("cannot start a thread")?),
        })
    }

    /// Where programs of this process find the engine.
    #[must_use]
    pub fn engine(&self) -> Engine {
        let shared = Arc::clone(&self.shared);
        Engine::local(move || {
            if shared.closed.load(Ordering::Acquire) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (ours, theirs) = Socket::pair()?;
            shared.own.lock().unwrap_or_else(PoisonError::into_inner).push(ours);
            shared.nudge.raise();
            Ok(theirs)
        })
    }

    /// Admits no more programs; those that are there stay.
    pub(crate) fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.nudge.raise();
    }

    pub(crate) fn wakers(&self) -> &Wakers {
        &self.wakers
    }

    /// The counters so far.
    #[must_use]
    pub fn report(&self) -> HubReport {
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        HubReport {
            attached: read(&counters.attached),
            refused: read(&counters.refused),
            broken: read(&counters.broken),
            catch_ups: read(&counters.catch_ups),
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.stop.store(true, Ordering::Release);
        self.shared.nudge.raise();
        if let Some(thread) = self.thread.take() {
            // It has no result, and what it printed when it panicked says all.
            let _ = thread.join();
        }
    }
}

/// The thread's own.
struct Desk {
    name: String,
    config: Programs,
    desks: Desks,
    /// Wakes the engine.
    engine: Arc<Doorbell>,
    shared: Arc<Shared>,
    listener: Option<Listener>,
    programs: Vec<Program>,
    /// Lanes of programs that are gone, which the engine still reads.
    leaving: Vec<Arc<Fate>>,
}

/// A connection.
struct Program {
    socket: Socket,
    /// For messages.
    who: String,
    part: Part,
    wait: Option<Wait>,
}

enum Part {
    /// It has not said what it wants.
    New(Instant),
    Publisher {
        desk: Arc<PublishDesk>,
        fate: Arc<Fate>,
        watch: LaneWatch,
        wake: Event,
    },
    Subscriber {
        desk: Arc<SubscribeDesk>,
        catch_up: Option<(Arc<Fate>, LaneWatch)>,
    },
}

/// Why a connection ends.
enum End {
    Gone,
    /// It has got its answer.
    Done,
    Refused(Refusal, String),
}

impl Desk {
    fn run(mut self) {
        while !self.shared.stop.load(Ordering::Acquire) {
            if self.shared.closed.load(Ordering::Acquire) {
                self.listener = None;
            }
            // The engine rings only while somebody waits for it.
            if !self.leaving.is_empty() || self.programs.iter().any(|program| program.wait.is_some()) {
                self.desks.hub.arm();
            }
            self.wake_waiters();
            let ready = self.sleep();
            self.desks.hub.disarm();
            self.shared.nudge.clear();
            self.serve(&ready);
            self.admit();
            self.tidy();
        }
    }

    /// Wakes programs whose wait is over.
    fn wake_waiters(&mut self) {
        for program in &mut self.programs {
            if program.wait.is_some_and(|wait| program.part.is_over(wait)) {
                program.wait = None;
                // One that takes nothing is noticed when it hangs up.
                let _ = program.socket.send(&Reply::Wake.encode(), &[]);
            }
        }
    }

    /// Sleeps until somebody says something; says who, by place.
    fn sleep(&self) -> Vec<usize> {
        let look = |fd: BorrowedFd<'_>| wait::pollfd(fd.as_raw_fd(), libc::POLLIN);
        let mut fds = vec![look(self.desks.hub.fd()), look(self.shared.nudge.fd())];
        fds.extend(self.programs.iter().map(|program| look(program.socket.as_fd())));
        fds.extend(self.listener.iter().map(|listener| look(listener.socket().as_fd())));
        // Without it nobody is ready, and it is tried again.
        let _ = wait::poll(&mut fds, SLEEP);
        let programs = &fds[2..][..self.programs.len()];
        let ready = programs.iter().enumerate().filter(|(_, fd)| fd.revents != 0);
        ready.map(|(at, _)| at).collect()
    }

    fn serve(&mut self, ready: &[usize]) {
        // From the end: who leaves is replaced by one that was looked at already.
        for &at in ready.iter().rev() {
            if let Some(end) = self.hear(at) {
                self.end(at, end);
            }
        }
    }

    fn hear(&mut self, at: usize) -> Option<End> {
        let mut buffer = [0; MAX_MESSAGE];
        for _ in 0..TURN {
            let broken = |text: &str| Some(End::Refused(Refusal::Broken, text.into()));
            let len = match self.programs[at].socket.receive(&mut buffer) {
                Ok(None) => return None,
                // Descriptors that come along are closed unseen.
                Ok(Some((len, _))) => len,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return broken("a request that is too long");
                }
                Err(_) => return Some(End::Gone),
            };
            let Some(request) = Request::decode(&buffer[..len]) else {
                return broken("a request that says nothing");
            };
            if let Some(end) = self.answer(at, request) {
                return Some(end);
            }
        }
        None
    }

    fn answer(&mut self, at: usize, request: Request) -> Option<End> {
        let program = &mut self.programs[at];
        match (request, &mut program.part) {
            (Request::List, Part::New(_)) => {
                let reply = Reply::Streams(self.streams()).encode();
                let _ = self.programs[at].socket.send(&reply, &[]);
                Some(End::Done)
            }
            (Request::Attach { version, .. }, Part::New(_)) if version != VERSION => {
                let text = format!(
                    "this engine speaks version {VERSION} of the programs' protocol, the program {version}: use the same release"
                );
                Some(End::Refused(Refusal::Version, text))
            }
            (Request::Attach { role, stream, name, .. }, Part::New(_)) => {
                program.who = format!("{} ({})", name.escape_debug(), program.who);
                let result = match role {
                    Role::Publish => self.attach_publisher(at, stream),
                    Role::Subscribe => self.attach_subscriber(at, stream),
                };
                match result {
                    Ok(()) => {
                        count(&self.shared.counters.attached);
                        None
                    }
                    Err(end) => Some(end),
                }
            }
            (Request::Wait(wait), Part::Publisher { .. } | Part::Subscriber { .. }) => {
                program.wait = Some(wait);
                None
            }
            (Request::CatchUp { session, sequence }, Part::Subscriber { .. }) => self.catch_up(at, session, sequence),
            (Request::CaughtUp, Part::Subscriber { desk, catch_up }) => {
                end_catch_up(desk, catch_up);
                self.engine.ring();
                None
            }
            _ => Some(End::Refused(Refusal::Broken, "a request at the wrong time".into())),
        }
    }

    fn streams(&self) -> Vec<StreamInfo> {
        let mut streams: Vec<StreamInfo> = Vec::new();
        let publish = self.desks.publish.iter().map(|desk| (desk.stream, true));
        for (group, publish) in publish.chain(self.desks.subscribe.iter().map(|desk| (desk.stream, false))) {
            let known = streams.iter_mut().find(|info| info.group == group);
            match known {
                Some(info) if publish => info.publish = true,
                Some(info) => info.subscribe = true,
                None => streams.push(StreamInfo {
                    group,
                    publish,
                    subscribe: !publish,
                }),
            }
        }
        streams
    }

    fn attach_publisher(&mut self, at: usize, stream: Option<std::net::SocketAddrV4>) -> Result<(), End> {
        let desk = choose(&self.desks.publish, stream, |desk| desk.stream, "[[publish]]", "source")?;
        let made = Guarded::create(self.config.lane.0 as usize, desk.max_message)
            .and_then(|(lane, fd)| Ok((lane, fd, Event::new()?)))
            .and_then(|made| self.desks.wakers.add(made.2.fd()).map(|()| made));
        let (lane, fd, wake) = made.map_err(|error| system(&error))?;
        let reply = Reply::Lane {
            stream: desk.stream,
            max_message: desk.max_message as u32,
        };
        let program = &mut self.programs[at];
        if program.socket.send(&reply.encode(), &[fd.as_fd(), wake.fd()]).is_err() {
            self.desks.wakers.remove(wake.fd());
            return Err(End::Gone);
        }
        // Until the engine has seen the lane, its first message wakes it.
        lane.set_asleep(true);
        let fate = Arc::new(Fate::default());
        program.part = Part::Publisher {
            fate: Arc::clone(&fate),
            watch: lane.watch(),
            wake,
            desk: Arc::clone(&desk),
        };
        desk.lanes.put(NewLane { lane, fate: Held(fate) });
        self.engine.ring();
        Ok(())
    }

    fn attach_subscriber(&mut self, at: usize, stream: Option<std::net::SocketAddrV4>) -> Result<(), End> {
        let desk = choose(
            &self.desks.subscribe,
            stream,
            |desk| desk.stream,
            "[[subscribe]]",
            "sink",
        )?;
        let reply = Reply::Ring {
            stream: desk.stream,
            session: desk.session.load(Ordering::Acquire),
        };
        let program = &mut self.programs[at];
        let sent = program.socket.send(&reply.encode(), &[desk.ring.as_fd()]);
        program.part = Part::Subscriber { desk, catch_up: None };
        sent.map_err(|_| End::Gone)
    }

    fn catch_up(&mut self, at: usize, session: u32, sequence: u32) -> Option<End> {
        let program = &mut self.programs[at];
        let Part::Subscriber { desk, catch_up } = &mut program.part else {
            return None;
        };
        end_catch_up(desk, catch_up);
        if desk.catching_up.load(Ordering::Acquire) >= self.config.catch_ups {
            let (why, text) = (Refusal::Busy, "others are catching up".into());
            let _ = program.socket.send(&Reply::Refused { why, text }.encode(), &[]);
            return None;
        }
        let (lane, fd) = match Producer::create(CATCH_UP_LANE) {
            Ok(made) => made,
            Err(error) => return Some(system(&error)),
        };
        if program.socket.send(&Reply::CatchUp.encode(), &[fd.as_fd()]).is_err() {
            return Some(End::Gone);
        }
        count(&self.shared.counters.catch_ups);
        desk.catching_up.fetch_add(1, Ordering::AcqRel);
        let fate = Arc::new(Fate::default());
        *catch_up = Some((Arc::clone(&fate), lane.watch()));
        desk.wanted.put(Wanted {
            session,
            sequence,
            lane,
            fate: Held(fate),
        });
        self.engine.ring();
        None
    }

    /// Takes new connections.
    fn admit(&mut self) {
        let own = std::mem::take(&mut *self.shared.own.lock().unwrap_or_else(PoisonError::into_inner));
        for socket in own {
            self.enter(socket, "this process".into());
        }
        for _ in 0..TURN {
            let Some(listener) = &self.listener else { return };
            // Out of descriptors: whoever waits gets in when somebody has left.
            let Ok(Some(socket)) = listener.socket().accept() else {
                return;
            };
            match listener.admit(&socket) {
                Ok((peer, true)) => self.enter(socket, format!("process {}, user {}", peer.pid(), peer.uid())),
                Ok((peer, false)) => {
                    let text = format!(
                        "user {} may not use this engine: see `mode`, `user` and `group` of [programs]",
                        peer.uid()
                    );
                    self.refuse(&socket, Refusal::Permission, text);
                }
                Err(error) => self.refuse(&socket, Refusal::System, error.to_string()),
            }
        }
    }

    fn enter(&mut self, socket: Socket, who: String) {
        if self.programs.len() + self.leaving.len() >= self.config.max {
            let text = format!("{} programs are attached: raise `max` of [programs]", self.config.max);
            return self.refuse(&socket, Refusal::Full, text);
        }
        self.programs.push(Program {
            socket,
            who,
            part: Part::New(Instant::now()),
            wait: None,
        });
        let at = self.programs.len() - 1;
        // Most have said what they want by now.
        if let Some(end) = self.hear(at) {
            self.end(at, end);
        }
    }

    fn refuse(&self, socket: &Socket, why: Refusal, text: String) {
        count(&self.shared.counters.refused);
        // Who does not listen need not know.
        let _ = socket.send(&Reply::Refused { why, text }.encode(), &[]);
    }

    /// Ends what the engine has ended, and who says nothing.
    fn tidy(&mut self) {
        self.leaving.retain(|fate| !fate.done.load(Ordering::Acquire));
        for at in (0..self.programs.len()).rev() {
            let end = match &mut self.programs[at].part {
                Part::New(since) if since.elapsed() > PATIENCE => End::Done,
                Part::Publisher { fate, .. } if fate.broken.load(Ordering::Acquire) => End::Refused(
                    Refusal::Broken,
                    "what it wrote into its lane is no message; what came before was published".into(),
                ),
                Part::Subscriber { desk, catch_up } => {
                    let over = |(fate, _): &(Arc<Fate>, _)| fate.done.load(Ordering::Acquire);
                    if catch_up.as_ref().is_some_and(over) {
                        end_catch_up(desk, catch_up);
                    }
                    continue;
                }
                _ => continue,
            };
            self.end(at, end);
        }
    }

    fn end(&mut self, at: usize, end: End) {
        let program = self.programs.swap_remove(at);
        if let End::Refused(why, text) = end {
            if why == Refusal::Broken {
                count(&self.shared.counters.broken);
                tracing::warn!(
                    target: log::PROGRAMS, engine = %self.name, program = %program.who,
                    "program {} is cut off: {text}", program.who
                );
            }
            self.refuse(&program.socket, why, text);
        }
        match program.part {
            Part::New(_) => {}
            Part::Publisher { desk, fate, wake, .. } => {
                self.desks.wakers.remove(wake.fd());
                fate.gone.store(true, Ordering::Release);
                if !fate.done.load(Ordering::Acquire) {
                    self.leaving.push(fate);
                }
                desk.lanes.remind();
            }
            Part::Subscriber { desk, mut catch_up } => end_catch_up(&desk, &mut catch_up),
        }
        self.engine.ring();
    }
}

fn end_catch_up(desk: &SubscribeDesk, catch_up: &mut Option<(Arc<Fate>, LaneWatch)>) {
    if let Some((fate, _)) = catch_up.take() {
        fate.gone.store(true, Ordering::Release);
        desk.catching_up.fetch_sub(1, Ordering::AcqRel);
        desk.wanted.remind();
    }
}

impl Part {
    fn is_over(&self, wait: Wait) -> bool {
        match (wait, self) {
            (Wait::Room(than), Part::Publisher { watch, fate, .. }) => {
                watch.taken() != than || fate.done.load(Ordering::Acquire)
            }
            (Wait::Message(number), Part::Subscriber { desk, .. }) => desk.watch.next() != number,
            (Wait::CatchUp(than), Part::Subscriber { catch_up, .. }) => {
                catch_up.as_ref().is_none_or(|(_, watch)| watch.published() != than)
            }
            // Nothing that this program could wait for.
            _ => true,
        }
    }
}

fn system(error: &io::Error) -> End {
    End::Refused(Refusal::System, error.to_string())
}

/// The desk of a stream, or the only one.
fn choose<D>(
    desks: &[Arc<D>],
    stream: Option<std::net::SocketAddrV4>,
    of: impl Fn(&D) -> std::net::SocketAddrV4,
    table: &str,
    end: &str,
) -> Result<Arc<D>, End> {
    let refused = |text| Err(End::Refused(Refusal::Stream, text));
    match (stream, desks) {
        (None, [only]) => Ok(Arc::clone(only)),
        (None, []) => refused(format!("no {table} of this engine has `{end} = {{ program = true }}`")),
        (None, _) => refused(format!("this engine has {} streams in {table}: name one", desks.len())),
        (Some(stream), _) => match desks.iter().find(|desk| of(desk) == stream) {
            Some(desk) => Ok(Arc::clone(desk)),
            None => refused(format!(
                "no {table} of stream {stream} here has `{end} = {{ program = true }}`"
            )),
        },
    }
}

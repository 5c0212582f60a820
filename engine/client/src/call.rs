//! Reaching an engine, at first and again after it was gone.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::protocol::{Refusal, Reply, Request, Role, StreamInfo, VERSION};
use crate::socket::{MAX_MESSAGE, Socket};

/// Time between two attempts to reach an engine that is not there.
const RETRY: Duration = Duration::from_millis(20);
/// How long an engine may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Longest sleep while nobody is there.
const NAP: Duration = Duration::from_millis(10);

/// Where an engine is: behind a socket, or in this process.
#[derive(Clone)]
pub struct Engine(Way);

#[derive(Clone)]
enum Way {
    Path(PathBuf),
    Local(Arc<dyn Fn() -> io::Result<Socket> + Send + Sync>),
}

impl Engine {
    /// The engine whose configuration names this socket.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Engine {
        Engine(Way::Path(path.into()))
    }

    /// An engine in this process, which gives a connected socket for each call of `connect`. What an
    /// embedded engine's `programs()` returns is made of this.
    #[must_use]
    pub fn local(connect: impl Fn() -> io::Result<Socket> + Send + Sync + 'static) -> Engine {
        Engine(Way::Local(Arc::new(connect)))
    }

    fn connect(&self) -> io::Result<Socket> {
        match &self.0 {
            Way::Path(path) => Socket::connect(path),
            Way::Local(connect) => connect(),
        }
    }

    fn name(&self) -> String {
        match &self.0 {
            Way::Path(path) => path.display().to_string(),
            Way::Local(_) => "in this process".into(),
        }
    }

    /// The streams that programs may use there.
    ///
    /// # Errors
    /// When no engine is there, or it does not answer.
    pub fn streams(&self) -> Result<Vec<StreamInfo>, Error> {
        let gone = |source: io::Error| self.gone(&source);
        let socket = self.connect().map_err(gone)?;
        socket.send(&Request::List.encode(), &[]).map_err(gone)?;
        let start = Instant::now();
        loop {
            match hear(&socket).map_err(gone)? {
                Some((Reply::Streams(streams), _)) => return Ok(streams),
                Some((Reply::Refused { why, text }, _)) => return Err(Error::Refused { why, text }),
                Some(_) => return Err(gone(io::ErrorKind::InvalidData.into())),
                None if start.elapsed() > ANSWER => return Err(Error::Timeout),
                None => drop(socket.wait(Some(NAP)).map_err(gone)?),
            }
        }
    }

    fn gone(&self, why: &io::Error) -> Error {
        Error::Gone(format!("{}: {why}", self.name()))
    }
}

/// What the engine has said; `None`: nothing yet.
///
/// # Errors
/// When the engine is gone, or says what no engine says.
pub(crate) fn hear(socket: &Socket) -> io::Result<Option<(Reply, Vec<OwnedFd>)>> {
    let mut buffer = [0; MAX_MESSAGE];
    let Some((len, fds)) = socket.receive(&mut buffer)? else {
        return Ok(None);
    };
    match Reply::decode(&buffer[..len]) {
        Some(reply) => Ok(Some((reply, fds))),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "no engine of this version speaks like this",
        )),
    }
}

/// An engine has answered.
pub(crate) struct Answer {
    pub(crate) socket: Socket,
    pub(crate) reply: Reply,
    pub(crate) fds: Vec<OwnedFd>,
}

/// Attaches to an engine, as often as need be, without ever waiting by itself.
pub(crate) struct Call {
    engine: Engine,
    request: Vec<u8>,
    /// Connected, and no answer yet.
    pending: Option<(Socket, Instant)>,
    not_before: Option<Instant>,
    why: String,
}

impl Call {
    pub(crate) fn new(engine: &Engine, role: Role, stream: Option<SocketAddrV4>, name: &str) -> Call {
        let request = Request::Attach {
            version: VERSION,
            role,
            stream,
            name: if name.is_empty() { own_name() } else { name.into() },
        };
        Call {
            engine: engine.clone(),
            request: request.encode(),
            pending: None,
            not_before: None,
            why: engine.name(),
        }
    }

    /// One attempt, or the next step of one.
    ///
    /// # Errors
    /// What will not change by trying again at once: a refusal, or a missing permission.
    pub(crate) fn poll(&mut self) -> Result<Option<Answer>, Error> {
        let now = Instant::now();
        if self.not_before.is_some_and(|then| now < then) {
            return Ok(None);
        }
        let (socket, since) = match self.pending.take() {
            Some(pending) => pending,
            None => match self.begin() {
                Ok(socket) => (socket, now),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    self.not_before = Some(now + RETRY);
                    return Err(Error::Refused {
                        why: Refusal::Permission,
                        text: format!(
                            "{}: {error}: `mode`, `user` and `group` of its [programs], and its directory, say who may connect",
                            self.engine.name()
                        ),
                    });
                }
                Err(error) => return Ok(self.again(now, &error)),
            },
        };
        match hear(&socket) {
            Ok(Some((Reply::Refused { why, text }, _))) => {
                self.not_before = Some(now + RETRY);
                Err(Error::Refused { why, text })
            }
            Ok(Some((reply, fds))) => {
                self.not_before = None;
                Ok(Some(Answer { socket, reply, fds }))
            }
            Ok(None) if now.duration_since(since) < ANSWER => {
                self.pending = Some((socket, since));
                Ok(None)
            }
            Ok(None) => Ok(self.again(now, &io::ErrorKind::TimedOut.into())),
            Err(error) => Ok(self.again(now, &error)),
        }
    }

    fn begin(&self) -> io::Result<Socket> {
        let socket = self.engine.connect()?;
        // Who refuses at once says why, and may have closed by now.
        let _ = socket.send(&self.request, &[]);
        Ok(socket)
    }

    fn again(&mut self, now: Instant, why: &io::Error) -> Option<Answer> {
        self.not_before = Some(now + RETRY);
        self.why = format!("{}: {why}", self.engine.name());
        None
    }

    /// Rests until the next attempt makes sense, `longest` at most.
    pub(crate) fn rest(&self, longest: Duration) {
        match &self.pending {
            // Whatever goes wrong shows at the next attempt.
            Some((socket, _)) => drop(socket.wait(Some(longest.min(NAP)))),
            None => std::thread::sleep(longest.min(NAP)),
        }
    }

    /// Attaches within `patience`.
    pub(crate) fn complete(&mut self, patience: Duration) -> Result<Answer, Error> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(answer) = self.poll()? {
                return Ok(answer);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // An engine that is there may take its time.
            if left.is_zero() && self.pending.is_none() {
                return Err(self.gone());
            }
            self.rest(if left.is_zero() { NAP } else { left });
        }
    }

    pub(crate) fn gone(&self) -> Error {
        Error::Gone(self.why.clone())
    }

    /// The engine was lost; the next attempt may begin at once.
    pub(crate) fn reset(&mut self, why: &str) {
        self.pending = None;
        self.not_before = None;
        self.why = format!("{}: {why}", self.engine.name());
    }

    pub(crate) fn system(&self, what: &str, source: io::Error) -> Error {
        Error::System {
            what: format!("{}: {what}", self.engine.name()),
            source,
        }
    }
}

/// The program's file name.
fn own_name() -> String {
    let path = std::env::current_exe().unwrap_or_default();
    path.file_name()
        .unwrap_or(Path::new("program").as_os_str())
        .to_string_lossy()
        .into_owned()
}

/// How long until a deadline; `None`: there is none.
pub(crate) fn left(deadline: Option<Instant>) -> Option<Duration> {
    deadline.map(|then| then.saturating_duration_since(Instant::now()))
}

/// When a timeout is over; `None`: never.
pub(crate) fn deadline(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|time| Instant::now().checked_add(time))
}

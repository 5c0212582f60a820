//! The Unix socket at which watchers attach, and the threads behind it.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use seqcast_ring::{Consumer, Doorbell, lane};

use super::request::{MAGIC, Request, SIZE};
use super::{Exchange, LANE, WATCHERS, Watcher};

/// How long a watcher may take to say what it wants, or to take what it gets once the engine has ended.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a thread looks whether its watcher has left.
const LOOK: Duration = Duration::from_millis(100);
/// Records collected for one write.
const BATCH: usize = 256 << 10;

/// A socket in the file system. Dropping it closes it and removes it; drop the link first, so that what it
/// has copied is handed out.
pub struct Socket {
    path: PathBuf,
    exchange: Arc<Exchange>,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

struct Stop {
    now: AtomicBool,
    bell: Doorbell,
}

impl Socket {
    /// Makes the socket, for its owner only. One that an engine left behind when it was killed is replaced.
    ///
    /// # Errors
    /// Names the path, when something else is there or another engine has it.
    pub fn open(path: &Path, mode: String) -> io::Result<Socket> {
        let named = |e: io::Error| io::Error::new(e.kind(), format!("capture socket {}: {e}", path.display()));
        let listener = bind(path).map_err(named)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(named)?;
        listener.set_nonblocking(true).map_err(named)?;
        let exchange = Arc::<Exchange>::default();
        let stop = Arc::new(Stop {
            now: AtomicBool::new(false),
            bell: Doorbell::new()?,
        });
        let thread = std::thread::Builder::new().name("capture".into()).spawn({
            let (exchange, stop) = (Arc::clone(&exchange), Arc::clone(&stop));
            move || accept(&listener, &mode, &exchange, &stop)
        })?;
        Ok(Socket {
            path: path.into(),
            exchange,
            stop,
            thread: Some(thread),
        })
    }

    /// Whether a watcher is attached, or about to be.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.exchange.active.load(Ordering::Relaxed)
    }

    pub(super) fn exchange(&self) -> Arc<Exchange> {
        Arc::clone(&self.exchange)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Watchers that the engine never saw.
        let waiting = &self.exchange.waiting;
        waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.stop.now.store(true, Ordering::Relaxed);
        self.stop.bell.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.path);
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = fs::symlink_metadata(path)?.file_type().is_socket();
            match UnixStream::connect(path) {
                Err(refused) if is_socket && refused.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path)?;
                    UnixListener::bind(path)
                }
                Ok(_) => Err(io::Error::new(error.kind(), "another engine has it: give each its own")),
                Err(_) => Err(io::Error::new(
                    error.kind(),
                    "something else is there: remove it, or name another",
                )),
            }
        }
        other => other,
    }
}

/// Lets watchers in until the socket is dropped.
fn accept(listener: &UnixListener, mode: &str, exchange: &Arc<Exchange>, stop: &Arc<Stop>) {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    let attached = Arc::new(AtomicUsize::new(0));
    loop {
        stop.bell.arm();
        if !stop.now.load(Ordering::Relaxed) {
            let mut fds = [
                PollFd::new(listener.as_fd(), PollFlags::POLLIN),
                PollFd::new(stop.bell.fd(), PollFlags::POLLIN),
            ];
            // A signal ends the wait early, which is as good.
            let _ = poll(&mut fds, PollTimeout::NONE);
        }
        stop.bell.disarm();
        if stop.now.load(Ordering::Relaxed) {
            break;
        }
        let Ok((socket, _)) = listener.accept() else {
            // Nobody, or no descriptor free for it: not at once again.
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        threads.retain(|thread| !thread.is_finished());
        let (mode, exchange, attached) = (mode.to_owned(), Arc::clone(exchange), Arc::clone(&attached));
        let stop = Arc::clone(stop);
        let watch = move || {
            let room = attached.fetch_add(1, Ordering::Relaxed) < WATCHERS;
            // What fails here is the watcher's end of the socket.
            let _ = attend(socket, &mode, &exchange, &stop, room);
            attached.fetch_sub(1, Ordering::Relaxed);
        };
        threads.extend(std::thread::Builder::new().name("capture-out".into()).spawn(watch));
    }
    for thread in threads {
        let _ = thread.join();
    }
}

/// Says whether a watcher is let in (0) or not, and in words what it watches or why not.
fn tell(mut socket: &UnixStream, status: u8, text: &str) -> io::Result<()> {
    let mut told = MAGIC.to_vec();
    told.push(status);
    let text = &text.as_bytes()[..text.len().min(usize::from(u16::MAX))];
    told.extend((text.len() as u16).to_le_bytes());
    told.extend(text);
    socket.write_all(&told)
}

/// Serves one watcher, if there is room for it.
fn attend(mut socket: UnixStream, mode: &str, exchange: &Exchange, stop: &Stop, room: bool) -> io::Result<()> {
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let mut request = [0; SIZE];
    socket.read_exact(&mut request)?;
    let Some(request) = Request::from_bytes(&request) else {
        return tell(
            &socket,
            1,
            "this is no request that this engine knows: use its own version of seqcast",
        );
    };
    if !room {
        return tell(
            &socket,
            1,
            &format!("{WATCHERS} captures are attached already: end one"),
        );
    }
    let (producer, consumer) = lane(LANE);
    let bell = Arc::new(Doorbell::new()?);
    tell(&socket, 0, mode)?;
    {
        let mut waiting = exchange.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push(Watcher {
            lane: producer,
            bell: Arc::clone(&bell),
            request,
            dropped: 0,
        });
        exchange.active.store(true, Ordering::Relaxed);
    }
    hand_out(socket, consumer, &bell, stop)
}

/// Hands records out until the engine or the watcher ends.
fn hand_out(mut socket: UnixStream, mut lane: Consumer, bell: &Doorbell, stop: &Stop) -> io::Result<()> {
    let mut batch = Vec::with_capacity(BATCH + 1);
    loop {
        batch.clear();
        lane.drain(usize::MAX, |_, record| {
            let room = batch.len() < BATCH;
            if room {
                // What is kept of a frame is not in its head.
                batch.extend((record.len() as u32).to_le_bytes());
                batch.extend(record);
            }
            room
        });
        lane.flush();
        if !batch.is_empty() {
            // One that takes nothing for a while is waited for: the lane fills, and drops are counted.
            write_all(&mut socket, &batch, stop)?;
            continue;
        }
        if lane.is_finished() {
            return Ok(());
        }
        bell.arm();
        let quiet = lane.peek().is_none() && !lane.is_finished();
        let left = quiet && {
            let mut fds = [
                PollFd::new(socket.as_fd(), PollFlags::POLLHUP),
                PollFd::new(bell.fd(), PollFlags::POLLIN),
            ];
            let look = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO);
            poll(&mut fds, look).is_ok() && fds[0].any().unwrap_or(false)
        };
        bell.disarm();
        if left {
            return Ok(());
        }
    }
}

/// Writes as a watcher takes it; gives up when it has left, or takes nothing though the engine has ended.
fn write_all(socket: &mut UnixStream, mut bytes: &[u8], stop: &Stop) -> io::Result<()> {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !stop.now.load(Ordering::Relaxed) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

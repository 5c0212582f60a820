//! What a sink writes to: files, journals, directories, pipes, other programs.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use seqcast_proto::seq::{Seq, Session, Stream};

use super::fifo::{self, PatientWriter, StandardOutput};
use super::item::{Item, SinkFormat, write_item};
use super::journal;
use super::position::Position;
use crate::config::Sink as Config;
use crate::log;

const BUFFER: usize = 256 << 10;
/// How long a program may take to end after its input has ended.
const EXIT_LIMIT: Duration = Duration::from_secs(10);
/// How long a program that takes no input any more is given to say why.
const LAST_WORD: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(5);

/// An open output.
pub(super) struct Output {
    name: String,
    kind: Kind,
}

enum Kind {
    File(BufWriter<File>, SinkFormat),
    Journal(Journal),
    Dir(Dir),
    Stdout(BufWriter<PatientWriter<StandardOutput>>, SinkFormat),
    /// A FIFO that no reader has opened yet.
    Closed(PathBuf, SinkFormat),
    Fifo(BufWriter<PatientWriter<File>>, SinkFormat),
    Program(BufWriter<PatientWriter<ChildStdin>>, SinkFormat, Program),
}

/// A journal that nobody else writes.
struct Journal {
    out: BufWriter<File>,
    /// The record that is being made.
    record: Vec<u8>,
    _lock: Flock<File>,
}

/// One line that tells outputs apart; a position belongs to one.
pub(super) fn describe(config: &Config) -> String {
    let format = config.format.unwrap_or_default().name();
    match config {
        Config { file: Some(path), .. } => format!("file {format} {path:?}"),
        Config {
            journal: Some(path), ..
        } => format!("journal {path:?}"),
        Config { dir: Some(path), .. } => format!("dir {path:?}"),
        Config { fifo: Some(_), .. } => "fifo".into(),
        Config { exec: Some(_), .. } => "exec".into(),
        _ => "stdout".into(),
    }
}

impl Output {
    /// Opens what `config` names. A durable client's output is `durable`; `at` is its position,
    /// behind which files are cut off. Also says which message the output itself holds last.
    pub(super) fn open(
        config: &Config,
        stream: Stream,
        durable: bool,
        at: Option<&Position>,
        stop: &Arc<AtomicBool>,
    ) -> io::Result<(Output, Option<(Session, Seq)>)> {
        let format = config.format.unwrap_or_default();
        let mut last = None;
        let (name, kind) = match config {
            Config { file: Some(path), .. } => {
                let file = match at {
                    Some(at) => reopen(path, at),
                    None => create(path, durable),
                };
                let buffered = file.map(|f| Kind::File(BufWriter::with_capacity(BUFFER, f), format));
                (path.display().to_string(), buffered)
            }
            Config {
                journal: Some(path), ..
            } => {
                let opened = open_journal(path, stream, at).map(|(journal, found)| {
                    last = found;
                    Kind::Journal(journal)
                });
                (path.display().to_string(), opened)
            }
            Config { dir: Some(path), .. } => (path.display().to_string(), Dir::open(path).map(Kind::Dir)),
            Config { fifo: Some(path), .. } => {
                let closed = Kind::Closed(path.clone(), format);
                (path.display().to_string(), Ok(closed))
            }
            Config { exec: Some(words), .. } => {
                let started = Program::start(words).and_then(|(program, pipe)| {
                    fifo::set_nonblocking(&pipe)?;
                    let out = BufWriter::with_capacity(BUFFER, PatientWriter::new(pipe, stop));
                    Ok(Kind::Program(out, format, program))
                });
                (words.join(" "), started)
            }
            _ => {
                let opened = StandardOutput::open().map(|pipe| {
                    let out = BufWriter::with_capacity(BUFFER, PatientWriter::new(pipe, stop));
                    Kind::Stdout(out, format)
                });
                ("stdout".into(), opened)
            }
        };
        let kind = kind.map_err(|e| named(&name, e))?;
        Ok((Output { name, kind }, last))
    }

    /// Waits for the reader of a FIFO. False when `stop` was set first.
    pub(super) fn connect(&mut self, stop: &Arc<AtomicBool>) -> io::Result<bool> {
        let Kind::Closed(path, format) = &self.kind else {
            return Ok(true);
        };
        let Some(pipe) = fifo::open_write(path, stop).map_err(|e| named(&self.name, e))? else {
            return Ok(false);
        };
        let out = BufWriter::with_capacity(BUFFER, PatientWriter::new(pipe, stop));
        self.kind = Kind::Fifo(out, *format);
        Ok(true)
    }

    /// Writes one message; it may wait in a buffer.
    pub(super) fn write(&mut self, item: &Item<'_>) -> io::Result<()> {
        let written = match &mut self.kind {
            Kind::File(out, format) => write_item(out, *format, item),
            Kind::Journal(Journal {
                out, record: scratch, ..
            }) => journal::write(out, item, scratch),
            Kind::Dir(dir) => dir.write(item),
            Kind::Stdout(out, format) => write_item(out, *format, item),
            Kind::Closed(..) => Err(io::ErrorKind::NotConnected.into()),
            Kind::Fifo(out, format) => write_item(out, *format, item),
            Kind::Program(out, format, _) => write_item(out, *format, item),
        };
        written.map_err(|e| self.failed(e))
    }

    /// Hands everything to the system.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let flushed = match &mut self.kind {
            Kind::File(out, _) | Kind::Journal(Journal { out, .. }) => out.flush(),
            Kind::Dir(_) | Kind::Closed(..) => Ok(()),
            Kind::Stdout(out, _) => out.flush(),
            Kind::Fifo(out, _) => out.flush(),
            Kind::Program(out, ..) => out.flush(),
        };
        flushed.map_err(|e| self.failed(e))
    }

    /// Flushes, and puts what was written on stable storage where that is possible. Returns the
    /// length of the file, 0 where there is none.
    pub(super) fn sync(&mut self) -> io::Result<u64> {
        self.flush()?;
        let synced = match &mut self.kind {
            Kind::File(out, _) | Kind::Journal(Journal { out, .. }) => {
                let file = out.get_mut();
                file.sync_data().and_then(|()| file.stream_position())
            }
            Kind::Dir(dir) => dir.sync().map(|()| 0),
            Kind::Stdout(..) | Kind::Closed(..) | Kind::Fifo(..) | Kind::Program(..) => Ok(0),
        };
        synced.map_err(|e| named(&self.name, e))
    }

    /// Looks whether the other side is still there.
    pub(super) fn check(&mut self) -> io::Result<()> {
        match &mut self.kind {
            Kind::Program(_, _, program) => match program.child.try_wait()? {
                Some(status) => Err(named(&self.name, ended_early(status))),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Flushes and closes; a program is told by the end of its input, and waited for.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        let Kind::Program(out, _, mut program) = self.kind else {
            return Ok(());
        };
        drop(out);
        let ended = match program.wait(EXIT_LIMIT)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(io::Error::other(format!("the program ended with {status}"))),
            None => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "the program did not end within {} s of its input's end and was killed",
                    EXIT_LIMIT.as_secs()
                ),
            )),
        };
        ended.map_err(|e| named(&self.name, e))
    }

    /// Names the output in what a write failed with; of a program that has ended, how it did.
    fn failed(&mut self, error: io::Error) -> io::Error {
        let error = match &mut self.kind {
            Kind::Program(_, _, program) if error.kind() == io::ErrorKind::BrokenPipe => {
                match program.wait(LAST_WORD) {
                    Ok(Some(status)) => ended_early(status),
                    _ => io::Error::new(error.kind(), "the program closed its standard input"),
                }
            }
            _ => error,
        };
        named(&self.name, error)
    }
}

fn named(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("sink {what}: {error}"))
}

fn ended_early(status: ExitStatus) -> io::Error {
    io::Error::new(
        io::ErrorKind::BrokenPipe,
        format!("the program ended before its input did, with {status}"),
    )
}

/// Opens a file anew.
fn create(path: &Path, durable: bool) -> io::Result<File> {
    let file = File::create(path)?;
    if durable {
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "is no regular file, so that nothing can be kept of it: leave out `state`, or name a regular file",
            ));
        }
        sync_entry(path)?;
    }
    Ok(file)
}

/// Opens the file that belongs to a position and cuts off what was written after it.
fn reopen(path: &Path, at: &Position) -> io::Result<File> {
    let mut file = File::options().write(true).open(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => io::Error::new(
            e.kind(),
            format!(
                "is gone, but the client's position says that it holds {} bytes: put it back, or remove the position to begin at `from`",
                at.length
            ),
        ),
        _ => e,
    })?;
    let length = file.metadata()?.len();
    if length < at.length {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "has {length} bytes, but the client's position says {}: it was changed; put it back, or remove the position to begin at `from`",
                at.length
            ),
        ));
    }
    file.set_len(at.length)?;
    file.seek(SeekFrom::End(0))?;
    Ok(file)
}

/// Opens a journal behind its last good record, or behind the position; says what that is.
fn open_journal(path: &Path, stream: Stream, at: Option<&Position>) -> io::Result<(Journal, Option<(Session, Seq)>)> {
    if let Some(at) = at {
        let file = reopen(path, at)?;
        let lock = lock(&file)?;
        return Ok((Journal::new(file, lock), Some((at.session, at.seq))));
    }
    let mut file = File::options().create(true).truncate(false).write(true).open(path)?;
    let lock = lock(&file)?;
    let length = file.metadata()?.len();
    let mut last = None;
    // A header that a crash has cut holds nothing.
    if length < journal::FILE_HEADER as u64 && fs::read(path)? == journal::header(stream)[..length as usize] {
        file.set_len(0)?;
        file.write_all(&journal::header(stream))?;
        sync_entry(path)?;
    } else {
        let found = journal::scan(path, stream)?;
        if found.length < length {
            tracing::warn!(
                target: log::FEED, file = %path.display(), bytes = length - found.length,
                "journal {}: cut off {} bytes behind the last whole record",
                path.display(),
                length - found.length
            );
            file.set_len(found.length)?;
        }
        file.seek(SeekFrom::Start(found.length))?;
        last = found.last;
    }
    Ok((Journal::new(file, lock), last))
}

/// One process writes, as otherwise both would break what the other one wrote. Dropped, it is unlocked at
/// once: a child that another thread starts just then holds a copy of the descriptor until it runs.
fn lock(file: &File) -> io::Result<Flock<File>> {
    Flock::lock(file.try_clone()?, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process writes to it: stop that one, or name another",
        ),
        error => error.into(),
    })
}

/// Makes the name of a new file survive a loss of power.
fn sync_entry(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

impl Journal {
    fn new(file: File, lock: Flock<File>) -> Journal {
        Journal {
            out: BufWriter::with_capacity(BUFFER, file),
            record: Vec::new(),
            _lock: lock,
        }
    }
}

/// A directory that gets one file for each message.
struct Dir {
    path: PathBuf,
    partial: PathBuf,
    handle: File,
    _lock: Flock<File>,
}

impl Dir {
    fn open(path: &Path) -> io::Result<Dir> {
        fs::create_dir_all(path)?;
        let handle = File::open(path)?;
        let lock = lock(&handle)?;
        Ok(Dir {
            _lock: lock,
            path: path.into(),
            // One name for all: what a crash leaves of it the next message replaces.
            partial: path.join(".partial"),
            handle,
        })
    }

    fn write(&self, item: &Item<'_>) -> io::Result<()> {
        fs::write(&self.partial, item.payload)?;
        let name = format!("{}-{:010}.msg", item.session, item.seq.0);
        fs::rename(&self.partial, self.path.join(name))
    }

    /// All files at once: one system call instead of one for each message.
    fn sync(&self) -> io::Result<()> {
        nix::unistd::syncfs(&self.handle)?;
        Ok(())
    }
}

/// A program that reads messages from its standard input.
struct Program {
    child: Child,
}

impl Program {
    fn start(words: &[String]) -> io::Result<(Program, ChildStdin)> {
        let (command, arguments) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut child = Command::new(command)
            .args(arguments)
            .stdin(Stdio::piped())
            // A group of its own: what the keyboard interrupts is the engine, which ends the
            // program once everything is written.
            .process_group(0)
            .spawn()?;
        let stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok((Program { child }, stdin))
    }

    /// Waits at most `limit` for the end.
    fn wait(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let start = Instant::now();
        loop {
            let status = self.child.try_wait()?;
            if status.is_some() || start.elapsed() >= limit {
                return Ok(status);
            }
            std::thread::sleep(STEP);
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Has no effect on a program that has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: Stream = Stream(7);

    fn config(sink: &str) -> Config {
        let text =
            format!("[engine]\ninterface = \"lo\"\n[[subscribe]]\nstream = \"239.1.1.1:5000\"\nsink = {{ {sink} }}");
        let config = crate::config::Config::parse(&text, Path::new("test")).unwrap();
        config.subscribe[0].sink.clone()
    }

    fn open(config: &Config) -> io::Result<(Output, Option<(Session, Seq)>)> {
        Output::open(config, STREAM, false, None, &Arc::default())
    }

    fn item(seq: u32) -> Item<'static> {
        Item {
            session: Session(5),
            seq: Seq(seq),
            time: 1,
            flags: 0,
            subject: b"",
            payload: b"payload",
        }
    }

    #[test]
    fn a_journal_goes_on_behind_its_last_whole_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let config = config(&format!("journal = {path:?}"));
        let whole = journal::FILE_HEADER as u64 + 2 * 40;
        for torn in [0, 8, 39] {
            let _ = fs::remove_file(&path);
            let (mut output, last) = open(&config).unwrap();
            assert_eq!(last, None);
            let error = open(&config).err().unwrap().to_string();
            assert!(error.contains("another process writes to it"), "{error}");
            (1..=3).for_each(|seq| output.write(&item(seq)).unwrap());
            output.finish().unwrap();
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(whole + torn)
                .unwrap();
            let (mut output, last) = open(&config).unwrap();
            assert_eq!(last, Some((Session(5), Seq(2))));
            output.write(&item(9)).unwrap();
            assert_eq!(output.sync().unwrap(), whole + 40);
            let mut reader = journal::Reader::open(&path).unwrap();
            let mut numbers = Vec::new();
            while let Some(item) = reader.next_item().unwrap() {
                numbers.push(item.seq.0);
            }
            assert_eq!(numbers, [1, 2, 9]);
        }
        // A crash in the first write of all.
        for cut in 0..journal::FILE_HEADER {
            fs::write(&path, &journal::header(STREAM)[..cut]).unwrap();
            assert_eq!(open(&config).unwrap().1, None, "{cut}");
            assert_eq!(fs::read(&path).unwrap(), journal::header(STREAM));
        }
    }

    #[test]
    fn a_program_that_is_missing_or_ends_is_named_with_its_status() {
        let error = open(&config("exec = [\"/nonexistent/program\"]"))
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("/nonexistent/program"), "{error}");
        let (mut output, _) = open(&config("exec = [\"sh\", \"-c\", \"exit 7\"]")).unwrap();
        let error = loop {
            if let Err(error) = output.check() {
                break error.to_string();
            }
            std::thread::yield_now();
        };
        assert!(error.contains("before its input did, with exit status: 7"), "{error}");
        let (output, _) = open(&config("exec = [\"sh\", \"-c\", \"cat > /dev/null; exit 8\"]")).unwrap();
        let error = output.finish().unwrap_err().to_string();
        assert!(error.contains("exit status: 8"), "{error}");
    }
}

//! The position of a durable client: what its sink has taken, kept over crashes.
//!
//! One small text file, replaced as a whole; `docs/delivery.md` has it line by line.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use seqcast_proto::seq::{Seq, Session, Stream};

const MAGIC: &str = "seqcast-position";
const VERSION: u32 = 1;
/// A position is never longer: a path has at most 4096 bytes, four times that when escaped.
const LONGEST: u64 = 32 << 10;

/// The last message that a sink has taken for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Its session.
    pub session: Session,
    /// Its number.
    pub seq: Seq,
    /// Bytes of the sink's file up to and with this message; 0 for sinks that are no file.
    pub length: u64,
}

/// Keeps the position of one client in its state directory, locked against a second client.
#[derive(Debug)]
pub struct Keeper {
    path: PathBuf,
    partial: PathBuf,
    dir: File,
    stream: Stream,
    sink: String,
    _lock: Flock<File>,
}

impl Keeper {
    /// Locks the position of client `name` in `dir`, which is made if missing, and reads it.
    /// `sink` describes the sink that the position belongs to, in one line.
    ///
    /// # Errors
    /// When another process has the position, when it is damaged or belongs to another stream or
    /// sink, and when the directory cannot be used; says what to do.
    pub fn open(dir: &Path, name: &str, stream: Stream, sink: String) -> io::Result<(Keeper, Option<Position>)> {
        let path = dir.join(format!("{name}.position"));
        let named = |e| named(&path, e);
        fs::create_dir_all(dir).map_err(named)?;
        let lock_path = dir.join(format!("{name}.lock"));
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(named)?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            Errno::EWOULDBLOCK => io::Error::new(
                io::ErrorKind::AddrInUse,
                format!(
                    "{}: another client {name:?} is running with this state: stop it, or give this one another `name`",
                    lock_path.display()
                ),
            ),
            error => named(error.into()),
        })?;
        let keeper = Keeper {
            partial: dir.join(format!("{name}.position.partial")),
            dir: File::open(dir).map_err(named)?,
            path,
            stream,
            sink,
            _lock: lock,
        };
        let position = keeper.read()?;
        Ok((keeper, position))
    }

    fn read(&self) -> io::Result<Option<Position>> {
        let mut text = Vec::new();
        match File::open(&self.path) {
            Ok(file) => file
                .take(LONGEST)
                .read_to_end(&mut text)
                .map_err(|e| named(&self.path, e))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(named(&self.path, error)),
        };
        match parse(&text, self.stream, &self.sink) {
            Ok(position) => Ok(Some(position)),
            Err(why) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{}: {why}. To give the position up, move this file away: the client then begins at `from`, with a sink of its own",
                    self.path.display()
                ),
            )),
        }
    }

    /// Replaces the position. When this returns it is on stable storage.
    ///
    /// # Errors
    /// When the disk fails; the position before stays.
    pub fn save(&mut self, position: &Position) -> io::Result<()> {
        let write = || {
            let mut file = File::create(&self.partial)?;
            file.write_all(format(position, self.stream, &self.sink).as_bytes())?;
            file.sync_data()?;
            fs::rename(&self.partial, &self.path)?;
            self.dir.sync_all()
        };
        write().map_err(|e| named(&self.path, e))
    }
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("position {}: {error}", path.display()))
}

fn format(position: &Position, stream: Stream, sink: &str) -> String {
    let Position { session, seq, length } = position;
    let mut text = format!(
        "{MAGIC} {VERSION}\nstream {stream}\nsession {session}\nsequence {seq}\nlength {length}\nsink {sink}\n"
    );
    let crc = crc_fast::crc32_iscsi(text.as_bytes());
    // Writing to a string cannot fail.
    let _ = writeln!(text, "crc32c {crc:#010x}");
    text
}

/// Reads a position, or says why it cannot be used.
fn parse(bytes: &[u8], stream: Stream, sink: &str) -> Result<Position, String> {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Err("is no position of a client, or is damaged".into());
    };
    let mut lines = text.split_inclusive('\n');
    let mut sealed = 0;
    let mut value = |key: &str| {
        let line = lines.next()?;
        sealed += line.len();
        line.strip_suffix('\n')?.strip_prefix(key)?.strip_prefix(' ')
    };
    let Some(version) = value(MAGIC) else {
        return Err("is no position of a client".into());
    };
    if version != VERSION.to_string() {
        return Err(format!(
            "has format {version}, and this engine reads format {VERSION}: use the engine that wrote it"
        ));
    }
    let fields = ["stream", "session", "sequence", "length", "sink"].map(&mut value);
    let crc = crc_fast::crc32_iscsi(&bytes[..sealed]);
    let seal = format!("crc32c {crc:#010x}\n");
    let [Some(of), Some(session), Some(seq), Some(length), Some(to)] = fields else {
        return Err("is damaged".into());
    };
    if text[sealed..] != seal {
        return Err("is damaged: its checksum does not fit".into());
    }
    if of != stream.to_string() {
        return Err(format!(
            "belongs to stream {of}, not to {stream}: set `state` or `name` apart"
        ));
    }
    if to != sink {
        return Err(format!(
            "was recorded for the sink {to}, but the configuration says {sink}: put the old sink back"
        ));
    }
    let number = |text: &str| text.parse().map_err(|_| "is damaged".to_owned());
    let small = |text: &str| text.parse().map_err(|_| "is damaged".to_owned());
    Ok(Position {
        session: Session(small(session)?),
        seq: Seq(small(seq)?),
        length: number(length)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: Stream = Stream(0x5201_0203);
    const AT: Position = Position {
        session: Session(1_700_000_000),
        seq: Seq(42),
        length: 1 << 40,
    };

    #[test]
    fn the_format_is_what_the_documentation_says() {
        assert_eq!(
            format(&AT, STREAM, "file binaryfile \"/out\""),
            "seqcast-position 1\nstream 0x52010203\nsession 1700000000\nsequence 42\n\
             length 1099511627776\nsink file binaryfile \"/out\"\ncrc32c 0x76d9c118\n"
        );
    }

    #[test]
    fn a_position_is_kept_and_one_process_at_a_time_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/b");
        let open = |name| Keeper::open(&state, name, STREAM, "stdout".into());
        let (mut keeper, none) = open("risk").unwrap();
        assert_eq!(none, None);
        keeper.save(&Position { seq: Seq(1), ..AT }).unwrap();
        keeper.save(&AT).unwrap();
        let error = open("risk").unwrap_err().to_string();
        assert!(error.contains("another client \"risk\" is running"), "{error}");
        assert_eq!(open("other").unwrap().1, None, "names are apart");
        drop(keeper);
        assert_eq!(open("risk").unwrap().1, Some(AT));
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_refused() {
        let good = format(&AT, STREAM, "stdout");
        assert_eq!(parse(good.as_bytes(), STREAM, "stdout"), Ok(AT));
        for at in 0..good.len() {
            let mut bad = good.clone().into_bytes();
            bad[at] ^= 1;
            assert!(parse(&bad, STREAM, "stdout").is_err(), "byte {at}");
            assert!(parse(&good.as_bytes()[..at], STREAM, "stdout").is_err(), "cut at {at}");
        }
        let longer = good.clone() + "\n";
        assert!(parse(longer.as_bytes(), STREAM, "stdout").is_err());
    }

    #[test]
    fn what_belongs_to_others_is_refused_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.position");
        let open = || {
            let error = Keeper::open(dir.path(), "c", STREAM, "stdout".into()).unwrap_err();
            error.to_string()
        };
        for (text, words) in [
            (format(&AT, Stream(1), "stdout"), "belongs to stream 0x00000001"),
            (format(&AT, STREAM, "fifo"), "was recorded for the sink fifo"),
            ("seqcast-position 2\nnew things\n".into(), "has format 2"),
            ("hello\n".into(), "is no position"),
            (String::new(), "is no position"),
        ] {
            fs::write(&path, text).unwrap();
            let error = open();
            assert!(error.contains(words) && error.contains("c.position"), "{error}");
            assert!(error.contains("move this file away"), "{error}");
        }
    }
}

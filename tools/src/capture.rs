//! Watching what a running engine sends and receives, as a capture.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use seqcast_engine::capture::record::{HEAD, Head};
use seqcast_engine::capture::request::{MAGIC, Request};

use crate::pcapng::{Packet, Writer};

/// How long to wait for records before looking at anything else.
const LOOK: Duration = Duration::from_millis(100);
/// How long an engine may take to say whether it lets a watcher in.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest record: a datagram.
const LONGEST: usize = HEAD + u16::MAX as usize;
const BUFFER: usize = 1 << 20;

/// What comes from an engine.
#[derive(Clone, Copy, Debug)]
pub enum Next<'a> {
    /// A frame, or the first bytes of one.
    Frame(Head, &'a [u8]),
    /// Nothing for a moment.
    Quiet,
    /// The engine has ended.
    End,
}

/// A watched engine.
#[derive(Debug)]
pub struct Feed {
    socket: UnixStream,
    about: String,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Feed {
    /// Attaches at an engine's socket.
    ///
    /// # Errors
    /// When there is no engine behind it, or it lets nobody in; says why.
    pub fn attach(path: &Path, request: &Request) -> Result<Feed> {
        let mut socket = UnixStream::connect(path).with_context(|| {
            format!(
                "no engine at {}: it needs `capture = \"PATH\"` in its [engine], and must run as the same user",
                path.display()
            )
        })?;
        let what = || format!("the engine at {} does not answer", path.display());
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.write_all(&request.to_bytes()).with_context(what)?;
        let mut told = [0; MAGIC.len() + 3];
        socket.read_exact(&mut told).with_context(what)?;
        ensure!(
            told.starts_with(&MAGIC),
            "{} is the socket of something else",
            path.display()
        );
        let mut text = vec![0; usize::from(u16::from_le_bytes([told[9], told[10]]))];
        socket.read_exact(&mut text).with_context(what)?;
        let about = String::from_utf8_lossy(&text).into_owned();
        if told[8] != 0 {
            bail!("the engine at {} refuses: {about}", path.display());
        }
        socket.set_read_timeout(Some(LOOK))?;
        Ok(Feed {
            socket,
            about,
            buffer: vec![0; BUFFER].into(),
            start: 0,
            end: 0,
        })
    }

    /// The engine's name and link, for people.
    #[must_use]
    pub fn about(&self) -> &str {
        &self.about
    }

    /// Whether what comes next has still to be waited for.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        !matches!(self.whole(), Ok(Some(_)))
    }

    /// What comes next; waits for it a moment.
    ///
    /// # Errors
    /// When the socket fails, or what comes is no record.
    pub fn read(&mut self) -> Result<Next<'_>> {
        loop {
            if let Some(length) = self.whole()? {
                let record = &self.buffer[self.start + 4..self.start + 4 + length];
                self.start += 4 + length;
                let (head, frame) = record.split_first_chunk().context("a record without a head")?;
                return Ok(Next::Frame(Head::from_bytes(head), frame));
            }
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            match self.socket.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(Next::End),
                Ok(read) => self.end += read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Next::Quiet),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Next::Quiet),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Next::End),
                Err(error) => return Err(error).context("the engine's socket failed"),
            }
        }
    }

    /// Bytes of the record that lies whole in the buffer, if one does.
    fn whole(&self) -> Result<Option<usize>> {
        let Some((length, rest)) = self.buffer[self.start..self.end].split_first_chunk() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        ensure!(
            (HEAD..=LONGEST).contains(&length),
            "the engine speaks another format: use its own version of seqcast"
        );
        Ok((rest.len() >= length).then_some(length))
    }
}

/// Where a capture goes.
#[derive(Clone, Debug)]
pub enum Target {
    /// Standard output.
    Stdout,
    /// A file.
    File(PathBuf),
    /// Files with numbers, each of at most so many bytes, of which so many are kept.
    Files(PathBuf, u64, usize),
}

type Out = Writer<BufWriter<Box<dyn Write>>>;

/// A capture that is being written.
pub struct Capture {
    target: Target,
    about: String,
    out: Out,
    number: u32,
    /// Files that are kept, the oldest first.
    files: VecDeque<PathBuf>,
    /// Frames written to this file, and in all; those that the engine had no room for, the same.
    frames: [u64; 2],
    dropped: [u64; 2],
}

impl Capture {
    /// Begins a capture.
    ///
    /// # Errors
    /// When the target cannot be written.
    pub fn begin(target: Target, about: &str) -> Result<Capture> {
        let mut files = VecDeque::new();
        let out = open(&target, 1, about, &mut files)?;
        Ok(Capture {
            target,
            about: about.to_owned(),
            out,
            number: 1,
            files,
            frames: [0; 2],
            dropped: [0; 2],
        })
    }

    /// Writes a frame.
    ///
    /// # Errors
    /// When the target cannot be written.
    pub fn write(&mut self, head: &Head, frame: &[u8]) -> Result<()> {
        if let Target::Files(_, most, _) = self.target
            && self.frames[0] > 0
            && self.out.written() + frame.len() as u64 > most
        {
            self.end_file()?;
            self.number += 1;
            self.out = open(&self.target, self.number, &self.about, &mut self.files)?;
        }
        self.out.write(&Packet {
            time: head.time,
            from: head.from,
            to: head.to,
            way: Some(head.way),
            payload: frame,
            length: head.length as usize,
            dropped: head.dropped,
        })?;
        for at in 0..2 {
            self.frames[at] += 1;
            self.dropped[at] += u64::from(head.dropped);
        }
        Ok(())
    }

    /// Lets whoever reads along see what is written so far.
    ///
    /// # Errors
    /// When the target cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Frames written, and those that the engine had no room for.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.frames[1], self.dropped[1])
    }

    /// Ends the capture.
    ///
    /// # Errors
    /// When the target cannot be written.
    pub fn finish(mut self) -> Result<()> {
        self.end_file()
    }

    fn end_file(&mut self) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |d| d.as_nanos() as u64);
        self.out.statistics(now, self.frames[0], self.dropped[0])?;
        (self.frames[0], self.dropped[0]) = (0, 0);
        Ok(self.out.flush()?)
    }
}

/// `x.pcapng` as the fifth file is `x.00005.pcapng`.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!(".{number:05}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

fn open(target: &Target, number: u32, about: &str, files: &mut VecDeque<PathBuf>) -> Result<Out> {
    let create = |path: &Path| File::create(path).with_context(|| format!("cannot write {}", path.display()));
    let out: Box<dyn Write> = match target {
        Target::Stdout => Box::new(io::stdout()),
        Target::File(path) => Box::new(create(path)?),
        Target::Files(path, _, keep) => {
            let path = numbered(path, number);
            let file = create(&path)?;
            files.push_back(path);
            if files.len() > *keep
                && let Some(oldest) = files.pop_front()
            {
                fs::remove_file(&oldest).with_context(|| format!("cannot remove {}", oldest.display()))?;
            }
            Box::new(file)
        }
    };
    Ok(Writer::new(
        BufWriter::with_capacity(1 << 16, out),
        "seqcast engine",
        about,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use seqcast_engine::capture::record::Way;

    #[test]
    fn files_are_numbered_bounded_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pcapng");
        let head = Head {
            time: 1,
            dropped: 1,
            length: 1000,
            from: "10.0.0.1:1".parse().unwrap(),
            to: "239.1.1.1:2".parse().unwrap(),
            way: Way::In,
        };
        let mut capture = Capture::begin(Target::Files(path, 3000, 3), "test").unwrap();
        for _ in 0..20 {
            capture.write(&head, &[0; 1000]).unwrap();
        }
        assert_eq!(capture.counts(), (20, 20));
        capture.finish().unwrap();
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap())
            .map(|e| (e.file_name().into_string().unwrap(), e.metadata().unwrap().len()))
            .collect();
        names.sort();
        let found: Vec<_> = names.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(found, ["x.00008.pcapng", "x.00009.pcapng", "x.00010.pcapng"]);
        assert!(names.iter().all(|(_, length)| *length <= 3200), "{names:?}");
    }
}

//! Journals: append-only files that hold delivered messages with all that is known of each.
//!
//! `docs/delivery.md` has the format to the byte. A record is good when its checksum fits; the
//! first that is not ends the journal, and whoever opens it for writing cuts it there.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use seqcast_proto::seq::{Seq, Session, Stream};

use super::item::Item;

const MAGIC: [u8; 8] = *b"SEQCJRNL";
const VERSION: u16 = 1;
/// Bytes of the file's header.
pub const FILE_HEADER: usize = 32;
/// Bytes of a record's header.
pub const RECORD_HEADER: usize = 32;
/// Longest subject and payload together, in bytes.
const LONGEST: usize = 2 * u16::MAX as usize;

/// The header of a journal of `stream`.
pub(super) fn header(stream: Stream) -> [u8; FILE_HEADER] {
    let mut bytes = [0; FILE_HEADER];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
    bytes[10..12].copy_from_slice(&(FILE_HEADER as u16).to_le_bytes());
    bytes[12..16].copy_from_slice(&stream.0.to_le_bytes());
    let crc = crc_fast::crc32_iscsi(&bytes[..28]);
    bytes[28..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The stream of a journal with this header, or what is wrong with it.
fn parse_header(bytes: &[u8; FILE_HEADER]) -> Result<Stream, String> {
    if bytes[..8] != MAGIC {
        return Err("is no journal".into());
    }
    let version = u16::from_le_bytes([bytes[8], bytes[9]]);
    if version != VERSION {
        return Err(format!(
            "is a journal of format {version}; this program knows format {VERSION}"
        ));
    }
    if crc_fast::crc32_iscsi(&bytes[..28]).to_le_bytes() != bytes[28..] {
        return Err("is a journal with a damaged header".into());
    }
    Ok(Stream(u32_at(bytes, 12)))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

/// Appends one message. `scratch` is overwritten.
pub(super) fn write(out: &mut impl Write, item: &Item<'_>, scratch: &mut Vec<u8>) -> io::Result<()> {
    let (subject, payload) = (item.subject, item.payload);
    scratch.clear();
    scratch.extend([0; 4]);
    // The protocol's messages have 16-bit lengths.
    scratch.extend((payload.len() as u32).to_le_bytes());
    scratch.extend((subject.len() as u16).to_le_bytes());
    scratch.extend(item.flags.to_le_bytes());
    scratch.extend(item.session.0.to_le_bytes());
    scratch.extend(item.seq.0.to_le_bytes());
    scratch.extend([0; 4]);
    scratch.extend(item.time.to_le_bytes());
    scratch.extend(subject);
    scratch.extend(payload);
    scratch.resize(scratch.len().next_multiple_of(8), 0);
    let crc = crc_fast::crc32_iscsi(&scratch[4..]);
    scratch[..4].copy_from_slice(&crc.to_le_bytes());
    out.write_all(scratch)
}

/// Why a journal cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Not a journal, or one of another format.
    #[error("{0}")]
    Foreign(String),
    /// The record at this offset is cut or damaged: a crash while it was written, or a bad disk.
    #[error("the record at byte {0} is cut or damaged")]
    Torn(u64),
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads a journal from its start, in constant memory.
#[derive(Debug)]
pub struct Reader<R> {
    source: BufReader<R>,
    stream: Stream,
    offset: u64,
    record: Vec<u8>,
}

impl Reader<File> {
    /// Opens a journal file.
    ///
    /// # Errors
    /// When it cannot be opened or is no journal.
    pub fn open(path: &Path) -> Result<Reader<File>, ReadError> {
        Reader::new(File::open(path)?)
    }
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// When there is none, or one of another format.
    pub fn new(source: R) -> Result<Reader<R>, ReadError> {
        let mut source = BufReader::with_capacity(1 << 18, source);
        let mut header = [0; FILE_HEADER];
        if read_up_to(&mut source, &mut header)? < FILE_HEADER {
            return Err(ReadError::Foreign("is too short for a journal".into()));
        }
        let stream = parse_header(&header).map_err(ReadError::Foreign)?;
        Ok(Reader {
            source,
            stream,
            offset: FILE_HEADER as u64,
            record: Vec::new(),
        })
    }

    /// The stream that the journal holds.
    #[must_use]
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// Where the next record begins: the length of the journal up to here, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next message, or `None` at the end.
    ///
    /// # Errors
    /// When the record is cut or damaged, or the file cannot be read.
    pub fn next_item(&mut self) -> Result<Option<Item<'_>>, ReadError> {
        let torn = ReadError::Torn(self.offset);
        self.record.resize(RECORD_HEADER, 0);
        match read_up_to(&mut self.source, &mut self.record)? {
            0 => return Ok(None),
            RECORD_HEADER => {}
            _ => return Err(torn),
        }
        let payload_len = u32_at(&self.record, 4) as usize;
        let subject_len = usize::from(u16::from_le_bytes([self.record[8], self.record[9]]));
        let body = subject_len.saturating_add(payload_len);
        if body > LONGEST {
            return Err(torn);
        }
        let size = (RECORD_HEADER + body).next_multiple_of(8);
        self.record.resize(size, 0);
        if read_up_to(&mut self.source, &mut self.record[RECORD_HEADER..])? < size - RECORD_HEADER
            || crc_fast::crc32_iscsi(&self.record[4..]) != u32_at(&self.record, 0)
        {
            return Err(torn);
        }
        self.offset += size as u64;
        let record = &self.record;
        let mut time = [0; 8];
        time.copy_from_slice(&record[24..32]);
        let payload_at = RECORD_HEADER + subject_len;
        Ok(Some(Item {
            session: Session(u32_at(record, 12)),
            seq: Seq(u32_at(record, 16)),
            time: u64::from_le_bytes(time),
            flags: u16::from_le_bytes([record[10], record[11]]),
            subject: &record[RECORD_HEADER..payload_at],
            payload: &record[payload_at..payload_at + payload_len],
        }))
    }
}

/// Fills `into` as far as the source has bytes.
fn read_up_to(source: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < into.len() {
        match source.read(&mut into[read..]) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// What a journal was found to hold.
pub(super) struct Found {
    /// Bytes up to the end of the last good record.
    pub(super) length: u64,
    /// The last message.
    pub(super) last: Option<(Session, Seq)>,
}

/// Looks through a whole journal of `stream`.
pub(super) fn scan(path: &Path, stream: Stream) -> io::Result<Found> {
    let refuse = |why: String| {
        let text = format!("{why}: name another file, or move this one away");
        io::Error::new(io::ErrorKind::InvalidData, text)
    };
    let mut reader = match Reader::open(path) {
        Ok(reader) => reader,
        Err(ReadError::Io(error)) => return Err(error),
        Err(error) => return Err(refuse(error.to_string())),
    };
    if reader.stream() != stream {
        return Err(refuse(format!("is a journal of stream {}", reader.stream())));
    }
    let mut last = None;
    loop {
        match reader.next_item() {
            Ok(Some(item)) => last = Some((item.session, item.seq)),
            Ok(None) | Err(ReadError::Torn(_) | ReadError::Foreign(_)) => {
                let length = reader.offset();
                return Ok(Found { length, last });
            }
            Err(ReadError::Io(error)) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::item::flags;
    use super::*;

    const STREAM: Stream = Stream(0x5201_0203);

    fn item<'a>(seq: u32, subject: &'a [u8], payload: &'a [u8]) -> Item<'a> {
        Item {
            session: Session(0x0a0b_0c0d),
            seq: Seq(seq),
            time: 0x1122_3344_5566_7788,
            flags: flags::REPAIRED | flags::LATE,
            subject,
            payload,
        }
    }

    fn journal(items: &[Item<'_>]) -> Vec<u8> {
        let mut bytes = header(STREAM).to_vec();
        items
            .iter()
            .for_each(|i| write(&mut bytes, i, &mut Vec::new()).unwrap());
        bytes
    }

    #[test]
    fn the_format_is_what_the_documentation_says() {
        let bytes = journal(&[item(7, b"a.b", b"hello!")]);
        assert_eq!(&bytes[..16], b"SEQCJRNL\x01\x00\x20\x00\x03\x02\x01\x52");
        let record = &bytes[FILE_HEADER..];
        assert_eq!(record.len(), 48);
        assert_eq!(record[..4], crc_fast::crc32_iscsi(&record[4..]).to_le_bytes());
        assert_eq!(
            record[4..],
            [
                b"\x06\0\0\0\x03\0\x03\0\x0d\x0c\x0b\x0a\x07\0\0\0\0\0\0\0".as_slice(),
                b"\x88\x77\x66\x55\x44\x33\x22\x11a.bhello!\0\0\0\0\0\0\0",
            ]
            .concat()
        );
    }

    #[test]
    fn messages_come_back_and_a_torn_tail_is_found_wherever_it_is_cut() {
        let longest = vec![9; usize::from(u16::MAX)];
        let items = [item(1, b"", b""), item(2, b"x", &longest), item(3, b"sub", b"tail")];
        let bytes = journal(&items);
        let mut reader = Reader::new(&bytes[..]).unwrap();
        let mut ends = vec![reader.offset()];
        for want in &items {
            assert_eq!(reader.next_item().unwrap().as_ref(), Some(want));
            ends.push(reader.offset());
        }
        assert!(reader.next_item().unwrap().is_none());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        for cut in (FILE_HEADER..FILE_HEADER + 40).chain(bytes.len() - 60..=bytes.len()) {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let found = scan(&path, STREAM).unwrap();
            let want = ends.iter().rev().find(|e| **e <= cut as u64).unwrap();
            assert_eq!(found.length, *want, "cut at {cut}");
        }
        for at in FILE_HEADER..FILE_HEADER + 32 {
            let mut bad = bytes.clone();
            bad[at] ^= 0x40;
            std::fs::write(&path, &bad).unwrap();
            assert_eq!(scan(&path, STREAM).unwrap().length, FILE_HEADER as u64, "byte {at}");
        }
    }

    #[test]
    fn other_files_are_refused_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let mut newer = header(STREAM);
        newer[8] = 2;
        for (bytes, words) in [
            (b"short".to_vec(), "too short"),
            (vec![b'x'; 100], "is no journal"),
            (newer.to_vec(), "format 2"),
            (header(Stream(1)).to_vec(), "stream 0x00000001"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = scan(&path, STREAM).err().unwrap().to_string();
            assert!(error.contains(words) && error.contains("move this one away"), "{error}");
        }
    }
}

//! The format as `docs/archive.md` has it, to the byte: a directory made here by hand from that page alone is an
//! archive, and what an archive writes is that directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use seqcast_archive::{Archive, Options, Reader, SessionMeta, SyncPolicy};
use seqcast_proto::seq::{Seq, SeqRange, Session, Stream};

const STREAM: u32 = 0x0102_1388;
const SESSION: u32 = 1_795_374_220;
const BEFORE: u32 = 1_795_000_000;
const AFTER: u32 = 1_795_400_000;
const ORIGIN: u32 = 0xA1B2_C3D4;
const USER: u64 = 0x1122_3344_5566_7788;
const SEGMENT: usize = 1 << 16;
/// Number, messages, flags, send and receive time, block.
type Fields = (u32, u16, u16, u64, u64, &'static [u8]);
const RECORDS: [Fields; 3] = [
    (
        1,
        3,
        0x8001,
        1_772_461_800_000_000_000,
        1_772_461_800_000_000_500,
        b"abcde",
    ),
    (131_071, 2, 0, 7, 8, b"over the end of a piece of index"),
    (10, 1, 0, 9, u64::MAX, b""),
];
const LOST: (u32, u32) = (5, 6);

fn options() -> Options {
    Options {
        segment_bytes: SEGMENT as u64,
        sync: SyncPolicy::None,
        helper: false,
        ..Options::default()
    }
}

/// CRC32C bit by bit: the iSCSI polynomial, reflected, inverted before and after.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 }
        })
    })
}

/// A frame: magic, version 1, stream, words of 32 bits, zeros up to `len`, checksum.
fn sealed(magic: &[u8; 8], words: &[u32], len: Option<usize>) -> Vec<u8> {
    let mut bytes = magic.to_vec();
    for word in [1, STREAM].iter().chain(words) {
        bytes.extend(word.to_le_bytes());
    }
    bytes.resize(len.map_or(bytes.len(), |len| len - 4), 0);
    bytes.extend(crc(&bytes).to_le_bytes());
    bytes
}

fn halves(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}

/// A record of a segment's first generation or a later one, padded.
fn record(generation: u32, first: u32, count: u16, flags: u16, send: u64, receive: u64, block: &[u8]) -> Vec<u8> {
    let length = 32 + block.len() as u32;
    let mut checked = first.to_le_bytes().to_vec();
    checked.extend(count.to_le_bytes());
    checked.extend(flags.to_le_bytes());
    checked.extend(send.to_le_bytes());
    checked.extend(receive.to_le_bytes());
    checked.extend(block);
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend((crc(&checked) ^ generation ^ length).to_le_bytes());
    bytes.extend(checked);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// The files of an archive closed in order, by path, as the page describes them.
fn by_hand(identity: u32, generation: u32) -> BTreeMap<String, Vec<u8>> {
    let mut segment = sealed(b"SEQCSEG\0", &[SESSION, 1, generation, SEGMENT as u32], Some(64));
    let mut index = BTreeMap::from([(0, vec![0; 1 << 20]), (1, vec![0; 1 << 20])]);
    for (first, count, flags, send, receive, block) in RECORDS {
        let position = 1 << 32 | segment.len() as u64;
        for number in first..first + u32::from(count) {
            let chunk: &mut Vec<u8> = index.get_mut(&(number >> 17)).unwrap();
            let at = (number & 0x1ffff) as usize * 8;
            chunk[at..at + 8].copy_from_slice(&position.to_le_bytes());
        }
        segment.extend(record(generation, first, count, flags, send, receive, block));
    }
    segment.extend(record(generation, LOST.0, 0, 1, 0, 0, &LOST.1.to_le_bytes()));
    segment.extend(record(generation, 131_072, 0, 2, 0, 0, &AFTER.to_le_bytes()));
    let end = segment.len() as u32;
    segment.resize(SEGMENT, 0);

    // Clean and ended; true for ever; tail, floor, last number, next session; how many of what.
    let mut checkpoint = vec![SESSION, 3, 0, 0, 0, 0, end, 1, 0, 131_072, AFTER, 1, 3, 1];
    checkpoint.extend([1, SEGMENT as u32, end, 131_072]);
    checkpoint.extend([1, 3, 10, 10, 131_071, 131_072]);
    checkpoint.extend([LOST.0, LOST.1]);
    let [low, high] = halves(USER);
    let session = [SESSION, BEFORE, ORIGIN, low, high];
    let dir = format!("{SESSION:010}");
    let mut files = BTreeMap::from([
        ("archive".to_owned(), sealed(b"SEQCARC\0", &[identity], None)),
        (format!("{dir}/session"), sealed(b"SEQCSES\0", &session, None)),
        (format!("{dir}/checkpoint"), sealed(b"SEQCCKP\0", &checkpoint, None)),
        (format!("{dir}/00000001.log"), segment),
    ]);
    for (chunk, bytes) in index {
        files.insert(format!("{dir}/{chunk:04x}.idx"), bytes);
    }
    files
}

fn lay_out(dir: &Path, files: &BTreeMap<String, Vec<u8>>) {
    fs::create_dir(dir.join(format!("{SESSION:010}"))).unwrap();
    for (name, bytes) in files {
        fs::write(dir.join(name), bytes).unwrap();
    }
}

fn assert_has_all(archive: &Archive) {
    let log = archive.session(Session(SESSION)).unwrap();
    let meta = log.meta();
    assert_eq!((meta.previous, meta.origin, meta.user), (Session(BEFORE), ORIGIN, USER));
    for (first, count, flags, send, receive, block) in RECORDS {
        for number in first..first + u32::from(count) {
            let found = log.read(Seq(number)).unwrap();
            assert_eq!((found.first, found.count, found.flags), (Seq(first), count, flags));
            assert_eq!((found.send_ns, found.recv_ns, found.block), (send, receive, block));
        }
    }
    assert_eq!(log.stored().total(), 6);
    assert_eq!(log.lost().as_slice(), [SeqRange::of(Seq(LOST.0), 2).unwrap()]);
    assert_eq!(log.end(), Some((Seq(131_072), Session(AFTER))));
}

#[test]
fn a_directory_made_from_the_page_is_an_archive() {
    // A recycled segment's generation is any; the records' checksums have it.
    for generation in [1, 0xDEAD_BEEF] {
        let dir = tempfile::tempdir().unwrap();
        lay_out(dir.path(), &by_hand(77, generation));
        let reader = Reader::open(dir.path()).unwrap();
        assert_eq!((reader.stream(), reader.identity()), (Stream(STREAM), 77));
        let mut session = reader.session(Session(SESSION)).unwrap();
        let verified = session.verify(|_| {}).unwrap();
        assert_eq!((verified.progress.records, verified.damage), (3, Vec::new()));
        let order: Vec<u32> = session.in_order(Seq(1)).map(|found| found.unwrap().first.0).collect();
        assert_eq!(order, [1, 10, 131_071]);

        let archive = Archive::open(dir.path(), Stream(STREAM), options()).unwrap();
        assert_eq!((archive.identity(), archive.recovery()), (77, &[][..]));
        assert_has_all(&archive);
        drop(archive);

        // The records alone say as much, but for what only the other small files know.
        fs::remove_file(dir.path().join(format!("{SESSION:010}/checkpoint"))).unwrap();
        for chunk in ["0000", "0001"] {
            fs::remove_file(dir.path().join(format!("{SESSION:010}/{chunk}.idx"))).unwrap();
        }
        assert_has_all(&Archive::open(dir.path(), Stream(STREAM), options()).unwrap());
    }
}

#[test]
fn an_archive_writes_what_the_page_says() {
    let dir = tempfile::tempdir().unwrap();
    let mut archive = Archive::open(dir.path(), Stream(STREAM), options()).unwrap();
    let identity = archive.identity();
    let meta = SessionMeta {
        previous: Session(BEFORE),
        origin: ORIGIN,
        user: USER,
    };
    let log = archive.create_session(Session(SESSION), meta).unwrap();
    for (first, count, flags, send, receive, block) in RECORDS {
        log.append(Seq(first), count, send, receive, flags, block).unwrap();
    }
    log.mark_lost(SeqRange::of(Seq(LOST.0), 2).unwrap()).unwrap();
    log.close(Seq(131_072), Session(AFTER)).unwrap();
    archive.close().unwrap();

    let path = |name: &str| dir.path().join(format!("{SESSION:010}/{name}"));
    let header = fs::read(path("00000001.log")).unwrap();
    let generation = u32::from_le_bytes(header[24..28].try_into().unwrap());
    for (name, bytes) in by_hand(identity, generation) {
        let found = fs::read(dir.path().join(&name)).unwrap();
        let differ = found.iter().zip(&bytes).position(|(a, b)| a != b);
        assert_eq!((found.len(), differ), (bytes.len(), None), "{name}");
    }
    // Who looks on is told in `synced`, which nothing depends on: this start of the machine, and the log's end.
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let boot = u128::from_str_radix(&boot.trim().replace('-', ""), 16)
        .unwrap()
        .to_be_bytes();
    let mut words = vec![SESSION];
    words.extend(boot.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)));
    let checkpoint = fs::read(path("checkpoint")).unwrap();
    words.extend(halves(u64::from_le_bytes(checkpoint[40..48].try_into().unwrap())));
    assert_eq!(fs::read(path("synced")).unwrap(), sealed(b"SEQCSYN\0", &words, None));
}

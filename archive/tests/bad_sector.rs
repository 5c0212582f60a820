//! Places that a disk cannot read. Played by the storage, which puts memory there that faults as such a
//! place does, by files cut under their mapping, and on a real file system over a device that fails.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use seqcast_archive::storage::{Crash, Faulty};
use seqcast_archive::{AppendError, Archive, Options, Reader, SessionLog, SessionMeta, SyncPolicy, What};
use seqcast_proto::seq::{Seq, Session, Stream};

const STREAM: Stream = Stream(1);
const SESSION: Session = Session(5);
const META: SessionMeta = SessionMeta {
    previous: Session::NONE,
    origin: 0,
    user: 0,
};
const PAGE: usize = 4096;
/// Three records fill somewhat more than a page, 49 a segment.
const BLOCK: usize = 1300;

fn options() -> Options {
    Options {
        segment_bytes: 1 << 16,
        sync: SyncPolicy::None,
        max_bytes: None,
        reserve: 0,
        helper: false,
    }
}

fn append(log: &mut SessionLog, seq: u32) -> Result<(), AppendError> {
    log.append(Seq(seq), 1, 1, 2, 0, &[seq as u8; BLOCK])
}

fn filled(disk: &Arc<Faulty>, records: u32) -> Archive {
    let mut archive = Archive::open_on(disk.clone(), STREAM, options()).unwrap();
    let log = archive.create_session(SESSION, META).unwrap();
    (1..=records).for_each(|seq| append(log, seq).unwrap());
    archive
}

/// The numbers up to `last` that can be read, each checked.
fn readable(log: &SessionLog, last: u32) -> Vec<u32> {
    let found = (1..=last).filter(|&seq| {
        let record = log.read(Seq(seq));
        record.inspect(|r| assert_eq!(r.block, [seq as u8; BLOCK])).is_some()
    });
    found.collect()
}

fn reopen(disk: &Arc<Faulty>) -> Archive {
    Archive::open_on(disk.clone(), STREAM, options()).unwrap()
}

/// The numbers from 1 to `last` without those.
fn but(last: u32, gone: std::ops::RangeInclusive<u32>) -> Vec<u32> {
    (1..=last).filter(|seq| !gone.contains(seq)).collect()
}

#[test]
fn a_record_that_cannot_be_read_is_damaged_and_the_others_are_not() {
    let disk = Arc::new(Faulty::new(1));
    filled(&disk, 200).close().unwrap();
    disk.spoil("0000000005/00000002.log", 5).unwrap();
    let mut archive = reopen(&disk);
    assert_eq!(archive.recovery(), &[]);
    let log = archive.session_mut(SESSION).unwrap();
    // Bytes 20480 to 24575 of the second segment: its records 16 to 19.
    assert_eq!(readable(log, 200), but(200, 65..=68));
    assert_eq!(log.damaged(), 4);
    // The log goes on.
    append(log, 201).unwrap();
    assert_eq!(readable(log, 201), but(201, 65..=68));
    archive.close().unwrap();
}

#[test]
fn a_bad_place_of_the_index_hides_what_it_points_at_and_takes_no_records() {
    let disk = Arc::new(Faulty::new(1));
    filled(&disk, 400).close().unwrap();
    disk.spoil("0000000005/0000.idx", 0).unwrap();
    let mut archive = reopen(&disk);
    let log = archive.session_mut(SESSION).unwrap();
    assert_eq!(readable(log, 400), []);
    let refused = append(log, 401);
    assert!(
        matches!(&refused, Err(AppendError::Io(e)) if e.raw_os_error() == Some(5)),
        "{refused:?}"
    );
    assert!(!log.contains(Seq(401)), "what is refused is not stored");
    // Entry 512 is the first on the next page.
    append(log, 600).unwrap();
    assert_eq!(log.read(Seq(600)).unwrap().block, [600u32 as u8; BLOCK]);
    // After a crash the log is read anyway, and the index made anew.
    let disk = Arc::new(disk.crash(Crash::Kill).unwrap());
    let mut archive = reopen(&disk);
    let why = "the disk cannot read all of it";
    let removed = |n: &What| matches!(n, What::Removed { file, why: w } if file == "0000.idx" && *w == why);
    assert!(
        archive.recovery().iter().any(|n| removed(&n.what)),
        "{:?}",
        archive.recovery()
    );
    let log = archive.session_mut(SESSION).unwrap();
    assert_eq!(readable(log, 400), but(400, 0..=0));
    append(log, 402).unwrap();
}

#[test]
fn a_place_that_turns_bad_under_the_writer_stops_it_and_nothing_is_acknowledged_that_is_not_there() {
    let disk = Arc::new(Faulty::new(1));
    filled(&disk, 10).close().unwrap();
    // Record 10 ends at 13472, on page 3; record 12 reaches page 4.
    disk.spoil("0000000005/00000001.log", 4).unwrap();
    let mut archive = reopen(&disk);
    let log = archive.session_mut(SESSION).unwrap();
    append(log, 11).unwrap();
    append(log, 12).unwrap();
    let mut next = 13;
    let refused = loop {
        match append(log, next) {
            Ok(()) => next += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, AppendError::Io(_)), "{refused}");
    assert!(matches!(append(log, next), Err(AppendError::Io(_))), "it stays so");
    assert!(!log.contains(Seq(next)));
    let acknowledged = next - 1;
    let disk = Arc::new(disk.crash(Crash::Kill).unwrap());
    let mut archive = reopen(&disk);
    let unreadable = |n: &What| matches!(n, What::Unreadable { file, .. } if file == "00000001.log");
    assert!(
        archive.recovery().iter().any(|n| unreadable(&n.what)),
        "{:?}",
        archive.recovery()
    );
    let log = archive.session_mut(SESSION).unwrap();
    assert_eq!(readable(log, 100), but(acknowledged, 0..=0));
    // Asked for again, it comes into a new segment.
    for seq in next..next + 100 {
        append(log, seq).unwrap();
    }
    assert_eq!(readable(log, next + 99), but(next + 99, 0..=0));
}

#[test]
fn recovery_reads_on_behind_a_bad_place() {
    for page in [0, 1, 9, 15] {
        let disk = Arc::new(Faulty::new(1));
        let archive = filled(&disk, 120);
        disk.spoil("0000000005/00000003.log", page).unwrap();
        assert_eq!(archive.session(SESSION).unwrap().stored().total(), 120);
        let disk = Arc::new(disk.crash(Crash::Kill).unwrap());
        let mut archive = reopen(&disk);
        let log = archive.session_mut(SESSION).unwrap();
        let kept = readable(log, 120);
        assert_eq!(kept[..98], but(98, 0..=0), "page {page}");
        match page {
            // Without its header a segment is none.
            0 => assert_eq!(kept.len(), 98),
            1 => assert_eq!(kept, but(120, 102..=105)),
            // Nothing is there yet.
            _ => assert_eq!(kept, but(120, 0..=0), "page {page}"),
        }
        for seq in 121..=300 {
            append(log, seq).unwrap();
        }
        assert_eq!(readable(log, 300).len(), kept.len() + 180, "page {page}");
        archive.close().unwrap();
    }
}

#[test]
fn a_checkpoint_that_cannot_be_read_is_done_without() {
    let disk = Arc::new(Faulty::new(1));
    filled(&disk, 100).close().unwrap();
    disk.spoil("0000000005/checkpoint", 0).unwrap();
    let archive = reopen(&disk);
    let why = "the disk cannot read the checkpoint";
    assert!(
        archive.recovery().iter().any(|n| n.what == What::NoCheckpoint { why }),
        "{:?}",
        archive.recovery()
    );
    assert_eq!(readable(archive.session(SESSION).unwrap(), 100).len(), 100);
    archive.close().unwrap();
    disk.spoil("archive", 0).unwrap();
    let refused = Archive::open_on(disk, STREAM, options()).unwrap_err().to_string();
    assert!(
        refused.contains("cannot read") && refused.contains("archive"),
        "{refused}"
    );
}

fn segment(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("0000000005/{number:08x}.log"))
}

#[test]
fn a_file_cut_under_its_mapping_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut archive = Archive::open(dir.path(), STREAM, options()).unwrap();
    let log = archive.create_session(SESSION, META).unwrap();
    (1..=200).for_each(|seq| append(log, seq).unwrap());
    for number in [1, 5] {
        let file = OpenOptions::new()
            .write(true)
            .open(segment(dir.path(), number))
            .unwrap();
        file.set_len(2 * PAGE as u64).unwrap();
    }
    // The first two pages hold five or six records; 197 to 200 are in the fifth segment.
    let kept = readable(log, 200);
    assert_eq!(kept, but(200, 7..=49));
    let error = (201..300)
        .find_map(|seq| append(log, seq).err())
        .expect("it is noticed");
    assert!(matches!(error, AppendError::Io(_)), "{error}");
    drop(archive);
    let archive = Archive::open(dir.path(), STREAM, options()).unwrap();
    assert!(readable(archive.session(SESSION).unwrap(), 200).starts_with(&[1, 2, 3, 4, 5, 6, 50]));
}

/// A file system on a loop device; what lies behind the end of its file cannot be read.
struct Device {
    dir: tempfile::TempDir,
    mounted: bool,
}

impl Device {
    /// `None` where such a thing cannot be made.
    fn new() -> Option<Device> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        fs::create_dir(dir.path().join("mount")).unwrap();
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-O", "^has_journal"])
            .arg(&image)
            .output();
        if !made.is_ok_and(|m| m.status.success()) {
            return None;
        }
        let mut device = Device { dir, mounted: false };
        device.mounted = device.mount();
        device.mounted.then_some(device)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mount(&self) -> bool {
        let mut mount = Command::new("mount");
        mount
            .args(["-o", "loop"])
            .arg(self.path("image"))
            .arg(self.path("mount"));
        mount.output().is_ok_and(|m| m.status.success())
    }

    /// Forgets what of the file system is in memory.
    fn remount(&mut self) {
        self.unmount();
        self.mounted = self.mount();
        assert!(self.mounted);
    }

    fn unmount(&mut self) {
        if std::mem::take(&mut self.mounted) {
            let _ = Command::new("umount").arg(self.path("mount")).output();
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.unmount();
    }
}

#[test]
fn root_a_bad_sector_of_a_real_disk_costs_what_lies_there() {
    let Some(mut device) = Device::new() else {
        eprintln!("skipped: needs root, mkfs.ext4 and a loop device");
        return;
    };
    let dir = device.path("mount").join("archive");
    let mut archive = Archive::open(&dir, STREAM, options()).unwrap();
    let log = archive.create_session(SESSION, META).unwrap();
    (1..=2_000).for_each(|seq| append(log, seq).unwrap());
    archive.close().unwrap();
    // Where on the disk a record in the middle lies.
    let image = OpenOptions::new().read(true).open(device.path("image")).unwrap();
    device.remount();
    let mut bytes = vec![0; 64 << 20];
    image.read_exact_at(&mut bytes, 0).unwrap();
    let mark = [1_000u32 as u8; BLOCK];
    let places: Vec<u64> = (0..bytes.len() - BLOCK)
        .step_by(8)
        .filter(|&at| bytes[at..at + BLOCK] == mark)
        .map(|at| at as u64)
        .collect();
    assert!(!places.is_empty());
    let last = *places.last().unwrap();
    // The device ends there from now on: what follows cannot be read.
    let cut = last / PAGE as u64 * PAGE as u64;
    OpenOptions::new()
        .write(true)
        .open(device.path("image"))
        .unwrap()
        .set_len(cut)
        .unwrap();

    let reader = Reader::open(&dir).unwrap();
    let mut session = reader.session(SESSION).unwrap();
    let verified = session.verify(|_| {}).unwrap();
    assert!(verified.damaged > 0);
    assert!(
        verified
            .damage
            .iter()
            .any(|d| d.to_string().contains("the disk cannot read it")),
        "{:?}",
        verified.damage.first()
    );
    let read = session.in_order(Seq::FIRST).filter(|r| r.is_ok()).count();
    assert!((500..2_000).contains(&read), "{read}");
    // The writer's own look-ups, through mappings.
    let archive = Archive::open(&dir, STREAM, options()).unwrap();
    assert_eq!(readable(archive.session(SESSION).unwrap(), 2_000).len(), read);
}

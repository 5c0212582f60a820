//! `seqcast replay`, `seqcast archive sync` and `seqcast archive repair`, run on archives that the
//! archive crate made. Streams are played over loopback.

use std::cell::{Cell, RefCell};
use std::fs::{self, OpenOptions};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use seqcast_archive::{Archive, Options, Reader, SessionLog, SessionMeta, SyncPolicy};
use seqcast_engine::config::Config;
use seqcast_engine::link::udp::{UdpConfig, UdpLink};
use seqcast_engine::node::{Node, Programs, StopRequests};
use seqcast_proto::io::{Application, Delivery, Event};
use seqcast_proto::seq::{Seq, SeqRange, Session, Stream};
use seqcast_proto::wire::{Message, put_message};
use seqcast_tools::archive::pace::Speed;
use seqcast_tools::archive::replay::{self, Stage, Stop, Stopped};
use seqcast_tools::archive::select::{Selection, Taken};
use seqcast_tools::archive::sync;
use tempfile::TempDir;

const STREAM: Stream = Stream(0x0102_1388);
const T0: u64 = 1_772_461_800_000_000_000; // 2026-03-02T14:30:00Z
const MS: u64 = 1_000_000;
const OLD: Session = Session(1_000);
const NEW: Session = Session(2_000);
const OLD_META: SessionMeta = SessionMeta {
    previous: Session::NONE,
    origin: 7,
    user: 0,
};
const NEW_META: SessionMeta = SessionMeta {
    previous: OLD,
    origin: 8,
    user: 0,
};

fn options() -> Options {
    Options {
        segment_bytes: 1 << 16,
        sync: SyncPolicy::None,
        helper: false,
        ..Options::default()
    }
}

fn subject(seq: u32) -> String {
    format!("s.{}", seq % 7)
}

fn payload(seq: u32) -> String {
    format!("message {seq} {}", "x".repeat(seq as usize % 90))
}

/// A record of three messages; it was sent as many ms after [`T0`] as its first number says.
fn append(log: &mut SessionLog, first: u32) {
    let mut block = Vec::new();
    for seq in first..first + 3 {
        let (subject, payload) = (subject(seq), payload(seq));
        let message = Message {
            subject: subject.as_bytes(),
            payload: payload.as_bytes(),
        };
        let at = block.len();
        block.resize(at + message.encoded_len(), 0);
        put_message(&mut block[at..], &message).unwrap();
    }
    let sent = T0 + u64::from(first) * MS;
    log.append(Seq(first), 3, sent, sent + 500, 0, &block).unwrap();
}

/// First numbers of records up to the message `last`.
fn firsts(last: u32) -> impl Iterator<Item = u32> {
    (1..=last).step_by(3)
}

/// An archive whose old session has the messages 1 to 3000 but 601 to 603, which exist nowhere, and
/// whose new one has 1 to 30. Records whose first number `skip` names are left out.
fn make(dir: &Path, skip: impl Fn(u32) -> bool) {
    let mut archive = Archive::open(dir, STREAM, options()).unwrap();
    let log = archive.create_session(OLD, OLD_META).unwrap();
    // The archive got one record late.
    let late = 301;
    for first in firsts(3_000).filter(|&first| first != 601 && first != late && !skip(first)) {
        append(log, first);
    }
    if !skip(late) {
        append(log, late);
    }
    log.mark_lost(SeqRange::of(Seq(601), 3).unwrap()).unwrap();
    log.close(Seq(3_000), NEW).unwrap();
    let log = archive.create_session(NEW, NEW_META).unwrap();
    firsts(30).for_each(|first| append(log, first));
    archive.close().unwrap();
}

fn archive() -> (TempDir, PathBuf) {
    let files = tempfile::tempdir().unwrap();
    let dir = files.path().join("a");
    make(&dir, |_| false);
    (files, dir)
}

fn old_numbers() -> impl Iterator<Item = u32> {
    (1..=3_000).filter(|n| !(601..=603).contains(n))
}

fn seqcast(arguments: &[&str], dirs: &[&Path]) -> Command {
    // A "%" stands for the next directory.
    let mut dirs = dirs.iter();
    let mut command = Command::new(env!("CARGO_BIN_EXE_seqcast"));
    for words in arguments {
        for word in words.split_whitespace() {
            match word {
                "%" => command.arg(dirs.next().expect("a directory for each %")),
                word => command.arg(word),
            };
        }
    }
    command
}

fn run(arguments: &str, dirs: &[&Path]) -> Output {
    seqcast(&[arguments], dirs).output().unwrap()
}

fn succeed(arguments: &str, dirs: &[&Path]) -> String {
    let output = run(arguments, dirs);
    assert!(output.status.success(), "{arguments}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn lines(numbers: impl Iterator<Item = u32>) -> String {
    numbers.map(|n| payload(n) + "\n").collect()
}

#[test]
fn files_and_pipes_get_what_was_recorded_in_order() {
    let (files, dir) = archive();
    let out = files.path().join("out");
    let output = run("replay % --session 1000 --to-file % --format lines", &[&dir, &out]);
    let told = text(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("played 2997 messages of 999 frames"), "{told}");
    assert!(told.contains("3 messages left out that exist nowhere"), "{told}");
    assert_eq!(fs::read_to_string(&out).unwrap(), lines(old_numbers()));

    let all = succeed("replay % --session all --stdout --format lines", &[&dir]);
    assert_eq!(all, lines(old_numbers()) + &lines(1..=30));
    let part = "replay % --session last --from 5 --to 10 --speed 100x --stdout --format lines";
    assert_eq!(succeed(part, &[&dir]), lines(5..=10));
    // From the record sent at 10 ms to the one sent at 16 ms.
    let times = format!("--since @{} --until @{}", T0 + 8 * MS, T0 + 18 * MS);
    let part = format!("replay % --session last {times} --stdout --format lines");
    assert_eq!(succeed(&part, &[&dir]), lines(10..=18));
    assert_eq!(
        succeed(&format!("archive cat % --session last {times}"), &[&dir]),
        lines(10..=18)
    );
}

#[test]
fn wrong_options_are_refused_before_anything_is_touched() {
    let (files, dir) = archive();
    let out = files.path().join("out");
    for arguments in [
        "replay % --session last",
        "replay % --session last --stdout --to-file %",
        "replay % --session last --stdout --speed 0x",
        "replay % --session last --stream 239.81.0.1:5000",
        "replay % --session last --stdout --interface lo",
        "replay % --session last --stream 239.81.0.1:5000 --interface lo --format json",
    ] {
        assert_eq!(run(arguments, &[&dir, &out]).status.code(), Some(2), "{arguments}");
    }
    let output = run("replay % --session 3 --to-file %", &[&dir, &out]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("session 3 is not in this archive"));
    assert!(!out.exists());
}

/// A stage whose clock goes on by what it is told, and where a frame takes 5 ms for the first
/// hundred of them and nothing afterwards.
#[derive(Default)]
struct Slow {
    now: Cell<u64>,
    put_at: Vec<(Seq, u64)>,
    stop_after: Option<usize>,
}

impl Stage for Slow {
    fn now(&self) -> u64 {
        self.now.get()
    }

    fn wait(&mut self, due: u64) -> Result<()> {
        if self.stop_after == Some(self.put_at.len()) {
            return Err(Stopped.into());
        }
        self.now.set(self.now.get().max(due));
        Ok(())
    }

    fn put(&mut self, taken: &Taken<'_>) -> Result<()> {
        self.put_at.push((taken.block.first(), self.now.get()));
        if self.put_at.len() <= 100 {
            self.now.set(self.now.get() + 5 * MS);
        }
        Ok(())
    }
}

#[test]
fn a_slow_start_delays_nothing_that_comes_after_it() {
    let (_files, dir) = archive();
    let archive = Reader::open(&dir).unwrap();
    let session = |session| Selection {
        session,
        ..Selection::default()
    };
    let old = session(seqcast_tools::archive::select::Which::One(OLD));
    let mut stage = Slow::default();
    stage.now.set(7);
    let speed: Speed = "1x".parse().unwrap();
    let played = replay::play(&archive, &old, speed, &mut stage, &mut |_| {}).unwrap();
    assert_eq!((played.messages, played.frames), (2_997, 999));
    // A record every 3 ms, each taking 5: late by 2 ms more each time.
    assert_eq!(stage.put_at[50], (Seq(151), 7 + 250 * MS));
    // And on time again long before the end.
    for &(seq, at) in &stage.put_at[400..] {
        assert_eq!(at, 7 + u64::from(seq.0 - 1) * MS);
    }

    let mut stage = Slow {
        stop_after: Some(10),
        ..Slow::default()
    };
    let played = replay::play(&archive, &old, Speed::Max, &mut stage, &mut |_| {}).unwrap();
    assert_eq!((played.messages, played.walked), (30, None));
    assert_eq!(played.at, Some((OLD, Seq(30))));
}

/// What a subscriber got: each original frame's messages as (subject, payload), and whether the
/// session ended.
#[derive(Default)]
struct Got {
    blocks: Vec<Vec<(String, String)>>,
    lost: bool,
    ended: bool,
}

struct Handler(Rc<RefCell<Got>>);

impl Application for Handler {
    fn deliver(&mut self, delivery: &Delivery<'_>) -> bool {
        let messages = delivery.block.messages();
        let block = messages.map(|(_, m)| (text(m.subject), text(m.payload))).collect();
        self.0.borrow_mut().blocks.push(block);
        true
    }

    fn event(&mut self, event: Event) {
        let mut got = self.0.borrow_mut();
        got.lost |= matches!(event, Event::Lost { .. });
        got.ended |= matches!(event, Event::SessionEnded { .. });
    }
}

struct Subscriber {
    node: Node<UdpLink>,
    got: Rc<RefCell<Got>>,
    group: SocketAddrV4,
}

impl Subscriber {
    fn new() -> Subscriber {
        Subscriber::trusting("")
    }

    /// On a group of its own on loopback, with more keys of its table.
    fn trusting(trust: &str) -> Subscriber {
        let free = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        Subscriber::at(SocketAddrV4::new(Ipv4Addr::new(239, 77, 8, 1), port), trust)
    }

    fn at(group: SocketAddrV4, trust: &str) -> Subscriber {
        let config = format!(
            "[engine]\ninterface = \"lo\"\n[[subscribe]]\nstream = \"{group}\"\nfrom = \"session\"\nsink = {{ program = true }}\n{trust}"
        );
        let got = Rc::new(RefCell::default());
        let node = Node::open(
            &Config::parse(&config, Path::new("test")).unwrap(),
            UdpLink::open(UdpConfig::default()).unwrap(),
            1024,
            StopRequests::default(),
            Programs {
                handlers: vec![(group, Box::new(Handler(Rc::clone(&got))))],
                ..Programs::default()
            },
        );
        let node = node.unwrap();
        Subscriber { node, got, group }
    }

    /// Receives until it `has` what is waited for.
    fn until(&mut self, has: impl Fn(&Got) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !has(&self.got.borrow()) {
            assert!(Instant::now() < deadline, "{} frames", self.got.borrow().blocks.len());
            if !self.node.poll().unwrap() {
                self.node.rest(Duration::from_millis(10)).unwrap();
            }
        }
    }
}

/// Ends the program if the test fails.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Running {
        Running(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Its exit status and what it said.
    fn end(mut self) -> (Option<i32>, String) {
        let mut told = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        (self.0.wait().unwrap().code(), told)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn expected(numbers: impl Iterator<Item = u32>) -> Vec<(String, String)> {
    numbers.map(|n| (subject(n), payload(n))).collect()
}

#[test]
fn a_stream_carries_the_same_messages_again() {
    let (_files, dir) = archive();
    for (speed, session, numbers) in [
        ("max", "all", expected(old_numbers().chain(1..=30))),
        ("1x", "2000", expected(1..=30)),
    ] {
        let mut subscriber = Subscriber::new();
        let stream = format!("--session {session} --speed {speed} --stream {}", subscriber.group);
        let player = Running::start(seqcast(&["replay % --interface lo", &stream], &[&dir]));
        subscriber.until(|got| got.ended);
        let (code, told) = player.end();
        assert_eq!(code, Some(0), "{told}");
        let got = subscriber.got.borrow();
        assert!(!got.lost);
        assert_eq!(got.blocks.concat(), numbers, "{speed}");
        if speed == "1x" {
            assert!(got.blocks.iter().all(|block| block.len() == 3), "frames stay together");
            assert!(told.contains("30 messages in 10 frames"), "{told}");
        }
    }
}

#[test]
fn a_stream_is_played_under_a_key_that_its_receivers_need() {
    let (files, dir) = archive();
    let key = files.path().join("key");
    succeed("key new %", &[&key]);
    let mut holder = Subscriber::trusting(&format!("trust = {{ key = {key:?} }}"));
    let group = holder.group;
    let mut without = Subscriber::at(group, "");
    let stream = format!("--session all --stream {group}");
    let player = Running::start(seqcast(&["replay % --interface lo", &stream, "--key %"], &[&dir, &key]));
    holder.until(|got| got.ended);
    let (code, told) = player.end();
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(
        holder.got.borrow().blocks.concat(),
        expected(old_numbers().chain(1..=30))
    );
    let trust = &holder.node.report().trust[0];
    assert!(trust.opened > 100 && trust.forged + trust.unkeyed == 0, "{trust:?}");
    // Who has no key hears it all, and uses none of it.
    while without.node.poll().unwrap() {}
    let report = without.node.report();
    assert!(report.trust[0].keyed > 0, "{report:?}");
    assert!(without.got.borrow().blocks.is_empty());
}

#[test]
fn a_signal_ends_the_stream_in_order_and_a_group_in_use_is_refused() {
    let (_files, dir) = archive();
    let mut subscriber = Subscriber::new();
    // A frame every 3 s.
    let stream = format!(
        "replay % --session last --speed 0.001x --interface lo --stream {}",
        subscriber.group
    );
    let player = Running::start(seqcast(&[&stream], &[&dir]));
    subscriber.until(|got| !got.blocks.is_empty());

    let second = run(&stream, &[&dir]);
    assert_eq!(second.status.code(), Some(1));
    let told = text(&second.stderr);
    assert!(told.contains("replay to another group"), "{told}");

    // SAFETY: the child has not been waited for, so the number is still its own.
    assert_eq!(unsafe { libc::kill(player.0.id() as i32, libc::SIGINT) }, 0);
    subscriber.until(|got| got.ended);
    let (code, told) = player.end();
    assert_eq!(code, Some(130), "{told}");
    let got = subscriber.got.borrow();
    let count = got.blocks.concat().len() as u32;
    assert!(!got.lost && count < 30);
    assert_eq!(got.blocks.concat(), expected(1..=count));
}

#[test]
fn messages_that_fit_no_frame_are_named() {
    let (_files, dir) = archive();
    let subscriber = Subscriber::new();
    let mut archive = Archive::open(&dir, STREAM, options()).unwrap();
    let log = archive.session_mut(NEW).unwrap();
    let message = Message {
        subject: b"s",
        payload: &[7; 2_000],
    };
    let mut block = vec![0; message.encoded_len()];
    put_message(&mut block, &message).unwrap();
    log.append(Seq(31), 1, T0, T0, 0, &block).unwrap();
    archive.close().unwrap();
    let stream = format!("replay % --session last --interface lo --stream {}", subscriber.group);
    let output = run(&stream, &[&dir]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(told.contains("message 31 of session 2000 has 2001 bytes"), "{told}");
    assert!(succeed(&format!("{stream} --mtu 4000"), &[&dir]).is_empty());
}

/// Everything that two archives shall have in common.
fn contents(dir: &Path) -> String {
    let mut all = succeed("archive cat % --format json", &[dir]);
    let archive = Reader::open(dir).unwrap();
    for session in archive.sessions().unwrap() {
        let reader = archive.session(session).unwrap();
        all += &format!(
            "{session} {:?} {:?} {:?} {:?}\n",
            reader.meta(),
            reader.stored().as_slice(),
            reader.lost().as_slice(),
            reader.end()
        );
    }
    all
}

#[test]
fn an_archive_is_filled_from_another_once_and_for_all() {
    let (files, a) = archive();
    // Half of what the other has, records of other sizes cut by what is missing, no new session.
    let b = files.path().join("b");
    let mut half = Archive::open(&b, STREAM, options()).unwrap();
    let log = half.create_session(OLD, OLD_META).unwrap();
    firsts(1_500)
        .filter(|first| first % 2 == 0)
        .for_each(|first| append(log, first));
    append(log, 2_000); // 2000 to 2002, across two records of the other
    half.close().unwrap();

    let told = succeed("archive sync --from % --to %", &[&a, &b]);
    assert!(told.contains("1 sessions new, 3 messages newly known"), "{told}");
    let reader = |dir: &Path| Reader::open(dir).unwrap();
    let (from, to) = (reader(&a).session(OLD).unwrap(), reader(&b).session(OLD).unwrap());
    assert_eq!(from.stored().as_slice(), to.stored().as_slice());
    assert_eq!(succeed("archive cat %", &[&a]), succeed("archive cat %", &[&b]));
    for dir in [&a, &b] {
        assert!(!succeed("archive verify %", &[dir]).contains("DAMAGED"));
    }
    let records = succeed("archive verify %", &[&b]);
    let again = succeed("archive sync --from % --to %", &[&a, &b]);
    assert!(
        again.starts_with("0 messages in 0 records copied, 0 sessions new, 0 "),
        "{again}"
    );
    assert_eq!(succeed("archive verify %", &[&b]), records, "nothing is there twice");

    // A new archive gets the very same records.
    let c = files.path().join("c");
    succeed("archive sync --from % --to %", &[&a, &c]);
    assert_eq!(contents(&a), contents(&c));
}

#[test]
fn a_copy_that_was_cut_short_goes_on_where_it_ended() {
    let (files, a) = archive();
    let b = files.path().join("b");
    let from = Reader::open(&a).unwrap();
    let sessions = from.sessions().unwrap();
    let stop = Stop::default();
    let mut to = Archive::open(&b, STREAM, options()).unwrap();
    let stopped = sync::copy(&from, &sessions, &mut to, &stop, &mut |_, copied| {
        if copied.records == 100 {
            stop.store(2, std::sync::atomic::Ordering::Relaxed);
        }
    });
    assert!(stopped.unwrap_err().is::<Stopped>());
    to.close().unwrap();
    assert_eq!(Reader::open(&b).unwrap().session(OLD).unwrap().stored().total(), 300);
    let mut to = Archive::open(&b, STREAM, options()).unwrap();
    let copied = sync::copy(&from, &sessions, &mut to, &Arc::default(), &mut |_, _| {}).unwrap();
    to.close().unwrap();
    assert_eq!((copied.messages, copied.sessions), (2_697 + 30, 1));
    assert_eq!(contents(&a), contents(&b));
}

#[test]
fn a_target_in_use_another_stream_and_another_servers_session_are_refused() {
    let (files, a) = archive();
    let b = files.path().join("b");
    let fails = |dirs: &[&Path]| {
        let output = run("archive sync --from % --to %", dirs);
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    let open = Archive::open(&b, STREAM, options()).unwrap();
    assert!(fails(&[&a, &b]).contains("is in use"));
    drop(open);
    // A source in use is none the worse for it.
    let open = Archive::open(&a, STREAM, options()).unwrap();
    succeed("archive sync --from % --to %", &[&a, &b]);
    assert!(fails(&[&a, &a]).contains("is in use"));
    drop(open);

    let other = files.path().join("other");
    drop(Archive::open(&other, Stream(5), options()).unwrap());
    assert!(fails(&[&a, &other]).contains("give each stream its own directory"));
    let twin = files.path().join("twin");
    let mut archive = Archive::open(&twin, STREAM, options()).unwrap();
    let meta = SessionMeta { origin: 9, ..OLD_META };
    archive.create_session(OLD, meta).unwrap();
    archive.close().unwrap();
    assert!(fails(&[&a, &twin]).contains("two servers used the same session number"));
}

/// Overwrites the payloads of these messages of the old session where they are stored.
fn damage(dir: &Path, numbers: &[u32]) {
    let session = dir.join("0000001000");
    for entry in fs::read_dir(&session).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        for number in numbers {
            let wanted = format!("message {number} ");
            for at in 0..bytes.len() {
                if bytes[at..].starts_with(wanted.as_bytes()) {
                    let file = OpenOptions::new().write(true).open(&path).unwrap();
                    file.write_all_at(b"M", at as u64).unwrap();
                }
            }
        }
    }
}

#[test]
fn a_damaged_archive_is_mended_from_another() {
    let (files, a) = archive();
    let whole = contents(&a);
    let b = files.path().join("b");
    // What is missing here is there, but for a record that is damaged in both.
    make(&b, |first| first == 901);
    damage(&b, &[10, 1_501, 3_000]);
    damage(&a, &[1_501]);
    assert_eq!(run("archive verify %", &[&b]).status.code(), Some(1));

    let output = run("archive repair % --from %", &[&b, &a]);
    let told = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{told}{}", text(&output.stderr));
    for line in [
        "session 1000: damaged in 3 places",
        "session 1000: made anew with 2985 messages of its own and 9 of the other archive, lacks 3;",
        "session 2000: good, 10 records",
        "1 sessions were damaged; of them 0 cannot be mended, the others lack 3 messages",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    assert!(b.join("damaged-0000001000-1/session").exists());
    assert!(!succeed("archive verify %", &[&b]).contains("DAMAGED"));
    let here: Vec<u32> = old_numbers().filter(|n| !(1_501..=1_503).contains(n)).collect();
    let listed = succeed("archive cat % --session 1000", &[&b]);
    assert_eq!(listed, lines(here.into_iter()));

    // Once the other archive is whole, what is missing comes from there.
    fs::remove_dir_all(&a).unwrap();
    make(&a, |_| false);
    let told = succeed("archive repair % --from %", &[&b, &a]);
    assert!(told.contains("session 1000: fetched 3 messages"), "{told}");
    assert_eq!(contents(&b), whole);
}

#[test]
fn a_repair_alone_keeps_all_that_can_be_read() {
    let (_files, dir) = archive();
    damage(&dir, &[1_501]);
    // Without its checkpoint an engine would cut the segment at the damaged record.
    fs::remove_file(dir.join("0000001000/checkpoint")).unwrap();
    let output = run("archive repair %", &[&dir]);
    let told = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{told}");
    let here = old_numbers().filter(|n| !(1_501..=1_503).contains(n));
    assert_eq!(succeed("archive cat % --session 1000", &[&dir]), lines(here));
    assert!(succeed("archive repair %", &[&dir]).contains("0 sessions were damaged"));
}

#[test]
fn an_archive_in_use_is_not_repaired_and_a_good_one_stays_as_it_is() {
    let (_files, dir) = archive();
    let before = contents(&dir);
    let open = Archive::open(&dir, STREAM, options()).unwrap();
    let output = run("archive repair %", &[&dir]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("is in use"));
    drop(open);
    let told = succeed("archive repair %", &[&dir]);
    assert!(told.contains("session 1000: good, 999 records"), "{told}");
    assert_eq!(contents(&dir), before);
}

/// `cargo test -p seqcast-tools --features parquet --test replay`
#[cfg(feature = "parquet")]
#[test]
fn a_parquet_table_has_a_row_for_each_message() {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;

    let (files, dir) = archive();
    let out = files.path().join("table.parquet");
    succeed("archive export % --format parquet --out %", &[&dir, &out]);
    let reader = SerializedFileReader::new(fs::File::open(&out).unwrap()).unwrap();
    let columns = reader.metadata().file_metadata().schema_descr().columns().iter();
    let names: Vec<&str> = columns.map(|column| column.name()).collect();
    assert_eq!(
        names,
        ["session", "sequence", "send_time", "receive_time", "subject", "payload"]
    );
    let numbers: Vec<(u32, u32)> = old_numbers()
        .map(|n| (OLD.0, n))
        .chain((1..=30).map(|n| (NEW.0, n)))
        .collect();
    let rows: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
    assert_eq!(rows.len(), numbers.len());
    for (row, (session, seq)) in rows.iter().zip(numbers) {
        let fields: Vec<&Field> = row.get_column_iter().map(|(_, field)| field).collect();
        let sent = T0 + u64::from((seq - 1) / 3 * 3 + 1) * MS;
        let time = |ns: u64| Field::Long(i64::try_from(ns).unwrap());
        assert_eq!(fields[0], &Field::UInt(session));
        assert_eq!(fields[1], &Field::UInt(seq));
        assert_eq!([fields[2], fields[3]], [&time(sent), &time(sent + 500)]);
        assert_eq!(fields[4], &Field::Str(subject(seq)));
        assert_eq!(fields[5], &Field::Bytes(payload(seq).into_bytes().into()));
    }
}

#[cfg(not(feature = "parquet"))]
#[test]
fn a_build_without_parquet_says_so() {
    let (files, dir) = archive();
    let out = files.path().join("table.parquet");
    let output = run("archive export % --format parquet --out %", &[&dir, &out]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--features parquet"));
    assert!(!out.exists());
}

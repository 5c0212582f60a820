//! Who may connect, and what they can do with what they get, as other users.

use std::fs::{File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};

use seqcast_client::protocol::{Request, Role, VERSION};
use seqcast_client::socket::Socket;
use seqcast_client::{Engine, Error, Publisher, PublisherOptions, Received, Refusal, Subscriber, SubscriberOptions};

use crate::{LONG, Running, both, group, received};

/// A user, their group and the only other one that they are in. None of them needs to be known.
#[derive(Clone, Copy)]
struct Who {
    user: libc::uid_t,
    group: libc::gid_t,
    also: libc::gid_t,
}

const MARKET: u32 = 54_321;
const STRANGER: Who = Who {
    user: 54_400,
    group: 54_400,
    also: 54_401,
};

/// Runs a job on a thread that belongs to somebody else: the kernel keeps credentials for each thread.
fn as_user<T: Send>(who: Who, job: impl FnOnce() -> T + Send) -> T {
    let become_them = || {
        // SAFETY: system calls of this thread alone; the pointer is to one live group number.
        let results = unsafe {
            [
                libc::syscall(libc::SYS_setgroups, 1, &raw const who.also),
                libc::syscall(libc::SYS_setresgid, who.group, who.group, who.group),
                libc::syscall(libc::SYS_setresuid, who.user, who.user, who.user),
            ]
        };
        assert_eq!(results, [0; 3], "{}", std::io::Error::last_os_error());
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            become_them();
            job()
        });
        thread.join().unwrap()
    })
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("passed over: only root can be somebody else");
    }
    root
}

/// An engine with these keys of `[programs]` at a name that everybody can look up.
fn started(keys: &str) -> (Running, tempfile::TempDir, Engine) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let path = dir.path().join("socket");
    let running = Running::start(&both(group(), "", &format!("socket = {path:?}\n{keys}"), ""));
    (running, dir, Engine::at(path))
}

fn publisher(engine: &Engine) -> Result<Publisher, Error> {
    Publisher::attach(engine, &PublisherOptions::default())
}

#[test]
fn users_and_groups_decide_who_may_connect() {
    if !is_root() {
        return;
    }
    let member = Who {
        group: MARKET,
        ..STRANGER
    };
    let also_member = Who {
        also: MARKET,
        ..STRANGER
    };
    let other = Who {
        user: 54_402,
        ..STRANGER
    };
    let of_group = format!("group = \"{MARKET}\"\nmode = ");
    let of_user = format!("user = \"{}\"\nmode = ", STRANGER.user);
    // Keys, who comes, and the words that whoever may not is told.
    let cases = [
        (format!("{of_group}\"0660\""), member, None),
        (format!("{of_group}\"0660\""), also_member, None),
        (format!("{of_group}\"0660\""), STRANGER, Some("[programs]")),
        // The kernel lets the group connect, the engine wants it to read as well.
        (
            format!("{of_group}\"0620\""),
            member,
            Some("user 54400 may not use this engine"),
        ),
        (format!("{of_user}\"0600\""), STRANGER, None),
        (format!("{of_user}\"0600\""), other, Some("[programs]")),
        ("mode = \"0666\"".into(), other, None),
    ];
    for (keys, who, refused) in cases {
        let (running, _dir, engine) = started(&keys);
        let result = as_user(who, || publisher(&engine).map(drop));
        match (result, refused) {
            (Ok(()), None) => {}
            (Err(Error::Refused { why, text }), Some(words)) => {
                assert_eq!(why, Refusal::Permission);
                assert!(text.contains(words) && text.contains("`group`"), "{text}");
            }
            (result, _) => panic!("{keys:?}: {result:?}"),
        }
        // Root may always, and nobody was harmed.
        let mut subscriber = Subscriber::attach(&engine, &SubscriberOptions::default()).unwrap();
        publisher(&engine).unwrap().publish("", b"x", LONG).unwrap();
        while !matches!(subscriber.next(LONG).unwrap(), Some(Received::Message(_))) {}
        running.end();
    }
}

/// What can be done with a descriptor: changed in size, sealed, written.
fn tamper(memory: &File) -> [bool; 5] {
    let seal = |seals: libc::c_int| {
        // SAFETY: takes no pointers.
        unsafe { libc::fcntl(memory.as_raw_fd(), libc::F_ADD_SEALS, seals) == 0 }
    };
    let len = memory.metadata().unwrap().len();
    [
        memory.set_len(len / 2).is_ok(),
        memory.set_len(len * 2).is_ok(),
        seal(libc::F_SEAL_FUTURE_WRITE),
        seal(libc::F_SEAL_WRITE),
        memory.write_at(&[0xff; 8], 4096).is_ok(),
    ]
}

/// Maps it for writing; whether that works.
fn maps_for_writing(memory: &File) -> bool {
    // SAFETY: a new mapping, which is not used; it goes when the test ends.
    let at = unsafe {
        let both = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            both,
            libc::MAP_SHARED,
            memory.as_raw_fd(),
            0,
        )
    };
    at != libc::MAP_FAILED
}

#[test]
fn memory_keeps_its_size_and_a_ring_is_for_reading() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let running = Running::start(&both(group(), "", &format!("socket = {path:?}"), ""));
    let memory = |role| -> File {
        let socket = Socket::connect(&path).unwrap();
        let request = Request::Attach {
            version: VERSION,
            role,
            stream: None,
            name: "curious".into(),
        };
        socket.send(&request.encode(), &[]).unwrap();
        received(&socket).remove(0).into()
    };
    let lane = memory(Role::Publish);
    assert_eq!(tamper(&lane), [false, false, false, false, true]);
    assert!(maps_for_writing(&lane));
    let ring = memory(Role::Subscribe);
    // Opening it again, as a file that may be written, changes nothing.
    let again = format!("/proc/self/fd/{}", ring.as_raw_fd());
    let again = File::options().read(true).write(true).open(again).unwrap();
    for ring in [&ring, &again] {
        assert_eq!(tamper(ring), [false; 5]);
        assert!(!maps_for_writing(ring));
    }
    running.end();
}

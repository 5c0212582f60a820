//! The header is up to date, and C programs publish and receive through a real engine.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use seqcast_engine::config::Config;
use seqcast_engine::link::udp::{UdpConfig, UdpLink};
use seqcast_engine::node::{Node, Programs, StopRequests};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// `SEQCAST_WRITE_HEADER=1` writes it anew.
#[test]
fn header_is_up_to_date() {
    let here = Path::new(HERE);
    let config = cbindgen::Config::from_file(here.join("cbindgen.toml")).unwrap();
    let made = cbindgen::Builder::new()
        .with_config(config)
        .with_src(here.join("src/lib.rs"));
    let mut header = Vec::new();
    made.generate().unwrap().write(&mut header);
    let path = here.join("include/seqcast.h");
    if std::env::var_os("SEQCAST_WRITE_HEADER").is_some() {
        std::fs::write(&path, &header).unwrap();
    }
    let same = std::fs::read(&path).is_ok_and(|written| written == header);
    assert!(
        same,
        "{} is stale: run this test with SEQCAST_WRITE_HEADER=1",
        path.display()
    );
}

/// Compiles a C program against the library that cargo has built beside this test.
fn compile(source: &str, dir: &Path, shared: bool) -> PathBuf {
    let libraries = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let program = dir.join(Path::new(source).file_stem().unwrap());
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(Path::new(HERE).join("include"))
        .arg(Path::new(HERE).join(source))
        .arg("-o")
        .arg(&program);
    if shared {
        let library = libraries.join("libseqcast.so");
        symlink(&library, dir.join(env!("SEQCAST_SONAME"))).unwrap();
        cc.arg(library).arg(format!("-Wl,-rpath,{}", dir.display()));
    } else {
        cc.arg(libraries.join("libseqcast.a"))
            .args(["-lpthread", "-ldl", "-lm"]);
    }
    assert!(cc.status().unwrap().success(), "{cc:?}");
    program
}

#[test]
fn what_makes_no_sense_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let program = compile("tests/refused.c", dir.path(), true);
    assert!(Command::new(program).status().unwrap().success());
}

/// Ends the engine, also when the test fails.
struct Stop(StopRequests);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(2, Ordering::Relaxed);
    }
}

#[test]
fn examples_publish_and_receive() {
    let dir = tempfile::tempdir().unwrap();
    let publish = compile("examples/publish.c", dir.path(), true);
    let subscribe = compile("examples/subscribe.c", dir.path(), false);
    let socket = dir.path().join("socket");
    let [_, _, c, d] = std::process::id().to_be_bytes();
    let group = format!("239.85.{c}.{d}:21900");
    let text = format!(
        "[engine]\ninterface = \"lo\"\nidle = \"block\"\n[programs]\nsocket = {socket:?}\n\
         [[publish]]\nstream = \"{group}\"\nsource = {{ program = true }}\nlinger_ms = 0\n\
         [[subscribe]]\nstream = \"{group}\"\nsink = {{ program = true }}\n"
    );
    let config = Config::parse(&text, Path::new("test")).unwrap();
    let stop = StopRequests::default();
    std::thread::scope(|scope| {
        let theirs = Arc::clone(&stop);
        let stop = Stop(stop);
        scope.spawn(move || {
            let udp = UdpConfig {
                interface: "lo".into(),
                ..UdpConfig::default()
            };
            let node = Node::open(&config, UdpLink::open(udp).unwrap(), 1024, theirs, Programs::default()).unwrap();
            node.run().1.unwrap();
        });
        let run = |program: &Path| {
            let mut command = Command::new(program);
            command.arg(&socket).arg("5000").stdout(Stdio::piped());
            command.spawn().unwrap()
        };
        let subscriber = run(&subscribe);
        let publisher = run(&publish).wait_with_output().unwrap();
        let received = subscriber.wait_with_output().unwrap();
        drop(stop);
        assert!(publisher.status.success() && received.status.success());
        let text = String::from_utf8(received.stdout).unwrap();
        assert_eq!(text.lines().count(), 5000);
        for (n, line) in (1..).zip(text.lines()) {
            let way = if n % 2 == 1 { "copied" } else { "placed" };
            assert_eq!(line, format!("{n} c.{way} number {n}"));
        }
    });
}

//! What the engine adds to each frame on the sending side: publishes into a link that goes
//! nowhere, and prints nanoseconds per frame.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use seqcast_engine::config::Config;
use seqcast_engine::link::{Datagram, Link, LinkStats};
use seqcast_engine::node::{Node, Programs, StopRequests};
use seqcast_proto::server::Source;
use seqcast_proto::wire::Message;

struct Nowhere(Box<[u8]>, u64);

impl Link for Nowhere {
    type Frame = Vec<u8>;
    fn receive(&mut self, _max: usize, _each: impl FnMut(Datagram<Vec<u8>>)) -> io::Result<usize> {
        Ok(0)
    }
    fn send(&mut self, _to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        self.1 += u64::from(build(&mut self.0) > 0);
        true
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn join(&mut self, _group: SocketAddrV4) -> io::Result<()> {
        Ok(())
    }
    fn wait(&mut self, _wake: BorrowedFd<'_>, _timeout: Duration) -> io::Result<()> {
        Ok(())
    }
    fn max_payload(&self) -> usize {
        1472
    }
    fn local(&self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1)
    }
    fn mode(&self) -> String {
        "nowhere".into()
    }
    fn stats(&mut self) -> LinkStats {
        LinkStats {
            sent: self.1,
            ..LinkStats::default()
        }
    }
}

struct Endless(Vec<u8>);

impl Source for Endless {
    fn peek(&mut self) -> Option<Message<'_>> {
        Some(Message {
            subject: b"",
            payload: &self.0,
        })
    }
    fn advance(&mut self) {}
}

fn main() {
    let stream: SocketAddrV4 = "239.1.1.1:5000".parse().expect("an address");
    for retain in ["8 MiB", "32 MiB", "256 MiB"] {
        for size in [64, 1024] {
            let text = format!(
                "[engine]\ninterface = \"x\"\n[[publish]]\nstream = \"{stream}\"\nretain = \"{retain}\"\nsource = {{ program = true }}"
            );
            let config = Config::parse(&text, Path::new("x")).expect("a configuration");
            let programs = Programs {
                publishers: vec![(stream, Box::new(Endless(vec![7; size])))],
                ..Programs::default()
            };
            let link = Nowhere(vec![0; 2048].into(), 0);
            let mut node = Node::open(&config, link, 1, StopRequests::default(), programs).expect("an engine");
            let mut best = f64::MAX;
            let mut worst = 0f64;
            for _ in 0..30 {
                let before = node.report().link.sent;
                let start = Instant::now();
                while start.elapsed() < Duration::from_millis(50) {
                    for _ in 0..16 {
                        node.poll().expect("a turn");
                    }
                }
                let frames = node.report().link.sent - before;
                let ns = start.elapsed().as_nanos() as f64 / frames.max(1) as f64;
                if frames > 0 {
                    best = best.min(ns);
                    worst = worst.max(ns);
                }
            }
            println!("retain {retain:>8}, {size:4} B messages: {best:6.0} to {worst:6.0} ns a frame");
        }
    }
}

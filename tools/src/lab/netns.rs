//! Named network namespaces that belong to one process and can be told from everyone else's.
//!
//! A name is `sqc-<pid>-t<start>-<n>-<host>`: the process that made it, when that process started
//! (clock ticks since boot, so that a reused pid is not taken for it), and which of its labs.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use seqcast_engine::process::started_at;

use super::command::run;
use super::{Error, sys};

const DIRECTORY: &str = "/var/run/netns";
/// What the names of all that labs make begin with.
pub(super) const PREFIX: &str = "sqc-";

/// The owner's part of a name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pid: u32,
    start: u64,
}

impl Owner {
    /// This process.
    pub(super) fn current() -> Result<Owner, Error> {
        let pid = std::process::id();
        let start = started_at(pid).ok_or_else(|| Error::Spec("/proc is not mounted".to_owned()))?;
        Ok(Owner { pid, start })
    }

    /// The beginning of the names of this process's lab number `n`.
    pub(super) fn prefix(self, n: u32) -> String {
        format!("{PREFIX}{}-t{}-{n}", self.pid, self.start)
    }

    /// Whose name this is.
    pub(super) fn of(name: &str) -> Option<Owner> {
        let mut parts = name.strip_prefix(PREFIX)?.split('-');
        let pid = parts.next()?.parse().ok()?;
        let start = parts.next()?.strip_prefix('t')?.parse().ok()?;
        Some(Owner { pid, start })
    }

    pub(super) fn is_alive(self) -> bool {
        started_at(self.pid) == Some(self.start)
    }
}

fn names() -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(DIRECTORY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other,
    };
    entries
        .and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        })
        .map_err(|error| Error::Start {
            command: format!("list {DIRECTORY}"),
            error,
        })
}

/// Removes the namespaces of labs whose process is gone, with all processes still in them.
/// Returns the names.
pub(super) fn sweep() -> Result<Vec<String>, Error> {
    let mut stale = names()?;
    stale.retain(|name| Owner::of(name).is_some_and(|owner| !owner.is_alive()));
    for name in &stale {
        remove(name)?;
    }
    Ok(stale)
}

/// A namespace that lives as long as this value.
pub(super) struct Namespace(String);

impl Namespace {
    pub(super) fn new(name: String) -> Result<Self, Error> {
        // Owned before it exists: a command that fails half-way leaves nothing either.
        let namespace = Namespace(name);
        run(&["ip", "netns", "add", namespace.name()])?;
        // Neighbour discovery and MLD would only be noise among what a lab measures.
        namespace.exec(&[
            "sh",
            "-c",
            "for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do [ ! -e $f ] || echo 1 > $f; done",
        ])?;
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    pub(super) fn name(&self) -> &str {
        &self.0
    }

    /// Makes it the namespace of the calling thread, for good.
    pub(super) fn enter(&self) -> io::Result<()> {
        let file = fs::File::open(Path::new(DIRECTORY).join(&self.0))?;
        Ok(nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?)
    }

    /// Runs `ip` on this namespace.
    pub(super) fn ip(&self, arguments: &[&str]) -> Result<String, Error> {
        run(&[&["ip", "-n", &self.0], arguments].concat())
    }

    /// Runs a command in this namespace, to its end.
    pub(super) fn exec(&self, argv: &[&str]) -> Result<String, Error> {
        run(&[&["ip", "netns", "exec", &self.0], argv].concat())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.0) {
            // A panic here, for want of standard error, would end the cleaning up.
            let _ = writeln!(io::stderr(), "lab: {error}");
        }
    }
}

/// Kills what runs in a namespace and removes it. One that is already gone is no error.
fn remove(name: &str) -> Result<(), Error> {
    let removed = end_processes(name).and_then(|()| run(&["ip", "netns", "del", name]));
    match removed {
        Err(error) if names()?.iter().any(|n| n == name) => Err(error),
        _ => Ok(()),
    }
}

/// Does not heed interrupts: it runs because of them.
fn end_processes(name: &str) -> Result<(), Error> {
    for _ in 0..500 {
        let pids = run(&["ip", "netns", "pids", name])?;
        if pids.trim().is_empty() {
            return Ok(());
        }
        for pid in pids.split_ascii_whitespace().filter_map(|p| p.parse().ok()) {
            sys::signal(pid, libc::SIGKILL).map_err(|error| Error::Start {
                command: format!("kill {pid}"),
                error,
            })?;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(Error::Timeout {
        what: format!("the processes in {name} to end"),
        limit: Duration::from_secs(5),
    })
}

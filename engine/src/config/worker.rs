//! `[[worker]]`: streams with a thread of their own.

use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, Serializer};

use super::{Config, ConfigError, Engine, Fault, Idle, LinkKind, Second};

/// The core that a thread is pinned to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "toml::Value")]
pub enum Core {
    /// This one.
    Number(usize),
    /// One that no other worker has, near the interface's card if possible.
    Auto,
}

impl Core {
    /// The core's number, if it is known.
    #[must_use]
    pub fn number(self) -> Option<usize> {
        match self {
            Core::Number(number) => Some(number),
            Core::Auto => None,
        }
    }
}

impl TryFrom<toml::Value> for Core {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Core, String> {
        let number = value.as_integer().and_then(|n| usize::try_from(n).ok());
        match (number, value.as_str()) {
            (Some(number), _) => Ok(Core::Number(number)),
            (None, Some("auto")) => Ok(Core::Auto),
            _ => Err(format!("{value} is no core: give its number, or \"auto\"")),
        }
    }
}

impl Serialize for Core {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Core::Number(number) => number.serialize(to),
            Core::Auto => "auto".serialize(to),
        }
    }
}

/// `[[worker]]`: a thread beside the engine's first. What is left out is as in `[engine]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Worker {
    /// What streams call it.
    pub name: String,
    /// The network interface.
    pub interface: Option<String>,
    /// How frames move.
    pub link: Option<LinkKind>,
    /// Receive queues that its AF_XDP link serves.
    pub queues: Option<Vec<u32>>,
    /// UDP port for queries and repairs; 0 lets the kernel choose.
    #[serde(default)]
    pub port: u16,
    /// Largest IP packet to use.
    pub mtu: Option<usize>,
    /// The core to pin its thread to; one of its own if `[engine]` has one.
    pub core: Option<Core>,
    /// What to do when there is nothing to do.
    pub idle: Option<Idle>,
    /// Losses on purpose.
    pub fault: Option<Fault>,
    /// The interface of line B, when it is another.
    pub line_b: Option<Second>,
}

/// A worker: the configuration of one thread, which shares no stream with the others.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its name; none for the engine's first thread.
    pub worker: Option<String>,
    /// All that it does.
    pub config: Config,
}

impl Part {
    /// What it is called in messages: the table that it comes from.
    #[must_use]
    pub fn title(&self) -> String {
        self.worker
            .as_ref()
            .map_or_else(|| "[engine]".into(), |name| format!("[[worker]] {name}"))
    }

    /// The engine as each of its lines wants it that has an interface of its own.
    pub fn lines(&self) -> impl Iterator<Item = Engine> + use<> {
        let first = self.config.engine.clone();
        let second = first.on_line_b();
        [Some(first), second].into_iter().flatten()
    }
}

impl Worker {
    fn engine(&self, engine: &Engine) -> Engine {
        let mut own = Engine {
            name: format!("{}.{}", engine.name, self.name),
            interface: self.interface.clone().unwrap_or_else(|| engine.interface.clone()),
            link: self.link.unwrap_or(engine.link),
            port: self.port,
            mtu: self.mtu.or(engine.mtu),
            core: self.core.or(engine.core.and(Some(Core::Auto))),
            idle: self.idle.unwrap_or(engine.idle),
            counters: engine.counters.as_deref().map(|path| self.beside(path)),
            capture: engine.capture.as_deref().map(|path| self.beside(path)),
            fault: self.fault.unwrap_or(engine.fault),
            line_b: self.line_b.clone().or_else(|| engine.line_b.clone()),
            ..engine.clone()
        };
        if let Some(queues) = &self.queues {
            own.xdp.queues.clone_from(queues);
        }
        own
    }

    /// The worker's own of a file that each thread has: `x.sock` becomes `x-NAME.sock`.
    fn beside(&self, path: &Path) -> PathBuf {
        let Some(stem) = path.file_stem().filter(|_| path != Path::new("off")) else {
            return path.into();
        };
        let mut name = stem.to_owned();
        name.push("-");
        name.push(&self.name);
        if let Some(extension) = path.extension() {
            name.push(".");
            name.push(extension);
        }
        path.with_file_name(name)
    }

    fn check(&self) -> Result<(), String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if !(1..=32).contains(&self.name.len()) || !self.name.chars().all(allowed) {
            return Err(format!(
                "[[worker]] name = {:?}: it must be 1 to 32 letters, digits, `_` or `-`",
                self.name
            ));
        }
        Ok(())
    }
}

impl Config {
    /// The workers: the engine's first thread with the streams that name none, then those of
    /// `[[worker]]`. One without streams is left out.
    #[must_use]
    pub fn split(&self) -> Vec<Part> {
        let all = std::iter::once(None).chain(self.worker.iter().map(Some));
        let mut parts: Vec<Part> = all
            .map(|worker| self.part(worker))
            .filter(|Part { config: c, .. }| !(c.publish.is_empty() && c.subscribe.is_empty() && c.archive.is_empty()))
            .collect();
        // Without streams for programs the first answers them.
        let takes: Vec<bool> = parts.iter().map(|part| part.config.takes_programs()).collect();
        for (at, part) in parts.iter_mut().enumerate() {
            if !(takes[at] || at == 0 && takes.iter().all(|takes| !takes)) {
                part.config.programs = None;
            }
        }
        parts
    }

    fn part(&self, worker: Option<&Worker>) -> Part {
        let name = worker.map(|w| &w.name);
        let mut config = self.clone();
        config.worker.clear();
        config.publish.retain(|p| p.worker.as_ref() == name);
        config.subscribe.retain(|s| s.worker.as_ref() == name);
        config.archive.retain(|a| a.worker.as_ref() == name);
        if let Some(worker) = worker {
            config.engine = worker.engine(&self.engine);
            if let Some(socket) = config.programs.as_mut().and_then(|p| p.socket.as_mut()) {
                *socket = worker.beside(socket);
            }
            // A client's name is not that of the thread that serves it.
            for subscribe in &mut config.subscribe {
                subscribe.name.get_or_insert_with(|| self.engine.name.clone());
            }
        }
        if !self.worker.is_empty() && config.groups_b().is_empty() {
            config.engine.line_b = None;
        }
        Part {
            worker: name.cloned(),
            config,
        }
    }

    fn takes_programs(&self) -> bool {
        self.publish.iter().any(|p| p.source.program) || self.subscribe.iter().any(|s| s.sink.program)
    }

    pub(super) fn check_workers(&self) -> Result<(), ConfigError> {
        self.check_worker_names()
            .and_then(|()| self.check_worker_streams())
            .and_then(|()| check_apart(&self.split()))
            .map_err(ConfigError::Invalid)
    }

    fn check_worker_names(&self) -> Result<(), String> {
        for (i, worker) in self.worker.iter().enumerate() {
            worker.check()?;
            if self.worker[..i].iter().any(|w| w.name == worker.name) {
                return Err(format!(
                    "two [[worker]] have name = {:?}: give each its own",
                    worker.name
                ));
            }
        }
        Ok(())
    }

    /// Checks that each stream has one worker, which is there, and each worker a stream.
    fn check_worker_streams(&self) -> Result<(), String> {
        type Row<'a> = (&'a str, SocketAddrV4, Option<u32>, Option<&'a String>);
        let publish = self
            .publish
            .iter()
            .map(|p| ("publish", p.stream, p.id, p.worker.as_ref()));
        let subscribe = self
            .subscribe
            .iter()
            .map(|s| ("subscribe", s.stream, s.id, s.worker.as_ref()));
        let archive = self
            .archive
            .iter()
            .map(|a| ("archive", a.stream, a.id, a.worker.as_ref()));
        let all: Vec<Row<'_>> = publish.chain(subscribe).chain(archive).collect();
        for (i, &(table, stream, id, worker)) in all.iter().enumerate() {
            if let Some(name) = worker
                && !self.worker.iter().any(|w| w.name == *name)
            {
                return Err(format!(
                    "[[{table}]] {stream}: there is no [[worker]] with name = {name:?}"
                ));
            }
            let identity = crate::stream_id(stream, id);
            let same = |other: &&Row<'_>| other.1 == stream || crate::stream_id(other.1, other.2) == identity;
            if let Some((other, ..)) = all[..i].iter().find(|row| same(row) && row.3 != worker) {
                return Err(format!(
                    "[[{table}]] {stream}: its [[{other}]] has another `worker`; workers do not hear each other, so give both the same"
                ));
            }
        }
        let unused = |w: &&Worker| w.line_b.is_some() && self.part(Some(*w)).config.groups_b().is_empty();
        if let Some(worker) = self.worker.iter().find(unused) {
            return Err(format!(
                "[[worker]] {} line_b: no stream of it has `lines`, so that nothing would use the interface",
                worker.name
            ));
        }
        let of = |name: &String| all.iter().any(|row| row.3 == Some(name));
        match self.worker.iter().find(|w| !of(&w.name)) {
            Some(idle) => Err(format!(
                "[[worker]] {0}: no stream has worker = {0:?}; give it one, or leave it out",
                idle.name
            )),
            None => Ok(()),
        }
    }
}

/// Checks that no two workers want the same core, port or queue.
fn check_apart(parts: &[Part]) -> Result<(), String> {
    for (i, part) in parts.iter().enumerate() {
        let (title, engine) = (part.title(), &part.config.engine);
        if engine.line_b.as_ref().is_some_and(|b| b.interface == engine.interface) {
            return Err(format!(
                "{title} line_b: {} is its interface of line A",
                engine.interface
            ));
        }
        if !(0.0..=1.0).contains(&engine.fault.drop) {
            return Err(format!(
                "{title} fault drop = {} is not a share from 0.0 to 1.0",
                engine.fault.drop
            ));
        }
        for other in &parts[..i] {
            let (its, its_title) = (&other.config.engine, other.title());
            let may_spin = |idle| matches!(idle, Idle::Spin | Idle::Auto);
            if let (Some(Core::Number(core)), true) = (engine.core, engine.core == its.core)
                && (may_spin(engine.idle) || may_spin(its.idle))
            {
                return Err(format!(
                    "{title} core = {core} is that of {its_title}, and one that spins leaves the other none of it: give each its own, or both idle = \"block\""
                ));
            }
            if engine.port != 0 && engine.port == its.port && engine.interface == its.interface {
                return Err(format!(
                    "{title} port = {} is that of {its_title}: give each its own, or leave it out",
                    engine.port
                ));
            }
            if engine.link != LinkKind::Udp && its.link != LinkKind::Udp {
                check_card(part, other)?;
            }
        }
    }
    Ok(())
}

/// Checks that two workers can share the interfaces that both use over AF_XDP.
fn check_card(part: &Part, other: &Part) -> Result<(), String> {
    let (title, its_title) = (part.title(), other.title());
    for Engine {
        interface, xdp, fault, ..
    } in part.lines()
    {
        for its in other.lines().filter(|its| its.interface == interface) {
            if let Some(queue) = xdp.queues.iter().find(|queue| its.xdp.queues.contains(queue)) {
                return Err(format!(
                    "{title} queues: queue {queue} of {interface} is that of {its_title}; AF_XDP serves a queue from one thread: give each its own `queues` or interface, or all link = \"udp\""
                ));
            }
            if fault != its.fault {
                return Err(format!(
                    "{title} fault: {interface} has one filter, so that {its_title} must have the same"
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let text = format!("[engine]\nname = \"e\"\ninterface = \"eth1\"\ncore = 1\nidle = \"spin\"\n{text}");
        Config::parse(&text, Path::new("x.toml")).map_err(|e| e.to_string())
    }

    const A: &str = "[[archive]]\nstream = \"239.1.1.1:5000\"\ndir = \"a\"\n";
    const B: &str = "[[archive]]\nstream = \"239.1.1.2:5000\"\ndir = \"b\"\nworker = \"b\"\n";
    const WORKER: &str = "[[worker]]\nname = \"b\"\ninterface = \"eth2\"\n";
    const QUEUE: &str = "[[worker]]\nname = \"b\"\nqueues = [1]\n";

    #[test]
    fn each_worker_has_its_own_streams_interface_core_and_files() {
        let files = "counters = \"/run/e.counters\"\ncapture = \"/run/e\"\n[programs]\nsocket = \"/run/e.sock\"\n";
        let config = parse(&format!("{files}{A}{B}{WORKER}")).unwrap();
        let parts = config.split();
        let told: Vec<_> = parts
            .iter()
            .map(|part| {
                let (engine, streams) = (&part.config.engine, &part.config.archive);
                assert_eq!(streams.len(), 1);
                (
                    part.title(),
                    engine.name.as_str(),
                    engine.interface.as_str(),
                    engine.core.unwrap(),
                    streams[0].dir.to_str().unwrap(),
                    engine.counters.as_deref().and_then(Path::to_str).unwrap(),
                    engine.capture.as_deref().and_then(Path::to_str).unwrap(),
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                (
                    "[engine]".into(),
                    "e",
                    "eth1",
                    Core::Number(1),
                    "a",
                    "/run/e.counters",
                    "/run/e"
                ),
                (
                    "[[worker]] b".into(),
                    "e.b",
                    "eth2",
                    Core::Auto,
                    "b",
                    "/run/e-b.counters",
                    "/run/e-b"
                ),
            ]
        );
        let has = |part: &Part| part.config.programs.is_some();
        assert!(
            has(&parts[0]) && !has(&parts[1]),
            "without streams for programs the first has the socket"
        );
        let config = parse(&format!("{B}{WORKER}")).unwrap();
        assert_eq!(config.split().len(), 1, "what has no streams has no thread");
        assert_eq!(parse(A).unwrap().split().len(), 1);
    }

    #[test]
    fn programs_find_each_workers_streams_at_its_own_socket() {
        let text = format!(
            "[programs]\nsocket = \"/run/e.sock\"\n{A}[[subscribe]]\nstream = \"239.1.1.2:5000\"\nworker = \"b\"\nsink = {{ program = true }}\n{WORKER}"
        );
        let parts = parse(&text).unwrap().split();
        assert!(parts[0].config.programs.is_none());
        let subscribe = &parts[1].config.subscribe[0];
        let programs = parts[1].config.programs.as_ref().unwrap();
        assert_eq!(programs.socket.as_deref(), Some(Path::new("/run/e-b.sock")));
        assert_eq!(subscribe.name.as_deref(), Some("e"), "a client keeps its name");
    }

    #[test]
    fn queues_of_one_interface_are_shared_out() {
        let parts = parse(&format!("{A}{B}{QUEUE}")).unwrap().split();
        let queues: Vec<_> = parts
            .iter()
            .flat_map(Part::lines)
            .map(|line| (line.interface, line.xdp.queues))
            .collect();
        assert_eq!(queues, [("eth1".into(), vec![0]), ("eth1".into(), vec![1])]);
    }

    #[test]
    fn mistakes_are_named_with_the_remedy() {
        let same = WORKER.replace("eth2", "eth1");
        assert!(parse(&format!("link = \"udp\"\n{A}{B}{same}")).is_ok());
        let on_core_1 = format!("{A}{B}{WORKER}core = 1\n");
        assert!(
            parse(&format!("{on_core_1}idle = \"block\"\n").replace("idle = \"spin\"", "idle = \"block\"")).is_err()
        );
        for (text, words) in [
            (format!("{A}{B}"), "there is no [[worker]] with name = \"b\""),
            (format!("{A}{WORKER}"), "no stream has worker = \"b\""),
            (format!("{A}{B}{same}"), "queue 0 of eth1 is that of [engine]"),
            (format!("{A}{B}{QUEUE}fault = {{ drop = 0.5 }}\n"), "must have the same"),
            (
                format!("port = 7\n{A}{B}{QUEUE}port = 7\n"),
                "port = 7 is that of [engine]",
            ),
            (on_core_1, "core = 1 is that of [engine]"),
            (format!("{B}{WORKER}{WORKER}"), "give each its own"),
            (format!("{B}{WORKER}").replace("\"b\"", "\"a/b\""), "1 to 32 letters"),
            (
                format!("{B}{WORKER}[[subscribe]]\nstream = \"239.1.1.2:5000\"\nsink = {{ stdout = true }}\n"),
                "give both the same",
            ),
            (format!("{A}{B}{WORKER}core = -1\n"), "-1 is no core"),
            (
                format!("{A}{B}{WORKER}fault = {{ drop = 2.0 }}\n"),
                "[[worker]] b fault drop = 2",
            ),
            (
                format!("{A}{B}{WORKER}").replace("dir = \"a\"", "dir = \"a\"\nworker = 1"),
                "expected a string",
            ),
        ] {
            let message = parse(&text).unwrap_err();
            assert!(message.contains(words), "{message}");
        }
    }
}

//! What a service manager sees of an engine, and what an engine keeps of its rights.

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{LIMIT, engine, lone_host, terminate};
use seqcast_tools::lab::{Lab, Process};
use tempfile::TempDir;

/// Capabilities that root keeps: its access to files.
const FILES: u64 = 1 << 1 | 1 << 2;

struct Manager {
    dir: TempDir,
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn new() -> Manager {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Manager {
            dir,
            socket,
            heard: Vec::new(),
        }
    }

    /// Waits for a line of a message.
    fn hears(&mut self, line: &str) {
        let mut buffer = [0; 4096];
        while !self.heard.iter().any(|heard| heard.starts_with(line)) {
            let length = self
                .socket
                .recv(&mut buffer)
                .unwrap_or_else(|error| panic!("no {line}: {error}"));
            let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
            self.heard.extend(text.lines().map(str::to_owned));
        }
    }

    /// With a second worker over kernel sockets.
    fn config_of_two(&self, interface: &str, link: &str) -> std::path::PathBuf {
        let path = self.config(interface, link);
        let more = format!(
            "[[subscribe]]\nstream = \"239.81.0.2:5000\"\nworker = \"b\"\nsink = {{ file = \"{}\" }}\n[[worker]]\nname = \"b\"\nlink = \"udp\"\n",
            self.dir.path().join("out-b").display()
        );
        fs::write(&path, fs::read_to_string(&path).unwrap() + &more).unwrap();
        path
    }

    fn config(&self, interface: &str, link: &str) -> std::path::PathBuf {
        let path = self.dir.path().join("engine.toml");
        let text = format!(
            "[engine]\ninterface = \"{interface}\"\nlink = \"{link}\"\nidle = \"block\"\n[[subscribe]]\nname = \"ticks\"\n\
             stream = \"239.81.0.1:5000\"\nsink = {{ file = \"{}\" }}\n",
            self.dir.path().join("out").display()
        );
        fs::write(&path, text).unwrap();
        path
    }
}

#[test]
fn a_manager_hears_of_start_life_and_end() {
    let manager = Manager::new();
    let config = manager.config("lo", "udp");
    start_life_and_end(manager, &config);
}

#[test]
fn a_manager_hears_of_two_workers_as_of_one() {
    let manager = Manager::new();
    let config = manager.config_of_two("lo", "udp");
    let manager = start_life_and_end(manager, &config);
    let status = manager.heard.iter().find(|line| line.starts_with("STATUS=udp on lo"));
    assert!(status.is_some_and(|line| line.contains("; b: udp on lo")), "{status:?}");
    let ready = manager.heard.iter().filter(|line| *line == "READY=1");
    assert_eq!(ready.count(), 1, "once, when both are open");
}

fn start_life_and_end(mut manager: Manager, config: &Path) -> Manager {
    let mut command = Command::new(engine());
    command.args(["run", "--config"]).arg(config);
    command.env("NOTIFY_SOCKET", manager.dir.path().join("notify"));
    command.env("WATCHDOG_USEC", "400000");
    let process = Process::spawn("engine", command, &manager.dir.path().join("log")).unwrap();
    manager.hears("READY=1");
    manager.hears("STATUS=udp on lo");
    // More than once, as long as it lives.
    manager.hears("WATCHDOG=1");
    let heard = std::mem::take(&mut manager.heard);
    manager.hears("WATCHDOG=1");
    terminate(process);
    manager.hears("STOPPING=1");
    manager.heard.extend(heard);
    manager
}

/// The capabilities of each thread of a process, and whether it may gain any.
fn rights(pid: u32) -> Vec<(u64, bool)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let status = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    let rights = status.map(|status| {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name}")).trim().to_owned()
        };
        let permitted = u64::from_str_radix(&field("CapPrm:"), 16).unwrap();
        (permitted, field("NoNewPrivs:") == "0")
    });
    rights.collect()
}

/// The rights of an engine with AF_XDP on a host of a lab, once it is ready. `start` makes its command line
/// of a directory for it and its configuration.
fn rights_in_a_lab(start: impl FnOnce(&Path, &Path) -> Vec<String>) -> Option<Vec<(u64, bool)>> {
    let lab = lone_host(Lab::xdp_available())?;
    let host = lab.host("host").unwrap();
    let manager = Manager::new();
    let config = manager.config_of_two(host.interface(), "xdp");
    let line = start(manager.dir.path(), &config);
    let mut command = host.command(&line[0]);
    command.args(&line[1..]);
    let log = manager.dir.path().join("log");
    let mut process = Process::spawn("host", command, &log).unwrap();
    process.wait_line("ready ", LIMIT).unwrap();
    let rights = rights(process.id());
    terminate(process);
    Some(rights)
}

fn run(config: &Path) -> Vec<String> {
    let engine = engine();
    let words = [engine.as_path(), Path::new("run"), Path::new("--config"), config];
    words.map(|word| word.to_str().unwrap().to_owned()).into()
}

#[test]
fn root_keeps_its_files_and_nothing_else() {
    let Some(rights) = rights_in_a_lab(|_, config| run(config)) else {
        return;
    };
    assert!(rights.len() > 1, "the sink has a thread of its own");
    for (permitted, may_gain) in rights {
        assert_eq!((permitted & !FILES, may_gain), (0, false));
    }
}

#[test]
fn a_user_with_four_capabilities_runs_af_xdp_and_gives_them_back() {
    let start = |dir: &Path, config: &Path| {
        // Its files are its own, and so is a copy of the program where it can get at it.
        let program = dir.join("seqcast-engine");
        // Not by this process: a child that another test starts meanwhile would hold it open.
        let copied = Command::new("cp").arg(engine()).arg(&program).status().unwrap();
        assert!(copied.success());
        let own = Command::new("chown")
            .args(["-R", "65534:65534"])
            .arg(dir)
            .status()
            .unwrap();
        assert!(own.success());
        let caps = "+bpf,+net_admin,+net_raw,+ipc_lock";
        let mut line: Vec<String> = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
            .map(String::from)
            .into();
        line.push(format!("--inh-caps={caps}"));
        line.push(format!("--ambient-caps={caps}"));
        line.push(program.to_str().unwrap().to_owned());
        line.extend(run(config).into_iter().skip(1));
        line
    };
    let Some(rights) = rights_in_a_lab(start) else { return };
    for right in rights {
        assert_eq!(right, (0, false));
    }
}

#[test]
fn pages_and_completions_are_made_of_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    for what in ["man", "completions"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seqcast"));
        let status = command.args(["generate", what]).arg(dir.path()).status().unwrap();
        assert!(status.success());
    }
    let text = |name: &str| {
        let mut text = String::new();
        let mut file = fs::File::open(dir.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        file.read_to_string(&mut text).unwrap();
        text
    };
    assert!(text("seqcast.1").contains("seqcast\\-archive(1)"));
    assert!(text("seqcast-archive-verify.1").contains(".TH seqcast-archive-verify 1"));
    assert!(text("seqcast-engine-run.1").contains("\\-\\-config"));
    assert!(text("seqcast.bash").contains("--dry-run") && text("_seqcast-engine").contains("--config"));
    // Bash takes it.
    let script = dir.path().join("seqcast.bash");
    let check = Command::new("bash")
        .arg("-n")
        .arg(&script)
        .stderr(Stdio::inherit())
        .status();
    assert!(check.unwrap().success());
}

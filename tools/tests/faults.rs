//! The fault campaign and the soak in short, and what is left of a campaign that is cut short.
//! These tests need root and AF_XDP or namespaces, and are passed over without.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{engine, until};
use seqcast_tools::lab::Lab;
use serde_json::Value;
use tempfile::TempDir;

fn possible() -> bool {
    match Lab::veth_available() {
        Ok(()) => true,
        Err(why) => {
            eprintln!("passed over: {why}");
            false
        }
    }
}

/// A lab command that puts its files below `directory`.
fn lab(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seqcast"));
    command.arg("lab").args(arguments).env("TMPDIR", directory);
    command.stdin(Stdio::null());
    command
}

#[test]
fn root_every_kind_of_fault_loses_nothing_and_leaves_nothing() {
    if !possible() {
        return;
    }
    engine();
    let directory = TempDir::new().unwrap();
    let arguments = [
        "faults",
        "--minutes",
        "0.27",
        "--seed",
        "4",
        "--rate",
        "4000",
        "--clients",
        "2",
        "--json",
    ];
    let ended = lab(directory.path(), &arguments).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(
        ended.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&ended.stdout)
    );
    let outcome: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(outcome["broken"].as_array().unwrap().len(), 0, "{outcome}");
    let (had, not) = (
        outcome["faults"].as_object().unwrap(),
        outcome["left_out"].as_object().unwrap(),
    );
    assert_eq!(had.len() + not.len(), 8, "{outcome}");
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        0,
        "its files went with it"
    );
}

#[test]
fn root_a_soak_samples_memory_latency_and_backlog() {
    if !possible() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let arguments = ["soak", "--minutes", "0.05", "--every", "1", "--clients", "1"];
    let ended = lab(directory.path(), &arguments).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{said}");
    assert!(
        said.contains("each delivered to every client, in order, once"),
        "{said}"
    );
    let samples: Vec<Value> = String::from_utf8(ended.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(!samples.is_empty());
    for sample in samples {
        assert!(sample["p50_us"].as_f64() > Some(0.0), "{sample}");
        let engines = sample["engines"].as_array().unwrap();
        assert!(
            engines.len() == 3 && engines.iter().all(|e| e[1]["anonymous_kib"].as_u64() > Some(0)),
            "{sample}"
        );
    }
}

/// A campaign in the midst of its faults, with small disks.
struct Campaign {
    child: Child,
    files: PathBuf,
    _directory: TempDir,
}

impl Campaign {
    fn start() -> Campaign {
        let directory = TempDir::new().unwrap();
        let log = directory.path().join("log");
        let arguments = ["faults", "--minutes", "5", "--only", "disk,stop", "--clients", "1"];
        let mut command = lab(directory.path(), &arguments);
        let child = command.stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
        until("the first fault", || {
            let text = fs::read_to_string(&log).unwrap();
            text.lines()
                .any(|line| line.contains(" stop ") || line.contains(" disk "))
        });
        let mut files = fs::read_dir(directory.path()).unwrap().flatten().map(|e| e.path());
        let files = files.find(|path| path.is_dir()).unwrap();
        let campaign = Campaign {
            child,
            files,
            _directory: directory,
        };
        assert_eq!((campaign.loops(), campaign.namespaces()), (2, 5));
        campaign
    }

    /// Loop devices on its files.
    fn loops(&self) -> usize {
        let blocks = fs::read_dir("/sys/block").unwrap().flatten();
        let on = |path: PathBuf| fs::read_to_string(path.join("loop/backing_file")).unwrap_or_default();
        let own = self.files.to_str().unwrap();
        blocks.filter(|block| on(block.path()).contains(own)).count()
    }

    fn namespaces(&self) -> usize {
        let own = format!("sqc-{}-", self.child.id());
        let all = fs::read_dir("/var/run/netns").unwrap().flatten();
        all.filter(|e| e.file_name().to_string_lossy().starts_with(&own))
            .count()
    }
}

impl Drop for Campaign {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = Lab::sweep();
    }
}

#[test]
fn root_a_campaign_that_is_interrupted_leaves_nothing() {
    if !possible() {
        return;
    }
    let mut campaign = Campaign::start();
    let pid = campaign.child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(campaign.child.wait().unwrap().code(), Some(130));
    assert_eq!(campaign.namespaces(), 0);
    assert!(!campaign.files.exists());
    until("the kernel lets go of the loop devices", || campaign.loops() == 0);
}

#[test]
fn root_what_a_killed_campaign_leaves_lab_clean_removes() {
    if !possible() {
        return;
    }
    let mut campaign = Campaign::start();
    campaign.child.kill().unwrap();
    campaign.child.wait().unwrap();
    until("mounts go with the process that held them", || campaign.loops() == 0);
    let cleaned = lab(campaign.files.parent().unwrap(), &["clean"]).output().unwrap();
    assert!(cleaned.status.success());
    assert_eq!(campaign.namespaces(), 0);
    assert!(!campaign.files.exists(), "{}", String::from_utf8_lossy(&cleaned.stdout));
}

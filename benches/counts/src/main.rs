//! Counts the instructions of the hot functions under valgrind's callgrind: a figure that is the same
//! on a busy machine, and so can be checked by every test run.
//!
//! `seqcast-counts` counts and compares with `benches/counts/baseline.txt`, `--write` writes that file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};

mod jobs;
mod world;

use jobs::{ITEMS, JOBS};

const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/baseline.txt");
/// How much a count may grow. Different layouts of the same code stay well below.
const TOLERANCE: f64 = 0.05;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => check(),
        ["--write"] => write(),
        ["--job", name] => jobs::run(name).map(|()| true),
        _ => Err(anyhow::anyhow!("usage: seqcast-counts [--write]")),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("seqcast-counts: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Instructions for an item of each job.
fn count_all() -> Result<Vec<(&'static str, f64)>> {
    let directory = tempfile::tempdir()?;
    let (itself, out) = (std::env::current_exe()?, directory.path().join("out"));
    let mut counts = Vec::new();
    for (name, _) in JOBS {
        counts.push((*name, count(&itself, name, &out).with_context(|| (*name).to_owned())?));
    }
    Ok(counts)
}

fn count(itself: &Path, name: &str, out: &Path) -> Result<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*counted*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(itself)
        .args(["--job", name])
        .stdin(Stdio::null())
        .output()
        .context("cannot run valgrind; install the package valgrind")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind: {}", said.trim());
    let text = std::fs::read_to_string(out).context("valgrind wrote no counts")?;
    let line = text.lines().rev().find_map(|line| line.strip_prefix("totals: "));
    let total: u64 = line.context("valgrind's counts are not understood")?.trim().parse()?;
    ensure!(total > u64::from(ITEMS), "valgrind did not see the function begin");
    Ok(total as f64 / f64::from(ITEMS))
}

fn write() -> Result<bool> {
    let mut text = format!(
        "# Instructions an item; written by `scripts/counts --write`.\ncompiler {}\n",
        compiler()?
    );
    for (name, count) in count_all()? {
        println!("{name:28} {count:9.1}");
        let _ = writeln!(text, "{name} {count:.1}");
    }
    std::fs::write(BASELINE, text).with_context(|| format!("cannot write {BASELINE}"))?;
    Ok(true)
}

fn check() -> Result<bool> {
    let text = std::fs::read_to_string(BASELINE).with_context(|| format!("cannot read {BASELINE}"))?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let baseline: BTreeMap<&str, &str> = lines.filter_map(|line| line.split_once(' ')).collect();
    let compiler = compiler()?;
    let comparable = baseline.get("compiler").is_some_and(|other| *other == compiler);
    let mut good = true;
    for (name, count) in count_all()? {
        let Some(before) = baseline.get(name) else {
            bail!("{name} is not in the baseline; run `scripts/counts --write`");
        };
        let before: f64 = before.parse().with_context(|| format!("baseline of {name}"))?;
        let growth = count / before - 1.0;
        let verdict = match growth {
            _ if !comparable => "",
            growth if growth > TOLERANCE => "MORE THAN ALLOWED",
            growth if growth < -TOLERANCE => "better; write it down",
            _ => "",
        };
        good &= !comparable || growth <= TOLERANCE;
        println!("{name:28} {count:9.1} {:+7.1}% {verdict}", growth * 100.0);
    }
    if !comparable {
        println!("not judged: the baseline is of another compiler than {compiler}");
    }
    if !good {
        println!(
            "a hot function takes more than {:.0}% more instructions; if that is meant: scripts/counts --write",
            TOLERANCE * 100.0
        );
    }
    Ok(good)
}

fn compiler() -> Result<String> {
    let output = Command::new("rustc")
        .arg("--version")
        .output()
        .context("cannot run rustc")?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

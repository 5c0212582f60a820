//! Wall clocks that can be set, one for each engine, without touching the machine's.
//!
//! A small library is built and preloaded into the engines; see `clock.c`. Engines read the wall
//! clock through libc, so what they see is what a stepped clock would show them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::super::command::run;
use super::super::{Process, Why, veth};

/// Where an engine finds its file.
pub(super) const VARIABLE: &str = "SEQCAST_LAB_CLOCK";
const SOURCE: &str = include_str!("clock.c");
const LIBRARY: &str = "clock.so";

/// Whether the library can be built.
pub(super) fn available() -> Result<(), Why> {
    veth::find_command("cc", "gcc")
}

/// Builds the library.
pub(super) fn build(directory: &Path) -> Result<PathBuf> {
    let source = directory.join("clock.c");
    let library = directory.join(LIBRARY);
    fs::write(&source, SOURCE).with_context(|| format!("cannot write {}", source.display()))?;
    let (from, to) = (source.display().to_string(), library.display().to_string());
    run(&["cc", "-O2", "-Wall", "-shared", "-fPIC", "-o", &to, &from])?;
    Ok(library)
}

/// Sets what an engine sees, in seconds ahead of the machine's clock.
pub(super) fn set(file: &Path, seconds: i64) -> Result<()> {
    let bytes = (seconds * 1_000_000_000).to_ne_bytes();
    let written = match fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(file)
    {
        // In place and in one piece: the engine has mapped it.
        Ok(mut file) => std::io::Write::write_all(&mut file, &bytes),
        Err(error) => Err(error),
    };
    written.with_context(|| format!("cannot write {}", file.display()))
}

/// Makes sure that an engine has the library; a static one would not.
pub(super) fn check(process: &Process) -> Result<()> {
    let maps = fs::read_to_string(format!("/proc/{}/maps", process.id())).unwrap_or_default();
    ensure!(
        maps.contains(LIBRARY),
        "{} does not take a preloaded clock: a static engine? leave out the kind \"clock\"",
        process.name()
    );
    Ok(())
}

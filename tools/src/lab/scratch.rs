//! Temporary directories that are known as a lab's, so that what a killed one leaves can be removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::Error;
use super::netns::{Owner, PREFIX};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A directory for what a run writes, removed with all in it when dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one where temporary files go.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Scratch, Error> {
        let name = format!(
            "{}-files",
            Owner::current()?.prefix(COUNT.fetch_add(1, Ordering::Relaxed))
        );
        let path = std::env::temp_dir().join(name);
        match fs::create_dir(&path) {
            Ok(()) => Ok(Scratch(path)),
            Err(error) => Err(Error::Start {
                command: format!("make {}", path.display()),
                error,
            }),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays, the next sweep takes.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes the directories of processes that are gone; returns their names.
pub(super) fn sweep() -> Vec<String> {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return Vec::new();
    };
    let stale = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let owner = name.starts_with(PREFIX).then(|| Owner::of(&name)).flatten()?;
        // Someone else's, or in use, they are left alone.
        (!owner.is_alive() && fs::remove_dir_all(entry.path()).is_ok()).then_some(name)
    });
    stale.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_the_dead_are_swept_and_others_are_not() {
        let alive = Scratch::new().unwrap();
        let dead = std::env::temp_dir().join(format!("sqc-{}-t1-0-files", std::process::id()));
        fs::create_dir_all(dead.join("below")).unwrap();
        assert!(sweep().contains(&dead.file_name().unwrap().to_string_lossy().into_owned()));
        assert!(!dead.exists() && alive.path().exists());
        let path = alive.path().to_owned();
        drop(alive);
        assert!(!path.exists());
    }
}

//! What engines of this host are doing, from the counters that they show.

pub mod prometheus;
mod summary;
pub mod view;
mod warn;

use std::path::{Path, PathBuf};

use seqcast_engine::counters::{ReadError, Sheet, list};

pub use summary::{Engine, PartSummary, Peer};
pub use warn::warnings;

/// Reads the counters of all engines that have any in a directory, or of the one whose file it is. A file that
/// cannot be read is left out and named.
///
/// # Errors
/// When the directory cannot be read.
pub fn read(place: &Path) -> Result<(Vec<Sheet>, Vec<ReadError>), ReadError> {
    let files = if place.is_file() {
        vec![place.to_owned()]
    } else {
        list(place)?
    };
    let (mut sheets, mut failures) = (Vec::new(), Vec::new());
    for file in files {
        match Sheet::read(&file) {
            Ok(sheet) => sheets.push(sheet),
            // It ended in between.
            Err(ReadError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => failures.push(error),
        }
    }
    Ok((sheets, failures))
}

/// Where engines show their counters if they are not told otherwise.
#[must_use]
pub fn usual_place() -> PathBuf {
    PathBuf::from(seqcast_engine::counters::DIRECTORY)
}

//! Changes, and their undoing.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Change, Finding, Remedy, State};

/// Why nothing, or not all, was changed.
#[derive(Debug, Error)]
pub enum Error {
    /// What was there before cannot be kept, so nothing more is changed.
    #[error("cannot keep in {path} what was there before")]
    Keep {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The record of changes cannot be read.
    #[error("cannot read {path}, which says what was there before")]
    Record {
        /// The file.
        path: PathBuf,
        /// What the system said, or what is wrong.
        source: io::Error,
    },
    /// Nothing was ever changed here.
    #[error("nothing to undo: there is no {path}")]
    Nothing {
        /// The file that would say what was there before.
        path: PathBuf,
    },
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It would be made.
    Planned,
    /// It was made.
    Made,
    /// It was so already.
    Already,
    /// It was refused, for this reason.
    Refused(String),
}

/// One change.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// What was wanted.
    pub change: Change,
    /// What it was before.
    pub before: Option<String>,
    /// What became of it.
    pub outcome: Outcome,
}

/// The settings as they were before the first change.
#[derive(Default, Serialize, Deserialize)]
struct Record {
    /// In the order of the changes.
    before: Vec<Change>,
}

impl Record {
    fn read(path: &Path) -> Result<Option<Record>, Error> {
        let failed = |source| Error::Record {
            path: path.to_owned(),
            source,
        };
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| failed(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Writes all of it or leaves what there is.
    fn write(&self, path: &Path) -> Result<(), Error> {
        let write = || {
            let directory = path.parent().unwrap_or(Path::new("."));
            fs::create_dir_all(directory)?;
            let draft = path.with_extension("new");
            let mut file = File::create(&draft)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            fs::rename(&draft, path)
        };
        write().map_err(|source| Error::Keep {
            path: path.to_owned(),
            source,
        })
    }

    fn note(&mut self, before: Change) -> bool {
        let known = |c: &Change| c.setting == before.setting && c.interface == before.interface;
        let new = !self.before.iter().any(known);
        if new {
            self.before.push(before);
        }
        new
    }
}

/// The changes that these findings ask for.
fn wanted(findings: &[Finding]) -> impl Iterator<Item = &Change> {
    let poor = findings.iter().filter(|finding| finding.state >= State::Poor);
    poor.flat_map(|finding| match &finding.remedy {
        Some(Remedy::Change(changes)) => changes.as_slice(),
        _ => &[],
    })
}

/// Makes the changes that findings ask for, or only tells which with `dry_run`. What a setting was
/// before is on disk, in `record`, before it is changed, so that a run that is killed can be undone.
///
/// # Errors
/// If the record cannot be read or written. What the kernel refuses is an outcome, not an error.
pub fn tune(findings: &[Finding], record: &Path, dry_run: bool) -> Result<Vec<Step>, Error> {
    let mut kept = Record::read(record)?.unwrap_or_default();
    let mut steps = Vec::new();
    for change in wanted(findings) {
        let now = change.now();
        let outcome = match &now {
            Err(error) => Outcome::Refused(error.to_string()),
            Ok(now) if *now == change.value => Outcome::Already,
            Ok(_) if dry_run => Outcome::Planned,
            Ok(now) => {
                if kept.note(change.with(now.clone())) {
                    kept.write(record)?;
                }
                made(change)
            }
        };
        steps.push(Step {
            change: change.clone(),
            before: now.ok(),
            outcome,
        });
    }
    Ok(steps)
}

/// Brings back what was there before, last change first. What cannot be brought back stays in the
/// record.
///
/// # Errors
/// If there is no record, or it cannot be read or written.
pub fn undo(record: &Path, dry_run: bool) -> Result<Vec<Step>, Error> {
    let kept = Record::read(record)?.ok_or_else(|| Error::Nothing {
        path: record.to_owned(),
    })?;
    let mut steps = Vec::new();
    let mut left = Record::default();
    for change in kept.before.iter().rev() {
        let now = change.now();
        let outcome = match &now {
            // The setting is gone with its interface.
            Err(error) => Outcome::Refused(error.to_string()),
            Ok(now) if *now == change.value => Outcome::Already,
            Ok(_) if dry_run => Outcome::Planned,
            Ok(_) => made(change),
        };
        if matches!(outcome, Outcome::Refused(_)) {
            left.before.insert(0, change.clone());
        }
        steps.push(Step {
            change: change.clone(),
            before: now.ok(),
            outcome,
        });
    }
    if dry_run {
        return Ok(steps);
    }
    if left.before.is_empty() {
        fs::remove_file(record).map_err(|source| Error::Keep {
            path: record.to_owned(),
            source,
        })?;
    } else {
        left.write(record)?;
    }
    Ok(steps)
}

fn made(change: &Change) -> Outcome {
    match change.apply() {
        Ok(()) => Outcome::Made,
        Err(error) => Outcome::Refused(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Setting;
    use super::*;

    fn finding(file: &Path, value: &str) -> Finding {
        Finding {
            topic: "a file",
            state: State::Poor,
            is: String::new(),
            why: "",
            remedy: Some(Remedy::Change(vec![Change {
                interface: "eth1".into(),
                setting: Setting::File(file.to_owned()),
                value: value.into(),
            }])),
        }
    }

    #[test]
    fn what_was_changed_is_brought_back() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        let record = directory.path().join("state/record.json");
        fs::write(&a, "1\n").unwrap();
        fs::write(&b, "always [madvise] never\n").unwrap();
        let findings = [
            finding(&a, "0"),
            finding(&b, "madvise"),
            finding(Path::new("/nowhere"), "1"),
        ];

        let steps = tune(&findings, &record, true).unwrap();
        assert_eq!(steps[0].outcome, Outcome::Planned);
        assert_eq!(steps[1].outcome, Outcome::Already);
        assert!(matches!(steps[2].outcome, Outcome::Refused(_)));
        assert!(!record.exists());

        // What was there at first counts, however often it is changed.
        for value in ["0", "7"] {
            let steps = tune(&[finding(&a, value)], &record, false).unwrap();
            assert_eq!(steps[0].outcome, Outcome::Made);
            assert_eq!(fs::read_to_string(&a).unwrap(), value);
        }
        let steps = undo(&record, false).unwrap();
        assert_eq!((steps.len(), &steps[0].outcome), (1, &Outcome::Made));
        assert_eq!(fs::read_to_string(&a).unwrap(), "1");
        assert!(!record.exists());
        assert!(matches!(undo(&record, false), Err(Error::Nothing { .. })));
    }

    #[test]
    fn what_cannot_be_brought_back_yet_is_not_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let (file, record) = (directory.path().join("a"), directory.path().join("record.json"));
        fs::write(&file, "1").unwrap();
        tune(&[finding(&file, "0")], &record, false).unwrap();
        fs::remove_file(&file).unwrap();
        assert!(matches!(undo(&record, false).unwrap()[0].outcome, Outcome::Refused(_)));
        fs::write(&file, "0").unwrap();
        assert_eq!(undo(&record, false).unwrap()[0].outcome, Outcome::Made);
        assert_eq!(fs::read_to_string(&file).unwrap(), "1");
    }

    #[test]
    fn a_damaged_record_stops_everything() {
        let directory = tempfile::tempdir().unwrap();
        let (file, record) = (directory.path().join("a"), directory.path().join("record.json"));
        fs::write(&file, "1").unwrap();
        fs::write(&record, "{").unwrap();
        assert!(matches!(
            tune(&[finding(&file, "0")], &record, false),
            Err(Error::Record { .. })
        ));
        assert_eq!(fs::read_to_string(&file).unwrap(), "1");
    }
}

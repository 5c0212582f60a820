//! What opening an archive found, in words.

use std::fmt;

use seqcast_proto::seq::Session;

/// One thing that opening an archive found, and what it did about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryNote {
    /// In which session; [`Session::NONE`] for the archive's own directory.
    pub session: Session,
    /// What it was.
    pub what: What,
}

/// What opening an archive found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The session was not closed in order; what came after its last checkpoint was read.
    Scanned {
        /// Segments read.
        segments: u32,
        /// Records found in them.
        records: u64,
        /// Bytes read.
        bytes: u64,
    },
    /// The checkpoint could not be used, so that all segments were read.
    NoCheckpoint {
        /// Why.
        why: &'static str,
    },
    /// A segment's records end before something that is not a whole record.
    Cut {
        /// The segment file.
        file: String,
        /// Where its records end now.
        offset: u32,
        /// What is wrong there.
        why: &'static str,
    },
    /// The disk could not read all of a file. Of a segment, the records before and behind the place are kept,
    /// and it takes no further ones.
    Unreadable {
        /// The file.
        file: String,
        /// The byte from which on something was missing.
        offset: u32,
    },
    /// A segment file has not the length that it was made with. It takes no further records.
    Length {
        /// The segment file.
        file: String,
        /// Its length.
        found: u64,
        /// What its header says.
        wanted: u64,
    },
    /// Records whose numbers were stored already, or did not fit the limit of ranges.
    Ignored {
        /// How many.
        records: u64,
    },
    /// A file was removed.
    Removed {
        /// The file.
        file: String,
        /// Why.
        why: &'static str,
    },
    /// A file was left alone and is not used.
    LeftAlone {
        /// The file.
        file: String,
        /// Why.
        why: &'static str,
    },
    /// The disk is full: the state found could not be written down, so the next opening reads it
    /// again.
    DiskFull,
}

impl fmt::Display for RecoveryNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(session) = self.session.known() {
            write!(f, "session {session}: ")?;
        }
        match &self.what {
            What::Scanned {
                segments,
                records,
                bytes,
            } => write!(
                f,
                "was not closed in order; read {bytes} bytes in {segments} segments and found \
                 {records} records after the last checkpoint"
            ),
            What::NoCheckpoint { why } => write!(f, "reads all segments: {why}"),
            What::Cut { file, offset, why } => {
                write!(f, "cut {file} at {offset}: what follows is not a whole record ({why})")
            }
            What::Unreadable { file, offset } => write!(
                f,
                "the disk cannot read all of {file}, from byte {offset} on (a bad sector?); kept what can be read. Replace \
                 the disk, and mend the archive with `seqcast archive repair`"
            ),
            What::Length { file, found, wanted } => write!(
                f,
                "{file} has {found} bytes and was made with {wanted}; goes on in a new segment"
            ),
            What::Ignored { records } => {
                write!(
                    f,
                    "ignored {records} records whose numbers were stored already or too scattered"
                )
            }
            What::Removed { file, why } => write!(f, "removed {file}: {why}"),
            What::LeftAlone { file, why } => write!(f, "left {file} alone: {why}"),
            What::DiskFull => f.write_str("cannot write a checkpoint, the disk is full"),
        }
    }
}

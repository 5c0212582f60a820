//! Everything that reads bytes of others, as functions of arbitrary bytes that panic when a promise
//! is broken. The fuzzer runs them without end (`scripts/fuzz`), `cargo test` over the committed
//! corpus and mutations of it. `docs/fuzzing.md` says what each of them holds to.

#[cfg(feature = "files")]
mod archive;
#[cfg(feature = "files")]
mod feeds;
mod mold;
mod packet;
#[cfg(feature = "files")]
mod ring;
mod seal;
mod states;
mod subjects;
mod wire;

/// One of them.
pub type Harness = fn(&[u8]);

/// All of them, by the names of their fuzz targets and corpora.
pub const HARNESSES: &[(&str, Harness)] = &[
    #[cfg(feature = "files")]
    ("archive", archive::open),
    #[cfg(feature = "files")]
    ("binaryfile", feeds::binaryfile),
    #[cfg(feature = "files")]
    ("config", feeds::config),
    #[cfg(feature = "files")]
    ("itch", feeds::itch),
    #[cfg(feature = "files")]
    ("journal", feeds::journal),
    ("mold", mold::exchange),
    ("packet", packet::parse),
    #[cfg(feature = "files")]
    ("ring", ring::read),
    #[cfg(feature = "files")]
    ("saved", feeds::saved),
    ("seal", seal::open),
    ("states", states::run),
    ("subjects", subjects::compare),
    ("wire", wire::parse),
];

/// The harness of a target.
///
/// # Panics
/// When there is none of that name.
#[must_use]
pub fn harness(name: &str) -> Harness {
    let found = HARNESSES.iter().find(|(n, _)| *n == name);
    found.unwrap_or_else(|| panic!("no harness {name}")).1
}

/// A directory for what is read by path, in memory where the system has a place for that.
#[cfg(feature = "files")]
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a directory for temporary files")
}

/// Takes values off the front of the input; zeros once it is used up.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn u8(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }
}

//! Anonymous memory: an archive that ends with its process.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use super::{Found, Storage};
use crate::mapping::{Mapping, Pages};

/// Memory with no names behind it: whoever made a mapping holds the only way to it.
#[derive(Debug)]
pub struct Memory;

impl Storage for Memory {
    fn list(&self, _: &str) -> io::Result<Vec<Found>> {
        Ok(Vec::new())
    }

    fn create_dir(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn read(&self, _: &str) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn replace(&self, _: &str, _: &[u8], _: bool) -> io::Result<()> {
        Ok(())
    }

    fn inform(&self, _: &str, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn create(&self, _: &str, len: usize, _: bool) -> io::Result<Mapping> {
        Mapping::anonymous(len)
    }

    fn map(&self, _: &str) -> io::Result<Mapping> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self, _: &Pages, _: Range<usize>) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn epoch(&self) -> [u8; 16] {
        [0; 16]
    }

    fn random(&self) -> io::Result<u64> {
        use std::hash::{BuildHasher, RandomState};
        Ok(RandomState::new().hash_one(0))
    }

    fn display(&self, path: &str) -> PathBuf {
        PathBuf::from("memory").join(path)
    }
}

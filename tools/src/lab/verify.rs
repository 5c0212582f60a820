//! What a run must have come to.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use seqcast_archive::Reader as Archive;
use seqcast_engine::feed::binaryfile::Writer;
use seqcast_proto::seq::Seq;
use seqcast_proto::wire::Block;

use super::interrupt;

/// The messages of an archive, or of a server's log, in the order of sessions and numbers, framed
/// as a BinaryFILE.
///
/// # Errors
/// When the archive cannot be read, or holds a record that is not whole.
pub fn archived(directory: &Path) -> Result<Vec<u8>> {
    let archive = Archive::open(directory).with_context(|| format!("cannot open {}", directory.display()))?;
    let mut bytes = Writer::new(Vec::new());
    let mut count = 0u64;
    for number in archive.sessions()? {
        let mut session = archive.session(number)?;
        for record in session.in_order(Seq::FIRST) {
            let record = record?;
            let block = Block::parse(record.first, record.count, &record.block)
                .map_err(|error| anyhow::anyhow!("session {number}, message {}: {error}", record.first))?;
            for (_, message) in block.messages() {
                bytes.write(message.payload)?;
            }
            count += 1;
            interrupt::check_every(count)?;
        }
    }
    Ok(bytes.finish()?)
}

/// Fails, and says where, unless bytes are those of a file.
pub(super) fn same_bytes(what: &str, got: &[u8], want: &Path) -> Result<()> {
    let want = fs::read(want).with_context(|| format!("cannot read {}", want.display()))?;
    let equal = got.iter().zip(&want).take_while(|(a, b)| a == b).count();
    ensure!(
        got == want,
        "{what} has {} bytes, the input {}; they are equal up to byte {equal}",
        got.len(),
        want.len()
    );
    Ok(())
}

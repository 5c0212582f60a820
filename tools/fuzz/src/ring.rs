//! The reading side of a shared ring over memory that holds anything.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use seqcast_ring::{MAX_MESSAGE, Read, Reader};

/// Reads in one run; a ring that lies may go on for ever.
const READS: usize = 256;

/// Opens or refuses; then reads, changes the memory under the reader by the rest of the input, and reads on.
pub(crate) fn read(bytes: &[u8]) {
    let (memory, changes) = bytes.split_at(bytes.len().min(4096));
    let fd = memfd_create(c"ring", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).expect("a memory file");
    let mut file = File::from(fd);
    file.write_all(memory).expect("memory takes all");
    file.set_len(4096).expect("memory takes all");
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).expect("a file that can be sealed");
    let Ok(mut reader) = Reader::open(file.as_fd()) else {
        return;
    };
    drain(&mut reader.clone());
    for change in changes.chunks_exact(10) {
        let at = u64::from(u16::from_le_bytes([change[0], change[1]])) % 512 * 8;
        std::os::unix::fs::FileExt::write_all_at(&file, &change[2..], at).expect("a place within");
        drain(&mut reader);
    }
}

fn drain(reader: &mut Reader) {
    for _ in 0..READS {
        let expected = reader.next();
        match reader.read() {
            None => break,
            Some(Read::Message { number, bytes, .. }) => {
                assert_eq!(number, expected);
                assert!(bytes.len() <= MAX_MESSAGE);
            }
            Some(Read::Missed { first, count }) => {
                assert_eq!(first, expected);
                assert!(count > 0);
                assert_eq!(reader.next(), first.wrapping_add(count));
            }
        }
    }
    assert!(!reader.is_corrupt() || reader.is_finished());
}

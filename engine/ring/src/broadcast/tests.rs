use super::*;
use proptest::prelude::*;
use std::thread;

fn message(number: u64, len: usize) -> Vec<u8> {
    (0..len).map(|at| (number as usize * 31 + at) as u8).collect()
}

/// Reads all there is: messages as (number, tag, bytes), and what was missed.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    messages: Vec<(u64, u32, Vec<u8>)>,
    missed: Vec<(u64, u64)>,
}

fn read_all(reader: &mut Reader) -> Seen {
    let mut seen = Seen::default();
    while let Some(read) = reader.read() {
        match read {
            Read::Message { number, tag, bytes } => seen.messages.push((number, tag, bytes.to_vec())),
            Read::Missed { first, count } => seen.missed.push((first, count)),
        }
    }
    seen
}

#[test]
fn every_reader_gets_every_message_from_its_start() {
    let (mut writer, mut early) = broadcast(8, 100);
    assert_eq!(writer.publish(7, b"first"), Ok(0));
    let mut clone = early.clone();
    assert_eq!(writer.publish(8, b""), Ok(1));
    let all = vec![(0, 7, b"first".to_vec()), (1, 8, Vec::new())];
    assert_eq!(read_all(&mut early).messages, all);
    assert_eq!(read_all(&mut clone).messages, all);
    assert!(!early.is_finished());
    drop(writer);
    assert!(early.is_finished() && !early.is_corrupt());
}

#[test]
fn a_reader_learns_exactly_what_it_missed() {
    let (mut writer, mut reader) = broadcast(8, 64);
    for number in 0..21 {
        writer.publish(number as u32, &message(number, 64)).unwrap();
    }
    let seen = read_all(&mut reader);
    assert_eq!(seen.missed, [(0, 17)]);
    let wanted: Vec<_> = (17..21).map(|n| (n, n as u32, message(n, 64))).collect();
    assert_eq!(seen.messages, wanted);
}

#[test]
fn slots_take_their_stated_length_and_no_more() {
    let (mut writer, mut reader) = broadcast(2, 1472);
    let max_len = writer.max_len();
    assert!(max_len >= 1472);
    let longest = message(3, max_len);
    assert_eq!(writer.publish(0, &[0; 2000]), Err(TooLarge { len: 2000, max_len }));
    writer.publish(1, &longest).unwrap();
    assert_eq!(read_all(&mut reader).messages, [(0, 1, longest)]);
}

#[test]
fn two_threads_and_an_honest_account() {
    let messages: u64 = if cfg!(miri) { 200 } else { 300_000 };
    let (mut writer, reader) = broadcast(16, 40);
    thread::scope(|scope| {
        for mut reader in [reader.clone(), reader] {
            scope.spawn(move || {
                let mut next = 0;
                while !reader.is_finished() {
                    match reader.read() {
                        Some(Read::Message { number, tag, bytes }) => {
                            assert_eq!((number, tag), (next, next as u32));
                            assert_eq!(bytes, message(number, number as usize % 41));
                            next += 1;
                        }
                        Some(Read::Missed { first, count }) => {
                            assert!(first == next && count > 0);
                            next += count;
                        }
                        None => thread::yield_now(),
                    }
                }
                assert_eq!(next, messages);
                assert!(!reader.is_corrupt());
            });
        }
        for number in 0..messages {
            writer
                .publish(number as u32, &message(number, number as usize % 41))
                .unwrap();
        }
        drop(writer);
    });
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    /// Whatever the memory holds, a reader stays inside it, never panics, and lends no more than a slot.
    #[test]
    fn a_hostile_writer_is_contained(
        words in prop::collection::vec((0usize..64, prop_oneof![any::<u64>(), 0u64..64]), 1..64),
        published in 0u64..6,
    ) {
        let (mut writer, mut reader) = broadcast(4, 40);
        for number in 0..published {
            writer.publish(0, &message(number, 40)).unwrap();
        }
        for (at, word) in words {
            writer.words[at].store(word, Ordering::Relaxed);
            if let Some(Read::Message { bytes, .. }) = reader.read() {
                prop_assert!(bytes.len() <= 48);
            }
            let _ = (reader.is_finished(), Shape::of(&writer.words));
        }
    }
}

#[cfg(not(miri))] // Miri has no memory files
mod shared {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn another_mapping_reads_what_is_published_from_then_on() {
        let (mut writer, fd) = Broadcaster::shared(4, 64).unwrap();
        writer.publish(0, b"before").unwrap();
        let mut reader = Reader::open(fd.as_fd()).unwrap();
        writer.publish(1, b"after").unwrap();
        assert_eq!(read_all(&mut reader).messages, [(1, 1, b"after".to_vec())]);
        drop((writer, fd));
        assert!(reader.is_finished());
    }

    #[test]
    fn a_reader_cannot_write_or_shrink_the_ring() {
        let (_writer, fd) = Broadcaster::shared(4, 64).unwrap();
        let file = std::fs::File::from(fd);
        assert!(file.set_len(0).is_err());
        assert!(std::io::Write::write(&mut &file, b"x").is_err());
    }

    #[test]
    fn memory_that_is_no_ring_is_refused() {
        let (_mapping, fd) = Mapping::create(4096, false).unwrap();
        let error = Reader::open(fd.as_fd()).err().unwrap().to_string();
        assert!(error.contains("no broadcast ring"), "{error}");
        let pipe = std::io::pipe().unwrap().0;
        assert!(Reader::open(pipe.as_fd()).is_err());
    }
}

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::thread;

fn take(consumer: &mut Consumer) -> Option<(u32, Vec<u8>)> {
    let taken = consumer.peek().map(|e| (e.tag, e.bytes.to_vec()));
    consumer.advance();
    taken
}

#[test]
fn a_message_comes_out_as_it_went_in() {
    let (mut producer, mut consumer) = lane(256);
    assert_eq!(consumer.peek(), None);
    producer.try_push(7, &[b"ab", b"", b"cde"]).unwrap();
    producer.try_push(8, &[]).unwrap();
    assert_eq!(
        consumer.peek(),
        Some(Entry {
            tag: 7,
            bytes: b"abcde"
        })
    );
    assert_eq!(take(&mut consumer), Some((7, b"abcde".to_vec())));
    assert_eq!(take(&mut consumer), Some((8, Vec::new())));
    assert_eq!(take(&mut consumer), None);
}

#[test]
fn a_dropped_claim_leaves_no_trace() {
    let (mut producer, mut consumer) = lane(128);
    for n in 0..20 {
        producer.try_claim(24).unwrap().fill(0xee);
        assert_eq!(consumer.peek(), None);
        producer.try_push(n, &[&[n as u8; 16]]).unwrap();
        assert_eq!(take(&mut consumer), Some((n, vec![n as u8; 16])));
    }
}

#[test]
fn the_longest_message_always_fits_an_empty_lane() {
    let (mut producer, mut consumer) = lane(1024);
    let longest = producer.max_len();
    assert_eq!(longest, 504);
    assert_eq!(producer.try_push(0, &[&vec![0; longest + 1]]), Err(LaneError::TooLarge));
    for step in (0..200).step_by(if cfg!(miri) { 20 } else { 1 }) {
        producer.try_push(0, &[&vec![1; step]]).unwrap();
        consumer.drain(1, |_, _| true);
        producer.try_push(0, &[&vec![2; longest]]).unwrap();
        assert_eq!(consumer.drain(9, |_, bytes| bytes == vec![2; longest]), 1);
    }
}

#[test]
fn room_comes_back_when_flushed_or_drained() {
    let (mut producer, mut consumer) = lane(64);
    let fill = |producer: &mut Producer| (0..).take_while(|n| producer.try_push(*n, &[&[0; 8]]).is_ok()).count();
    assert_eq!(fill(&mut producer), 4);
    take(&mut consumer);
    assert_eq!(fill(&mut producer), 0);
    consumer.flush();
    assert_eq!(fill(&mut producer), 1);
    assert_eq!(consumer.drain(2, |_, _| true), 2);
    assert_eq!(fill(&mut producer), 2);
}

#[test]
fn drain_leaves_the_refused_message() {
    let (mut producer, mut consumer) = lane(256);
    for n in 0..5 {
        producer.try_push(n, &[]).unwrap();
    }
    assert_eq!(consumer.drain(usize::MAX, |tag, _| tag < 3), 3);
    assert_eq!(consumer.peek().map(|e| e.tag), Some(3));
}

#[test]
fn closing_is_seen_by_the_other_side() {
    let (mut producer, mut consumer) = lane(64);
    producer.try_push(1, &[]).unwrap();
    drop(producer);
    assert!(!consumer.is_finished());
    assert_eq!(take(&mut consumer), Some((1, Vec::new())));
    assert!(consumer.is_finished());

    let (producer, consumer) = lane(64);
    assert!(!producer.is_closed());
    drop(consumer);
    assert!(producer.is_closed());
}

#[test]
fn capacity_is_raised_to_what_a_lane_needs() {
    assert_eq!(lane(0).0.max_len(), MIN_CAPACITY / 2 - HEADER);
    assert_eq!(lane(1000).0.max_len(), 1024 / 2 - HEADER);
}

#[derive(Clone, Debug)]
enum Step {
    Push(usize),
    Abort(usize),
    Drain(usize),
    Take,
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0usize..140).prop_map(Step::Push),
        1 => (0usize..140).prop_map(Step::Abort),
        2 => (0usize..6).prop_map(Step::Drain),
        2 => Just(Step::Take),
        1 => Just(Step::Flush),
    ]
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 512 },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    /// The lane is a bounded queue: the same steps on a VecDeque give the same messages. It starts
    /// shortly before its positions wrap.
    #[test]
    fn behaves_as_a_queue(before_wrap in 0u64..64, steps in prop::collection::vec(step(), 1..200)) {
        let (mut producer, mut consumer) = lane_at(256, (before_wrap * 8).wrapping_neg());
        let mut queue = VecDeque::new();
        for (n, step) in steps.into_iter().enumerate() {
            let tag = n as u32;
            match step {
                Step::Push(len) => {
                    let message = vec![n as u8; len];
                    match producer.try_push(tag, &[&message[..len / 2], &message[len / 2..]]) {
                        Ok(()) => queue.push_back((tag, message)),
                        Err(LaneError::TooLarge) => prop_assert!(len > 120),
                        Err(LaneError::Full) => prop_assert!(len <= 120),
                    }
                }
                Step::Abort(len) => drop(producer.try_claim(len).map(|mut claim| claim.fill(0xff))),
                Step::Drain(max) => {
                    let mut seen = Vec::new();
                    let n = consumer.drain(max, |tag, bytes| {
                        seen.push((tag, bytes.to_vec()));
                        true
                    });
                    prop_assert_eq!(n, max.min(queue.len()));
                    prop_assert!(queue.drain(..n).eq(seen));
                }
                Step::Take => prop_assert_eq!(take(&mut consumer), queue.pop_front()),
                Step::Flush => consumer.flush(),
            }
        }
        consumer.drain(usize::MAX, |tag, bytes| queue.pop_front() == Some((tag, bytes.to_vec())));
        prop_assert!(queue.is_empty());
        // An empty lane has room for the longest message.
        prop_assert!(producer.try_claim(producer.max_len()).is_ok());
    }

    /// Whatever a producer writes into the region, the consumer stays inside it, ends, and either
    /// sees messages or names the corruption.
    #[test]
    fn a_hostile_producer_is_contained(
        words in prop::collection::vec(prop_oneof![
            any::<u64>(),
            (0u64..80).prop_map(|len| len | 9 << 32),
            Just(u64::from(FILLER)),
        ], 8..=32),
        published in prop_oneof![0u64..64, Just(8), any::<u64>(), (1u64..9).prop_map(|n| n * 8)],
    ) {
        let (producer, mut consumer) = lane_at(64, 0);
        for (n, word) in words.iter().take(8).enumerate() {
            // SAFETY: inside the region; the consumer is not reading.
            unsafe { producer.region.at(n * 8, 8).cast::<u64>().write(*word) };
        }
        let mut cursor = WriteCursor::new(0, 64);
        cursor.stage(published);
        cursor.publish(producer.region.indices());
        let mut seen = 0;
        let n = consumer.drain(usize::MAX, |_, bytes| {
            seen += entry_size(bytes.len());
            true
        });
        prop_assert!(seen <= 64 && n <= 8);
        prop_assert_eq!(consumer.corruption().is_some(), seen as u64 != published && consumer.is_finished());
        prop_assert!(consumer.peek().is_none());
    }
}

#[test]
fn a_consumer_that_lies_about_its_position_leaves_no_room() {
    for lie in [8, u64::MAX - 7, 1 << 63] {
        let (mut producer, consumer) = lane_at(64, 1 << 20);
        for n in 0..4 {
            producer.try_push(n, &[&[0; 8]]).unwrap();
        }
        let mut cursor = ReadCursor::new(1 << 20);
        cursor.consume(lie);
        cursor.release(consumer.region.indices());
        assert_eq!(producer.try_push(0, &[]), Err(LaneError::Full));
    }
}

#[test]
fn two_threads_pass_every_message_in_order() {
    let count: u32 = if cfg!(miri) { 100 } else { 500_000 };
    let (mut producer, mut consumer) = lane(512);
    let writer = thread::spawn(move || {
        for n in 0..count {
            let len = (n.wrapping_mul(2_654_435_761) >> 24) as usize % 200;
            loop {
                if let Ok(mut claim) = producer.try_claim(len) {
                    claim.fill(n as u8);
                    claim.set_tag(n);
                    claim.commit();
                    break;
                }
                thread::yield_now();
            }
        }
    });
    let mut expected = 0u32;
    while !consumer.is_finished() {
        let n = consumer.drain(16, |tag, bytes| {
            let len = (expected.wrapping_mul(2_654_435_761) >> 24) as usize % 200;
            assert_eq!((tag, bytes.len()), (expected, len));
            assert!(bytes.iter().all(|b| *b == expected as u8));
            expected += 1;
            true
        });
        if n == 0 {
            thread::yield_now();
        }
    }
    assert_eq!(expected, count);
    writer.join().unwrap();
}

#[cfg(not(miri))] // Miri has no memory files
mod shared {
    use super::*;
    use std::os::fd::AsFd;

    fn read(lane: &mut Guarded) -> Vec<(u32, Vec<u8>)> {
        let mut all = Vec::new();
        while let Some(entry) = lane.peek() {
            all.push((entry.tag, entry.bytes.to_vec()));
            lane.advance();
        }
        lane.flush();
        lane.flush();
        all
    }

    #[test]
    fn messages_pass_between_two_mappings() {
        let (mut lane, fd) = Guarded::create(1 << 12, 100).unwrap();
        let mut producer = Producer::open(fd.as_fd()).unwrap();
        for round in 0..200u32 {
            let message = vec![round as u8; round as usize % 101];
            producer.try_push(round, &[&message]).unwrap();
            assert!(!producer.is_drained());
            assert_eq!(read(&mut lane), [(round, message)]);
            assert!(producer.is_drained());
        }
        drop(producer);
        assert!(lane.is_finished() && lane.corruption().is_none());
    }

    #[test]
    fn a_lane_takes_messages_of_the_stated_length_and_calls_longer_ones_corrupt() {
        let (mut lane, fd) = Guarded::create(0, 1000).unwrap();
        let mut producer = Producer::open(fd.as_fd()).unwrap();
        producer.try_push(1, &[&[7; 1000]]).unwrap();
        assert_eq!(read(&mut lane).len(), 1);
        producer.try_push(1, &[&[7; 1001]]).unwrap();
        assert!(lane.peek().is_none() && lane.is_finished());
        assert_eq!(lane.corruption().unwrap().length, 1001);
    }

    #[test]
    fn what_is_lent_does_not_change_under_the_reader() {
        let (mut lane, fd) = Guarded::create(1 << 12, 64).unwrap();
        let mut producer = Producer::open(fd.as_fd()).unwrap();
        producer.try_push(3, &[b"checked"]).unwrap();
        assert_eq!(lane.peek().unwrap().bytes, b"checked");
        // SAFETY: inside the region, which no other thread touches.
        unsafe { producer.region.at(0, 16).write_bytes(0xff, 16) };
        assert_eq!(lane.peek().unwrap().bytes, b"checked");
    }

    #[test]
    fn of_a_dead_producer_what_it_published_is_read_and_nothing_after() {
        let (mut lane, fd) = Guarded::create(1 << 12, 64).unwrap();
        let mut producer = Producer::open(fd.as_fd()).unwrap();
        producer.try_push(1, &[b"whole"]).unwrap();
        let mut claim = producer.try_claim(20).unwrap();
        claim.fill(0xee);
        lane.end_here();
        assert!(!lane.is_finished());
        // Somebody else still has the memory.
        producer.try_push(2, &[b"late"]).unwrap();
        assert_eq!(read(&mut lane), [(1, b"whole".to_vec())]);
        assert!(lane.is_finished() && lane.corruption().is_none());
    }

    #[test]
    fn a_producer_finds_what_was_not_taken() {
        for before in 0..50 {
            let (mut lane, fd) = Guarded::create(256, 64).unwrap();
            let mut producer = Producer::open(fd.as_fd()).unwrap();
            for _ in 0..before {
                producer.try_push(9, &[&[9; 24]]).unwrap();
                assert_eq!(read(&mut lane).len(), 1);
            }
            for n in 0..3 {
                producer.try_push(n, &[&[n as u8; 24]]).unwrap();
            }
            lane.peek().unwrap();
            lane.advance();
            lane.flush();
            // What was read and not given back counts as not taken, even when all was read.
            while lane.peek().is_some() {
                lane.advance();
            }
            drop(lane);
            assert!(producer.is_closed() && !producer.is_drained());
            let mut tags = Vec::new();
            producer.into_untaken(|tag, bytes| {
                assert_eq!(bytes, [tag as u8; 24]);
                tags.push(tag);
            });
            assert_eq!(tags, [1, 2]);
        }
    }

    #[test]
    fn an_engine_writes_to_a_reader_that_lies() {
        let (mut producer, fd) = Producer::create(256).unwrap();
        let mut reader = Consumer::open(fd.as_fd()).unwrap();
        producer.try_push(1, &[b"one"]).unwrap();
        assert_eq!(take(&mut reader), Some((1, b"one".to_vec())));
        let mut cursor = ReadCursor::new(0);
        cursor.consume(u64::MAX / 2);
        cursor.release(reader.region.indices());
        while producer.try_push(2, &[&[2; 40]]).is_ok() {}
        assert_eq!(producer.try_push(2, &[&[2; 40]]), Err(LaneError::Full));
    }

    #[test]
    fn a_sleeping_reader_is_to_be_woken_once() {
        let (lane, fd) = Guarded::create(256, 64).unwrap();
        let producer = Producer::open(fd.as_fd()).unwrap();
        assert!(!producer.take_asleep());
        lane.set_asleep(true);
        assert!(producer.take_asleep() && !producer.take_asleep());
        lane.set_asleep(true);
        lane.set_asleep(false);
        assert!(!producer.take_asleep());
    }

    #[test]
    fn memory_that_is_no_lane_is_refused_and_a_lane_keeps_its_size() {
        let (_mapping, fd) = crate::words::Mapping::create(100, true).unwrap();
        let error = Producer::open(fd.as_fd()).err().unwrap().to_string();
        assert!(error.contains("no lane"), "{error}");
        let (_lane, fd) = Guarded::create(256, 64).unwrap();
        assert!(std::fs::File::from(fd).set_len(0).is_err());
        let (_ring, fd) = crate::Broadcaster::shared(4, 64).unwrap();
        assert!(Producer::open(fd.as_fd()).is_err());
    }

    proptest! {
        #![proptest_config(config())]

        /// Whatever another process writes into the whole region, at any time, the reader stays inside it,
        /// ends, and lends no more than was agreed.
        #[test]
        fn a_hostile_process_is_contained(
            writes in prop::collection::vec((0usize..64, prop_oneof![
                any::<u64>(), (0u64..120).prop_map(|n| n * 8), (0u64..200).prop_map(|len| len | 5 << 32), Just(u64::from(FILLER)),
            ]), 1..80),
        ) {
            let (mut lane, fd) = Guarded::create(256, 100).unwrap();
            let (mapping, fd) = (crate::words::Mapping::open(fd.as_fd(), true).unwrap(), fd);
            let words = crate::words::Words::mapped(mapping);
            let mut producer = Producer::open(fd.as_fd()).unwrap();
            for (at, word) in writes {
                let _ = producer.try_push(1, &[&[1; 16]]);
                words[at].store(word, Ordering::Relaxed);
                for _ in 0..64 {
                    if let Some(entry) = lane.peek() {
                        prop_assert!(entry.bytes.len() <= 100);
                    }
                    lane.advance();
                }
                lane.flush();
            }
            lane.end_here();
            for _ in 0..64 {
                lane.peek();
                lane.advance();
            }
            prop_assert!(lane.is_finished());
        }
    }
}

//! Frames of every kind.

use seqcast_proto::seq::{Seq, SeqRange};
use seqcast_proto::wire::{Block, Body, Frame, peek, put_message};

/// A frame is refused, or all that it says is within it, and its block can be cut and rebuilt.
pub(crate) fn parse(bytes: &[u8]) {
    let _ = peek(bytes);
    let Ok(frame) = Frame::parse(bytes) else { return };
    assert_eq!(peek(bytes).map(|(stream, _)| stream), Some(frame.header.stream()));
    match frame.body {
        Body::Data(block) | Body::Repair(block) => check_block(&block),
        Body::Ack(ranges) | Body::Nak(ranges) => ranges.iter().for_each(check_range),
        Body::Unavailable(refusals) => refusals.iter().for_each(|(range, ..)| check_range(range)),
        Body::Heartbeat(..) | Body::End(..) => {}
    }
}

fn check_range(range: SeqRange) {
    assert!(Seq::FIRST <= range.first && range.first <= range.last && range.last <= Seq::LAST);
}

fn check_block(block: &Block<'_>) {
    let mut built = vec![0; block.bytes().len()];
    let mut at = 0;
    let mut count = 0;
    for (i, (seq, message)) in block.messages().enumerate() {
        assert_eq!(seq.0, block.first().0 + i as u32);
        at += put_message(&mut built[at..], &message).expect("a message is as long as it was");
        count += 1;
    }
    assert_eq!((count, at), (block.count(), built.len()));
    let again = Block::parse(block.first(), block.count(), &built).expect("what is written can be read");
    assert!(again.messages().eq(block.messages()));

    let Some(range) = block.range() else { return };
    let middle = SeqRange::new(Seq(range.first.0 + range.len() / 2), range.last).unwrap_or(range);
    if let Some(part) = block.part(middle, usize::MAX) {
        assert_eq!(part.range(), Some(middle));
        let skipped = (middle.first.0 - range.first.0) as usize;
        assert!(part.messages().eq(block.messages().skip(skipped)));
    }
    if let Some(part) = block.part(range, 64) {
        assert!(part.bytes().len() <= 64);
    }
}

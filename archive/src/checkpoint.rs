//! The small files of a session: `session`, written once; `checkpoint`, replaced as a whole whenever a
//! segment is finished or released and at a clean stop; and `synced`, which says to others how far the
//! log is on disk.

use std::collections::BTreeMap;

use seqcast_proto::seq::{Seq, SeqRange, Session, Stream};

use crate::codec::{Fault, Fields, Parser};
use crate::segment::{Position, Segment};

const META_MAGIC: &[u8; 8] = b"SEQCSES\0";
const SYNCED_MAGIC: &[u8; 8] = b"SEQCSYN\0";
const MAGIC: &[u8; 8] = b"SEQCCKP\0";

/// What is known of a session when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionMeta {
    /// The session before it on the stream; [`Session::NONE`] when there was none or it is not
    /// known.
    pub previous: Session,
    /// The origin of the session as the writer numbers origins.
    pub origin: u32,
    /// A number of the writer's own. A server keeps here how many messages it had taken from its
    /// source before this session.
    pub user: u64,
}

pub(crate) fn meta_to_bytes(stream: Stream, session: Session, meta: &SessionMeta) -> Vec<u8> {
    Fields::new(META_MAGIC, stream)
        .u32(session.0)
        .u32(meta.previous.0)
        .u32(meta.origin)
        .u64(meta.user)
        .seal()
}

pub(crate) fn parse_meta(bytes: &[u8], session: Session) -> Result<(Stream, SessionMeta), Fault> {
    let mut fields = Parser::open(bytes, META_MAGIC)?;
    let mut parse = || {
        (Session(fields.u32()?) == session).then_some(())?;
        Some(SessionMeta {
            previous: Session(fields.u32()?),
            origin: fields.u32()?,
            user: fields.u64()?,
        })
    };
    let meta = parse().ok_or(Fault::Damaged)?;
    Ok((fields.stream, meta))
}

/// What says, while the machine is not started anew, that the log is on disk up to a position.
pub(crate) fn synced_to_bytes(stream: Stream, session: Session, epoch: [u8; 16], to: Position) -> Vec<u8> {
    Fields::new(SYNCED_MAGIC, stream)
        .u32(session.0)
        .bytes(&epoch)
        .u64(to.0)
        .seal()
}

pub(crate) fn parse_synced(bytes: &[u8], stream: Stream, session: Session, epoch: [u8; 16]) -> Option<Position> {
    let mut fields = Parser::open(bytes, SYNCED_MAGIC).ok()?;
    let ours = fields.stream == stream && Session(fields.u32()?) == session && fields.bytes()? == epoch;
    let to = Position(fields.u64()?);
    ours.then_some(to)
}

/// A finished or current segment as a checkpoint lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) number: u32,
    pub(crate) length: u32,
    pub(crate) end: u32,
    pub(crate) highest: Seq,
}

/// Everything about a session's log that holds for the records below `tail`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// The writer stopped in order: nothing follows `tail`.
    pub(crate) clean: bool,
    pub(crate) tail: Position,
    /// Numbers below it were released.
    pub(crate) floor: Seq,
    pub(crate) end: Option<(Seq, Session)>,
    pub(crate) segments: Vec<Listed>,
    pub(crate) stored: Vec<SeqRange>,
    pub(crate) lost: Vec<SeqRange>,
}

impl Checkpoint {
    /// A checkpoint that lists these segments, of a log that stores nothing.
    pub(crate) fn of<'a>(segments: impl Iterator<Item = &'a Segment>) -> Checkpoint {
        let segments: Vec<Listed> = segments
            .map(|s| Listed {
                number: s.number,
                length: s.length,
                end: s.end,
                highest: s.highest,
            })
            .collect();
        Checkpoint {
            clean: false,
            tail: segments
                .last()
                .map_or(Position::NONE, |s| Position::new(s.number, s.end)),
            floor: Seq(0),
            end: None,
            segments,
            stored: Vec::new(),
            lost: Vec::new(),
        }
    }

    /// The segments by their numbers.
    pub(crate) fn by_number(&self) -> BTreeMap<u32, &Listed> {
        self.segments.iter().map(|listed| (listed.number, listed)).collect()
    }

    /// `epoch` is the machine's start during which the checkpoint is true; zeros when it is true
    /// for ever, because all that it speaks of was on disk before it.
    pub(crate) fn to_bytes(&self, epoch: [u8; 16], stream: Stream, session: Session) -> Vec<u8> {
        let (end, next) = self.end.unwrap_or((Seq(0), Session::NONE));
        let flags = u32::from(self.clean) | u32::from(self.end.is_some()) << 1;
        let mut fields = Fields::new(MAGIC, stream)
            .u32(session.0)
            .u32(flags)
            .bytes(&epoch)
            .u64(self.tail.0)
            .u32(self.floor.0)
            .u32(end.0)
            .u32(next.0)
            .u32(self.segments.len() as u32)
            .u32(self.stored.len() as u32)
            .u32(self.lost.len() as u32);
        for s in &self.segments {
            fields = fields.u32(s.number).u32(s.length).u32(s.end).u32(s.highest.0);
        }
        fields.ranges(&self.stored).ranges(&self.lost).seal()
    }

    /// The checkpoint and its epoch.
    pub(crate) fn parse(bytes: &[u8], stream: Stream, session: Session) -> Result<(Checkpoint, [u8; 16]), Fault> {
        let mut fields = Parser::open(bytes, MAGIC)?;
        let mut parse = || {
            (fields.stream == stream && Session(fields.u32()?) == session).then_some(())?;
            let flags = fields.u32()?;
            let epoch = fields.bytes()?;
            let tail = Position(fields.u64()?);
            let floor = Seq(fields.u32()?);
            let end = (Seq(fields.u32()?), Session(fields.u32()?));
            let [segments, stored, lost] = [fields.u32()?, fields.u32()?, fields.u32()?];
            let mut listed = |_| {
                Some(Listed {
                    number: fields.u32()?,
                    length: fields.u32()?,
                    end: fields.u32()?,
                    highest: Seq(fields.u32()?),
                })
            };
            let checkpoint = Checkpoint {
                clean: flags & 1 != 0,
                tail,
                floor,
                end: (flags & 2 != 0).then_some(end),
                segments: (0..segments).map(&mut listed).collect::<Option<_>>()?,
                stored: (0..stored).map(|_| fields.range()).collect::<Option<_>>()?,
                lost: (0..lost).map(|_| fields.range()).collect::<Option<_>>()?,
            };
            Some((checkpoint, epoch))
        };
        parse().ok_or(Fault::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_files_come_back_and_refuse_what_is_not_theirs() {
        let meta = SessionMeta {
            previous: Session(3),
            origin: 9,
            user: 1 << 40,
        };
        let (stream, session) = (Stream(7), Session(4));
        let bytes = meta_to_bytes(stream, session, &meta);
        assert_eq!(parse_meta(&bytes, session), Ok((stream, meta)));
        assert_eq!(parse_meta(&bytes, Session(5)), Err(Fault::Damaged));
        assert_eq!(parse_meta(&bytes[..20], session), Err(Fault::Damaged));
        assert_eq!(parse_meta(b"hello", session), Err(Fault::Foreign));
        assert_eq!(parse_meta(b"", session), Err(Fault::Foreign));
        let mut newer = bytes;
        newer[8] += 1;
        assert_eq!(parse_meta(&newer, session), Err(Fault::Version(2)));

        let range = |first, n| SeqRange::of(Seq(first), n).unwrap();
        let checkpoint = Checkpoint {
            clean: true,
            tail: Position::new(2, 64),
            floor: Seq(3),
            end: Some((Seq(90), Session(6))),
            segments: vec![Listed {
                number: 1,
                length: 1 << 16,
                end: 640,
                highest: Seq(8),
            }],
            stored: vec![range(3, 4), range(8, 1)],
            lost: vec![range(7, 1)],
        };
        let bytes = checkpoint.to_bytes([5; 16], stream, session);
        assert_eq!(Checkpoint::parse(&bytes, stream, session), Ok((checkpoint, [5; 16])));
        for cut in 8..bytes.len() {
            assert!(Checkpoint::parse(&bytes[..cut], stream, session).is_err());
        }
    }
}

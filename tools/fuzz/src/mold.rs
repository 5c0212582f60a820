//! A stranger's packets, answers and requests, in both formats of MoldUDP.

use std::net::Ipv4Addr;

use seqcast_mold::answers::{Answers, Library};
use seqcast_mold::packet::{Builder, Packet, Request, write_beat};
use seqcast_mold::subscriber::{Event, Reader, Start, Subscriber, SubscriberConfig};
use seqcast_mold::{SessionName, Variant};
use seqcast_proto::time::{MILLIS, SECONDS};

use crate::Input;

const HOLD: usize = 4096;
const PACKET: usize = 256;

#[derive(Default)]
struct Heard {
    session: Option<SessionName>,
    /// Every message below is delivered or given up.
    next: u64,
    asked: usize,
}

impl Reader for Heard {
    fn deliver(&mut self, session: &SessionName, number: u64, _: &[u8]) {
        assert_eq!((self.session, self.next), (Some(*session), number), "in order and once");
        self.next = number + 1;
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Began(session, next) => {
                assert!(self.session.is_none() && next > 0);
                (self.session, self.next) = (Some(session), next);
            }
            Event::Lost(session, first, last) => {
                assert_eq!((self.session, self.next), (Some(session), first));
                assert!(first <= last);
                self.next = last + 1;
            }
            Event::Ended(session, next) => {
                assert_eq!((self.session.take(), self.next), (Some(session), next));
            }
            Event::TailUnknown(..) | Event::Silent(_) | Event::Heard(_) => {}
        }
    }

    fn ask(&mut self, server: usize, request: &Request) {
        assert!(server < 2 && request.count > 0 && request.first >= self.next);
        assert_eq!(Some(request.session), self.session);
        self.asked += 1;
    }
}

/// Every third message of a session is missing, and it ends at 100.
struct Some100;

impl Library for Some100 {
    fn read(&self, _: &SessionName, number: u64, each: &mut dyn FnMut(&[u8]) -> bool) {
        let _ = (number..100).take_while(|n| n % 3 != 0).all(|n| each(&[n as u8; 20]));
    }

    fn end(&self, _: &SessionName) -> Option<u64> {
        Some(100)
    }
}

/// Messages are delivered in order and once, or given up before later ones are; answers are one packet
/// of what was asked for.
pub(crate) fn exchange(bytes: &[u8]) {
    let mut input = Input(bytes);
    let how = input.u8();
    let variant = if how & 1 == 0 { Variant::Mold64 } else { Variant::Mold32 };
    let config = SubscriberConfig {
        variant,
        session: None,
        start: if how & 2 == 0 { Start::Now } else { Start::First },
        servers: usize::from(how >> 2 & 3).min(2),
        skew: MILLIS,
        give_up: SECONDS,
        hold: HOLD,
        silence: 3 * SECONDS,
        lines: 2,
    };
    let mut now = SECONDS;
    let mut subscriber = Subscriber::new(config, now);
    let mut answers = Answers::new(variant, PACKET, 1 << 20, now);
    let mut heard = Heard::default();
    while !input.is_empty() {
        let op = input.u8();
        let line = usize::from(op >> 4 & 1);
        match op & 7 {
            0 => {
                let length = usize::from(input.u8());
                let bytes = input.take(length);
                subscriber.on_packet(now, line, bytes, &mut heard);
                answers.answer(now, Ipv4Addr::LOCALHOST, bytes, &Some100);
            }
            1 => {
                let length = usize::from(input.u8());
                subscriber.on_answer(now, input.take(length), &mut heard);
            }
            2 => now += u64::from(input.u16()) * MILLIS / 8,
            3 => {
                let request = Request {
                    session: SessionName::of(1),
                    first: u64::from(input.u8()),
                    count: input.u16(),
                };
                let mut buffer = [0; 20];
                let length = request.write(variant, &mut buffer);
                if let Some(answer) = answers.answer(now, Ipv4Addr::LOCALHOST, &buffer[..length], &Some100) {
                    let packet = Packet::parse(variant, answer).expect("an own packet");
                    assert!(answer.len() <= PACKET && packet.count <= request.count);
                    assert!(packet.end || packet.number == request.first);
                }
            }
            kind => {
                // A sound packet of one of a few sessions.
                let session = SessionName::of(u32::from(input.u8() & 3));
                let (first, count) = (u64::from(input.u8()) + 1, u64::from(input.u8() & 7));
                let mut buffer = [0; 32];
                let mut builder = Builder::new(variant, PACKET);
                for number in first..first + count {
                    let _ = builder.push(&session, number, &[number as u8; 9]);
                }
                let packet = match builder.take() {
                    Some(packet) => packet,
                    None => {
                        let length = write_beat(variant, &mut buffer, &session, first, kind == 7);
                        &buffer[..length]
                    }
                };
                if kind == 6 {
                    subscriber.on_answer(now, packet, &mut heard);
                } else {
                    subscriber.on_packet(now, line, packet, &mut heard);
                }
            }
        }
        heard.asked = 0;
        assert!(subscriber.poll(now, &mut heard) >= now);
        assert!(heard.asked <= 8, "{} requests at once", heard.asked);
    }
}

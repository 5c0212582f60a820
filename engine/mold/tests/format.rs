//! The two formats to the byte, and what is refused.

use proptest::prelude::*;
use seqcast_mold::packet::{Builder, Malformed, Packet, Refused, Request, write_beat};
use seqcast_mold::{SessionName, Variant};

fn name(text: &str) -> SessionName {
    text.parse().unwrap()
}

#[test]
fn packets_are_what_the_specifications_say() {
    let mut builder = Builder::new(Variant::Mold64, 100);
    builder.push(&name("SESS01"), 0x0102, b"hello").unwrap();
    builder.push(&name("SESS01"), 0x0103, b"").unwrap();
    assert_eq!(
        builder.take().unwrap(),
        b"SESS01    \0\0\0\0\0\0\x01\x02\0\x02\0\x05hello\0\0"
    );
    let mut builder = Builder::new(Variant::Mold32, 100);
    builder.push(&name("SESS01"), 0x0102, b"hello").unwrap();
    assert_eq!(builder.push(&name("SESS01"), 0x0103, b""), Err(Refused::Empty));
    builder.push(&name("SESS01"), 0x0103, b"!").unwrap();
    assert_eq!(
        builder.take().unwrap(),
        b"SESS01    \x02\x01\0\0\x02\0\x05\0hello\x01\0!"
    );

    let mut buffer = [0; 30];
    let mut beat = |variant, end| {
        let length = write_beat(variant, &mut buffer, &name("X"), 7, end);
        buffer[..length].to_vec()
    };
    assert_eq!(beat(Variant::Mold64, false), b"X         \0\0\0\0\0\0\0\x07\0\0");
    assert_eq!(beat(Variant::Mold64, true), b"X         \0\0\0\0\0\0\0\x07\xff\xff");
    assert_eq!(beat(Variant::Mold32, false), b"X         \x07\0\0\0\0\0");
    assert_eq!(beat(Variant::Mold32, true), b"X         \x07\0\0\0\x01\0\0\0");

    let request = Request {
        session: name("X"),
        first: 3,
        count: 0x0201,
    };
    let length = request.write(Variant::Mold64, &mut buffer);
    assert_eq!(&buffer[..length], b"X         \0\0\0\0\0\0\0\x03\x02\x01");
    let length = request.write(Variant::Mold32, &mut buffer);
    assert_eq!(&buffer[..length], b"X         \x03\0\0\0\x01\x02");
}

#[test]
fn names_are_padded_numbers_are_names_and_the_rest_is_refused() {
    assert_eq!(name("A").0, *b"A         ");
    assert_eq!(name("A B").to_string(), "A B");
    for text in ["", "12345678901", "A ", "\u{e9}", "\n"] {
        assert!(text.parse::<SessionName>().is_err(), "{text:?}");
    }
    for number in [0, 7, 1_700_000_000, u32::MAX] {
        let name = SessionName::of(number);
        assert_eq!((name.to_string(), name.number()), (number.to_string(), Some(number)));
    }
    for text in ["007", "A", "4294967296", "-1", "+1"] {
        assert_eq!(name(text).number(), None, "{text}");
    }
}

#[test]
fn numbers_end_and_packets_fill() {
    let one = name("S");
    let mut builder = Builder::new(Variant::Mold32, 60);
    let last = u64::from(u32::MAX) - 1;
    builder.push(&one, last, b"x").unwrap();
    assert_eq!(builder.push(&one, last + 1, b"x"), Err(Refused::Numbers));
    assert_eq!(builder.push(&one, 0, b"x"), Err(Refused::Numbers));
    let packet = Packet::parse(Variant::Mold32, builder.take().unwrap()).unwrap();
    assert_eq!(packet.next(), u64::from(u32::MAX));

    assert_eq!(builder.longest(), 60 - 16 - 2);
    assert_eq!(builder.push(&one, 1, &[0; 43]), Err(Refused::TooLarge));
    builder.push(&one, 1, &[1; 20]).unwrap();
    assert_eq!(builder.push(&one, 2, &[1; 21]), Err(Refused::Full));
    assert_eq!(builder.push(&one, 3, b"x"), Err(Refused::Full), "a number is left out");
    assert_eq!(builder.push(&name("T"), 2, b"x"), Err(Refused::Full), "another session");
    builder.push(&one, 2, &[1; 20]).unwrap();
    assert_eq!(builder.take().unwrap().len(), 60);
    assert_eq!(builder.take(), None);
}

#[test]
fn what_is_cut_or_has_no_number_is_refused() {
    let mut builder = Builder::new(Variant::Mold64, 100);
    builder.push(&name("S"), 1, b"hello").unwrap();
    builder.push(&name("S"), 2, b"you").unwrap();
    let good = builder.take().unwrap().to_vec();
    for cut in 0..good.len() {
        assert_eq!(Packet::parse(Variant::Mold64, &good[..cut]), Err(Malformed), "{cut}");
    }
    // Some networks pad; what lies behind is not looked at.
    let padded = [&good[..], &[0; 6]].concat();
    assert_eq!(
        Packet::parse(Variant::Mold64, &padded),
        Packet::parse(Variant::Mold64, &good)
    );
    let mut zero = good.clone();
    zero[17] = 0;
    assert_eq!(Packet::parse(Variant::Mold64, &zero), Err(Malformed));
    let mut last = good;
    last[10..18].fill(0xff);
    assert_eq!(Packet::parse(Variant::Mold64, &last), Err(Malformed));
    assert_eq!(
        Request::parse(Variant::Mold64, b"S         \0\0\0\0\0\0\0\x01\0\0"),
        Err(Malformed)
    );
    assert_eq!(
        Request::parse(Variant::Mold64, b"S         \0\0\0\0\0\0\0\0\0\x01"),
        Err(Malformed)
    );
    assert_eq!(
        Request::parse(Variant::Mold32, b"S         \x01\0\0\0\x01"),
        Err(Malformed)
    );
}

proptest! {
    #[test]
    fn what_is_built_is_read_back(
        mold32: bool,
        first in 1..u64::from(u32::MAX) - 100,
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 1..50),
    ) {
        let variant = if mold32 { Variant::Mold32 } else { Variant::Mold64 };
        let mut builder = Builder::new(variant, 4000);
        for (number, message) in (first..).zip(&messages) {
            builder.push(&name("S"), number, message).unwrap();
        }
        let bytes = builder.take().unwrap();
        let packet = Packet::parse(variant, bytes).unwrap();
        prop_assert_eq!((packet.number, packet.end), (first, false));
        prop_assert!(packet.messages().eq(messages.iter().map(|m| &m[..])));
    }

    #[test]
    fn any_bytes_are_read_or_refused(mold32: bool, bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let variant = if mold32 { Variant::Mold32 } else { Variant::Mold64 };
        if let Ok(packet) = Packet::parse(variant, &bytes) {
            prop_assert_eq!(packet.messages().count(), usize::from(packet.count));
            prop_assert!(packet.next() >= packet.number);
        }
        if let Ok(request) = Request::parse(variant, &bytes) {
            let mut again = [0; 20];
            let length = request.write(variant, &mut again);
            prop_assert_eq!(&again[..length], &bytes[..length]);
        }
    }
}

//! Ethernet, IPv4 and UDP headers, as the AF_XDP link reads them.

// The link's own file: the parser without the link's dependencies.
#[expect(dead_code, reason = "only reading is of interest here")]
#[path = "../../../engine/src/link/xdp/packet.rs"]
mod headers;

/// The payload lies within the frame, behind the headers.
pub(crate) fn parse(frame: &[u8]) {
    if let Some(found) = headers::parse(frame) {
        assert!(found.payload.start >= 42 && found.payload.start <= found.payload.end);
        assert!(found.payload.end <= frame.len());
        assert_eq!(found.tagged, found.payload.start > 42);
    }
}

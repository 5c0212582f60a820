//! See `tests/peer.rs`.

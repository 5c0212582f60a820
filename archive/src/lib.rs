//! An append log of packets, found by sequence number.

//! What is measured against the raw limits and the peers.

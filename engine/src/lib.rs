//! The Seqcast engine: one process per NIC that runs servers, clients and archives.

pub mod link;

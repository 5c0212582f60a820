//! What the `seqcast` command is made of: market data to publish, and labs to publish it in.

pub mod binaryfile;
pub mod itch;
pub mod lab;

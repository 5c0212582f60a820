//! What the `seqcast` command is made of: market data to publish, labs to publish it in, and a look
//! into what archives hold.

pub mod archive;
pub mod itch;
pub mod lab;
pub mod sim;
mod table;

//! What the `seqcast` command is made of: market data to publish, labs to publish it in, a look into
//! what archives hold and at the host that an engine runs on.

pub mod archive;
pub mod bench;
pub mod capture;
pub mod host;
pub mod itch;
pub mod lab;
pub mod pcapng;
pub mod sim;
mod table;
pub mod watch;

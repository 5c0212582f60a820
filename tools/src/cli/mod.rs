//! The subcommands: their options, and how they report.

pub(crate) mod itch;
pub(crate) mod lab;

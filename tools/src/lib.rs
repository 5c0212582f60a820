//! The seqcast command: labs, data, archives.

//! The XDP filter that steers a stream into AF_XDP sockets, its build and its loader.

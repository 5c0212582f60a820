//! Gives the shared library the name that programs ask the loader for. It changes with the releases whose
//! library needs programs to be linked anew.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let part = |name: &str| env::var(format!("CARGO_PKG_VERSION_{name}")).expect("cargo sets it");
    let release = match part("MAJOR").as_str() {
        "0" => format!("0.{}", part("MINOR")),
        major => major.to_owned(),
    };
    let name = format!("libseqcast.so.{release}");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,{name}");
    println!("cargo::rustc-env=SEQCAST_SONAME={name}");
}

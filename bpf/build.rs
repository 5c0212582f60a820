//! Compiles the XDP filter to BPF byte code, which the crate embeds.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, process};

const SOURCE: &str = "src/filter.bpf.c";

fn main() {
    println!("cargo:rerun-if-changed={SOURCE}");
    println!("cargo:rerun-if-env-changed=CLANG");

    let object = PathBuf::from(variable("OUT_DIR")).join("filter.bpf.o");
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let target = match variable("CARGO_CFG_TARGET_ENDIAN").as_str() {
        "big" => "bpfeb",
        _ => "bpfel",
    };
    let mut command = Command::new(&clang);
    command
        // v3 has the atomic operations that return a value (Linux 5.12); -g emits the BTF that describes the maps.
        .args([
            "-target", target, "-mcpu=v3", "-O2", "-g", "-Wall", "-Wextra", "-Werror",
        ])
        // libbpf's own headers, as built by libbpf-sys.
        .arg(format!("-I{}", variable("DEP_BPF_INCLUDE")))
        .args(["-c", SOURCE, "-o"])
        .arg(&object);
    // Debian and its kin keep asm/types.h in a directory per architecture, which `-target bpf` does not search.
    let multiarch = format!("/usr/include/{}-linux-gnu", variable("CARGO_CFG_TARGET_ARCH"));
    if Path::new(&multiarch).is_dir() {
        command.arg(format!("-I{multiarch}"));
    }
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(_) => fail(&format!(
            "{clang} could not compile {SOURCE} (see above); it needs clang 12 or newer and the kernel's headers: \
             `apt-get install clang linux-libc-dev`"
        )),
        Err(error) => fail(&format!(
            "cannot run {clang}, which compiles {SOURCE}: {error}; install it (`apt-get install clang`), name one in \
             the environment variable CLANG, or build without AF_XDP (`--no-default-features`)"
        )),
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| fail(&format!("cargo did not set {name}")))
}

fn fail(message: &str) -> ! {
    println!("cargo:warning={message}");
    eprintln!("{message}");
    process::exit(1)
}

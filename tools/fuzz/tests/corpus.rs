//! The fuzzer's harnesses over the committed corpora, what once broke them, and mutations of both, the
//! same in each run.

use std::fs;
use std::path::{Path, PathBuf};

use seqcast_fuzz::HARNESSES;
use seqcast_proto::rng::Rng;

/// Mutations in all for each harness, split among its inputs.
const MUTATIONS: u64 = 2_000;

fn inputs(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let in_dir = |kind: &str| -> Vec<_> {
        let files = fs::read_dir(fuzz.join(kind).join(name)).into_iter().flatten();
        let paths = files.map(|entry| entry.unwrap().path());
        paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    };
    let mut found = in_dir("corpus");
    assert!(!found.is_empty(), "no corpus for {name}");
    found.extend(in_dir("crashes"));
    found.sort();
    found
}

fn mutate(bytes: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..1 + rng.below(6) {
        let at = rng.below(bytes.len() as u64 + 1) as usize;
        match rng.below(5) {
            0 => bytes.insert(at, rng.next_u64() as u8),
            1 => bytes.truncate(at),
            2 => {
                let copied = bytes[at..].iter().take(16).copied().collect::<Vec<_>>();
                bytes.splice(at..at, copied);
            }
            3 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][rng.below(5) as usize],
            _ if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            _ => {}
        }
    }
}

#[test]
fn harnesses_hold_over_the_corpora_and_near_them() {
    for (name, harness) in HARNESSES {
        let mut rng = Rng::new(1);
        let inputs = inputs(name);
        for (_, bytes) in &inputs {
            harness(bytes);
        }
        for i in 0..MUTATIONS {
            let mut bytes = inputs[(i % inputs.len() as u64) as usize].1.clone();
            mutate(&mut bytes, &mut rng);
            harness(&bytes);
        }
    }
}

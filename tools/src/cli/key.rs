//! `seqcast key`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use seqcast_engine::keys::{self, Entry};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Make a file with one key, id 1, that only its owner can read. Never overwrites a file.
    New {
        /// The file to make.
        file: PathBuf,
    },
    /// Add a new key behind the others: it opens, and does not seal yet.
    Add {
        /// The file of keys.
        file: PathBuf,
    },
    /// Let a key seal from now on.
    Use {
        /// The file of keys.
        file: PathBuf,
        /// The key's id.
        id: u8,
    },
    /// Take a key out: what it sealed is refused from now on.
    Remove {
        /// The file of keys.
        file: PathBuf,
        /// The key's id.
        id: u8,
    },
    /// Show the ids, that of the sealing key first, and no secret.
    List {
        /// The file of keys.
        file: PathBuf,
    },
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.action {
        Action::New { file } => keys::write(file, &[random(1)?], false)?,
        Action::Add { file } => {
            let mut all = keys::read(file)?;
            let highest = all.iter().map(|k| k.id).max().unwrap_or(0);
            let free = (highest..=u8::MAX)
                .chain(0..highest)
                .find(|id| all.iter().all(|k| k.id != *id));
            all.push(random(free.context("all ids are taken")?)?);
            keys::write(file, &all, true)?;
        }
        Action::Use { file, id } => {
            let mut all = keys::read(file)?;
            let at = place(&all, *id)?;
            all[..=at].rotate_right(1);
            keys::write(file, &all, true)?;
        }
        Action::Remove { file, id } => {
            let mut all = keys::read(file)?;
            all.remove(place(&all, *id)?);
            if all.is_empty() {
                bail!("{id} is the last key: remove the file, and `trust.key` from the configurations");
            }
            keys::write(file, &all, true)?;
        }
        Action::List { file } => {
            let mut out = io::stdout().lock();
            writeln!(out, "ID   USE")?;
            for (at, key) in keys::read(file)?.iter().enumerate() {
                let role = if at == 0 { "seals and opens" } else { "opens" };
                writeln!(out, "{:<4} {role}", key.id)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn random(id: u8) -> Result<Entry> {
    Entry::random(id).context("no random numbers from /dev/urandom")
}

fn place(keys: &[Entry], id: u8) -> Result<usize> {
    let ids = || keys.iter().map(|k| k.id.to_string()).collect::<Vec<_>>().join(", ");
    keys.iter()
        .position(|k| k.id == id)
        .with_context(|| format!("no key has id {id}; there are {}", ids()))
}

//! `seqcast generate`: what packages carry besides the programs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use seqcast_engine::cli::Cli as Engine;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Manual pages, one for each command: man DIR/seqcast-lab.1
    Man {
        /// Where to write them; made if missing.
        dir: PathBuf,
    },
    /// Completions of both programs, named as each shell looks for them.
    Completions {
        /// Where to write them; made if missing.
        dir: PathBuf,
        /// For which shells.
        #[arg(long, value_name = "SHELL", default_values = ["bash", "zsh", "fish"])]
        shell: Vec<Shell>,
    },
}

/// Both programs.
fn programs() -> [Command; 2] {
    [crate::Cli::command(), Engine::command()]
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (What::Man { dir } | What::Completions { dir, .. }) = &args.what;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let result = match &args.what {
        What::Man { dir } => programs().into_iter().try_for_each(|program| man(program, dir)),
        What::Completions { dir, shell } => completions(dir, shell),
    };
    result.with_context(|| format!("cannot write into {}", dir.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn man(mut program: Command, dir: &Path) -> Result<()> {
    program.build();
    pages(&program, dir)
}

/// A page for a command and for each below it.
fn pages(command: &Command, dir: &Path) -> Result<()> {
    let man = clap_mangen::Man::new(command.clone()).title(title(command));
    let mut file = File::create(dir.join(format!("{}.1", title(command))))?;
    man.render(&mut file)?;
    let below = command
        .get_subcommands()
        .filter(|c| !c.is_hide_set() && c.get_name() != "help");
    below.into_iter().try_for_each(|command| pages(command, dir))
}

/// `seqcast-archive-ls`
fn title(command: &Command) -> String {
    command
        .get_display_name()
        .unwrap_or(command.get_name())
        .replace(' ', "-")
}

fn completions(dir: &Path, shells: &[Shell]) -> Result<()> {
    for mut program in programs() {
        let name = program.get_name().to_owned();
        for &shell in shells {
            clap_complete::generate_to(shell, &mut program, &name, dir)?;
        }
    }
    Ok(())
}

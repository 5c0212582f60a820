//! `seqcast check` and `seqcast tune`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use seqcast_engine::config::{Config, Core};
use seqcast_tools::host::{self, Finding, Outcome, Remedy, State, Step, Wish};

#[derive(clap::Args)]
#[group(id = "whom", required = true, multiple = true)]
struct Whom {
    /// The interface; with --config, instead of the one named there.
    #[arg(group = "whom")]
    interface: Option<String>,
    /// An engine's configuration: its interface, link, core, queues and frames are what is looked at.
    #[arg(long, value_name = "FILE", group = "whom")]
    config: Option<PathBuf>,
    /// The core that the engine is pinned to, instead of the one in the configuration.
    #[arg(long, value_name = "N")]
    core: Option<usize>,
    /// For an engine that uses kernel sockets, whatever the configuration says.
    #[arg(long)]
    udp: bool,
    /// Only this topic, by the word in the table's second column; may be given several times.
    #[arg(long, value_name = "TOPIC")]
    only: Vec<String>,
}

#[derive(clap::Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    whom: Whom,
    /// Say of all that is good, too, why it matters.
    #[arg(long, short)]
    verbose: bool,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct TuneArgs {
    #[command(flatten)]
    whom: Whom,
    /// Only tell what would be changed.
    #[arg(long)]
    dry_run: bool,
    /// Bring back what was there before the first change.
    #[arg(long, conflicts_with = "only")]
    undo: bool,
    /// Where to keep what was there before. A restart of the machine undoes all by itself.
    #[arg(long, value_name = "DIR", default_value = "/run/seqcast")]
    state: PathBuf,
}

impl Whom {
    /// What each worker wants, with what it is called.
    fn wishes(&self) -> Result<Vec<(String, Wish)>> {
        let mut wishes = match &self.config {
            Some(path) => {
                let mut config = Config::read(path)?;
                config.engine.core = self.core.map(Core::Number).or(config.engine.core);
                Wish::of(&config)
            }
            None => {
                let wish = Wish {
                    core: self.core,
                    ..Wish::on(self.interface.clone().context("which interface?")?)
                };
                vec![("[engine]".to_owned(), wish)]
            }
        };
        if wishes.len() > 1 && (self.interface.is_some() || self.core.is_some()) {
            bail!("the configuration has several [[worker]]: leave out the interface and --core, each has its own");
        }
        for (_, wish) in &mut wishes {
            wish.xdp &= !self.udp;
            if let Some(interface) = &self.interface {
                wish.interface.clone_from(interface);
            }
        }
        Ok(wishes)
    }

    fn examine(&self, wish: &Wish) -> Result<Vec<Finding>> {
        let mut findings = host::examine(wish).with_context(|| format!("cannot examine {}", wish.interface))?;
        if let Some(unknown) = self
            .only
            .iter()
            .find(|topic| findings.iter().all(|f| f.topic != **topic))
        {
            let topics: Vec<&str> = findings.iter().map(|finding| finding.topic).collect();
            bail!("nothing is said here of {unknown:?}; there are {}", topics.join(", "));
        }
        findings.retain(|finding| self.only.is_empty() || self.only.iter().any(|topic| finding.topic == topic));
        Ok(findings)
    }
}

pub(crate) fn check(args: &CheckArgs) -> Result<ExitCode> {
    let wishes = args.whom.wishes()?;
    let mut out = io::stdout().lock();
    let mut found_bad = false;
    for (title, wish) in &wishes {
        let findings = args.whom.examine(wish)?;
        let worker = (wishes.len() > 1).then_some(title.as_str());
        if let Some(title) = worker.filter(|_| !args.json) {
            super::tell(writeln!(out, "{title} on {}", wish.interface))?;
        }
        for finding in &findings {
            super::tell(if args.json {
                let line = serde_json::to_string(&Line::of(finding, worker))?;
                writeln!(out, "{line}")
            } else {
                show(&mut out, finding, args.verbose)
            })?;
        }
        let count = |state| findings.iter().filter(|finding| finding.state == state).count();
        let (bad, poor) = (count(State::Bad), count(State::Poor));
        found_bad |= bad > 0;
        if !args.json {
            super::tell(writeln!(out, "{bad} bad, {poor} poor, {} in all", findings.len()))?;
        }
    }
    Ok(ExitCode::from(u8::from(found_bad)))
}

/// A finding for scripts.
#[derive(serde::Serialize)]
struct Line<'a> {
    /// Of which worker, if there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<&'a str>,
    topic: &'a str,
    state: State,
    is: &'a str,
    why: &'a str,
    /// Commands that mend it.
    commands: Vec<String>,
    /// What else is to be done.
    advice: Option<&'a str>,
}

impl<'a> Line<'a> {
    fn of(finding: &'a Finding, worker: Option<&'a str>) -> Line<'a> {
        let (commands, advice) = match &finding.remedy {
            Some(Remedy::Change(changes)) => (changes.iter().map(ToString::to_string).collect(), None),
            Some(Remedy::Advice(text)) => (Vec::new(), Some(text.as_str())),
            None => (Vec::new(), None),
        };
        Line {
            worker,
            topic: finding.topic,
            state: finding.state,
            is: &finding.is,
            why: finding.why,
            commands,
            advice,
        }
    }
}

fn show(out: &mut impl Write, finding: &Finding, verbose: bool) -> io::Result<()> {
    let state = match finding.state {
        State::Good => "ok",
        State::Note => "note",
        State::Poor => "poor",
        State::Bad => "BAD",
    };
    let line = Line::of(finding, None);
    writeln!(out, "{state:<5} {:<15} {}", line.topic, line.is)?;
    if verbose || finding.state > State::Good {
        writeln!(out, "{:21} why: {}", "", line.why)?;
    }
    for command in line.commands.iter().map(String::as_str).chain(line.advice) {
        writeln!(out, "{:21} do:  {command}", "")?;
    }
    Ok(())
}

pub(crate) fn tune(args: &TuneArgs) -> Result<ExitCode> {
    let mut out = io::stdout().lock();
    let mut any_refused = false;
    let mut wishes = args.whom.wishes()?;
    if args.undo {
        // What was changed for one worker is kept with what was changed for the others of its interface.
        wishes.sort_by(|(_, a), (_, b)| a.interface.cmp(&b.interface));
        wishes.dedup_by(|(_, a), (_, b)| a.interface == b.interface);
    }
    for (_, wish) in &wishes {
        let interface = &wish.interface;
        let record = args.state.join(format!("tune-{interface}.json"));
        let steps = if args.undo {
            host::undo(&record, args.dry_run)?
        } else {
            host::tune(&args.whom.examine(wish)?, &record, args.dry_run)?
        };
        for step in &steps {
            super::tell(tell_step(&mut out, step))?;
        }
        let changed = steps
            .iter()
            .filter(|s| matches!(s.outcome, Outcome::Made | Outcome::Planned))
            .count();
        let refused = steps
            .iter()
            .filter(|s| matches!(s.outcome, Outcome::Refused(_)))
            .count();
        any_refused |= refused > 0;
        let would = if args.dry_run { "to be changed" } else { "changed" };
        super::tell(writeln!(out, "{changed} {would}, {refused} refused"))?;
        if changed > 0 && !args.dry_run && !args.undo {
            super::tell(writeln!(out, "back: seqcast tune {interface} --undo"))?;
        }
    }
    Ok(ExitCode::from(u8::from(any_refused)))
}

fn tell_step(out: &mut impl Write, step: &Step) -> io::Result<()> {
    let (change, before) = (&step.change, step.before.as_deref().unwrap_or("unknown"));
    match &step.outcome {
        Outcome::Planned => writeln!(out, "would   {change}   # now {before}"),
        Outcome::Made => writeln!(out, "did     {change}   # was {before}"),
        Outcome::Already => writeln!(out, "is so   {change}"),
        Outcome::Refused(reason) => writeln!(out, "refused {change}   # {reason}"),
    }
}

//! `seqcast top` and `seqcast metrics`.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use seqcast_engine::counters::Sheet;
use seqcast_tools::watch::view::{self, History};
use seqcast_tools::watch::{self, Engine, prometheus};
use tiny_http::{Header, Response, Server};

#[derive(clap::Args)]
struct Place {
    /// Where engines show their counters: a directory, or the file of one engine.
    #[arg(long, value_name = "PATH", default_value_os_t = watch::usual_place())]
    counters: PathBuf,
}

#[derive(clap::Args)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    place: Place,
    /// Time between two looks.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = pause)]
    interval: Duration,
    /// Look once, or twice for rates, and print instead of showing a picture.
    #[arg(long)]
    once: bool,
    /// With --once: one JSON object for each engine, one a line.
    #[arg(long, requires = "once")]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct MetricsArgs {
    #[command(flatten)]
    place: Place,
    /// Serve them at http://ADDRESS/metrics; without it they are printed once.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
}

fn pause(text: &str) -> Result<Duration, String> {
    let pause = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    // Engines write ten times a second.
    let range = Duration::from_millis(100)..=Duration::from_secs(3600);
    range
        .contains(&pause)
        .then_some(pause)
        .ok_or_else(|| "from 100ms to 1h".to_owned())
}

impl Place {
    /// All engines, and what could not be read.
    fn read(&self) -> Result<(Vec<Sheet>, Vec<String>)> {
        let (sheets, failures) = watch::read(&self.counters)?;
        let failures = failures.into_iter().map(|error| format!("{:#}", anyhow!(error)));
        Ok((sheets, failures.collect()))
    }
}

/// The last look at each engine.
#[derive(Default)]
struct Last(HashMap<(u32, String), Sheet>);

impl Last {
    /// What changed since, engine by engine.
    fn compare(&mut self, sheets: Vec<Sheet>) -> Vec<Engine> {
        let key = |sheet: &Sheet| (sheet.pid, sheet.engine.clone());
        let engines = sheets
            .iter()
            .map(|sheet| Engine::between(self.0.get(&key(sheet)), sheet))
            .collect();
        self.0 = sheets.into_iter().map(|sheet| (key(&sheet), sheet)).collect();
        engines
    }
}

pub(crate) fn top(args: &TopArgs) -> Result<ExitCode> {
    let mut last = Last::default();
    let (sheets, failures) = args.place.read()?;
    if args.once {
        failures.iter().for_each(super::complain);
        last.compare(sheets);
        std::thread::sleep(args.interval);
        let engines = last.compare(args.place.read()?.0);
        let mut out = io::stdout().lock();
        for engine in &engines {
            super::tell(if args.json {
                let line = serde_json::to_string(engine)?;
                writeln!(out, "{line}")
            } else {
                print(&mut out, engine)
            })?;
        }
        if engines.is_empty() {
            super::say(format_args!(
                "no engine shows its counters in {}",
                args.place.counters.display()
            ));
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !io::stdout().is_terminal() {
        bail!("this is no terminal; --once prints, with --json for programs");
    }
    let mut terminal = ratatui::try_init().context("cannot use this terminal")?;
    let result = show(&mut terminal, args, &mut last, sheets);
    ratatui::restore();
    result.map(|()| ExitCode::SUCCESS)
}

fn show(terminal: &mut ratatui::DefaultTerminal, args: &TopArgs, last: &mut Last, sheets: Vec<Sheet>) -> Result<()> {
    let (mut history, mut paused) = (History::default(), false);
    let mut engines = last.compare(sheets);
    let mut notes = Vec::new();
    let mut next = Instant::now() + args.interval;
    loop {
        terminal.draw(|frame| view::draw(frame, &engines, &history, &notes))?;
        if event::poll(next.saturating_duration_since(Instant::now()))? {
            if let Event::Key(key) = event::read()? {
                match key.code {
                    KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                    KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                    KeyCode::Char('p') => paused = !paused,
                    _ => {}
                }
            }
            continue;
        }
        next = Instant::now() + args.interval;
        if !paused {
            let (sheets, failures) = args.place.read()?;
            (engines, notes) = (last.compare(sheets), failures);
            history.add(&engines);
        }
    }
}

fn print(out: &mut impl Write, engine: &Engine) -> io::Result<()> {
    let Engine {
        engine: name,
        pid,
        mode,
        ..
    } = engine;
    writeln!(out, "{name} (pid {pid}): {mode}, busy {:.0} %", engine.busy() * 100.0)?;
    for part in &engine.parts {
        let of = &part.of;
        let names = [Some(of.part.as_str()), of.stream.as_deref(), of.line.as_deref()];
        writeln!(out, "  {}", names.into_iter().flatten().collect::<Vec<_>>().join(" "))?;
        for (name, total) in part.totals.iter().filter(|(_, total)| **total > 0) {
            match part.rates.get(name).filter(|rate| **rate > 0.0) {
                Some(rate) => writeln!(out, "    {name:<24} {total:>16}  {:>10}/s", view::short(*rate))?,
                None => writeln!(out, "    {name:<24} {total:>16}")?,
            }
        }
        for (name, l) in part.latencies.iter().filter(|(_, l)| l.count > 0) {
            let [p50, p99, p999] = [l.p50, l.p99, l.p999].map(view::short_time);
            writeln!(out, "    {name:<24} p50 {p50}, p99 {p99}, p99.9 {p999} of {}", l.count)?;
        }
        let peers = part.peers.iter().map(|peer| ("from", peer));
        for (way, peer) in peers.chain(part.asked.iter().map(|peer| ("to", peer))) {
            writeln!(
                out,
                "    NAKs {way:<4} {:<21} {:>9}  {:>10}/s",
                peer.address,
                peer.naks,
                view::short(peer.rate)
            )?;
        }
    }
    engine
        .warnings
        .iter()
        .try_for_each(|warning| writeln!(out, "  ! {warning}"))
}

pub(crate) fn metrics(args: &MetricsArgs) -> Result<ExitCode> {
    let Some(address) = args.listen else {
        let (sheets, failures) = args.place.read()?;
        failures.iter().for_each(super::complain);
        super::tell(io::stdout().write_all(prometheus::text(&sheets).as_bytes()))?;
        return Ok(ExitCode::SUCCESS);
    };
    let server = Server::http(address).map_err(|error| anyhow!("cannot listen at {address}: {error}"))?;
    super::say(format_args!("serving http://{}/metrics", server.server_addr()));
    let header = Header::from_bytes("Content-Type", prometheus::CONTENT_TYPE).map_err(|()| anyhow!("no header"))?;
    for request in server.incoming_requests() {
        let answer = match request.url() {
            "/metrics" => match args.place.read() {
                Ok((sheets, _)) => Response::from_string(prometheus::text(&sheets)).with_header(header.clone()),
                Err(error) => Response::from_string(format!("{error:#}\n")).with_status_code(500),
            },
            _ => Response::from_string("see /metrics\n").with_status_code(404),
        };
        // Who does not wait for an answer has gone.
        let _ = request.respond(answer);
    }
    Ok(ExitCode::SUCCESS)
}

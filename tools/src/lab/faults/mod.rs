//! A campaign of real faults: engines under load on a veth lab are killed and halted, cables pulled,
//! disks filled, clocks set and more, one after the other as a seed says. At the end all is well
//! again, and every client and the archive must hold what was published, byte for byte.

mod clock;
mod disk;
mod plan;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use seqcast_engine::report::Report;
use serde::Serialize;

pub use plan::{KINDS, Kind};

use self::disk::Disk;
use self::plan::{Fault, Plan};
use super::command::poll;
use super::hostile::{Hostile, Malice};
use super::job::{Link, write_session};
use super::part::{Part, Setting, quoted};
use super::{Error, Lab, Place, Spec, interrupt, verify};
use crate::itch;

/// A campaign to run.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// The program `seqcast-engine`.
    pub engine: PathBuf,
    /// How engines move frames.
    pub link: Link,
    /// How long faults go on.
    pub duration: Duration,
    /// Which faults, and when.
    pub seed: u64,
    /// The kinds of faults; empty for all that are possible here.
    pub only: Vec<Kind>,
    /// Messages per second, above 0.
    pub rate: u64,
    /// Share of datagrams that each client and the archive lose at random all the time.
    pub drop: f64,
    /// How many clients, above 0.
    pub clients: u8,
    /// An empty directory for everything that the run writes.
    pub directory: PathBuf,
}

/// What came of a campaign. `Display` shows it.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// Which faults there were, and how often each.
    pub faults: BTreeMap<Kind, u32>,
    /// Kinds that could not be had, and why.
    pub left_out: BTreeMap<Kind, String>,
    /// Messages published, each once.
    pub messages: u64,
    /// Sessions that the restarts of the server made.
    pub sessions: usize,
    /// From the server's first start to the end of the last engine but the archive's, in seconds.
    pub seconds: f64,
    /// From the end of the last fault to the same, in seconds.
    pub healed_seconds: f64,
    /// The mode of the server's link.
    pub mode: String,
    /// What is not as it must be; empty if all is well.
    pub broken: Vec<String>,
}

/// The MTU of all interfaces between faults.
const MTU: u16 = 1500;
/// NAKs or forgeries that the hostile host sends a second.
const HOSTILE_RATE: u32 = 2000;
/// How long publishing goes on without faults at the end, at least.
const CALM: u64 = 2;
/// How long everything may take to end behind that.
const HEAL: Duration = Duration::from_secs(45);
/// How long a part may take to say that there is a second server: it may be behind.
const COMPLAINT: Duration = Duration::from_secs(20);
/// Bytes that a message of the archive takes, at most on average.
const MESSAGE_BYTES: u64 = 160;
const MIB: u64 = 1 << 20;

const SERVER: usize = 0;
const ARCHIVE: usize = 1;
const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 81, 0, 7), 5000);
const HOSTILE: &str = "hostile";

impl Campaign {
    /// Runs it. `progress` gets the timeline, a line for each event.
    ///
    /// # Errors
    /// When the campaign is impossible, the lab cannot be made, an engine ends by itself, or not all
    /// has ended 45 s after the last fault. That something is lost is an outcome.
    pub fn run(&self, progress: &mut dyn FnMut(&str)) -> Result<Outcome> {
        ensure!(self.clients > 0, "a campaign needs at least one client");
        ensure!(self.rate > 0, "at a rate of 0 nothing would be published");
        ensure!(
            (0.0..1.0).contains(&self.drop),
            "the share to drop must be from 0 to below 1, not {}",
            self.drop
        );
        let left_out = self.left_out();
        let kinds: Vec<Kind> = KINDS
            .into_iter()
            .filter(|k| self.only.is_empty() || self.only.contains(k))
            .filter(|k| !left_out.contains_key(k))
            .collect();
        ensure!(
            !kinds.is_empty(),
            "none of the faults that are asked for is possible here: {left_out:?}"
        );
        for (kind, why) in &left_out {
            progress(&format!("left out: {kind}: {why}"));
        }
        let mut run = Run::start(self, &kinds, progress)?;
        let last_fault = run.strike(Plan::new(self.seed, &kinds, run.parts.len(), self.duration))?;
        run.heal(last_fault, left_out)
    }

    fn left_out(&self) -> BTreeMap<Kind, String> {
        let wanted = |kind| self.only.is_empty() || self.only.contains(&kind);
        [(Kind::Disk, disk::available()), (Kind::Clock, clock::available())]
            .into_iter()
            .filter(|(kind, _)| wanted(*kind))
            .filter_map(|(kind, possible)| Some((kind, possible.err()?.to_string())))
            .collect()
    }
}

/// A campaign under way. Fields are dropped in this order: engines, disks, hosts.
struct Run<'a> {
    campaign: &'a Campaign,
    progress: &'a mut dyn FnMut(&str),
    setting: Setting,
    input: PathBuf,
    messages: u64,
    /// The server, the archive, the clients.
    parts: Vec<Part>,
    hostile: Option<Hostile>,
    /// Of server and archive, where they have small ones.
    disks: Vec<Disk>,
    /// Where server and archive keep their logs.
    logs: [PathBuf; 2],
    lab: Lab,
    mode: String,
    started: Instant,
    counts: BTreeMap<Kind, u32>,
}

impl<'a> Run<'a> {
    /// Makes the lab and starts everything, the server last.
    fn start(campaign: &'a Campaign, kinds: &[Kind], progress: &'a mut dyn FnMut(&str)) -> Result<Run<'a>> {
        let directory = &campaign.directory;
        let messages = campaign.rate * (campaign.duration.as_secs() + CALM);
        let input = directory.join("input.bin");
        let generator = itch::Generator::new(itch::Spec {
            length: itch::Length::Messages(messages),
            symbols: 100,
            seed: campaign.seed,
        })?;
        write_session(generator, &input).with_context(|| format!("cannot write {}", input.display()))?;

        let clients = (1..=campaign.clients).map(|i| format!("client{i}"));
        let names: Vec<String> = ["server", "archive"]
            .map(str::to_owned)
            .into_iter()
            .chain(clients)
            .collect();
        let lab = Lab::new(&Spec {
            place: Place::Veth,
            hosts: names.iter().cloned().chain([HOSTILE.to_owned()]).collect(),
            mtu: MTU,
            offloads: false,
            second_line: false,
        })?;
        let mut setting = Setting {
            engine: campaign.engine.clone(),
            link: campaign.link,
            directory: directory.clone(),
            group: *GROUP.ip(),
            environment: Vec::new(),
        };
        if kinds.contains(&Kind::Clock) {
            setting.environment.push(("LD_PRELOAD", clock::build(directory)?));
        }
        let (mut disks, mut logs) = (Vec::new(), ["server.d", "archive.d"].map(|name| directory.join(name)));
        if kinds.contains(&Kind::Disk) {
            for (name, bytes) in [("server", 256 * MIB), ("archive", messages * MESSAGE_BYTES + 256 * MIB)] {
                disks.push(Disk::new(directory, name, bytes)?);
            }
            logs = [disks[SERVER].path("log"), disks[ARCHIVE].path("log")];
        }
        let mut run = Run {
            campaign,
            progress,
            setting,
            input,
            messages,
            parts: Vec::new(),
            hostile: None,
            disks,
            logs,
            lab,
            mode: String::new(),
            started: Instant::now(),
            counts: BTreeMap::new(),
        };
        for (index, name) in names.iter().enumerate() {
            let part = run.part(index, name, kinds.contains(&Kind::Clock))?;
            run.parts.push(part);
        }
        for index in (0..run.parts.len()).rev() {
            let ready = run.parts[index].start(&run.setting, &run.lab)?;
            if index == SERVER {
                run.mode = ready
                    .split_once("mode=")
                    .map_or_else(String::new, |(_, mode)| mode.to_owned());
            }
        }
        run.started = Instant::now();
        run.say(&format!(
            "{messages} messages at {}/s from server to archive and {} clients, {}",
            campaign.rate, campaign.clients, run.mode
        ));
        Ok(run)
    }

    fn part(&self, index: usize, name: &str, clocks: bool) -> Result<Part> {
        let host = self.lab.host(name)?;
        let role = match index {
            SERVER => format!(
                "[[publish]]\nstream = \"{GROUP}\"\nsource = {{ file = {}, rate = {} }}\nstate = {}\narchives = 1\nretain = \"64 MiB\"\nlinger_max_ms = 120000\n",
                quoted(&self.input),
                self.campaign.rate,
                quoted(&self.logs[SERVER]),
            ),
            // Small segments: a full disk is soon felt.
            ARCHIVE => format!(
                "[[archive]]\nstream = \"{GROUP}\"\ndir = {}\nsegment = \"128 KiB\"\n",
                quoted(&self.logs[ARCHIVE]),
            ),
            _ => format!(
                "[[subscribe]]\nstream = \"{GROUP}\"\nfrom = \"session\"\nexit_at_end = true\ngive_up_ms = 120000\nsink = {{ file = {} }}\nstate = {}\n",
                quoted(&self.setting.path(name, "out")),
                quoted(&self.setting.path(name, "state")),
            ),
        };
        let mut more = String::new();
        if matches!(index, SERVER | ARCHIVE) {
            // Their disks are mounted in the namespace of another process, which is reached with privilege only.
            more += "privileges = \"keep\"\n";
        }
        if index != SERVER {
            more += &format!("fault = {{ drop = {}, seed = {index} }}\n", self.campaign.drop);
        }
        let mut part = Part::new(&self.setting, host, &more, &role)?;
        if clocks {
            let file = self.setting.path(name, "clock");
            clock::set(&file, 0)?;
            part.own = Some((clock::VARIABLE, file));
        }
        Ok(part)
    }

    fn say(&mut self, line: &str) {
        let at = self.started.elapsed().as_secs_f64();
        (self.progress)(&format!("{at:8.1} s  {line}"));
    }

    /// Waits, while every part that runs must go on.
    fn wait(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            interrupt::check()?;
            for part in &mut self.parts {
                ensure!(!part.has_ended()?, "{} has ended before the stream", part.name());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(20)));
        }
    }

    /// Does what the plan says until the time is over; returns when the last fault was undone.
    fn strike(&mut self, plan: Plan) -> Result<Instant> {
        let end = self.started + self.campaign.duration;
        for mut step in plan {
            let longest = step.faults.iter().map(|f| f.hold).max().unwrap_or_default();
            if Instant::now() + step.pause + longest > end {
                break;
            }
            self.wait(step.pause)?;
            for fault in &step.faults {
                *self.counts.entry(fault.kind).or_default() += 1;
                self.begin(fault)?;
            }
            step.faults.sort_by_key(|fault| fault.hold);
            let begun = Instant::now();
            for fault in &step.faults {
                self.wait(fault.hold.saturating_sub(begun.elapsed()))?;
                self.undo(fault)?;
            }
        }
        let last = Instant::now();
        self.wait(end.saturating_duration_since(last))?;
        Ok(last)
    }

    fn process(&mut self, part: usize) -> Result<&mut super::Process> {
        self.parts[part].process().context("a part does not run")
    }

    fn begin(&mut self, fault: &Fault) -> Result<()> {
        let name = self.parts[fault.part].name().to_owned();
        let seconds = fault.hold.as_secs_f64();
        match fault.kind {
            Kind::Kill => {
                self.say(&format!("kill   {name}, again in {seconds:.1} s"));
                self.parts[fault.part].kill();
            }
            Kind::Stop => {
                self.say(&format!("stop   {name} for {seconds:.1} s"));
                self.process(fault.part)?.halt()?;
            }
            Kind::Link => {
                self.say(&format!("link   of {name} down for {seconds:.1} s"));
                self.lab.link_down(&name)?;
            }
            Kind::Disk => {
                if fault.part == SERVER {
                    // With the archive well, the server's log has room without growing.
                    self.process(ARCHIVE)?.halt()?;
                }
                let bytes = self.disks[fault.part].fill()?;
                let halted = if fault.part == SERVER { ", archive halted" } else { "" };
                self.say(&format!(
                    "disk   of {name} full for {seconds:.1} s ({} MiB taken){halted}",
                    bytes / MIB
                ));
            }
            Kind::Double => {
                self.say(&format!(
                    "double of server: a second one, and its numbers forged for {seconds:.1} s"
                ));
                self.second_server()?;
                let host = self.lab.host(HOSTILE)?;
                self.hostile = Some(Hostile::start(host, GROUP, Malice::Forge, HOSTILE_RATE)?);
            }
            Kind::Flood => {
                self.say(&format!(
                    "flood  of {HOSTILE_RATE} NAKs/s for everything for {seconds:.1} s"
                ));
                let host = self.lab.host(HOSTILE)?;
                self.hostile = Some(Hostile::start(host, GROUP, Malice::AskForAll, HOSTILE_RATE)?);
            }
            Kind::Clock => {
                self.say(&format!("clock  of {name} {:+} s for {seconds:.1} s", fault.amount));
                clock::check(self.process(fault.part)?)?;
                clock::set(&self.setting.path(&name, "clock"), fault.amount)?;
            }
            Kind::Mtu => {
                self.say(&format!("mtu    of {name} {} for {seconds:.1} s", fault.amount));
                self.lab.set_mtu(&name, u16::try_from(fault.amount)?)?;
            }
        }
        Ok(())
    }

    fn undo(&mut self, fault: &Fault) -> Result<()> {
        let name = self.parts[fault.part].name().to_owned();
        match fault.kind {
            Kind::Kill => {
                self.parts[fault.part].start(&self.setting, &self.lab)?;
            }
            Kind::Stop => self.process(fault.part)?.resume()?,
            Kind::Link => self.lab.link_up(&name)?,
            Kind::Disk => {
                self.disks[fault.part].free()?;
                if fault.part == SERVER {
                    self.process(ARCHIVE)?.resume()?;
                }
            }
            Kind::Double | Kind::Flood => {
                if fault.kind == Kind::Double {
                    self.all_complain()?;
                }
                let sent = self.hostile.take().map(Hostile::stop).transpose()?;
                ensure!(sent > Some(0), "the hostile host has heard no server and sent nothing");
            }
            Kind::Clock => clock::set(&self.setting.path(&name, "clock"), 0)?,
            Kind::Mtu => self.lab.set_mtu(&name, MTU)?,
        }
        Ok(())
    }

    /// Waits until every part has named the second server in its log.
    fn all_complain(&mut self) -> Result<()> {
        for part in &self.parts {
            let log = part.log(&self.setting, part.starts());
            poll(
                || format!("{} to name the second server", part.name()),
                COMPLAINT,
                || {
                    Ok(fs::read_to_string(&log)
                        .is_ok_and(|text| text.contains("SECOND SERVER"))
                        .then_some(()))
                },
            )?;
        }
        Ok(())
    }

    /// A second engine with the configuration of the server, on another host: it must refuse.
    fn second_server(&mut self) -> Result<()> {
        let host = self.lab.host(HOSTILE)?;
        let mut command = host.command(&self.setting.engine);
        command
            .args(["run", "--config"])
            .arg(self.setting.path("server", "toml"));
        let log = self.setting.path(HOSTILE, "log");
        let mut second = super::Process::spawn("second server", command, &log)?;
        match second.wait(super::part::START) {
            Err(Error::Ended { log, .. }) if log.contains("in use") || log.contains("another process") => Ok(()),
            Err(error) => Err(error).context("a second server must refuse and name the directory in use"),
            Ok(()) => bail!("a second server ran with the state directory of the first"),
        }
    }

    /// Waits until all have ended and compares what they hold.
    fn heal(mut self, last_fault: Instant, left_out: BTreeMap<Kind, String>) -> Result<Outcome> {
        self.say("no more faults");
        let parts = &mut self.parts;
        let ended = poll(
            || "the campaign to end".to_owned(),
            HEAL + Duration::from_secs(CALM),
            || {
                let mut all = true;
                for (index, part) in parts.iter_mut().enumerate() {
                    all &= part.has_ended()? != (index == ARCHIVE);
                }
                Ok(all.then_some(()))
            },
        );
        let (seconds, healed_seconds) = (self.started.elapsed().as_secs_f64(), last_fault.elapsed().as_secs_f64());
        if let Err(error @ Error::Timeout { .. }) = ended {
            let mut text = error.to_string();
            for part in &mut self.parts {
                let how = if part.has_ended()? { "has ended" } else { "still runs" };
                if let Some(process) = part.process() {
                    text += &format!("\n{} {how}; its last lines:\n{}", process.name(), process.log_tail());
                }
            }
            // For their reports, which tell more, where the directory is kept.
            for part in &mut self.parts {
                if let Some(process) = part.process() {
                    process.terminate()?;
                    process.terminate()?;
                    let _ = process.wait(super::part::START);
                }
            }
            bail!(text);
        }
        ended?;
        let archive = self.process(ARCHIVE)?;
        archive.terminate()?;
        archive.wait(super::part::START)?;
        self.say("all have ended");

        let mut broken = Vec::new();
        let mut must = |result: Result<()>| broken.extend(result.err().map(|error| format!("{error:#}")));
        for part in &self.parts[ARCHIVE + 1..] {
            let got = fs::read(self.setting.path(part.name(), "out"));
            let got = got.with_context(|| format!("{} wrote nothing", part.name()))?;
            must(verify::same_bytes(part.name(), &got, &self.input));
            must(self.no_loss_said(part));
        }
        must(
            verify::archived(&self.logs[ARCHIVE]).and_then(|got| verify::same_bytes("the archive", &got, &self.input)),
        );
        let report: Report = read_report(&self.setting.path("server", "json"))?;
        for publication in &report.publications {
            let open = publication.unacknowledged;
            must(
                (open == 0)
                    .then_some(())
                    .with_context(|| format!("the server ended with {open} messages unacknowledged")),
            );
        }
        let sessions = seqcast_archive::Reader::open(&self.logs[ARCHIVE])?.sessions()?.len();
        let images: Vec<PathBuf> = self.disks.iter().map(|disk| disk.image().to_owned()).collect();
        let namespaces: Vec<String> = self
            .lab
            .hosts()
            .iter()
            .filter_map(|h| h.namespace().map(str::to_owned))
            .collect();
        let outcome = Outcome {
            faults: std::mem::take(&mut self.counts),
            left_out,
            messages: self.messages,
            sessions,
            seconds,
            healed_seconds,
            mode: std::mem::take(&mut self.mode),
            broken,
        };
        let directory = self.setting.directory.clone();
        drop(self);
        Ok(nothing_left(outcome, &directory, &images, &namespaces))
    }

    /// A loss that is reported where everything was delivered would be untrue.
    fn no_loss_said(&self, part: &Part) -> Result<()> {
        for number in 1..=part.starts() {
            let log = fs::read_to_string(part.log(&self.setting, number)).unwrap_or_default();
            let said = log.lines().find(|line| line.contains(": LOST "));
            ensure!(
                said.is_none(),
                "{} in run {number}: {}",
                part.name(),
                said.unwrap_or_default()
            );
        }
        Ok(())
    }
}

fn read_report(path: &Path) -> Result<Report> {
    let text = fs::read_to_string(path).with_context(|| format!("there is no report in {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// Adds to `broken` what is still there of a lab that is gone.
fn nothing_left(mut outcome: Outcome, directory: &Path, images: &[PathBuf], namespaces: &[String]) -> Outcome {
    // The kernel lets go of a mount, and then of its loop device, some time after its last process.
    let waited = poll(
        || "loop devices to go".to_owned(),
        Duration::from_secs(10),
        || Ok((images.is_empty() || disk::loop_devices_on(directory).is_empty()).then_some(())),
    );
    if waited.is_err() {
        let devices = disk::loop_devices_on(directory).join(", ");
        outcome.broken.push(format!("left behind: loop device {devices}"));
    }
    for name in namespaces {
        if Path::new("/var/run/netns").join(name).exists() {
            outcome.broken.push(format!("left behind: network namespace {name}"));
        }
    }
    outcome
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, count) in &self.faults {
            writeln!(f, "{kind:<8}{count:>6}")?;
        }
        for (kind, why) in &self.left_out {
            writeln!(f, "{kind:<8}  none: {why}")?;
        }
        writeln!(
            f,
            "{} faults in {:.0} s, {} messages in {} sessions; all had ended {:.1} s after the last fault",
            self.faults.values().sum::<u32>(),
            self.seconds,
            self.messages,
            self.sessions,
            self.healed_seconds,
        )?;
        writeln!(f, "link: {}", self.mode)?;
        for what in &self.broken {
            writeln!(f, "BROKEN: {what}")?;
        }
        if self.broken.is_empty() {
            writeln!(
                f,
                "every client and the archive hold the input; nothing was left behind"
            )?;
        }
        Ok(())
    }
}

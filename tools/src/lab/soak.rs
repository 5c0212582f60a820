//! A long run under steady load: what does memory, latency and backlog do over time?
//!
//! One program writes numbered lines with the time into the server's FIFO, others read them from
//! the clients' FIFOs. So what is measured is the whole way, from program to program, by one clock.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::job::{Link, tree_size};
use super::part::{Part, Setting, quoted};
use super::{Lab, Place, Process, Spec, interrupt};

/// A run to make.
#[derive(Clone, Debug)]
pub struct Soak {
    /// The program `seqcast-engine`.
    pub engine: PathBuf,
    /// What hosts are.
    pub place: Place,
    /// How engines move frames.
    pub link: Link,
    /// How long messages are published.
    pub duration: Duration,
    /// The time between two samples.
    pub every: Duration,
    /// Messages per second, above 0.
    pub rate: u64,
    /// How many clients, above 0.
    pub clients: u8,
    /// An empty directory for everything that the run writes.
    pub directory: PathBuf,
}

/// What one engine uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Memory of its own, in KiB.
    pub anonymous_kib: u64,
    /// Pages of files that are mapped and in memory, in KiB: logs, most of all.
    pub file_kib: u64,
    /// Open files.
    pub descriptors: u64,
}

/// One look at everything.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Since publishing began.
    pub seconds: f64,
    /// Messages written so far.
    pub written: u64,
    /// Of the slowest client, messages read so far.
    pub delivered: u64,
    /// The most messages that were written and not yet read by the slowest client, since the last
    /// sample.
    pub in_flight_max: u64,
    /// From a message's write to its read by any client since the last sample, in microseconds.
    pub p50_us: f64,
    /// The same.
    pub p99_us: f64,
    /// The same.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
    /// Bytes of the server's log.
    pub server_log: u64,
    /// Bytes of the archive.
    pub archive: u64,
    /// The engines, by name.
    pub engines: Vec<(String, Usage)>,
}

/// What came of it. `Display` shows it.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// All samples, in order.
    pub samples: Vec<Sample>,
    /// Messages published and delivered to each client, in order, each once.
    pub messages: u64,
    /// The mode of the server's link.
    pub mode: String,
}

const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 81, 0, 8), 5000);
/// How often the program that writes does so.
const TICK: Duration = Duration::from_millis(10);
/// How long everything may take to end.
const END: Duration = Duration::from_secs(60);
/// The longest latency that is told from longer ones, in ns.
const LONGEST: u64 = 60_000_000_000;

/// What one client's reader has seen.
struct Reader {
    read: AtomicU64,
    latency: Mutex<Histogram<u64>>,
}

impl Soak {
    /// Makes the run; `sampled` gets each sample when it is taken.
    ///
    /// # Errors
    /// When the lab cannot be made, an engine fails, or a client reads anything but what was
    /// written, in order.
    pub fn run(&self, sampled: &mut dyn FnMut(&Sample) -> Result<()>) -> Result<Outcome> {
        ensure!(self.clients > 0, "a soak needs at least one client");
        ensure!(self.rate > 0, "at a rate of 0 nothing would be published");
        let names: Vec<String> = (1..=self.clients).map(|i| format!("client{i}")).collect();
        let fixed = ["server", "archive"].map(str::to_owned);
        let lab = Lab::new(&Spec {
            place: self.place,
            hosts: fixed.iter().chain(&names).cloned().collect(),
            mtu: 1500,
            offloads: self.link == Link::Udp,
            second_line: false,
        })?;
        let setting = Setting {
            engine: self.engine.clone(),
            link: self.link,
            directory: self.directory.clone(),
            group: *GROUP.ip(),
            environment: Vec::new(),
        };
        let (log, archive) = (setting.path("server", "d"), setting.path("archive", "d"));
        let mut parts = Vec::new();
        let mut readers = Vec::new();
        let begin = Instant::now();
        parts.push(Part::new(
            &setting,
            lab.host("archive")?,
            "",
            &format!("[[archive]]\nstream = \"{GROUP}\"\ndir = {}\n", quoted(&archive)),
        )?);
        for name in &names {
            let fifo = setting.path(name, "fifo");
            let role = format!(
                "[[subscribe]]\nstream = \"{GROUP}\"\nfrom = \"session\"\nexit_at_end = true\nsink = {{ fifo = {}, format = \"lines\" }}\n",
                quoted(&fifo)
            );
            parts.push(Part::new(&setting, lab.host(name)?, "", &role)?);
        }
        let fifo = setting.path("server", "fifo");
        let role = format!(
            "[[publish]]\nstream = \"{GROUP}\"\nsource = {{ fifo = {}, format = \"lines\" }}\nstate = {}\narchives = 1\n",
            quoted(&fifo),
            quoted(&log)
        );
        parts.push(Part::new(&setting, lab.host("server")?, "", &role)?);
        let mut mode = String::new();
        for part in &mut parts {
            mode = part.start(&setting, &lab)?;
        }
        for name in &names {
            readers.push(read_all(&setting.path(name, "fifo"), begin)?);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let written = Arc::new(AtomicU64::new(0));
        let writer = write_all(&fifo, self.rate, begin, Arc::clone(&written), Arc::clone(&stop))?;

        let started = Instant::now();
        let mut samples = Vec::new();
        let mut next = self.every;
        let mut in_flight_max = 0;
        // Until the writer is stopped: what ends before has failed.
        while started.elapsed() < self.duration {
            interrupt::check()?;
            for part in &mut parts {
                ensure!(!part.has_ended()?, "{} has ended before the stream", part.name());
            }
            for (_, thread) in &readers {
                ensure!(!thread.is_finished(), "a reader has failed before the stream's end");
            }
            let slowest = readers
                .iter()
                .map(|(r, _)| r.read.load(Ordering::Relaxed))
                .min()
                .unwrap_or(0);
            in_flight_max = in_flight_max.max(written.load(Ordering::Relaxed).saturating_sub(slowest));
            if started.elapsed() >= next {
                let mut sample = Sample {
                    seconds: started.elapsed().as_secs_f64(),
                    written: written.load(Ordering::Relaxed),
                    delivered: slowest,
                    in_flight_max: std::mem::take(&mut in_flight_max),
                    p50_us: 0.0,
                    p99_us: 0.0,
                    p999_us: 0.0,
                    max_us: 0.0,
                    server_log: tree_size(&log)?,
                    archive: tree_size(&archive)?,
                    engines: Vec::new(),
                };
                sample.take_latency(&readers)?;
                for part in &mut parts {
                    let usage = part.process().map(usage_of).unwrap_or_default();
                    sample.engines.push((part.name().to_owned(), usage));
                }
                sampled(&sample)?;
                samples.push(sample);
                next += self.every;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
        let messages = joined(writer)?;
        let (archive_part, others) = parts.split_first_mut().context("there are parts")?;
        for part in others {
            part.process().context("it runs")?.wait(END)?;
        }
        let archive_process = archive_part.process().context("it runs")?;
        archive_process.terminate()?;
        archive_process.wait(END)?;
        for (reader, thread) in readers {
            joined(thread)?;
            let read = reader.read.load(Ordering::Relaxed);
            ensure!(read == messages, "a client delivered {read} of {messages} messages");
        }
        Ok(Outcome {
            samples,
            messages,
            mode: mode
                .split_once("mode=")
                .map_or_else(String::new, |(_, mode)| mode.to_owned()),
        })
    }
}

fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
}

impl Sample {
    fn take_latency(&mut self, readers: &[(Arc<Reader>, JoinHandle<Result<()>>)]) -> Result<()> {
        let mut all = Histogram::<u64>::new_with_bounds(1, LONGEST, 3)?;
        for (reader, _) in readers {
            let mut latency = reader.latency.lock().unwrap_or_else(PoisonError::into_inner);
            all.add(&*latency)?;
            latency.reset();
        }
        let us = |ns: u64| ns as f64 / 1e3;
        self.p50_us = us(all.value_at_quantile(0.5));
        self.p99_us = us(all.value_at_quantile(0.99));
        self.p999_us = us(all.value_at_quantile(0.999));
        self.max_us = us(all.max());
        Ok(())
    }
}

/// Writes lines at a rate until told to stop; returns how many.
fn write_all(
    fifo: &Path,
    rate: u64,
    begin: Instant,
    written: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> Result<JoinHandle<Result<u64>>> {
    let mut pipe = File::options()
        .write(true)
        .open(fifo)
        .with_context(|| format!("cannot write to {}", fifo.display()))?;
    let work = move || {
        let (start, mut count, mut lines) = (Instant::now(), 0u64, Vec::new());
        while !stop.load(Ordering::Relaxed) {
            let due = (start.elapsed().as_secs_f64() * rate as f64) as u64;
            lines.clear();
            let now = begin.elapsed().as_nanos();
            while count < due {
                count += 1;
                writeln!(lines, "{count:020} {now:020} what a soak publishes")?;
            }
            pipe.write_all(&lines)?;
            written.store(count, Ordering::Relaxed);
            std::thread::sleep(TICK);
        }
        Ok(count)
    };
    Ok(std::thread::Builder::new().name("writer".into()).spawn(work)?)
}

/// Reads lines until the end, and checks that none is missing.
fn read_all(fifo: &Path, begin: Instant) -> Result<(Arc<Reader>, JoinHandle<Result<()>>)> {
    let reader = Arc::new(Reader {
        read: AtomicU64::new(0),
        latency: Mutex::new(Histogram::new_with_bounds(1, LONGEST, 3)?),
    });
    let seen = Arc::clone(&reader);
    let path = fifo.to_owned();
    // The engine has made it before it was ready, or does so at once.
    super::command::poll(
        || format!("{} to be made", path.display()),
        super::part::START,
        || Ok(path.exists().then_some(())),
    )?;
    let work = move || {
        let pipe = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut lines = BufReader::new(pipe);
        let (mut line, mut count) = (String::new(), 0u64);
        while lines.read_line(&mut line)? > 0 {
            count += 1;
            let mut words = line.split(' ').map(str::parse::<u64>);
            let (Some(Ok(number)), Some(Ok(sent))) = (words.next(), words.next()) else {
                bail!("message {count} is another: {line:?}");
            };
            ensure!(number == count, "message {count} is missing: {number} came");
            let now = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let mut latency = seen.latency.lock().unwrap_or_else(PoisonError::into_inner);
            latency.saturating_record(now.saturating_sub(sent));
            drop(latency);
            seen.read.store(count, Ordering::Relaxed);
            line.clear();
        }
        Ok(())
    };
    let thread = std::thread::Builder::new().name("reader".into()).spawn(work)?;
    Ok((reader, thread))
}

/// What the kernel says of a process; zeros when it is gone.
fn usage_of(process: &mut Process) -> Usage {
    let directory = Path::new("/proc").join(process.id().to_string());
    let status = fs::read_to_string(directory.join("status")).unwrap_or_default();
    let kib = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Usage {
        anonymous_kib: kib("RssAnon:").unwrap_or(0),
        file_kib: kib("RssFile:").unwrap_or(0) + kib("RssShmem:").unwrap_or(0),
        descriptors: fs::read_dir(directory.join("fd")).map_or(0, |fds| fds.count() as u64),
    }
}

/// Rows of the table.
const ROWS: usize = 10;

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(last) = self.samples.last() else {
            return writeln!(f, "too short for a sample; {} messages, all delivered", self.messages);
        };
        let head = [
            "minutes",
            "p50 us",
            "p99 us",
            "p99.9 us",
            "in flight",
            "server's log MiB",
            "archive MiB",
        ];
        write!(f, "{}", head.join("  "))?;
        for (name, _) in &last.engines {
            write!(f, "  {name} KiB")?;
        }
        writeln!(f)?;
        let step = self.samples.len().div_ceil(ROWS).max(1);
        for s in self.samples.iter().skip(step - 1).step_by(step) {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            write!(
                f,
                "{:7.1}  {:6.0}  {:6.0}  {:8.0}  {:9}  {:16.1}  {:11.1}",
                s.seconds / 60.0,
                s.p50_us,
                s.p99_us,
                s.p999_us,
                s.in_flight_max,
                mib(s.server_log),
                mib(s.archive)
            )?;
            for (name, usage) in &s.engines {
                write!(f, "  {:>width$}", usage.anonymous_kib, width = name.len() + 4)?;
            }
            writeln!(f)?;
        }
        let descriptors: Vec<String> = last
            .engines
            .iter()
            .map(|(n, u)| format!("{n} {}", u.descriptors))
            .collect();
        writeln!(
            f,
            "KiB: anonymous memory of each engine. Open files at the end: {}",
            descriptors.join(", ")
        )?;
        for (index, (name, _)) in last.engines.iter().enumerate() {
            // The first tenth is for warming up.
            let settled = &self.samples[self.samples.len() / 10..];
            let memory = |s: &Sample| s.engines[index].1.anonymous_kib;
            if let [first, .., last] = settled {
                let growth = memory(last) as i64 - memory(first) as i64;
                writeln!(f, "{name}: {growth:+} KiB from minute {:.1} on", first.seconds / 60.0)?;
            }
        }
        writeln!(f, "link: {}", self.mode)?;
        writeln!(
            f,
            "{} messages, each delivered to every client, in order, once",
            self.messages
        )
    }
}

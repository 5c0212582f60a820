//! `seqcast top`'s picture.

use std::collections::{BTreeMap, VecDeque};

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table};

use super::summary::{Engine, PartSummary};

/// Looks that a sparkline shows.
const HISTORY: usize = 120;
/// Columns of a sparkline.
const SPARK: u16 = 24;

/// What was seen so far of rates, for sparklines.
#[derive(Debug, Default)]
pub struct History(BTreeMap<(u32, String, String), VecDeque<u64>>);

impl History {
    /// Another look.
    pub fn add(&mut self, engines: &[Engine]) {
        let known = |pid: u32| engines.iter().any(|engine| engine.pid == pid);
        self.0.retain(|(pid, ..), _| known(*pid));
        for engine in engines {
            for part in streams(engine) {
                let rates = self.0.entry(key(engine, part)).or_default();
                rates.push_back(part.rate(amount(part)) as u64);
                if rates.len() > HISTORY {
                    rates.pop_front();
                }
            }
        }
    }
}

fn key(engine: &Engine, part: &PartSummary) -> (u32, String, String) {
    (
        engine.pid,
        part.of.part.clone(),
        part.of.stream.clone().unwrap_or_default(),
    )
}

/// What a part does most.
fn amount(part: &PartSummary) -> &'static str {
    if part.of.part == "archive" {
        "stored"
    } else {
        "messages"
    }
}

fn streams(engine: &Engine) -> impl Iterator<Item = &PartSummary> {
    ["publication", "subscription", "archive"]
        .into_iter()
        .flat_map(|part| engine.parts(part))
}

/// Draws all engines, those with warnings first.
pub fn draw(frame: &mut Frame<'_>, engines: &[Engine], history: &History, notes: &[String]) {
    let mut engines: Vec<&Engine> = engines.iter().collect();
    engines.sort_by_key(|engine| (engine.warnings.is_empty(), &engine.engine, engine.pid));
    let heights = engines.iter().map(|engine| Constraint::Length(height(engine)));
    let heights = [Constraint::Length(1)]
        .into_iter()
        .chain(heights)
        .chain([Constraint::Fill(1)]);
    let areas = Layout::vertical(heights).split(frame.area());
    let bad = engines.iter().filter(|engine| !engine.warnings.is_empty()).count();
    let title = format!(
        " seqcast top   {} engines, {bad} with warnings   q: quit   p: pause ",
        engines.len()
    );
    frame.render_widget(
        Paragraph::new(title).style(Style::new().add_modifier(Modifier::REVERSED)),
        areas[0],
    );
    for (engine, area) in engines.iter().zip(areas.iter().skip(1)) {
        draw_engine(frame, *area, engine, history);
    }
    let rest = areas[areas.len() - 1];
    let mut text: Vec<Line<'_>> = notes.iter().map(|note| Line::from(note.as_str())).collect();
    if engines.is_empty() {
        text.insert(0, Line::from("no engine shows its counters here"));
    }
    frame.render_widget(Paragraph::new(text), rest);
}

fn height(engine: &Engine) -> u16 {
    // Borders, the head of the table, its rows, warnings.
    (3 + streams(engine).count() + engine.warnings.len()) as u16
}

fn draw_engine(frame: &mut Frame<'_>, area: Rect, engine: &Engine, history: &History) {
    let link = engine.parts("link").next();
    let rate = |name: &str| link.map_or(0.0, |link| link.rate(name));
    let title = format!(
        " {} · pid {} · {} · busy {:.0} % · in {} frames/s · out {} frames/s ",
        engine.engine,
        engine.pid,
        engine.mode,
        engine.busy() * 100.0,
        short(rate("received")),
        short(rate("sent")),
    );
    let color = if engine.warnings.is_empty() {
        Color::Green
    } else {
        Color::Red
    };
    let block = Block::bordered().title(title).border_style(Style::new().fg(color));
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let parts: Vec<&PartSummary> = streams(engine).collect();
    let [table, warnings] =
        Layout::vertical([Constraint::Length(1 + parts.len() as u16), Constraint::Fill(1)]).areas(inner);
    let [numbers, sparks] = Layout::horizontal([Constraint::Fill(1), Constraint::Length(SPARK)]).areas(table);
    draw_table(frame, numbers, &parts);
    for (row, part) in parts.iter().enumerate() {
        let y = sparks.y + 1 + row as u16;
        if y >= sparks.bottom() {
            break;
        }
        let rates: Vec<u64> = history
            .0
            .get(&key(engine, part))
            .into_iter()
            .flatten()
            .copied()
            .collect();
        let latest = rates.len().saturating_sub(usize::from(SPARK));
        let area = Rect { y, height: 1, ..sparks };
        frame.render_widget(Sparkline::default().data(&rates[latest..]), area);
    }
    let text = engine.warnings.iter().map(|warning| {
        let mark = Span::styled("! ", Style::new().fg(Color::Red).add_modifier(Modifier::BOLD));
        Line::from(vec![mark, Span::raw(warning.as_str())])
    });
    frame.render_widget(Paragraph::new(text.collect::<Vec<_>>()), warnings);
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, parts: &[&PartSummary]) {
    let head = [
        "role", "stream", "msgs/s", "bytes/s", "gaps", "repaired", "lost", "NAKs", "p50", "p99", "p99.9",
    ];
    let widths = [8, 21, 9, 9, 8, 9, 7, 8, 8, 8, 8].map(Constraint::Length);
    let rows = parts.iter().map(|part| Row::new(cells(part).map(Cell::from)));
    let head = Row::new(head.map(Cell::from)).style(Style::new().add_modifier(Modifier::DIM));
    frame.render_widget(Table::new(rows, widths).header(head), area);
}

fn cells(part: &PartSummary) -> [String; 11] {
    let total = |name: &str| short(part.total(name) as f64);
    let (role, repaired) = match part.of.part.as_str() {
        "publication" => ("server", total("repaired")),
        "archive" => ("archive", total("repaired")),
        _ => (
            "client",
            short((part.total("repaired_archive") + part.total("repaired_server")) as f64),
        ),
    };
    let latency = part
        .latencies
        .get("latency_live_ns")
        .filter(|latency| latency.count > 0);
    let time =
        |of: fn(&seqcast_engine::report::Latency) -> u64| latency.map_or(String::from("-"), |l| short_time(of(l)));
    let naks = if role == "archive" { "naks_answered" } else { "naks" };
    [
        role.to_owned(),
        part.of.stream.clone().unwrap_or_default(),
        short(part.rate(amount(part))),
        short(part.rate("bytes")),
        total("gaps"),
        repaired,
        total("lost"),
        total(naks),
        time(|l| l.p50),
        time(|l| l.p99),
        time(|l| l.p999),
    ]
}

/// A number in few letters: `12.3M`.
#[must_use]
pub fn short(value: f64) -> String {
    for (unit, size) in [("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)] {
        if value >= size {
            return format!("{:.1}{unit}", value / size);
        }
    }
    format!("{value:.0}")
}

/// Nanoseconds in few letters: `12.3us`.
#[must_use]
pub fn short_time(ns: u64) -> String {
    for (unit, size) in [("s", 1e9), ("ms", 1e6), ("us", 1e3)] {
        if ns as f64 >= size {
            return format!("{:.1}{unit}", ns as f64 / size);
        }
    }
    format!("{ns}ns")
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use seqcast_engine::counters::Part;
    use seqcast_engine::report::Latency;

    use super::*;

    fn engine(warnings: &[&str]) -> Engine {
        let part = |part: &str, stream: Option<&str>| PartSummary {
            of: Part {
                part: part.into(),
                stream: stream.map(str::to_owned),
                line: None,
            },
            ..PartSummary::default()
        };
        let mut client = part("subscription", Some("239.1.1.1:5000"));
        client.rates.insert("messages".into(), 1_234_567.0);
        client.totals.insert("lost".into(), 42);
        let latency = Latency {
            count: 9,
            p50: 1_640,
            p99: 12_000,
            p999: 3_400_000,
            max: 0,
        };
        client.latencies.insert("latency_live_ns".into(), latency);
        Engine {
            engine: "ticks".into(),
            mode: "udp on lo".into(),
            pid: 4711,
            alive: true,
            written: 0,
            seconds: 1.0,
            parts: vec![part("link", None), client],
            warnings: warnings.iter().map(|w| (*w).to_owned()).collect(),
        }
    }

    fn screen(engines: &[Engine], width: u16, height: u16) -> String {
        let mut history = History::default();
        history.add(engines);
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, engines, &history, &[])).unwrap();
        let buffer = terminal.backend().buffer();
        let lines = buffer
            .content()
            .chunks(usize::from(width))
            .map(|row| row.iter().map(|c| c.symbol()).collect::<String>());
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn rates_percentiles_and_warnings_are_shown() {
        let screen = screen(&[engine(&[]), engine(&["it LOST something"])], 150, 14);
        for text in [
            "2 engines, 1 with warnings",
            "ticks · pid 4711",
            "1.2M",
            "1.6us",
            "12.0us",
            "3.4ms",
            "42",
        ] {
            assert!(screen.contains(text), "{text}\n{screen}");
        }
        // The one with warnings is first.
        let warning = screen.find("! it LOST something").unwrap();
        assert!(warning < screen.rfind("ticks").unwrap(), "{screen}");
    }

    #[test]
    fn a_small_window_is_no_reason_to_panic() {
        for (width, height) in [(1, 1), (10, 3), (80, 2), (30, 40)] {
            screen(&[engine(&["warning"]), engine(&[])], width, height);
        }
        assert!(screen(&[], 60, 3).contains("no engine"));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!((short(999.0).as_str(), short(12_345.0).as_str()), ("999", "12.3k"));
        assert_eq!(
            (short_time(999).as_str(), short_time(1_500_000).as_str()),
            ("999ns", "1.5ms")
        );
    }
}

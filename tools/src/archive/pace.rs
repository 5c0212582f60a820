//! When recorded messages are due again.

use std::fmt;
use std::str::FromStr;

use seqcast_proto::seq::Session;

/// How fast recorded time passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speed {
    /// As fast as the messages are taken.
    Max,
    /// So many millionths of the recorded pace, at least 1.
    Millionths(u64),
}

/// The recorded pace, in millionths.
const ONE: u64 = 1_000_000;
/// Digits behind the point.
const DIGITS: usize = 6;
/// The fastest multiple.
const FASTEST: u64 = 1_000_000;

/// What is wrong with the text of a speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write \"max\", or a multiple of the recorded pace from 0.000001x to 1000000x, such as 1x, 10x or 0.5x")]
pub struct BadSpeed;

impl FromStr for Speed {
    type Err = BadSpeed;

    fn from_str(text: &str) -> Result<Speed, BadSpeed> {
        if text == "max" {
            return Ok(Speed::Max);
        }
        let number = text.strip_suffix('x').ok_or(BadSpeed)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > DIGITS {
            return Err(BadSpeed);
        }
        let whole: u64 = whole.parse().map_err(|_| BadSpeed)?;
        let fraction: u64 = format!("{fraction:0<DIGITS$}").parse().map_err(|_| BadSpeed)?;
        let millionths = whole.checked_mul(ONE).ok_or(BadSpeed)? + fraction;
        if !(1..=FASTEST * ONE).contains(&millionths) {
            return Err(BadSpeed);
        }
        Ok(Speed::Millionths(millionths))
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Speed::Max => f.write_str("max"),
            Speed::Millionths(n) => {
                let fraction = format!("{:0DIGITS$}", n % ONE);
                match fraction.trim_end_matches('0') {
                    "" => write!(f, "{}x", n / ONE),
                    fraction => write!(f, "{}.{fraction}x", n / ONE),
                }
            }
        }
    }
}

/// Maps send times to times of a clock that never goes back.
///
/// Every due time is counted from the first message of its session, never from the message before,
/// so that lateness does not add up: whoever is late hurries until he is not.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    speed: Speed,
    /// The session being played, its first send time, and when that was played.
    start: Option<(Session, u64, u64)>,
}

impl Schedule {
    /// A schedule that starts with the first message.
    #[must_use]
    pub fn new(speed: Speed) -> Schedule {
        Schedule { speed, start: None }
    }

    /// When messages that were sent at `sent` are due, all in ns; at once if that is not after
    /// `now`. A session's first message is due at once: the time between sessions is not played.
    pub fn due(&mut self, session: Session, sent: u64, now: u64) -> u64 {
        let Speed::Millionths(speed) = self.speed else {
            return 0;
        };
        match self.start {
            Some((playing, first, start)) if playing == session => {
                // A server's clock that was set back is no reason to go back.
                let scaled = u128::from(sent.saturating_sub(first)) * u128::from(ONE) / u128::from(speed);
                start.saturating_add(u64::try_from(scaled).unwrap_or(u64::MAX))
            }
            _ => {
                self.start = Some((session, sent, now));
                now
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400 * 1_000_000_000;

    #[test]
    fn speeds_are_read_exactly_and_written_back() {
        for (text, speed) in [
            ("max", Speed::Max),
            ("1x", Speed::Millionths(ONE)),
            ("10x", Speed::Millionths(10 * ONE)),
            ("0.5x", Speed::Millionths(ONE / 2)),
            ("1.1x", Speed::Millionths(1_100_000)),
            ("0.000001x", Speed::Millionths(1)),
            ("1000000x", Speed::Millionths(FASTEST * ONE)),
        ] {
            assert_eq!(text.parse(), Ok(speed));
            assert_eq!(speed.to_string(), text);
        }
        for text in [
            "",
            "x",
            "1",
            "0x",
            "0.0x",
            "-1x",
            "+1x",
            ".5x",
            "1.x",
            "1e3x",
            "0.0000001x",
            "1000001x",
            "99999999999999999999x",
        ] {
            assert_eq!(text.parse::<Speed>(), Err(BadSpeed), "{text}");
        }
    }

    #[test]
    fn due_times_are_exact_over_days_at_every_speed() {
        let sent = 1_772_461_800_000_000_000;
        for (speed, days, nanos) in [("1x", 3, 7), ("10x", 30, 70), ("0.5x", 1, 3), ("0.1x", 2, 1)] {
            let mut schedule = Schedule::new(speed.parse().unwrap());
            assert_eq!(schedule.due(Session(1), sent, 5_000), 5_000);
            let due = schedule.due(Session(1), sent + days * DAY + nanos, 6_000);
            let exact = match speed {
                "1x" => 3 * DAY + 7,
                "10x" => 3 * DAY + 7,
                "0.5x" => 2 * DAY + 6,
                _ => 20 * DAY + 10,
            };
            assert_eq!(due, 5_000 + exact, "{speed}");
        }
    }

    #[test]
    fn each_session_starts_at_once_and_time_set_back_is_due_at_once() {
        let mut schedule = Schedule::new(Speed::Millionths(ONE));
        assert_eq!(schedule.due(Session(1), 1_000, 50), 50);
        assert_eq!(schedule.due(Session(1), 1_400, 60), 450);
        assert!(schedule.due(Session(1), 900, 460) <= 460);
        assert_eq!(schedule.due(Session(2), DAY, 500), 500);
        assert_eq!(schedule.due(Session(2), DAY + 1, 501), 501);
        let mut schedule = Schedule::new(Speed::Max);
        assert_eq!(schedule.due(Session(1), DAY, 50), 0);
        // Ages at a crawl are a long time, not a short one.
        let mut schedule = Schedule::new(Speed::Millionths(1));
        schedule.due(Session(1), 0, 0);
        assert_eq!(schedule.due(Session(1), u64::MAX, 1), u64::MAX);
    }
}

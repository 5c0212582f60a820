//! Which events are wanted: `"info"`, `"warn,client=debug"`.

use thiserror::Error;
use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};

use super::{ARCHIVE, CLIENT, ENGINE, FEED, PROGRAMS, RELOAD, SERVER, TOOL, TRUST};

const TARGETS: [&str; 9] = [ENGINE, SERVER, CLIENT, ARCHIVE, TRUST, FEED, PROGRAMS, RELOAD, TOOL];

/// Why a filter makes no sense.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FilterError {
    /// No level has that name.
    #[error("{0:?} is no level: write error, warn, info, debug, trace or off")]
    Level(String),
    /// Nothing speaks under that name.
    #[error(
        "{0:?} is no part of an engine: write engine, server, client, archive, trust, feed, programs, reload or tool"
    )]
    Target(String),
}

/// Reads a filter: levels with a comma between, each alone, for all that is not named, or behind the name of
/// a part and `=`. What no level is given for is shown from `info` on.
///
/// # Errors
/// Names the word that is wrong, and those that would not be.
pub fn parse(text: &str) -> Result<Targets, FilterError> {
    let mut targets = Targets::new().with_default(Level::INFO);
    for word in text.split(',').map(str::trim) {
        match word.split_once('=') {
            None => targets = targets.with_default(level(word)?),
            Some((part, word)) => {
                let part = part.trim();
                let named = |target: &&&str| target.rsplit("::").next() == Some(part) || **target == part;
                let target = TARGETS.iter().find(named);
                let target = *target.ok_or_else(|| FilterError::Target(part.to_owned()))?;
                targets = targets.with_target(target, level(word.trim())?);
            }
        }
    }
    Ok(targets)
}

fn level(word: &str) -> Result<LevelFilter, FilterError> {
    Ok(match word {
        "off" => LevelFilter::OFF,
        "error" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => return Err(FilterError::Level(word.to_owned())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_for_all_or_for_a_part() {
        let enabled = |filter: &str, target, level| parse(filter).unwrap().would_enable(target, &level);
        assert!(enabled("info", SERVER, Level::INFO) && !enabled("info", SERVER, Level::DEBUG));
        let filter = "warn, client=debug,seqcast::trust=off";
        for (target, level, wanted) in [
            (SERVER, Level::INFO, false),
            (SERVER, Level::WARN, true),
            (CLIENT, Level::DEBUG, true),
            (CLIENT, Level::TRACE, false),
            (TRUST, Level::ERROR, false),
        ] {
            assert_eq!(enabled(filter, target, level), wanted, "{target} {level}");
        }
        // A part alone leaves the others as they are without.
        assert!(enabled("client=error", SERVER, Level::INFO));
    }

    #[test]
    fn mistakes_are_named() {
        for (filter, word) in [("inof", "inof"), ("", ""), ("client=loud", "loud"), ("info,", "")] {
            assert_eq!(parse(filter), Err(FilterError::Level(word.to_owned())), "{filter}");
        }
        assert_eq!(parse("cleint=warn"), Err(FilterError::Target("cleint".to_owned())));
    }
}

//! Which message of the feed is which of the stream: a small file beside a server's log.
//!
//! The log knows how many messages were ever taken from the source. A line of this file says that from so
//! many on they were a session's from this number on; one is added, and synced, before the first message for which
//! the lines so far do not hold. So a start finds its place exactly, wherever the run before was killed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use seqcast_mold::SessionName;

const HEADER: &str = "seqcast-mold-map 1";
/// Messages that may be on their way from the source to the log: more than its lane holds.
const ON_THE_WAY: u64 = 1 << 18;
/// Lines beyond those needed after which the file is written anew.
const SPARE: usize = 4096;

/// A place in the feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) session: SessionName,
    /// The next message's number.
    pub(super) number: u64,
    /// The session ended there.
    pub(super) ended: bool,
}

/// From the `count`th message on, counted from 0, all is as from `place` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    count: u64,
    place: Place,
}

impl Line {
    fn text(&self) -> String {
        let ended = if self.place.ended { "ended" } else { "open" };
        let hex: String = self.place.session.0.iter().map(|b| format!("{b:02x}")).collect();
        let text = format!("{} {hex} {} {ended}", self.count, self.place.number);
        format!("{text} {:08x}\n", crc_fast::crc32_iscsi(text.as_bytes()))
    }

    fn parse(line: &str) -> Option<Line> {
        let (text, seal) = line.rsplit_once(' ')?;
        if u32::from_str_radix(seal, 16) != Ok(crc_fast::crc32_iscsi(text.as_bytes())) || seal.len() != 8 {
            return None;
        }
        let mut words = text.split(' ');
        let count = words.next()?.parse().ok()?;
        let hex = words.next().filter(|hex| hex.len() == 20 && hex.is_ascii())?;
        let mut name = [0; 10];
        for (at, byte) in name.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
        }
        let number = words.next()?.parse().ok()?;
        let ended = words.next()? == "ended";
        let place = Place {
            session: SessionName(name),
            number,
            ended,
        };
        words.next().is_none().then_some(Line { count, place })
    }
}

/// The open file.
pub(super) struct Map {
    path: PathBuf,
    file: File,
    lines: Vec<Line>,
    /// Lines after which the old ones are left out.
    most: usize,
}

impl Map {
    /// Opens the file, or makes it. `published` is how many messages the log has ever taken; also says where
    /// they end.
    pub(super) fn open(path: &Path, published: u64) -> io::Result<(Map, Option<Place>)> {
        let refuse = |why: &str| {
            let text = format!("{}: {why}: move it away to begin as `from` says", path.display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        };
        let mut lines = text.split_inclusive('\n');
        if lines.next().is_some_and(|line| line.trim_end() != HEADER) {
            return Err(refuse("is no map of a feed, or of another format"));
        }
        // A crash while a line was written leaves it cut: its message was not published then.
        let mut lines: Vec<Line> = lines.map_while(|line| Line::parse(line.strip_suffix('\n')?)).collect();
        lines.retain(|line| line.count <= published);
        let place = lines.last().map(|line| Place {
            number: line.place.number + (published - line.count),
            ended: line.place.ended && line.count == published,
            ..line.place
        });
        if place.is_none() && published > 0 {
            return Err(refuse("does not say where the messages already published ended"));
        }
        lines.drain(..lines.len().saturating_sub(1));
        let file = write(path, &lines)?;
        let map = Map {
            path: path.into(),
            file,
            lines,
            most: SPARE,
        };
        Ok((map, place))
    }

    /// From the `count`th message on, what is published comes from `place` on.
    pub(super) fn note(&mut self, count: u64, place: Place) -> io::Result<()> {
        let line = Line { count, place };
        self.lines.push(line);
        if self.lines.len() > self.most {
            let needed = count.saturating_sub(ON_THE_WAY);
            let old = self.lines.partition_point(|line| line.count <= needed);
            self.lines.drain(..old.saturating_sub(1));
            self.most = self.lines.len() + SPARE;
            self.file = write(&self.path, &self.lines)?;
            return Ok(());
        }
        self.file.write_all(line.text().as_bytes())?;
        self.file.sync_data()
    }
}

/// Replaces the file, as a whole or not at all.
fn write(path: &Path, lines: &[Line]) -> io::Result<File> {
    let replace = || {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut partial = path.to_owned().into_os_string();
        partial.push(".partial");
        let mut file = File::create(&partial)?;
        let lines: String = lines.iter().map(Line::text).collect();
        file.write_all(format!("{HEADER}\n{lines}").as_bytes())?;
        file.sync_data()?;
        fs::rename(&partial, path)?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(file)
    };
    replace().map_err(|e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(session: &str, number: u64, ended: bool) -> Place {
        Place {
            session: session.parse().unwrap(),
            number,
            ended,
        }
    }

    #[test]
    fn every_count_finds_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/map");
        let noted = [
            (0, place("MON", 100, false)),
            (5, place("MON", 200, false)),
            (9, place("MON", 204, true)),
            (9, place("TUE", 1, false)),
        ];
        for (published, want) in [
            (0, place("MON", 100, false)),
            (4, place("MON", 104, false)),
            (5, place("MON", 200, false)),
            (8, place("MON", 203, false)),
            (9, place("TUE", 1, false)),
            (11, place("TUE", 3, false)),
        ] {
            let _ = fs::remove_file(&path);
            let (mut map, none) = Map::open(&path, 0).unwrap();
            assert_eq!(none, None);
            for (count, place) in noted {
                map.note(count, place).unwrap();
            }
            assert_eq!(Map::open(&path, published).unwrap().1, Some(want), "{published}");
            // What had not come as far as the log is forgotten, and comes again.
            assert_eq!(Map::open(&path, published).unwrap().1, Some(want), "{published} again");
        }
        let _ = fs::remove_file(&path);
        let (mut map, _) = Map::open(&path, 0).unwrap();
        map.note(0, place("MON", 1, false)).unwrap();
        map.note(3, place("MON", 4, true)).unwrap();
        assert_eq!(Map::open(&path, 3).unwrap().1, Some(place("MON", 4, true)));
    }

    #[test]
    fn a_torn_line_is_left_out_and_foreign_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("map");
        let (mut map, _) = Map::open(&path, 0).unwrap();
        map.note(0, place("A", 7, false)).unwrap();
        let whole = fs::read(&path).unwrap();
        map.note(2, place("A", 99, false)).unwrap();
        let longer = fs::read(&path).unwrap();
        for cut in whole.len()..longer.len() {
            fs::write(&path, &longer[..cut]).unwrap();
            assert_eq!(Map::open(&path, 2).unwrap().1, Some(place("A", 9, false)), "{cut}");
        }
        fs::write(&path, "hello\n").unwrap();
        let error = Map::open(&path, 0).err().unwrap().to_string();
        assert!(error.contains("is no map") && error.contains("move it away"), "{error}");
        fs::remove_file(&path).unwrap();
        let error = Map::open(&path, 5).err().unwrap().to_string();
        assert!(error.contains("does not say"), "{error}");
    }

    #[test]
    fn old_lines_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("map");
        let (mut map, _) = Map::open(&path, 0).unwrap();
        // Without the syncs of as many lines.
        for count in 0..SPARE as u64 {
            let place = place("A", 2 * count + 1, false);
            map.lines.push(Line { count, place });
        }
        let far = 2 * ON_THE_WAY;
        map.note(far, place("B", 1, false)).unwrap();
        assert_eq!(map.lines.len(), 2);
        assert_eq!(Map::open(&path, far + 1).unwrap().1, Some(place("B", 2, false)));
    }
}

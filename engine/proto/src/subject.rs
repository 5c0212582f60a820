//! Subjects: what a message is about, and who wants it.
//!
//! A subject is text of dot-separated elements, as `EQ.US.AAPL`. A [`Pattern`] is a subject in
//! which an element may be `*` (any one element) and the last may be `>` (one or more elements).
//! A [`Matcher`] finds which of many patterns match a subject. `docs/subjects.md` has the whole.

use alloc::boxed::Box;
use core::fmt;

use crate::wire::Message;

mod matcher;
#[cfg(test)]
mod tests;

pub use matcher::Matcher;

/// The pattern's element that stands for any one element.
const ANY: &[u8] = b"*";
/// The pattern's last element that stands for one or more elements.
const REST: &[u8] = b">";

/// Why text is no subject, or no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubjectError {
    /// Nothing at all.
    Empty,
    /// More bytes than a message's header can say: how many.
    TooLong(usize),
    /// A dot at the start, at the end, or behind another one; the offset in bytes.
    EmptyElement(usize),
    /// White space, a control character, or what is no UTF-8; the offset in bytes.
    Character(usize),
    /// `*` or `>` in a subject, or in a pattern where it stands for nothing; the offset in bytes.
    Wildcard(usize),
}

impl fmt::Display for SubjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SubjectError::Empty => write!(f, "a subject needs at least one element"),
            SubjectError::TooLong(len) => {
                write!(f, "{len} bytes; a subject has at most {}", Message::MAX_SUBJECT)
            }
            SubjectError::EmptyElement(at) => write!(f, "an empty element at byte {at}"),
            SubjectError::Character(at) => {
                write!(
                    f,
                    "byte {at}: white space, control characters and what is no UTF-8 are not allowed"
                )
            }
            SubjectError::Wildcard(at) => write!(
                f,
                "byte {at}: `*` and `>` are for patterns, there only as whole elements, and `>` only as the last"
            ),
        }
    }
}

impl core::error::Error for SubjectError {}

/// Checks that `bytes` are a subject that can be published.
///
/// # Errors
/// Says what is wrong and where.
pub fn check(bytes: &[u8]) -> Result<(), SubjectError> {
    check_text(bytes)?;
    match bytes.iter().position(|b| matches!(b, b'*' | b'>')) {
        Some(at) => Err(SubjectError::Wildcard(at)),
        None => Ok(()),
    }
}

/// What subjects and patterns have in common.
fn check_text(bytes: &[u8]) -> Result<(), SubjectError> {
    if bytes.is_empty() {
        return Err(SubjectError::Empty);
    }
    if bytes.len() > Message::MAX_SUBJECT {
        return Err(SubjectError::TooLong(bytes.len()));
    }
    if !bytes.iter().all(u8::is_ascii_graphic) {
        let text = core::str::from_utf8(bytes).map_err(|e| SubjectError::Character(e.valid_up_to()))?;
        let bad = |(_, c): &(usize, char)| c.is_whitespace() || c.is_control();
        if let Some((at, _)) = text.char_indices().find(bad) {
            return Err(SubjectError::Character(at));
        }
    }
    let mut before = b'.';
    for (at, byte) in bytes.iter().chain(b".").enumerate() {
        if before == b'.' && *byte == b'.' {
            return Err(SubjectError::EmptyElement(at));
        }
        before = *byte;
    }
    Ok(())
}

fn elements(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| *b == b'.')
}

/// Which subjects are wanted.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Pattern(Box<str>);

impl Pattern {
    /// Reads a pattern of 1 to 255 bytes.
    ///
    /// # Errors
    /// Says what is wrong and where.
    pub fn parse(text: &str) -> Result<Pattern, SubjectError> {
        check_text(text.as_bytes())?;
        let mut at = 0;
        for element in elements(text.as_bytes()) {
            let is_last = at + element.len() == text.len();
            let stands_alone = element == ANY || element == REST && is_last;
            let inside = element.iter().position(|b| matches!(b, b'*' | b'>'));
            if let Some(inside) = inside.filter(|_| !stands_alone) {
                return Err(SubjectError::Wildcard(at + inside));
            }
            at += element.len() + 1;
        }
        Ok(Pattern(text.into()))
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a subject that [`check`] accepts is among those wanted. For many patterns there is
    /// [`Matcher`].
    #[must_use]
    pub fn matches(&self, subject: &[u8]) -> bool {
        let mut wanted = elements(self.0.as_bytes());
        for element in elements(subject) {
            match wanted.next() {
                Some(REST) => return true,
                Some(w) if w == ANY || w == element => {}
                _ => return false,
            }
        }
        wanted.next().is_none()
    }

    /// Whether some subject matches both patterns.
    #[must_use]
    pub fn overlaps(&self, other: &Pattern) -> bool {
        let (mut ours, mut theirs) = (elements(self.0.as_bytes()), elements(other.0.as_bytes()));
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => return true,
                (None, _) | (_, None) => return false,
                (Some(REST), _) | (_, Some(REST)) => return true,
                (Some(a), Some(b)) if a == ANY || b == ANY || a == b => {}
                _ => return false,
            }
        }
    }

    /// Whether every subject that matches `other` matches this pattern too.
    #[must_use]
    pub fn covers(&self, other: &Pattern) -> bool {
        let (mut ours, mut theirs) = (elements(self.0.as_bytes()), elements(other.0.as_bytes()));
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => return true,
                (None, _) | (_, None) => return false,
                (Some(REST), _) => return true,
                (_, Some(REST)) => return false,
                (Some(a), Some(b)) if a == ANY || a == b => {}
                _ => return false,
            }
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

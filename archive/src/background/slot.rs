//! Hand-over of what is made ahead.

use std::io;
use std::mem;
use std::sync::{Condvar, Mutex, PoisonError};

use super::helper::HelperShared;
use super::lock;
use crate::error::copy;

/// A place where the helper puts a thing that the appender will need next.
#[derive(Debug)]
pub(crate) struct Slot<T> {
    state: Mutex<State<T>>,
    made: Condvar,
}

#[derive(Debug)]
enum State<T> {
    Empty,
    Wanted(u32),
    Making(u32),
    Ready(u32, T),
    Failed(u32, io::Error),
}

impl<T> Slot<T> {
    pub(super) fn new() -> Slot<T> {
        Slot {
            state: Mutex::new(State::Empty),
            made: Condvar::new(),
        }
    }

    /// Asks for number `n`, unless the slot is in use.
    pub(crate) fn want(&self, n: u32) {
        let mut state = lock(&self.state);
        if matches!(*state, State::Empty) {
            *state = State::Wanted(n);
        }
    }

    /// Whether number `n` is there.
    pub(super) fn has(&self, n: u32) -> bool {
        matches!(*lock(&self.state), State::Ready(m, _) if m == n)
    }

    /// Takes number `n`, waiting for it when it is being made and making it here when it is not.
    /// With a `helper`, a failure is kept and repeated until the helper has tried again.
    pub(super) fn take(
        &self,
        n: u32,
        helper: Option<&HelperShared>,
        make: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = lock(&self.state);
        while matches!(*state, State::Making(m) if m == n) {
            state = self.made.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match mem::replace(&mut *state, State::Empty) {
            State::Ready(m, thing) if m == n => return Ok(thing),
            State::Failed(m, error) if m == n => {
                let result = Err(copy(&error));
                *state = State::Failed(m, error);
                return result;
            }
            State::Wanted(m) if m == n => {}
            other => *state = other,
        }
        drop(state);
        let made = make();
        if let (Err(error), Some(helper)) = (&made, helper) {
            let mut state = lock(&self.state);
            if matches!(*state, State::Empty) {
                *state = State::Failed(n, copy(error));
                // It may sleep without a time set: it has to learn that something is to be retried.
                helper.ahead.wake();
            }
        }
        made
    }

    /// Makes what is wanted; with `retry`, also what failed before. Returns whether it is missing.
    pub(super) fn fill(&self, retry: bool, make: impl FnOnce(u32) -> io::Result<T>) -> bool {
        let mut state = lock(&self.state);
        let n = match *state {
            State::Wanted(n) => n,
            State::Failed(n, _) if retry => n,
            State::Failed(..) => return true,
            _ => return false,
        };
        *state = State::Making(n);
        drop(state);
        let made = make(n);
        let failed = made.is_err();
        *lock(&self.state) = match made {
            Ok(thing) => State::Ready(n, thing),
            Err(error) => State::Failed(n, error),
        };
        self.made.notify_all();
        failed
    }

    /// Empties the slot.
    pub(super) fn clear(&self) -> Option<(u32, T)> {
        match mem::replace(&mut *lock(&self.state), State::Empty) {
            State::Ready(n, thing) => Some((n, thing)),
            _ => None,
        }
    }
}

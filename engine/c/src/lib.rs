//! The C library: `seqcast-client` behind opaque handles. `include/seqcast.h` is made from this file.
//!
//! What is said here of pointers is said to callers by the header's first comment. Panics do not pass the
//! boundary: a release aborts at once, and `extern "C"` aborts otherwise.
#![allow(non_camel_case_types, reason = "the names are those of C")]
#![allow(
    clippy::missing_safety_doc,
    reason = "all alike: pointers are null or point to what their type says for the call; handles were made here and are used by one thread"
)]

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::net::SocketAddrV4;
use std::ptr;
use std::time::Duration;

use seqcast_client::{
    Claim, Engine, Error, EventKind, From, Position, Publisher, PublisherOptions, Received, Subscriber,
    SubscriberOptions, flags,
};

/// Done.
pub const SEQCAST_OK: i32 = 0;
/// An argument makes no sense; nothing was done.
pub const SEQCAST_ARGUMENT: i32 = -1;
/// The lane is full; try again, or use a call that waits.
pub const SEQCAST_FULL: i32 = 1;
/// The time was over first; nothing was done.
pub const SEQCAST_TIMEOUT: i32 = 2;
/// No engine is there now; later calls attach by themselves.
pub const SEQCAST_GONE: i32 = 3;
/// More than one frame carries.
pub const SEQCAST_TOO_LARGE: i32 = 4;
/// No subject, or no pattern.
pub const SEQCAST_SUBJECT: i32 = 5;
/// The kernel refuses.
pub const SEQCAST_SYSTEM: i32 = 6;
/// Refused: engine and program are of different releases.
pub const SEQCAST_REFUSED_VERSION: i32 = 17;
/// Refused: this user may not.
pub const SEQCAST_REFUSED_PERMISSION: i32 = 18;
/// Refused: the engine has no such stream for programs.
pub const SEQCAST_REFUSED_STREAM: i32 = 19;
/// Refused: as many programs are attached as may be.
pub const SEQCAST_REFUSED_FULL: i32 = 20;
/// Refused: what the program wrote or said makes no sense.
pub const SEQCAST_REFUSED_BROKEN: i32 = 21;
/// Refused: others are catching up.
pub const SEQCAST_REFUSED_BUSY: i32 = 22;
/// Refused: the engine is out of memory or descriptors.
pub const SEQCAST_REFUSED_SYSTEM: i32 = 23;

/// `kind` of a message; other kinds are events, whose numbers follow.
pub const SEQCAST_MESSAGE: u32 = 0;
/// `first` is the first message that comes.
pub const SEQCAST_JOINED: u32 = 1;
/// The engine misses `first` to `last` and asks for them.
pub const SEQCAST_GAP: u32 = 2;
/// `first` to `last` will not come.
pub const SEQCAST_LOST: u32 = 3;
/// The session is over; `last` was its last message.
pub const SEQCAST_SESSION_ENDED: u32 = 4;
/// The next session begins.
pub const SEQCAST_SESSION_STARTED: u32 = 5;
/// Nobody knows whether the session had messages from `first` on.
pub const SEQCAST_TAIL_UNKNOWN: u32 = 6;
/// The server has not been heard for a second.
pub const SEQCAST_SILENT: u32 = 7;
/// It is heard again.
pub const SEQCAST_HEARD: u32 = 8;
/// A second server uses the stream's identity; it is refused.
pub const SEQCAST_DUPLICATE_SERVER: u32 = 9;
/// Line `first` of two is silent.
pub const SEQCAST_LINE_SILENT: u32 = 10;
/// It is heard again.
pub const SEQCAST_LINE_HEARD: u32 = 11;
/// This program missed `first` to `last` (0: to the session's end) and will not get them.
pub const SEQCAST_MISSED: u32 = 32;
/// What was missed comes now.
pub const SEQCAST_CATCHING_UP: u32 = 33;
/// That is over; what follows is live.
pub const SEQCAST_CAUGHT_UP: u32 = 34;
/// The engine ended or was killed.
pub const SEQCAST_ENGINE_GONE: u32 = 35;
/// This program is attached again.
pub const SEQCAST_ENGINE_BACK: u32 = 36;

/// In a message's flags: it was lost on its way to the engine and repaired.
pub const SEQCAST_FLAG_REPAIRED: u16 = 1;
/// The repair came from the server, not from an archive.
pub const SEQCAST_FLAG_FROM_SERVER: u16 = 4;
/// The program had missed it; it was asked for again.
pub const SEQCAST_FLAG_CAUGHT_UP: u16 = 8;

/// Begin with what comes next.
pub const SEQCAST_FROM_NOW: u32 = 0;
/// Begin at message 1 of the session that the engine receives.
pub const SEQCAST_FROM_SESSION: u32 = 1;
/// Begin right behind message `after_sequence` of `after_session`.
pub const SEQCAST_FROM_AFTER: u32 = 2;

const _: () = {
    assert!(SEQCAST_JOINED == EventKind::Joined as u32 && SEQCAST_GAP == EventKind::Gap as u32);
    assert!(SEQCAST_LOST == EventKind::Lost as u32 && SEQCAST_SESSION_ENDED == EventKind::SessionEnded as u32);
    assert!(SEQCAST_SESSION_STARTED == EventKind::SessionStarted as u32);
    assert!(SEQCAST_TAIL_UNKNOWN == EventKind::TailUnknown as u32 && SEQCAST_SILENT == EventKind::Silent as u32);
    assert!(SEQCAST_HEARD == EventKind::Heard as u32);
    assert!(SEQCAST_DUPLICATE_SERVER == EventKind::DuplicateServer as u32);
    assert!(SEQCAST_LINE_SILENT == EventKind::LineSilent as u32);
    assert!(SEQCAST_LINE_HEARD == EventKind::LineHeard as u32 && SEQCAST_MISSED == EventKind::Missed as u32);
    assert!(SEQCAST_CATCHING_UP == EventKind::CatchingUp as u32 && SEQCAST_CAUGHT_UP == EventKind::CaughtUp as u32);
    assert!(SEQCAST_ENGINE_GONE == EventKind::EngineGone as u32);
    assert!(SEQCAST_ENGINE_BACK == EventKind::EngineBack as u32);
    assert!(SEQCAST_FLAG_REPAIRED == flags::REPAIRED && SEQCAST_FLAG_FROM_SERVER == flags::FROM_SERVER);
    assert!(SEQCAST_FLAG_CAUGHT_UP == flags::CAUGHT_UP);
};

/// Where an engine is.
pub struct seqcast_engine(Engine);

/// Publishes one stream.
pub struct seqcast_publisher {
    /// Borrows what `publisher` points to; ends before that is touched otherwise.
    claim: Option<Claim<'static>>,
    /// From `Box::into_raw`; freed with this.
    publisher: *mut Publisher,
}

/// Receives one stream.
pub struct seqcast_subscriber(Subscriber);

/// How to publish.
#[repr(C)]
pub struct seqcast_publisher_options {
    /// Group and port, as "239.1.1.1:5000"; null: the only stream that the engine has for programs.
    pub stream: *const c_char,
    /// What the program calls itself in the engine's messages; null: its file name.
    pub name: *const c_char,
    /// How long attaching may wait for an engine, in milliseconds.
    pub patience_ms: u32,
    /// Drop what a killed engine had not taken, instead of publishing it through the next one.
    pub no_resend: bool,
}

/// How to subscribe.
#[repr(C)]
pub struct seqcast_subscriber_options {
    /// Group and port, as "239.1.1.1:5000"; null: the only stream that the engine has for programs.
    pub stream: *const c_char,
    /// What the program calls itself in the engine's messages; null: its file name.
    pub name: *const c_char,
    /// How long attaching may wait for an engine, in milliseconds.
    pub patience_ms: u32,
    /// SEQCAST_FROM_NOW, _SESSION or _AFTER.
    pub from: u32,
    /// For SEQCAST_FROM_AFTER.
    pub after_session: u32,
    /// For SEQCAST_FROM_AFTER.
    pub after_sequence: u32,
    /// Patterns of wanted subjects.
    pub subjects: *const *const c_char,
    /// How many; 0: all messages are wanted.
    pub subject_count: usize,
    /// Only report what was missed, instead of fetching it.
    pub no_recover: bool,
    /// How long waiting calls look again and again before they sleep, in microseconds.
    pub spin_us: u32,
}

/// A message or an event. The bytes live until the subscriber is used again.
#[repr(C)]
pub struct seqcast_received {
    /// SEQCAST_MESSAGE, or the event's number.
    pub kind: u32,
    /// Session of the numbers.
    pub session: u32,
    /// Message: its number. Event: see its number.
    pub first: u32,
    /// Message: its number. Event: see its number.
    pub last: u32,
    /// Event: see its number.
    pub detail: u32,
    /// Message: SEQCAST_FLAG_ bits.
    pub flags: u16,
    /// Message: when the server first sent it; nanoseconds since the Unix epoch.
    pub time_ns: u64,
    /// Message: its subject, without a zero at the end.
    pub subject: *const c_char,
    /// Bytes of that; 0: none.
    pub subject_len: usize,
    /// Message: its payload.
    pub payload: *const u8,
    /// Bytes of that.
    pub payload_len: usize,
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// An argument that makes no sense, by name.
struct Bad(&'static str);

enum Failure {
    Bad(&'static str),
    Error(Error),
}

impl std::convert::From<Bad> for Failure {
    fn from(bad: Bad) -> Failure {
        Failure::Bad(bad.0)
    }
}

impl std::convert::From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Error(error)
    }
}

/// A result's number; its text is kept, but for what is ordinary and often.
fn code(result: Result<(), Failure>) -> i32 {
    let (code, text) = match result {
        Ok(()) => return SEQCAST_OK,
        Err(Failure::Error(error @ (Error::Full | Error::Timeout))) => return error.code(),
        Err(Failure::Error(error)) => (error.code(), error.to_string()),
        Err(Failure::Bad(name)) => (SEQCAST_ARGUMENT, format!("argument {name} makes no sense")),
    };
    let text = CString::new(text).unwrap_or_default();
    LAST.with(|last| *last.borrow_mut() = text);
    code
}

/// What a pointer of the caller points to.
unsafe fn get<'a, T>(pointer: *mut T, name: &'static str) -> Result<&'a mut T, Bad> {
    // SAFETY: null, or the caller's own for the call.
    unsafe { pointer.as_mut() }.ok_or(Bad(name))
}

unsafe fn text<'a>(pointer: *const c_char, name: &'static str) -> Result<&'a str, Bad> {
    if pointer.is_null() {
        return Ok("");
    }
    // SAFETY: not null, so it is text with a zero at its end.
    unsafe { CStr::from_ptr(pointer) }.to_str().map_err(|_| Bad(name))
}

unsafe fn stream(pointer: *const c_char) -> Result<Option<SocketAddrV4>, Bad> {
    // SAFETY: handed on.
    let text = unsafe { text(pointer, "stream") }?;
    let parsed = (!text.is_empty()).then(|| text.parse()).transpose();
    parsed.map_err(|_| Bad("stream"))
}

unsafe fn bytes<'a, T>(pointer: *const T, len: usize, name: &'static str) -> Result<&'a [T], Bad> {
    check_len(len, name)?;
    match (len, pointer.is_null()) {
        (0, _) => Ok(&[]),
        (_, true) => Err(Bad(name)),
        // SAFETY: not null, and the caller says how long it is; see above for the most.
        _ => Ok(unsafe { std::slice::from_raw_parts(pointer, len) }),
    }
}

/// So that sums of lengths fit, and slices are legal.
fn check_len(len: usize, name: &'static str) -> Result<(), Bad> {
    if len > i32::MAX as usize / 16 {
        Err(Bad(name))
    } else {
        Ok(())
    }
}

fn timeout(ms: i64) -> Option<Duration> {
    u64::try_from(ms).ok().map(Duration::from_millis)
}

unsafe fn free<T>(handle: *mut T) {
    if !handle.is_null() {
        // SAFETY: made by `Box::into_raw`, and freed once.
        drop(unsafe { Box::from_raw(handle) });
    }
}

/// What a number means; never null, lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn seqcast_error_text(code: i32) -> *const c_char {
    match code {
        SEQCAST_OK => c"done",
        SEQCAST_ARGUMENT => c"an argument makes no sense",
        SEQCAST_FULL => c"the lane is full until the engine has taken more",
        SEQCAST_TIMEOUT => c"the time was over first",
        SEQCAST_GONE => c"no engine is there now",
        SEQCAST_TOO_LARGE => c"the message is longer than one frame carries",
        SEQCAST_SUBJECT => c"no subject, or no pattern",
        SEQCAST_SYSTEM => c"the kernel refuses",
        SEQCAST_REFUSED_VERSION => c"engine and program are of different releases",
        SEQCAST_REFUSED_PERMISSION => c"this user may not use the engine",
        SEQCAST_REFUSED_STREAM => c"the engine has no such stream for programs",
        SEQCAST_REFUSED_FULL => c"the engine admits no more programs",
        SEQCAST_REFUSED_BROKEN => c"what the program wrote or said makes no sense",
        SEQCAST_REFUSED_BUSY => c"others are catching up",
        SEQCAST_REFUSED_SYSTEM => c"the engine is out of memory or descriptors",
        _ => c"unknown",
    }
    .as_ptr()
}

/// The last failure of this thread in words, with what it was about; SEQCAST_FULL and SEQCAST_TIMEOUT are
/// left out. Never null; lives until the thread's next failure.
#[unsafe(no_mangle)]
pub extern "C" fn seqcast_last_error() -> *const c_char {
    LAST.with(|last| last.borrow().as_ptr())
}

/// The engine whose configuration names this socket. Nothing is opened yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn seqcast_engine_at(path: *const c_char, engine: *mut *mut seqcast_engine) -> i32 {
    code((|| {
        // SAFETY: as the header says.
        let (path, out) = unsafe { (text(path, "path")?, get(engine, "engine")?) };
        if path.is_empty() {
            return Err(Failure::Bad("path"));
        }
        *out = Box::into_raw(Box::new(seqcast_engine(Engine::at(path))));
        Ok(())
    })())
}

/// Publishers and subscribers do not need it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn seqcast_engine_free(engine: *mut seqcast_engine) {
    // SAFETY: as the header says.
    unsafe { free(engine) }
}

/// Attaches to an engine to publish. `options` may be null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn seqcast_publisher_attach(
    engine: *const seqcast_engine,
    options: *const seqcast_publisher_options,
    publisher: *mut *mut seqcast_publisher,
) -> i32 {
    code((|| {
        // SAFETY: as the header says; several threads may read an engine.
        let (engine, given) = unsafe { (engine.as_ref().ok_or(Bad("engine"))?, options.as_ref()) };
        // SAFETY: as the header says.
        let out = unsafe { get(publisher, "publisher") }?;
        let mut options = PublisherOptions::default();
        if let Some(given) = given {
            // SAFETY: as the header says.
            (options.stream, options.name) = unsafe { (stream(given.stream)?, text(given.name, "name")?.into()) };
            options.patience = Duration::from_millis(given.patience_ms.into());
            options.resend = !given.no_resend;
        }
        let attached = Box::new(Publisher::attach(&engine.0, &options)?);
        *out = Box::into_raw(Box::new(seqcast_publisher {
            claim: None,
            publisher: Box::into_raw(attached),
        }));
        Ok(())
    })())
}

impl seqcast_publisher {
    /// The publisher, for one call; a claim that was not committed is given up.
    fn publisher(&mut self) -> &mut Publisher {
        self.claim = None;
        // SAFETY: from `Box::into_raw`, lives as long as this; no claim borrows it any more.
        unsafe { &mut *self.publisher }
    }
}

impl Drop for seqcast_publisher {
    fn drop(&mut self) {
        self.claim = None;
        // SAFETY: from `Box::into_raw`, and nothing borrows it any more.
        unsafe { free(self.publisher) }
    }
}

/// What was published stays with the engine, which sends it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn seqcast_publisher_free(publisher: *mut seqcast_publisher) {
    // SAFETY: as the header says.
    unsafe { free(publisher) }
}

/// Longest message with its subject, in bytes; 0 for null. May change when an engine comes back. Gives up
/// a claim, as every call but seqcast_commit does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn seqcast_max_message(publisher: *mut seqcast_publisher) -> usize {
    // SAFETY: as the header says.
    unsafe { get(publisher, "publisher") }.map_or(0, |publisher| publisher.publisher().max_message())
}

/// Publishes a copy. `subject` null or empty: none. Waits for room, or for an engine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn seqcast_publish(
    publisher: *mut seqcast_publisher,
    subject: *const c_char,
    payload: *const u8,
    len: usize,
    timeout_ms: i64,
) -> i32 {
    code((|| {
        // SAFETY: as the header says.
        let (publisher, subject) = unsafe { (get(publisher, "publisher")?, text(subject, "subject")?) };
        // SAFETY: as the header says.
        let payload = unsafe { bytes(payload, len, "payload") }?;
        let publisher = publisher.publisher();
        match timeout_ms {
            0 => publisher.try_publish(subject, payload)?,
            _ => publisher.publish(subject, payload, timeout(timeout_ms))?,
        }
        Ok(())
    })())
}

/// Claims room for `len` bytes, to be written through `*payload` and committed. Never waits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn seqcast_claim(
    publisher: *mut seqcast_publisher,
    subject: *const c_char,
    len: usize,
    payload: *mut *mut u8,
) -> i32 {
    code((|| {
        check_len(len, "len")?;
        // SAFETY: as the header says.
        let (handle, subject) = unsafe { (get(publisher, "publisher")?, text(subject, "subject")?) };
        // SAFETY: as the header says.
        let out = unsafe { get(payload, "payload") }?;
        handle.claim = None;
        // SAFETY: lives as long as the handle, and is not touched before the claim has ended.
        let publisher: &'static mut Publisher = unsafe { &mut *handle.publisher };
        let claim = handle.claim.insert(publisher.claim(subject, len)?);
        *out = claim.as_mut_ptr();
        Ok(())
    })())
}

/// Publishes what was claimed last. SEQCAST_ARGUMENT if nothing is claimed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn seqcast_commit(publisher: *mut seqcast_publisher) -> i32 {
    code((|| {
        // SAFETY: as the header says.
        let handle = unsafe { get(publisher, "publisher") }?;
        handle
            .claim
            .take()
            .ok_or(Bad("publisher: nothing is claimed; it"))?
            .commit();
        Ok(())
    })())
}

/// Waits until the engine has taken everything that was published.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn seqcast_flush(publisher: *mut seqcast_publisher, timeout_ms: i64) -> i32 {
    code((|| {
        // SAFETY: as the header says.
        let handle = unsafe { get(publisher, "publisher") }?;
        Ok(handle.publisher().flush(timeout(timeout_ms))?)
    })())
}

/// What has happened since it was last asked: `*kind` is SEQCAST_ENGINE_GONE, SEQCAST_ENGINE_BACK, or 0 for
/// nothing. Attaches again; for programs that seldom publish. Never waits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn seqcast_poll(publisher: *mut seqcast_publisher, kind: *mut u32) -> i32 {
    code((|| {
        // SAFETY: as the header says.
        let (handle, out) = unsafe { (get(publisher, "publisher")?, get(kind, "kind")?) };
        *out = handle.publisher().poll()?.map_or(0, |event| event.kind as u32);
        Ok(())
    })())
}

/// Attaches to an engine to receive. `options` may be null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn seqcast_subscriber_attach(
    engine: *const seqcast_engine,
    options: *const seqcast_subscriber_options,
    subscriber: *mut *mut seqcast_subscriber,
) -> i32 {
    code((|| {
        // SAFETY: as the header says; several threads may read an engine.
        let (engine, given) = unsafe { (engine.as_ref().ok_or(Bad("engine"))?, options.as_ref()) };
        // SAFETY: as the header says.
        let out = unsafe { get(subscriber, "subscriber") }?;
        let mut options = SubscriberOptions::default();
        if let Some(given) = given {
            // SAFETY: as the header says.
            (options.stream, options.name) = unsafe { (stream(given.stream)?, text(given.name, "name")?.into()) };
            options.patience = Duration::from_millis(given.patience_ms.into());
            options.from = match given.from {
                SEQCAST_FROM_NOW => From::Now,
                SEQCAST_FROM_SESSION => From::Session,
                SEQCAST_FROM_AFTER => From::After(Position {
                    session: given.after_session,
                    sequence: given.after_sequence,
                }),
                _ => return Err(Failure::Bad("from")),
            };
            // SAFETY: as the header says.
            for subject in unsafe { bytes(given.subjects, given.subject_count, "subjects") }? {
                // SAFETY: as the header says.
                options.subjects.push(unsafe { text(*subject, "subjects") }?.into());
            }
            options.recover = !given.no_recover;
            options.spin = Duration::from_micros(given.spin_us.into());
        }
        let attached = Subscriber::attach(&engine.0, &options)?;
        *out = Box::into_raw(Box::new(seqcast_subscriber(attached)));
        Ok(())
    })())
}

/// Ends a subscription; the bytes of its last message are gone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn seqcast_subscriber_free(subscriber: *mut seqcast_subscriber) {
    // SAFETY: as the header says.
    unsafe { free(subscriber) }
}

/// The next message or event. SEQCAST_TIMEOUT: nothing came.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn seqcast_next(
    subscriber: *mut seqcast_subscriber,
    timeout_ms: i64,
    received: *mut seqcast_received,
) -> i32 {
    code((|| {
        // SAFETY: as the header says.
        let subscriber = unsafe { get(subscriber, "subscriber") }?;
        if received.is_null() {
            return Err(Failure::Bad("received"));
        }
        let next = match timeout_ms {
            0 => subscriber.0.try_next()?,
            _ => subscriber.0.next(timeout(timeout_ms))?,
        };
        let next = match next.ok_or(Error::Timeout)? {
            Received::Message(message) => seqcast_received {
                kind: SEQCAST_MESSAGE,
                session: message.session,
                first: message.sequence,
                last: message.sequence,
                detail: 0,
                flags: message.flags,
                time_ns: message.time_ns,
                subject: message.subject.as_ptr().cast(),
                subject_len: message.subject.len(),
                payload: message.payload.as_ptr(),
                payload_len: message.payload.len(),
            },
            Received::Event(event) => seqcast_received {
                kind: event.kind as u32,
                session: event.session,
                first: event.first,
                last: event.last,
                detail: event.detail,
                flags: 0,
                time_ns: 0,
                subject: ptr::null(),
                subject_len: 0,
                payload: ptr::null(),
                payload_len: 0,
            },
        };
        // SAFETY: not null, and as the header says; it may be uninitialised.
        unsafe { received.write(next) };
        Ok(())
    })())
}

/// The last message that was handed out, for SEQCAST_FROM_AFTER. SEQCAST_GONE before the first.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn seqcast_position(
    subscriber: *mut seqcast_subscriber,
    session: *mut u32,
    sequence: *mut u32,
) -> i32 {
    code((|| {
        // SAFETY: as the header says.
        let (subscriber, session) = unsafe { (get(subscriber, "subscriber")?, get(session, "session")?) };
        // SAFETY: as the header says; another number than `session`.
        let sequence = unsafe { get(sequence, "sequence") }?;
        let none = || Error::Gone("no message has come yet".into());
        let position = subscriber.0.position().ok_or_else(none)?;
        (*session, *sequence) = (position.session, position.sequence);
        Ok(())
    })())
}

//! Pages of mapped files that cannot be read.
//!
//! When a page of a mapping has to come from the disk and the disk cannot read it (a bad sector), or the
//! file has become shorter, the kernel sends SIGBUS to the thread that touched it, and that ends the
//! process. Reading with system calls instead would report it, but costs a call for each look-up, more
//! than the look-up itself. So the archive takes the signal: for an address inside one of its mappings it
//! puts a page of zeros in the place of the one that cannot be had, notes it, and the access goes on.
//! Zeros are no record and no position, so a reader finds nothing there, as with any damage. Whoever writes
//! looks at the note afterwards ([`Region::faults`]): what went to such a page is not in the file.
//!
//! Any other SIGBUS goes where it went before.

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::PAGE;

/// How often a page could not be had, over all mappings: to be looked at where each instruction counts.
static FAULTS: AtomicU32 = AtomicU32::new(0);

/// As [`FAULTS`] says.
#[inline]
pub(crate) fn count() -> u32 {
    FAULTS.load(Ordering::Relaxed)
}

/// One mapping as the signal handler knows it. Never freed: a handler may be looking at it.
#[derive(Debug)]
struct Entry {
    start: AtomicUsize,
    /// 0: not in use.
    len: AtomicUsize,
    faults: AtomicU32,
    next: AtomicPtr<Entry>,
}

/// All entries there ever were.
static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(ptr::null_mut());
/// Those not in use.
static FREE: Mutex<Vec<&'static Entry>> = Mutex::new(Vec::new());
/// Where other SIGBUS go. Set before the handler can be called.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// A mapping that is guarded for as long as this lives. To be dropped before the memory is unmapped.
#[derive(Debug)]
pub(super) struct Region(&'static Entry);

fn link(entry: &mut Entry) {
    let place = ptr::from_mut(entry);
    let mut head = ENTRIES.load(Ordering::Acquire);
    loop {
        entry.next.store(head, Ordering::Relaxed);
        match ENTRIES.compare_exchange_weak(head, place, Ordering::Release, Ordering::Acquire) {
            Ok(_) => return,
            Err(now) => head = now,
        }
    }
}

/// The mapping that an address lies in.
fn find(address: usize) -> Option<&'static Entry> {
    let mut at = ENTRIES.load(Ordering::Acquire);
    // SAFETY: entries are linked when they are whole, and never freed.
    while let Some(entry) = unsafe { at.as_ref() } {
        let len = entry.len.load(Ordering::Acquire);
        if address.wrapping_sub(entry.start.load(Ordering::Relaxed)) < len {
            return Some(entry);
        }
        at = entry.next.load(Ordering::Relaxed);
    }
    None
}

impl Region {
    /// Guards `len` bytes from `start`, which are mapped from a file, shared.
    pub(super) fn new(start: *const u8, len: usize) -> Region {
        install();
        let reused = FREE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let entry = reused.unwrap_or_else(|| {
            let entry = Box::leak(Box::new(Entry {
                start: AtomicUsize::new(0),
                len: AtomicUsize::new(0),
                faults: AtomicU32::new(0),
                next: AtomicPtr::new(ptr::null_mut()),
            }));
            link(entry);
            &*entry
        });
        entry.faults.store(0, Ordering::Relaxed);
        entry.start.store(start as usize, Ordering::Relaxed);
        // Last: from here on the handler takes it for a mapping.
        entry.len.store(len, Ordering::Release);
        Region(entry)
    }

    /// How many pages could not be had so far.
    pub(super) fn faults(&self) -> u32 {
        self.0.faults.load(Ordering::Acquire)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.0.len.store(0, Ordering::Release);
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push(self.0);
    }
}

/// Takes the signal, once for the process.
fn install() {
    BEFORE.get_or_init(|| {
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: only asks for what is in force; `before` is large enough, and any bytes are valid.
        let before = unsafe {
            libc::sigaction(libc::SIGBUS, ptr::null(), before.as_mut_ptr());
            before.assume_init()
        };
        // SAFETY: all zeros is an action without flags and with an empty mask.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = on_fault as *const () as usize;
        // On the stack that the thread has for signals, if any: it may have run out of its own.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: `on_fault` has the signature that SA_SIGINFO asks for, and does only what a handler
        // may: atomics and system calls. A fault before `BEFORE` is set ends the process, as it would
        // have without us.
        unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
        before
    });
}

extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands over a whole siginfo, and of a SIGBUS it has an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code == libc::BUS_ADRERR
        && let Some(entry) = find(address)
        && put_zeros(address / PAGE * PAGE)
    {
        entry.faults.fetch_add(1, Ordering::Release);
        FAULTS.fetch_add(1, Ordering::Release);
        return;
    }
    forward(signal, info, context);
}

/// Puts a page of zeros in the place of one of a guarded mapping.
fn put_zeros(page: usize) -> bool {
    let (access, kind) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
    );
    // SAFETY: the page lies in a mapping that `find` found, and which stays for as long as the thread that
    // touched it borrows its contents. What was there could not be read, so nobody has seen it change.
    // The calls are plain system calls; errno is the interrupted code's, so it is put back.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        let placed = libc::mmap(page as *mut libc::c_void, PAGE, access, kind, -1, 0);
        *errno = before;
        placed != libc::MAP_FAILED
    }
}

/// Hands a signal that is none of ours to whom it went before. By default it ends the process: when this
/// returns, the access is made again.
fn forward(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let before = BEFORE
        .get()
        .map_or((libc::SIG_DFL, 0), |b| (b.sa_sigaction, b.sa_flags));
    match before {
        (libc::SIG_DFL | libc::SIG_IGN, _) => {
            // SAFETY: as in `install`; all zeros is the default action.
            unsafe {
                let default: libc::sigaction = MaybeUninit::zeroed().assume_init();
                libc::sigaction(libc::SIGBUS, &raw const default, ptr::null_mut());
            }
        }
        (handler, sa_flags) if sa_flags & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: it was installed with SA_SIGINFO, so it is a function of this signature.
            let handler = unsafe { std::mem::transmute::<usize, Handler>(handler) };
            handler(signal, info, context);
        }
        (handler, _) => {
            // SAFETY: it was installed without SA_SIGINFO, so it is a function of this signature.
            let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler) };
            handler(signal);
        }
    }
}

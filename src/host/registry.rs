//! The buffer type `AMX` for llama.cpp: whether there is one, and who makes it. It is made once.

use super::objects::RawBufferType;
use super::waiting::{Deadline, ThreadId};
use crate::diag::log;
use crate::info;
use crate::process::{Condvar, Mutex, Once};

/// The buffer type.
struct AmxBufferType(*mut RawBufferType);

// SAFETY: the object is never changed after it was made, and never freed.
unsafe impl Send for AmxBufferType {}
// SAFETY: nobody writes the object any more.
unsafe impl Sync for AmxBufferType {}

/// `None` inside: the library stepped aside.
static BUFFER_TYPE: Once<Option<AmxBufferType>> = Once::new();

#[derive(Default)]
struct Maker {
    /// The thread that makes the buffer type.
    thread: Option<ThreadId>,
    /// Whether it was asked for by somebody whom the maker waits for.
    is_asked: bool,
}

static MAKER: Mutex<Maker> = Mutex::new(Maker { thread: None, is_asked: false });
/// There is no maker any more.
static MADE: Condvar = Condvar::new();

/// As long as this lives, this thread is the maker.
struct MakerTurn;

impl MakerTurn {
    /// Waits until the buffer type is made, or becomes its maker. `None` if it is made, or if waiting has no end:
    /// making it calls functions of the host's, which may ask for it, in this thread or in one that they wait for.
    fn begin() -> Option<Self> {
        let deadline = Deadline::new();
        let mut maker = MAKER.lock();
        loop {
            let left = deadline.left();
            match maker.thread {
                _ if BUFFER_TYPE.get().is_some() => return None,
                None => break,
                Some(thread) if !thread.is_here() => break,
                Some(thread) if thread == ThreadId::current() || left.is_zero() => {
                    maker.is_asked = true;
                    return None;
                }
                Some(_) => maker = MADE.wait_timeout(maker, left),
            }
        }
        maker.thread = Some(ThreadId::current());
        Some(Self)
    }
}

impl Drop for MakerTurn {
    fn drop(&mut self) {
        MAKER.lock().thread = None;
        MADE.notify_all();
    }
}

/// The buffer type; null if it is not made, or if the library stepped aside.
pub fn get() -> *mut RawBufferType {
    BUFFER_TYPE.get().and_then(Option::as_ref).map_or(std::ptr::null_mut(), |buft| buft.0)
}

/// The buffer type, which the first call makes. Null if `make` gives an error, whose text goes into the log, and for a
/// thread that `make` waits for.
pub fn get_or_make(make: impl FnOnce() -> Result<*mut RawBufferType, String>) -> *mut RawBufferType {
    if BUFFER_TYPE.get().is_none()
        && let _until_it_is_there = log::hold()
        && let Some(_turn) = MakerTurn::begin()
    {
        let made = make();
        let _ = BUFFER_TYPE.set(made.as_ref().ok().map(|buft| AmxBufferType(*buft)));
        if let Err(reason) = made {
            info!("not used: {reason}");
        }
    }
    get()
}

/// Whether somebody has asked for the buffer type whom its maker waits for.
pub fn is_asked_while_made() -> bool {
    MAKER.lock().is_asked
}

/// Whether `buft` is the buffer type. Nothing is, before it is made.
pub fn is_ours(buft: *mut RawBufferType) -> bool {
    !buft.is_null() && buft == get()
}

//! Memory that holds weights, from when a host asks for a buffer until it frees it. All of it is known here: what of it was
//! not written yet is no longer there for others; and it is locked if the host locks its own.

use crate::process::{Mutex, MutexGuard};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cpu::memory::Region;
use crate::cpu::system;
use crate::{info, warn};

/// What is known of a region.
struct Known {
    base: usize,
    bytes: usize,
    /// Bytes that were written, each once or more often.
    written: usize,
    locked: bool,
}

static ALL: Mutex<Vec<Known>> = Mutex::new(Vec::new());
/// Whether there are regions of which it was not decided if they are locked.
static UNDECIDED: AtomicBool = AtomicBool::new(false);

fn all() -> MutexGuard<'static, Vec<Known>> {
    ALL.lock()
}

/// A region that holds weights.
pub struct Held(Region);

impl Held {
    /// At least `bytes` bytes, zeroed, that will all be written. Fails with the operating system's reason.
    pub fn new(bytes: usize) -> std::io::Result<Self> {
        Self::known(bytes, |_| 0)
    }

    /// The same, of which only a part may be written, which is asked for as it comes.
    pub fn lazily(bytes: usize) -> std::io::Result<Self> {
        Self::known(bytes, |all| all)
    }

    fn known(bytes: usize, written: impl FnOnce(usize) -> usize) -> std::io::Result<Self> {
        let region = Region::of_weights(bytes)?;
        let (base, bytes) = (region.base().as_ptr() as usize, region.len());
        all().push(Known { base, bytes, written: written(bytes), locked: false });
        UNDECIDED.store(true, Ordering::Release);
        Ok(Self(region))
    }

    /// The region.
    pub fn region(&self) -> &Region {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let base = self.0.base().as_ptr() as usize;
        all().retain(|known| known.base != base);
    }
}

/// Notes that `bytes` bytes at `address` are about to be written.
pub fn note_written(address: usize, bytes: usize) {
    let mut all = all();
    if let Some(known) = all.iter_mut().find(|known| (known.base..known.base + known.bytes).contains(&address)) {
        known.written = known.written.saturating_add(bytes).min(known.bytes);
    }
}

/// Bytes that were promised to buffers and not written yet: the system still counts them as free.
pub fn unwritten() -> u64 {
    all().iter().map(|known| (known.bytes - known.written) as u64).sum()
}

/// Locks what is held if this process locks memory: hosts lock only weights that they can read themselves, and tell nobody.
/// To be called when a model is loaded: as a graph is about to be computed.
#[inline]
pub fn lock_as_the_host_does() {
    if UNDECIDED.load(Ordering::Acquire) && UNDECIDED.swap(false, Ordering::AcqRel) {
        decide();
    }
}

/// Whether this process has locked memory; `None` if that cannot be read now (no descriptor is left): it is asked again then.
fn process_locks(read: impl Fn(&Path) -> system::Text) -> Option<bool> {
    let status = read(Path::new("/proc/self/status")).ok()?.unwrap_or_default();
    Some(system::kilobytes("VmLck", &status).unwrap_or(0) > 0)
}

#[cold]
fn decide() {
    match process_locks(system::text) {
        Some(true) => {}
        Some(false) => return,
        None => return UNDECIDED.store(true, Ordering::Release),
    }
    let (mut bytes, mut failed) = (0, None::<(usize, std::io::Error)>);
    for known in all().iter_mut().filter(|known| !known.locked) {
        // SAFETY: the region is alive: it is taken out of the list before it goes.
        if unsafe { libc::mlock(known.base as *const libc::c_void, known.bytes) } == 0 {
            known.locked = true;
            bytes += known.bytes;
        } else {
            let before = failed.map_or(0, |(bytes, _)| bytes);
            failed = Some((before + known.bytes, std::io::Error::last_os_error()));
        }
    }
    let mebibytes = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    if bytes > 0 {
        info!("{:.2} MiB of weights are locked in memory, as the host locks its own", mebibytes(bytes));
    }
    if let Some((bytes, why)) = failed {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the struct is writable.
        unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
        let limit = match limit.rlim_cur {
            libc::RLIM_INFINITY => "unlimited".to_string(),
            limit => format!("{:.2} MiB", limit as f64 / f64::from(1 << 20)),
        };
        warn!(
            "{:.2} MiB of weights are not locked in memory: {why}; RLIMIT_MEMLOCK (ulimit -l) is {limit}",
            mebibytes(bytes)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_written_is_known_until_it_is_or_goes() {
        let held = Held::new(10_000).unwrap();
        let base = held.region().base().as_ptr() as usize;
        let mine = || all().iter().find(|known| known.base == base).map(|known| known.bytes - known.written);
        assert_eq!(mine(), Some(10_000));
        note_written(base + 100, 4000);
        assert!(unwritten() >= 6000);
        assert_eq!(mine(), Some(6000));
        note_written(base, 9000);
        assert_eq!(mine(), Some(0));
        drop(held);
        assert_eq!(mine(), None);
    }

    #[test]
    fn locked_memory_is_found_whatever_the_thread_is_called() {
        assert_eq!(process_locks(|_| Ok(Some(b"Name: \xe6\x8e\nVmLck:\t  8 kB\n".to_vec()))), Some(true));
        assert_eq!(process_locks(|_| Ok(Some(b"VmLck:\t  0 kB\n".to_vec()))), Some(false));
        assert_eq!(process_locks(|_| Ok(None)), Some(false));
        assert_eq!(process_locks(|_| Err(std::io::Error::from_raw_os_error(libc::EMFILE))), None);
    }
}

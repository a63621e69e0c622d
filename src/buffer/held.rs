//! Memory that holds weights, from when a host asks for a buffer until it frees it. A list of all of it serves two
//! purposes. The system still counts pages that are not written yet as free: whoever plans with free memory subtracts
//! them. And if the host locks its weights in memory, these are locked too.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cpu::memory::Region;
use crate::cpu::system;
use crate::process::Mutex;
use crate::{info, warn};

/// A region in the list.
struct Entry {
    base: usize,
    bytes: usize,
    /// How many bytes were written so far; a byte that is written twice may count twice. At most `bytes`.
    written: usize,
    locked: bool,
}

/// All regions that hold weights.
static REGIONS: Mutex<Vec<Entry>> = Mutex::new(Vec::new());
/// Whether there are regions that may still have to be locked.
static UNDECIDED: AtomicBool = AtomicBool::new(false);

/// A region that holds weights.
pub struct Held(Region);

impl Held {
    /// At least `bytes` bytes, zeroed, that will all be written. Fails with the operating system's reason.
    pub fn new(bytes: usize) -> std::io::Result<Self> {
        Self::listed(bytes, |_| 0)
    }

    /// The same, but perhaps only a part will be written; nothing of it counts as not written yet.
    pub fn lazily(bytes: usize) -> std::io::Result<Self> {
        Self::listed(bytes, |all| all)
    }

    fn listed(bytes: usize, written: impl FnOnce(usize) -> usize) -> std::io::Result<Self> {
        let region = Region::of_weights(bytes)?;
        let (base, bytes) = (region.base().as_ptr() as usize, region.len());
        REGIONS.lock().push(Entry { base, bytes, written: written(bytes), locked: false });
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
        REGIONS.lock().retain(|entry| entry.base != base);
    }
}

/// Notes that `bytes` bytes at `address` are about to be written.
pub fn note_written(address: usize, bytes: usize) {
    let mut regions = REGIONS.lock();
    if let Some(entry) = regions.iter_mut().find(|entry| (entry.base..entry.base + entry.bytes).contains(&address)) {
        entry.written = entry.written.saturating_add(bytes).min(entry.bytes);
    }
}

/// Bytes of all regions that were not written yet: the system still counts them as free.
pub fn unwritten() -> u64 {
    REGIONS.lock().iter().map(|entry| (entry.bytes - entry.written) as u64).sum()
}

/// Locks all regions in memory if this process has locked memory. A host does not say that it locks weights, and locks
/// only those in its own buffers. To be called once a model is loaded: as a graph is about to be computed.
#[inline]
pub fn lock_as_the_host_does() {
    if UNDECIDED.load(Ordering::Acquire) && UNDECIDED.swap(false, Ordering::AcqRel) {
        decide();
    }
}

/// Whether this process has locked memory; `None` if that cannot be read now (no file descriptor is left): it is read
/// again later.
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
    for entry in REGIONS.lock().iter_mut().filter(|entry| !entry.locked) {
        // SAFETY: the region is alive: it leaves the list, under the same lock, before it is freed.
        if unsafe { libc::mlock(entry.base as *const libc::c_void, entry.bytes) } == 0 {
            entry.locked = true;
            bytes += entry.bytes;
        } else {
            let before = failed.map_or(0, |(bytes, _)| bytes);
            failed = Some((before + entry.bytes, std::io::Error::last_os_error()));
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
    fn bytes_count_as_unwritten_until_they_are_written_or_freed() {
        let held = Held::new(10_000).unwrap();
        let base = held.region().base().as_ptr() as usize;
        let mine = || REGIONS.lock().iter().find(|entry| entry.base == base).map(|entry| entry.bytes - entry.written);
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

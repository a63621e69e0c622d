//! How many threads can run at once: the CPUs that the kernel allows them (cpuset, affinity), and the quota of the
//! control group.

use std::cell::Cell;
use std::io::Error;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::control_groups::each_group;
use super::system::{self, Text};

/// CPUs that can be told apart.
const CPUS: usize = 1024;

/// CPUs on which one of the computing threads may run. Hosts bind threads one by one, so that none knows them all.
static ALLOWED: [AtomicU64; CPUS / 64] = [const { AtomicU64::new(0) }; CPUS / 64];
/// Threads whose CPUs are in there.
static KNOWN: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether this thread is one of them.
    static IS_KNOWN: Cell<bool> = const { Cell::new(false) };
}

/// Notes on which CPUs this computing thread may run. To be called now and then, for that may change.
pub fn note_thread() {
    let mut set = [0u64; CPUS / 64];
    // SAFETY: the set has as many bytes as the call is told.
    let answer = unsafe { libc::sched_getaffinity(0, size_of_val(&set), set.as_mut_ptr().cast()) };
    if answer != 0 {
        // The machine has more CPUs than the set: as if all were allowed.
        set = [u64::MAX; CPUS / 64];
    }
    for (all, own) in ALLOWED.iter().zip(set) {
        if all.load(Ordering::Relaxed) & own != own {
            all.fetch_or(own, Ordering::Relaxed);
        }
    }
    if !IS_KNOWN.replace(true) {
        KNOWN.fetch_add(1, Ordering::Release);
    }
}

/// How many of `threads` threads can run at once. All, until so many have been noted.
pub fn of(threads: usize) -> usize {
    if KNOWN.load(Ordering::Acquire) < threads {
        return threads;
    }
    let allowed: u32 = ALLOWED.iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum();
    threads.min(allowed as usize).min(quota()).max(1)
}

/// The quota of the control group: CPUs, rounded up; `usize::MAX` if there is none.
fn quota() -> usize {
    /// 0: not read yet.
    static QUOTA: AtomicUsize = AtomicUsize::new(0);
    let known = QUOTA.load(Ordering::Relaxed);
    if known > 0 {
        return known;
    }
    // If it cannot be read now (no descriptor is left), it is read the next time. Until then threads are slower.
    let Ok(found) = quota_by(system::text) else { return usize::MAX };
    QUOTA.store(found, Ordering::Relaxed);
    found
}

/// The same; `read` reads a text.
fn quota_by(read: impl Fn(&Path) -> Text) -> Result<usize, Error> {
    let groups = read(Path::new("/proc/self/cgroup"))?.unwrap_or_default();
    quota_of(&groups, read)
}

/// The least quota of the groups in `groups`, the text of /proc/self/cgroup, and of those above them.
fn quota_of(groups: &[u8], read: impl Fn(&Path) -> Text) -> Result<usize, Error> {
    let mut least = usize::MAX;
    each_group(groups, "cpu", &["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"], |group, is_second| {
        let text = |name: &str| -> Result<Option<String>, Error> {
            Ok(read(&group.join(name))?.and_then(|text| String::from_utf8(text).ok()))
        };
        let number =
            |name: &str| -> Result<Option<f64>, Error> { Ok(text(name)?.and_then(|text| text.trim().parse().ok())) };
        let limits = match is_second {
            true => text("cpu.max")?.and_then(|text| {
                let (quota, period) = text.trim().split_once(' ')?;
                Some((quota.parse().ok()?, period.parse().ok()?))
            }),
            false => number("cpu.cfs_quota_us")?.zip(number("cpu.cfs_period_us")?),
        };
        if let Some((quota, period)) = limits.filter(|(quota, period)| *quota > 0.0 && *period > 0.0) {
            least = least.min((quota / period).ceil() as usize);
        }
        Ok(())
    })?;
    Ok(least.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(groups: &str, files: &[(&str, &str)]) -> usize {
        quota_of(groups.as_bytes(), |path| {
            Ok(files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| text.as_bytes().to_vec()))
        })
        .unwrap()
    }

    #[test]
    fn other_bytes_hide_no_quota_and_one_that_cannot_be_read_is_not_remembered() {
        let read = |path: &Path| match path.to_str() {
            Some("/sys/fs/cgroup/cpu.max") => Ok(Some(b"150000 100000\n".to_vec())),
            _ => Ok(None),
        };
        assert_eq!(quota_of(b"9:name=\xff:/\n0::/\xfe\n", read).unwrap(), 2);
        assert!(quota_by(|_| Err(Error::from_raw_os_error(libc::EMFILE))).is_err());
    }

    #[test]
    fn the_least_quota_of_a_group_and_those_above_it_counts() {
        let files = [("/sys/fs/cgroup/cpu.max", "max 100000\n"), ("/sys/fs/cgroup/a/cpu.max", "250000 100000\n")];
        assert_eq!(quota("0::/a/b\n", &files), 3);
        assert_eq!(quota("0::/\n", &files), usize::MAX);
        let files = [
            ("/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "50000\n"),
            ("/sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(quota("5:memory:/x\n4:cpu,cpuacct:/x\n", &files), 1);
        assert_eq!(quota("4:cpu,cpuacct:/\n", &files), usize::MAX);
        assert_eq!(quota("", &[]), usize::MAX);
    }

    #[test]
    fn as_many_threads_as_are_known_and_allowed_can_run() {
        // More threads than can have been noted: all of them.
        assert_eq!(of(usize::MAX), usize::MAX);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(note_thread);
            }
        });
        let allowed = std::thread::available_parallelism().map_or(1, usize::from);
        assert_eq!(of(1), 1);
        assert!((2.min(allowed)..=2).contains(&of(2)), "{} of {allowed}", of(2));
    }
}

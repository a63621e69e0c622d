//! How many threads can run at once: what the kernel allows them (the cpuset, affinity), and what the control group
//! may use of it (its quota).

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::limits;

/// Most CPUs that are told apart.
const CPUS: usize = 1024;

/// CPUs on which a thread of those that compute may run. Hosts bind threads one by one, so that no single one knows.
static ALLOWED: [AtomicU64; CPUS / 64] = [const { AtomicU64::new(0) }; CPUS / 64];
/// Threads that said so.
static KNOWN: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IS_KNOWN: Cell<bool> = const { Cell::new(false) };
}

/// Notes where this thread, one of those that compute, may run. Now and then, for that may change.
pub fn note_thread() {
    let mut set = [0u64; CPUS / 64];
    // SAFETY: the set has as many bytes as are told.
    let answer = unsafe { libc::sched_getaffinity(0, size_of_val(&set), set.as_mut_ptr().cast()) };
    if answer != 0 {
        // More CPUs than fit: as if all were allowed.
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

/// How many of `threads` threads can run at once; all, as long as not so many are known.
pub fn of(threads: usize) -> usize {
    if KNOWN.load(Ordering::Acquire) < threads {
        return threads;
    }
    let allowed: u32 = ALLOWED.iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum();
    threads.min(allowed as usize).min(quota()).max(1)
}

/// CPUs' worth of time that the control group may use, rounded up; `usize::MAX` if that is not limited.
fn quota() -> usize {
    static QUOTA: OnceLock<usize> = OnceLock::new();
    *QUOTA.get_or_init(|| {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        quota_of(&groups, |path| fs::read_to_string(path).ok())
    })
}

/// The least quota of the groups in /proc/self/cgroup and of those above them; `read` gives the text of a file.
fn quota_of(groups: &str, read: impl Fn(&Path) -> Option<String>) -> usize {
    let mut least = usize::MAX;
    limits::each_group(groups, "cpu", &["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"], |group, is_second| {
        let number = |name: &str| read(&group.join(name))?.trim().parse::<f64>().ok();
        let limits = match is_second {
            true => read(&group.join("cpu.max")).and_then(|text| {
                let (quota, period) = text.trim().split_once(' ')?;
                Some((quota.parse().ok()?, period.parse().ok()?))
            }),
            false => number("cpu.cfs_quota_us").zip(number("cpu.cfs_period_us")),
        };
        if let Some((quota, period)) = limits.filter(|(quota, period)| *quota > 0.0 && *period > 0.0) {
            least = least.min((quota / period).ceil() as usize);
        }
    });
    least.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(groups: &str, files: &[(&str, &str)]) -> usize {
        quota_of(groups, |path| {
            files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_string())
        })
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
        // More threads than can be known: nobody is left out.
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

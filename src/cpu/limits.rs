//! How much memory can still be had: of the machine, of the control group, and of what this process may map.

use std::fmt;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// Of a limit this share stays free for what the host needs besides weights: caches, work buffers, programs beside it.
const KEPT_SHARE: u64 = 10;
/// At least so many bytes stay free.
const KEPT: u64 = 64 << 20;

/// What the host's threads may take of addresses and of memory of its own, which they are not started with yet: stacks, and
/// memory that they allocate from.
const THREADS: u64 = 160 << 20;

/// What limits memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The machine.
    Machine,
    /// The control group, or one above it.
    Group,
    /// `RLIMIT_AS`: addresses that this process may map.
    Addresses,
    /// `RLIMIT_DATA`: memory of its own that it may map.
    Data,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Machine => "the machine's memory",
            Self::Group => "the control group's limit of memory",
            Self::Addresses => "RLIMIT_AS (ulimit -v)",
            Self::Data => "RLIMIT_DATA (ulimit -d)",
        })
    }
}

/// Bytes that weights may still take, and what limits them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// Bytes.
    pub bytes: u64,
    /// The tightest limit.
    pub limit: Limit,
}

/// What can be had at this moment; more than there is, if the system does not tell.
pub fn free() -> Free {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let status = read(Path::new("/proc/self/status")).unwrap_or_default();
    let below = |limit: Option<u64>, used: &str| {
        let (limit, used) = (limit?, number(used, &status)? << 10);
        Some(kept(limit, limit.saturating_sub(used)).saturating_sub(THREADS))
    };
    // Files of weights that are open, which the host is going to map, take addresses, but no memory of its own.
    let addresses = below(addresses(), "VmSize").map(|bytes| bytes.saturating_sub(open_models()));
    let found = [
        (read(Path::new("/proc/meminfo")).and_then(|text| of_machine(&text)), Limit::Machine),
        (of_groups(&read(Path::new("/proc/self/cgroup")).unwrap_or_default(), read), Limit::Group),
        (addresses, Limit::Addresses),
        (below(limit_of(libc::RLIMIT_DATA), "VmData"), Limit::Data),
    ];
    let all = found.into_iter().filter_map(|(bytes, limit)| Some(Free { bytes: bytes?, limit }));
    all.min_by_key(|free| free.bytes).unwrap_or(Free { bytes: u64::MAX, limit: Limit::Machine })
}

/// What may be taken of `free` bytes below a limit.
fn kept(limit: u64, free: u64) -> u64 {
    free.saturating_sub((limit / KEPT_SHARE).max(KEPT))
}

/// A number of kB in /proc/self/status or /proc/meminfo.
pub fn number(name: &str, text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

fn of_machine(meminfo: &str) -> Option<u64> {
    let bytes = |name| Some(number(name, meminfo)? << 10);
    Some(kept(bytes("MemTotal")?, bytes("MemAvailable")?))
}

/// Calls `visit` with the folder of every group in /proc/self/cgroup that has this controller, and of those above it; and
/// whether it is of version 2.
pub fn each_group(groups: &str, controller: &str, roots: &[&str], mut visit: impl FnMut(&Path, bool)) {
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let is_second = controllers.is_empty();
        let roots = match is_second {
            true => &["/sys/fs/cgroup"][..],
            false if controllers.split(',').any(|c| c == controller) => roots,
            false => continue,
        };
        for root in roots {
            let own = Path::new(root).join(path.trim_start_matches('/'));
            own.ancestors().take_while(|group| group.starts_with(root)).for_each(|group| visit(group, is_second));
        }
    }
}

/// What the tightest of these groups leaves; pages of files count as free, for the kernel drops them first.
fn of_groups(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let mut least: Option<u64> = None;
    each_group(groups, "memory", &["/sys/fs/cgroup/memory"], |group, is_second| {
        let number = |name: &str| read(&group.join(name))?.trim().parse::<u64>().ok();
        // Above the second limit of version 2 a group is slowed down.
        let (limits, used) = match is_second {
            true => (["memory.max", "memory.high"], "memory.current"),
            false => (["memory.limit_in_bytes"; 2], "memory.usage_in_bytes"),
        };
        let (Some(limit), Some(used)) = (limits.into_iter().filter_map(number).min(), number(used)) else { return };
        let stat = read(&group.join("memory.stat")).unwrap_or_default();
        let of_files: u64 = stat
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(name, _)| {
                let name = if is_second { name } else { name.strip_prefix("total_").unwrap_or("") };
                name == "active_file" || name == "inactive_file"
            })
            .filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok())
            .sum();
        let left = kept(limit, limit.saturating_sub(used.saturating_sub(of_files)));
        least = Some(least.map_or(left, |least| least.min(left)));
    });
    least
}

/// `RLIMIT_AS`, if there is one.
pub fn addresses() -> Option<u64> {
    limit_of(libc::RLIMIT_AS)
}

fn limit_of(resource: libc::__rlimit_resource_t) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct is writable.
    let answer = unsafe { libc::getrlimit(resource, &mut limit) };
    (answer == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// Bytes of the GGUF files that this process has open, each once.
fn open_models() -> u64 {
    let mut seen = Vec::new();
    let mut bytes = 0;
    for entry in fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
        let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // SAFETY: any number may be asked for; what comes back belongs to nobody else.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
        if copy < 0 {
            continue;
        }
        // SAFETY: a descriptor of our own.
        let file = unsafe { File::from_raw_fd(copy) };
        debug_assert_eq!(file.as_raw_fd(), copy);
        let Some(about) = file.metadata().ok().filter(|about| about.is_file()) else { continue };
        let mut magic = [0; 4];
        // At an offset: the file's own is the host's.
        let is_model = file.read_exact_at(&mut magic, 0).is_ok() && magic == *b"GGUF";
        let id = (about.dev(), about.ino());
        if is_model && !seen.contains(&id) {
            seen.push(id);
            bytes += about.len();
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn groups(groups: &str, files: &[(&str, &str)]) -> Option<u64> {
        of_groups(groups, |path| {
            files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_string())
        })
    }

    #[test]
    fn a_share_of_the_machine_stays_free() {
        let text = "MemTotal:       10240000 kB\nMemFree: 1 kB\nMemAvailable:    4096000 kB\n";
        assert_eq!(of_machine(text), Some((4_096_000 - 1_024_000) << 10));
        assert_eq!(of_machine("MemTotal: 100 kB\nMemAvailable: 90 kB\n"), Some(0));
        assert_eq!(of_machine("nothing"), None);
    }

    #[test]
    fn the_tightest_group_counts_and_pages_of_files_are_free() {
        const GIB: u64 = 1 << 30;
        let (limit, used) = ((10 * GIB).to_string(), (6 * GIB).to_string());
        let stat = format!("anon 5\nfile {}\ninactive_file {}\nactive_file {}\n", 4 * GIB, 3 * GIB, GIB);
        let files = [
            ("/sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/b/memory.current", "1\n"),
            ("/sys/fs/cgroup/a/b/memory.high", "max\n"),
            ("/sys/fs/cgroup/a/memory.max", limit.as_str()),
            ("/sys/fs/cgroup/a/memory.current", used.as_str()),
            ("/sys/fs/cgroup/a/memory.stat", stat.as_str()),
        ];
        assert_eq!(groups("0::/a/b\n", &files), Some(10 * GIB - 2 * GIB - GIB));
        assert_eq!(groups("0::/\n", &files), None);
        let high = [&files[..], &[("/sys/fs/cgroup/a/memory.high", used.as_str())]].concat();
        assert_eq!(groups("0::/a/b\n", &high), Some(6 * GIB - 2 * GIB - 6 * GIB / 10));
        let stat = format!("inactive_file 1\ntotal_inactive_file {GIB}\ntotal_active_file 0\n");
        let files = [
            ("/sys/fs/cgroup/memory/x/memory.limit_in_bytes", limit.as_str()),
            ("/sys/fs/cgroup/memory/x/memory.usage_in_bytes", used.as_str()),
            ("/sys/fs/cgroup/memory/x/memory.stat", stat.as_str()),
        ];
        assert_eq!(groups("7:memory:/x\n3:cpu:/y\n", &files), Some(10 * GIB - 5 * GIB - GIB));
    }

    #[test]
    fn this_machine_has_memory() {
        let free = free();
        assert!(free.bytes > 0 && free.bytes < u64::MAX, "{free:?}");
    }

    #[test]
    fn open_models_are_counted_once_and_other_files_are_not() {
        let dir = std::env::temp_dir().join(format!("ggml-amx-limits-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let before = open_models();
        let make = |name: &str, text: &[u8]| {
            let path = dir.join(name);
            File::create(&path).unwrap().write_all(text).unwrap();
            (File::open(&path).unwrap(), File::open(&path).unwrap())
        };
        let (model, other) = (make("a", b"GGUF 16 bytes..."), make("b", b"GGML 16 bytes..."));
        assert_eq!(open_models() - before, 16);
        drop((model, other));
        fs::remove_dir_all(&dir).unwrap();
    }
}

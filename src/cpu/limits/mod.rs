//! How much memory weights may still take: what the machine, the control group and the limits of this process leave.

mod open_models;

use std::fmt;
use std::io::Error;
use std::mem::MaybeUninit;
use std::path::Path;

use super::control_groups::each_group;
use super::system::{Text, kilobytes, limit_of, number, text};
use open_models::open_models;

/// This share of a limit stays free for what the host needs besides weights: caches, work buffers, other programs.
const KEPT_SHARE: u64 = 10;
/// At least so many bytes stay free.
const KEPT: u64 = 64 << 20;
/// Addresses and private memory that the host's threads will take, which are not started yet: stacks, and heaps of
/// their own.
const THREADS: u64 = 160 << 20;

/// What limits memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The machine.
    Machine,
    /// The control group, or one above it.
    Group,
    /// `RLIMIT_AS`: addresses that the process may map.
    Addresses,
    /// `RLIMIT_DATA`: private memory that the process may map.
    Data,
    /// There is a limit, or may be one, and it could not be read: the number of the system's error.
    Unreadable(i32),
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Unreadable(error) = self {
            return write!(f, "a limit of memory that cannot be read ({})", Error::from_raw_os_error(*error));
        }
        f.write_str(match self {
            Self::Machine => "the machine's memory",
            Self::Group => "the control group's limit of memory",
            Self::Addresses => "RLIMIT_AS (ulimit -v)",
            Self::Data => "RLIMIT_DATA (ulimit -d)",
            Self::Unreadable(_) => unreachable!("written above"),
        })
    }
}

/// How much memory weights may still take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// Bytes; `u64::MAX` without a limit.
    pub bytes: u64,
    /// The tightest limit.
    pub limit: Limit,
}

/// How much memory weights may take at this moment.
///
/// Where there is a limit and its use cannot be read, the answer is 0: weights that are not packed cost time, but a
/// load that fails, or a process that is killed, costs everything. An older answer is no substitute: memory may have
/// been used since. Keeping a descriptor in reserve is none either: children would inherit it, and a program that
/// closes all descriptors would give its number to a file of its own.
pub fn free() -> Free {
    free_by(text, limit_of, open_models)
}

/// The same. `read` reads a text, `limit` gives one of the process's limits, `models` the bytes of open models.
fn free_by(
    read: impl Fn(&Path) -> Text,
    limit: impl Fn(libc::__rlimit_resource_t) -> Option<u64>,
    models: impl FnOnce() -> u64,
) -> Free {
    let status = || read(Path::new("/proc/self/status"));
    let below = |resource, used: &str| {
        let Some(limit) = limit(resource) else { return Ok(None) };
        let Some(used) = status()?.and_then(|status| kilobytes(used, &status)) else { return Ok(Some(0)) };
        Ok(Some(kept(limit, limit.saturating_sub(used)).saturating_sub(THREADS)))
    };
    // Mapped files of weights take addresses but no private memory.
    let addresses = below(libc::RLIMIT_AS, "VmSize").map(|bytes| bytes.map(|bytes| bytes.saturating_sub(models())));
    // Without a descriptor a system call knows it too, but does not count pages of files as free.
    let meminfo = read(Path::new("/proc/meminfo")).ok().flatten();
    let machine = meminfo.and_then(|text| of_machine(&text)).or_else(of_machine_by_call);
    let groups = || of_groups(&read(Path::new("/proc/self/cgroup"))?.unwrap_or_else(|| OWN_GROUP.to_vec()), &read);
    let found: [(Result<Option<u64>, Error>, Limit); 4] = [
        (Ok(machine), Limit::Machine),
        (groups(), Limit::Group),
        (addresses, Limit::Addresses),
        (below(libc::RLIMIT_DATA, "VmData"), Limit::Data),
    ];
    let all = found.into_iter().filter_map(|(bytes, limit)| match bytes {
        Ok(bytes) => Some(Free { bytes: bytes?, limit }),
        Err(error) => Some(Free { bytes: 0, limit: Limit::Unreadable(error.raw_os_error().unwrap_or(libc::EIO)) }),
    });
    all.min_by_key(|free| free.bytes).unwrap_or(Free { bytes: u64::MAX, limit: Limit::Machine })
}

/// /proc/self/cgroup where there is no /proc: a container sees its own group as the root group.
const OWN_GROUP: &[u8] = b"0::/\n1:memory:/\n";

/// What weights may take of `free` bytes below a limit.
fn kept(limit: u64, free: u64) -> u64 {
    free.saturating_sub((limit / KEPT_SHARE).max(KEPT))
}

/// What the machine leaves, by /proc/meminfo.
fn of_machine(meminfo: &[u8]) -> Option<u64> {
    Some(kept(kilobytes("MemTotal", meminfo)?, kilobytes("MemAvailable", meminfo)?))
}

/// What the machine leaves, by a system call.
fn of_machine_by_call() -> Option<u64> {
    let mut about = MaybeUninit::<libc::sysinfo>::zeroed();
    // SAFETY: the struct is writable.
    if unsafe { libc::sysinfo(about.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: it was all zeros, which is a valid value, and the call filled it.
    let about = unsafe { about.assume_init() };
    let bytes = |units: u64| units.saturating_mul(u64::from(about.mem_unit));
    Some(kept(bytes(about.totalram), bytes(about.freeram.saturating_add(about.bufferram))))
}

/// What the tightest of these groups leaves. Pages of files count as free: the kernel drops them first.
fn of_groups(groups: &[u8], read: impl Fn(&Path) -> Text) -> Result<Option<u64>, Error> {
    let mut least: Option<u64> = None;
    each_group(groups, "memory", &["/sys/fs/cgroup/memory"], |group, is_second| {
        let text = |name: &str| read(&group.join(name));
        // Above `memory.high` a group is slowed down.
        let (limits, used) = match is_second {
            true => (&["memory.max", "memory.high"][..], "memory.current"),
            false => (&["memory.limit_in_bytes"][..], "memory.usage_in_bytes"),
        };
        let mut limit = None;
        for name in limits {
            let Some(text) = text(name)? else { continue };
            // A text that is neither a number nor "max" counts as a limit of 0.
            let bytes = number(&text).unwrap_or(if text.trim_ascii() == b"max" { u64::MAX } else { 0 });
            limit = Some(limit.map_or(bytes, |limit: u64| limit.min(bytes)));
        }
        let Some(limit) = limit.filter(|limit| *limit != u64::MAX) else { return Ok(()) };
        // An unknown use counts as all of it.
        let used = text(used)?.and_then(|used| number(&used)).unwrap_or(u64::MAX);
        let stat = text("memory.stat")?.unwrap_or_default();
        let of_files = stat
            .split(|byte| *byte == b'\n')
            .filter_map(|line| {
                let (name, bytes) = line.split_at_checked(line.iter().position(|byte| *byte == b' ')?)?;
                let name = if is_second { name } else { name.strip_prefix(b"total_")? };
                (name == b"active_file" || name == b"inactive_file").then(|| number(bytes))?
            })
            .fold(0, u64::saturating_add);
        // Pages of files are part of the use; of an unknown use they are not subtracted.
        let used = if used == u64::MAX { used } else { used.saturating_sub(of_files) };
        let left = kept(limit, limit.saturating_sub(used));
        least = Some(least.map_or(left, |least| least.min(left)));
        Ok(())
    })?;
    Ok(least)
}

/// `RLIMIT_AS`, if there is one.
pub fn addresses() -> Option<u64> {
    limit_of(libc::RLIMIT_AS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    const GIB: u64 = 1 << 30;

    /// Texts by name; those of other names are not there.
    fn reader<'a>(files: &'a [(&str, &[u8])]) -> impl Fn(&Path) -> Text + 'a {
        |path| Ok(files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| text.to_vec()))
    }

    fn groups(groups: &str, files: &[(&str, &str)]) -> Option<u64> {
        let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
        of_groups(groups.as_bytes(), reader(&files)).unwrap()
    }

    #[test]
    fn a_share_of_the_machine_stays_free() {
        let text = "MemTotal:       10240000 kB\nMemFree: 1 kB\nMemAvailable:    4096000 kB\n";
        assert_eq!(of_machine(text.as_bytes()), Some((4_096_000 - 1_024_000) << 10));
        assert_eq!(of_machine(b"MemTotal: 100 kB\nMemAvailable: 90 kB\n"), Some(0));
        assert_eq!(of_machine(b"nothing"), None);
    }

    #[test]
    fn the_tightest_group_counts_and_pages_of_files_are_free() {
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
    fn names_of_groups_may_have_any_bytes() {
        let (limit, used) = ((10 * GIB).to_string(), GIB.to_string());
        let own = |path: &Path| match path.strip_prefix("/sys/fs/cgroup") {
            Ok(rest) if rest.as_os_str().as_bytes() == b"\xff/memory.max" => Ok(Some(limit.clone().into_bytes())),
            Ok(rest) if rest.as_os_str().as_bytes() == b"\xff/memory.current" => Ok(Some(used.clone().into_bytes())),
            Ok(rest) if rest.as_os_str().as_bytes() == b"\xff/memory.stat" => Ok(Some(b"\xff\nactive_file 4\n".into())),
            _ => Ok(None),
        };
        assert_eq!(of_groups(b"1:name=\xfe:/x\n0::/\xff\n", own).unwrap(), Some(10 * GIB - GIB + 4 - GIB));
        assert_eq!(of_groups(b"garbage\n::\n0::/../../\xff\n", own).unwrap(), Some(10 * GIB - GIB + 4 - GIB));
    }

    #[test]
    fn a_group_with_a_limit_of_which_the_use_is_not_known_leaves_nothing() {
        const MAX: &str = "/sys/fs/cgroup/memory.max";
        assert_eq!(groups("0::/", &[(MAX, "0")]), Some(0));
        assert_eq!(
            groups("0::/", &[(MAX, "1000000000000"), ("/sys/fs/cgroup/memory.stat", "active_file 7\n")]),
            Some(0)
        );
        assert_eq!(groups("0::/", &[(MAX, "")]), Some(0));
        for none in ["max\n", "18446744073709551615\n", "99999999999999999999999\n"] {
            assert_eq!(groups("0::/", &[(MAX, none)]), None);
        }
    }

    const NO_DESCRIPTOR: fn(&Path) -> Text = |_| Err(Error::from_raw_os_error(libc::EMFILE));
    const NO_LIMIT: fn(libc::__rlimit_resource_t) -> Option<u64> = |_| None;

    #[test]
    fn a_limit_that_cannot_be_read_leaves_nothing() {
        let nothing = Free { bytes: 0, limit: Limit::Unreadable(libc::EMFILE) };
        assert_eq!(free_by(NO_DESCRIPTOR, NO_LIMIT, || 0), nothing);
        assert!(nothing.limit.to_string().contains("cannot be read"));
        // Without /proc the machine's memory is known all the same, and a group that is there.
        let free = free_by(|_| Ok(None), NO_LIMIT, || 0);
        assert!(free.limit == Limit::Machine && free.bytes < u64::MAX, "{free:?}");
        let files: [(&str, &[u8]); 1] = [("/sys/fs/cgroup/memory.max", b"0")];
        assert_eq!(free_by(reader(&files), NO_LIMIT, || 0), Free { bytes: 0, limit: Limit::Group });
        // A limit of addresses, of which the use is not known.
        for resource in [libc::RLIMIT_AS, libc::RLIMIT_DATA] {
            let limit = |asked| (asked == resource).then_some(1 << 50);
            assert_eq!(free_by(|_| Ok(None), limit, || 0).bytes, 0);
        }
        let files: [(&str, &[u8]); 1] = [("/proc/self/status", b"Name: \xff\nVmSize: 1024 kB\n")];
        let limit = |asked| (asked == libc::RLIMIT_AS).then_some(2 * GIB);
        let left = 2 * GIB - (1 << 20) - 2 * GIB / 10 - THREADS - 5;
        let free = free_by(reader(&files), limit, || 5);
        assert!(free == Free { bytes: left, limit: Limit::Addresses } || free.limit == Limit::Machine, "{free:?}");
    }
}

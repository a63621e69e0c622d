//! How much memory can still be had: of the machine, of the control group, and of what this process may map.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::{Error, ErrorKind};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

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
    /// There is one, or there may be, and the system cannot be asked: the number of its error.
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

/// Bytes that weights may still take, and what limits them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// Bytes.
    pub bytes: u64,
    /// The tightest limit.
    pub limit: Limit,
}

/// A text of the system's: `None` if there is none; an error if it could not be read. Bytes, for names of threads and of groups
/// may be any.
pub type Text = Result<Option<Vec<u8>>, Error>;

/// Reads a text in /proc or /sys.
pub fn text(path: &Path) -> Text {
    match fs::read(path) {
        Ok(text) => Ok(Some(text)),
        // Groups may go while they are read. What a sandbox hides stays hidden, and says nothing of a limit: it counts as not
        // there, or this library would never be used in one.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EACCES | libc::EPERM)) => Ok(None),
        // No descriptor is left, or no memory.
        Err(error) => Err(error),
    }
}

/// What can be had at this moment; more than there is, if there is no limit that the system tells.
///
/// Where there is a limit, and what was used of it cannot be told, nothing can be had: weights that are not packed cost time,
/// but a load that fails, or a process that is killed, costs everything. No older answer is taken instead: memory may have
/// been used since. No descriptor is kept in reserve either: children would inherit it, and programs that close all
/// descriptors would give its number to a file of theirs.
pub fn free() -> Free {
    free_by(text, limit_of, open_models)
}

/// The same; `read` reads a text, `limit` tells one of the process's limits, and `models` the bytes of open models.
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
    // Files of weights that are open, which the host is going to map, take addresses, but no memory of its own.
    let addresses = below(libc::RLIMIT_AS, "VmSize").map(|bytes| bytes.map(|bytes| bytes.saturating_sub(models())));
    // A call that needs no descriptor knows it too; pages of files do not count as free there.
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

/// /proc/self/cgroup where there is no /proc: a container sees its own group as the first one.
const OWN_GROUP: &[u8] = b"0::/\n1:memory:/\n";

/// What may be taken of `free` bytes below a limit.
fn kept(limit: u64, free: u64) -> u64 {
    free.saturating_sub((limit / KEPT_SHARE).max(KEPT))
}

/// A number of the system's: digits to the end of the text, or to white space. The largest there is for a larger one.
fn number(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii().split(u8::is_ascii_whitespace).next()?;
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(text.iter().fold(0, |all: u64, digit| all.saturating_mul(10).saturating_add(u64::from(digit - b'0'))))
}

/// The bytes that a line of /proc/self/status or /proc/meminfo says in kB.
pub fn kilobytes(name: &str, text: &[u8]) -> Option<u64> {
    let rest = |line| <[u8]>::strip_prefix(line, name.as_bytes())?.strip_prefix(b":");
    let line = text.split(|byte| *byte == b'\n').find_map(rest)?;
    Some(number(line)?.saturating_mul(1 << 10))
}

fn of_machine(meminfo: &[u8]) -> Option<u64> {
    Some(kept(kilobytes("MemTotal", meminfo)?, kilobytes("MemAvailable", meminfo)?))
}

fn of_machine_by_call() -> Option<u64> {
    let mut about = MaybeUninit::<libc::sysinfo>::zeroed();
    // SAFETY: the struct is writable.
    if unsafe { libc::sysinfo(about.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: filled by the call; zeros before.
    let about = unsafe { about.assume_init() };
    let bytes = |units: u64| units.saturating_mul(u64::from(about.mem_unit));
    Some(kept(bytes(about.totalram), bytes(about.freeram.saturating_add(about.bufferram))))
}

/// Calls `visit` with the folder of every group in /proc/self/cgroup that has this controller, and of those above it; and
/// whether it is of version 2. Ends with the first error.
pub fn each_group(
    groups: &[u8],
    controller: &str,
    roots: &[&str],
    mut visit: impl FnMut(&Path, bool) -> Result<(), Error>,
) -> Result<(), Error> {
    for line in groups.split(|byte| *byte == b'\n') {
        let mut parts = line.splitn(3, |byte| *byte == b':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let is_second = controllers.is_empty();
        let roots = match is_second {
            true => &["/sys/fs/cgroup"][..],
            false if controllers.split(|byte| *byte == b',').any(|c| c == controller.as_bytes()) => roots,
            false => continue,
        };
        // A group outside of those that this process can see begins with `..`: it is as if it were the first one.
        let path = Path::new(OsStr::from_bytes(path)).components();
        let names: Vec<&OsStr> = path.filter(|c| matches!(c, Component::Normal(_))).map(|c| c.as_os_str()).collect();
        for root in roots {
            let own = Path::new(root).join(names.iter().collect::<std::path::PathBuf>());
            own.ancestors()
                .take_while(|group| group.starts_with(root))
                .try_for_each(|group| visit(group, is_second))?;
        }
    }
    Ok(())
}

/// What the tightest of these groups leaves; pages of files count as free, for the kernel drops them first.
fn of_groups(groups: &[u8], read: impl Fn(&Path) -> Text) -> Result<Option<u64>, Error> {
    let mut least: Option<u64> = None;
    each_group(groups, "memory", &["/sys/fs/cgroup/memory"], |group, is_second| {
        let text = |name: &str| read(&group.join(name));
        // Above the second limit of version 2 a group is slowed down.
        let (limits, used) = match is_second {
            true => (&["memory.max", "memory.high"][..], "memory.current"),
            false => (&["memory.limit_in_bytes"][..], "memory.usage_in_bytes"),
        };
        let mut limit = None;
        for name in limits {
            let Some(text) = text(name)? else { continue };
            // What is no number and not "max" is a limit too, of which nothing is known.
            let bytes = number(&text).unwrap_or(if text.trim_ascii() == b"max" { u64::MAX } else { 0 });
            limit = Some(limit.map_or(bytes, |limit: u64| limit.min(bytes)));
        }
        let Some(limit) = limit.filter(|limit| *limit != u64::MAX) else { return Ok(()) };
        // If that is not told, all of it is.
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
        // Pages of files are part of what is used, of which nothing is known then.
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

fn limit_of(resource: libc::__rlimit_resource_t) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct is writable.
    let answer = unsafe { libc::getrlimit(resource, &mut limit) };
    (answer == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// Most descriptors that are looked through one by one.
const DESCRIPTORS: u64 = 1 << 16;

/// Numbers of this process's descriptors, and perhaps of others.
fn descriptors() -> Vec<i32> {
    let listed = fs::read_dir("/proc/self/fd").map(|entries| {
        let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
        entries.flatten().filter_map(number).collect()
    });
    // The list needs a descriptor itself, of which none may be left, and it needs /proc.
    let most = limit_of(libc::RLIMIT_NOFILE).unwrap_or(DESCRIPTORS).min(DESCRIPTORS);
    listed.unwrap_or_else(|_| (0..most as i32).collect())
}

/// Bytes of the GGUF files that this process has open, each once.
///
/// They are asked through the process's own descriptors, never through others of the same files: who closes any descriptor of
/// a file gives up all record locks (`F_SETLK`) that the process holds on it. Another thread may close a descriptor meanwhile,
/// and open something else under its number; then that is looked at, which changes nothing in it.
fn open_models() -> u64 {
    let mut seen = Vec::new();
    let mut bytes = 0;
    for fd in descriptors() {
        let mut about = MaybeUninit::<libc::stat>::uninit();
        // SAFETY: any number may be asked for, and the struct is writable.
        if unsafe { libc::fstat(fd, about.as_mut_ptr()) } != 0 {
            continue;
        }
        // SAFETY: filled by the call.
        let about = unsafe { about.assume_init() };
        if about.st_mode & libc::S_IFMT != libc::S_IFREG {
            continue;
        }
        let mut magic = [0u8; 4];
        // At an offset: the file's own is the host's.
        // SAFETY: so many bytes are writable.
        let read = unsafe { libc::pread(fd, magic.as_mut_ptr().cast(), magic.len(), 0) };
        let id = (about.st_dev, about.st_ino);
        if read == 4 && magic == *b"GGUF" && !seen.contains(&id) {
            seen.push(id);
            bytes += about.st_size.unsigned_abs();
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsRawFd;

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

    #[test]
    fn texts_may_have_any_bytes() {
        let name = b"Name:\t\xd1\x81\xd0\nVmSize:\t    1024 kB\n";
        assert_eq!(kilobytes("VmSize", name), Some(1 << 20));
        assert_eq!(kilobytes("VmSize", b"VmSize: 99999999999999999999999 kB"), Some(u64::MAX));
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

    /// Whether another process finds the file locked.
    fn is_locked(file: &File) -> bool {
        // SAFETY: the child calls what may be called between fork and exit.
        unsafe {
            match libc::fork() {
                0 => {
                    let mut lock: libc::flock = std::mem::zeroed();
                    lock.l_type = libc::F_WRLCK as libc::c_short;
                    let asked = libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &mut lock);
                    libc::_exit(if asked != 0 { 2 } else { i32::from(lock.l_type != libc::F_UNLCK as libc::c_short) });
                }
                child => {
                    let mut status = 0;
                    assert_eq!(libc::waitpid(child, &mut status, 0), child);
                    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) < 2, "{status}");
                    libc::WEXITSTATUS(status) == 1
                }
            }
        }
    }

    #[test]
    fn record_locks_of_the_process_stay() {
        let path = std::env::temp_dir().join(format!("ggml-amx-locks-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        (&file).write_all(b"some bytes").unwrap();
        // SAFETY: all zeros is a lock of the whole file, but for its type.
        let taken = unsafe {
            let mut lock: libc::flock = std::mem::zeroed();
            lock.l_type = libc::F_WRLCK as libc::c_short;
            libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &lock)
        };
        assert!(taken == 0 && is_locked(&file));
        open_models();
        free();
        assert!(is_locked(&file), "asking for memory gave up a lock");
        fs::remove_file(path).unwrap();
    }
}

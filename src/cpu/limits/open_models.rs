//! Files of weights that the process has open: the host is going to map them.

use std::fs;
use std::mem::MaybeUninit;

use crate::cpu::system::limit_of;

/// Most numbers of descriptors that are tried one by one.
const DESCRIPTORS: u64 = 1 << 16;

/// Numbers of this process's descriptors; perhaps also numbers that are none.
fn descriptors() -> Vec<i32> {
    let listed = fs::read_dir("/proc/self/fd").map(|entries| {
        let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
        entries.flatten().filter_map(number).collect()
    });
    // Listing them needs /proc and a descriptor, of which none may be left.
    let most = limit_of(libc::RLIMIT_NOFILE).unwrap_or(DESCRIPTORS).min(DESCRIPTORS);
    listed.unwrap_or_else(|_| (0..most as i32).collect())
}

/// Bytes of the GGUF files that this process has open, each counted once.
///
/// They are read through the process's own descriptors. Opening them again would do harm: a process that closes any
/// descriptor of a file gives up all record locks (`F_SETLK`) that it holds on the file. Another thread may close a
/// descriptor meanwhile and open something else under its number; then that file is read, which changes nothing in it.
pub fn open_models() -> u64 {
    let mut seen = Vec::new();
    let mut bytes = 0;
    for fd in descriptors() {
        let mut about = MaybeUninit::<libc::stat>::uninit();
        // SAFETY: any number may be passed, and the struct is writable.
        if unsafe { libc::fstat(fd, about.as_mut_ptr()) } != 0 {
            continue;
        }
        // SAFETY: filled by the call.
        let about = unsafe { about.assume_init() };
        if about.st_mode & libc::S_IFMT != libc::S_IFREG {
            continue;
        }
        let mut magic = [0u8; 4];
        // At an offset of its own: the file's position is the host's.
        // SAFETY: the buffer has `magic.len()` bytes.
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
    use crate::cpu::limits::free;
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsRawFd;

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

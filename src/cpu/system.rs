//! What the kernel says: texts in /proc and /sys, and the limits of this process. Texts are bytes: names of threads and
//! of control groups may be any.

use std::fs;
use std::io::{Error, ErrorKind};
use std::path::Path;

/// A text of the system: `None` if there is no such file, an error if it could not be read.
pub type Text = Result<Option<Vec<u8>>, Error>;

/// Reads a text in /proc or /sys.
pub fn text(path: &Path) -> Text {
    match fs::read(path) {
        Ok(text) => Ok(Some(text)),
        // A control group may go while it is read. A file that a sandbox hides counts as not there: it says nothing of
        // a limit, and otherwise this library would never be used in a sandbox.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EACCES | libc::EPERM)) => Ok(None),
        // No descriptor is left, or no memory.
        Err(error) => Err(error),
    }
}

/// The number at the start of a text: digits to its end or to white space. One that is too large is `u64::MAX`.
pub fn number(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii().split(u8::is_ascii_whitespace).next()?;
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(text.iter().fold(0, |all: u64, digit| all.saturating_mul(10).saturating_add(u64::from(digit - b'0'))))
}

/// The bytes that line `name` of /proc/self/status or /proc/meminfo gives in kB.
pub fn kilobytes(name: &str, text: &[u8]) -> Option<u64> {
    let rest = |line| <[u8]>::strip_prefix(line, name.as_bytes())?.strip_prefix(b":");
    let line = text.split(|byte| *byte == b'\n').find_map(rest)?;
    Some(number(line)?.saturating_mul(1 << 10))
}

/// One of the limits of this process (`RLIMIT_AS`, ...), if it has it.
pub fn limit_of(resource: libc::__rlimit_resource_t) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct is writable.
    let answer = unsafe { libc::getrlimit(resource, &mut limit) };
    (answer == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_may_have_any_bytes_and_numbers_any_length() {
        let name = b"Name:\t\xd1\x81\xd0\nVmSize:\t    1024 kB\n";
        assert_eq!(kilobytes("VmSize", name), Some(1 << 20));
        assert_eq!(kilobytes("VmSize", b"VmSize: 99999999999999999999999 kB"), Some(u64::MAX));
    }
}

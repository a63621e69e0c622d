//! The control groups that this process is in.

use std::ffi::OsStr;
use std::io::Error;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

/// Calls `visit(folder, is_second)` for every group in `groups`, the text of /proc/self/cgroup, that has this
/// controller, and for those above it; `is_second` says whether it is a group of version 2. `roots` are the folders of
/// the controller in version 1. Ends with the first error.
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
        // The path of a group that this process cannot see begins with `..`: it counts as the root group.
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

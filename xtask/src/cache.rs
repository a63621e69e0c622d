//! The cache outside the checkout: downloads, unpacked trees, builds, models, logs.
//!
//! Holding a [`Cache`] means holding its lock: one run at a time changes it. Everything is made under a
//! temporary name and renamed when it is whole, so a killed run leaves nothing that looks finished.

use std::{
    env,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use crate::util::{Result, io};

/// The locked cache directory.
pub struct Cache {
    root: PathBuf,
    _lock: File,
}

/// `$GGML_AMX_CACHE`, else `$XDG_CACHE_HOME/ggml-amx`, else `~/.cache/ggml-amx`.
pub fn root() -> Result<PathBuf> {
    let set = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let root = set("GGML_AMX_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|d| d.join("ggml-amx")))
        .or_else(|| set("HOME").map(|d| d.join(".cache/ggml-amx")))
        .ok_or("no place for the cache: set GGML_AMX_CACHE to a directory with 3 GB free")?;
    if root.is_absolute() { Ok(root) } else { Err(format!("the cache path must be absolute: {}", root.display())) }
}

/// The log file of one step. Creates its directory.
pub fn log(name: &str) -> Result<PathBuf> {
    Ok(logs()?.join(format!("{name}.log")))
}

/// The directory of log files. Creates it.
pub fn logs() -> Result<PathBuf> {
    let dir = root()?.join("logs");
    io("create", &dir, fs::create_dir_all(&dir))?;
    Ok(dir)
}

impl Cache {
    /// Opens the cache, waiting for another run that is using it.
    pub fn open() -> Result<Self> {
        let root = root()?;
        io("create", &root, fs::create_dir_all(&root))?;
        let lock = lock(&root.join("lock"))?;
        Ok(Self { root, _lock: lock })
    }

    /// A path inside the cache.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// Returns `name` inside the cache; if it is not there yet, `make` creates it at the temporary path it is given.
    pub fn once(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let whole = self.path(name);
        if whole.exists() {
            return Ok(whole);
        }
        let parent = whole.parent().expect("cache entries have a parent");
        io("create", parent, fs::create_dir_all(parent))?;
        let mut partial = whole.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        remove(&partial)?;
        make(&partial)?;
        io("rename", &partial, fs::rename(&partial, &whole))?;
        Ok(whole)
    }
}

/// Locks a file until the returned handle is dropped. Waits for another run that holds the lock.
pub fn lock(path: &Path) -> Result<File> {
    let lock = io("create", path, File::create(path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            println!("waiting for another run that holds {} ...", path.display());
            io("lock", path, lock.lock())?;
        }
        Err(TryLockError::Error(e)) => return io("lock", path, Err(e)),
    }
    Ok(lock)
}

/// Removes a file or a tree, if it is there.
pub fn remove(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(m) if m.is_dir() => io("remove", path, fs::remove_dir_all(path)),
        Ok(_) => io("remove", path, fs::remove_file(path)),
    }
}

/// FNV-1a, 64 bit: names build directories; stable between Rust versions, unlike std's hasher.
pub fn fnv(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> Cache {
        let root = env::temp_dir().join(format!("xtask-cache-{name}-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let lock = File::create(root.join("lock")).unwrap();
        Cache { root, _lock: lock }
    }

    #[test]
    fn what_fails_half_way_is_made_again_and_what_is_whole_is_kept() {
        let cache = scratch("once");
        let failed =
            cache.once("d/thing", |p| fs::write(p, "half").map_err(|e| e.to_string()).and(Err("killed".into())));
        assert_eq!(failed, Err("killed".into()));
        assert!(!cache.path("d/thing").exists());
        let made = cache.once("d/thing", |p| fs::write(p, "whole").map_err(|e| e.to_string())).unwrap();
        assert_eq!(fs::read_to_string(&made).unwrap(), "whole");
        cache.once("d/thing", |_| Err("must not be made twice".into())).unwrap();
        remove(&cache.root).unwrap();
    }

    #[test]
    fn fnv_gives_the_published_test_vector() {
        assert_eq!(fnv(*b"foobar"), 0x8594_4171_f739_67e8);
    }
}

//! Further hosts of a flavour that is served already, for instance a second ik_llama.cpp that Python has loaded in a
//! scope of its own. Everything this library remembers (layouts of structs, buffers, packed weights, teams) belongs to
//! one host. So each further host gets a twin: a copy of this library, loaded beside it, with a state of its own and
//! bound to that host. Calls that come from the host are handed on to its twin.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use libc::c_void;

use crate::diag::border::ffi_boundary;
use crate::diag::log::{self, Level};
use crate::host::Flavour;
use crate::host::loader::{OpenObject, Scope, file_of, last_error};
use crate::info;
use crate::process::{Mutex, Once};

/// How many hosts may have a twin.
const MOST: usize = 8;

/// 0, or in a twin one more than the flavour's number.
static BOUND: AtomicUsize = AtomicUsize::new(0);

/// If this library is a twin: the flavour of the only host that it serves.
pub fn bound() -> Option<Flavour> {
    match BOUND.load(Ordering::Acquire) {
        0 => None,
        1 => Some(Flavour::Llama),
        _ => Some(Flavour::Ik),
    }
}

/// Makes this library a twin: it serves only the host of this flavour (0 llama.cpp, 1 ik_llama.cpp) whose functions are
/// found by the loader's handle `scope`, which is never closed. Called before anything else; false if it is a twin
/// already.
///
/// cbindgen:ignore
#[unsafe(no_mangle)]
pub extern "C" fn ggml_amx_bind(flavour: usize, scope: *mut c_void) -> bool {
    ffi_boundary!("ggml_amx_bind", else false, {
        let is_free = BOUND.load(Ordering::Acquire) == 0;
        if is_free {
            let flavour_of_host = if flavour == 0 { Flavour::Llama } else { Flavour::Ik };
            // SAFETY: the library that loaded this one passes the handle of a scope.
            flavour_of_host.set_scope(unsafe { Scope::from_raw(scope) });
            BOUND.store(flavour + 1, Ordering::Release);
        }
        is_free
    })
}

/// Declares the functions of the drop-in surface, see [`super::backend`]: a field each, and the lookup.
macro_rules! surface {
    ($($field:ident: $name:literal = $ty:ty;)*) => {
        /// The functions of the drop-in surface of a twin. What their pointers point to has other names here.
        pub struct Surface {
            $(#[doc = concat!("`", $name, "`.")] pub $field: $ty,)*
        }

        impl Surface {
            /// Those of the copy of this library in a scope, or an error that names one that is missing.
            fn find(copy: Scope) -> Result<Self, String> {
                // SAFETY: this library's functions of these names have these types.
                unsafe { Ok(Self { $($field: std::mem::transmute::<*const c_void, $ty>(function(copy, $name)?),)* }) }
            }
        }
    };
}

surface! {
    buffer_type: "ggml_backend_amx_buffer_type" = extern "C" fn() -> *mut c_void;
    get_extra_bufts: "ggml_backend_amx_get_extra_bufts" = extern "C" fn() -> *mut *mut c_void;
    supports_op: "ggml_backend_amx_supports_op" = unsafe extern "C" fn(*mut c_void, *const c_void) -> bool;
    work_size: "ggml_backend_amx_work_size" = unsafe extern "C" fn(i32, *const c_void, *mut usize) -> bool;
    compute_forward: "ggml_backend_amx_compute_forward" = unsafe extern "C" fn(*mut c_void, *mut c_void) -> bool;
}

/// A twin of this library.
pub struct Twin {
    /// Its index in [`TWINS`].
    pub number: usize,
    /// Its functions.
    pub surface: Surface,
    scope: Scope,
}

// SAFETY: functions, and a scope: a handle that may be used in any thread.
unsafe impl Send for Twin {}
// SAFETY: as above, and nothing in it changes.
unsafe impl Sync for Twin {}

/// For each further host the first byte of its object (0: free), and its twin; `None` if no twin could be loaded.
static TWINS: [(AtomicUsize, Once<Option<Twin>>); MOST] = [const { (AtomicUsize::new(0), Once::new()) }; MOST];

impl Twin {
    /// The twin with this number, if there is one.
    pub fn at(number: usize) -> Option<&'static Self> {
        TWINS.get(number)?.1.get()?.as_ref()
    }

    /// The twin of the host of this flavour whose object begins at `object`, and whose functions are found in `scope`.
    /// The first call loads it. `None`, with a line in the log the first time, if no twin can be loaded.
    pub fn of(flavour: Flavour, object: usize, scope: Scope) -> Option<&'static Self> {
        // A twin has no twins. And the global scope finds our own functions before the host's.
        if bound().is_some() || object == 0 || scope == Scope::GLOBAL {
            return None;
        }
        let of = |object| TWINS.iter().position(|twin| twin.0.load(Ordering::Acquire) == object);
        if let Some(number) = of(object) {
            return Self::at(number);
        }
        let _hold = log::hold();
        if of(0).is_none() {
            static SAID: Once<()> = Once::new();
            let say = || info!("hosts of this process beyond the first {} are left alone", MOST + 2);
            SAID.get_or_init(say);
            return None;
        }
        // Not under a lock of ours, because another thread may hold the loader's, inside a constructor that calls us.
        // If two threads come at the same moment, one of the copies stays unused.
        let loaded = load(flavour, scope);
        static STORING: Mutex<()> = Mutex::new(());
        let _storing = STORING.lock();
        if let Some(number) = of(object) {
            return Self::at(number);
        }
        let number = of(0)?;
        let twin = loaded.map(|(scope, surface)| Self { number, surface, scope });
        if let Err(why) = &twin {
            let host = if flavour == Flavour::Llama { "ggml" } else { "ik_llama.cpp" };
            log::line(Level::Info, &format!("a further {host} in this process is left alone: {why}"));
        }
        let _ = TWINS[number].1.set(twin.ok());
        TWINS[number].0.store(object, Ordering::Release);
        Self::at(number)
    }

    /// The twin's function in front of the host's function of this name. A preloaded library has it under that name.
    pub fn in_front_of(&self, name: &CStr) -> Option<usize> {
        let wrapped = CString::new([b"__wrap_", name.to_bytes()].concat()).ok()?;
        self.scope.find(&wrapped).or_else(|| self.scope.find(name)).map(|f| f as usize)
    }
}

/// A function of a copy of this library, or an error that names it.
fn function(copy: Scope, name: &str) -> Result<*const c_void, String> {
    let address = CString::new(name).ok().and_then(|name| copy.find(&name));
    address.ok_or_else(|| format!("its own copy of this library has no {name}"))
}

/// Loads a copy of this library and binds it to the host whose functions are found in `host`.
fn load(flavour: Flavour, host: Scope) -> Result<(Scope, Surface), String> {
    let copy = load_copy()?;
    let bind = function(copy, "ggml_amx_bind")?;
    if std::ptr::eq(bind, ggml_amx_bind as *const c_void) {
        return Err("its own copy of this library is not apart from this one".into());
    }
    // SAFETY: this library's function of this name has this type.
    let bind = unsafe { std::mem::transmute::<*const c_void, extern "C" fn(usize, *mut c_void) -> bool>(bind) };
    let surface = Surface::find(copy)?;
    if !bind(flavour as usize, host.raw()) {
        return Err("its own copy of this library serves another host".into());
    }
    Ok((copy, surface))
}

/// Loads this library's file once more. The loader takes files of the same inode for one, so it gets a copy in memory.
fn load_copy() -> Result<Scope, String> {
    let file = file_of(ggml_amx_bind as *const () as usize).ok_or("this library's file is not known")?;
    let ours = OpenObject::loaded(&file);
    let has = |name: &CStr| ours.as_ref().is_some_and(|ours| ours.find(name).is_some());
    // If this library was linked into a program or into the host, the file is more than this library.
    if !has(c"ggml_amx_bind") || has(c"ggml_init") {
        return Err("this library is no file of its own".into());
    }
    let path = file.to_str().map_err(|_| "its path is no UTF-8")?;
    let mut from = std::fs::File::open(path).map_err(|e| format!("{path} cannot be read: {e}"))?;
    let size = from.metadata().map_or(u64::MAX, |data| data.len());
    // SAFETY: all zeros are a limit, which the call overwrites.
    let most = unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit);
        limit.rlim_cur
    };
    if size > most {
        // To write more would raise a signal.
        return Err(format!("RLIMIT_FSIZE is {most}, its copy has {size} bytes"));
    }
    let memory = memory_file().map_err(|e| format!("memfd_create: {e}"))?;
    let mut to = std::fs::File::from(memory);
    std::io::copy(&mut from, &mut to).map_err(|e| format!("{path} cannot be copied: {e}"))?;
    // The loader also takes files of the same name for one, and numbers of descriptors come again. So every copy has
    // another name.
    static COPIES: AtomicUsize = AtomicUsize::new(0);
    let again = "./".repeat(COPIES.fetch_add(1, Ordering::Relaxed));
    let path = CString::new(format!("/proc/self/fd/{again}{}", to.as_raw_fd())).expect("has no NUL");
    // SAFETY: this library may be loaded: it is a copy of one that was. The handle is never closed.
    unsafe {
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        if handle.is_null() {
            return Err(last_error().unwrap_or_else(|| "it cannot be loaded again".into()));
        }
        Ok(Scope::from_raw(handle))
    }
}

/// An empty file in memory that may be mapped for execution.
fn memory_file() -> Result<OwnedFd, std::io::Error> {
    /// `MFD_EXEC` of linux/memfd.h; Linux before 6.3 does not know it.
    const MFD_EXEC: u32 = 0x10;
    for flags in [libc::MFD_CLOEXEC | MFD_EXEC, libc::MFD_CLOEXEC] {
        // SAFETY: no preconditions beyond a C string.
        let fd = unsafe { libc::memfd_create(c"ggml-amx".as_ptr(), flags) };
        if fd >= 0 {
            // SAFETY: just opened, and nothing else has it.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Err(std::io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_end_at_the_border() {
        use std::ptr::null_mut;

        use crate::diag::border::trip::goes_on;

        goes_on("ggml_amx_bind", || !ggml_amx_bind(0, null_mut()) && bound().is_none());
    }
}

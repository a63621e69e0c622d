//! Further hosts of a flavour that is served already, for instance a second ik_llama.cpp that Python loaded in a scope of its
//! own. Everything this library remembers (structs of the host, buffers, packed weights, teams) is one host's. So each further
//! host gets a twin: this library's file once more, loaded beside it, with a state of its own and bound to that host. Calls
//! that come from the host are handed on to its twin.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use libc::c_void;

use super::behind::{file_of, object_of};
use crate::diag::border::ffi_boundary;
use crate::diag::log::{self, Level};
use crate::host::Flavour;
use crate::host::symbols::{handle_of, set_scope};
use crate::info;
use crate::process::{Mutex, Once};

/// Hosts that may have a twin.
const MOST: usize = 8;

/// What this library is bound to: 0 nothing, else one more than the flavour's number.
static BOUND: AtomicUsize = AtomicUsize::new(0);

/// The flavour of the only host that this library serves, if it is a twin.
pub fn bound() -> Option<Flavour> {
    match BOUND.load(Ordering::Acquire) {
        0 => None,
        1 => Some(Flavour::Llama),
        _ => Some(Flavour::Ik),
    }
}

/// Makes this library a twin: it serves only the host of this flavour (0 llama.cpp, 1 ik_llama.cpp) whose functions the
/// handle finds. Called before anything else; false if it is one already.
///
/// cbindgen:ignore
#[unsafe(no_mangle)]
pub extern "C" fn ggml_amx_bind(flavour: usize, scope: *mut c_void) -> bool {
    ffi_boundary!("ggml_amx_bind", else false, {
        let is_free = BOUND.load(Ordering::Acquire) == 0;
        if is_free {
            set_scope(if flavour == 0 { Flavour::Llama } else { Flavour::Ik }, scope);
            BOUND.store(flavour + 1, Ordering::Release);
        }
        is_free
    })
}

/// The functions of the drop-in surface, see [`super::backend`].
pub struct Surface {
    /// `ggml_backend_amx_buffer_type`.
    pub buffer_type: extern "C" fn() -> *mut c_void,
    /// `ggml_backend_amx_get_extra_bufts`.
    pub get_extra_bufts: extern "C" fn() -> *mut *mut c_void,
    /// `ggml_backend_amx_supports_op`.
    pub supports_op: unsafe extern "C" fn(*mut c_void, *const c_void) -> bool,
    /// `ggml_backend_amx_work_size`.
    pub work_size: unsafe extern "C" fn(i32, *const c_void, *mut usize) -> bool,
    /// `ggml_backend_amx_compute_forward`.
    pub compute_forward: unsafe extern "C" fn(*mut c_void, *mut c_void) -> bool,
}

/// A twin of this library.
pub struct Twin {
    /// Its place among [`TWINS`].
    pub number: usize,
    /// Its functions.
    pub surface: Surface,
    handle: AtomicPtr<c_void>,
}

/// The twins, and the first byte of the object of each one's host. `None`: there is none, and never will be.
static TWINS: [(AtomicUsize, Once<Option<Twin>>); MOST] = [const { (AtomicUsize::new(0), Once::new()) }; MOST];

impl Twin {
    /// The twin with this number, if there is one.
    pub fn at(number: usize) -> Option<&'static Self> {
        TWINS.get(number)?.1.get()?.as_ref()
    }

    /// The twin of the host of this flavour whose object begins at `object`; it is loaded if there was none. `scope` is a
    /// handle that finds the host's functions. `None`, with a line in the log the first time, if no twin can be loaded.
    pub fn of(flavour: Flavour, object: usize, scope: *mut c_void) -> Option<&'static Self> {
        // No twin of a twin; and the global scope finds our own functions before the host's.
        if bound().is_some() || object == 0 || scope.is_null() {
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
        // Not under a lock: another thread may hold the loader's, inside a constructor that calls us. Of two that come at the
        // same moment one loads a copy in vain.
        let loaded = load(flavour, scope);
        static STORING: Mutex<()> = Mutex::new(());
        let _storing = STORING.lock();
        if let Some(number) = of(object) {
            return Self::at(number);
        }
        let number = of(0)?;
        let twin = loaded.map(|(handle, surface)| Self { number, surface, handle: AtomicPtr::new(handle) });
        if let Err(why) = &twin {
            let host = if flavour == Flavour::Llama { "ggml" } else { "ik_llama.cpp" };
            log::line(Level::Info, &format!("a further {host} in this process is left alone: {why}"));
        }
        let _ = TWINS[number].1.set(twin.ok());
        TWINS[number].0.store(object, Ordering::Release);
        Self::at(number)
    }

    /// What stands in front of the host's function of this name: a preloaded library shows it under the plain one.
    pub fn in_front_of(&self, name: &CStr) -> Option<usize> {
        let handle = self.handle.load(Ordering::Relaxed);
        let wrapped = CString::new([b"__wrap_", name.to_bytes()].concat()).ok()?;
        function(handle, &wrapped).or_else(|| function(handle, name)).map(|f| f as usize)
    }
}

/// A function of the library that a handle stands for.
fn function(handle: *mut c_void, name: &CStr) -> Option<*mut c_void> {
    // SAFETY: a C string, and a handle that is never closed.
    let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
    (!address.is_null()).then_some(address)
}

/// Loads a copy of this library and binds it.
fn load(flavour: Flavour, scope: *mut c_void) -> Result<(*mut c_void, Surface), String> {
    let handle = load_copy()?;
    let find = |name: &CStr| {
        let missing = || format!("its own copy of this library has no {}", name.to_string_lossy());
        function(handle, name).ok_or_else(missing)
    };
    let bind = find(c"ggml_amx_bind")?;
    if std::ptr::eq(bind, ggml_amx_bind as *const c_void) {
        return Err("its own copy of this library is not apart from this one".into());
    }
    // SAFETY: this library's functions of these names have these types, but for what pointers point to.
    unsafe {
        let bind = std::mem::transmute::<*mut c_void, extern "C" fn(usize, *mut c_void) -> bool>(bind);
        let surface = Surface {
            buffer_type: std::mem::transmute::<*mut c_void, extern "C" fn() -> *mut c_void>(find(
                c"ggml_backend_amx_buffer_type",
            )?),
            get_extra_bufts: std::mem::transmute::<*mut c_void, extern "C" fn() -> *mut *mut c_void>(find(
                c"ggml_backend_amx_get_extra_bufts",
            )?),
            supports_op: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void, *const c_void) -> bool>(
                find(c"ggml_backend_amx_supports_op")?,
            ),
            work_size: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(i32, *const c_void, *mut usize) -> bool>(
                find(c"ggml_backend_amx_work_size")?,
            ),
            compute_forward: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void, *mut c_void) -> bool>(
                find(c"ggml_backend_amx_compute_forward")?,
            ),
        };
        if !bind(flavour as usize, scope) {
            return Err("its own copy of this library serves another host".into());
        }
        Ok((handle, surface))
    }
}

/// This library's file, loaded once more. The loader takes files of the same inode for one, so it gets a copy in memory.
fn load_copy() -> Result<*mut c_void, String> {
    let file = file_of(object_of(ggml_amx_bind as *const () as usize)).ok_or("this library's file is not known")?;
    let ours = handle_of(&file);
    // SAFETY: a C string, and a handle that is open.
    let has = |name: &CStr| unsafe { !ours.is_null() && !libc::dlsym(ours, name.as_ptr()).is_null() };
    // Linked into a program, or into the host: the file holds more than this library.
    if !has(c"ggml_amx_bind") || has(c"ggml_init") {
        return Err("this library is no file of its own".into());
    }
    let path = file.to_str().map_err(|_| "its path is no UTF-8")?;
    let mut from = std::fs::File::open(path).map_err(|e| format!("{path} cannot be read: {e}"))?;
    let size = from.metadata().map_or(u64::MAX, |data| data.len());
    // SAFETY: all zeros are a value of it, and the place outlives the call.
    let most = unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit);
        limit.rlim_cur
    };
    if size > most {
        // Writing more is a signal.
        return Err(format!("RLIMIT_FSIZE is {most}, its copy has {size} bytes"));
    }
    let memory = memory_file().map_err(|e| format!("memfd_create: {e}"))?;
    let mut to = std::fs::File::from(memory);
    std::io::copy(&mut from, &mut to).map_err(|e| format!("{path} cannot be copied: {e}"))?;
    // The loader knows files by their names too, and a program may close descriptors: no name comes twice.
    static COPIES: AtomicUsize = AtomicUsize::new(0);
    let again = "./".repeat(COPIES.fetch_add(1, Ordering::Relaxed));
    let path = CString::new(format!("/proc/self/fd/{again}{}", to.as_raw_fd())).expect("has no NUL");
    // SAFETY: a C string; the constructors of this library do nothing that it has not done already.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        // SAFETY: the loader's message is a C string, or null.
        let why = unsafe { libc::dlerror() };
        return Err(if why.is_null() {
            "it cannot be loaded again".into()
        } else {
            // SAFETY: not null.
            unsafe { CStr::from_ptr(why) }.to_string_lossy().into_owned()
        });
    }
    Ok(handle)
}

/// An empty file in memory that may be mapped for execution.
fn memory_file() -> Result<OwnedFd, std::io::Error> {
    /// `MFD_EXEC` of linux/memfd.h; kernels before 6.3 do not know it.
    const MFD_EXEC: u32 = 0x10;
    for flags in [libc::MFD_CLOEXEC | MFD_EXEC, libc::MFD_CLOEXEC] {
        // SAFETY: a C string.
        let fd = unsafe { libc::memfd_create(c"ggml-amx".as_ptr(), flags) };
        if fd >= 0 {
            // SAFETY: just opened, and nobody else's.
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

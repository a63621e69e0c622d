//! The host's own functions behind those that stand in front of them. In a linked build the linker says where they are. For a
//! preloaded library they are where the caller's own object would have found them without us: a host may be loaded in a
//! scope of its own (RTLD_LOCAL), or twice.

use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicUsize, Ordering};

use libc::{c_int, c_void};

use crate::host::symbols::{scope, set_scope};

/// Stands for a caller that belongs to the host that is served.
pub const SERVED: usize = 0;

/// What only ik_llama.cpp has, in the same object as all the others.
const KERNEL: &CStr = c"iqk_mul_mat_4d";

/// Calls of a name that are remembered, by where they come from.
const CALLERS: usize = 16;

/// First byte of the object that has the host that is served: the first ik_llama.cpp that came by. 0: none yet.
static HOST: AtomicUsize = AtomicUsize::new(0);

/// What is known of one name.
pub struct Behind {
    callers: [AtomicUsize; CALLERS],
    addresses: [AtomicUsize; CALLERS],
    served: AtomicUsize,
}

/// A function of the host's.
#[derive(Clone, Copy)]
pub struct Found {
    /// Where it is.
    pub address: usize,
    /// Whether it belongs to the host that is served.
    pub is_served: bool,
}

impl Behind {
    /// Nothing.
    pub const fn new() -> Self {
        Self {
            callers: [const { AtomicUsize::new(0) }; CALLERS],
            addresses: [const { AtomicUsize::new(0) }; CALLERS],
            served: AtomicUsize::new(0),
        }
    }

    /// The function `name` for a call that returns to `caller`; `linked` is what the linker says, or 0.
    pub fn find(&self, name: &str, linked: usize, caller: usize) -> Found {
        if linked != 0 {
            return Found { address: linked, is_served: true };
        }
        let served = self.served.load(Ordering::Acquire);
        if caller == SERVED && served != 0 {
            return Found { address: served, is_served: true };
        }
        for (known, address) in self.callers.iter().zip(&self.addresses) {
            if known.load(Ordering::Acquire) == caller {
                let address = address.load(Ordering::Relaxed);
                return Found { address, is_served: address == served };
            }
        }
        self.look(name, caller)
    }

    #[cold]
    fn look(&self, name: &str, caller: usize) -> Found {
        let Ok(name) = CString::new(name) else { return Found { address: nobody(), is_served: false } };
        let Some((address, scope)) = next(&name, caller) else {
            // Nobody has it: whoever calls found nothing but ours, and gets nothing.
            return Found { address: nobody(), is_served: false };
        };
        let object = object_of(address);
        // Other programs have functions of these names too.
        let is_ik = next(KERNEL, address).is_some_and(|(kernel, _)| object_of(kernel) == object);
        let is_served = is_ik
            && match HOST.compare_exchange(0, object, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => true,
                Err(host) => host == object,
            };
        if is_served {
            set_scope(scope);
            self.served.store(address, Ordering::Release);
        }
        for (known, place) in self.callers.iter().zip(&self.addresses) {
            // Claimed for good by who writes the address first; found by others once the caller is there.
            if place.compare_exchange(0, address, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                known.store(caller, Ordering::Release);
                break;
            }
        }
        Found { address, is_served }
    }
}

/// A function in the place of one that nobody has; it returns nothing.
fn nobody() -> usize {
    extern "C" fn nothing() -> usize {
        0
    }
    nothing as *const () as usize
}

/// The first byte of the object that an address lies in; 0 if it is in none.
fn object_of(address: usize) -> usize {
    // SAFETY: all zeros are a value of it.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: any address may be asked for.
    let found = unsafe { libc::dladdr(address as *const c_void, &mut info) };
    if found == 0 { 0 } else { info.dli_fbase as usize }
}

/// Function `name` where the object of `caller` finds it without us, and the handle it was found by (null: the global scope).
/// Compilers turn the last call of a function into a jump, so the caller may be another object than the one that called;
/// then it is where any object has it.
fn next(name: &CStr, caller: usize) -> Option<(usize, *mut c_void)> {
    let ours = object_of(nobody());
    let by = |handle: *mut c_void| {
        // SAFETY: a handle that is never closed, or a pseudo-handle.
        let address = unsafe { libc::dlsym(handle, name.as_ptr()) as usize };
        (address != 0 && object_of(address) != ours).then_some(address)
    };
    let in_scope = |handle: *mut c_void| if handle.is_null() { None } else { by(handle).map(|found| (found, handle)) };
    let own = if object_of(caller) == ours || caller == SERVED { in_scope(scope()) } else { None };
    let of_caller = || in_scope(handle_of(&file_of(caller)?));
    let global = || by(libc::RTLD_NEXT).map(|found| (found, std::ptr::null_mut()));
    own.or_else(of_caller).or_else(global).or_else(|| files().iter().find_map(|file| in_scope(handle_of(file))))
}

/// A handle of an object that is loaded, or null. It is never closed, so that the object stays.
fn handle_of(file: &CStr) -> *mut c_void {
    if file.is_empty() {
        return std::ptr::null_mut();
    }
    // SAFETY: a C string; nothing is loaded by this.
    unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY) }
}

/// The file of the object that an address lies in.
fn file_of(address: usize) -> Option<CString> {
    // SAFETY: all zeros are a value of it.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: any address may be asked for; a name is a C string of the loader's.
    unsafe {
        let found = libc::dladdr(address as *const c_void, &mut info) != 0 && !info.dli_fname.is_null();
        found.then(|| CStr::from_ptr(info.dli_fname).to_owned())
    }
}

/// The files of all objects that are loaded.
fn files() -> Vec<CString> {
    unsafe extern "C" fn add(info: *mut libc::dl_phdr_info, _: usize, files: *mut c_void) -> c_int {
        // SAFETY: what the loader and the caller below pass.
        unsafe {
            if !(*info).dlpi_name.is_null() {
                (*files.cast::<Vec<CString>>()).push(CStr::from_ptr((*info).dlpi_name).to_owned());
            }
        }
        0
    }
    let mut files: Vec<CString> = Vec::new();
    // SAFETY: the list outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(add), (&raw mut files).cast()) };
    files
}

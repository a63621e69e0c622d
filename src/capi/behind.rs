//! The host's own functions behind those that stand in front of them. In a linked build the linker says where they are. For a
//! preloaded library they are where the caller's own object would have found them without us: a host may be loaded in a
//! scope of its own (RTLD_LOCAL), or twice.

use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicUsize, Ordering};

use libc::c_void;

use crate::host::Flavour;
use crate::host::symbols::{files, handle_of, scope, set_scope, weak_table};

/// Stands for a caller that belongs to the host that is served.
pub const SERVED: usize = 0;

/// What only ik_llama.cpp has, in the same object as all the others.
const KERNEL: &CStr = c"iqk_mul_mat_4d";

/// The same among the functions that nothing of ours stands in front of.
const ONLY_IK: &CStr = c"ggml_fused_up_gate";

/// Calls of a name that are remembered, by where they come from.
const CALLERS: usize = 16;

/// First bytes of the objects that have the hosts that are served: the first of each flavour that came by. 0: none yet.
static HOSTS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// Whether the host of this flavour in the object that begins here is the one that is served.
fn is_served(flavour: Flavour, object: usize) -> bool {
    match HOSTS[flavour as usize].compare_exchange(0, object, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => true,
        Err(host) => host == object,
    }
}

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
        let is_served = is_ik && is_served(Flavour::Ik, object);
        if is_served {
            set_scope(Flavour::Ik, scope);
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

/// Calls of the surface that are remembered, by where they come from.
static ASKED: [[AtomicUsize; 2]; 64] = [const { [AtomicUsize::new(0), AtomicUsize::new(0)] }; 64];

/// The flavour of the host that the caller of a function of ours belongs to, where the function is not one that stands in
/// front of a host's. `None` if that is a host beside another one of its flavour that is served already.
pub fn flavour(caller: usize) -> Option<Flavour> {
    const ANSWERS: [Option<Flavour>; 3] = [None, Some(Flavour::Llama), Some(Flavour::Ik)];
    for [known, answer] in &ASKED {
        match known.load(Ordering::Acquire) {
            0 => break,
            at if at == caller => return ANSWERS[answer.load(Ordering::Relaxed) - 1],
            _ => {}
        }
    }
    let answer = look_for(caller);
    let number = ANSWERS.iter().position(|a| *a == answer).unwrap_or(0) + 1;
    for [known, place] in &ASKED {
        // Claimed for good by who writes the answer first; found by others once the caller is there.
        if place.compare_exchange(0, number, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            known.store(caller, Ordering::Release);
            break;
        }
    }
    answer
}

#[cold]
fn look_for(caller: usize) -> Option<Flavour> {
    let ours = object_of(nobody());
    let flavour = |is_ik| if is_ik { Flavour::Ik } else { Flavour::Llama };
    // Part of the host's own object, or of a program's: the linker has put both together.
    let scope = if object_of(caller) == ours { None } else { handle_for(caller) };
    // SAFETY: a C string, and a handle that is never closed.
    let by = |name: &CStr| unsafe { libc::dlsym(scope.unwrap_or(std::ptr::null_mut()), name.as_ptr()) as usize };
    match scope {
        Some(handle) if !handle.is_null() && by(c"ggml_init") != 0 => {
            let object = object_of(by(c"ggml_init"));
            let flavour = flavour(object_of(by(ONLY_IK)) == object);
            let is_served = is_served(flavour, object);
            if is_served {
                set_scope(flavour, handle);
            }
            is_served.then_some(flavour)
        }
        // A program that loads hosts by itself; whatever the process has is asked.
        _ => Some(flavour(is_ik_anywhere())),
    }
}

weak_table!(ggml_amx_only_ik; "ggml_fused_up_gate",);

/// Whether the linker or the process has [`ONLY_IK`].
fn is_ik_anywhere() -> bool {
    // SAFETY: the table has one word; volatile, because it may be null.
    let linked = unsafe { (&raw const ggml_amx_only_ik).cast::<usize>().read_volatile() };
    // SAFETY: a C string, and a pseudo-handle.
    linked != 0 || unsafe { !libc::dlsym(libc::RTLD_DEFAULT, ONLY_IK.as_ptr()).is_null() }
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
    let own = if object_of(caller) == ours || caller == SERVED { in_scope(scope(Flavour::Ik)) } else { None };
    let of_caller = || in_scope(handle_for(caller)?);
    let global = || by(libc::RTLD_NEXT).map(|found| (found, std::ptr::null_mut()));
    own.or_else(of_caller).or_else(global).or_else(|| files().iter().find_map(|file| in_scope(handle_of(file))))
}

/// A handle of the object that an address lies in, which is never closed; `None` for memory of no object. For the program itself
/// its file is not named: that would be what it was started as, which is opened and closed again if it is a path, and with
/// that the record locks of this process on it would be gone. Libraries are found by the names that they were loaded by.
fn handle_for(address: usize) -> Option<*mut c_void> {
    // SAFETY: any entry may be asked for.
    let headers = unsafe { libc::getauxval(libc::AT_PHDR) } as usize;
    let object = object_of(address);
    if object != 0 && object == object_of(headers) {
        // SAFETY: NULL is the program.
        return Some(unsafe { libc::dlopen(std::ptr::null(), libc::RTLD_LAZY) });
    }
    // SAFETY: all zeros are a value of it.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: any address may be asked for; a name is a C string of the loader's.
    unsafe {
        let found = libc::dladdr(address as *const c_void, &mut info) != 0 && !info.dli_fname.is_null();
        found.then(|| handle_of(CStr::from_ptr(info.dli_fname)))
    }
}

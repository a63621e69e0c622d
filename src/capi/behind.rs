//! The host's own functions, behind ours that stand in front of them. In a linked build the linker says where they are.
//! A preloaded library looks where the caller's own object would have found them without us, because a host may be
//! loaded in a scope of its own (`RTLD_LOCAL`), or twice.

use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::callers::CallerCache;
use super::hosts::{ONLY_IK, everywhere, is_of_ours, is_served};
use super::twin::{self, Twin};
use crate::host::loader::{LoadedObject, Scope, function_around, object_of, our_object};
use crate::host::{Flavour, peek};

/// In the place of a caller: the host that is served.
pub const SERVED: usize = 0;

/// What is known of the function of one name.
pub struct Behind {
    calls: CallerCache,
    /// The served host's function; 0 if it is not known yet.
    served: AtomicUsize,
}

/// A function of a host's, or what the host's twin has in front of it.
#[derive(Clone, Copy)]
pub struct HostFunction {
    /// Its address.
    pub address: usize,
    /// Whether its host is the one that this library serves.
    pub is_served: bool,
}

impl Behind {
    /// Nothing is known.
    pub const fn new() -> Self {
        Self { calls: CallerCache::new(), served: AtomicUsize::new(0) }
    }

    /// The function `name` for a call that returns to `caller` (or [`SERVED`]) and has these first arguments. `linked`
    /// is what the linker says, or 0.
    pub fn find(&self, name: &str, linked: usize, caller: usize, args: [usize; 2]) -> HostFunction {
        if linked != 0 {
            return HostFunction { address: linked, is_served: true };
        }
        let served = self.served.load(Ordering::Acquire);
        if caller == SERVED && served != 0 {
            return HostFunction { address: served, is_served: true };
        }
        let known = if caller == SERVED { None } else { self.calls.find(caller) };
        match known {
            Some(address) => HostFunction { address, is_served: address == served },
            None => self.look(name, caller, args),
        }
    }

    #[cold]
    fn look(&self, name: &str, caller: usize, args: [usize; 2]) -> HostFunction {
        let next = CString::new(name).ok().and_then(|name| Some((next(&name, caller, args)?, name)));
        let Some(((address, is_sure), name)) = next else {
            return HostFunction { address: missing(), is_served: false };
        };
        let object = LoadedObject::of(address);
        let begin = object.begin;
        // Other programs may have functions of these names too.
        let is_ik = object.has(&ONLY_IK);
        let is_served = is_ik && is_served(Flavour::Ik, begin);
        let mut to = address;
        if is_served {
            Flavour::Ik.set_scope(object.keep());
            self.served.store(address, Ordering::Release);
        } else if is_ik && let Some(twin) = Twin::of(Flavour::Ik, begin, object.keep()) {
            to = twin.in_front_of(&name).unwrap_or(address);
        }
        if is_sure && caller != SERVED {
            // An ik_llama.cpp is never unloaded after `keep`, so calls within it need not be checked again.
            self.calls.note(caller, to, is_ik && object_of(caller) == begin);
        }
        HostFunction { address: to, is_served }
    }
}

/// The address of a function in the place of one that no object has, but ours. It does nothing and returns 0.
fn missing() -> usize {
    extern "C" fn nothing() -> usize {
        0
    }
    nothing as *const () as usize
}

/// The function `name` where `caller` would find it without us, and whether that holds for all calls from there.
///
/// It is behind us in the global scope, or else where the caller's object finds it. Compilers turn the last call of a
/// function into a jump, so the caller may be another object than the one that called. Then it is the only such
/// function of the process, or the one of the object that the arguments belong to, or the first.
fn next(name: &CStr, caller: usize, args: [usize; 2]) -> Option<(usize, bool)> {
    // Calls reach a twin by way of the library that it is a twin of.
    if twin::bound().is_some() || caller == SERVED || object_of(caller) == our_object() {
        let scope = Flavour::Ik.scope();
        let address = if scope == Scope::GLOBAL { None } else { scope.find(name) };
        if let Some(address) = address.map(|at| at as usize).filter(|at| !is_of_ours(*at)) {
            return Some((address, true));
        }
        if twin::bound().is_some() {
            return None;
        }
    }
    let behind_us = Scope::BEHIND_US.find(name).map(|at| at as usize);
    if let Some(address) = behind_us.filter(|at| !is_of_ours(*at)) {
        return Some((address, true));
    }
    // An object that stands in front of us has a function of this name itself, and calls ours from it.
    let is_itself = |address: usize| function_around(caller) == Some(address);
    let of_caller = LoadedObject::of(caller).find(name);
    if let Some(address) = of_caller.filter(|at| !is_of_ours(*at) && !is_itself(*at)) {
        return Some((address, true));
    }
    let all = everywhere(name);
    let first = *all.first()?;
    if all.iter().all(|other| *other == first) {
        return Some((first, true));
    }
    let by_arguments = all.iter().copied().find(|at| args.iter().any(|arg| belongs_to(*arg, object_of(*at))));
    Some((by_arguments.unwrap_or(first), false))
}

/// Whether an argument is the address of something that contains an address in this object. Buffers and buffer types
/// do: they consist of addresses of their object's functions.
fn belongs_to(argument: usize, object: usize) -> bool {
    const WORDS: usize = 16;
    (0..WORDS).map_while(|i| peek::word(argument.checked_add(8 * i)?)).any(|word| object_of(word) == object)
}

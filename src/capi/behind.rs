//! The host's own functions behind those that stand in front of them. In a linked build the linker says where they are. For a
//! preloaded library they are where the caller's own object would have found them without us: a host may be loaded in a
//! scope of its own (RTLD_LOCAL), or twice.

use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use libc::c_void;

use super::twin::{self, Twin};
use crate::host::symbols::{files, handle_of, scope, set_scope, weak_table};
use crate::host::{Flavour, peek};

/// Stands for a caller that belongs to the host that is served.
pub const SERVED: usize = 0;

/// What ik_llama.cpp has in one object. Nothing of ours stands in front of the last two.
const ONLY_IK: [&CStr; 3] = [c"iqk_mul_mat_4d", c"ggml_fused_up_gate", c"ggml_init"];

/// Calls of a name that are remembered, by where they come from.
const CALLERS: usize = 64;
/// Places in which the answer to a call may be.
const PLACES: usize = 8;

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
    calls: Calls,
    served: AtomicUsize,
}

/// What was found out for calls from some places. It holds as long as the objects are loaded that the place and the answer lie
/// in: as the loader binds a caller once.
struct Calls([Call; CALLERS]);

/// One place. Written by one thread at a time; who reads sees whether anybody wrote meanwhile.
struct Call {
    /// Odd while somebody writes.
    version: AtomicUsize,
    /// Where the calls return to; 0: nothing.
    caller: AtomicUsize,
    answer: AtomicUsize,
    /// The caller's object, and the answer's if that is an address; both 0 if they stay as long as the process.
    objects: [AtomicUsize; 2],
}

impl Calls {
    const fn new() -> Self {
        const fn call() -> Call {
            Call {
                version: AtomicUsize::new(0),
                caller: AtomicUsize::new(0),
                answer: AtomicUsize::new(0),
                objects: [const { AtomicUsize::new(0) }; 2],
            }
        }
        Self([const { call() }; CALLERS])
    }

    /// The places for calls that return to `caller`.
    fn places(&self, caller: usize) -> impl Iterator<Item = &Call> {
        let first = (caller.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % CALLERS;
        (0..PLACES).map(move |i| &self.0[(first + i) % CALLERS])
    }

    /// The answer for calls that return to `caller`, if it is known.
    fn find(&self, caller: usize) -> Option<usize> {
        for call in self.places(caller) {
            let version = call.version.load(Ordering::Acquire);
            if call.caller.load(Ordering::Relaxed) != caller {
                continue;
            }
            let answer = call.answer.load(Ordering::Relaxed);
            let objects = call.objects.each_ref().map(|object| object.load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if version & 1 != 0 || call.version.load(Ordering::Relaxed) != version {
                return None;
            }
            return (objects == [0; 2] || objects == [caller, answer].map(identity)).then_some(answer);
        }
        None
    }

    /// Remembers an answer; `stays` says that neither object goes. If all places are taken, an older one is forgotten.
    fn note(&self, caller: usize, answer: usize, stays: bool) {
        FIND_OBJECT.store(everybody(c"_dl_find_object").unwrap_or(0), Ordering::Relaxed);
        let is_mine = |call: &&Call| [0, caller].contains(&call.caller.load(Ordering::Relaxed));
        let Some(call) = self.places(caller).find(is_mine).or_else(|| self.places(caller).nth(answer % PLACES)) else {
            return;
        };
        let version = call.version.load(Ordering::Relaxed);
        let begun = call.version.compare_exchange(version, version | 1, Ordering::AcqRel, Ordering::Relaxed);
        if version & 1 != 0 || begun.is_err() {
            return;
        }
        fence(Ordering::Release);
        call.caller.store(caller, Ordering::Relaxed);
        call.answer.store(answer, Ordering::Relaxed);
        for (object, at) in call.objects.iter().zip([caller, answer]) {
            object.store(if stays { 0 } else { identity(at) }, Ordering::Relaxed);
        }
        call.version.store(version + 2, Ordering::Release);
    }
}

/// Answers below are no addresses.
const FIRST_ADDRESS: usize = 1 << 16;

/// The C library's `_dl_find_object`, if it has one and that was looked for; else 0. Not by its name, which would demand a version
/// of the C library.
static FIND_OBJECT: AtomicUsize = AtomicUsize::new(0);

/// A number of the object that an address lies in, which another one in its place has not. Asked without the loader's locks,
/// which another thread may have held as this process was forked; older C libraries have only a function that takes one.
fn identity(address: usize) -> usize {
    /// `struct dl_find_object` (dlfcn.h): flags, first and last byte, link map, unwind tables, and room.
    type Found = [usize; 12];
    if address < FIRST_ADDRESS {
        return 0;
    }
    let find = FIND_OBJECT.load(Ordering::Relaxed);
    if find == 0 {
        return loader_moment() as usize;
    }
    let mut found: Found = [0; 12];
    // SAFETY: the C library's function of this name has this type, and takes any address. A link map begins with an address and
    // a name.
    unsafe {
        let find = std::mem::transmute::<usize, unsafe extern "C" fn(usize, *mut Found) -> libc::c_int>(find);
        if find(address, &mut found) != 0 {
            return 0;
        }
        let [_, begin, end, map, ..] = found;
        let name = *(map as *const *const libc::c_char).add(1);
        let name = if name.is_null() { &[] } else { CStr::from_ptr(name).to_bytes() };
        name.iter().fold(map ^ begin.rotate_left(17) ^ end.rotate_left(31), |hash, byte| {
            (hash ^ usize::from(*byte)).wrapping_mul(0x100_0000_01b3)
        })
    }
}

/// A function of the host's, or what stands in front of it in the host's twin.
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
        Self { calls: Calls::new(), served: AtomicUsize::new(0) }
    }

    /// The function `name` for a call that returns to `caller`, with these first arguments; `linked` is what the linker says,
    /// or 0.
    pub fn find(&self, name: &str, linked: usize, caller: usize, args: [usize; 2]) -> Found {
        if linked != 0 {
            return Found { address: linked, is_served: true };
        }
        let served = self.served.load(Ordering::Acquire);
        if caller == SERVED && served != 0 {
            return Found { address: served, is_served: true };
        }
        let known = if caller == SERVED { None } else { self.calls.find(caller) };
        match known {
            Some(address) => Found { address, is_served: address == served },
            None => self.look(name, caller, args),
        }
    }

    #[cold]
    fn look(&self, name: &str, caller: usize, args: [usize; 2]) -> Found {
        let next = CString::new(name).ok().and_then(|name| Some((next(&name, caller, args)?, name)));
        // Nobody has it: whoever calls found nothing but ours, and gets nothing.
        let Some(((address, is_sure), name)) = next else { return Found { address: nobody(), is_served: false } };
        let object = Object::of(address);
        let begin = object.begin;
        // Other programs have functions of these names too.
        let is_ik = object.has(&ONLY_IK);
        let is_served = is_ik && is_served(Flavour::Ik, begin);
        let mut to = address;
        if is_served {
            set_scope(Flavour::Ik, object.keep());
            self.served.store(address, Ordering::Release);
        } else if is_ik && let Some(twin) = Twin::of(Flavour::Ik, begin, object.keep()) {
            to = twin.in_front_of(&name).unwrap_or(address);
        }
        if is_sure && caller != SERVED {
            // An ik_llama.cpp was kept just now: it calls its own functions as long as the process lives.
            self.calls.note(caller, to, is_ik && object_of(caller) == begin);
        }
        Found { address: to, is_served }
    }
}

/// A number that changes whenever an object is loaded or unloaded.
fn loader_moment() -> u64 {
    unsafe extern "C" fn first(info: *mut libc::dl_phdr_info, _: usize, to: *mut c_void) -> libc::c_int {
        // SAFETY: what the loader and the caller below pass.
        unsafe { *to.cast::<u64>() = ((*info).dlpi_adds << 32 | ((*info).dlpi_subs & 0xffff_ffff)).wrapping_add(1) };
        1
    }
    let mut moment = 0;
    // SAFETY: the place outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(first), (&raw mut moment).cast()) };
    moment
}

/// An object of the process: the program, or a library.
struct Object {
    /// Its first byte; 0 if there is none.
    begin: usize,
    handle: *mut c_void,
}

impl Object {
    /// The one that an address lies in.
    fn of(address: usize) -> Self {
        let object = Self { begin: object_of(address), handle: std::ptr::null_mut() };
        // The program's file is not named: that would be what it was started as, which is opened and closed again if it is a
        // path, and with that the record locks of this process on it would be gone.
        let file = if object.is_program() { None } else { file_of(address) };
        Self { begin: object.begin, handle: file.map_or(std::ptr::null_mut(), |file| handle_of(&file)) }
    }

    /// Whether it is the program itself, of which no file is a handle.
    fn is_program(&self) -> bool {
        // SAFETY: no memory is touched.
        self.begin != 0 && self.begin == object_of(unsafe { libc::getauxval(libc::AT_PHDR) } as usize)
    }

    /// A function where the object finds it: the program in the global scope, a library in itself and what it is linked with.
    fn find(&self, name: &CStr) -> Option<usize> {
        if self.is_program() {
            return everybody(name);
        }
        if self.handle.is_null() {
            return None;
        }
        // SAFETY: a C string, and an open handle.
        let address = unsafe { libc::dlsym(self.handle, name.as_ptr()) as usize };
        (address != 0).then_some(address)
    }

    /// Whether it has all these itself.
    fn has(&self, names: &[&CStr]) -> bool {
        self.begin != 0 && names.iter().all(|name| self.find(name).is_some_and(|at| object_of(at) == self.begin))
    }

    /// A handle that finds what it has before all else, and keeps it loaded; null for the program.
    fn keep(mut self) -> *mut c_void {
        std::mem::replace(&mut self.handle, std::ptr::null_mut())
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: opened by ourselves, used no more.
            unsafe { libc::dlclose(self.handle) };
        }
    }
}

/// Calls of the surface that are remembered, by where they come from.
static ASKED: Calls = Calls::new();

/// Who serves the host of a caller.
#[derive(Clone, Copy)]
pub enum Server {
    /// This library does; the host is of this flavour.
    Here(Flavour),
    /// A twin of this library.
    Twin(&'static Twin),
    /// A further host of a flavour, for which no twin could be had, stays alone.
    Nobody,
}

impl Server {
    /// As a word that is not 0.
    fn number(self) -> usize {
        match self {
            Self::Nobody => 1,
            Self::Here(Flavour::Llama) => 2,
            Self::Here(Flavour::Ik) => 3,
            Self::Twin(twin) => 4 + twin.number,
        }
    }

    fn from_number(number: usize) -> Self {
        match number {
            2 => Self::Here(Flavour::Llama),
            3 => Self::Here(Flavour::Ik),
            _ => number.checked_sub(4).and_then(Twin::at).map_or(Self::Nobody, Self::Twin),
        }
    }
}

/// Who serves the host that the caller of a function of ours belongs to, where the function is not one that stands in front
/// of a host's.
pub fn server(caller: usize) -> Server {
    if let Some(flavour) = twin::bound() {
        return Server::Here(flavour);
    }
    if let Some(number) = ASKED.find(caller) {
        return Server::from_number(number);
    }
    let server = look_for(caller);
    ASKED.note(caller, server.number(), false);
    server
}

#[cold]
fn look_for(caller: usize) -> Server {
    let object = Object::of(caller);
    if object.begin == object_of(nobody()) {
        // Part of the host's own object, or of a program's: the linker has put both together.
        return Server::Here(if is_linked_with_ik() { Flavour::Ik } else { Flavour::Llama });
    }
    // A program that loads hosts by itself has what everybody finds; then the only one that the process has.
    let init = object.find(c"ggml_init").or_else(|| everybody(c"ggml_init")).or_else(|| only(c"ggml_init"));
    let Some(init) = init else { return Server::Here(Flavour::Llama) };
    let host = Object::of(init);
    let flavour = if host.has(&ONLY_IK[1..]) { Flavour::Ik } else { Flavour::Llama };
    if is_served(flavour, host.begin) {
        // llama.cpp has several objects, which are found by who is linked with all of them.
        let by_caller = flavour == Flavour::Llama && object.find(c"ggml_init") == Some(init);
        set_scope(flavour, if by_caller { object.keep() } else { host.keep() });
        return Server::Here(flavour);
    }
    let begin = host.begin;
    Twin::of(flavour, begin, host.keep()).map_or(Server::Nobody, Server::Twin)
}

weak_table!(ggml_amx_only_ik; "ggml_fused_up_gate", "ggml_init",);

/// Whether the linker, or the loader in its place, has put us together with an ik_llama.cpp.
fn is_linked_with_ik() -> bool {
    // SAFETY: the table has two words; volatile, because they may be null.
    let [only_ik, init] =
        [0, 1].map(|i| unsafe { (&raw const ggml_amx_only_ik).cast::<usize>().add(i).read_volatile() });
    let or = |linked, name| if linked == 0 { everybody(name) } else { Some(linked) };
    match (or(only_ik, ONLY_IK[1]), or(init, ONLY_IK[2])) {
        (Some(only_ik), Some(init)) => object_of(only_ik) == object_of(init),
        _ => false,
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
pub(super) fn object_of(address: usize) -> usize {
    // SAFETY: all zeros are a value of it.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: any address may be asked for.
    let found = unsafe { libc::dladdr(address as *const c_void, &mut info) };
    if found == 0 { 0 } else { info.dli_fbase as usize }
}

/// Function `name` where `caller` finds it without us, and whether that goes for all its calls: behind us in the global scope, as
/// whoever stands in front of us there looks for it, or else where its own object does. Compilers turn the last call of a
/// function into a jump, so the caller may be another object than the one that called; then it is the only one that the
/// process has, or that which the arguments belong to, or the first.
fn next(name: &CStr, caller: usize, args: [usize; 2]) -> Option<(usize, bool)> {
    // Whoever calls a twin: calls come by way of the library that it is a twin of.
    if twin::bound().is_some() || caller == SERVED || object_of(caller) == object_of(nobody()) {
        let scope = scope(Flavour::Ik);
        // SAFETY: a C string, and a handle that is never closed.
        let address = if scope.is_null() { 0 } else { unsafe { libc::dlsym(scope, name.as_ptr()) as usize } };
        if address != 0 && !is_of_ours(address) {
            return Some((address, true));
        }
        if twin::bound().is_some() {
            return None;
        }
    }
    // SAFETY: a C string, and a pseudo-handle.
    let behind = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) as usize };
    if behind != 0 && !is_of_ours(behind) {
        return Some((behind, true));
    }
    // Who stands in front of us for others calls from the very function that it has.
    let is_itself = |address: usize| function_around(caller) == Some(address);
    let of_caller = || Object::of(caller).find(name).filter(|at| !is_of_ours(*at) && !is_itself(*at));
    if let Some(address) = of_caller() {
        return Some((address, true));
    }
    let all = everywhere(name);
    let (first, is_only) = (*all.first()?, all.iter().all(|other| *other == all[0]));
    let by_arguments = || all.iter().copied().find(|at| args.iter().any(|arg| belongs_to(*arg, object_of(*at))));
    Some(if is_only { (first, true) } else { (by_arguments().unwrap_or(first), false) })
}

/// Whether an argument is the address of something that has an address in this object: a buffer or a buffer type has those of
/// the functions that it is made of.
fn belongs_to(argument: usize, object: usize) -> bool {
    const WORDS: usize = 16;
    (0..WORDS).map_while(|i| peek::word(argument.checked_add(8 * i)?)).any(|word| object_of(word) == object)
}

/// A function where the process as a whole has it.
fn everybody(name: &CStr) -> Option<usize> {
    // SAFETY: a C string, and a pseudo-handle.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) as usize };
    (address != 0).then_some(address)
}

/// A function in all objects of the process that find it, but for ours.
fn everywhere(name: &CStr) -> Vec<usize> {
    let of_file = |file: &CString| {
        let handle = handle_of(file);
        if handle.is_null() {
            return None;
        }
        // SAFETY: a C string and an open handle, which is given back.
        let address = unsafe {
            let address = libc::dlsym(handle, name.as_ptr()) as usize;
            libc::dlclose(handle);
            address
        };
        (address != 0 && !is_of_ours(address)).then_some(address)
    };
    files().iter().filter_map(of_file).collect()
}

/// A function that only one object of the process has.
fn only(name: &CStr) -> Option<usize> {
    let all = everywhere(name);
    all.first().copied().filter(|first| all.iter().all(|other| other == first))
}

/// Whether an address is in this library or in a copy of it, apart from any host.
fn is_of_ours(address: usize) -> bool {
    let object = Object::of(address);
    object.begin == object_of(nobody()) || object.has(&[c"ggml_amx_bind"]) && !object.has(&[c"ggml_init"])
}

/// The first byte of the function that an address lies in, if the loader knows it.
fn function_around(address: usize) -> Option<usize> {
    // SAFETY: all zeros are a value of it; any address may be asked for.
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        let found = libc::dladdr(address as *const c_void, &mut info) != 0 && !info.dli_saddr.is_null();
        found.then_some(info.dli_saddr as usize)
    }
}

/// The file of the object that an address lies in.
pub(super) fn file_of(address: usize) -> Option<CString> {
    // SAFETY: all zeros are a value of it.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: any address may be asked for; a name is a C string of the loader's.
    unsafe {
        let found = libc::dladdr(address as *const c_void, &mut info) != 0 && !info.dli_fname.is_null();
        found.then(|| CStr::from_ptr(info.dli_fname).to_owned())
    }
}

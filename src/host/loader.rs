//! Questions to the dynamic loader: which objects (the program and its libraries) are loaded, what lies in which of
//! them, and where a name is found. Nothing is loaded by asking, and nothing here knows what a host is.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;

use libc::{c_char, c_int, c_void};

/// Where names are looked up: in an object and what it is linked with, or in one of the two places below.
///
/// Its handle is one of the loader's pseudo-handles, or open for ever.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scope(*mut c_void);

impl Scope {
    /// Where the process as a whole finds names.
    pub const GLOBAL: Self = Self(libc::RTLD_DEFAULT);
    /// What comes behind this library in the global scope.
    pub const BEHIND_US: Self = Self(libc::RTLD_NEXT);

    /// The scope of a handle.
    ///
    /// # Safety
    /// The handle must be [`Scope::raw`] of a scope, or open and never closed.
    pub unsafe fn from_raw(handle: *mut c_void) -> Self {
        Self(handle)
    }

    /// Its handle; null for [`Scope::GLOBAL`].
    pub fn raw(self) -> *mut c_void {
        self.0
    }

    /// The address of `name`, if it is found.
    pub fn find(self, name: &CStr) -> Option<*const c_void> {
        // SAFETY: a handle that is open, or a pseudo-handle.
        let address = unsafe { libc::dlsym(self.0, name.as_ptr()).cast_const() };
        (!address.is_null()).then_some(address)
    }
}

/// An open handle of an object, which stays loaded until this is dropped.
pub(crate) struct OpenObject(*mut c_void);

impl OpenObject {
    /// The object that was loaded from `file`; `None` if there is none. The empty name is the program's.
    pub fn loaded(file: &CStr) -> Option<Self> {
        if file.is_empty() {
            return None;
        }
        // SAFETY: nothing is loaded, so no code runs.
        let handle = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY) };
        (!handle.is_null()).then_some(Self(handle))
    }

    /// The address of `name` in the object or in what it is linked with.
    pub fn find(&self, name: &CStr) -> Option<*const c_void> {
        Scope(self.0).find(name)
    }

    /// Its scope. The object is never unloaded.
    pub fn keep(self) -> Scope {
        let scope = Scope(self.0);
        std::mem::forget(self);
        scope
    }
}

impl Drop for OpenObject {
    fn drop(&mut self) {
        // SAFETY: opened by `loaded`, and nothing else has the handle.
        unsafe { libc::dlclose(self.0) };
    }
}

/// An object of the process: the program, or a library.
pub(crate) struct LoadedObject {
    /// Its first byte; 0 if there is no object.
    pub begin: usize,
    /// `None` for the program, and for what cannot be opened.
    open: Option<OpenObject>,
}

impl LoadedObject {
    /// The object that an address lies in.
    pub fn of(address: usize) -> Self {
        let begin = object_of(address);
        // The program is not opened by name. Its name is the path that it was started by: the loader would open that
        // file and close it again, and with that the process would lose its record locks (`fcntl`) on it.
        let file = if is_program(begin) { None } else { file_of(address) };
        Self { begin, open: file.and_then(|file| OpenObject::loaded(&file)) }
    }

    /// The address of `name` where the object finds it: the program in the global scope, a library in itself and in
    /// what it is linked with.
    pub fn find(&self, name: &CStr) -> Option<usize> {
        let found = if is_program(self.begin) { Scope::GLOBAL.find(name) } else { self.open.as_ref()?.find(name) };
        found.map(|at| at as usize)
    }

    /// Whether all these names are its own.
    pub fn has(&self, names: &[&CStr]) -> bool {
        self.begin != 0 && names.iter().all(|name| self.find(name).is_some_and(|at| object_of(at) == self.begin))
    }

    /// A scope that finds what it has before all else; it is never unloaded. The global scope for the program.
    pub fn keep(self) -> Scope {
        self.open.map_or(Scope::GLOBAL, OpenObject::keep)
    }
}

/// Whether the object that begins here is the program.
fn is_program(begin: usize) -> bool {
    // SAFETY: it only reads what Linux told the process.
    begin != 0 && begin == object_of(unsafe { libc::getauxval(libc::AT_PHDR) } as usize)
}

/// What the loader knows of an address; `None` if it lies in no object.
fn info_of(address: usize) -> Option<libc::Dl_info> {
    let mut info = MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: any address may be asked for; if the answer is not 0, all fields were written.
    unsafe { (libc::dladdr(address as *const c_void, info.as_mut_ptr()) != 0).then(|| info.assume_init()) }
}

/// The first byte of the object that an address lies in; 0 if it lies in none.
pub(crate) fn object_of(address: usize) -> usize {
    info_of(address).map_or(0, |info| info.dli_fbase as usize)
}

/// The first byte of the object that this library is, or is a part of.
pub(crate) fn our_object() -> usize {
    object_of(our_object as *const () as usize)
}

/// The file of the object that an address lies in.
pub(crate) fn file_of(address: usize) -> Option<CString> {
    let name = info_of(address)?.dli_fname;
    // SAFETY: a C string of the loader's, or null.
    (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_owned())
}

/// The first byte of the function that an address lies in, if the loader knows it.
pub(crate) fn function_around(address: usize) -> Option<usize> {
    let begin = info_of(address)?.dli_saddr;
    (!begin.is_null()).then_some(begin as usize)
}

/// The files of all objects that are loaded; the program's may be empty.
pub(crate) fn files() -> Vec<CString> {
    unsafe extern "C" fn add(info: *mut libc::dl_phdr_info, _: usize, files: *mut c_void) -> c_int {
        // SAFETY: the loader passes the description of an object, and the list below.
        unsafe {
            if !(*info).dlpi_name.is_null() {
                (*files.cast::<Vec<CString>>()).push(CStr::from_ptr((*info).dlpi_name).to_owned());
            }
        }
        0
    }
    let mut files: Vec<CString> = Vec::new();
    // SAFETY: `add` gets the list, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(add), (&raw mut files).cast()) };
    files
}

/// How many objects were loaded and unloaded so far, in one number that is never 0.
pub(crate) fn changes() -> u64 {
    unsafe extern "C" fn first(info: *mut libc::dl_phdr_info, _: usize, to: *mut c_void) -> c_int {
        // SAFETY: the loader passes the description of an object, and the number below.
        unsafe { *to.cast::<u64>() = ((*info).dlpi_adds << 32 | ((*info).dlpi_subs & 0xffff_ffff)).wrapping_add(1) };
        1
    }
    let mut changes = 0;
    // SAFETY: `first` gets the number, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(first), (&raw mut changes).cast()) };
    changes
}

/// The loader's last message.
pub(crate) fn last_error() -> Option<String> {
    // SAFETY: no preconditions.
    let message: *const c_char = unsafe { libc::dlerror() };
    // SAFETY: a C string of the loader's, or null.
    (!message.is_null()).then(|| unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned())
}

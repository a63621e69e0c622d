//! Other hosts' products, from the shared objects that are made of `benches/hosts`.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use ggml_amx::format::WeightType;

use crate::codebooks;
use crate::machine::Spin;

type Create = unsafe extern "C" fn(*const c_char, *const c_char, i64, i64, *const c_void, c_int, c_int) -> *mut c_void;
type Form = unsafe extern "C" fn(*const c_void) -> *const c_char;
type Prepare = unsafe extern "C" fn(*mut c_void, i64, *const f32, *mut f32);
type Barrier = unsafe extern "C" fn(*mut c_void);
type Run = unsafe extern "C" fn(*mut c_void, c_int, c_int, c_int, Barrier, *mut c_void);
type Destroy = unsafe extern "C" fn(*mut c_void);

/// A host that is loaded, in one of its variants.
pub struct Host {
    /// `llama`, `ik`, `ik-rtr`.
    pub name: String,
    create: Create,
    form: Form,
    prepare: Prepare,
    run: Run,
    destroy: Destroy,
}

impl Host {
    /// Loads `NAME=PATH`, with its own libraries kept apart from everything else in the process. A name
    /// may end in `-VARIANT`.
    pub fn load(option: &str) -> Result<Self, String> {
        let (name, path) = option.split_once('=').ok_or_else(|| format!("--host {option}: NAME=PATH is wanted"))?;
        let path = CString::new(path).map_err(|e| e.to_string())?;
        // SAFETY: a library that was built for this; its constructors are those of its host.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL | libc::RTLD_DEEPBIND) };
        if library.is_null() {
            // SAFETY: dlerror gives a string after a failure.
            let why = unsafe { CStr::from_ptr(libc::dlerror()) };
            return Err(format!("host {name}: {}", why.to_string_lossy()));
        }
        let symbol = |symbol: &CStr| {
            // SAFETY: the library is open and stays so.
            let found = unsafe { libc::dlsym(library, symbol.as_ptr()) };
            if found.is_null() { Err(format!("host {name} has no {symbol:?}")) } else { Ok(found) }
        };
        // SAFETY: the names are ggml's, and so is the host.
        unsafe { codebooks::read(|name| symbol(name).ok()) };
        // SAFETY: the types are those of benches/hosts/host.h.
        unsafe {
            Ok(Self {
                name: name.to_string(),
                create: std::mem::transmute::<*mut c_void, Create>(symbol(c"bench_create")?),
                form: std::mem::transmute::<*mut c_void, Form>(symbol(c"bench_form")?),
                prepare: std::mem::transmute::<*mut c_void, Prepare>(symbol(c"bench_prepare")?),
                run: std::mem::transmute::<*mut c_void, Run>(symbol(c"bench_run")?),
                destroy: std::mem::transmute::<*mut c_void, Destroy>(symbol(c"bench_destroy")?),
            })
        }
    }

    fn variant(&self) -> &str {
        self.name.split_once('-').map_or("", |(_, variant)| variant)
    }

    /// Copies of a matrix in this host's form; None if it has none for this type.
    pub fn matrix(
        &self,
        ty: WeightType,
        k: usize,
        n: usize,
        plain: &[u8],
        copies: usize,
        threads: usize,
    ) -> Option<Matrix<'_>> {
        let ty = CString::new(ty.info().name).expect("names have no zeros");
        let variant = CString::new(self.variant()).expect("names have no zeros");
        let (k, n, plain) = (k as i64, n as i64, plain.as_ptr().cast());
        // SAFETY: `plain` holds n rows of k weights of this type.
        let handle =
            unsafe { (self.create)(ty.as_ptr(), variant.as_ptr(), k, n, plain, copies as c_int, threads as c_int) };
        (!handle.is_null()).then(|| Matrix { host: self, handle })
    }
}

/// Weights in a host's form.
pub struct Matrix<'h> {
    /// Whose they are.
    pub host: &'h Host,
    handle: *mut c_void,
}

// SAFETY: hosts give every thread its own part of the product.
unsafe impl Sync for Matrix<'_> {}

impl Matrix<'_> {
    /// What the host calls the form.
    pub fn form(&self) -> String {
        // SAFETY: the handle is alive; the string belongs to the host and stays.
        unsafe { CStr::from_ptr((self.host.form)(self.handle)) }.to_string_lossy().into_owned()
    }

    /// Fixes activations and result.
    ///
    /// # Safety
    /// Both must be as large as the header says and outlive the runs.
    pub unsafe fn prepare(&self, m: usize, x: *const f32, y: *mut f32) {
        // SAFETY: activations and result are as large as benches/hosts/host.h says and outlive the runs (this
        // function's contract).
        unsafe { (self.host.prepare)(self.handle, m as i64, x, y) };
    }

    /// This thread's part.
    ///
    /// # Safety
    /// All threads must call it alike, after [`Matrix::prepare`].
    pub unsafe fn run(&self, copy: usize, index: usize, count: usize, spin: &Spin) {
        let context = std::ptr::from_ref(spin).cast_mut().cast();
        // SAFETY: all threads come here after `prepare` (this function's contract); the barrier casts the context back.
        unsafe { (self.host.run)(self.handle, copy as c_int, index as c_int, count as c_int, barrier, context) };
    }
}

impl Drop for Matrix<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle is alive until here.
        unsafe { (self.host.destroy)(self.handle) };
    }
}

unsafe extern "C" fn barrier(context: *mut c_void) {
    // SAFETY: the context is the barrier that `run` was given.
    unsafe { &*context.cast::<Spin>() }.wait();
}

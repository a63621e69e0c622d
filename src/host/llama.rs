//! llama.cpp's ggml: the one in this process, looked for once.

use std::ops::Deref;

use libc::c_void;

use super::core::Core;
use super::discover;
use super::flavour::Flavour;
use super::foreign::caught;
use super::hbm::use_hbm;
use super::objects::RawBufferType;
use super::symbols::{Symbols, host_symbols};
use super::tensor::RawTensor;
use crate::debug;
use crate::diag::log;
use crate::process::Once;

host_symbols! {
    /// The functions that only llama.cpp's ggml has.
    LlamaSymbols in ggml_amx_llama_symbols;
    ggml_log_internal: unsafe extern "C" fn(i32, *const libc::c_char, ...);
    ggml_barrier: unsafe extern "C" fn(*mut c_void);
    ggml_backend_cpu_reg: unsafe extern "C-unwind" fn() -> *mut c_void;
    ggml_backend_reg_dev_get: unsafe extern "C-unwind" fn(*mut c_void, usize) -> *mut c_void;
    ? ggml_backend_dev_supports_op: unsafe extern "C-unwind" fn(*mut c_void, *const RawTensor) -> u8;
    ? ggml_backend_cpu_init: unsafe extern "C-unwind" fn() -> *mut c_void;
    ? ggml_backend_cpu_set_n_threads: unsafe extern "C-unwind" fn(*mut c_void, i32);
    ? ggml_backend_graph_compute: unsafe extern "C-unwind" fn(*mut c_void, *mut c_void) -> i32;
    // A struct is returned in memory whose address is the first argument.
    ? ggml_graph_plan: unsafe extern "C-unwind" fn(*mut usize, *mut c_void, i32, *mut c_void) -> *mut usize;
    ? ggml_backend_free: unsafe extern "C-unwind" fn(*mut c_void);
    ? _Z35ggml_backend_cpu_repack_buffer_typev: unsafe extern "C-unwind" fn() -> *mut RawBufferType;
}

/// A llama.cpp's ggml.
pub struct Host {
    core: Core,
    pub(super) llama: LlamaSymbols,
    /// Its CPU device, which the buffer type belongs to; may be null.
    pub device: *mut c_void,
}

// SAFETY: function pointers, and a device that lives as long as the process.
unsafe impl Send for Host {}
// SAFETY: as above, and nothing in it changes.
unsafe impl Sync for Host {}

impl Deref for Host {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl Host {
    /// The ggml in this process, which is looked for at the first call. The error is one line for the log.
    pub fn get() -> Result<&'static Self, &'static str> {
        static HOST: Once<Result<Host, String>> = Once::new();
        let host = HOST.get().unwrap_or_else(|| {
            let _until_it_is_there = log::hold();
            HOST.get_or_init(|| caught(Self::find))
        });
        host.as_ref().map_err(String::as_str)
    }

    /// The host that calls one of our functions. It has them from us, so it was found before.
    pub(super) fn that_calls() -> &'static Self {
        log::deliver();
        Self::get().unwrap_or_else(|reason| panic!("a buffer without a host: {reason}"))
    }

    fn find() -> Result<Self, String> {
        let (symbols, llama) = (Symbols::find(Flavour::Llama)?, LlamaSymbols::find(Flavour::Llama)?);
        // SAFETY: the function is ggml's of that name.
        unsafe { log::set_sink(llama.ggml_log_internal) };
        let (core, ()) = discover::discover(&symbols, Flavour::Llama, |layout, context| {
            // SAFETY: the host's functions; the context is alive.
            layout.tensor.extra = unsafe {
                let repack = llama._Z35ggml_backend_cpu_repack_buffer_typev.map_or(std::ptr::null_mut(), |get| get());
                discover::extra(&symbols, &layout.tensor, context, repack)
            };
            // The word after the device is where the context is, so a device must be there.
            discover::ensure(layout.buffer_type.device.is_some(), || "ggml_backend_buft_get_device is missing".into())
        })?;
        // SAFETY: the host's functions; device 0 of the CPU registry always exists.
        let device = unsafe {
            let reg = (llama.ggml_backend_cpu_reg)();
            if reg.is_null() { std::ptr::null_mut() } else { (llama.ggml_backend_reg_dev_get)(reg, 0) }
        };
        use_hbm(Flavour::Llama);
        debug!("MUL_MAT is operation {}", core.ops.mul_mat);
        Ok(Self { core, llama, device })
    }

    /// Waits for all threads of the operation (`ggml_barrier`).
    ///
    /// # Safety
    /// `threadpool` must be that of the compute parameters, and all its threads must call this.
    #[inline]
    pub unsafe fn barrier(&self, threadpool: *mut c_void) {
        // SAFETY: the pool is alive, and all its threads come here.
        unsafe { (self.llama.ggml_barrier)(threadpool) }
    }
}

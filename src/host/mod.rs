//! The host: a ggml in the same process. Its structs, whose layout is found out, and the functions we call in it. Nothing
//! above this floor trusts a foreign pointer before [`Host::get`] succeeded.

#[allow(missing_docs)] // fields are documented where ggml declares them
pub mod abi;
pub mod buffer_type;
pub mod cxx;
mod discover;
pub mod ik;
mod layout;
mod objects;
pub mod op;
mod proof;
pub(crate) mod symbols;
mod tensor;

use std::ffi::{CStr, CString};
use std::sync::OnceLock;

use crate::debug;
use crate::diag::log;
use crate::format::WeightType;
use discover::Found;
use layout::HostLayout;
pub use objects::{Buffer, Interface, RawBuffer, RawBufferType};
use symbols::host_symbols;
pub use symbols::{Symbols, make_readable};
pub use tensor::{RawTensor, Tensor};

/// Operation numbers of this host, read off real graph nodes (they move between ggml versions).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ops {
    /// `GGML_OP_MUL_MAT`.
    pub mul_mat: i32,
    /// `GGML_OP_MUL_MAT_ID`.
    pub mul_mat_id: i32,
    /// `NONE`, `RESHAPE`, `VIEW`, `PERMUTE`, `TRANSPOSE`: nodes that read no data.
    pub no_data: [i32; 5],
}

/// Which of our packed types a host has: one bit for each of [`WeightType::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostTypes(u64);

impl HostTypes {
    fn bit(ty: WeightType) -> u64 {
        const { assert!(WeightType::ALL.len() <= 64) };
        1 << WeightType::ALL.iter().position(|t| *t == ty).expect("one of all types")
    }

    fn add(&mut self, ty: WeightType) {
        self.0 |= Self::bit(ty);
    }

    fn has(self, ty: WeightType) -> bool {
        self.0 & Self::bit(ty) != 0
    }
}

host_symbols! {
    /// The functions that only llama.cpp's ggml has.
    LlamaSymbols in ggml_amx_llama_symbols;
    ggml_log_internal: unsafe extern "C" fn(i32, *const libc::c_char, ...);
    ggml_barrier: unsafe extern "C" fn(*mut libc::c_void);
    ggml_backend_cpu_reg: unsafe extern "C" fn() -> *mut libc::c_void;
    ggml_backend_reg_dev_get: unsafe extern "C" fn(*mut libc::c_void, usize) -> *mut libc::c_void;
    ? ggml_backend_dev_supports_op: unsafe extern "C" fn(*mut libc::c_void, *const RawTensor) -> bool;
    ? ggml_backend_cpu_init: unsafe extern "C" fn() -> *mut libc::c_void;
    ? ggml_backend_cpu_set_n_threads: unsafe extern "C" fn(*mut libc::c_void, i32);
    ? ggml_backend_graph_compute: unsafe extern "C" fn(*mut libc::c_void, *mut libc::c_void) -> i32;
    ? ggml_backend_free: unsafe extern "C" fn(*mut libc::c_void);
}

/// A ggml whose layout was found out.
pub struct Host {
    symbols: Symbols,
    llama: LlamaSymbols,
    layout: HostLayout,
    /// Its operation numbers.
    pub ops: Ops,
    /// Its weight types.
    types: HostTypes,
    /// Its CPU device, to hang the buffer type on; may be null.
    pub device: *mut libc::c_void,
}

// SAFETY: function pointers and a device that lives as long as the process.
unsafe impl Send for Host {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for Host {}

impl Host {
    /// The ggml in this process, looked for and proved once. The error is one line for the log.
    pub fn get() -> Result<&'static Host, &'static str> {
        static HOST: OnceLock<Result<Host, String>> = OnceLock::new();
        let host = HOST.get().unwrap_or_else(|| {
            let _until_it_is_there = log::hold();
            HOST.get_or_init(Self::find)
        });
        host.as_ref().map_err(String::as_str)
    }

    fn find() -> Result<Host, String> {
        let (symbols, llama) = (Symbols::find()?, LlamaSymbols::find()?);
        // SAFETY: the function is ggml's of that name.
        unsafe { log::set_sink(llama.ggml_log_internal) };
        let (Found { layout, ops, types }, ()) = discover::discover(&symbols, |layout, _| {
            // The context of a buffer type lies behind its device.
            discover::ensure(layout.buffer_type.device.is_some(), || "ggml_backend_buft_get_device is missing".into())
        })?;
        // SAFETY: both take what they are given here; the CPU registry always exists in a CPU host.
        let device = unsafe {
            let reg = (llama.ggml_backend_cpu_reg)();
            if reg.is_null() { std::ptr::null_mut() } else { (llama.ggml_backend_reg_dev_get)(reg, 0) }
        };
        debug!("MUL_MAT is operation {}", ops.mul_mat);
        Ok(Host { symbols, llama, layout, ops, types, device })
    }

    /// The tensor at an address; `None` if that is null.
    ///
    /// # Safety
    /// One of the host's tensors must be there for as long as what is returned is used.
    #[inline]
    pub unsafe fn tensor(&'static self, at: *const RawTensor) -> Option<Tensor> {
        // SAFETY: passed on.
        unsafe { Tensor::new(at, &self.layout.tensor) }
    }

    /// The buffer at an address; `None` if that is null.
    ///
    /// # Safety
    /// One of the host's buffers must be there for as long as what is returned is used.
    #[inline]
    pub unsafe fn buffer(&'static self, at: *mut RawBuffer) -> Option<Buffer> {
        // SAFETY: passed on.
        unsafe { Buffer::new(at, &self.layout.buffer) }
    }

    /// Whether a buffer type is memory that the host's own code reads.
    ///
    /// # Safety
    /// It must be a live buffer type of the host's.
    pub unsafe fn is_host(&self, buft: *mut RawBufferType) -> bool {
        // SAFETY: promised by the caller.
        unsafe { (self.symbols.ggml_backend_buft_is_host)(buft) }
    }

    /// The packed type with ggml's number `number`, if this host has it.
    pub fn weight_type(&self, number: i32) -> Option<WeightType> {
        WeightType::from_ggml(number).filter(|ty| self.types.has(*ty))
    }

    /// `ggml_backend_buffer_init`: a host buffer object around our interface and context.
    ///
    /// # Safety
    /// `buft` must outlive the buffer; `context` must be what the interface's functions expect.
    pub unsafe fn buffer_init(
        &self,
        buft: *mut RawBufferType,
        interface: Interface,
        context: *mut libc::c_void,
        size: usize,
    ) -> *mut RawBuffer {
        // SAFETY: passed on; the interface has at least as many members as the host's.
        unsafe { (self.symbols.ggml_backend_buffer_init)(buft, interface, context, size) }
    }

    /// Waits for all threads of the operation.
    ///
    /// # Safety
    /// `threadpool` must come from the compute parameters, and all its threads must call this.
    #[inline]
    pub unsafe fn barrier(&self, threadpool: *mut libc::c_void) {
        // SAFETY: passed on.
        unsafe { (self.llama.ggml_barrier)(threadpool) }
    }

    /// Bytes of a tensor's plain data, from its first to its last.
    ///
    /// # Safety
    /// `tensor` must be a valid tensor.
    pub unsafe fn nbytes(&self, tensor: *const RawTensor) -> usize {
        // SAFETY: passed on.
        unsafe { (self.symbols.ggml_nbytes)(tensor) }
    }

    /// The host's name of an operation number that came from a real node.
    pub fn op_name(&self, op: i32) -> String {
        // SAFETY: the number came from the host, so it is in the host's table of static strings.
        unsafe { CStr::from_ptr((self.symbols.ggml_op_name)(op)).to_string_lossy().into_owned() }
    }

    /// Says `message` through the host's log and ends the process the way ggml does.
    pub fn abort(&self, message: &str) -> ! {
        log::last_words(message);
        let message = CString::new(format!("ggml-amx: {message}").replace('\0', "")).unwrap_or_default();
        // SAFETY: ggml_abort(file, line, format, ...) with one C string; it does not return.
        unsafe { (self.symbols.ggml_abort)(c"ggml-amx".as_ptr(), 0, c"%s".as_ptr(), message.as_ptr()) };
        std::process::abort()
    }
}

//! The host: a ggml in the same process. Its structs, whose layout is found out, and the functions we call in it. Nothing
//! above this floor trusts a foreign pointer before [`Host::get`] succeeded.

#[allow(missing_docs)] // fields are documented where ggml declares them
pub mod abi;
pub mod budget;
pub mod buffer_type;
mod callbacks;
mod core;
pub mod cxx;
mod discover;
mod foreign;
pub mod ik;
mod layout;
mod objects;
pub mod op;
mod operands;
pub mod peek;
mod proof;
pub(crate) mod symbols;
mod tensor;

use crate::process::Once;
use std::ops::Deref;

use crate::cpu::memory;
use crate::diag::border;
use crate::diag::log;
use crate::format::WeightType;
use crate::{debug, info};
pub use core::Core;
use discover::Found;
pub use objects::{Buffer, Interface, RawBuffer, RawBufferType};
use symbols::host_symbols;
pub use symbols::{Symbols, make_readable};
pub use tensor::{RawTensor, Tensor};

/// What kind of ggml a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// llama.cpp's, [`Host`].
    Llama,
    /// ik_llama.cpp's, [`ik::IkHost`].
    Ik,
}

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
    ggml_backend_cpu_reg: unsafe extern "C-unwind" fn() -> *mut libc::c_void;
    ggml_backend_reg_dev_get: unsafe extern "C-unwind" fn(*mut libc::c_void, usize) -> *mut libc::c_void;
    ? ggml_backend_dev_supports_op: unsafe extern "C-unwind" fn(*mut libc::c_void, *const RawTensor) -> u8;
    ? ggml_backend_cpu_init: unsafe extern "C-unwind" fn() -> *mut libc::c_void;
    ? ggml_backend_cpu_set_n_threads: unsafe extern "C-unwind" fn(*mut libc::c_void, i32);
    ? ggml_backend_graph_compute: unsafe extern "C-unwind" fn(*mut libc::c_void, *mut libc::c_void) -> i32;
    // A struct is returned in memory whose address is the first argument.
    ? ggml_graph_plan: unsafe extern "C-unwind" fn(*mut usize, *mut libc::c_void, i32, *mut libc::c_void) -> *mut usize;
    ? ggml_backend_free: unsafe extern "C-unwind" fn(*mut libc::c_void);
    ? _Z35ggml_backend_cpu_repack_buffer_typev: unsafe extern "C-unwind" fn() -> *mut RawBufferType;
}

/// What `look` finds out about a host; a panic in it, and an exception of the host's, is an error like any other: nothing is
/// changed before it is done, and the host goes on without this library.
fn caught<T>(look: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let thrown = || Err("the host threw an exception while it was looked at".into());
    border::caught("what looks at a host", || foreign::catch(look))?.unwrap_or_else(thrown)
}

/// Weights lie where the replaced code would have had them.
fn use_hbm(flavour: Flavour) {
    if let Some(functions) = symbols::hbm(flavour) {
        info!("weights lie in high-bandwidth memory, by hbw_posix_memalign: the host was built with GGML_CPU_HBM");
        memory::set_host_allocator(functions);
    }
}

/// A llama.cpp's ggml.
pub struct Host {
    core: Core,
    llama: LlamaSymbols,
    /// Its CPU device, to hang the buffer type on; may be null.
    pub device: *mut libc::c_void,
}

// SAFETY: function pointers and a device that lives as long as the process.
unsafe impl Send for Host {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for Host {}

impl Deref for Host {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl Host {
    /// The ggml in this process, looked for and proved once. The error is one line for the log.
    pub fn get() -> Result<&'static Host, &'static str> {
        static HOST: Once<Result<Host, String>> = Once::new();
        let host = HOST.get().unwrap_or_else(|| {
            let _until_it_is_there = log::hold();
            HOST.get_or_init(|| caught(Self::find))
        });
        host.as_ref().map_err(String::as_str)
    }

    fn find() -> Result<Host, String> {
        let (symbols, llama) = (Symbols::find(Flavour::Llama)?, LlamaSymbols::find(Flavour::Llama)?);
        // SAFETY: the function is ggml's of that name.
        unsafe { log::set_sink(llama.ggml_log_internal) };
        let (Found { layout, ops, types }, ()) = discover::discover(&symbols, Flavour::Llama, |layout, context| {
            // SAFETY: the host's functions; the context is alive.
            layout.tensor.extra = unsafe {
                let repack = llama._Z35ggml_backend_cpu_repack_buffer_typev.map_or(std::ptr::null_mut(), |get| get());
                discover::extra(&symbols, &layout.tensor, context, repack)
            };
            // The context of a buffer type lies behind its device.
            discover::ensure(layout.buffer_type.device.is_some(), || "ggml_backend_buft_get_device is missing".into())
        })?;
        // SAFETY: both take what they are given here; the CPU registry always exists in a CPU host.
        let device = unsafe {
            let reg = (llama.ggml_backend_cpu_reg)();
            if reg.is_null() { std::ptr::null_mut() } else { (llama.ggml_backend_reg_dev_get)(reg, 0) }
        };
        use_hbm(Flavour::Llama);
        debug!("MUL_MAT is operation {}", ops.mul_mat);
        Ok(Host { core: Core { symbols, layout, ops, types }, llama, device })
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_while_a_host_is_looked_at_is_an_error() {
        assert_eq!(caught(|| Ok(1)), Ok(1));
        assert_eq!(caught::<i32>(|| Err("why".into())), Err("why".to_string()));
        assert!(caught::<i32>(|| panic!("planted")).unwrap_err().contains("a bug in ggml-amx"));
    }
}

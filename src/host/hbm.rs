//! High-bandwidth memory. A host that was built for it (`GGML_CPU_HBM`) takes memory for weights from libmemkind; ours
//! comes from there too then.

use libc::{c_int, c_void};

use super::flavour::Flavour;
use super::symbols::{find, weak_table};
use crate::cpu::memory::{self, HostAllocator};
use crate::info;

weak_table!(
    ggml_amx_hbm_symbols;
    "hbw_posix_memalign",
    "hbw_free",
    "_Z32ggml_backend_cpu_hbm_buffer_typev",
    "ggml_backend_cpu_hbm_buffer_type",
);

/// libmemkind's functions, if the host of this flavour was built for them. That it was is told by its own buffer type:
/// any other library of the process may use libmemkind as well.
fn functions(flavour: Flavour) -> Option<HostAllocator> {
    let function = |index, name| find(flavour.scope(), ggml_amx_hbm_symbols(index), name);
    function(2, c"_Z32ggml_backend_cpu_hbm_buffer_typev")
        .or_else(|| function(3, c"ggml_backend_cpu_hbm_buffer_type"))?;
    let (allocate, free) = (function(0, c"hbw_posix_memalign")?, function(1, c"hbw_free")?);
    type PosixMemalign = unsafe extern "C" fn(*mut *mut c_void, usize, usize) -> c_int;
    type HbwFree = unsafe extern "C" fn(*mut c_void);
    // SAFETY: libmemkind's functions of these names have these types.
    unsafe {
        let allocate = std::mem::transmute::<*const c_void, PosixMemalign>(allocate);
        Some(HostAllocator { allocate, free: std::mem::transmute::<*const c_void, HbwFree>(free) })
    }
}

/// From now on memory for weights comes from where the host of this flavour takes it.
pub(super) fn use_hbm(flavour: Flavour) {
    if let Some(functions) = functions(flavour) {
        info!("weights lie in high-bandwidth memory, by hbw_posix_memalign: the host was built with GGML_CPU_HBM");
        memory::set_host_allocator(functions);
    }
}

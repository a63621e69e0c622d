//! The functions that stand in front of ik_llama.cpp's, under the names that `ld --wrap` gives them; a preloaded library
//! has them under the plain names too. Not declared in the header: nobody calls them by name.
//!
//! `__real_X` is what the linker calls the host's own; without it, it is the next `X` after this library.

use std::ffi::CString;
use std::sync::atomic::{AtomicUsize, Ordering};

use libc::{c_char, c_int, c_long, c_void};

use super::jump::jumps_on;
use crate::host::ik::abi::{IkPlan, RawBackend};
use crate::host::ik::attention::{self, FlashAttn, Rows};
use crate::host::ik::place::TensorAlloc;
use crate::host::ik::seam::{self, Mul4d};
use crate::host::symbols::weak_table;
use crate::host::{RawBuffer, RawBufferType, RawTensor};

/// The names, once.
macro_rules! wrapped {
    ($($name:literal,)*) => {
        weak_table!(ggml_amx_wrapped; $(concat!("__real_", $name),)*);

        const NAMES: &[&str] = &[$($name),*];
        static FOUND: [AtomicUsize; NAMES.len()] = [const { AtomicUsize::new(0) }; NAMES.len()];
    };
}

wrapped! {
    "iqk_mul_mat_4d",
    "iqk_mul_mat_moe",
    "iqk_moe_fused_up_gate",
    "iqk_flash_attn_noalibi",
    "ggml_graph_compute",
    "ggml_backend_cpu_init",
    "ggml_backend_reg_get_count",
    "ggml_backend_tensor_alloc",
    "ggml_backend_alloc_ctx_tensors_from_buft",
}

/// The host's own function number `index`. Ends the process if there is none: somebody called it, so it is there.
fn real(index: usize) -> usize {
    let known = FOUND[index].load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    // SAFETY: the table has a word per name, filled by the linker; volatile, because it may be null.
    let linked = unsafe { (&raw const ggml_amx_wrapped).cast::<usize>().add(index).read_volatile() };
    let name = CString::new(NAMES[index]).expect("a name without NUL");
    let address = match linked {
        // SAFETY: a C string and a pseudo-handle.
        0 => unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) as usize },
        linked => linked,
    };
    if address == 0 {
        eprintln!("ggml-amx: the host's {} was not found behind ours", NAMES[index]);
        std::process::abort();
    }
    FOUND[index].store(address, Ordering::Relaxed);
    address
}

/// The host's own function of this name, as one of this type.
macro_rules! real {
    ($name:literal, $ty:ty) => {{
        const INDEX: usize = index_of($name);
        // SAFETY: the host's function of this name has this type.
        unsafe { std::mem::transmute::<usize, $ty>(real(INDEX)) }
    }};
}

/// A function that stands in front of the host's of this name and may call that one.
macro_rules! in_front_of {
    ($name:literal: $wrap:ident($($arg:ident: $ty:ty),*) -> $ret:ty, |$real:ident| $body:expr) => {
        #[doc = concat!("`", $name, "`.\n\n# Safety\nAs for the host's function.")]
        #[unsafe(no_mangle)]
        #[allow(clippy::too_many_arguments)] // the host's
        pub unsafe extern "C" fn $wrap($($arg: $ty),*) -> $ret {
            type Real = unsafe extern "C" fn($($ty),*) -> $ret;
            let $real = real!($name, Real);
            // SAFETY: passed on.
            unsafe { $body }
        }
    };
}

/// The number of a name.
const fn index_of(name: &str) -> usize {
    let mut index = 0;
    while index < NAMES.len() {
        let (a, b) = (NAMES[index].as_bytes(), name.as_bytes());
        let mut i = 0;
        while i < a.len() && i < b.len() && a[i] == b[i] {
            i += 1;
        }
        if i == a.len() && i == b.len() {
            return index;
        }
        index += 1;
    }
    panic!("no such name")
}

in_front_of! {
    "iqk_mul_mat_4d": __wrap_iqk_mul_mat_4d(
        nx: c_long, ny: c_long, ne00: c_long, ne02: c_long, ne03: c_long, ne12: c_long, ne13: c_long, nb02: c_long,
        nb03: c_long, nb12: c_long, nb13: c_long, nb2: c_long, nb3: c_long, type_a: c_int, a: *const c_void,
        stride_a: c_long, type_b: c_int, b: *const c_void, stride_b: c_long, c: *mut f32, stride_c: c_long,
        ith: c_int, nth: c_int
    ) -> bool, |real| {
        let args = Mul4d {
            nx, ny, ne00, ne02, ne03, ne12, ne13, nb02, nb03, nb12, nb13, nb2, nb3, type_a, a, stride_a, type_b, b,
            stride_b, c, stride_c, ith, nth,
        };
        seam::mul_mat_4d(args, |x| real(
            x.nx, x.ny, x.ne00, x.ne02, x.ne03, x.ne12, x.ne13, x.nb02, x.nb03, x.nb12, x.nb13, x.nb2, x.nb3, x.type_a,
            x.a, x.stride_a, x.type_b, x.b, x.stride_b, x.c, x.stride_c, x.ith, x.nth,
        ))
    }
}

in_front_of! {
    "iqk_mul_mat_moe": __wrap_iqk_mul_mat_moe(
        nx: c_long, ny: c_long, ne00: c_long, ne11: c_int, type_a: c_int, a: *const c_void, stride_a: c_long,
        type_b: c_int, b: *const c_void, stride_b: c_long, c: *mut f32, nb1: c_long, nb2: c_long, rows: *const c_void,
        ith: c_int, nth: c_int
    ) -> bool, |real| seam::mul_mat_moe(a, (nx, stride_a), c, (ith, nth), |a, block, (ith, nth)| real(
        block.rows as c_long, ny, ne00, ne11, type_a, a, stride_a, type_b, b, stride_b, c.wrapping_add(block.first), nb1,
        nb2, rows, ith, nth,
    ))
}

in_front_of! {
    "iqk_moe_fused_up_gate": __wrap_iqk_moe_fused_up_gate(
        nx: c_long, ny: c_long, ne00: c_long, ne11: c_int, unary: c_int, type_a: c_int, up: *const c_void,
        gate: *const c_void, stride_a: c_long, type_b: c_int, b: *const c_void, stride_b: c_long,
        up_bias: *const c_char, gate_bias: *const c_char, c: *mut f32, nb1: c_long, nb2: c_long, rows: *const c_void,
        limit: f32, ith: c_int, nth: c_int
    ) -> bool, |real| {
        seam::fused_up_gate([up, gate], (nx, stride_a), c, (ith, nth), |[up, gate], block, (ith, nth)| {
            let of_block = |bias: *const c_char| match bias.is_null() {
                true => bias,
                false => bias.wrapping_add(block.first * size_of::<f32>()),
            };
            real(
                block.rows as c_long, ny, ne00, ne11, unary, type_a, up, gate, stride_a, type_b, b, stride_b,
                of_block(up_bias), of_block(gate_bias), c.wrapping_add(block.first), nb1, nb2, rows, limit, ith, nth,
            )
        })
    }
}

jumps_on! {
    /// `iqk_flash_attn_noalibi`, which has one argument more at the end in later versions.
    ///
    /// # Safety
    /// As for the host's function.
    #[unsafe(no_mangle)]
    __wrap_iqk_flash_attn_noalibi: ask_flash_attn, or real_flash_attn, FLASH_ATTN_ON_STACK
}

/// Of 39 arguments that are no floats, all but the first six.
const FLASH_ATTN_ON_STACK: usize = 39 - 6;

extern "C" fn real_flash_attn() -> usize {
    const INDEX: usize = index_of("iqk_flash_attn_noalibi");
    real(INDEX)
}

/// Whether the call was one of ours, and is done.
///
/// # Safety
/// As for the host's function.
#[rustfmt::skip]
unsafe extern "C" fn ask_flash_attn(
    type_q: c_int, type_mask: c_int, max_bias: f32, neq3: c_int, neq2: c_int, nbq3: c_long, nbq2: c_long,
    nek3: c_int, nek2: c_int, nbk3: c_long, nbk2: c_long, nev3: c_int, nev2: c_int, nbv3: c_long, nbv2: c_long,
    ne2: c_int, ne1: c_int, nb1: c_long, type_k: c_int, type_v: c_int, dk: c_int, dv: c_int, neq1: c_int,
    nek1: c_int, stride_q: c_int, stride_k: c_int, stride_v: c_int, stride_m: c_int, q: *const c_void,
    k: *const c_void, v: *const c_void, mask: *const c_void, sinks: *const c_void, scale: f32, softcap: f32,
    qkv: *mut f32, _work: *mut c_void, _barrier: *const c_void, _barrier_data: *mut c_void, ith: c_int, nth: c_int,
    _n_swa: c_int,
) -> bool {
    let args = FlashAttn {
        types: [type_q, type_mask, type_k, type_v], max_bias, scale, softcap,
        q: Rows { data: q, ne: [dk, neq1, neq2, neq3], nb: [stride_q.into(), nbq2, nbq3] },
        k: Rows { data: k, ne: [dk, nek1, nek2, nek3], nb: [stride_k.into(), nbk2, nbk3] },
        v: Rows { data: v, ne: [dv, nek1, nev2, nev3], nb: [stride_v.into(), nbv2, nbv3] },
        mask, stride_m, sinks, result: qkv, nb1, heads: ne1, tokens: ne2, ith, nth,
    };
    // SAFETY: passed on.
    unsafe { attention::flash_attn(&args) }
}

in_front_of! {
    "ggml_graph_compute": __wrap_ggml_graph_compute(graph: *mut c_void, plan: *const IkPlan) -> c_int,
    |real| seam::graph_compute(graph, plan, || real(graph, plan))
}

in_front_of! {
    "ggml_backend_cpu_init": __wrap_ggml_backend_cpu_init() -> *mut RawBackend, |real| {
        let backend = real();
        seam::widen_cpu_backend(backend);
        backend
    }
}

in_front_of! {
    "ggml_backend_reg_get_count": __wrap_ggml_backend_reg_get_count() -> usize, |real| seam::register(|| real())
}

fn real_tensor_alloc() -> TensorAlloc {
    real!("ggml_backend_tensor_alloc", TensorAlloc)
}

in_front_of! {
    "ggml_backend_tensor_alloc": __wrap_ggml_backend_tensor_alloc(
        buffer: *mut RawBuffer, tensor: *mut RawTensor, address: *mut c_void
    ) -> i32, |real| seam::tensor_alloc(buffer, tensor, address, real)
}

in_front_of! {
    "ggml_backend_alloc_ctx_tensors_from_buft": __wrap_ggml_backend_alloc_ctx_tensors_from_buft(
        context: *mut c_void, buft: *mut RawBufferType
    ) -> *mut RawBuffer, |real| seam::alloc_ctx_tensors(context, buft, real_tensor_alloc(), || real(context, buft))
}

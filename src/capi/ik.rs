//! The functions that stand in front of ik_llama.cpp's, under the names that `ld --wrap` gives them. A preloaded
//! library has them under the plain names too. The header does not declare them: nobody calls them by name.
//!
//! [`behind`] finds the host's own function by who calls. Only calls of the served host come here. Those of other hosts
//! jump to their own functions, with registers and stack as they came ([`super::jump`]); so do calls of the served
//! host's kernels that are not ours. Its other functions get all six integer registers, so that arguments which later
//! versions add arrive there.
//!
//! SERVED CALL, the invariant of all functions that calls jump to: the arguments come from the served host's own code,
//! so they are good for its function of that name.

use libc::{c_char, c_int, c_long, c_void};

use super::behind::{self, Behind};
use super::jump::{Answer, goes_where, jumps_on};
use crate::diag::border::{Passing, ffi_boundary};
use crate::host::ik::abi::{IkPlan, RawBackend};
use crate::host::ik::attention::{self, FlashAttn, RawHeads};
use crate::host::ik::handshake::{self, WrappedFn};
use crate::host::ik::kernels::{self, Mul4d};
use crate::host::ik::{backend, graph_compute, loading};
use crate::host::symbols::weak_table;
use crate::host::{RawBuffer, RawBufferType, RawTensor};

/// Declares everything that there is one of per name.
macro_rules! wrapped {
    ($($name:literal,)*) => {
        weak_table!(ggml_amx_wrapped; $(concat!("__real_", $name),)*);

        /// The host's functions that ours stand in front of.
        const NAMES: &[&str] = &[$($name),*];

        /// Where the functions of hosts were found.
        static BEHIND: [Behind; NAMES.len()] = [const { Behind::new() }; NAMES.len()];
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

/// The served host's function of this name, of type `$ty`. Unsafe: that must be its type.
macro_rules! real {
    ($name:literal, $ty:ty) => {
        std::mem::transmute::<usize, $ty>(served_address::<{ index_of($name) }>())
    };
}

/// Address of the served host's function of this index.
fn served_address<const INDEX: usize>() -> usize {
    BEHIND[INDEX].find(NAMES[INDEX], ggml_amx_wrapped(INDEX), behind::SERVED, [0; 2]).address
}

/// Declares `$wrap`, which stands in front of the host's function `$name`: served calls jump to `$then`, others to the
/// function of the host that calls.
macro_rules! in_front_of {
    ($name:literal: $wrap:ident, by $find:ident, then $then:path) => {
        goes_where! {
            #[doc = concat!("`", $name, "`.\n\n# Safety\nAs for the host's function.")]
            #[unsafe(no_mangle)]
            $wrap: $find
        }

        extern "C" fn $find(caller: usize, first: usize, second: usize) -> usize {
            const INDEX: usize = index_of($name);
            ffi_boundary!(concat!("the search for ", $name), or the process ends, {
                let found = BEHIND[INDEX].find(NAMES[INDEX], ggml_amx_wrapped(INDEX), caller, [first, second]);
                if found.is_served { $then as *const () as usize } else { found.address }
            })
        }
    };
}

/// Declares what stands in front of a kernel: served calls ask `$ask`, and jump to the host's kernel where that
/// declines. `$count`: how many arguments the kernel has that are no floats, of which six are passed in registers.
macro_rules! in_front_of_kernel {
    (
        $name:literal: $wrap:ident, by $find:ident,
        then $then:ident: $ask:ident, or $real:ident, $count:literal arguments
    ) => {
        in_front_of!($name: $wrap, by $find, then $then);

        jumps_on! {
            /// # Safety
            /// As for the host's function.
            $then: $ask, or $real, $count - 6
        }

        extern "C" fn $real() -> usize {
            ffi_boundary!(concat!("the search for the host's ", $name), or the process ends, {
                served_address::<{ index_of($name) }>()
            })
        }
    };
}

/// The index of a name.
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

in_front_of_kernel! {
    "iqk_mul_mat_4d": __wrap_iqk_mul_mat_4d, by find_mul_mat_4d,
    then mul_mat_4d: ask_mul_mat_4d, or real_mul_mat_4d, 23 arguments
}

/// `iqk_mul_mat_4d`.
#[rustfmt::skip]
type MulMat4dFn = unsafe extern "C" fn(
    c_long, c_long, c_long, c_long, c_long, c_long, c_long, c_long, c_long, c_long, c_long, c_long, c_long, c_int,
    *const c_void, c_long, c_int, *const c_void, c_long, *mut f32, c_long, c_int, c_int,
) -> bool;

/// # Safety
/// As for the host's function.
#[rustfmt::skip]
unsafe extern "C" fn ask_mul_mat_4d(
    nx: c_long, ny: c_long, ne00: c_long, ne02: c_long, ne03: c_long, ne12: c_long, ne13: c_long, nb02: c_long,
    nb03: c_long, nb12: c_long, nb13: c_long, nb2: c_long, nb3: c_long, type_a: c_int, a: *const c_void,
    stride_a: c_long, type_b: c_int, b: *const c_void, stride_b: c_long, c: *mut f32, stride_c: c_long,
    ith: c_int, nth: c_int,
) -> Answer { ffi_boundary!("iqk_mul_mat_4d", or the process ends, {
    let args = Mul4d {
        nx, ny, ne00, ne02, ne03, ne12, ne13, nb02, nb03, nb12, nb13, nb2, nb3, type_a, a, stride_a, type_b, b,
        stride_b, c, stride_c, ith, nth,
    };
    let one = [ne02, ne03, ne12, ne13] == [1; 4] && !b.is_null();
    handshake::note(WrappedFn::MulMat, |seen| {
        let bytes = nx * stride_a;
        seen.fits([a; 2], c, (nx, ne00, stride_a, type_a), (ith, nth))
            && one
            && ny == handshake::ROWS as c_long
            && [nb02, nb03, stride_c, nb2, nb3] == [bytes, bytes, nx, nx * ny, nx * ny]
    });
    // SAFETY: SERVED CALL. The closure calls the host's function of this type, with parts of the same matrices.
    unsafe {
        let done = kernels::mul_mat_4d(args, |x| real!("iqk_mul_mat_4d", MulMat4dFn)(
            x.nx, x.ny, x.ne00, x.ne02, x.ne03, x.ne12, x.ne13, x.nb02, x.nb03, x.nb12, x.nb13, x.nb2, x.nb3, x.type_a,
            x.a, x.stride_a, x.type_b, x.b, x.stride_b, x.c, x.stride_c, x.ith, x.nth,
        ));
        done.into()
    }
}) }

in_front_of_kernel! {
    "iqk_mul_mat_moe": __wrap_iqk_mul_mat_moe, by find_mul_mat_moe,
    then mul_mat_moe: ask_mul_mat_moe, or real_mul_mat_moe, 16 arguments
}

/// `iqk_mul_mat_moe`.
#[rustfmt::skip]
type MulMatMoeFn = unsafe extern "C" fn(
    c_long, c_long, c_long, c_int, c_int, *const c_void, c_long, c_int, *const c_void, c_long, *mut f32, c_long,
    c_long, *const c_void, c_int, c_int,
) -> bool;

/// # Safety
/// As for the host's function.
#[rustfmt::skip]
unsafe extern "C" fn ask_mul_mat_moe(
    nx: c_long, ny: c_long, ne00: c_long, ne11: c_int, type_a: c_int, a: *const c_void, stride_a: c_long,
    type_b: c_int, b: *const c_void, stride_b: c_long, c: *mut f32, nb1: c_long, nb2: c_long, rows: *const c_void,
    ith: c_int, nth: c_int,
) -> Answer { ffi_boundary!("iqk_mul_mat_moe", or the process ends, {
    handshake::note(WrappedFn::Experts, |seen| {
        seen.fits([a; 2], c, (nx, ne00, stride_a, type_a), (ith, nth))
            && (ny, ne11, [nb1, nb2]) == (1, 1, [4 * nx; 2])
            && !b.is_null()
            && !rows.is_null()
    });
    // SAFETY: SERVED CALL. The closure calls the host's function of this type, with rows of the same weights.
    unsafe {
        let done = kernels::mul_mat_moe(a, (nx, stride_a), c, (ith, nth), |a, range, (ith, nth)| {
            real!("iqk_mul_mat_moe", MulMatMoeFn)(
                range.rows as c_long, ny, ne00, ne11, type_a, a, stride_a, type_b, b, stride_b,
                c.wrapping_add(range.first), nb1, nb2, rows, ith, nth,
            )
        });
        done.into()
    }
}) }

in_front_of_kernel! {
    "iqk_moe_fused_up_gate": __wrap_iqk_moe_fused_up_gate, by find_fused_up_gate,
    then fused_up_gate: ask_fused_up_gate, or real_fused_up_gate, 20 arguments
}

/// `iqk_moe_fused_up_gate`.
#[rustfmt::skip]
type FusedUpGateFn = unsafe extern "C" fn(
    c_long, c_long, c_long, c_int, c_int, c_int, *const c_void, *const c_void, c_long, c_int, *const c_void, c_long,
    *const c_char, *const c_char, *mut f32, c_long, c_long, *const c_void, f32, c_int, c_int,
) -> bool;

/// # Safety
/// As for the host's function.
#[rustfmt::skip]
unsafe extern "C" fn ask_fused_up_gate(
    nx: c_long, ny: c_long, ne00: c_long, ne11: c_int, unary: c_int, type_a: c_int, up: *const c_void,
    gate: *const c_void, stride_a: c_long, type_b: c_int, b: *const c_void, stride_b: c_long,
    up_bias: *const c_char, gate_bias: *const c_char, c: *mut f32, nb1: c_long, nb2: c_long, rows: *const c_void,
    limit: f32, ith: c_int, nth: c_int,
) -> Answer { ffi_boundary!("iqk_moe_fused_up_gate", or the process ends, {
    handshake::note(WrappedFn::Gated, |seen| {
        seen.fits([up, gate], c, (nx, ne00, stride_a, type_a), (ith, nth))
            && (ny, ne11, [nb1, nb2]) == (1, 1, [4 * nx; 2])
            && !b.is_null()
            && up_bias.is_null()
            && gate_bias.is_null()
    });
    // SAFETY: SERVED CALL. The closure calls the host's function of this type, with rows of the same weights.
    unsafe {
        let done = kernels::fused_up_gate([up, gate], (nx, stride_a), c, (ith, nth), |[up, gate], range, (ith, nth)| {
            let of_range = |bias: *const c_char| match bias.is_null() {
                true => bias,
                false => bias.wrapping_add(range.first * size_of::<f32>()),
            };
            real!("iqk_moe_fused_up_gate", FusedUpGateFn)(
                range.rows as c_long, ny, ne00, ne11, unary, type_a, up, gate, stride_a, type_b, b, stride_b,
                of_range(up_bias), of_range(gate_bias), c.wrapping_add(range.first), nb1, nb2, rows, limit, ith, nth,
            )
        });
        done.into()
    }
}) }

in_front_of_kernel! {
    "iqk_flash_attn_noalibi": __wrap_iqk_flash_attn_noalibi, by find_flash_attn,
    then flash_attn: ask_flash_attn, or real_flash_attn, 39 arguments
}

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
) -> Answer { ffi_boundary!("iqk_flash_attn_noalibi", or the process ends, {
    let args = FlashAttn {
        types: [type_q, type_mask, type_k, type_v], max_bias, scale, softcap,
        q: RawHeads { data: q, ne: [dk, neq1, neq2, neq3], nb: [stride_q.into(), nbq2, nbq3] },
        k: RawHeads { data: k, ne: [dk, nek1, nek2, nek3], nb: [stride_k.into(), nbk2, nbk3] },
        v: RawHeads { data: v, ne: [dv, nek1, nev2, nev3], nb: [stride_v.into(), nbv2, nbv3] },
        mask, stride_m, sinks, result: qkv, nb1, heads: ne1, tokens: ne2, ith, nth,
    };
    // SAFETY: SERVED CALL; all its threads come here.
    unsafe { if attention::flash_attn(&args) { Answer::Done } else { Answer::Declined } }
}) }

/// What one of the six integer registers holds.
type Word = usize;
/// A function of the host's, called with all six registers: it has at most so many arguments, and looks at its own
/// only.
type Six<T> = unsafe extern "C-unwind" fn(Word, Word, Word, Word, Word, Word) -> T;

in_front_of!("ggml_graph_compute": __wrap_ggml_graph_compute, by find_graph_compute, then graph_compute);

unsafe extern "C-unwind" fn graph_compute(graph: Word, plan: Word, c: Word, d: Word, e: Word, f: Word) -> c_int {
    let _border = Passing::new("ggml_graph_compute");
    // SAFETY: SERVED CALL, and the host's function is called with the same registers.
    unsafe {
        let real = real!("ggml_graph_compute", Six<c_int>);
        graph_compute::graph_compute(graph as *mut c_void, plan as *const IkPlan, || real(graph, plan, c, d, e, f))
    }
}

in_front_of!("ggml_backend_cpu_init": __wrap_ggml_backend_cpu_init, by find_cpu_init, then cpu_init);

unsafe extern "C-unwind" fn cpu_init(a: Word, b: Word, c: Word, d: Word, e: Word, f: Word) -> *mut RawBackend {
    let _border = Passing::new("ggml_backend_cpu_init");
    // SAFETY: SERVED CALL, and the host's function is called with the same registers.
    unsafe {
        let backend = real!("ggml_backend_cpu_init", Six<*mut RawBackend>)(a, b, c, d, e, f);
        backend::widen_cpu_backend(backend);
        backend
    }
}

in_front_of!("ggml_backend_reg_get_count": __wrap_ggml_backend_reg_get_count, by find_reg_count, then reg_count);

unsafe extern "C-unwind" fn reg_count(a: Word, b: Word, c: Word, d: Word, e: Word, f: Word) -> usize {
    let _border = Passing::new("ggml_backend_reg_get_count");
    // SAFETY: SERVED CALL, and the host's function is called with the same registers.
    unsafe {
        let real = real!("ggml_backend_reg_get_count", Six<usize>);
        backend::register(|| real(a, b, c, d, e, f))
    }
}

in_front_of!("ggml_backend_tensor_alloc": __wrap_ggml_backend_tensor_alloc, by find_tensor_alloc, then tensor_alloc);

unsafe extern "C-unwind" fn tensor_alloc(buffer: Word, tensor: Word, address: Word, d: Word, e: Word, f: Word) -> i32 {
    let _border = Passing::new("ggml_backend_tensor_alloc");
    // SAFETY: SERVED CALL, and the host's function is called with the same registers.
    unsafe {
        let real = real!("ggml_backend_tensor_alloc", Six<i32>);
        let real = |buffer: *mut RawBuffer, tensor: *mut RawTensor, address: *mut c_void| {
            real(buffer as Word, tensor as Word, address as Word, d, e, f)
        };
        loading::tensor_alloc(buffer as *mut RawBuffer, tensor as *mut RawTensor, address as *mut c_void, real)
    }
}

in_front_of! {
    "ggml_backend_alloc_ctx_tensors_from_buft":
        __wrap_ggml_backend_alloc_ctx_tensors_from_buft, by find_alloc_ctx_tensors, then alloc_ctx_tensors
}

unsafe extern "C-unwind" fn alloc_ctx_tensors(
    context: Word,
    buft: Word,
    c: Word,
    d: Word,
    e: Word,
    f: Word,
) -> *mut RawBuffer {
    type Alloc = unsafe extern "C-unwind" fn(*mut RawBuffer, *mut RawTensor, *mut c_void) -> i32;
    let _border = Passing::new("ggml_backend_alloc_ctx_tensors_from_buft");
    // SAFETY: SERVED CALL, and the host's function is called with the same registers.
    unsafe {
        let real = real!("ggml_backend_alloc_ctx_tensors_from_buft", Six<*mut RawBuffer>);
        let alloc = real!("ggml_backend_tensor_alloc", Alloc);
        let real = || real(context, buft, c, d, e, f);
        loading::alloc_ctx_tensors(context as *mut c_void, buft as *mut RawBufferType, |b, t, a| alloc(b, t, a), real)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls a function with one zero per underscore.
    macro_rules! with_zeros {
        (@ _) => { std::mem::zeroed() };
        ($function:ident: $($argument:tt)*) => { $function($(with_zeros!(@ $argument)),*) };
    }

    #[test]
    #[rustfmt::skip]
    fn panics_end_at_the_border() {
        use crate::diag::border::trip::ends;

        // SAFETY: all of them panic before they look at their arguments, for which zero is a value.
        unsafe {
            ends("iqk_mul_mat_4d", || with_zeros!(ask_mul_mat_4d: _ _ _ _ _ _ _ _ _ _  _ _ _ _ _ _ _ _ _ _  _ _ _));
            ends("iqk_mul_mat_moe", || with_zeros!(ask_mul_mat_moe: _ _ _ _ _ _ _ _ _ _  _ _ _ _ _ _));
            ends("iqk_moe_fused_up_gate", || {
                with_zeros!(ask_fused_up_gate: _ _ _ _ _ _ _ _ _ _  _ _ _ _ _ _ _ _ _ _  _)
            });
            ends("iqk_flash_attn_noalibi", || {
                with_zeros!(ask_flash_attn:
                    _ _ _ _ _ _ _ _ _ _  _ _ _ _ _ _ _ _ _ _  _ _ _ _ _ _ _ _ _ _  _ _ _ _ _ _ _ _ _ _  _ _)
            });
            ends("ggml_graph_compute", || graph_compute(0, 0, 0, 0, 0, 0));
            ends("ggml_backend_cpu_init", || cpu_init(0, 0, 0, 0, 0, 0));
            ends("ggml_backend_reg_get_count", || reg_count(0, 0, 0, 0, 0, 0));
            ends("ggml_backend_tensor_alloc", || tensor_alloc(0, 0, 0, 0, 0, 0));
            ends("ggml_backend_alloc_ctx_tensors_from_buft", || alloc_ctx_tensors(0, 0, 0, 0, 0, 0));
            ends("the search for iqk_mul_mat_4d", || find_mul_mat_4d(1, 0, 0));
            ends("the search for the host's iqk_mul_mat_4d", || real_mul_mat_4d());
        }
    }
}

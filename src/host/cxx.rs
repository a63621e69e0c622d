//! The two C++ objects ggml-cpu calls: `ggml::cpu::extra_buffer_type` (the buffer type's context) and
//! `ggml::cpu::tensor_traits` (ggml-cpu/traits.h), made by hand after the Itanium C++ ABI: an object
//! starts with a pointer to its virtual functions; the table has the two destructors first, then the
//! functions in the order of their declaration.

use std::ffi::CStr;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{c_char, c_void};

use super::abi::GgmlComputeParams;
use super::buffer_type::host;
use super::proof::{self, Class, DESTRUCTOR};
use super::symbols::{self, weak_table};
use super::tensor::{RawTensor, Tensor};
use super::{Flavour, Host, buffer_type, op};
use crate::buffer::held;
use crate::cpu;
use crate::diag::border::ffi_boundary;
use crate::matmul::{Op, Settings, Thread};

/// Virtual table with the words before its address point: offset to top, and the type information. ggml asks for none, but
/// who does (`typeid`, `dynamic_cast`) finds a class without bases.
#[repr(C)]
struct Table<F> {
    offset_to_top: usize,
    type_info: *const TypeInfo,
    destructors: [Unknown; 2],
    functions: F,
}

// SAFETY: immutable, but for the type information, which is atomic.
unsafe impl<F> Sync for Table<F> {}

/// `__cxxabiv1::__class_type_info`.
#[repr(C)]
struct TypeInfo {
    /// Of the C++ runtime, which is looked for when there is a host.
    table: AtomicPtr<c_void>,
    name: AtomicPtr<c_char>,
}

impl TypeInfo {
    const fn new(name: &'static CStr) -> Self {
        Self { table: AtomicPtr::new(std::ptr::null_mut()), name: AtomicPtr::new(name.as_ptr().cast_mut()) }
    }
}

static BUFFER_TYPE_INFO: TypeInfo = TypeInfo::new(c"N8ggml_amx17extra_buffer_typeE");
static TRAITS_INFO: TypeInfo = TypeInfo::new(c"N8ggml_amx13tensor_traitsE");

weak_table!(ggml_amx_type_info_symbols; "_ZTVN10__cxxabiv117__class_type_infoE",);

/// Completes the type information, before the host gets an object.
pub fn find_type_info() {
    // SAFETY: the table has one word; volatile, because the compiler must not assume that it is never null.
    let linked = unsafe { (&raw const ggml_amx_type_info_symbols).cast::<usize>().read_volatile() };
    let name = c"_ZTVN10__cxxabiv117__class_type_infoE";
    if let Some(table) = symbols::find(symbols::scope(Flavour::Llama), linked, name) {
        // Behind two words, as in every table.
        let table = table.wrapping_byte_add(16).cast_mut();
        for info in [&BUFFER_TYPE_INFO, &TRAITS_INFO] {
            info.table.store(table, Ordering::Release);
        }
    }
}

#[repr(C)]
struct BufferTypeFunctions {
    supports_op: unsafe extern "C" fn(*mut c_void, *mut c_void, *const RawTensor) -> bool,
    get_tensor_traits: unsafe extern "C" fn(*mut c_void, *const RawTensor) -> *mut c_void,
    unknown: [Unknown; 6],
}

#[repr(C)]
struct TraitsFunctions {
    work_size: unsafe extern "C" fn(*mut c_void, i32, *const RawTensor, *mut usize) -> bool,
    compute_forward: unsafe extern "C" fn(*mut c_void, *mut GgmlComputeParams, *mut RawTensor) -> bool,
    unknown: [Unknown; 6],
}

/// A virtual function that no known version has. It declines whatever it may be.
type Unknown = unsafe extern "C" fn(*mut c_void, usize, usize, usize) -> usize;

unsafe extern "C" fn unknown<const TRAITS: bool, const SLOT: usize>(
    _: *mut c_void,
    a: usize,
    b: usize,
    c: usize,
) -> usize {
    ffi_boundary!("a virtual function that is not known", else 0, {
        let class = if TRAITS { Class::Traits } else { Class::BufferType };
        proof::answer(class, SLOT, [a, b, c]).unwrap_or_else(|| {
            // The line that says what is not known is due at the first call, whatever it is.
            is_proved_now();
            0
        })
    })
}

/// What lies in front of the functions. Both objects are static: nothing to destroy, and ggml destroys neither.
unsafe extern "C" fn destroy<const TRAITS: bool>(_: *mut c_void, a: usize, b: usize, c: usize) -> usize {
    ffi_boundary!("a destructor", else 0, {
        let class = if TRAITS { Class::Traits } else { Class::BufferType };
        proof::answer(class, DESTRUCTOR, [a, b, c]).unwrap_or_else(|| {
            // It may be one, while the process ends: not the time for a trial.
            proof::decline(&format!("the host calls a destructor of {}, or something else in its place", class.name()));
            0
        })
    })
}

const fn all_unknown<const TRAITS: bool>() -> [Unknown; 6] {
    [
        unknown::<TRAITS, 2>,
        unknown::<TRAITS, 3>,
        unknown::<TRAITS, 4>,
        unknown::<TRAITS, 5>,
        unknown::<TRAITS, 6>,
        unknown::<TRAITS, 7>,
    ]
}

/// A C++ object without members.
#[repr(C)]
struct Object(*const [Unknown; 2]);

// SAFETY: immutable, points to immutable tables.
unsafe impl Sync for Object {}

static BUFFER_TYPE_TABLE: Table<BufferTypeFunctions> = Table {
    offset_to_top: 0,
    type_info: &raw const BUFFER_TYPE_INFO,
    destructors: [destroy::<false>; 2],
    functions: BufferTypeFunctions { supports_op, get_tensor_traits, unknown: all_unknown::<false>() },
};
static TRAITS_TABLE: Table<TraitsFunctions> = Table {
    offset_to_top: 0,
    type_info: &raw const TRAITS_INFO,
    destructors: [destroy::<true>; 2],
    functions: TraitsFunctions {
        work_size: work_size_method,
        compute_forward: compute_forward_method,
        unknown: all_unknown::<true>(),
    },
};
static BUFFER_TYPE: Object = Object(&raw const BUFFER_TYPE_TABLE.destructors);
static TRAITS: Object = Object(&raw const TRAITS_TABLE.destructors);

/// The object a buffer type's `context` points to.
pub fn extra_buffer_type() -> *mut c_void {
    (&raw const BUFFER_TYPE).cast_mut().cast()
}

/// The object that packed tensors carry in `extra`.
pub fn tensor_traits() -> *mut c_void {
    (&raw const TRAITS).cast_mut().cast()
}

/// Makes the proof, if that was not done: the host calls, so its list of buffer types is made.
fn is_proved_now() -> bool {
    proof::prove_called(host(), buffer_type::get())
}

/// The node at an address that the host gave.
///
/// # Safety
/// It must be a live node.
unsafe fn node(host: &'static Host, op: *const RawTensor) -> Tensor {
    // SAFETY: promised by the caller.
    unsafe { host.tensor(op) }.unwrap_or_else(|| host.abort("the host asks about a node that is NULL"))
}

unsafe extern "C" fn supports_op(_: *mut c_void, device: *mut c_void, op: *const RawTensor) -> bool {
    ffi_boundary!("supports_op", else false, {
        let host = host();
        if !proof::is_proved() {
            if let Some(answer) = proof::answer(Class::BufferType, 0, [device as usize, op as usize, 0]) {
                return answer != 0;
            }
            if !is_proved_now() {
                return false;
            }
        }
        // SAFETY: the host passes a live node.
        op::supports(host, unsafe { node(host, op) })
    })
}

/// The host asks for every node, whatever buffers its tensors live in; null means "compute it
/// yourself", which must never happen to a node that reads packed bytes.
unsafe extern "C" fn get_tensor_traits(_: *mut c_void, op: *const RawTensor) -> *mut c_void {
    ffi_boundary!("get_tensor_traits", or the process ends, {
        if !proof::is_proved() {
            if let Some(answer) = proof::answer(Class::BufferType, 1, [op as usize, 0, 0]) {
                return answer as *mut c_void;
            }
            if !is_proved_now() {
                // Nothing was packed.
                return std::ptr::null_mut();
            }
        }
        held::lock_as_the_host_does();
        let host = host();
        // SAFETY: the host passes a live node.
        let node = unsafe { node(host, op) };
        let Some(tensor) = op::misread(host, node) else {
            // Weights that the host could read as well, where the tile unit is faster.
            let ours = op::has_plain_weights(host, node) && op::product(host, node).is_ok();
            return if ours { tensor_traits() } else { std::ptr::null_mut() };
        };
        if op::is_product(host, node) && node.source(0).is_some_and(|w| w.is(&tensor)) {
            return tensor_traits();
        }
        host.abort(&format!(
            "{} would read {} as plain bytes, but it is packed for AMX; keep this tensor in a CPU buffer",
            host.op_name(node.op()),
            tensor.name()
        ));
    })
}

unsafe extern "C" fn work_size_method(_: *mut c_void, n_threads: i32, op: *const RawTensor, size: *mut usize) -> bool {
    ffi_boundary!("work_size", or the process ends, {
        if !proof::is_proved() {
            let args = [n_threads as usize, op as usize, size as usize];
            return proof::answer(Class::Traits, 0, args).unwrap_or(0) != 0;
        }
        let host = host();
        // SAFETY: the host passes a live node and a place for the size.
        unsafe { work_size(host, n_threads, node(host, op)).inspect(|bytes| *size = *bytes).is_some() }
    })
}

unsafe extern "C" fn compute_forward_method(
    _: *mut c_void,
    params: *mut GgmlComputeParams,
    op: *mut RawTensor,
) -> bool {
    ffi_boundary!("compute_forward", or the process ends, {
        if !proof::is_proved() {
            return proof::answer(Class::Traits, 1, [params as usize, op as usize, 0]).unwrap_or(0) != 0;
        }
        let host = host();
        // SAFETY: the host passes live parameters and a live node.
        unsafe { compute_forward(host, &*params, node(host, op)) }
    })
}

/// Work buffer for `op` on `n_threads` threads, `None` if it is not ours.
pub fn work_size(host: &'static Host, n_threads: i32, op: Tensor) -> Option<usize> {
    held::lock_as_the_host_does();
    op::product(host, op).ok()?.work_size(usize::try_from(n_threads).ok()?.max(1))
}

/// Computes this thread's part of `op`; false if it is not ours (nothing was written then). A node
/// on packed weights that cannot be computed ends the process: nobody else can read them.
///
/// # Safety
/// Parameters and node must be the host's, with data; every thread of the operation must call this.
pub unsafe fn compute_forward(host: &'static Host, params: &GgmlComputeParams, op: Tensor) -> bool {
    let Some(weights) = op.source(0).filter(|_| op::is_product(host, op)) else { return false };
    let fail = |why: &str| -> ! {
        host.abort(&format!("{} {} with weights {}: {why}", host.op_name(op.op()), op.name(), weights.name()))
    };
    let product = match op::product(host, op) {
        Ok(product) => product,
        Err(why) if op::packed_shape(host, weights).is_some() => fail(&why),
        Err(_) => return false,
    };
    if product.is_empty() {
        return true;
    }
    if params.nth < 1 || !(0..params.nth).contains(&params.ith) {
        fail(&format!("thread {} of {}", params.ith, params.nth));
    }
    let (index, count) = (params.ith as usize, params.nth as usize);
    let need = product.work_size(count).unwrap_or(usize::MAX);
    if params.wdata.is_null() || params.wsize < need {
        fail(&format!("the work buffer has {} bytes, {need} are needed for {count} threads", params.wsize));
    }
    if product.lacks_data() {
        fail("a tensor has no data");
    }
    // Where the scheduler will put the activations is not known when it asks, so it is checked here.
    if [1, 2].into_iter().filter_map(|i| op.source(i)).any(|t| !op::is_readable(host, t)) {
        fail("the activations are not in host memory");
    }
    // SAFETY: the pool is the host's, and every one of its threads runs this node.
    let barrier = || unsafe { host.barrier(params.threadpool) };
    let (settings, thread) =
        (Settings { isa: cpu::isa(), demand: op::demand(op) }, Thread { index, count, barrier: &barrier });
    // SAFETY: shapes, buffers and ids were checked; the instruction set is the one found usable.
    unsafe {
        match &product {
            Op::Dense(p) => p.run(settings, &thread, params.wdata.cast()),
            Op::Experts(p) => {
                // The others wait for thread 0, which would sort by them.
                let bad = if index == 0 { p.choices.find_bad(p.weights.ne[2]) } else { None };
                if let Some((token, slot, id)) = bad {
                    fail(&format!("id {id} (number {slot} of token {token}) is none of {} experts", p.weights.ne[2]));
                }
                p.run(settings, &thread, params.wdata.cast());
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_end_at_the_border() {
        use std::ptr::{null, null_mut};

        use crate::diag::border::trip::{ends, goes_on};

        // SAFETY: all of them panic before they look at anything.
        unsafe {
            goes_on("a virtual function that is not known", || unknown::<true, 2>(null_mut(), 0, 0, 0) == 0);
            goes_on("a destructor", || destroy::<true>(null_mut(), 0, 0, 0) == 0);
            goes_on("supports_op", || !supports_op(null_mut(), null_mut(), null()));
            ends("get_tensor_traits", || get_tensor_traits(null_mut(), null()));
            ends("work_size", || work_size_method(null_mut(), 1, null(), null_mut()));
            ends("compute_forward", || compute_forward_method(null_mut(), null_mut(), null_mut()));
        }
    }
}

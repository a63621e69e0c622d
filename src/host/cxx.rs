//! The two C++ objects that ggml-cpu calls: `ggml::cpu::extra_buffer_type` (the buffer type's context) and
//! `ggml::cpu::tensor_traits` (ggml-cpu/traits.h). They are laid out by hand after the Itanium C++ ABI: an object
//! starts with a pointer to its virtual table, and the table has the two destructors first, then the functions in the
//! order of their declaration. Calls are answered by the trial while one is going on ([`super::proof`]), else by
//! [`super::driver`].

use std::ffi::CStr;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{c_char, c_void};

use super::abi::GgmlComputeParams;
use super::flavour::Flavour;
use super::llama::Host;
use super::proof::{self, Class, Method};
use super::symbols::{self, weak_table};
use super::tensor::{RawTensor, Tensor};
use super::{driver, op, registry};
use crate::diag::border::ffi_boundary;

/// A virtual table, with the two words in front of the place that objects point to: the offset to the top of the
/// object, and the type information. ggml asks for neither. Whoever asks for the type (`typeid`, `dynamic_cast`) finds
/// a class without bases.
#[repr(C)]
struct Vtable<F> {
    offset_to_top: usize,
    type_info: *const TypeInfo,
    destructors: [UnknownMethod; 2],
    methods: F,
}

// SAFETY: immutable, but for the type information, which is atomic.
unsafe impl<F> Sync for Vtable<F> {}

/// `__cxxabiv1::__class_type_info`.
#[repr(C)]
struct TypeInfo {
    /// The virtual table of this class, which the C++ runtime has; null until [`find_type_info`].
    vtable: AtomicPtr<c_void>,
    name: AtomicPtr<c_char>,
}

impl TypeInfo {
    const fn new(name: &'static CStr) -> Self {
        Self { vtable: AtomicPtr::new(std::ptr::null_mut()), name: AtomicPtr::new(name.as_ptr().cast_mut()) }
    }
}

static BUFFER_TYPE_INFO: TypeInfo = TypeInfo::new(c"N8ggml_amx17extra_buffer_typeE");
static TRAITS_INFO: TypeInfo = TypeInfo::new(c"N8ggml_amx13tensor_traitsE");

weak_table!(ggml_amx_type_info_symbols; "_ZTVN10__cxxabiv117__class_type_infoE",);

/// Completes the type information. Called before the host gets an object.
pub fn find_type_info() {
    let name = c"_ZTVN10__cxxabiv117__class_type_infoE";
    if let Some(vtable) = symbols::find(Flavour::Llama.scope(), ggml_amx_type_info_symbols(0), name) {
        // Objects point behind the two words in front.
        let vtable = vtable.wrapping_byte_add(16).cast_mut();
        for info in [&BUFFER_TYPE_INFO, &TRAITS_INFO] {
            info.vtable.store(vtable, Ordering::Release);
        }
    }
}

/// The virtual functions of `extra_buffer_type`.
#[repr(C)]
struct ExtraBufferTypeMethods {
    supports_op: unsafe extern "C" fn(*mut c_void, *mut c_void, *const RawTensor) -> bool,
    get_tensor_traits: unsafe extern "C" fn(*mut c_void, *const RawTensor) -> *mut c_void,
    unknown: [UnknownMethod; 6],
}

/// The virtual functions of `tensor_traits`.
#[repr(C)]
struct TensorTraitsMethods {
    work_size: unsafe extern "C" fn(*mut c_void, i32, *const RawTensor, *mut usize) -> bool,
    compute_forward: unsafe extern "C" fn(*mut c_void, *mut GgmlComputeParams, *mut RawTensor) -> bool,
    unknown: [UnknownMethod; 6],
}

/// A virtual function that no known version has. It declines, whatever it is.
type UnknownMethod = unsafe extern "C" fn(*mut c_void, usize, usize, usize) -> usize;

const fn class(is_traits: bool) -> Class {
    if is_traits { Class::Traits } else { Class::BufferType }
}

unsafe extern "C" fn unknown<const TRAITS: bool, const SLOT: usize>(
    _: *mut c_void,
    a: usize,
    b: usize,
    c: usize,
) -> usize {
    ffi_boundary!("a virtual function that is not known", else 0, {
        proof::answer(Method::Unknown(class(TRAITS), SLOT), [a, b, c]).unwrap_or_else(|| {
            // The first call makes the trial, which logs what is not known.
            is_proved_now();
            0
        })
    })
}

/// In the place of the destructors. Both objects are static, so there is nothing to destroy, and ggml destroys neither.
unsafe extern "C" fn destroy<const TRAITS: bool>(_: *mut c_void, a: usize, b: usize, c: usize) -> usize {
    ffi_boundary!("a destructor", else 0, {
        let class = class(TRAITS);
        proof::answer(Method::Destructor(class), [a, b, c]).unwrap_or_else(|| {
            // It may really be a destructor, as the process ends: no time for a trial.
            proof::decline(&format!("the host calls a destructor of {}, or something else in its place", class.name()));
            0
        })
    })
}

/// Those after the two that are known.
const fn all_unknown<const TRAITS: bool>() -> [UnknownMethod; 6] {
    [
        unknown::<TRAITS, 2>,
        unknown::<TRAITS, 3>,
        unknown::<TRAITS, 4>,
        unknown::<TRAITS, 5>,
        unknown::<TRAITS, 6>,
        unknown::<TRAITS, 7>,
    ]
}

/// A C++ object without members: a pointer to the first function of its virtual table.
#[repr(C)]
struct CxxObject(*const [UnknownMethod; 2]);

// SAFETY: immutable, and what it points to is static.
unsafe impl Sync for CxxObject {}

static BUFFER_TYPE_VTABLE: Vtable<ExtraBufferTypeMethods> = Vtable {
    offset_to_top: 0,
    type_info: &raw const BUFFER_TYPE_INFO,
    destructors: [destroy::<false>; 2],
    methods: ExtraBufferTypeMethods { supports_op, get_tensor_traits, unknown: all_unknown::<false>() },
};
static TRAITS_VTABLE: Vtable<TensorTraitsMethods> = Vtable {
    offset_to_top: 0,
    type_info: &raw const TRAITS_INFO,
    destructors: [destroy::<true>; 2],
    methods: TensorTraitsMethods { work_size, compute_forward, unknown: all_unknown::<true>() },
};
static BUFFER_TYPE: CxxObject = CxxObject(&raw const BUFFER_TYPE_VTABLE.destructors);
static TRAITS: CxxObject = CxxObject(&raw const TRAITS_VTABLE.destructors);

/// The object that the buffer type has as its context.
pub fn extra_buffer_type() -> *mut c_void {
    (&raw const BUFFER_TYPE).cast_mut().cast()
}

/// The object that packed tensors carry in `extra`.
pub fn tensor_traits() -> *mut c_void {
    (&raw const TRAITS).cast_mut().cast()
}

/// Makes the trial if there was none. The host calls us, so its list of buffer types is made.
fn is_proved_now() -> bool {
    proof::prove_called(Host::that_calls(), registry::get(), tensor_traits() as usize)
}

/// The node at an address that the host passes.
///
/// # Safety
/// LIVE TENSOR: null, or a node of the host's that is alive during the call.
unsafe fn node(host: &'static Host, op: *const RawTensor) -> Tensor {
    // SAFETY: LIVE TENSOR.
    unsafe { host.tensor(op) }.unwrap_or_else(|| host.abort("the host asks about a node that is NULL"))
}

unsafe extern "C" fn supports_op(_: *mut c_void, device: *mut c_void, op: *const RawTensor) -> bool {
    ffi_boundary!("supports_op", else false, {
        let host = Host::that_calls();
        if !proof::is_proved() {
            if let Some(answer) = proof::answer(Method::SupportsOp, [device as usize, op as usize, 0]) {
                return answer != 0;
            }
            if !is_proved_now() {
                return false;
            }
        }
        // SAFETY: LIVE TENSOR: the proof holds, so the argument is a node.
        op::supports(host, unsafe { node(host, op) })
    })
}

/// The host asks about every node, wherever its tensors lie. Null means that the host computes it.
unsafe extern "C" fn get_tensor_traits(_: *mut c_void, op: *const RawTensor) -> *mut c_void {
    ffi_boundary!("get_tensor_traits", or the process ends, {
        if !proof::is_proved() {
            if let Some(answer) = proof::answer(Method::GetTensorTraits, [op as usize, 0, 0]) {
                return answer as *mut c_void;
            }
            if !is_proved_now() {
                // Nothing was packed, so the host can compute all nodes.
                return std::ptr::null_mut();
            }
        }
        let host = Host::that_calls();
        // SAFETY: LIVE TENSOR: the proof holds, so the argument is a node.
        let is_ours = driver::is_computed_here(host, unsafe { node(host, op) });
        if is_ours { tensor_traits() } else { std::ptr::null_mut() }
    })
}

unsafe extern "C" fn work_size(_: *mut c_void, n_threads: i32, op: *const RawTensor, size: *mut usize) -> bool {
    ffi_boundary!("work_size", or the process ends, {
        if !proof::is_proved() {
            let args = [n_threads as usize, op as usize, size as usize];
            return proof::answer(Method::WorkSize, args).unwrap_or(0) != 0;
        }
        let host = Host::that_calls();
        // SAFETY: LIVE TENSOR, and a variable for the size: the proof holds, so these are the arguments.
        unsafe { driver::work_size(host, n_threads, node(host, op)).inspect(|bytes| *size = *bytes).is_some() }
    })
}

unsafe extern "C" fn compute_forward(_: *mut c_void, params: *mut GgmlComputeParams, op: *mut RawTensor) -> bool {
    ffi_boundary!("compute_forward", or the process ends, {
        if !proof::is_proved() {
            return proof::answer(Method::ComputeForward, [params as usize, op as usize, 0]).unwrap_or(0) != 0;
        }
        let host = Host::that_calls();
        // SAFETY: LIVE TENSOR, and live parameters: the proof holds, so these are the arguments. The host calls this in
        // every thread of the operation.
        unsafe { driver::compute_forward(host, &*params, node(host, op)) }
    })
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
            ends("work_size", || work_size(null_mut(), 1, null(), null_mut()));
            ends("compute_forward", || compute_forward(null_mut(), null_mut(), null_mut()));
        }
    }
}

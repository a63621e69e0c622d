//! The proof that this ik_llama.cpp's structs are those of [`super::abi`], by the means of
//! [`crate::host::selfcheck`]: look where the host's own functions put known values.

use std::cell::Cell;
use std::ffi::CStr;
use std::mem::offset_of;

use libc::{c_char, c_void};

use super::abi::{IkBuffer, IkBufferInterface, IkBufferType, IkTensor};
use super::{IkOps, IkSymbols};
use crate::format::WeightType;
use crate::host::HostTypes;
use crate::host::abi::{TYPE_F32, TYPE_I32};
use crate::host::selfcheck::{OBJECT_SIZE, ensure, in_context, readable, type_facts, types};
use crate::kernel::activation::Activation;

/// `GGML_TYPE_F16`.
const TYPE_F16: i32 = 1;
/// `GGML_UNARY_OP_SWIGLU_OAI`, which no function of the host makes a unary node of.
const SWIGLU_OAI: i32 = 14;

/// Proves the layout and reads the operation numbers.
pub fn prove(symbols: &IkSymbols) -> Result<(IkOps, HostTypes), String> {
    let types = types(|number| {
        // SAFETY: only numbers in the host's table are asked for.
        unsafe {
            type_facts((symbols.ggml_type_name)(number), || {
                ((symbols.ggml_blck_size)(number), (symbols.ggml_type_size)(number))
            })
        }
    })?;
    // SAFETY: the host's functions; the context is alive, and the probes stay inside its tensors.
    unsafe {
        in_context(symbols.ggml_init, symbols.ggml_free, |context| {
            let types = readable(types);
            tensors(symbols, context).and_then(|ops| buffers(symbols, context).map(|()| (ops, types)))
        })
    }
}

/// Struct ggml_tensor and the operation numbers.
///
/// # Safety
/// `context` must be a live context of the host.
unsafe fn tensors(symbols: &IkSymbols, context: *mut c_void) -> Result<IkOps, String> {
    // SAFETY: documented uses of ggml's API on live tensors of this context; fields are compared
    // within the size the host states for a tensor.
    unsafe {
        let size = (symbols.ggml_tensor_overhead)() - OBJECT_SIZE;
        ensure(size == size_of::<IkTensor>(), || format!("sizeof(ggml_tensor) is {size}"))?;
        let new = |ty, ne: [i64; 4]| (symbols.ggml_new_tensor_4d)(context, ty, ne[0], ne[1], ne[2], ne[3]);
        let weight = new(WeightType::Q4_0 as i32, [64, 37, 3, 1]);
        let (up, gate) = (new(WeightType::Q4_0 as i32, [64, 37, 1, 1]), new(WeightType::Q4_0 as i32, [64, 37, 1, 1]));
        let x = new(TYPE_F32, [64, 11, 1, 1]);
        (symbols.ggml_set_name)(weight, c"trial-weight".as_ptr());
        let product = (symbols.ggml_mul_mat)(context, up, x);
        let (choices, rows) = (new(TYPE_I32, [2, 11, 1, 1]), new(TYPE_F32, [64, 2, 11, 1]));
        let experts = (symbols.ggml_mul_mat_id)(context, weight, rows, choices);
        let fused = (symbols.ggml_fused_up_gate)(context, up, gate, x, SWIGLU_OAI);
        let moe_fused = (symbols.ggml_moe_up_gate)(context, weight, weight, rows, choices, SWIGLU_OAI);
        let view = (symbols.ggml_view_1d)(context, x, 5, 0x230);
        let scaled = (symbols.ggml_scale)(context, x, 123.5);

        let (keys, values) = (new(TYPE_F16, [64, 32, 2, 1]), new(TYPE_F16, [32, 32, 2, 1]));
        let queries = new(TYPE_F32, [64, 3, 2, 1]);
        let none = std::ptr::null_mut();
        let attention = (symbols.ggml_flash_attn_ext)(context, queries, keys, values, none, 1.0, 0.0, 0.0);

        let (w, v, p, e, f, m) = (&*weight, &*view, &*product, &*experts, &*fused, &*moe_fused);
        ensure(w.ty == WeightType::Q4_0 as i32 && (*x).ty == TYPE_F32, || "ggml_tensor.type".into())?;
        ensure(w.ne == [64, 37, 3, 1] && w.nb == [18, 36, 36 * 37, 36 * 37 * 3], || "ggml_tensor.ne or nb".into())?;
        ensure(w.buffer.is_null() && w.data.is_null() && w.extra.is_null(), || "ggml_tensor.buffer or data".into())?;
        ensure(p.src[..3] == [up, x, std::ptr::null_mut()], || "ggml_tensor.src".into())?;
        ensure(e.src[..3] == [weight, rows, choices] && e.ne == [37, 2, 11, 1], || "the sources of MUL_MAT_ID".into())?;
        ensure(f.src[..3] == [up, gate, x] && f.op_params[0] == SWIGLU_OAI && f.op_params[1] == 0, || {
            "FUSED_UP_GATE".into()
        })?;
        ensure(m.src[..4] == [weight, weight, rows, choices] && m.op_params[0] == SWIGLU_OAI, || {
            "MOE_FUSED_UP_GATE".into()
        })?;
        ensure(v.view_src == x && v.view_offs == 0x230, || "ggml_tensor.view_src or view_offs".into())?;
        ensure((*scaled).op_params[0] == 123.5f32.to_bits() as i32, || "ggml_tensor.op_params".into())?;
        let name = (symbols.ggml_get_name)(weight).cast::<u8>().offset_from(weight.cast::<u8>());
        ensure(name == offset_of!(IkTensor, name) as isize && w.name() == "trial-weight", || {
            "ggml_tensor.name".into()
        })?;

        let sources = &(*attention).src;
        ensure(sources[..4] == [queries, keys, values, none], || "the sources of FLASH_ATTN_EXT".into())?;
        let graph = (symbols.ggml_new_graph_custom)(context, 16, false);
        (symbols.ggml_build_forward_expand)(graph, product);
        let nodes = (symbols.ggml_graph_nodes)(graph);
        ensure((symbols.ggml_graph_n_nodes)(graph) == 1 && *nodes == product, || "ggml_cgraph".into())?;
        let threads = [3, 5].map(|threads| (symbols.ggml_graph_plan)(graph, threads).n_threads);
        ensure(threads == [3, 5], || format!("ggml_cplan.n_threads is {threads:?}"))?;

        let op = |node: *mut IkTensor| (*node).op;
        let op_name = |op: i32| CStr::from_ptr((symbols.ggml_op_name)(op)).to_bytes();
        let ops = [
            (p.op, "MUL_MAT"),
            (e.op, "MUL_MAT_ID"),
            (f.op, "FUSED_UP_GATE"),
            (m.op, "MOE_FUSED_UP_GATE"),
            (op(attention), "FLASH_ATTN_EXT"),
        ];
        for (number, name) in ops {
            ensure((1..256).contains(&number) && op_name(number) == name.as_bytes(), || format!("operation {name}"))?;
        }
        let unary =
            |f: unsafe extern "C" fn(*mut c_void, *mut IkTensor) -> *mut IkTensor| (*f(context, x)).op_params[0];
        ensure(CStr::from_ptr((symbols.ggml_unary_op_name)(SWIGLU_OAI)) == c"SWIGLU_OAI", || "SWIGLU_OAI".into())?;
        Ok(IkOps {
            mul_mat: p.op,
            mul_mat_id: e.op,
            fused_up_gate: f.op,
            moe_fused_up_gate: m.op,
            flash_attn_ext: op(attention),
            no_data: [
                op(weight),
                op((symbols.ggml_reshape_1d)(context, x, 64 * 11)),
                op(view),
                op((symbols.ggml_permute)(context, x, 0, 2, 1, 3)),
                op((symbols.ggml_transpose)(context, x)),
            ],
            activations: [
                (unary(symbols.ggml_silu), Activation::Silu),
                (unary(symbols.ggml_gelu), Activation::Gelu),
                (unary(symbols.ggml_relu), Activation::Relu),
                (SWIGLU_OAI, Activation::SwigluOai),
            ],
        })
    }
}

thread_local! {
    /// Which stub ran last.
    static FIRED: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// What stubs that return an address return.
static STUB_MEMORY: [u64; 8] = [0; 8];

fn fired(slot: usize) {
    FIRED.set(slot);
}

unsafe extern "C" fn get_name(_: *mut IkBuffer) -> *const c_char {
    fired(0);
    c"trial".as_ptr()
}

unsafe extern "C" fn free_buffer(_: *mut IkBuffer) {
    fired(1);
}

unsafe extern "C" fn get_base(_: *mut IkBuffer) -> *mut c_void {
    fired(2);
    (&raw const STUB_MEMORY).cast_mut().cast()
}

unsafe extern "C" fn memset_tensor(_: *mut IkBuffer, _: *mut IkTensor, _: u8, _: usize, _: usize) {
    fired(4);
}

unsafe extern "C" fn set_tensor(_: *mut IkBuffer, _: *mut IkTensor, _: *const c_void, _: usize, _: usize) {
    fired(5);
}

unsafe extern "C" fn get_tensor(_: *mut IkBuffer, _: *const IkTensor, _: *mut c_void, _: usize, _: usize) {
    fired(6);
}

unsafe extern "C" fn clear(_: *mut IkBuffer, _: u8) {
    fired(8);
}

unsafe extern "C" fn type_name(_: *mut IkBufferType) -> *const c_char {
    c"trial-type".as_ptr()
}

unsafe extern "C" fn type_alloc(_: *mut IkBufferType, _: usize) -> *mut IkBuffer {
    std::ptr::null_mut()
}

unsafe extern "C" fn type_alignment(_: *mut IkBufferType) -> usize {
    64
}

unsafe extern "C" fn type_is_host(_: *mut IkBufferType) -> bool {
    fired(9);
    false
}

/// The interfaces of buffers and buffer types: members called are the ones meant.
///
/// # Safety
/// `context` must be a live context of the host.
unsafe fn buffers(symbols: &IkSymbols, context: *mut c_void) -> Result<(), String> {
    let interface = IkBufferInterface {
        get_name,
        free_buffer: Some(free_buffer),
        get_base,
        init_tensor: None,
        memset_tensor,
        set_tensor,
        get_tensor,
        cpy_tensor: None,
        clear,
        reset: None,
    };
    let mut buft = IkBufferType {
        get_name: type_name,
        alloc_buffer: type_alloc,
        get_alignment: type_alignment,
        get_max_size: None,
        get_alloc_size: None,
        is_host: Some(type_is_host),
        context: std::ptr::null_mut(),
    };
    // SAFETY: documented uses of ggml's API; the buffer type and the stubs outlive the buffer.
    unsafe {
        let buffer = (symbols.ggml_backend_buffer_init)(&mut buft, interface, 0x1230 as *mut c_void, 64);
        let b = &*buffer;
        ensure(b.buft == &raw mut buft && b.context == 0x1230 as *mut c_void && b.size == 64 && b.usage == 0, || {
            "ggml_backend_buffer".into()
        })?;
        let fires = |slot: usize, call: &dyn Fn()| {
            FIRED.set(usize::MAX);
            call();
            ensure(FIRED.get() == slot, || format!("member {slot} of the buffer interface, {} was called", FIRED.get()))
        };
        let tensor = (symbols.ggml_new_tensor_4d)(context, TYPE_F32, 4, 1, 1, 1);
        (*tensor).buffer = buffer;
        (*tensor).data = (&raw const STUB_MEMORY).cast_mut().cast();
        let mut four = [0f32; 4];
        let data: *mut c_void = four.as_mut_ptr().cast();
        fires(0, &|| _ = (symbols.ggml_backend_buffer_name)(buffer))?;
        fires(2, &|| _ = (symbols.ggml_backend_buffer_get_base)(buffer))?;
        fires(5, &|| (symbols.ggml_backend_tensor_set)(tensor, data, 0, 16))?;
        fires(6, &|| (symbols.ggml_backend_tensor_get)(tensor, data, 0, 16))?;
        fires(8, &|| (symbols.ggml_backend_buffer_clear)(buffer, 0))?;
        fires(9, &|| _ = (symbols.ggml_backend_buffer_is_host)(buffer))?;
        ensure(CStr::from_ptr((symbols.ggml_backend_buft_name)(&mut buft)) == c"trial-type", || {
            "ggml_backend_buffer_type".into()
        })?;
        (*tensor).buffer = std::ptr::null_mut();
        fires(1, &|| (symbols.ggml_backend_buffer_free)(buffer))
    }
}

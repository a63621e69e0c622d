//! The proof that the host's structs are those of [`super::abi`]: build tensors with the host's own
//! functions in memory of ours, and look where it puts known values; give it a buffer and a buffer
//! type made of stubs that note their position, call its functions, and see which stub fires.
//! Versions and numbers are never assumed.

use std::cell::Cell;
use std::ffi::CStr;
use std::mem::offset_of;

use libc::{c_char, c_void};

use super::abi::{GgmlBuffer, GgmlBufferInterface, GgmlBufferType, GgmlInitParams, GgmlTensor, TYPE_F32, TYPE_I32};
use super::{HostTypes, Ops, Symbols, symbols};
use crate::debug;
use crate::format::WeightType;
use crate::panel::plain;

/// Memory for the trial tensors; ggml places objects of about 370 bytes in it.
const ARENA: usize = 64 << 10;
/// More members than any version of ggml's interfaces has.
const SLOTS: usize = 16;
/// `GGML_OBJECT_SIZE`: what `ggml_tensor_overhead` counts besides the tensor.
pub(super) const OBJECT_SIZE: usize = 32;

/// Proves the layout of the host behind `symbols` and reads its operation numbers.
pub fn prove(symbols: &Symbols) -> Result<(Ops, HostTypes), String> {
    let types = types(|number| host_type(symbols, number))?;
    // SAFETY: the host's functions; the context is alive, and the probes stay inside its tensors.
    unsafe {
        in_context(symbols.ggml_init, symbols.ggml_free, |context| {
            // Not before ggml_init, which in some versions makes tables that decoders use.
            let types = readable(types);
            tensors(symbols, context).and_then(|ops| buffers(symbols, context).map(|()| (ops, types)))
        })
    }
}

/// Runs `probe` in a context of the host's that has memory of ours for its tensors.
///
/// # Safety
/// The functions must be the host's `ggml_init` and `ggml_free`.
pub(super) unsafe fn in_context<T>(
    init: unsafe extern "C" fn(GgmlInitParams) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
    probe: impl FnOnce(*mut c_void) -> Result<T, String>,
) -> Result<T, String> {
    let mut arena = vec![0u64; ARENA / 8];
    let params = GgmlInitParams { mem_size: ARENA, mem_buffer: arena.as_mut_ptr().cast(), no_alloc: true };
    // SAFETY: promised by the caller; freed below, before the arena goes.
    let context = unsafe { init(params) };
    if context.is_null() {
        return Err("ggml_init gave no context".to_string());
    }
    let result = probe(context);
    // SAFETY: made above, used no more.
    unsafe { free(context) };
    result
}

pub(super) fn ensure(holds: bool, what: impl Fn() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("the host's layout is not the one this library knows: {}", what())) }
}

/// What the host has at the number of a type in its table: its name, weights and bytes per block.
fn host_type(symbols: &Symbols, number: i32) -> (String, i64, usize) {
    // SAFETY: only numbers in the table are asked for.
    unsafe {
        let name = (symbols.ggml_type_name)(number);
        type_facts(name, || ((symbols.ggml_blck_size)(number), (symbols.ggml_type_size)(number)))
    }
}

/// A type's name, weights and bytes per block, which `sizes` looks up in a table: only for numbers that are in it.
///
/// # Safety
/// `name` must be null or a C string.
pub(super) unsafe fn type_facts(name: *const c_char, sizes: impl Fn() -> (i64, usize)) -> (String, i64, usize) {
    let name = match name.is_null() {
        true => String::new(),
        // SAFETY: promised by the caller.
        false => unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned(),
    };
    match name.as_str() {
        "" | "NONE" => (name, 0, 0),
        _ => {
            let (weights, bytes) = sizes();
            (name, weights, bytes)
        }
    }
}

/// The numbers of our weight types name the same types in the host. Those that came later than the others
/// may be missing, or be something else in a fork: then they are left alone.
///
/// `host_type` is asked for numbers only that are in the host's table.
pub(super) fn types(host_type: impl Fn(i32) -> (String, i64, usize)) -> Result<HostTypes, String> {
    let last = symbols::last_type();
    debug!("the host has types up to number {last} at least");
    let host_type = |number| if number <= last { host_type(number) } else { (String::new(), 0, 0) };
    let mut known = HostTypes::default();
    for ty in WeightType::ALL {
        let number = *ty as i32;
        let expected = (ty.info().name.to_string(), ty.info().block as i64, ty.info().bytes);
        let found = host_type(number);
        ensure(found == expected || number > symbols::LAST_OLD_TYPE, || {
            format!("type {number} should be {expected:?} (name, weights, bytes), the host has {found:?}")
        })?;
        if found == expected {
            known.add(*ty);
        }
    }
    for (number, name) in [(TYPE_F32, "f32"), (TYPE_I32, "i32")] {
        let found = host_type(number);
        ensure(found == (name.to_string(), 1, 4), || {
            format!("type {number} should be {name}, the host has {found:?}")
        })?;
    }
    for ty in plain::TYPES {
        if host_type(ty.number) == (ty.name.to_string(), 1, ty.bytes) {
            ty.enable();
        }
    }
    Ok(known)
}

/// Of these types those without codebooks, and those whose codebooks the host's decoders give.
pub(super) fn readable(types: HostTypes) -> HostTypes {
    let mut readable = HostTypes::default();
    for ty in WeightType::ALL.iter().filter(|ty| types.has(**ty)) {
        if symbols::make_readable(*ty) {
            readable.add(*ty);
        } else {
            debug!("{} is left to the host: its codebook was not found", ty.info().name);
        }
    }
    readable
}

/// Struct ggml_tensor and the operation numbers.
///
/// # Safety
/// `context` must be a live context of the host.
unsafe fn tensors(symbols: &Symbols, context: *mut c_void) -> Result<Ops, String> {
    // SAFETY: documented uses of ggml's API on live tensors of this context; fields are compared
    // within the size the host states for a tensor.
    unsafe {
        let size = (symbols.ggml_tensor_overhead)() - OBJECT_SIZE;
        ensure(size == size_of::<GgmlTensor>(), || format!("sizeof(ggml_tensor) is {size}"))?;
        let new = |ty, ne: [i64; 4]| (symbols.ggml_new_tensor_4d)(context, ty, ne[0], ne[1], ne[2], ne[3]);
        let weight_ne = [64, 37, 3, 1];
        let weight = new(WeightType::Q4_0 as i32, weight_ne);
        let x = new(TYPE_F32, [64, 11, 3, 1]);
        (symbols.ggml_set_name)(weight, c"trial-weight".as_ptr());
        let product = (symbols.ggml_mul_mat)(context, weight, x);
        let choices = new(TYPE_I32, [2, 11, 1, 1]);
        let rows = new(TYPE_F32, [64, 2, 11, 1]);
        let experts = (symbols.ggml_mul_mat_id)(context, weight, rows, choices);
        let view = (symbols.ggml_view_1d)(context, x, 5, 0x1230);
        let scaled = (symbols.ggml_scale)(context, x, 123.5);

        let (w, v, p, e) = (&*weight, &*view, &*product, &*experts);
        ensure(w.ty == WeightType::Q4_0 as i32 && (*x).ty == TYPE_F32, || "ggml_tensor.type".into())?;
        ensure(w.ne == weight_ne, || "ggml_tensor.ne".into())?;
        ensure(w.nb == [18, 36, 36 * 37, 36 * 37 * 3], || "ggml_tensor.nb".into())?;
        ensure(w.buffer.is_null() && w.data.is_null() && w.extra.is_null(), || {
            "ggml_tensor.buffer, data or extra".into()
        })?;
        ensure(p.src[..3] == [weight, x, std::ptr::null_mut()], || "ggml_tensor.src".into())?;
        ensure(e.src[..3] == [weight, rows, choices] && e.ne == [37, 2, 11, 1], || "the sources of MUL_MAT_ID".into())?;
        ensure(v.view_src == x && v.view_offs == 0x1230, || "ggml_tensor.view_src or view_offs".into())?;
        ensure((*scaled).op_params[0] == 123.5f32.to_bits() as i32, || "ggml_tensor.op_params".into())?;
        let name = (symbols.ggml_get_name)(weight).cast::<u8>().offset_from(weight.cast::<u8>());
        ensure(name == offset_of!(GgmlTensor, name) as isize && w.name() == "trial-weight", || {
            "ggml_tensor.name".into()
        })?;
        (symbols.ggml_set_input)(x);
        ensure((*x).flags & 1 == 1 && w.flags & 1 == 0, || "ggml_tensor.flags".into())?;

        let op = |node: *mut GgmlTensor| (*node).op;
        let flat = (symbols.ggml_reshape_1d)(context, x, 64 * 11 * 3);
        let ops = Ops {
            mul_mat: op(product),
            mul_mat_id: op(experts),
            no_data: [
                op(weight),
                op(flat),
                op(view),
                op((symbols.ggml_permute)(context, x, 0, 2, 1, 3)),
                op((symbols.ggml_transpose)(context, x)),
            ],
        };
        let op_name = |op: i32| CStr::from_ptr((symbols.ggml_op_name)(op)).to_bytes();
        for (number, name) in [(ops.mul_mat, "MUL_MAT"), (ops.mul_mat_id, "MUL_MAT_ID")] {
            ensure((1..256).contains(&number) && op_name(number) == name.as_bytes(), || "ggml_tensor.op".into())?;
        }
        ensure(ops.no_data[0] == 0 && op_name(ops.no_data[2]) == b"VIEW", || "ggml_tensor.op".into())?;
        Ok(ops)
    }
}

thread_local! {
    /// Which stub ran first since it was last cleared.
    static FIRED: Cell<Option<usize>> = const { Cell::new(None) };
}

/// What stubs return: a valid address for functions that return one.
static STUB_MEMORY: [u64; 512] = [0; 512];
/// What stubs that stand for sizes return: small, so that the host's asserts hold.
const STUB_SIZE: usize = 64;

fn fired(slot: usize) {
    FIRED.with(|f| f.set(f.get().or(Some(slot))));
}

extern "C" fn address_stub<const SLOT: usize>() -> *const c_void {
    fired(SLOT);
    (&raw const STUB_MEMORY).cast()
}

extern "C" fn size_stub<const SLOT: usize>() -> usize {
    fired(SLOT);
    STUB_SIZE
}

/// An interface of `SLOTS` stubs; passed by value where the host expects its own, smaller one (by the
/// System V ABI it lies on the stack, and the callee copies what it knows).
#[repr(C)]
#[derive(Clone, Copy)]
struct Stubs([*const c_void; SLOTS]);

macro_rules! stubs {
    ($f:ident) => {
        Stubs([
            $f::<0> as *const c_void,
            $f::<1> as _,
            $f::<2> as _,
            $f::<3> as _,
            $f::<4> as _,
            $f::<5> as _,
            $f::<6> as _,
            $f::<7> as _,
            $f::<8> as _,
            $f::<9> as _,
            $f::<10> as _,
            $f::<11> as _,
            $f::<12> as _,
            $f::<13> as _,
            $f::<14> as _,
            $f::<15> as _,
        ])
    };
}

/// Runs `call` and checks that the stub in `slot` is the first that it reaches.
fn expect(what: &str, slot: usize, call: impl FnOnce()) -> Result<(), String> {
    FIRED.with(|f| f.set(None));
    call();
    let got = FIRED.with(Cell::get);
    ensure(got == Some(slot), || format!("{what} should call member {slot}, it calls {got:?}"))
}

/// Index of a member, given its offset.
const fn slot(offset: usize) -> usize {
    offset / size_of::<usize>()
}

/// Structs ggml_backend_buffer(_i) and ggml_backend_buffer_type(_i).
///
/// # Safety
/// `context` must be a live context of the host.
unsafe fn buffers(symbols: &Symbols, context: *mut c_void) -> Result<(), String> {
    const SIZE: usize = size_of_val(&STUB_MEMORY);
    let marker = 0x1110usize as *mut c_void;
    let mut buft = BufferTypeOfStubs { interface: stubs!(size_stub), after: [std::ptr::null(); 4] };
    let buft_ptr = (&raw mut buft).cast::<GgmlBufferType>();
    // SAFETY: the host calls stubs only, which take no arguments they look at and return valid
    // addresses; tensors stay inside the stub memory. The buffer is freed on every path.
    unsafe {
        let init: unsafe extern "C" fn(*mut GgmlBufferType, Stubs, *mut c_void, usize) -> *mut GgmlBuffer =
            std::mem::transmute(symbols.ggml_backend_buffer_init);
        let buffer = init(buft_ptr, stubs!(address_stub), marker, SIZE);
        ensure(!buffer.is_null(), || "ggml_backend_buffer_init gave NULL".into())?;
        let members = {
            let b = &*buffer;
            let words = buffer.cast::<*mut GgmlBufferType>();
            let count = (0..SLOTS).find(|i| *words.add(*i) == buft_ptr);
            ensure(count == Some(slot(offset_of!(GgmlBuffer, buft))), || {
                format!("ggml_backend_buffer_i has {count:?} members")
            })
            .and_then(|()| {
                ensure(b.context == marker && b.size == SIZE, || "ggml_backend_buffer.context or size".into())
            })
        };
        let checks = members.and_then(|()| buffer_members(symbols, context, buffer));
        // The right number of members was found before anything is called through the struct.
        let free = if checks.is_ok() {
            expect("ggml_backend_buffer_free", slot(offset_of!(GgmlBufferInterface, free_buffer)), || {
                (symbols.ggml_backend_buffer_free)(buffer)
            })
        } else {
            Ok(())
        };
        checks.and(free)?;
        buffer_type_members(symbols, context, buft_ptr)
    }
}

#[repr(C)]
struct BufferTypeOfStubs {
    interface: Stubs,
    after: [*const c_void; 4],
}

/// # Safety
/// As for [`buffers`].
unsafe fn buffer_members(symbols: &Symbols, context: *mut c_void, buffer: *mut GgmlBuffer) -> Result<(), String> {
    macro_rules! member {
        ($name:ident) => {
            slot(offset_of!(GgmlBufferInterface, $name))
        };
    }
    let mut scratch = [0u8; 16];
    // SAFETY: the caller's promise; all sizes are below the stub memory's.
    unsafe {
        let t = (symbols.ggml_new_tensor_4d)(context, TYPE_F32, 8, 1, 1, 1);
        let data = (&raw const STUB_MEMORY).cast::<c_void>().cast_mut();
        expect("ggml_backend_buffer_get_base", member!(get_base), || {
            (symbols.ggml_backend_buffer_get_base)(buffer);
        })?;
        (symbols.ggml_backend_tensor_alloc)(buffer, t, data);
        ensure((*t).buffer == buffer && (*t).data == data, || "ggml_tensor.buffer or data".into())?;
        let p = scratch.as_mut_ptr().cast::<c_void>();
        expect("ggml_backend_tensor_set", member!(set_tensor), || (symbols.ggml_backend_tensor_set)(t, p, 0, 4))?;
        expect("ggml_backend_tensor_get", member!(get_tensor), || (symbols.ggml_backend_tensor_get)(t, p, 0, 4))?;
        expect("ggml_backend_tensor_memset", member!(memset_tensor), || {
            (symbols.ggml_backend_tensor_memset)(t, 0, 0, 4)
        })?;
        expect("ggml_backend_buffer_clear", member!(clear), || (symbols.ggml_backend_buffer_clear)(buffer, 0))?;
        expect("ggml_backend_buffer_reset", member!(reset), || (symbols.ggml_backend_buffer_reset)(buffer))
    }
}

/// # Safety
/// As for [`buffers`]; `buft` is made of [`size_stub`]s.
unsafe fn buffer_type_members(
    symbols: &Symbols,
    context: *mut c_void,
    buft: *mut GgmlBufferType,
) -> Result<(), String> {
    macro_rules! member {
        ($name:ident) => {
            slot(offset_of!(super::abi::GgmlBufferTypeInterface, $name))
        };
    }
    // SAFETY: the caller's promise.
    unsafe {
        let t = (symbols.ggml_new_tensor_4d)(context, TYPE_F32, 1024, 1, 1, 1);
        expect("ggml_backend_buft_name", member!(get_name), || {
            (symbols.ggml_backend_buft_name)(buft);
        })?;
        expect("ggml_backend_buft_alloc_buffer", member!(alloc_buffer), || {
            (symbols.ggml_backend_buft_alloc_buffer)(buft, 1);
        })?;
        expect("ggml_backend_buft_get_alignment", member!(get_alignment), || {
            (symbols.ggml_backend_buft_get_alignment)(buft);
        })?;
        expect("ggml_backend_buft_get_max_size", member!(get_max_size), || {
            (symbols.ggml_backend_buft_get_max_size)(buft);
        })?;
        expect("ggml_backend_buft_get_alloc_size", member!(get_alloc_size), || {
            (symbols.ggml_backend_buft_get_alloc_size)(buft, t);
        })?;
        expect("ggml_backend_buft_is_host", member!(is_host), || {
            (symbols.ggml_backend_buft_is_host)(buft);
        })?;
        let device = 0x2220usize as *mut c_void;
        (*buft).device = device;
        ensure((symbols.ggml_backend_buft_get_device)(buft) == device, || "ggml_backend_buffer_type.device".into())
    }
}

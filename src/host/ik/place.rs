//! Packed weights in ik_llama.cpp, which has no place for them of its own. A buffer type `AMX`, which is not host
//! memory, holds them in two ways: tensors are put there by the host (`-ot 'regex=AMX'`), or by us, one by one while a
//! model is loaded (`GGML_AMX_MODE=packed`), in a buffer beside the one that the host meant them for.
//!
//! Many callers compute addresses of rows and experts by plain strides. So nothing is packed whose packed form is
//! larger than the plain one, and what is packed is written down by address.

use crate::diag::border::ffi_boundary;
use crate::process::{Lazy, Once};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use libc::c_void;

use super::sync::Mutex;
use super::table::Table;
use super::{Buffer, IkHost, RawBuffer, RawBufferType, RawTensor, Tensor, handshake};
use crate::buffer::held::Held;
use crate::cpu::limits;
use crate::cpu::memory::Region;
use crate::format::LANES;
use crate::host::abi::USAGE_WEIGHTS;
pub(super) use crate::host::callbacks::range_of;
use crate::host::callbacks::{ALIGNMENT, Callbacks, FlavourBuffers, region};
use crate::host::{Core, budget};
use crate::matmul::known_errors;
use crate::panel::weights::Shape;
use crate::{debug, error, info, warn};

/// Matrices of a layer that graphs only multiply with; all are named `blk.<layer>.<role>.weight`.
const ROLES: [&str; 21] = [
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_output",
    "attn_gate",
    "attn_q_a",
    "attn_q_b",
    "attn_kv_a_mqa",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "ffn_up_gate",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
    "ffn_gate_up_exps",
    "ffn_gate_shexp",
    "ffn_up_shexp",
    "ffn_down_shexp",
    "ssm_out",
];

/// Whether a tensor of this name is one that graphs only multiply with. A graph that does something else with it
/// gets it back as it was: see [`give_back`].
fn is_multiplied_only(name: &str) -> bool {
    let role = || name.strip_prefix("blk.")?.split_once('.')?.1.strip_suffix(".weight");
    name == "output.weight" || role().is_some_and(|role| ROLES.contains(&role))
}

/// The packed tensors, and the memory of our buffers.
pub(super) static PACKED: Lazy<Table<Shape>> = Lazy::new(Table::new);

/// Forgets what is known of tensors with bytes in this range: they go, or others come.
fn forget(range: Range<usize>) {
    known_errors::forget(&range);
    PACKED.remove(range);
}

/// Whether anything is packed.
pub fn any() -> bool {
    PACKED.any()
}

/// The shape and first byte of the packed tensor that `tensor` is (a view of), and the plain byte where it begins.
pub fn packed(tensor: Tensor) -> Option<(Shape, *const u8, usize)> {
    let root = tensor.root().data() as usize;
    let shape = PACKED.at(root)?;
    Some((shape, root as *const u8, (tensor.data() as usize).wrapping_sub(root)))
}

/// The same for any address inside a packed tensor.
pub fn packed_around(address: *const u8) -> Option<(Shape, *const u8, usize)> {
    let (base, shape) = PACKED.around(address as usize)?;
    Some((shape, base as *const u8, address as usize - base))
}

/// Whether `tensor` lies in a buffer of ours, or may come to lie there.
pub fn is_ours(host: &'static IkHost, tensor: Tensor) -> bool {
    // SAFETY: a non-null buffer of a live tensor is alive.
    unsafe { host.buffer(tensor.holder()) }.is_some_and(|b| b.buft() == buffer_type())
}

/// Whether a loader asks about a tensor, which has no data yet: its buffer, one of ours, has no size.
pub fn is_probe(host: &'static IkHost, tensor: Tensor) -> bool {
    // SAFETY: as above.
    is_ours(host, tensor) && unsafe { host.buffer(tensor.holder()) }.is_some_and(|b| b.size() == 0)
}

/// Whether there is memory for weights about which a loader asks with an operation.
pub fn has_memory(host: &'static IkHost, w: Tensor, op: Tensor) -> bool {
    // SAFETY: a live tensor of the host's.
    let bytes = unsafe { host.nbytes(w.address()) };
    budget::accept(budget::Question { name: w.name(), ty: w.ty(), ne: w.ne() }, op.op(), bytes)
}

/// The shape of a tensor that is packed in our buffers: a matrix that graphs only multiply with, of a packed type, whole
/// and contiguous, as large packed as plain.
pub fn packable(host: &'static IkHost, tensor: Tensor) -> Option<Shape> {
    let (ty, ne) = (host.weight_type(tensor.ty())?, tensor.ne());
    let shape = Shape::new(ty, ne[0], ne[1], ne[2].checked_mul(ne[3])?).ok()?;
    let contiguous = [ty.info().bytes, shape.row_bytes, shape.slice_plain];
    let fits = shape.n.is_multiple_of(LANES) && shape.plain_size() > 0 && tensor.nb()[..3] == contiguous;
    let wanted = fits && tensor.view_src().is_none() && is_multiplied_only(&tensor.name());
    (wanted && handshake::is_done(host)).then_some(shape)
}

/// Gives a packed tensor back as it was, because a graph reads it by other operations than products.
///
/// # Safety
/// Nobody may be computing with it, or begin to.
pub unsafe fn give_back(tensor: Tensor, reader: &str) {
    let root = tensor.root();
    let Some((shape, base, _)) = packed(root) else { return };
    warn!("{} is read by {reader}: it is kept as it is in the file from now on", root.name());
    // As large packed as plain, so every panel lies where its rows belong.
    let mut rows = vec![0; shape.panel_bytes()];
    for at in (0..shape.plain_size()).step_by(rows.len()) {
        // SAFETY: the rows are inside the tensor, which is ours to write.
        unsafe {
            shape.read(base, at, &mut rows);
            std::ptr::copy_nonoverlapping(rows.as_ptr(), base.cast_mut().add(at), rows.len());
        }
    }
    forget(base as usize..base as usize + shape.plain_size());
}

/// The one buffer type.
struct Registered(*mut RawBufferType);

// SAFETY: the object is never changed after it was made, and never freed.
unsafe impl Send for Registered {}
// SAFETY: as above.
unsafe impl Sync for Registered {}

/// The buffer type `AMX`.
pub fn buffer_type() -> *mut RawBufferType {
    static TYPE: Once<Registered> = Once::new();
    TYPE.get_or_init(|| {
        let functions = Callbacks::<Ik>::of_type(std::ptr::null());
        let none = std::ptr::null_mut();
        Registered(functions.make(&host().layout.buffer_type, none, none))
    })
    .0
}

/// The host behind a callback: callbacks exist only after it was found.
fn host() -> &'static IkHost {
    IkHost::get().expect("a buffer without a host")
}

/// ik_llama.cpp, as our buffers see it.
struct Ik;

impl FlavourBuffers for Ik {
    fn core() -> &'static Core {
        host()
    }

    fn packed(tensor: Tensor) -> Option<(Shape, *mut u8, usize)> {
        packed(tensor).map(|(shape, base, begin)| (shape, base.cast_mut(), begin))
    }

    fn alloc(_: *mut RawBufferType, size: usize) -> *mut RawBuffer {
        if size > 0 {
            budget::allocate(size);
        }
        made(size, Held::new(size))
    }

    fn freed(region: &Region) {
        PACKED.remove_region(range_of(region));
    }
}

/// A buffer of ours of so many bytes, for a moment.
pub(super) fn buffer_of(size: usize) -> *mut RawBuffer {
    made(size, Held::lazily(size))
}

/// A buffer of so many bytes; null if there is no memory for it.
fn made(size: usize, held: std::io::Result<Held>) -> *mut RawBuffer {
    match held {
        // SAFETY: the context is what the interface's functions expect.
        Ok(held) => unsafe {
            PACKED.add_region(range_of(held.region()));
            let context = Box::into_raw(Box::new(held)).cast();
            let interface = Callbacks::<Ik>::of_buffer(init_tensor as *const c_void);
            host().buffer_init(buffer_type(), interface, context, size)
        },
        Err(reason) => {
            error!("cannot allocate a buffer of {size} bytes: {reason}");
            std::ptr::null_mut()
        }
    }
}

/// Decides how a tensor is stored.
unsafe extern "C" fn init_tensor(_: *mut RawBuffer, tensor: *mut RawTensor) {
    ffi_boundary!("init_tensor", or the process ends, {
        // SAFETY: the host passes a live tensor in a buffer of ours.
        let (t, bytes) = unsafe { (host().live(tensor), host().nbytes(tensor)) };
        if t.view_src().is_some() {
            return;
        }
        // Memory may be used again without being freed.
        let base = t.data() as usize;
        forget(base..base + bytes);
        match packable(host(), t) {
            Some(shape) => {
                PACKED.add(base, shape.plain_size(), shape);
                debug!("{}: packed", t.name());
            }
            None => debug!("{}: stored as it is", t.name()),
        }
    })
}

/// What frees a buffer.
type Free = unsafe extern "C" fn(*mut RawBuffer);

/// A buffer of ours beside one of the host's, into which tensors go that were meant for that one.
struct CompanionBuffer {
    of: usize,
    /// 0 if there was no memory for it.
    ours: usize,
    /// Bytes in use.
    used: usize,
    /// What freed the host's buffer before.
    free: Option<Free>,
}

static COMPANIONS: Mutex<Vec<CompanionBuffer>> = Mutex::new(Vec::new());

/// Frees our buffer with the one it belongs to.
unsafe extern "C" fn free_both(buffer: *mut RawBuffer) {
    ffi_boundary!("free_buffer", or the process ends, {
        let mut all = COMPANIONS.lock();
        let at = all.iter().position(|b| b.of == buffer as usize).map(|i| all.swap_remove(i));
        drop(all);
        if let Some(beside) = at {
            // SAFETY: both live until here; ours is freed once.
            unsafe {
                if beside.ours != 0 {
                    (host().symbols.ggml_backend_buffer_free)(beside.ours as *mut RawBuffer);
                }
                if let Some(free) = beside.free {
                    free(buffer);
                }
            }
        }
    })
}

/// Ties a buffer of ours to `of`: it is freed with it.
///
/// # Safety
/// Both must be live buffers, ours may be null; `of` must not be tied already.
unsafe fn tie(all: &mut Vec<CompanionBuffer>, of: *mut RawBuffer, ours: *mut RawBuffer) {
    // SAFETY: promised by the caller.
    let free = unsafe { host().buffer(of).map(|of| of.replace_free(free_both as *const c_void)) };
    // SAFETY: the host's function for that, or null.
    let free = unsafe { std::mem::transmute::<*const c_void, Option<Free>>(free.unwrap_or(std::ptr::null())) };
    all.push(CompanionBuffer { of: of as usize, ours: ours as usize, used: 0, free });
}

/// Packs a tensor that the loader is about to find at `address`, in the file that `buffer` maps. False if it is not
/// one to pack.
///
/// # Safety
/// As for the host's `ggml_backend_tensor_alloc`, which `real` is.
pub unsafe fn pack_mapped(
    host: &'static IkHost,
    buffer: *mut RawBuffer,
    tensor: *mut RawTensor,
    address: *mut c_void,
    real: impl Fn(*mut RawBuffer, *mut RawTensor, *mut c_void) -> i32,
) -> bool {
    // SAFETY: promised by the caller.
    let (b, t) = unsafe { (host.buffer(buffer), host.live(tensor)) };
    // SAFETY: the host's function without arguments.
    let of_cpu = |b: &Buffer| b.buft() == unsafe { (host.ik.ggml_backend_cpu_buffer_type)() };
    let wanted = b.is_some_and(|b| of_cpu(&b) && b.usage() == Some(USAGE_WEIGHTS)) && t.data().is_null();
    let Some(shape) = packable(host, t).filter(|_| wanted) else { return false };
    let bytes = shape.plain_size().next_multiple_of(ALIGNMENT);
    if !budget::has_room(bytes) {
        static SAID: AtomicBool = AtomicBool::new(false);
        if !SAID.swap(true, Ordering::Relaxed) {
            info!("from {} on some weights stay where the host has them: {}", t.name(), budget::shown());
        }
        return false;
    }
    let Some((ours, at)) = room_beside(buffer, bytes) else { return false };
    // SAFETY: the room is inside our buffer; the file has the tensor's bytes at `address`.
    unsafe {
        real(ours, tensor, region::<Ik>(ours).base().as_ptr().add(at).cast());
        Callbacks::<Ik>::set_tensor(ours, tensor, address, 0, shape.plain_size());
        release(address, shape.plain_size());
    }
    true
}

/// Room for `bytes` in our buffer beside `buffer`, which is made if there is none yet: the buffer, and where.
fn room_beside(buffer: *mut RawBuffer, bytes: usize) -> Option<(*mut RawBuffer, usize)> {
    let find = |all: &mut Vec<CompanionBuffer>| {
        let beside = all.iter_mut().find(|b| b.of == buffer as usize)?;
        let (ours, at) = (beside.ours as *mut RawBuffer, beside.used);
        // SAFETY: a buffer of ours, or null.
        let fits = unsafe { host().buffer(ours) }.is_some_and(|ours| at + bytes <= ours.size());
        beside.used += if fits { bytes } else { 0 };
        Some(fits.then_some((ours, at)))
    };
    let mut all = COMPANIONS.lock();
    if let Some(found) = find(&mut all) {
        return found;
    }
    // SAFETY: our buffer type, and a live buffer of the host's.
    unsafe {
        // Room for all there is in the file, with every tensor on a line of its own; only what is used takes memory.
        let size = host().buffer(buffer)?.size();
        let size = size + size / 16 + (1 << 20);
        let may_map = limits::addresses().is_none() || budget::has_room(size);
        let ours = if may_map { made(size, Held::lazily(size)) } else { std::ptr::null_mut() };
        if !ours.is_null() {
            for_weights(ours);
        }
        tie(&mut all, buffer, ours);
    }
    find(&mut all)?
}

/// Says that a buffer is for weights.
///
/// # Safety
/// It must be one of ours.
unsafe fn for_weights(buffer: *mut RawBuffer) {
    if let Some(set_usage) = host().symbols.ggml_backend_buffer_set_usage {
        // SAFETY: promised by the caller.
        unsafe { set_usage(buffer, USAGE_WEIGHTS) };
    }
}

/// Tells the kernel that mapped pages are not needed any more; it still has them in its cache, or keeps them if
/// they are no file's.
///
/// # Safety
/// The range must be mapped.
unsafe fn release(address: *mut c_void, bytes: usize) {
    const PAGE: usize = 4096;
    let start = (address as usize).next_multiple_of(PAGE);
    let end = (address as usize + bytes) / PAGE * PAGE;
    if end > start {
        // SAFETY: promised by the caller; contents stay, whatever the pages are. A wish, so the result does not matter.
        unsafe { libc::madvise(start as *mut c_void, end - start, libc::MADV_PAGEOUT) };
    }
}

/// Allocates the tensors of a model that is not mapped, in place of `real`, the host's function for them: gives packed
/// places to those of `tensors` that are packed and have none yet, and leaves the rest to the host. What the host would
/// give back: a buffer that is tied to ours, or ours if there is no rest.
///
/// # Safety
/// The tensors must be live, all of those that `real` allocates; `alloc` the host's `ggml_backend_tensor_alloc`.
pub unsafe fn pack_unmapped(
    host: &'static IkHost,
    tensors: &[*mut RawTensor],
    alloc: impl Fn(*mut RawBuffer, *mut RawTensor, *mut c_void) -> i32,
    real: impl Fn() -> *mut RawBuffer,
) -> *mut RawBuffer {
    // SAFETY: promised by the caller.
    let tensor = |t: &*mut RawTensor| unsafe { host.live(*t) };
    let has_none = |t: &*mut RawTensor| tensor(t).data().is_null() && tensor(t).view_src().is_none();
    let wanted = |t: &*mut RawTensor| has_none(t).then(|| packable(host, tensor(t))).flatten();
    let sized: Vec<(*mut RawTensor, usize)> =
        tensors.iter().filter_map(|t| Some((*t, wanted(t)?.plain_size().next_multiple_of(ALIGNMENT)))).collect();
    if sized.is_empty() {
        return real();
    }
    // SAFETY: our buffer type; every tensor has its own room.
    unsafe {
        let ours = Ik::alloc(buffer_type(), sized.iter().map(|(_, bytes)| bytes).sum());
        if ours.is_null() {
            return real();
        }
        for_weights(ours);
        let mut at = 0;
        for (tensor, bytes) in &sized {
            alloc(ours, *tensor, region::<Ik>(ours).base().as_ptr().add(at).cast());
            at += bytes;
        }
        let of = real();
        if of.is_null() {
            let failed = tensors.iter().any(|t| has_none(t) && host.nbytes(*t) > 0);
            if !failed {
                return ours;
            }
            // There may be memory for everything without ours.
            for (tensor, _) in sized {
                let tensor = host.live(tensor);
                tensor.set_buffer(std::ptr::null_mut());
                tensor.set_data(std::ptr::null_mut());
            }
            (host.symbols.ggml_backend_buffer_free)(ours);
            return real();
        }
        tie(&mut COMPANIONS.lock(), of, ours);
        of
    }
}

/// Says once per model how much is packed.
pub fn report() {
    static SAID: AtomicUsize = AtomicUsize::new(0);
    let (count, bytes) = PACKED.totals();
    if SAID.swap(count, Ordering::Relaxed) != count && count > 0 {
        info!("{count} tensors packed, {:.2} MiB", bytes as f64 / (1 << 20) as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_end_at_the_border() {
        use std::ptr::null_mut;

        use crate::diag::border::trip::ends;

        // SAFETY: all of them panic before they look at anything.
        unsafe {
            ends("init_tensor", || init_tensor(null_mut(), null_mut()));
            ends("free_buffer", || free_both(null_mut()));
        }
    }
}

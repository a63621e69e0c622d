//! Which tensors are packed. Many callers know only an address, and compute those of rows and experts by plain strides.
//! So a tensor is packed only if that makes it no larger, and packed tensors are looked up by any address inside.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::address_map::AddressMap;
use crate::host::Tensor;
use crate::matmul::known_errors;
use crate::panel::weights::Shape;
use crate::process::Lazy;
use crate::{info, warn};

/// The packed tensors, and the memory of our buffers.
pub static PACKED: Lazy<AddressMap<Shape>> = Lazy::new(AddressMap::new);

/// A packed tensor, or a view of one.
#[derive(Clone, Copy)]
pub struct PackedView {
    /// Shape of the whole tensor.
    pub shape: Shape,
    /// Its first byte.
    pub base: *const u8,
    /// Where the view begins: bytes from there, of the plain tensor.
    pub offset: usize,
}

/// `tensor` as a view of the packed tensor that holds its data; `None` if that is not packed.
pub fn view(tensor: Tensor) -> Option<PackedView> {
    let root = tensor.root().data() as usize;
    let shape = PACKED.at(root)?;
    Some(PackedView { shape, base: root as *const u8, offset: (tensor.data() as usize).wrapping_sub(root) })
}

/// Whether `tensor` is packed, or a view of a packed one.
pub fn is_packed(tensor: Tensor) -> bool {
    view(tensor).is_some()
}

/// The view that begins at `address`; `None` if that is not inside a packed tensor.
pub fn view_at(address: *const u8) -> Option<PackedView> {
    let (base, shape) = PACKED.around(address as usize)?;
    Some(PackedView { shape, base: base as *const u8, offset: address as usize - base })
}

/// Whether anything is packed.
pub fn any() -> bool {
    PACKED.any()
}

/// Forgets what is known of tensors with bytes in this range: they are freed, or replaced by others.
pub fn forget(range: Range<usize>) {
    known_errors::forget(&range);
    PACKED.remove(range);
}

/// Unpacks a tensor where it lies, because `reader`, a node that is no product, reads it.
///
/// # Safety
/// No graph may run that computes with it, and none may begin meanwhile.
pub unsafe fn give_back(tensor: Tensor, reader: &str) {
    let root = tensor.root();
    let Some(PackedView { shape, base, .. }) = view(root) else { return };
    warn!("{} is read by {reader}: it is kept as it is in the file from now on", root.name());
    // It is as large packed as plain, so every panel lies where its rows belong.
    let mut rows = vec![0; shape.panel_bytes()];
    for at in (0..shape.plain_size()).step_by(rows.len()) {
        // SAFETY: the panel is inside the tensor, which nobody else reads or writes now.
        unsafe {
            shape.read(base, at, &mut rows);
            std::ptr::copy_nonoverlapping(rows.as_ptr(), base.cast_mut().add(at), rows.len());
        }
    }
    forget(base as usize..base as usize + shape.plain_size());
}

/// Says how much is packed, as soon as that has changed since the last time: once per model.
pub fn report() {
    static SAID: AtomicUsize = AtomicUsize::new(0);
    let (count, bytes) = PACKED.totals();
    if SAID.swap(count, Ordering::Relaxed) != count && count > 0 {
        info!("{count} tensors packed, {:.2} MiB", bytes as f64 / (1 << 20) as f64);
    }
}

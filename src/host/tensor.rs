//! Tensors of a host, read through the layout that was found ([`super::layout`]).

use libc::c_void;

use super::layout::TensorLayout;
use super::objects::RawBuffer;

/// `struct ggml_tensor`, of whatever version.
#[repr(C)]
pub struct RawTensor([u8; 0]);

/// A live tensor of the host's.
///
/// LIVE TENSOR: `at` is a tensor of this layout for as long as this value is used, and so are its sources and the
/// tensor that it is a view of. [`Tensor::new`] demands it.
#[derive(Clone, Copy)]
pub struct Tensor {
    at: *const RawTensor,
    layout: &'static TensorLayout,
}

impl Tensor {
    /// The tensor at an address; `None` if that is null.
    ///
    /// # Safety
    /// LIVE TENSOR: if not null, it must be a tensor of this layout for as long as the result is used.
    #[inline]
    pub unsafe fn new(at: *const RawTensor, layout: &'static TensorLayout) -> Option<Self> {
        (!at.is_null()).then_some(Self { at, layout })
    }

    #[inline]
    fn read<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: LIVE TENSOR, and the layout's offsets are those of its fields.
        unsafe { self.at.byte_add(offset).cast::<T>().read_unaligned() }
    }

    /// Its address.
    pub fn address(&self) -> *const RawTensor {
        self.at
    }

    /// Whether both are the same tensor.
    pub fn is(&self, other: &Tensor) -> bool {
        std::ptr::eq(self.at, other.at)
    }

    /// ggml's number of its type. It is read in 16 bits: no number is larger, and in some host the bytes
    /// after them may be another field.
    pub fn ty(&self) -> i32 {
        self.read::<u16>(self.layout.ty).into()
    }

    /// The buffer it lies in; may be null.
    pub fn buffer(&self) -> *mut RawBuffer {
        self.read(self.layout.buffer)
    }

    /// Elements per dimension.
    pub fn ne(&self) -> [i64; 4] {
        self.read(self.layout.ne)
    }

    /// Bytes from one element to the next, per dimension.
    pub fn nb(&self) -> [usize; 4] {
        self.read(self.layout.nb)
    }

    /// The host's number of the operation that makes it, read in 16 bits as above.
    pub fn op(&self) -> i32 {
        self.read::<u16>(self.layout.op).into()
    }

    /// Parameter `i` of that operation (`op_params[i]`), `i` below 16.
    pub fn param(&self, i: usize) -> i32 {
        debug_assert!(i < 16);
        self.read(self.layout.op_params + 4 * i)
    }

    fn tensor(&self, offset: usize) -> Option<Tensor> {
        // SAFETY: LIVE TENSOR: what a live tensor points to is one too, or null.
        unsafe { Self::new(self.read(offset), self.layout) }
    }

    /// Source `i`, if there is one.
    pub fn source(&self, i: usize) -> Option<Tensor> {
        if i < self.layout.sources { self.tensor(self.layout.src + 8 * i) } else { None }
    }

    /// Its sources, from number `first` on, without those that are null.
    pub fn sources_from(self, first: usize) -> impl Iterator<Item = Tensor> {
        (first..self.layout.sources).filter_map(move |i| self.source(i))
    }

    /// The tensor that this one is a view of.
    pub fn view_src(&self) -> Option<Tensor> {
        self.tensor(self.layout.view_src)
    }

    /// Where the view begins in that tensor, in bytes.
    pub fn view_offs(&self) -> usize {
        self.read(self.layout.view_offs)
    }

    /// The tensor that has the memory: itself, or what it is a view of. That is never a view itself, as
    /// [`super::discover`] has checked.
    pub fn root(self) -> Tensor {
        self.view_src().unwrap_or(self)
    }

    /// The buffer that its data lies in: a view that is not initialised yet has none of its own, but its root has. May
    /// be null.
    pub fn holder(&self) -> *mut RawBuffer {
        let own = self.buffer();
        if own.is_null() { self.root().buffer() } else { own }
    }

    /// Its first element; may be null.
    pub fn data(&self) -> *mut c_void {
        self.read(self.layout.data)
    }

    /// The first 64 bytes of its name.
    pub fn name_bytes(&self) -> [u8; 64] {
        let mut name = [0; 64];
        for (i, byte) in name.iter_mut().enumerate().take(self.layout.name_bytes) {
            *byte = self.read(self.layout.name + i);
        }
        name
    }

    /// Its name, for messages.
    pub fn name(&self) -> String {
        let bytes = self.name_bytes();
        String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
    }

    /// Sets its `extra`, where this host has one.
    ///
    /// # Safety
    /// Nothing else may use the tensor meanwhile.
    pub unsafe fn set_extra(&self, extra: *mut c_void) {
        if let Some(offset) = self.layout.extra {
            // SAFETY: LIVE TENSOR, and nothing else uses it.
            unsafe { self.at.byte_add(offset).cast::<*mut c_void>().cast_mut().write_unaligned(extra) }
        }
    }

    /// Sets its first element.
    ///
    /// # Safety
    /// As for [`Tensor::set_extra`].
    pub unsafe fn set_data(&self, data: *mut c_void) {
        // SAFETY: LIVE TENSOR, and nothing else uses it.
        unsafe { self.at.byte_add(self.layout.data).cast::<*mut c_void>().cast_mut().write_unaligned(data) }
    }

    /// Sets its buffer.
    ///
    /// # Safety
    /// As for [`Tensor::set_extra`].
    pub unsafe fn set_buffer(&self, buffer: *mut RawBuffer) {
        // SAFETY: LIVE TENSOR, and nothing else uses it.
        unsafe { self.at.byte_add(self.layout.buffer).cast::<*mut RawBuffer>().cast_mut().write_unaligned(buffer) }
    }
}

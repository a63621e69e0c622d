//! What both flavours of hosts have: functions that are called, structs that were found out, numbers of operations and types.

use std::ffi::CString;

use super::layout::HostLayout;
use super::objects::{Buffer, Interface, RawBuffer, RawBufferType};
use super::symbols::Symbols;
use super::tensor::{RawTensor, Tensor};
use super::{HostTypes, Ops, discover};
use crate::diag::log;
use crate::format::WeightType;

/// A ggml whose layout was found out.
pub struct Core {
    pub(super) symbols: Symbols,
    pub(super) layout: HostLayout,
    /// Its operation numbers.
    pub ops: Ops,
    /// Its weight types.
    pub(super) types: HostTypes,
}

impl Core {
    /// The tensor at an address; `None` if that is null.
    ///
    /// # Safety
    /// One of the host's tensors must be there for as long as what is returned is used.
    #[inline]
    pub unsafe fn tensor(&'static self, at: *const RawTensor) -> Option<Tensor> {
        // SAFETY: passed on.
        unsafe { Tensor::new(at, &self.layout.tensor) }
    }

    /// A tensor that the host gave to a callback; null ends the process.
    ///
    /// # Safety
    /// As for [`Core::tensor`].
    pub unsafe fn live(&'static self, at: *const RawTensor) -> Tensor {
        // SAFETY: passed on.
        unsafe { self.tensor(at) }.unwrap_or_else(|| self.abort("the host gives a tensor that is NULL"))
    }

    /// The buffer at an address; `None` if that is null.
    ///
    /// # Safety
    /// One of the host's buffers must be there for as long as what is returned is used.
    #[inline]
    pub unsafe fn buffer(&'static self, at: *mut RawBuffer) -> Option<Buffer> {
        // SAFETY: passed on.
        unsafe { Buffer::new(at, &self.layout.buffer) }
    }

    /// Whether a buffer type is memory that the host's own code reads.
    ///
    /// # Safety
    /// It must be a live buffer type of the host's.
    pub unsafe fn is_host(&self, buft: *mut RawBufferType) -> bool {
        // SAFETY: promised by the caller.
        unsafe { (self.symbols.ggml_backend_buft_is_host)(buft) }
    }

    /// The packed type with ggml's number `number`, if this host has it.
    pub fn weight_type(&self, number: i32) -> Option<WeightType> {
        WeightType::from_ggml(number).filter(|ty| self.types.has(*ty))
    }

    /// `ggml_backend_buffer_init`: a host buffer object around our interface and context.
    ///
    /// # Safety
    /// `buft` must outlive the buffer; `context` must be what the interface's functions expect.
    pub unsafe fn buffer_init(
        &self,
        buft: *mut RawBufferType,
        interface: Interface,
        context: *mut libc::c_void,
        size: usize,
    ) -> *mut RawBuffer {
        // SAFETY: passed on; the interface has at least as many members as the host's.
        unsafe { (self.symbols.ggml_backend_buffer_init)(buft, interface, context, size) }
    }

    /// Bytes of a tensor's plain data, from its first to its last.
    ///
    /// # Safety
    /// `tensor` must be a valid tensor.
    pub unsafe fn nbytes(&self, tensor: *const RawTensor) -> usize {
        // SAFETY: passed on.
        unsafe { (self.symbols.ggml_nbytes)(tensor) }
    }

    /// The host's name of an operation number that came from a real node.
    pub fn op_name(&self, op: i32) -> String {
        // SAFETY: the number came from the host, so it is in the host's table.
        discover::text(unsafe { (self.symbols.ggml_op_name)(op) })
    }

    /// Says `message` through the host's log and ends the process the way ggml does.
    pub fn abort(&self, message: &str) -> ! {
        log::last_words(message);
        let message = CString::new(format!("ggml-amx: {message}").replace('\0', "")).unwrap_or_default();
        // SAFETY: ggml_abort(file, line, format, ...) with one C string; it does not return.
        unsafe { (self.symbols.ggml_abort)(c"ggml-amx".as_ptr(), 0, c"%s".as_ptr(), message.as_ptr()) };
        std::process::abort()
    }
}

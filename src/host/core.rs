//! What both flavours of hosts have: functions that are called, layouts of structs, numbers of operations and types.

use std::ffi::CString;

use super::layout::{HostLayout, HostTypes, Ops};
use super::objects::{Buffer, BufferInterface, RawBuffer, RawBufferType};
use super::peek;
use super::symbols::Symbols;
use super::tensor::{RawTensor, Tensor};
use crate::diag::log;
use crate::format::WeightType;
use crate::panel::plain::PlainType;

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
    /// LIVE TENSOR: null, or a tensor of this host's for as long as the result is used.
    #[inline]
    pub unsafe fn tensor(&'static self, at: *const RawTensor) -> Option<Tensor> {
        // SAFETY: LIVE TENSOR, and tensors of this host have this layout.
        unsafe { Tensor::new(at, &self.layout.tensor) }
    }

    /// A tensor that the host gave to a callback; null ends the process.
    ///
    /// # Safety
    /// LIVE TENSOR, as for [`Core::tensor`].
    pub unsafe fn live(&'static self, at: *const RawTensor) -> Tensor {
        // SAFETY: LIVE TENSOR.
        unsafe { self.tensor(at) }.unwrap_or_else(|| self.abort("the host gives a tensor that is NULL"))
    }

    /// The buffer at an address; `None` if that is null.
    ///
    /// # Safety
    /// LIVE BUFFER: null, or a buffer of this host's for as long as the result is used.
    #[inline]
    pub unsafe fn buffer(&'static self, at: *mut RawBuffer) -> Option<Buffer> {
        // SAFETY: LIVE BUFFER, and buffers of this host have this layout.
        unsafe { Buffer::new(at, &self.layout.buffer) }
    }

    /// Whether buffers of a type are memory that the host's own code reads (`ggml_backend_buft_is_host`).
    ///
    /// # Safety
    /// It must be a live buffer type of the host's.
    pub unsafe fn is_host(&self, buft: *mut RawBufferType) -> bool {
        // SAFETY: the buffer type is alive.
        unsafe { (self.symbols.ggml_backend_buft_is_host)(buft) }
    }

    /// The type with ggml's number `number` whose weights stay plain, if this host has it.
    pub fn plain_type(&self, number: i32) -> Option<&'static PlainType> {
        PlainType::from_ggml(number).filter(|ty| self.types.has_plain(ty))
    }

    /// The packed type with ggml's number `number`, if this host has it.
    pub fn weight_type(&self, number: i32) -> Option<WeightType> {
        WeightType::from_ggml(number).filter(|ty| self.types.has(*ty))
    }

    /// A buffer of the host's, of `size` bytes, with our interface and context (`ggml_backend_buffer_init`).
    ///
    /// # Safety
    /// `buft` must outlive the buffer; `context` must be what the interface's functions expect.
    pub unsafe fn buffer_init(
        &self,
        buft: *mut RawBufferType,
        interface: BufferInterface,
        context: *mut libc::c_void,
        size: usize,
    ) -> *mut RawBuffer {
        // SAFETY: `buft` and `context` are as the host wants them, and the interface has at least as many members as
        // the host's.
        unsafe { (self.symbols.ggml_backend_buffer_init)(buft, interface, context, size) }
    }

    /// Bytes from the first to the last of a tensor's plain data (`ggml_nbytes`).
    ///
    /// # Safety
    /// LIVE TENSOR: not null, and a tensor of this host's.
    pub unsafe fn nbytes(&self, tensor: *const RawTensor) -> usize {
        // SAFETY: LIVE TENSOR.
        unsafe { (self.symbols.ggml_nbytes)(tensor) }
    }

    /// The host's name of an operation, whose number must come from a real node.
    pub fn op_name(&self, op: i32) -> String {
        // SAFETY: the number is a real node's, so it is in the host's table.
        peek::name(unsafe { (self.symbols.ggml_op_name)(op) })
    }

    /// Ends the process with a message, as ggml does (`ggml_abort`).
    pub fn abort(&self, message: &str) -> ! {
        log::last_words(message);
        let message = CString::new(format!("ggml-amx: {message}").replace('\0', "")).unwrap_or_default();
        // SAFETY: `ggml_abort(file, line, format, ...)`, with the one string that the format asks for.
        unsafe { (self.symbols.ggml_abort)(c"ggml-amx".as_ptr(), 0, c"%s".as_ptr(), message.as_ptr()) };
        std::process::abort()
    }
}

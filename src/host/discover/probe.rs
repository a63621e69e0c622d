//! What all probes of a host share: a context with memory of ours, and errors that name what is not as expected.

use libc::c_void;

use super::super::abi::GgmlInitParams;
use super::super::symbols::Symbols;
use super::super::tensor::RawTensor;

/// Bytes for the tensors and graphs of a context.
const ARENA: usize = 1 << 20;

/// A tensor whose layout is not known yet.
pub type Raw = *mut RawTensor;

/// Runs `probe` in a context of the host's whose memory is ours.
///
/// # Safety
/// The functions must be the host's.
pub unsafe fn in_context<T>(
    symbols: &Symbols,
    probe: impl FnOnce(*mut c_void) -> Result<T, String>,
) -> Result<T, String> {
    let mut arena = vec![0u64; ARENA / 8];
    let params = GgmlInitParams { mem_size: ARENA, mem_buffer: arena.as_mut_ptr().cast(), no_alloc: true };
    // SAFETY: the host's function; the arena outlives the context, which is freed below.
    let context = unsafe { (symbols.ggml_init)(params) };
    if context.is_null() {
        return Err("ggml_init gave no context".to_string());
    }
    let result = probe(context);
    // SAFETY: made above, and not used after this.
    unsafe { (symbols.ggml_free)(context) };
    result
}

/// What the host's function `what` made, or an error if that is NULL.
pub fn made<T>(what: &str, at: *mut T) -> Result<*mut T, String> {
    ensure(!at.is_null(), || format!("{what} gave NULL")).map(|()| at)
}

/// The error about something in the host that is not as expected.
pub fn unknown(what: impl std::fmt::Display) -> String {
    format!("the host's layout is not one that this library can find out: {what}")
}

/// The error [`unknown`], unless `holds`.
pub fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(unknown(what())) }
}

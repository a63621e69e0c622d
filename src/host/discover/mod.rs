//! Finding out what a host's structs are like, by its own functions: build tensors in memory of ours and look where known
//! values went; make a buffer and a buffer type of stubs that note who calls them and with what, call the host's
//! functions, and see which stub each of them reaches. Versions and numbers are never assumed. What is needed and cannot be
//! found, or is called in a way that is not known, is named in the error; then the host is left alone.

mod members;
mod tensors;
mod types;

use libc::{c_char, c_void};

use super::abi::GgmlInitParams;
use super::layout::HostLayout;
use super::symbols::Symbols;
use super::tensor::RawTensor;
use super::{Flavour, HostTypes, Ops, peek};
use crate::debug;
pub(super) use tensors::{Trial, extra};
pub(super) use types::{readable, types};

/// Memory for the trial tensors and graphs.
const ARENA: usize = 1 << 20;

/// What was found.
pub struct Found {
    /// Structs.
    pub layout: HostLayout,
    /// Operation numbers.
    pub ops: Ops,
    /// Weight types.
    pub types: HostTypes,
}

/// Looks at the host behind `symbols`, of this flavour. `more` is asked in the same context for what only this flavour has, and may add it.
///
/// Nothing here walks the host's list of extra buffer types: in a host whose own AMX code was replaced the first call comes
/// out of the initialiser of that list.
pub fn discover<T>(
    symbols: &Symbols,
    flavour: Flavour,
    more: impl FnOnce(&mut HostLayout, *mut c_void) -> Result<T, String>,
) -> Result<(Found, T), String> {
    let types = types(symbols, flavour)?;
    // SAFETY: the host's functions; the context is alive, and the probes stay inside its tensors.
    unsafe {
        in_context(symbols, |context| {
            // Not before ggml_init, which in some versions makes tables that decoders use.
            let types = readable(types);
            let trial = Trial::new(symbols, context)?;
            let (buffer, buffer_type, [data, holder]) = members::find(symbols, &trial)?;
            let (tensor, ops) = trial.layout(data, holder)?;
            let mut layout = HostLayout { tensor, buffer, buffer_type };
            let more = more(&mut layout, context)?;
            debug!("the host's layout: {layout:?}");
            Ok((Found { layout, ops, types }, more))
        })
    }
}

/// Runs `probe` in a context of the host's that has memory of ours for its tensors.
///
/// # Safety
/// The functions must be the host's.
pub(super) unsafe fn in_context<T>(
    symbols: &Symbols,
    probe: impl FnOnce(*mut c_void) -> Result<T, String>,
) -> Result<T, String> {
    let mut arena = vec![0u64; ARENA / 8];
    let params = GgmlInitParams { mem_size: ARENA, mem_buffer: arena.as_mut_ptr().cast(), no_alloc: true };
    // SAFETY: promised by the caller; freed below, before the arena goes.
    let context = unsafe { (symbols.ggml_init)(params) };
    if context.is_null() {
        return Err("ggml_init gave no context".to_string());
    }
    let result = probe(context);
    // SAFETY: made above, used no more.
    unsafe { (symbols.ggml_free)(context) };
    result
}

/// What a function of the host's that gives a name gave; nothing if that is no text.
pub(super) fn text(name: *const c_char) -> String {
    /// Names are short.
    const LIMIT: usize = 1024;
    peek::text(name, LIMIT).unwrap_or_default()
}

/// What a function of the host's made.
pub(super) fn made<T>(what: &str, at: *mut T) -> Result<*mut T, String> {
    ensure(!at.is_null(), || format!("{what} gave NULL")).map(|()| at)
}

/// One line that names what is not as it should be.
pub(super) fn unknown(what: impl std::fmt::Display) -> String {
    format!("the host's layout is not one that this library can find out: {what}")
}

/// The error of what does not hold.
pub(super) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(unknown(what())) }
}

/// A tensor whose layout is not known yet.
type Raw = *mut RawTensor;

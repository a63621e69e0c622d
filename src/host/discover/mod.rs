//! Finds out what a host's structs are like, by the host's own functions. Versions and numbers are never assumed.
//!
//! - [`tensors`]: tensors with known values are built in memory of ours; a field is where its values are.
//! - [`members`]: a buffer and a buffer type are made of [`stubs`], which note who calls them and with what; the member
//!   for a function of the host's is the stub that the function calls.
//! - [`types`]: the weight types are those that the host's table has under the same number, name and size.
//!
//! What is needed and cannot be found, or is called in a way that is not known, becomes an error that names it. Then
//! the host is left alone.

mod members;
mod probe;
mod stubs;
mod tensors;
mod types;

use libc::c_void;

use super::core::Core;
use super::flavour::Flavour;
use super::layout::HostLayout;
use super::symbols::Symbols;
use crate::debug;
pub(super) use probe::{ensure, in_context, made, unknown};
use tensors::TrialTensors;
pub(super) use tensors::extra;

/// Looks at the host that has these functions. `more` is called with the layout that was found and a live context of
/// the host: it finds what only this flavour has, and may add to the layout.
///
/// Nothing here walks the host's list of extra buffer types. In a host whose own AMX code was replaced, the first call
/// of this library comes from the initialiser of that list.
pub fn discover<T>(
    symbols: &Symbols,
    flavour: Flavour,
    more: impl FnOnce(&mut HostLayout, *mut c_void) -> Result<T, String>,
) -> Result<(Core, T), String> {
    let types = types::types(symbols, flavour)?;
    // SAFETY: the host's functions; the context is alive, and the probes stay inside its tensors.
    unsafe {
        in_context(symbols, |context| {
            // After `ggml_init`, which in some versions makes the tables that decoders read.
            let types = types::readable(types);
            let trial = TrialTensors::new(symbols, context)?;
            let members::Members { buffer, buffer_type, tensor_data, tensor_buffer } = members::find(symbols, &trial)?;
            let (tensor, ops) = trial.layout(tensor_data, tensor_buffer)?;
            let mut layout = HostLayout { tensor, buffer, buffer_type };
            let more = more(&mut layout, context)?;
            debug!("the host's layout: {layout:?}");
            Ok((Core { symbols: *symbols, layout, ops, types }, more))
        })
    }
}

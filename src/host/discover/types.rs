//! Which of our weight types a host has.

use super::super::abi::{TYPE_F32, TYPE_I32};
use super::super::decoders;
use super::super::flavour::Flavour;
use super::super::layout::HostTypes;
use super::super::peek;
use super::super::symbols::Symbols;
use super::probe::ensure;
use crate::debug;
use crate::format::WeightType;
use crate::panel::plain;

/// The type that the host has under a number, which must be in its table: name, weights and bytes per block.
fn host_type(symbols: &Symbols, number: i32) -> (String, i64, usize) {
    // SAFETY: the number is in the host's table.
    unsafe {
        let name = peek::name((symbols.ggml_type_name)(number));
        match name.as_str() {
            "" | "NONE" => (name, 0, 0),
            _ => (name, (symbols.ggml_blck_size)(number), (symbols.ggml_type_size)(number)),
        }
    }
}

/// Our weight types that the host has under the same number. An old type that is missing or is another one there is an
/// error; a later one may be missing, or another one in a fork, and is left alone.
pub fn types(symbols: &Symbols, flavour: Flavour) -> Result<HostTypes, String> {
    let last = decoders::last_type(flavour);
    debug!("the host has types up to number {last} at least");
    let host_type = |number| if number <= last { host_type(symbols, number) } else { (String::new(), 0, 0) };
    let mut known = HostTypes::default();
    for ty in WeightType::ALL {
        let number = *ty as i32;
        let expected = (ty.info().name.to_string(), ty.info().block as i64, ty.info().bytes);
        let found = host_type(number);
        ensure(found == expected || number > decoders::LAST_OLD_TYPE, || {
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
            known.add_plain(ty);
        }
    }
    Ok(known)
}

/// Those of these types that can be computed: they stay plain, they have no codebook, or the host's decoder gives it.
pub fn readable(types: HostTypes) -> HostTypes {
    let mut readable = types.only_plain();
    for ty in WeightType::ALL.iter().filter(|ty| types.has(**ty)) {
        if decoders::make_readable(*ty) {
            readable.add(*ty);
        } else {
            debug!("{} is left to the host: its codebook was not found", ty.info().name);
        }
    }
    readable
}

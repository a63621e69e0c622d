//! Which of our weight types a host has.

use super::super::abi::{TYPE_F32, TYPE_I32};
use super::super::symbols::{self, Symbols};
use super::super::{Flavour, HostTypes};
use super::{ensure, text};
use crate::debug;
use crate::format::WeightType;
use crate::panel::plain;

/// What the host has at the number of a type in its table: its name, weights and bytes per block.
fn host_type(symbols: &Symbols, number: i32) -> (String, i64, usize) {
    // SAFETY: only numbers in the table are asked for.
    unsafe {
        let name = text((symbols.ggml_type_name)(number));
        match name.as_str() {
            "" | "NONE" => (name, 0, 0),
            _ => (name, (symbols.ggml_blck_size)(number), (symbols.ggml_type_size)(number)),
        }
    }
}

/// The numbers of our weight types name the same types in the host. Those that came later than the others
/// may be missing, or be something else in a fork: then they are left alone.
pub fn types(symbols: &Symbols, flavour: Flavour) -> Result<HostTypes, String> {
    let last = symbols::last_type(flavour);
    debug!("the host has types up to number {last} at least");
    let host_type = |number| if number <= last { host_type(symbols, number) } else { (String::new(), 0, 0) };
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
pub fn readable(types: HostTypes) -> HostTypes {
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

//! The host's decoders (`dequantize_row_...`). They give the codebooks of IQ1 to IQ3, which this library does not
//! contain, and tell how far the host's table of types reaches.

use std::ffi::CStr;

use libc::c_void;

use super::flavour::Flavour;
use super::loader::Scope;
use super::symbols::{find, weak_table};
use crate::format::{Dequantise, WeightType};

/// Declares the decoders of types with codebooks. A host may lack them.
macro_rules! codebook_decoders {
    ($($name:literal,)*) => {
        weak_table!(ggml_amx_codebook_decoders; $($name,)*);

        const CODEBOOK_DECODERS: &[&str] = &[$($name),*];
    };
}

codebook_decoders! {
    "dequantize_row_iq2_xxs",
    "dequantize_row_iq2_xs",
    "dequantize_row_iq2_s",
    "dequantize_row_iq3_xxs",
    "dequantize_row_iq3_s",
    "dequantize_row_iq1_s",
    "dequantize_row_iq1_m",
}

/// ggml's decoder `name`, if this process has it.
fn decoder(name: &'static CStr) -> Option<Dequantise> {
    let index = CODEBOOK_DECODERS.iter().position(|n| n.as_bytes() == name.to_bytes())?;
    let linked = ggml_amx_codebook_decoders(index);
    // The same in all versions of either flavour.
    let scopes = [Flavour::Llama, Flavour::Ik].map(Flavour::scope);
    let found = scopes.into_iter().find_map(|scope| find(scope, linked, name));
    // SAFETY: ggml's functions of these names all have this type.
    found.map(|address| unsafe { std::mem::transmute::<*const c_void, Dequantise>(address) })
}

/// Makes sure that products with `ty` can be computed: if the type has a codebook that was not read yet, it is read off
/// ggml's decoder. False if there is no decoder, or if it decodes in another way than is known here.
pub fn make_readable(ty: WeightType) -> bool {
    let Some(codebook) = ty.info().codebook.filter(|c| !(c.is_there)()) else { return true };
    // SAFETY: the decoder is ggml's of that name.
    decoder(codebook.decoder).is_some_and(|decode| unsafe { (codebook.read)(decode) })
}

/// The last number that every ggml since 2024 has in its table of types.
pub(super) const LAST_OLD_TYPE: i32 = 30;

/// Declares types that came later, by number and decoder.
macro_rules! later_types {
    ($($number:literal $decoder:literal,)*) => {
        weak_table!(ggml_amx_later_types; $(concat!("dequantize_row_", $decoder),)*);

        const LATER_TYPES: &[(i32, &str)] = &[$(($number, concat!("dequantize_row_", $decoder, "\0"))),*];
    };
}

later_types! {
    34 "tq1_0",
    35 "tq2_0",
    39 "mxfp4",
    40 "nvfp4",
    41 "q1_0",
    42 "q2_0",
    // ik_llama.cpp's. Its table has all numbers in between too.
    133 "q6_0",
    141 "iq6_k",
    152 "iq5_ks",
    158 "iq1_kt",
    340 "iq5_k_r4",
    352 "iq5_ks_r4",
    399 "q8_k_r8",
}

/// The highest number that the host's table of types is known to have. No function tells where the table ends, and for
/// a number past the end ggml reads other memory or ends the process, depending on version and build. New types are
/// appended, and their decoders are exported, so the table reaches at least to the last type whose decoder is there.
pub(super) fn last_type(flavour: Flavour) -> i32 {
    let scope = flavour.scope();
    let is_there = |(index, (_, decoder)): &(usize, &(i32, &str))| {
        let name = CStr::from_bytes_with_nul(decoder.as_bytes()).expect("ends with NUL");
        if scope == Scope::GLOBAL {
            find(scope, ggml_amx_later_types(*index), name).is_some()
        } else {
            // Nowhere else: another host of the process may have more types.
            scope.find(name).is_some()
        }
    };
    let found = LATER_TYPES.iter().enumerate().filter(is_there).map(|(_, (number, _))| *number);
    if cfg!(mutant = "types-without-end") { i32::MAX } else { found.max().unwrap_or(LAST_OLD_TYPE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_decoder_of_a_codebook_is_looked_for() {
        let wanted = WeightType::ALL.iter().filter_map(|ty| ty.info().codebook).map(|c| c.decoder.to_str().unwrap());
        let (mut wanted, mut listed) = (wanted.collect::<Vec<_>>(), CODEBOOK_DECODERS.to_vec());
        wanted.sort_unstable();
        listed.sort_unstable();
        assert_eq!(wanted, listed);
    }

    #[test]
    fn every_type_that_is_packed_can_be_asked_for() {
        let last = WeightType::ALL.iter().map(|ty| *ty as i32).filter(|n| *n < 100).max().unwrap();
        assert!(LATER_TYPES.iter().any(|(number, _)| *number == last));
        let ik = WeightType::ALL.iter().map(|ty| *ty as i32).max().unwrap();
        assert!(LATER_TYPES.iter().any(|(number, _)| *number >= ik));
        assert!(LATER_TYPES.is_sorted());
    }

    #[test]
    fn without_later_decoders_only_old_types_are_asked_for() {
        assert_eq!(last_type(Flavour::Llama), LAST_OLD_TYPE);
    }
}

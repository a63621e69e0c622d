//! Types that only ik_llama.cpp has, and that are not packed here: the host's own decoder is called on the way.

use std::ffi::CStr;

use libc::c_char;

use super::IkSymbols;
use crate::debug;
use crate::panel::decoded::{DecodedType, ToFloat};

/// `ggml_type_traits_t` (ggml.h), which the host gives by value.
#[repr(C)]
pub struct TypeTraits {
    name: *const c_char,
    block: i64,
    interleaved: i64,
    bytes: usize,
    is_quantized: bool,
    to_float: Option<ToFloat>,
    from_float: [*const libc::c_void; 3],
    vec_dot: *const libc::c_void,
    vec_dot_type: i32,
    rows_and_columns: [i64; 2],
    gemv_and_gemm: [*const libc::c_void; 2],
    row_meta_size: i64,
}

/// The types' numbers and names, and how many rows lie interleaved. Others have no decoder, or one that leaves out what
/// stands in front of a row.
const KNOWN: [(i32, &CStr, usize); 36] = [
    (144, c"iq4_ks", 1),
    (145, c"iq2_ks", 1),
    (146, c"iq4_kss", 1),
    (151, c"q8_KV", 1),
    (152, c"iq5_ks", 1),
    (153, c"iq2_kt", 1),
    (154, c"iq3_kt", 1),
    (155, c"iq4_kt", 1),
    (156, c"iq3_ks", 1),
    (157, c"iq2_kl", 1),
    (158, c"iq1_kt", 1),
    (202, c"q4_0_r8", 8),
    (206, c"q5_0_r4", 4),
    (208, c"q8_0_r8", 8),
    (210, c"q2_k_r4", 4),
    (211, c"q3_k_r4", 4),
    (212, c"q4_k_r4", 4),
    (213, c"q5_k_r4", 4),
    (214, c"q6_k_r4", 4),
    (216, c"iq2_xxs_r4", 4),
    (217, c"iq2_xs_r4", 4),
    (218, c"iq3_xxs_r4", 4),
    (220, c"iq4_nl_r4", 4),
    (221, c"iq3_s_r4", 4),
    (222, c"iq2_s_r4", 4),
    (223, c"iq4_xs_r8", 8),
    (233, c"q6_0_r4", 4),
    (337, c"iq2_k_r4", 4),
    (338, c"iq3_k_r4", 4),
    (339, c"iq4_k_r4", 4),
    (340, c"iq5_k_r4", 4),
    (344, c"iq4_ks_r4", 4),
    (352, c"iq5_ks_r4", 4),
    (397, c"q8_k_r16", 16),
    (398, c"q8_KV_r8", 8),
    (399, c"q8_k_r8", 8),
];

/// The types that the host has under these numbers and names. Made once, never freed.
pub fn decoded(symbols: &IkSymbols) -> Vec<&'static DecodedType> {
    let type_of = |(number, name, together): (i32, &'static CStr, usize)| {
        // SAFETY: the host answers for any number; traits are asked for only where it has a type of this name.
        let traits = unsafe {
            let found = (symbols.ggml_type_name)(number);
            let same = !found.is_null() && CStr::from_ptr(found) == name;
            same.then(|| (symbols.ggml_internal_get_type_traits)(number))?
        };
        let (block, meta) = (usize::try_from(traits.block).ok()?, usize::try_from(traits.row_meta_size).ok()?);
        // SAFETY: the layout is proved by what was found: the name is where it should be, and the sizes are sensible.
        let proved = traits.name == unsafe { (symbols.ggml_type_name)(number) }
            && [32, 256].contains(&block)
            // SAFETY: as above.
            && traits.bytes == unsafe { (symbols.ggml_type_size)(number) }
            && meta <= 16;
        let ty = DecodedType {
            number,
            name: name.to_str().ok()?,
            block,
            bytes: traits.bytes,
            meta,
            together,
            to_float: traits.to_float.filter(|_| proved)?,
        };
        Some(&*Box::leak(Box::new(ty)))
    };
    let types: Vec<_> = KNOWN.into_iter().filter_map(type_of).collect();
    debug!("decoded by the host: {}", types.iter().map(|t| t.name).collect::<Vec<_>>().join(" "));
    types
}

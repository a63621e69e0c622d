//! Types that only ik_llama.cpp has and that are not packed here. Some are interleaved forms of types that are packed:
//! those are read as they are. For the others the host's own decoder is called, whenever their weights are multiplied.

use std::ffi::CStr;

use super::symbols::IkSymbols;
use crate::cpu::Avx512;
use crate::debug;
use crate::format::{Format, LANES, WeightType, interleaved};
use crate::host::decoders::last_type;
use crate::host::{Flavour, Symbols};
use crate::panel::decoded::DecodedType;
use crate::panel::in_place::WeightRows;
use crate::with_format;

/// ggml's number and name of each type that weights may have, and how many rows it interleaves. Types that are not
/// listed have no decoder, or one that does not read what stands in front of a row.
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

/// ggml's numbers of the interleaved types that are read here, and the types that they are made of.
const INTERLEAVED: [(i32, WeightType); 8] = [
    (202, WeightType::Q4_0),
    (208, WeightType::Q8_0),
    (212, WeightType::Q4_K),
    (213, WeightType::Q5_K),
    (214, WeightType::Q6_K),
    (220, WeightType::IQ4_NL),
    (223, WeightType::IQ4_XS),
    (339, WeightType::IQ4_K),
];

/// Those of [`INTERLEAVED`] that the host has and decodes as this library does.
pub fn interleaved(decoded: &[&DecodedType]) -> Vec<(i32, WeightType)> {
    let same = |(number, ty): &(i32, WeightType)| {
        decoded.iter().any(|host| host.number == *number && with_format!(*ty, F => reads_the_same::<F>(host)))
    };
    let types: Vec<_> = INTERLEAVED.into_iter().filter(same).collect();
    debug!("read interleaved: {}", types.iter().map(|(_, ty)| ty.info().name).collect::<Vec<_>>().join(" "));
    types
}

/// Whether the host decodes an interleaved block to the same weights as this library, on one block of made-up bytes.
fn reads_the_same<F: Format>(host: &DecodedType) -> bool {
    let (interleave, info) = (interleaved::interleave(F::TYPE), F::TYPE.info());
    if Avx512::new().is_none()
        || (host.interleave, host.block, host.bytes, host.meta) != (interleave, F::BLOCK, F::BYTES, 0)
    {
        return false;
    }
    let mut block: Vec<u8> = (0..interleave * F::BYTES).map(|i| (i * 89 + i / 13 * 31) as u8).collect();
    // Scales and minima of all rows stand first, in at most 16 bytes. They get numbers about 1, so that results are
    // finite.
    let scales = 16.min(2 * interleave * if F::HAS_MIN { 2 } else { 1 });
    for (i, number) in block[..scales].chunks_exact_mut(2).enumerate() {
        number.copy_from_slice(&half::f16::from_f32(0.5 + i as f32 / 8.0).to_le_bytes());
    }
    let (mut theirs, mut packed) = (vec![0f32; interleave * F::BLOCK], vec![0; LANES * F::BYTES]);
    let rows = WeightRows { data: block.as_ptr(), stride: F::BYTES, rows: interleave, interleave };
    // SAFETY: `block` has one block of each row, `theirs` and `packed` have room for its weights, and AVX-512 is there.
    unsafe {
        (host.to_float)(block.as_ptr().cast(), theirs.as_mut_ptr(), theirs.len() as i64);
        rows.pack::<F>(0, 0, 1, packed.as_mut_ptr());
    }
    let mut ours = vec![0f32; theirs.len()];
    for group in 0..F::BLOCK / F::GROUP {
        let mut quants = vec![0; LANES * F::GROUP];
        F::quants(&packed, group, &mut quants);
        let scales = F::scales(&packed, group);
        for lane in 0..interleave {
            for k in 0..F::GROUP {
                let q = f32::from(quants[k / 4 * 4 * LANES + lane * 4 + k % 4]);
                ours[lane * F::BLOCK + group * F::GROUP + k] = scales.scale[lane] * q + scales.min[lane];
            }
        }
    }
    // The host's decoder may round differently.
    let same = ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() <= 1e-5 * a.abs().max(1.0));
    if !same {
        debug!("{} is not the interleaved {} that is known here", host.name, info.name);
    }
    same
}

/// ggml's numbers and names of the types of a KV cache that the host decodes; none interleaves rows.
const CACHE: [(i32, &CStr, usize); 5] =
    [(2, c"q4_0", 1), (3, c"q4_1", 1), (8, c"q8_0", 1), (20, c"iq4_nl", 1), (133, c"q6_0", 1)];

/// Types that weights may have and that this host decodes.
pub fn decoded(symbols: &Symbols, ik: &IkSymbols) -> Vec<&'static DecodedType> {
    let types = found(symbols, ik, &KNOWN);
    debug!("decoded by the host: {}", types.iter().map(|t| t.name).collect::<Vec<_>>().join(" "));
    types
}

/// Types that a KV cache may have and that this host decodes.
pub fn cached(symbols: &Symbols, ik: &IkSymbols) -> Vec<&'static DecodedType> {
    found(symbols, ik, &CACHE)
}

/// Those of `types` (ggml's number, name, interleaved rows) that the host has under these numbers and names. Never
/// freed.
fn found(symbols: &Symbols, ik: &IkSymbols, types: &[(i32, &'static CStr, usize)]) -> Vec<&'static DecodedType> {
    let last = last_type(Flavour::Ik);
    let type_of = |&(number, name, interleave): &(i32, &'static CStr, usize)| {
        if number > last {
            return None;
        }
        // SAFETY: the number is below the end of the host's table, and its traits are asked for only if it has this
        // name.
        let traits = unsafe {
            let found = (symbols.ggml_type_name)(number);
            let same = !found.is_null() && CStr::from_ptr(found) == name;
            same.then(|| (ik.ggml_internal_get_type_traits)(number))?
        };
        let (block, meta) = (usize::try_from(traits.block).ok()?, usize::try_from(traits.row_meta_size).ok()?);
        // The struct has the members that are known if the name is where it should be and the sizes are sensible.
        // SAFETY: the host has a type of this number.
        let proved = traits.name == unsafe { (symbols.ggml_type_name)(number) }
            && [32, 256].contains(&block)
            // SAFETY: as for the name.
            && traits.bytes == unsafe { (symbols.ggml_type_size)(number) }
            && meta <= 16;
        let ty = DecodedType {
            number,
            name: name.to_str().ok()?,
            block,
            bytes: traits.bytes,
            meta,
            interleave,
            to_float: traits.to_float.filter(|_| proved)?,
        };
        Some(&*Box::leak(Box::new(ty)))
    };
    types.iter().filter_map(type_of).collect()
}

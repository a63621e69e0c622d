//! Decoders of the types with codebooks, for tests without ggml: they do what ggml's functions do, one weight at a
//! time, with made-up codebooks.

use std::ffi::{CStr, c_void};

use super::{Dequantise, WeightType};

/// The weight types, all of them readable.
pub fn all_types() -> &'static [WeightType] {
    for ty in WeightType::ALL {
        // SAFETY: `decoder` gives decoders of the type.
        assert!(unsafe { ty.make_readable(|name| Some(decoder(name))) }, "{ty:?}");
    }
    WeightType::ALL
}

/// The stand-in for ggml's function `name`.
pub fn decoder(name: &CStr) -> Dequantise {
    match name.to_str().unwrap() {
        "dequantize_row_iq3_xxs" => iq3_xxs,
        "dequantize_row_iq3_s" => iq3_s,
        "dequantize_row_iq2_xxs" => iq2_xxs,
        "dequantize_row_iq2_xs" => iq2_xs,
        "dequantize_row_iq2_s" => iq2_s,
        "dequantize_row_iq1_s" => iq1_s,
        "dequantize_row_iq1_m" => iq1_m,
        other => panic!("{other}"),
    }
}

/// Number `j` of entry `index` in a made-up codebook of these numbers.
fn entry(levels: &[f32], index: usize, j: usize) -> f32 {
    let hash = (index * 8 + j + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    levels[(hash >> 40) % levels.len()]
}

/// Writes `n` weights of blocks of `bytes` bytes at `x`. `weight` gives scale, magnitude and sign (true: negative) of
/// one weight of a block.
///
/// # Safety
/// **`n` weights**: `x` has the blocks of `n` weights, `y` room for `n` floats. That is what a caller of a
/// [`Dequantise`] promises.
unsafe fn decode_all(
    x: *const c_void,
    y: *mut f32,
    n: i64,
    bytes: usize,
    weight: impl Fn(&[u8], usize) -> (f32, f32, bool),
) {
    for i in 0..n as usize {
        // SAFETY: `i` is below `n`.
        unsafe {
            let block = std::slice::from_raw_parts(x.cast::<u8>().add(i / 256 * bytes), bytes);
            let (scale, value, negative) = weight(block, i % 256);
            *y.add(i) = scale * value * if negative { -1.0 } else { 1.0 };
        }
    }
}

fn word(b: &[u8], at: usize) -> usize {
    usize::from(b[at]) | usize::from(b[at + 1]) << 8
}

fn f16(bits: usize) -> f32 {
    half::f16::from_bits(bits as u16).to_f32()
}

/// Sign `j` of 8, of which the first 7 are `bits`; the eighth makes the number of negative ones even.
fn negative(bits: usize, j: usize) -> bool {
    if j == 7 { bits.count_ones() % 2 == 1 } else { bits >> j & 1 == 1 }
}

fn nibble(b: &[u8], at: usize, i: usize) -> f32 {
    f32::from(b[at + i / 2] >> (i % 2 * 4) & 15)
}

const IQ2: [f32; 3] = [7.0, 26.0, 43.0];

unsafe extern "C" fn iq3_xxs(x: *const c_void, y: *mut f32, n: i64) {
    const LEVELS: [f32; 8] = [3.0, 13.0, 20.0, 29.0, 35.0, 44.0, 53.0, 62.0];
    let weight = |b: &[u8], i: usize| {
        let dword = word(b, 66 + i / 32 * 4) | word(b, 68 + i / 32 * 4) << 16;
        let value = entry(&LEVELS, b[2 + i / 4].into(), i % 4);
        (f16(word(b, 0)) * (0.5 + (dword >> 28) as f32) * 0.5, value, negative(dword >> (i % 32 / 8 * 7) & 127, i % 8))
    };
    // SAFETY: `n` weights.
    unsafe { decode_all(x, y, n, 98, weight) }
}

unsafe extern "C" fn iq3_s(x: *const c_void, y: *mut f32, n: i64) {
    const LEVELS: [f32; 8] = [1.0, 2.0, 5.0, 7.0, 9.0, 12.0, 13.0, 15.0];
    let weight = |b: &[u8], i: usize| {
        let index = usize::from(b[2 + i / 4]) | usize::from(b[66 + i / 32] >> (i / 4 % 8) & 1) << 8;
        let scale = f16(word(b, 0)) * (1.0 + 2.0 * nibble(b, 106, i / 32));
        (scale, entry(&LEVELS, index, i % 4), b[74 + i / 8] >> (i % 8) & 1 == 1)
    };
    // SAFETY: `n` weights.
    unsafe { decode_all(x, y, n, 110, weight) }
}

unsafe extern "C" fn iq2_xxs(x: *const c_void, y: *mut f32, n: i64) {
    let weight = |b: &[u8], i: usize| {
        let at = 2 + i / 32 * 8;
        let dword = word(b, at + 4) | word(b, at + 6) << 16;
        let value = entry(&IQ2, b[at + i % 32 / 8].into(), i % 8);
        (f16(word(b, 0)) * (0.5 + (dword >> 28) as f32) * 0.25, value, negative(dword >> (i % 32 / 8 * 7) & 127, i % 8))
    };
    // SAFETY: `n` weights.
    unsafe { decode_all(x, y, n, 66, weight) }
}

unsafe extern "C" fn iq2_xs(x: *const c_void, y: *mut f32, n: i64) {
    let weight = |b: &[u8], i: usize| {
        let word_ = word(b, 2 + i / 8 * 2);
        let scale = f16(word(b, 0)) * (0.5 + nibble(b, 66, i / 16)) * 0.25;
        (scale, entry(&IQ2, word_ & 511, i % 8), negative(word_ >> 9, i % 8))
    };
    // SAFETY: `n` weights.
    unsafe { decode_all(x, y, n, 74, weight) }
}

unsafe extern "C" fn iq2_s(x: *const c_void, y: *mut f32, n: i64) {
    let weight = |b: &[u8], i: usize| {
        let index = usize::from(b[2 + i / 8]) | usize::from(b[66 + i / 32] >> (i % 32 / 8 * 2) & 3) << 8;
        let scale = f16(word(b, 0)) * (0.5 + nibble(b, 74, i / 16)) * 0.25;
        (scale, entry(&IQ2, index, i % 8), b[34 + i / 8] >> (i % 8) & 1 == 1)
    };
    // SAFETY: `n` weights.
    unsafe { decode_all(x, y, n, 82, weight) }
}

const IQ1: [f32; 3] = [-1.0, 0.0, 1.0];

unsafe extern "C" fn iq1_s(x: *const c_void, y: *mut f32, n: i64) {
    let weight = |b: &[u8], i: usize| {
        let high = word(b, 34 + i / 32 * 2);
        let index = usize::from(b[2 + i / 8]) | (high >> (i % 32 / 8 * 3) & 7) << 8;
        let delta = if high >> 15 == 1 { -0.125 } else { 0.125 };
        (f16(word(b, 0)) * (2 * (high >> 12 & 7) + 1) as f32, entry(&IQ1, index, i % 8) + delta, false)
    };
    // SAFETY: `n` weights.
    unsafe { decode_all(x, y, n, 50, weight) }
}

unsafe extern "C" fn iq1_m(x: *const c_void, y: *mut f32, n: i64) {
    let weight = |b: &[u8], i: usize| {
        let d = f16((0..4).map(|j| word(b, 48 + 2 * j) >> 12 << (4 * j)).sum());
        let high = usize::from(b[32 + i / 16] >> (i / 8 % 2 * 4) & 15);
        let delta = if high >> 3 == 1 { -0.125 } else { 0.125 };
        let scale = d * (2 * (word(b, 48 + i / 64 * 2) >> (i / 16 % 4 * 3) & 7) + 1) as f32;
        (scale, entry(&IQ1, usize::from(b[i / 8]) | (high & 7) << 8, i % 8) + delta, false)
    };
    // SAFETY: `n` weights.
    unsafe { decode_all(x, y, n, 56, weight) }
}

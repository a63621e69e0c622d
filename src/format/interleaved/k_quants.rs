//! Q4_K_R4, Q5_K_R4 and Q6_K_R4.

use std::arch::x86_64::*;

use super::super::LANES;
use super::Blocks;
use super::shuffles::*;

/// The beginning of Q4_K_R4 and Q5_K_R4: f16 d of 4 rows, then dmin; 16 bytes with the upper two bits of scales (bits 0
/// and 1 for groups 0..4, bits 4 and 5 for groups 4..8) and of minima (the bits between); 32 bytes with the lower four
/// of both.
///
/// # Safety
/// Whole blocks, as for [`super::pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn k_scales(blocks: &Blocks, out: *mut u8) {
    // SAFETY: whole blocks; the offsets are those of the fields.
    let (both, high, first, second) = unsafe {
        (
            of_4_rows(blocks, 0),
            transposed(of_4_rows(blocks, 16)),
            transposed(of_4_rows(blocks, 32)),
            transposed(of_4_rows(blocks, 48)),
        )
    };
    let left = _mm512_slli_epi16::<2>(high);
    let scales = select(15, first, select(0x30, _mm512_slli_epi16::<4>(high), left));
    let minima = select(15, _mm512_srli_epi16::<4>(first), select(0x30, left, high));
    // SAFETY: whole blocks; the offsets are those of the fields.
    unsafe {
        store(out, 0, _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), both));
        store(out, 4 * LANES, scales);
        store(out, 8 * LANES, minima);
        store(out, 12 * LANES, second);
    }
}

/// Q4_K_R4: scales, then the nibbles of each group (see [`nibbles_of_32`]).
///
/// # Safety
/// Whole blocks, as for [`super::pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn q4_k(blocks: &Blocks, out: *mut u8) {
    // SAFETY: whole blocks; the offsets are those of the fields.
    unsafe {
        k_scales(blocks, out);
        for i in 0..4 {
            nibbles_of_64(blocks, 64 + 128 * i, 128 + 128 * i, out.add(16 * LANES + vectors(8 * i)));
        }
    }
}

/// Q5_K_R4: scales; 16 bytes of fifth bits for each group, those of eight weights in a byte; nibbles.
///
/// # Safety
/// Whole blocks, as for [`super::pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn q5_k(blocks: &Blocks, out: *mut u8) {
    // SAFETY: whole blocks; the offsets are those of the fields.
    unsafe {
        k_scales(blocks, out);
        let mut v: [__m512i; 8] = std::array::from_fn(|group| of_4_rows(blocks, 64 + 16 * group));
        for i in [0, 2, 4, 6] {
            swap::<1>(&mut v, i, i + 1, 0x55);
        }
        for i in [0, 1, 4, 5] {
            swap::<2>(&mut v, i, i + 2, 0x33);
        }
        for i in 0..4 {
            swap::<4>(&mut v, i, i + 4, 0x0f);
        }
        for (i, bits) in v.into_iter().enumerate() {
            store(out, 16 * LANES + vectors(i / 4 * 4 + HIGH_ORDER[i % 4]), bits);
        }
        for i in 0..4 {
            nibbles_of_64(blocks, 192 + 128 * i, 256 + 128 * i, out.add(48 * LANES + vectors(8 * i)));
        }
    }
}

/// Q6_K_R4: f16 d of 4 rows, 64 signed scales, 256 bytes of upper bit pairs, nibbles.
///
/// # Safety
/// Whole blocks, as for [`super::pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn q6_k(blocks: &Blocks, out: *mut u8) {
    // SAFETY: whole blocks; the offsets are those of the fields.
    unsafe {
        _mm256_storeu_si256(out.add(208 * LANES).cast(), words_of_4_rows(blocks, 0));
        for i in 0..4 {
            store(out, 192 * LANES + vectors(i), transposed(of_4_rows(blocks, 8 + 16 * i)));
        }
        for half in 0..2 {
            for part in 0..2 {
                // One vector for each quarter of the half.
                let mut v: [__m512i; 4] =
                    std::array::from_fn(|i| of_4_rows(blocks, 72 + 32 * (4 * half + i) + 16 * part));
                swap::<2>(&mut v, 0, 1, 0x33);
                swap::<2>(&mut v, 2, 3, 0x33);
                swap::<4>(&mut v, 0, 2, 0x0f);
                swap::<4>(&mut v, 1, 3, 0x0f);
                for (i, bits) in v.into_iter().enumerate() {
                    store(out, 128 * LANES + vectors(8 * half + 4 * part + HIGH_ORDER[i]), bits);
                }
                let from = 328 + 64 * (4 * half + part);
                nibbles_of_64(blocks, from, from + 128, out.add(vectors(16 * half + 8 * part)));
            }
        }
    }
}

//! How types store the scales and minima of their groups: what all have in common, and the ways that several types
//! share. A type whose way is its own reads its scales itself.

use std::arch::x86_64::*;

use super::lanes::*;
use super::{BlockScales, Format, LANES};

/// Scales and minima of one group, one per row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GroupScales {
    /// Multiplies the signed quant.
    pub scale: [f32; LANES],
    /// Is added; all zero if the type has no minima.
    pub min: [f32; LANES],
}

impl GroupScales {
    /// Scales by row, without minima.
    pub(super) fn of(scale: impl FnMut(usize) -> f32) -> Self {
        Self { scale: std::array::from_fn(scale), ..Default::default() }
    }

    /// The same with minima.
    pub(super) fn with_min(scale: impl FnMut(usize) -> f32, min: impl FnMut(usize) -> f32) -> Self {
        Self { scale: std::array::from_fn(scale), min: std::array::from_fn(min) }
    }
}

/// Reads the scales of a type's groups.
pub trait ScaleReader {
    /// Whether a group has a minimum.
    const HAS_MIN: bool = false;

    /// See [`Format::scales`].
    fn read(block: &[u8], group: usize) -> GroupScales;

    /// See [`Format::scales_avx512`].
    ///
    /// # Safety
    /// `block` must be a whole block, as [`Format`] says, of a type with these scales.
    unsafe fn read_avx512(block: *const u8, group: usize) -> (__m512, __m512);

    /// See [`Format::block_scales_avx512`].
    ///
    /// # Safety
    /// `block` must be a whole block of `F`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn read_block_avx512<F: Format>(block: *const u8, out: &mut BlockScales) {
        for group in 0..F::BLOCK / F::GROUP {
            // SAFETY: a whole block.
            let (scale, min) = unsafe { Self::read_avx512(block, group) };
            out.set::<F>(group, scale, min);
        }
    }
}

/// One f16 for the whole block, at byte `AT` of it.
pub struct OneScale<const AT: usize>;

impl<const AT: usize> ScaleReader for OneScale<AT> {
    fn read(block: &[u8], _group: usize) -> GroupScales {
        GroupScales::of(|lane| f16_at(block, AT * LANES + 2 * lane))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn read_avx512(block: *const u8, _group: usize) -> (__m512, __m512) {
        // SAFETY: a whole block, with the number at `AT`.
        (unsafe { f16_lanes(block.add(AT * LANES)) }, _mm512_setzero_ps())
    }
}

/// A block begins with one f16 scale and one f16 minimum.
pub struct OneScaleAndMin;

impl ScaleReader for OneScaleAndMin {
    const HAS_MIN: bool = true;

    fn read(block: &[u8], _group: usize) -> GroupScales {
        GroupScales::with_min(|lane| f16_at(block, 2 * lane), |lane| f16_at(block, 2 * LANES + 2 * lane))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn read_avx512(block: *const u8, _group: usize) -> (__m512, __m512) {
        // SAFETY: a whole block, which begins with both numbers.
        unsafe { (f16_lanes(block), f16_lanes(block.add(2 * LANES))) }
    }
}

/// `d * (2s + 1) * unit`, `unit` a power of two: the scales of types with a codebook, and of IQ3_K.
pub(super) fn odd_scale(d: f32, s: u32, unit: f32) -> f32 {
    d * ((2 * s + 1) as f32 * unit)
}

/// [`odd_scale`] in registers; `s` are the bits in `mask`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn odd_scale_avx512(d: __m512, s: __m512i, mask: i32, unit: f32) -> __m512 {
    let s = _mm512_and_si512(s, _mm512_set1_epi32(mask));
    let odd = _mm512_or_si512(_mm512_slli_epi32::<1>(s), _mm512_set1_epi32(1));
    _mm512_mul_ps(d, _mm512_mul_ps(_mm512_cvtepi32_ps(odd), _mm512_set1_ps(unit)))
}

/// [`odd_scale`] with a unit of `EIGHTHS` / 8: a block begins with f16 d, nibbles s are at byte `AT` of it.
pub struct OddNibbles<const AT: usize, const EIGHTHS: usize>;

impl<const AT: usize, const EIGHTHS: usize> OddNibbles<AT, EIGHTHS> {
    const UNIT: f32 = EIGHTHS as f32 / 8.0;
}

impl<const AT: usize, const EIGHTHS: usize> ScaleReader for OddNibbles<AT, EIGHTHS> {
    fn read(block: &[u8], group: usize) -> GroupScales {
        let s = |lane| nibble_of_group(block, AT * LANES, group, lane);
        GroupScales::of(|lane| odd_scale(f16_at(block, 2 * lane), s(lane).into(), Self::UNIT))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn read_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: a whole block, which has d and the nibbles.
        let (d, s) = unsafe { (f16_lanes(block), byte_lanes(block.add(AT * LANES + group / 2 * LANES))) };
        let s = _mm512_srlv_epi32(s, _mm512_set1_epi32(group as i32 % 2 * 4));
        (odd_scale_avx512(d, s, 15, Self::UNIT), _mm512_setzero_ps())
    }
}

/// [`odd_scale`] with a unit of `EIGHTHS` / 8: a block begins with f16 d; s of a group are the upper four bits of a
/// 32-bit number, the first at byte `AT` of the block, the others `STRIDE` bytes apart.
pub struct OddUpperBits<const AT: usize, const STRIDE: usize, const EIGHTHS: usize>;

impl<const AT: usize, const STRIDE: usize, const EIGHTHS: usize> OddUpperBits<AT, STRIDE, EIGHTHS> {
    const UNIT: f32 = EIGHTHS as f32 / 8.0;
}

impl<const AT: usize, const STRIDE: usize, const EIGHTHS: usize> ScaleReader for OddUpperBits<AT, STRIDE, EIGHTHS> {
    fn read(block: &[u8], group: usize) -> GroupScales {
        let s = |lane| dword(&block[(AT + group * STRIDE) * LANES..], lane) >> 28;
        GroupScales::of(|lane| odd_scale(f16_at(block, 2 * lane), s(lane), Self::UNIT))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn read_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: a whole block, which has d and the group's number.
        let (d, s) = unsafe { (f16_lanes(block), dword_lanes(block.add((AT + group * STRIDE) * LANES))) };
        (odd_scale_avx512(d, _mm512_srli_epi32::<28>(s), 15, Self::UNIT), _mm512_setzero_ps())
    }
}

/// An integer scale per group: `d * s`, d as f32.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn times(d: __m512, s: __m512i) -> __m512 {
    _mm512_mul_ps(d, _mm512_cvtepi32_ps(s))
}

/// The negative of every number.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn negative(v: __m512) -> __m512 {
    _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(v), _mm512_set1_epi32(i32::MIN)))
}

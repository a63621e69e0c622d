//! Activations as the kernels of exact weights read them: int8 in blocks of 32 along K, each with an f32 scale, and the
//! integer sums that correct for unsigned weights and minima.
//!
//! Rows are grouped into tiles of 16; the last tile has what is left. Within a tile, block `b` of all its rows is
//! contiguous, 32 bytes each: what a TILELOADD with stride 32 loads, or a broadcast of 4 bytes. No row is padded: `m`
//! rows of `k` take exactly `m * k` bytes.

use std::arch::x86_64::*;

use super::scale::scale_of;
use crate::cpu::{Avx512, Isa};
use crate::format::ACT_BLOCK;

/// Rows of a tile.
const TILE: usize = 16;

/// Where the three arrays lie in a work buffer, in bytes from a 64-byte-aligned base.
#[derive(Clone, Copy, Debug)]
pub struct ActivationLayout {
    /// Rows.
    pub m: usize,
    /// Channels, a multiple of 32.
    pub k: usize,
    /// Channels per integer sum: 16 or 32, the group of the weights.
    pub group: usize,
    scales: usize,
    sums: usize,
    /// Bytes of all three, a multiple of 64.
    pub bytes: usize,
}

impl ActivationLayout {
    /// For `m` rows of `k` channels; `None` if that does not fit the address space.
    pub fn new(m: usize, k: usize, group: usize) -> Option<Self> {
        let quants = m.checked_mul(k)?.checked_next_multiple_of(64)?;
        let scales = (m * (k / ACT_BLOCK)).checked_mul(4)?.checked_next_multiple_of(64)?;
        let sums = (m * (k / group)).checked_mul(4)?.checked_next_multiple_of(64)?;
        let bytes = quants.checked_add(scales)?.checked_add(sums)?;
        Some(Self { m, k, group, scales: quants, sums: quants + scales, bytes })
    }

    /// The arrays at `base`.
    ///
    /// # Safety
    /// `base` must be 64-byte aligned and valid for `self.bytes` as long as the result is used.
    pub unsafe fn at(&self, base: *mut u8) -> Activations {
        // SAFETY: the offsets are below `bytes`.
        unsafe {
            Activations {
                m: self.m,
                k: self.k,
                group: self.group,
                quants: base.cast(),
                scales: base.add(self.scales).cast(),
                sums: base.add(self.sums).cast(),
            }
        }
    }
}

/// Quantised activations in a work buffer. Copies share it.
#[derive(Clone, Copy, Debug)]
pub struct Activations {
    /// Rows.
    pub m: usize,
    /// Channels.
    pub k: usize,
    /// Channels per integer sum.
    pub group: usize,
    quants: *mut i8,
    scales: *mut f32,
    sums: *mut i32,
}

/// One tile of [`Activations`]: up to 16 rows.
#[derive(Clone, Copy, Debug)]
pub struct Tile {
    /// Rows, 1 to 16. Blocks are `32 * rows` bytes apart.
    pub rows: usize,
    /// `[k / 32][rows][32]`.
    pub quants: *const i8,
    /// `[k / 32][rows]`.
    pub scales: *const f32,
    /// `[k / group][rows]`.
    pub sums: *const i32,
}

impl Activations {
    /// The tile that starts at row `16 * index`.
    #[inline]
    pub fn tile(&self, index: usize) -> Tile {
        debug_assert!(index * TILE < self.m);
        let first = index * TILE;
        // SAFETY: the rows before lie in full tiles, so `first` rows of each array come before this tile.
        unsafe {
            Tile {
                rows: (self.m - first).min(TILE),
                quants: self.quants.add(first * self.k),
                scales: self.scales.add(first * (self.k / ACT_BLOCK)),
                sums: self.sums.add(first * (self.k / self.group)),
            }
        }
    }

    /// Quantises block `block` of row `row` from 32 floats, `stride` bytes apart: `d = amax / 127`,
    /// `q = round-to-even(x * 127 / amax)`, with the rules of [`scale_of`] for NaN, infinity and very small numbers.
    ///
    /// # Safety
    /// The row and the block must exist and be used by no other thread; the 32 floats must be readable; `isa` must be
    /// usable.
    #[inline]
    pub unsafe fn quantise(&self, isa: Isa, row: usize, block: usize, x: *const u8, stride: usize) {
        let tile = self.tile(row / TILE);
        let (lane, per_block) = (row % TILE, ACT_BLOCK / self.group);
        // SAFETY: the tile has the row and the block, in each of its arrays.
        unsafe {
            let q = tile.quants.cast_mut().add((block * tile.rows + lane) * ACT_BLOCK);
            let mut sums = [0; 2];
            let scale = if isa >= Isa::Avx512 && stride == 4 {
                let proof = Avx512::new().unwrap_unchecked();
                quantise_avx512(proof, x.cast(), q, self.group, &mut sums)
            } else {
                let values: [f32; ACT_BLOCK] =
                    std::array::from_fn(|i| x.add(i * stride).cast::<f32>().read_unaligned());
                quantise_portable(&values, std::slice::from_raw_parts_mut(q, ACT_BLOCK), self.group, &mut sums)
            };
            *tile.scales.cast_mut().add(block * tile.rows + lane) = scale;
            for (i, sum) in sums[..per_block].iter().enumerate() {
                *tile.sums.cast_mut().add((block * per_block + i) * tile.rows + lane) = *sum;
            }
        }
    }
}

fn quantise_portable(x: &[f32; ACT_BLOCK], q: &mut [i8], group: usize, sums: &mut [i32; 2]) -> f32 {
    let amax = x.iter().map(|v| v.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
    let (scale, inverse) = scale_of(amax);
    for (i, (q, v)) in q.iter_mut().zip(x).enumerate() {
        // Where the scale is NaN, the quants only have to be defined.
        *q = if scale.is_nan() { 0 } else { (v * inverse).round_ties_even() as i8 };
        sums[i / group] += i32::from(*q);
    }
    scale
}

/// # Safety
/// `x` must be readable for 32 floats, `q` writable for 32 bytes; the proof stands for the features.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn quantise_avx512(_proof: Avx512, x: *const f32, q: *mut i8, group: usize, sums: &mut [i32; 2]) -> f32 {
    // SAFETY: `x` has 32 floats.
    let (lo, hi) = unsafe { (_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(16))) };
    let magnitude = _mm512_set1_epi32(0x7fff_ffff);
    let bits = |v| _mm512_and_si512(_mm512_castps_si512(v), magnitude);
    let amax = _mm512_reduce_max_epu32(_mm512_max_epu32(bits(lo), bits(hi)));
    let (scale, inverse) = scale_of(amax);
    if scale.is_nan() {
        // SAFETY: `q` has 32 bytes.
        unsafe { std::ptr::write_bytes(q, 0, ACT_BLOCK) };
        return scale;
    }
    let inverse = _mm512_set1_ps(inverse);
    let (lo, hi) = (_mm512_cvtps_epi32(_mm512_mul_ps(lo, inverse)), _mm512_cvtps_epi32(_mm512_mul_ps(hi, inverse)));
    // SAFETY: `q` has 32 bytes.
    unsafe {
        _mm_storeu_si128(q.cast(), _mm512_cvtepi32_epi8(lo));
        _mm_storeu_si128(q.add(16).cast(), _mm512_cvtepi32_epi8(hi));
    }
    if group == ACT_BLOCK {
        sums[0] = _mm512_reduce_add_epi32(_mm512_add_epi32(lo, hi));
    } else {
        *sums = [_mm512_reduce_add_epi32(lo), _mm512_reduce_add_epi32(hi)];
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantised(isa: Isa, x: &[f32; 32], group: usize) -> (Vec<i8>, f32, [i32; 2]) {
        let layout = ActivationLayout::new(1, 32, group).unwrap();
        let mut memory = vec![0u64; layout.bytes / 8];
        // SAFETY: the memory has the layout's size, the row is one block of 32 floats.
        unsafe {
            let a = layout.at(memory.as_mut_ptr().cast());
            a.quantise(isa, 0, 0, x.as_ptr().cast(), 4);
            let t = a.tile(0);
            let sums = if group == 16 { [*t.sums, *t.sums.add(1)] } else { [*t.sums, 0] };
            (std::slice::from_raw_parts(t.quants, 32).to_vec(), *t.scales, sums)
        }
    }

    fn samples() -> Vec<[f32; 32]> {
        let wave: [f32; 32] = std::array::from_fn(|i| ((i * 37 % 19) as f32 - 9.0) * 0.173);
        let mut nan = wave;
        nan[5] = f32::NAN;
        let mut infinite = wave;
        infinite[31] = f32::NEG_INFINITY;
        vec![wave, [0.0; 32], [1e-38; 32], wave.map(|v| v * 1e-31), wave.map(|v| v * 1e36), nan, infinite, [-127.5; 32]]
    }

    #[test]
    fn vector_and_portable_quantisers_agree_bit_for_bit() {
        if Avx512::new().is_none() {
            println!("SKIPPED: no AVX-512 VNNI");
            return;
        }
        for x in samples() {
            for group in [16, 32] {
                let (a, b) = (quantised(Isa::Portable, &x, group), quantised(Isa::Avx512, &x, group));
                assert_eq!((a.0, a.1.to_bits(), a.2), (b.0, b.1.to_bits(), b.2), "{x:?}");
            }
        }
    }

    #[test]
    fn quants_times_scale_are_within_half_a_step() {
        let x = samples()[0];
        let (q, d, sums) = quantised(Isa::Portable, &x, 16);
        for (q, x) in q.iter().zip(&x) {
            assert!((f32::from(*q) * d - x).abs() <= 0.501 * d);
        }
        assert_eq!(sums[0] + sums[1], q.iter().map(|q| i32::from(*q)).sum::<i32>());
    }

    #[test]
    fn blocks_that_are_not_finite_say_so() {
        for x in [samples()[5], samples()[6]] {
            assert!(quantised(Isa::Portable, &x, 32).1.is_nan());
        }
    }

    #[test]
    fn tiles_hold_exactly_the_rows() {
        let layout = ActivationLayout::new(33, 64, 32).unwrap();
        let mut memory = vec![0u64; layout.bytes / 8];
        // SAFETY: the memory has the layout's size.
        let a = unsafe { layout.at(memory.as_mut_ptr().cast()) };
        assert_eq!([a.tile(0).rows, a.tile(1).rows, a.tile(2).rows], [16, 16, 1]);
        assert_eq!(a.tile(2).quants as usize - a.tile(0).quants as usize, 32 * 64);
    }
}

//! Weights that stay where the host put them, as GGUF has them: 16 rows at a time are packed into scratch that stays in
//! the caches, just before they are multiplied.
//!
//! ```text
//! for every block (or two, where a pair is whole double words):
//!     for every move of the type's list:                        (moves: which bytes)
//!         load 16 bytes of each of 16 rows, transpose them      (shuffle: in registers)
//!         put bytes, halves or double words of all rows side by side, store
//! ```

mod moves;
mod shuffle;

use std::arch::x86_64::*;

use super::requant;
use crate::format::{ACT_BLOCK, Format, LANES, MOST_BYTES, interleaved};
use moves::{MAX_PAIR, Move, Moves, in_pairs};
use shuffle::{FullRows, RowSource, TailRows, by_halves, by_units, move_unit, transpose_words};

/// Some rows of a matrix of one of the packed types, or of the interleaved form of it that ik_llama.cpp has.
#[derive(Clone, Copy, Debug)]
pub struct WeightRows {
    /// First byte of the first row.
    pub data: *const u8,
    /// Bytes from one row to the next; of interleaved rows on average.
    pub stride: usize,
    /// Number of rows; a multiple of `interleave`.
    pub rows: usize,
    /// Rows that are interleaved: 1, or [`interleaved::interleave`] of the type.
    pub interleave: usize,
}

/// Most bytes that [`WeightRows::pack`] writes for `channels` channels, in whole blocks.
pub const fn packed_bytes(channels: usize) -> usize {
    (channels.next_multiple_of(256) / ACT_BLOCK) * MOST_BYTES * LANES
}

impl WeightRows {
    /// Channels `from..from + len` (whole blocks) of rows `16 * panel..16 * panel + 16`, laid out as
    /// [`requant::floats`] does. They are packed into `scratch` on the way.
    ///
    /// # Safety
    /// As for [`WeightRows::pack`] to `scratch`, which must be writable for [`packed_bytes`]; `out` must be writable
    /// for 16 floats per channel and 64-byte aligned.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn floats<F: Format>(&self, panel: usize, from: usize, len: usize, out: *mut f32, scratch: *mut u8) {
        // SAFETY: the rows have the channels; what was packed is a panel of them.
        unsafe {
            self.pack::<F>(panel, from / F::BLOCK, len / F::BLOCK, scratch);
            requant::floats::<F>(scratch, 0, len, out);
        }
    }

    /// Packs blocks `first..first + count` of rows `16 * panel..16 * panel + 16` to `out`. Rows past the last repeat
    /// it.
    ///
    /// # Safety
    /// The rows must be readable and have the blocks, `out` be writable for the packed ones; AVX-512 must be there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn pack<F: Format>(&self, panel: usize, first: usize, count: usize, out: *mut u8) {
        if self.interleave > 1 {
            // SAFETY: the rows have the blocks, and `out` room for them.
            return unsafe { self.pack_interleaved::<F>(panel, first, count, out) };
        }
        // The second panel of a pair may have no row at all.
        let row = (panel * LANES).min(self.rows - 1);
        let (from, stride) = (self.data.wrapping_add(row * self.stride + first * F::BYTES), self.stride);
        // SAFETY: the rows have the blocks, `out` has room for them, and neither source goes past the last row.
        unsafe {
            if row + LANES <= self.rows {
                pack_blocks::<F, _>(FullRows::new(from, stride), count, out);
            } else {
                pack_blocks::<F, _>(TailRows { first: from, stride, last: self.rows - 1 - row }, count, out);
            }
        }
    }

    /// [`WeightRows::pack`] of interleaved rows.
    ///
    /// # Safety
    /// As for [`WeightRows::pack`]; the type must have an interleaved form.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn pack_interleaved<F: Format>(&self, panel: usize, first: usize, count: usize, out: *mut u8) {
        let interleave = const { interleaved::interleave(F::TYPE) };
        debug_assert_eq!(self.interleave, interleave);
        let blocks: interleaved::Blocks = std::array::from_fn(|i| self.lane::<F>(panel, i * interleave, first));
        for block in 0..count {
            let blocks = blocks.map(|from| from.wrapping_add(block * interleave * F::BYTES));
            // SAFETY: the rows have the block, `out` has room for it.
            unsafe { interleaved::pack(F::TYPE, &blocks, out.wrapping_add(block * LANES * F::BYTES)) };
        }
    }

    /// Address of block `block` of the interleaved rows that row `lane` of a panel is the first of; of the last ones,
    /// if it is past them.
    #[inline(always)]
    fn lane<F: Format>(&self, panel: usize, lane: usize, block: usize) -> *const u8 {
        let row = (panel * LANES + lane).min(self.rows - self.interleave);
        self.data.wrapping_add(row * self.stride + block * self.interleave * F::BYTES)
    }
}

/// Packs the first `count` blocks of `rows`.
///
/// # Safety
/// As for [`WeightRows::pack`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack_blocks<F: Format, R: RowSource>(rows: R, count: usize, out: *mut u8) {
    let pairs = if const { in_pairs::<F>() } { count / 2 } else { 0 };
    for pair in 0..pairs {
        // SAFETY: the rows have both blocks, `out` has room for them.
        unsafe { pack_pair::<F, R>(rows.skip(pair * 2 * F::BYTES), out.wrapping_add(pair * 2 * LANES * F::BYTES)) };
    }
    let (moves, move_count) = const { Moves::<F>::ALL };
    for block in 2 * pairs..count {
        let (rows, out) = (rows.skip(block * F::BYTES), out.wrapping_add(block * LANES * F::BYTES));
        for step in &moves[..move_count] {
            // SAFETY: the rows have the block, `out` has room for it; moves stay inside.
            unsafe {
                match *step {
                    Move::Words { offset, units } => {
                        let words = transpose_words(&rows.skip(offset));
                        let out = out.add(LANES * offset);
                        _mm512_storeu_si512(out.cast(), by_units(words[0], units[0]));
                        _mm512_storeu_si512(out.add(64).cast(), by_units(words[1], units[1]));
                        _mm512_storeu_si512(out.add(128).cast(), by_units(words[2], units[2]));
                        _mm512_storeu_si512(out.add(192).cast(), by_units(words[3], units[3]));
                    }
                    Move::Unit { offset, unit } => move_unit(&rows.skip(offset), unit, out.add(LANES * offset)),
                }
            }
        }
    }
}

/// Packs two blocks of a type that is packed [`in_pairs`]. The double words of both are transposed as they lie; those
/// of the first block are then put together from the halves of two neighbours.
///
/// # Safety
/// As for [`WeightRows::pack`] of two blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack_pair<F: Format, R: RowSource>(rows: R, out: *mut u8) {
    const LOW: u32 = 0x5555_5555;
    let count = const { F::BYTES / 2 };
    let mut words = [_mm512_setzero_si512(); MAX_PAIR / 4];
    for four in 0..count.div_ceil(4) {
        // The last four may overlap those before.
        let first = if 4 * four + 4 <= count { 4 * four } else { count - 4 };
        // SAFETY: the rows have both blocks, in which the four double words lie.
        words[first..first + 4].copy_from_slice(&unsafe { transpose_words(&rows.skip(4 * first)) });
    }
    let (scale, quants) = (const { (F::BYTES - 2) / 4 }, const { (F::BYTES + 2) / 4 });
    let scales = by_halves(_mm512_mask_blend_epi16(LOW, words[scale], words[0]));
    let second = out.wrapping_add(LANES * F::BYTES);
    // SAFETY: `out` has room for two packed blocks.
    unsafe {
        _mm256_storeu_si256(out.cast(), _mm512_castsi512_si256(scales));
        _mm256_storeu_si256(second.cast(), _mm512_extracti64x4_epi64::<1>(scales));
        for j in 0..scale {
            let word = _mm512_rol_epi32::<16>(_mm512_mask_blend_epi16(LOW, words[j], words[j + 1]));
            _mm512_storeu_si512(out.add(2 * LANES + 64 * j).cast(), word);
            _mm512_storeu_si512(second.add(2 * LANES + 64 * j).cast(), words[quants + j]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu;
    use crate::format::WeightType;
    use crate::panel::weights::Shape;
    use crate::with_format;

    /// Given rows of every type, then packing some blocks of a panel gives what packing the tensor gives.
    #[test]
    fn blocks_of_rows_are_packed_as_the_tensor_is() {
        if cpu::isa() < cpu::Isa::Avx512 {
            println!("SKIPPED: no AVX-512");
            return;
        }
        for ty in WeightType::ALL {
            let (info, n) = (ty.info(), 37);
            let shape = Shape::new(*ty, 5 * info.block as i64, n as i64, 1).unwrap();
            let plain: Vec<u8> = (0..shape.plain_size()).map(|i| (i * 37 + i / 251) as u8).collect();
            let mut packed = vec![0; shape.packed_size()];
            // SAFETY: the buffers have the shape's sizes.
            unsafe { shape.write(packed.as_mut_ptr(), 0, &plain) };
            let rows = WeightRows { data: plain.as_ptr(), stride: shape.row_bytes, rows: n, interleave: 1 };
            for (panel, first, count) in [(0, 0, 5), (1, 2, 3)] {
                let bytes = LANES * info.bytes;
                assert!(count * bytes <= packed_bytes(count * info.block));
                let mut out = vec![0; count * bytes];
                // SAFETY: the rows have the blocks.
                unsafe { with_format!(*ty, F => rows.pack::<F>(panel, first, count, out.as_mut_ptr())) };
                let from = panel * shape.panel_bytes() + first * bytes;
                assert_eq!(out, packed[from..from + out.len()], "{ty:?} panel {panel}");
            }
            // The last panel repeats its last row; a panel behind it has nothing but that row.
            for (panel, first_missing) in [(2, 4), (3, 0)] {
                let mut out = vec![0; LANES * info.bytes];
                // SAFETY: the rows have the block, and `out` room for it.
                unsafe { with_format!(*ty, F => rows.pack::<F>(panel, 0, 1, out.as_mut_ptr())) };
                for byte in 0..info.bytes {
                    let at = |lane| out[info.fields.index(lane, byte)];
                    assert!(
                        (first_missing..LANES).all(|lane| at(lane) == plain[36 * shape.row_bytes + byte]),
                        "{ty:?}"
                    );
                }
            }
        }
    }
}

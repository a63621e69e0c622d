//! Weights that stay where the host put them, as GGUF has them: their rows are packed into panels on the
//! way, 16 rows and a stretch of channels at a time, in scratch that stays in the caches.

use std::arch::x86_64::*;

use crate::format::{ACT_BLOCK, Field, Format, LANES};

/// Some rows of a matrix of one of the packed types.
#[derive(Clone, Copy, Debug)]
pub struct WeightRows {
    /// The first.
    pub data: *const u8,
    /// Bytes from one to the next.
    pub stride: usize,
    /// How many.
    pub rows: usize,
}

/// Most bytes that [`WeightRows::pack`] writes for a stretch of this many channels: no type has more than 36
/// bytes in 32 weights, and blocks are whole.
pub const fn packed_bytes(channels: usize) -> usize {
    (channels.next_multiple_of(256) / ACT_BLOCK) * 36 * LANES
}

/// Bytes that are moved at a time: of each row.
const CHUNK: usize = 16;

impl WeightRows {
    /// Packs blocks `first..first + count` of rows `16 * panel..` to `out`. Rows that are not there repeat the last.
    ///
    /// # Safety
    /// The rows must have the blocks, `out` room for them; AVX-512 needed.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn pack<F: Format>(&self, panel: usize, first: usize, count: usize, out: *mut u8) {
        let rows: [*const u8; LANES] = std::array::from_fn(|lane| {
            let row = (panel * LANES + lane).min(self.rows - 1);
            self.data.wrapping_add(row * self.stride + first * F::BYTES)
        });
        for block in 0..count {
            let rows = rows.map(|row| row.wrapping_add(block * F::BYTES));
            let out = out.wrapping_add(block * LANES * F::BYTES);
            for field in F::FIELDS {
                // SAFETY: promised by the caller; fields lie inside the block.
                unsafe { interleave(field, &rows, out) };
            }
        }
    }
}

/// Moves one field of 16 blocks to its place in the packed block.
///
/// # Safety
/// The blocks must be readable, the packed block writable; AVX-512 needed.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn interleave(field: &Field, rows: &[*const u8; LANES], out: *mut u8) {
    let whole = field.len / CHUNK * CHUNK;
    // SAFETY: promised by the caller; the chunks cover the field once.
    unsafe {
        for at in (0..whole).step_by(CHUNK) {
            let words = transpose(rows, field.offset + at);
            let to = out.add(LANES * (field.offset + at));
            for (i, v) in words.into_iter().enumerate() {
                let v = match field.unit {
                    4 => v,
                    2 => halves_together(v),
                    _ => bytes_together(v),
                };
                _mm512_storeu_si512(to.add(64 * i).cast(), v);
            }
        }
        for at in (whole..field.len).step_by(field.unit) {
            let to = out.add(LANES * (field.offset + at));
            for (lane, row) in rows.iter().enumerate() {
                let from = row.add(field.offset + at);
                match field.unit {
                    4 => to.cast::<u32>().add(lane).write_unaligned(from.cast::<u32>().read_unaligned()),
                    2 => to.cast::<u16>().add(lane).write_unaligned(from.cast::<u16>().read_unaligned()),
                    _ => *to.add(lane) = *from,
                }
            }
        }
    }
}

/// 16 bytes at `offset` of each row: vector `i` has double word `i` of all rows.
///
/// # Safety
/// The rows must have the bytes; AVX-512 needed.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn transpose(rows: &[*const u8; LANES], offset: usize) -> [__m512i; 4] {
    // SAFETY: promised by the caller.
    let quarter = |row: usize| unsafe { _mm_loadu_si128(rows[row].add(offset).cast()) };
    // Quarter `q` of vector `i` has row `4 q + i`.
    let four = |i: usize| {
        let v = _mm512_castsi128_si512(quarter(i));
        let v = _mm512_inserti32x4::<1>(v, quarter(4 + i));
        let v = _mm512_inserti32x4::<2>(v, quarter(8 + i));
        _mm512_inserti32x4::<3>(v, quarter(12 + i))
    };
    let (a, b, c, d) = (four(0), four(1), four(2), four(3));
    let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab, cd),
        _mm512_unpackhi_epi64(ab, cd),
        _mm512_unpacklo_epi64(ab_high, cd_high),
        _mm512_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// The low halves of all 16 double words, then the high ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn halves_together(v: __m512i) -> __m512i {
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = (i % 16 * 2 + i / 16) as u16;
            i += 1;
        }
        order
    };
    // SAFETY: 64 bytes.
    _mm512_permutexvar_epi16(unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) }, v)
}

/// Byte 0 of all 16 double words, then byte 1, 2 and 3.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn bytes_together(v: __m512i) -> __m512i {
    let within = _mm512_set4_epi32(0x0f0b_0703, 0x0e0a_0602, 0x0d09_0501, 0x0c08_0400);
    let across = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_permutexvar_epi32(across, _mm512_shuffle_epi8(v, within))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu;
    use crate::format::WeightType;
    use crate::panel::weights::Shape;
    use crate::with_format;

    /// Given rows of every type, then packing a stretch of a panel gives what packing the tensor gives.
    #[test]
    fn a_stretch_of_rows_is_packed_as_the_tensor_is() {
        if cpu::best_isa() < cpu::Isa::Avx512 {
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
            let rows = WeightRows { data: plain.as_ptr(), stride: shape.row_bytes, rows: n };
            for (panel, first, count) in [(0, 0, 5), (1, 2, 3)] {
                let bytes = LANES * info.bytes;
                assert!(count * bytes <= packed_bytes(count * info.block));
                let mut out = vec![0; count * bytes];
                // SAFETY: the rows have the blocks.
                unsafe { with_format!(*ty, F => rows.pack::<F>(panel, first, count, out.as_mut_ptr())) };
                let from = panel * shape.panel_bytes() + first * bytes;
                assert_eq!(out, packed[from..from + out.len()], "{ty:?} panel {panel}");
            }
            // The last panel repeats its last row.
            let mut out = vec![0; LANES * info.bytes];
            // SAFETY: as above.
            unsafe { with_format!(*ty, F => rows.pack::<F>(2, 0, 1, out.as_mut_ptr())) };
            for byte in 0..info.bytes {
                let at = |lane| out[info.layout.index(lane, byte)];
                assert!((4..LANES).all(|lane| at(lane) == plain[36 * shape.row_bytes + byte]), "{ty:?}");
            }
        }
    }
}

//! Weights of types that only the host can read: rows are decoded by the host's own code, and the tile GEMM gets BF16
//! tiles of them.

use std::arch::x86_64::*;

use super::bf16::rounded;
use super::precision::{STEP_BF16, STEP_BYTES};
use super::transpose::transpose;
use crate::format::LANES;

/// The host's decoder of a type: `count` weights from `x` to `y`.
pub type ToFloat = unsafe extern "C" fn(x: *const libc::c_void, y: *mut f32, count: i64);

/// A type that the host decodes.
#[derive(Clone, Copy, Debug)]
pub struct DecodedType {
    /// ggml's number.
    pub number: i32,
    /// ggml's name.
    pub name: &'static str,
    /// Weights per block.
    pub block: usize,
    /// Bytes per block, of one row.
    pub bytes: usize,
    /// Bytes in front of a row's blocks. Rows that have such bytes are decoded whole.
    pub meta: usize,
    /// Rows whose blocks are interleaved: 1, 4, 8 or 16. The host decodes them in one call.
    pub interleave: usize,
    /// The decoder.
    pub to_float: ToFloat,
}

/// Some rows of a matrix; a multiple of the rows that are interleaved.
#[derive(Clone, Copy, Debug)]
pub struct DecodedRows {
    /// Their type.
    pub ty: &'static DecodedType,
    /// First byte of the first row.
    pub data: *const u8,
    /// Bytes from one row to the next; of interleaved rows on average.
    pub stride: usize,
    /// Number of rows.
    pub rows: usize,
    /// Channels of whole rows.
    pub k: usize,
}

/// Bytes of scratch to decode 16 rows of `k` channels, up to `kc` channels at a time; a multiple of 64.
pub const fn scratch_bytes(k: usize, kc: usize) -> usize {
    // The channels of a panel, and as many whole rows as may be interleaved.
    LANES * (kc.next_multiple_of(16) + k.next_multiple_of(16)) * 4
}

impl DecodedRows {
    /// Makes BF16 tiles of channels `from..from + len` of rows `16 * panel..16 * panel + 16`, laid out as
    /// [`super::requant::bf16`] does. Rows past the last repeat others.
    ///
    /// # Safety
    /// The rows must be readable and have the channels, which are multiples of 32 and of the block. `out` must be
    /// writable for their tiles, `scratch` for [`scratch_bytes`]. AVX-512 and its BF16 must be there.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn bf16(&self, panel: usize, from: usize, len: usize, out: *mut u8, scratch: *mut f32) {
        // SAFETY: the rows have the channels, and the scratch room for them.
        unsafe { self.decode_panel(panel, from, len, scratch) };
        for step in 0..len / STEP_BF16 {
            // SAFETY: the panel's floats are in the scratch, and `out` has the step.
            unsafe {
                let pairs: [__m512i; LANES] = std::array::from_fn(|lane| {
                    let x = scratch.add(lane * len + step * STEP_BF16);
                    rounded(_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(16)))
                });
                for (pair, lanes) in transpose(pairs).into_iter().enumerate() {
                    _mm512_store_si512(out.add(step * STEP_BYTES + 64 * pair).cast(), lanes);
                }
            }
        }
    }

    /// The same channels as floats: the 16 rows' weights of a channel lie side by side.
    ///
    /// # Safety
    /// As for [`DecodedRows::bf16`], `out` being writable for 16 floats per channel and 64-byte aligned.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn floats(&self, panel: usize, from: usize, len: usize, out: *mut f32, scratch: *mut f32) {
        // SAFETY: the rows have the channels, the scratch and `out` have room for them.
        unsafe {
            self.decode_panel(panel, from, len, scratch);
            for at in (0..len).step_by(LANES) {
                let rows = std::array::from_fn(|lane| _mm512_loadu_si512(scratch.add(lane * len + at).cast()));
                for (c, lanes) in transpose(rows).into_iter().enumerate() {
                    _mm512_store_si512(out.add((at + c) * LANES).cast(), lanes);
                }
            }
        }
    }

    /// Decodes channels `from..from + len` of 16 rows to the start of `scratch`, row by row.
    ///
    /// # Safety
    /// As for [`DecodedRows::bf16`].
    unsafe fn decode_panel(&self, panel: usize, from: usize, len: usize, scratch: *mut f32) {
        let interleave = self.ty.interleave;
        let whole_rows = scratch.wrapping_add(LANES * len);
        for first in (0..LANES).step_by(interleave) {
            let row = (panel * LANES + first).min(self.rows - interleave);
            // SAFETY: the row exists, as do those interleaved with it; the scratch has room for the panel and behind it
            // for so many whole rows.
            unsafe { self.decode(row, from, len, scratch.add(first * len), whole_rows) };
        }
    }

    /// Decodes channels `from..from + len` of row `row` and of those interleaved with it to `out`, row by row.
    ///
    /// # Safety
    /// As for [`DecodedRows::bf16`]; `whole_rows` must be writable for all channels of these rows.
    unsafe fn decode(&self, row: usize, from: usize, len: usize, out: *mut f32, whole_rows: *mut f32) {
        let (ty, at) = (self.ty, self.data.wrapping_add(row * self.stride));
        // SAFETY: the rows are readable, and the decoder reads as many blocks as `count` weights have.
        unsafe {
            if ty.meta == 0 {
                let at = at.add(from / ty.block * ty.bytes * ty.interleave);
                return (ty.to_float)(at.cast(), out, (len * ty.interleave) as i64);
            }
            (ty.to_float)(at.cast(), whole_rows, (self.k * ty.interleave) as i64);
            for i in 0..ty.interleave {
                std::ptr::copy_nonoverlapping(whole_rows.add(i * self.k + from), out.add(i * len), len);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Interleaved rows, and bytes of meta data, of the type under test.
    static INTERLEAVE: AtomicUsize = AtomicUsize::new(1);
    static META: AtomicUsize = AtomicUsize::new(0);

    /// A type with a byte per weight, in blocks of 32. Rows may be interleaved by blocks; the first meta byte of a row
    /// is added to its weights.
    unsafe extern "C" fn decode(x: *const libc::c_void, y: *mut f32, count: i64) {
        let (interleave, meta) = (INTERLEAVE.load(Ordering::Relaxed), META.load(Ordering::Relaxed));
        let k = count as usize / interleave;
        // SAFETY: the test's rows have as many bytes.
        unsafe {
            let x = x.cast::<u8>();
            for row in 0..interleave {
                let add = if meta > 0 { f32::from(*x.add(row * meta)) } else { 0.0 };
                for channel in 0..k {
                    let at = interleave * meta + (channel / 32 * interleave + row) * 32 + channel % 32;
                    *y.add(row * k + channel) = f32::from(*x.add(at).cast::<i8>()) + add;
                }
            }
        }
    }

    #[test]
    fn tiles_hold_every_weight_of_plain_and_interleaved_rows() {
        if cpu::isa() < cpu::Isa::Amx {
            println!("SKIPPED: no AMX");
            return;
        }
        for (interleave, meta) in [(1, 0), (4, 0), (1, 4), (4, 4)] {
            INTERLEAVE.store(interleave, Ordering::Relaxed);
            META.store(meta, Ordering::Relaxed);
            let ty: &'static DecodedType = Box::leak(Box::new(DecodedType {
                number: 300,
                name: "test",
                block: 32,
                bytes: 32,
                meta,
                interleave,
                to_float: decode,
            }));
            let (k, rows, from, len) = (128usize, 20usize, 32usize, 64usize);
            let value = |row: usize, channel: usize| ((row * 31 + channel * 7) % 200) as i32 - 100;
            let (stride, mut data) = (k + meta, vec![0u8; rows * (k + meta)]);
            for row in 0..rows {
                let (group, i) = (row / interleave, row % interleave);
                let base = group * interleave * stride;
                if meta > 0 {
                    data[base + i * meta] = row as u8;
                }
                for channel in 0..k {
                    let at = base + interleave * meta + (channel / 32 * interleave + i) * 32 + channel % 32;
                    data[at] = value(row, channel) as i8 as u8;
                }
            }
            let source = DecodedRows { ty, data: data.as_ptr(), stride, rows, k };
            let mut scratch = vec![0f32; scratch_bytes(k, len) / 4];
            let mut memory = vec![0u16; 2 * LANES * len + 64];
            let skip = memory.as_ptr().align_offset(64);
            let tiles = &mut memory[skip..];
            // SAFETY: the rows have the channels, tiles and scratch have the sizes asked for.
            unsafe { source.bf16(1, from, len, tiles.as_mut_ptr().cast(), scratch.as_mut_ptr()) };
            for lane in 0..LANES {
                let group = (LANES + lane / interleave * interleave).min(rows - interleave);
                let row = group + lane % interleave;
                for channel in 0..len {
                    let at =
                        channel / STEP_BF16 * STEP_BYTES / 2 + channel % STEP_BF16 / 2 * 32 + lane * 2 + channel % 2;
                    let expected = value(row, from + channel) + if meta > 0 { row as i32 } else { 0 };
                    let got = half::bf16::from_bits(tiles[at]).to_f32();
                    assert_eq!(got, expected as f32, "{interleave} {meta} lane {lane} channel {channel}");
                }
            }
        }
    }
}

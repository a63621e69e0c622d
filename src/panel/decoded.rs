//! Weights of types that this library does not know: rows are decoded by the host's own code on the way, and the tile
//! GEMM gets BF16 tiles of them.

use std::arch::x86_64::*;

use super::bf16::rounded;
use super::plain::transpose;
use super::precision::{STEP_BF16, STEP_BYTES};
use crate::format::LANES;

/// The host's decoder of a type: `count` weights from `x` to `y`.
pub type ToFloat = unsafe extern "C" fn(x: *const libc::c_void, y: *mut f32, count: i64);

/// A type of this kind.
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
    /// Bytes in front of the blocks of a row. Rows that have some are decoded whole.
    pub meta: usize,
    /// Rows whose blocks lie interleaved: 1, 4, 8 or 16. They are decoded together, with as many channels each.
    pub interleave: usize,
    /// The decoder.
    pub to_float: ToFloat,
}

/// Some rows of a matrix; their number is a multiple of those that lie together.
#[derive(Clone, Copy, Debug)]
pub struct DecodedRows {
    /// Their type.
    pub ty: &'static DecodedType,
    /// The first.
    pub data: *const u8,
    /// Bytes from one to the next; of interleaved rows on average.
    pub stride: usize,
    /// How many.
    pub rows: usize,
    /// Channels of the whole rows.
    pub k: usize,
}

/// Bytes of scratch to decode rows of `k` channels, `stretch` of them at a time; a multiple of 64.
pub const fn up_bytes(k: usize, stretch: usize) -> usize {
    // A panel's stretch, and as many whole rows as may lie together.
    LANES * (stretch.next_multiple_of(16) + k.next_multiple_of(16)) * 4
}

impl DecodedRows {
    /// Makes BF16 tiles of channels `from..from + len` of rows `16 * panel..`, laid out as
    /// [`super::requant::bf16`] does. Rows that are not there repeat others.
    ///
    /// # Safety
    /// The rows must have the channels, multiples of 32 and of the block; `out` room for them, `room` for
    /// [`up_bytes`]; AVX-512 needed.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn bf16(&self, panel: usize, from: usize, len: usize, out: *mut u8, room: *mut f32) {
        // SAFETY: promised by the caller.
        unsafe { self.decode_panel(panel, from, len, room) };
        for step in 0..len / STEP_BF16 {
            // SAFETY: the floats are there; `out` has room.
            unsafe {
                let pairs: [__m512i; LANES] = std::array::from_fn(|lane| {
                    let x = room.add(lane * len + step * STEP_BF16);
                    rounded(_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(16)))
                });
                for (pair, lanes) in transpose(pairs).into_iter().enumerate() {
                    _mm512_store_si512(out.add(step * STEP_BYTES + 64 * pair).cast(), lanes);
                }
            }
        }
    }

    /// The same channels as floats, those of a channel side by side: 16 per channel at `out`, 64-byte aligned.
    ///
    /// # Safety
    /// As for [`DecodedRows::bf16`].
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn floats(&self, panel: usize, from: usize, len: usize, out: *mut f32, room: *mut f32) {
        // SAFETY: promised by the caller.
        unsafe {
            self.decode_panel(panel, from, len, room);
            for at in (0..len).step_by(LANES) {
                let rows = std::array::from_fn(|lane| _mm512_loadu_si512(room.add(lane * len + at).cast()));
                for (c, lanes) in transpose(rows).into_iter().enumerate() {
                    _mm512_store_si512(out.add((at + c) * LANES).cast(), lanes);
                }
            }
        }
    }

    /// Decodes channels `from..from + len` of 16 rows to `room`, row by row. Rows that are not there repeat others.
    ///
    /// # Safety
    /// As for [`DecodedRows::bf16`].
    unsafe fn decode_panel(&self, panel: usize, from: usize, len: usize, room: *mut f32) {
        let group = self.ty.interleave;
        for first in (0..LANES).step_by(group) {
            let row = (panel * LANES + first).min(self.rows - group);
            // SAFETY: promised by the caller.
            unsafe { self.decode(row, from, len, room.add(first * len), room.add(LANES * len)) };
        }
    }

    /// Decodes channels `from..from + len` of row `row` and those that lie with it to `out`, row by row; `whole` has room
    /// for all their channels.
    ///
    /// # Safety
    /// As for [`DecodedRows::bf16`].
    unsafe fn decode(&self, row: usize, from: usize, len: usize, out: *mut f32, whole: *mut f32) {
        let (ty, at) = (self.ty, self.data.wrapping_add(row * self.stride));
        // SAFETY: promised by the caller.
        unsafe {
            if ty.meta == 0 {
                let at = at.add(from / ty.block * ty.bytes * ty.interleave);
                return (ty.to_float)(at.cast(), out, (len * ty.interleave) as i64);
            }
            (ty.to_float)(at.cast(), whole, (self.k * ty.interleave) as i64);
            for i in 0..ty.interleave {
                std::ptr::copy_nonoverlapping(whole.add(i * self.k + from), out.add(i * len), len);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Rows together and bytes of meta data of the type under test.
    static TOGETHER: AtomicUsize = AtomicUsize::new(1);
    static META: AtomicUsize = AtomicUsize::new(0);

    /// A type with a byte per weight in blocks of 32; four rows may be interleaved by blocks; meta data are added.
    unsafe extern "C" fn decode(x: *const libc::c_void, y: *mut f32, count: i64) {
        let (interleave, meta) = (TOGETHER.load(Ordering::Relaxed), META.load(Ordering::Relaxed));
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
            TOGETHER.store(interleave, Ordering::Relaxed);
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
            let mut room = vec![0f32; up_bytes(k, len) / 4];
            let mut memory = vec![0u16; 2 * LANES * len + 64];
            let skip = memory.as_ptr().align_offset(64);
            let tiles = &mut memory[skip..];
            // SAFETY: the rows have the channels, tiles and room are as large as asked for.
            unsafe { source.bf16(1, from, len, tiles.as_mut_ptr().cast(), room.as_mut_ptr()) };
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

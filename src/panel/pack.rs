//! Weights that stay where the host put them, as GGUF has them: their rows are packed into panels on the
//! way, 16 rows and a stretch of channels at a time, in scratch that stays in the caches.

use std::arch::x86_64::*;

use super::requant;
use crate::format::{ACT_BLOCK, Field, Format, LANES, MOST_BYTES, interleaved};

/// Some rows of a matrix of one of the packed types, or of the form of it that ik_llama.cpp interleaves.
#[derive(Clone, Copy, Debug)]
pub struct WeightRows {
    /// The first.
    pub data: *const u8,
    /// Bytes from one to the next; of interleaved rows on average.
    pub stride: usize,
    /// How many; a multiple of those that lie together.
    pub rows: usize,
    /// Rows that lie interleaved: 1, or [`interleaved::interleave`] of the type.
    pub interleave: usize,
}

/// Most bytes that [`WeightRows::pack`] writes for a stretch of this many channels, in whole blocks.
pub const fn packed_bytes(channels: usize) -> usize {
    (channels.next_multiple_of(256) / ACT_BLOCK) * MOST_BYTES * LANES
}

/// Bytes that are moved at a time: of each row.
const CHUNK: usize = 16;
/// More steps than any type needs for a block.
const MAX_STEPS: usize = 24;

/// A move of some bytes of each of 16 plain blocks to their place in the packed one.
#[derive(Clone, Copy, PartialEq)]
enum Step {
    /// 16 bytes from `offset` on; `units[i]` bytes of double word `i` stay together.
    Chunk { offset: usize, units: [usize; 4] },
    /// `unit` bytes at `offset`.
    Single { offset: usize, unit: usize },
}

/// The steps of a type.
struct Steps<F>(std::marker::PhantomData<F>);

impl<F: Format> Steps<F> {
    const ALL: ([Step; MAX_STEPS], usize) = {
        let mut steps = [Step::Single { offset: 0, unit: 1 }; MAX_STEPS];
        let (mut count, mut done) = (0, 0);
        while done < F::BYTES {
            let mut step = single(F::FIELDS, done);
            let mut next = done + unit_at(F::FIELDS, done).0;
            // Where no chunk begins, one that was begun before may end; moving a byte twice does no harm.
            let mut back = 0;
            while back < CHUNK && back <= done {
                if let Some(chunk) = chunk(F::FIELDS, F::BYTES, done - back) {
                    (step, next) = (chunk, done - back + CHUNK);
                    break;
                }
                back += 1;
            }
            steps[count] = step;
            (count, done) = (count + 1, next);
        }
        (steps, count)
    };
}

/// Bytes that stay together at `offset`, and whether they begin there.
const fn unit_at(fields: &[Field], offset: usize) -> (usize, bool) {
    let mut i = 0;
    while i < fields.len() {
        let Field { offset: first, len, unit, .. } = fields[i];
        if first <= offset && offset < first + len {
            return (unit, (offset - first).is_multiple_of(unit));
        }
        i += 1;
    }
    panic!("fields cover a block")
}

const fn single(fields: &[Field], offset: usize) -> Step {
    Step::Single { offset, unit: unit_at(fields, offset).0 }
}

/// 16 bytes from `offset` on, if every double word of them has bytes of one kind.
const fn chunk(fields: &[Field], bytes: usize, offset: usize) -> Option<Step> {
    let mut units = [0; 4];
    let mut i = 0;
    while i < CHUNK {
        if offset + CHUNK > bytes {
            return None;
        }
        let (unit, begins) = unit_at(fields, offset + i);
        if i % 4 == 0 {
            units[i / 4] = unit;
        }
        if units[i / 4] != unit || begins != (i % 4).is_multiple_of(unit) {
            return None;
        }
        i += 1;
    }
    Some(Step::Chunk { offset, units })
}

/// The same bytes of 16 rows.
trait RowSource: Copy {
    /// As many bytes further on.
    fn skip(self, bytes: usize) -> Self;
    /// Those of one row.
    fn row(&self, lane: usize) -> *const u8;
}

/// Rows at equal distances: one address for four of them, for so far an instruction can count.
#[derive(Clone, Copy)]
struct FullRows {
    fours: [*const u8; 4],
    stride: usize,
}

impl RowSource for FullRows {
    #[inline(always)]
    fn skip(self, bytes: usize) -> Self {
        let [a, b, c, d] = self.fours;
        Self {
            fours: [a.wrapping_add(bytes), b.wrapping_add(bytes), c.wrapping_add(bytes), d.wrapping_add(bytes)],
            ..self
        }
    }

    #[inline(always)]
    fn row(&self, lane: usize) -> *const u8 {
        self.fours[lane / 4].wrapping_add(lane % 4 * self.stride)
    }
}

/// Fewer rows; the last stands for those that are missing.
#[derive(Clone, Copy)]
struct TailRows {
    first: *const u8,
    stride: usize,
    last: usize,
}

impl RowSource for TailRows {
    #[inline(always)]
    fn skip(self, bytes: usize) -> Self {
        Self { first: self.first.wrapping_add(bytes), ..self }
    }

    #[inline(always)]
    fn row(&self, lane: usize) -> *const u8 {
        self.first.wrapping_add(lane.min(self.last) * self.stride)
    }
}

impl WeightRows {
    /// Channels `from..from + len` of rows `16 * panel..`, whole blocks, as [`requant::floats`] has them, by way of
    /// `room` for the packed ones.
    ///
    /// # Safety
    /// The rows must have the channels, `out` room for 16 floats each, `room` for [`packed_bytes`] of them, both 64-byte
    /// aligned; AVX-512 needed.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn floats<F: Format>(&self, panel: usize, from: usize, len: usize, out: *mut f32, room: *mut u8) {
        // SAFETY: promised by the caller.
        unsafe {
            self.pack::<F>(panel, from / F::BLOCK, len / F::BLOCK, room);
            requant::floats::<F>(room, 0, len, out);
        }
    }

    /// Packs blocks `first..first + count` of rows `16 * panel..` to `out`. Rows that are not there repeat the last.
    ///
    /// # Safety
    /// The rows must have the blocks, `out` room for them; AVX-512 needed.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn pack<F: Format>(&self, panel: usize, first: usize, count: usize, out: *mut u8) {
        if self.interleave > 1 {
            // SAFETY: promised by the caller.
            return unsafe { self.pack_interleaved::<F>(panel, first, count, out) };
        }
        // The second panel of a pair may have no row at all.
        let row = (panel * LANES).min(self.rows - 1);
        let (from, stride) = (self.data.wrapping_add(row * self.stride + first * F::BYTES), self.stride);
        // SAFETY: promised by the caller.
        unsafe {
            if row + LANES <= self.rows {
                let four = 4 * stride;
                let fours = [from, from.wrapping_add(four), from.wrapping_add(2 * four), from.wrapping_add(3 * four)];
                pack_blocks::<F, _>(FullRows { fours, stride }, count, out);
            } else {
                pack_blocks::<F, _>(TailRows { first: from, stride, last: self.rows - 1 - row }, count, out);
            }
        }
    }

    /// [`WeightRows::pack`] of interleaved rows.
    ///
    /// # Safety
    /// As there; the type has an interleaved form.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn pack_interleaved<F: Format>(&self, panel: usize, first: usize, count: usize, out: *mut u8) {
        let interleave = const { interleaved::interleave(F::TYPE) };
        debug_assert_eq!(self.interleave, interleave);
        let blocks: interleaved::Blocks = std::array::from_fn(|i| self.lane::<F>(panel, i * interleave, first));
        for block in 0..count {
            let blocks = blocks.map(|from| from.wrapping_add(block * interleave * F::BYTES));
            // SAFETY: promised by the caller.
            unsafe { interleaved::pack(F::TYPE, &blocks, out.wrapping_add(block * LANES * F::BYTES)) };
        }
    }

    /// Where block `block` of a row of a panel is, or of those it lies together with; of the last row, if it is not there.
    #[inline(always)]
    fn lane<F: Format>(&self, panel: usize, lane: usize, block: usize) -> *const u8 {
        let row = (panel * LANES + lane).min(self.rows - self.interleave);
        self.data.wrapping_add(row * self.stride + block * self.interleave * F::BYTES)
    }
}

/// # Safety
/// As for [`WeightRows::pack`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack_blocks<F: Format, R: RowSource>(rows: R, count: usize, out: *mut u8) {
    let pairs = if const { in_pairs::<F>() } { count / 2 } else { 0 };
    for pair in 0..pairs {
        // SAFETY: promised by the caller.
        unsafe { pack_pair::<F, R>(rows.skip(pair * 2 * F::BYTES), out.wrapping_add(pair * 2 * LANES * F::BYTES)) };
    }
    let (steps, step_count) = const { Steps::<F>::ALL };
    for block in 2 * pairs..count {
        let (rows, out) = (rows.skip(block * F::BYTES), out.wrapping_add(block * LANES * F::BYTES));
        for step in &steps[..step_count] {
            // SAFETY: promised by the caller; steps stay inside the block.
            unsafe {
                match *step {
                    Step::Chunk { offset, units } => {
                        let words = transpose(&rows.skip(offset));
                        let out = out.add(LANES * offset);
                        _mm512_storeu_si512(out.cast(), together(words[0], units[0]));
                        _mm512_storeu_si512(out.add(64).cast(), together(words[1], units[1]));
                        _mm512_storeu_si512(out.add(128).cast(), together(words[2], units[2]));
                        _mm512_storeu_si512(out.add(192).cast(), together(words[3], units[3]));
                    }
                    Step::Single { offset, unit } => move_single(&rows.skip(offset), unit, out.add(LANES * offset)),
                }
            }
        }
    }
}

/// Whether a block is a scale of two bytes, then double words. Two such blocks are whole double words, though those of the
/// first lie across them.
const fn in_pairs<F: Format>() -> bool {
    let mut words = F::FIELDS[0].len == 2 && F::FIELDS[0].unit == 2 && F::BYTES % 4 == 2 && F::BYTES <= MAX_PAIR / 2;
    let mut i = 1;
    while i < F::FIELDS.len() {
        words &= F::FIELDS[i].unit == 4;
        i += 1;
    }
    words
}

/// Most bytes of a pair of blocks: Q8_0.
const MAX_PAIR: usize = 68;

/// Two blocks of a type that is packed [`in_pairs`]: double words of both are transposed, and those of the first moved by
/// half of one.
///
/// # Safety
/// As for [`WeightRows::pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack_pair<F: Format, R: RowSource>(rows: R, out: *mut u8) {
    const LOW: u32 = 0x5555_5555;
    let count = const { F::BYTES / 2 };
    let mut words = [_mm512_setzero_si512(); MAX_PAIR / 4];
    for chunk in 0..count.div_ceil(4) {
        let first = if 4 * chunk + 4 <= count { 4 * chunk } else { count - 4 };
        // SAFETY: promised by the caller; the chunk lies in the pair.
        words[first..first + 4].copy_from_slice(&unsafe { transpose(&rows.skip(4 * first)) });
    }
    let (scale, quants) = (const { (F::BYTES - 2) / 4 }, const { (F::BYTES + 2) / 4 });
    let scales = halves_together(_mm512_mask_blend_epi16(LOW, words[scale], words[0]));
    let second = out.wrapping_add(LANES * F::BYTES);
    // SAFETY: promised by the caller.
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

/// The bytes of 16 double words in the order that a packed block has them in.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn together(words: __m512i, unit: usize) -> __m512i {
    match unit {
        4 => words,
        2 => halves_together(words),
        _ => bytes_together(words),
    }
}

/// # Safety
/// `unit` readable bytes per row, 16 times as many to write.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn move_single<R: RowSource>(rows: &R, unit: usize, out: *mut u8) {
    for lane in 0..LANES {
        let from = rows.row(lane);
        // SAFETY: promised by the caller.
        unsafe {
            match unit {
                4 => out.cast::<u32>().add(lane).write_unaligned(from.cast::<u32>().read_unaligned()),
                2 => out.cast::<u16>().add(lane).write_unaligned(from.cast::<u16>().read_unaligned()),
                _ => *out.add(lane) = *from,
            }
        }
    }
}

/// 16 bytes of each row: vector `i` has double word `i` of all rows.
///
/// # Safety
/// The rows must have the bytes; AVX-512 needed.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn transpose<R: RowSource>(rows: &R) -> [__m512i; 4] {
    // SAFETY: promised by the caller.
    let quarter = |row: usize| unsafe { _mm_loadu_si128(rows.row(row).cast()) };
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
            // The last panel repeats its last row, and one behind it has nothing else.
            for (panel, first_missing) in [(2, 4), (3, 0)] {
                let mut out = vec![0; LANES * info.bytes];
                // SAFETY: as above.
                unsafe { with_format!(*ty, F => rows.pack::<F>(panel, 0, 1, out.as_mut_ptr())) };
                for byte in 0..info.bytes {
                    let at = |lane| out[info.layout.index(lane, byte)];
                    assert!(
                        (first_missing..LANES).all(|lane| at(lane) == plain[36 * shape.row_bytes + byte]),
                        "{ty:?}"
                    );
                }
            }
        }
    }
}

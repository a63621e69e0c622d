//! Weights that are stored as GGUF has them: BF16 and F16, which packing would not make faster to read. The tile GEMM
//! gets BF16 tiles of them, transposed in registers, 16 rows and 32 channels at a time.
//!
//! F16 has 11 bits where BF16 has 8, so it becomes two planes of tiles whose sum is the weight, exactly: the upper 8
//! bits, and the other 3, which the smaller exponents of BF16 leave room for.

use std::arch::x86_64::*;

use super::bf16::widened;
use super::precision::{Precision, STEP_BF16, STEP_BYTES};
use super::transpose::transpose;
use crate::format::{LANES, f16_lanes};

/// A type whose weights stay plain.
#[derive(Debug)]
pub struct PlainType {
    /// ggml's number.
    pub number: i32,
    /// ggml's name.
    pub name: &'static str,
    /// Bytes per weight.
    pub bytes: usize,
    /// What its products are made of.
    pub precision: Precision,
}

/// BF16: the upper half of a float.
pub static BF16: PlainType = PlainType::new(30, "bf16", Precision::Bf16);
/// IEEE half precision. Rounded to BF16, results would be worse than the host's (KL divergence 1.5e-4 against 2e-6).
pub static F16: PlainType = PlainType::new(1, "f16", Precision::Bf16Twice);
/// All of them. F32 would take three planes and six products, and be no faster than the host's own kernels
/// (docs/performance.md).
pub static TYPES: [&PlainType; 2] = [&F16, &BF16];

impl PlainType {
    /// A type of 16 bits.
    const fn new(number: i32, name: &'static str, precision: Precision) -> Self {
        Self { number, name, bytes: 2, precision }
    }

    /// The type with ggml's number `number`.
    pub fn from_ggml(number: i32) -> Option<&'static Self> {
        TYPES.into_iter().find(|t| t.number == number)
    }
}

/// Some rows of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct PlainRows {
    /// Their type.
    pub ty: &'static PlainType,
    /// First byte of the first row.
    pub data: *const u8,
    /// Bytes from one row to the next.
    pub stride: usize,
    /// Number of rows.
    pub rows: usize,
}

/// Cache lines ahead of the reads that a row is prefetched: rows lie too far apart for the hardware to see.
const AHEAD: usize = 8;

impl PlainRows {
    /// Address of channel `channel` of row `lane` of a panel; of the last row, if that one is past it.
    #[inline(always)]
    fn at(&self, panel: usize, lane: usize, channel: usize) -> *const u8 {
        let row = (panel * LANES + lane).min(self.rows - 1);
        self.data.wrapping_add(row * self.stride + channel * self.ty.bytes)
    }

    /// Makes BF16 tiles of channels `from..from + len` of rows `16 * panel..16 * panel + 16`, laid out as
    /// [`super::requant::bf16`] does, each plane `plane_bytes` behind the one before. Rows past the last repeat it.
    ///
    /// # Safety
    /// The rows must be readable and have the channels, which are multiples of 32; `out` must be writable for their
    /// tiles; AVX-512 must be there.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn bf16(&self, panel: usize, from: usize, len: usize, out: *mut u8, plane_bytes: usize) {
        // SAFETY: the rows have the channels, and `out` has the k-steps; a prefetch of any address is harmless.
        unsafe {
            let rows: [*const u8; LANES] = std::array::from_fn(|lane| self.at(panel, lane, from));
            for step in 0..len / STEP_BF16 {
                let at = step * STEP_BF16 * self.ty.bytes;
                for row in rows {
                    _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(at + AHEAD * 64).cast());
                }
                let out = out.add(step * STEP_BYTES);
                // Loops, not closures: the compiler does not inline those here.
                let mut tile = [_mm512_setzero_si512(); LANES];
                if self.ty.precision == Precision::Bf16Twice {
                    for (weights, row) in tile.iter_mut().zip(rows) {
                        *weights = high_of_f16(row.add(at));
                    }
                    put_tile(out, tile);
                    for (weights, row) in tile.iter_mut().zip(rows) {
                        *weights = low_of_f16(row.add(at));
                    }
                    put_tile(out.add(plane_bytes), tile);
                } else {
                    for (weights, row) in tile.iter_mut().zip(rows) {
                        *weights = _mm512_loadu_si512(row.add(at).cast());
                    }
                    put_tile(out, tile);
                }
            }
        }
    }

    /// The same channels as floats: the 16 rows' weights of a channel lie side by side.
    ///
    /// # Safety
    /// As for [`PlainRows::bf16`], `out` being writable for 16 floats per channel and 64-byte aligned.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn floats(&self, panel: usize, from: usize, len: usize, out: *mut f32) {
        for at in (0..len).step_by(LANES) {
            // SAFETY: the rows have 16 channels from here on, as has `out`.
            unsafe {
                let rows: [__m512i; LANES] = std::array::from_fn(|lane| {
                    let data = self.at(panel, lane, from + at);
                    _mm512_castps_si512(if self.ty.precision == Precision::Bf16Twice {
                        f16_lanes(data)
                    } else {
                        widened(_mm256_loadu_si256(data.cast()))
                    })
                });
                for (c, lanes) in transpose(rows).into_iter().enumerate() {
                    _mm512_store_si512(out.add((at + c) * LANES).cast(), lanes);
                }
            }
        }
    }
}

/// Stores 16 rows of 32 BF16 weights as a tile: pairs of channels, the 16 rows side by side.
///
/// # Safety
/// `out` must be writable for a tile and 64-byte aligned; AVX-512 must be there.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn put_tile(out: *mut u8, rows: [__m512i; LANES]) {
    for (pair, lanes) in transpose(rows).into_iter().enumerate() {
        // SAFETY: a tile has 16 rows of 64 bytes.
        unsafe { _mm512_store_si512(out.add(64 * pair).cast(), lanes) };
    }
}

/// The upper halves of 32 floats, those of `first` first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn upper_halves(first: __m512, second: __m512) -> __m512i {
    const ODD: [u16; 32] = {
        let mut odd = [0; 32];
        let mut i = 0;
        while i < 32 {
            odd[i] = 2 * i as u16 + 1;
            i += 1;
        }
        odd
    };
    // SAFETY: 64 bytes.
    let odd = unsafe { _mm512_loadu_si512(ODD.as_ptr().cast()) };
    _mm512_permutex2var_epi16(_mm512_castps_si512(first), odd, _mm512_castps_si512(second))
}

/// The upper 8 bits of 32 F16 numbers, as BF16.
///
/// # Safety
/// 64 bytes must be readable; AVX-512 must be there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn high_of_f16(at: *const u8) -> __m512i {
    // SAFETY: 64 bytes are two times 16 numbers.
    unsafe { upper_halves(f16_lanes(at), f16_lanes(at.add(32))) }
}

/// What these leave of the F16 numbers: 3 bits, which are BF16 numbers too.
///
/// # Safety
/// As for [`high_of_f16`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn low_of_f16(at: *const u8) -> __m512i {
    // SAFETY: 64 bytes are two times 16 numbers.
    unsafe { upper_halves(below_bf16(f16_lanes(at)), below_bf16(f16_lanes(at.add(32)))) }
}

/// What the upper half of a float leaves of it.
#[inline]
#[target_feature(enable = "avx512f")]
fn below_bf16(v: __m512) -> __m512 {
    let upper = _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0xffff_0000_u32 as i32));
    _mm512_sub_ps(v, _mm512_castsi512_ps(upper))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu;

    #[derive(Clone, Copy)]
    #[repr(align(64))]
    struct Line([u16; 32]);

    /// Given a matrix, then every weight is in its place in the tiles.
    #[test]
    fn tiles_hold_every_weight() {
        if cpu::isa() < cpu::Isa::Amx {
            println!("SKIPPED: no AMX");
            return;
        }
        let (k, rows, from, len) = (4096 + 96, 19, 32, 4096 + 64);
        let value = |row: usize, channel: usize| ((row * 131 + channel * 7) % 251) as f32 - 125.0;
        let data: Vec<u16> = (0..rows * k).map(|i| half::bf16::from_f32(value(i / k, i % k)).to_bits()).collect();
        let mut tiles = vec![Line([0; 32]); len / STEP_BF16 * STEP_BYTES / 64];
        let source = PlainRows { ty: &BF16, data: data.as_ptr().cast(), stride: 2 * k, rows };
        // SAFETY: the matrix has the channels, the tiles have room, AMX CPUs have AVX-512 and BF16.
        unsafe { source.bf16(1, from, len, tiles.as_mut_ptr().cast(), 0) };
        let tiles: Vec<u16> = tiles.iter().flat_map(|line| line.0).collect();
        for lane in 0..LANES {
            for channel in 0..len {
                let at = channel / STEP_BF16 * STEP_BYTES / 2 + channel % STEP_BF16 / 2 * 32 + lane * 2 + channel % 2;
                let expected = value((LANES + lane).min(rows - 1), from + channel);
                assert_eq!(half::bf16::from_bits(tiles[at]).to_f32(), expected, "lane {lane} channel {channel}");
            }
        }
    }

    /// Given every finite F16 number, then it is the sum of its two planes.
    #[test]
    fn planes_of_f16_lose_nothing() {
        if cpu::isa() < cpu::Isa::Amx {
            println!("SKIPPED: no AMX");
            return;
        }
        let k = (1 << 16) / LANES;
        let finite = |bits: u16| if half::f16::from_bits(bits).is_finite() { bits } else { 0 };
        let data: Vec<u16> = (0..=u16::MAX).map(finite).collect();
        let plane = k / STEP_BF16 * STEP_BYTES / 64;
        let mut tiles = vec![Line([0; 32]); 2 * plane];
        let source = PlainRows { ty: &F16, data: data.as_ptr().cast(), stride: 2 * k, rows: LANES };
        // SAFETY: the matrix has the channels, the tiles have room, AMX CPUs have AVX-512.
        unsafe { source.bf16(0, 0, k, tiles.as_mut_ptr().cast(), plane * 64) };
        let tiles: Vec<u16> = tiles.iter().flat_map(|line| line.0).collect();
        for lane in 0..LANES {
            for channel in 0..k {
                let at = channel / STEP_BF16 * STEP_BYTES / 2 + channel % STEP_BF16 / 2 * 32 + lane * 2 + channel % 2;
                let [high, low] = [at, at + plane * 32].map(|at| half::bf16::from_bits(tiles[at]).to_f32());
                let expected = half::f16::from_bits(data[lane * k + channel]).to_f32();
                assert_eq!(high + low, expected, "{high} and {low}");
                assert!(low == 0.0 || low.is_normal(), "the tile unit takes {low} for 0");
            }
        }
    }
}

//! Weights that are stored as GGUF has them: BF16, which packing would not make faster to read.
//! The tile GEMM gets BF16 tiles of them, made 16 rows and a stretch of channels at a time; few rows of
//! activations are left to the host's own kernels.

use std::arch::x86_64::*;
use std::sync::atomic::{AtomicBool, Ordering};

use super::tiles::{STEP_BF16, STEP_BYTES};
use crate::format::LANES;

/// A type of this kind.
#[derive(Debug)]
pub struct PlainType {
    /// ggml's number.
    pub number: i32,
    /// ggml's name.
    pub name: &'static str,
    /// Bytes per weight.
    pub bytes: usize,
    /// Whether the host of this process has it.
    enabled: AtomicBool,
}

/// The upper half of single precision.
pub static BF16: PlainType = PlainType { number: 30, name: "bf16", bytes: 2, enabled: AtomicBool::new(false) };
/// All of them. F16 is not among them: rounded to BF16 it is worse than what hosts make of it (KL divergence 1.5e-4
/// against 2e-6).
pub static TYPES: [&PlainType; 1] = [&BF16];

impl PlainType {
    /// The type with ggml's number `number`, if the host of this process has it.
    pub fn from_ggml(number: i32) -> Option<&'static Self> {
        TYPES.into_iter().find(|t| t.number == number && t.enabled.load(Ordering::Relaxed))
    }

    /// Switches the type on.
    pub fn enable(&self) {
        self.enabled.store(true, Ordering::Relaxed);
    }
}

/// Some rows of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct PlainRows {
    /// Their type.
    pub ty: &'static PlainType,
    /// The first.
    pub data: *const u8,
    /// Bytes from one to the next.
    pub stride: usize,
    /// How many.
    pub rows: usize,
}

/// Cache lines ahead of the reads that a row is prefetched: rows lie too far apart for the hardware to see.
const AHEAD: usize = 8;

impl PlainRows {
    /// Makes BF16 tiles of channels `from..from + len` of rows `16 * panel..`, laid out as
    /// [`super::requant::bf16`] does. Rows that are not there repeat the last.
    ///
    /// # Safety
    /// The rows must have the channels, multiples of 32; `out` room for them; AVX-512 needed.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn bf16(&self, panel: usize, from: usize, len: usize, out: *mut u8) {
        // SAFETY: promised by the caller; a prefetch of any address is harmless.
        unsafe {
            let rows: [*const u8; LANES] = std::array::from_fn(|lane| {
                let row = (panel * LANES + lane).min(self.rows - 1);
                self.data.add(row * self.stride + from * self.ty.bytes)
            });
            for step in 0..len / STEP_BF16 {
                let weights = rows.map(|row| {
                    let at = row.wrapping_add(step * STEP_BF16 * self.ty.bytes);
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD * 64).cast());
                    _mm512_loadu_si512(at.cast())
                });
                for (pair, lanes) in transpose(weights).into_iter().enumerate() {
                    _mm512_store_si512(out.add(step * STEP_BYTES + 64 * pair).cast(), lanes);
                }
            }
        }
    }
}

/// 16 x 16 double words, rows for columns.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(m: [__m512i; 16]) -> [__m512i; 16] {
    // Double words of neighbouring rows, then pairs of them, then whole 128-bit quarters.
    let mut a = m;
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(m[2 * i], m[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(m[2 * i], m[2 * i + 1]);
    }
    let mut b = a;
    for i in 0..4 {
        for j in 0..2 {
            b[4 * i + 2 * j] = _mm512_unpacklo_epi64(a[4 * i + j], a[4 * i + 2 + j]);
            b[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(a[4 * i + j], a[4 * i + 2 + j]);
        }
    }
    // b[4 i + j] has, in quarter q, column 4 q + j of rows 4 i .. 4 i + 4.
    let mut out = b;
    for j in 0..4 {
        let low = (_mm512_shuffle_i32x4::<0x88>(b[j], b[4 + j]), _mm512_shuffle_i32x4::<0x88>(b[8 + j], b[12 + j]));
        let high = (_mm512_shuffle_i32x4::<0xdd>(b[j], b[4 + j]), _mm512_shuffle_i32x4::<0xdd>(b[8 + j], b[12 + j]));
        out[j] = _mm512_shuffle_i32x4::<0x88>(low.0, low.1);
        out[8 + j] = _mm512_shuffle_i32x4::<0xdd>(low.0, low.1);
        out[4 + j] = _mm512_shuffle_i32x4::<0x88>(high.0, high.1);
        out[12 + j] = _mm512_shuffle_i32x4::<0xdd>(high.0, high.1);
    }
    out
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
        if cpu::best_isa() < cpu::Isa::Amx {
            println!("SKIPPED: no AMX");
            return;
        }
        let (k, rows, from, len) = (4096 + 96, 19, 32, 4096 + 64);
        let value = |row: usize, channel: usize| ((row * 131 + channel * 7) % 251) as f32 - 125.0;
        let data: Vec<u16> = (0..rows * k).map(|i| half::bf16::from_f32(value(i / k, i % k)).to_bits()).collect();
        let mut tiles = vec![Line([0; 32]); len / STEP_BF16 * STEP_BYTES / 64];
        let source = PlainRows { ty: &BF16, data: data.as_ptr().cast(), stride: 2 * k, rows };
        // SAFETY: the matrix has the channels, the tiles have room, AMX CPUs have AVX-512 and BF16.
        unsafe { source.bf16(1, from, len, tiles.as_mut_ptr().cast()) };
        let tiles: Vec<u16> = tiles.iter().flat_map(|line| line.0).collect();
        for lane in 0..LANES {
            for channel in 0..len {
                let at = channel / STEP_BF16 * STEP_BYTES / 2 + channel % STEP_BF16 / 2 * 32 + lane * 2 + channel % 2;
                let expected = value((LANES + lane).min(rows - 1), from + channel);
                assert_eq!(half::bf16::from_bits(tiles[at]).to_f32(), expected, "lane {lane} channel {channel}");
            }
        }
    }
}

//! Weights that are stored as GGUF has them: types that packing would not make faster to read. The tile
//! GEMM gets BF16 tiles of them, made 16 rows and a stretch of channels at a time; few rows of
//! activations are left to the host's own kernels.

use std::arch::x86_64::*;
use std::ffi::CStr;
use std::sync::OnceLock;

use super::tiles::{STEP_BF16, STEP_BYTES};
use crate::format::LANES;

/// Channels that are turned into floats at a time, a multiple of every block: 16 KB of them.
const CHANNELS: usize = 4096;

/// ggml's `dequantize_row_*`: blocks, floats, how many.
pub type Dequantise = unsafe extern "C" fn(*const u8, *mut f32, i64);

/// How 16-bit floats or blocks become floats.
#[derive(Clone, Copy, Debug)]
enum Decode {
    F16,
    Bf16,
    /// By the host's function of this name.
    Host(&'static CStr),
}

/// A type of this kind.
#[derive(Debug)]
pub struct PlainType {
    /// ggml's number.
    pub number: i32,
    /// ggml's name.
    pub name: &'static str,
    /// Weights per block.
    pub block: usize,
    /// Bytes per block.
    pub bytes: usize,
    decode: Decode,
    /// Set once the host is known to have the type, with its function if that is needed.
    host: OnceLock<Option<Dequantise>>,
}

const fn plain(number: i32, name: &'static str, block: usize, bytes: usize, decode: Decode) -> PlainType {
    PlainType { number, name, block, bytes, decode, host: OnceLock::new() }
}

/// All of them.
pub static TYPES: [PlainType; 9] = [
    plain(1, "f16", 1, 2, Decode::F16),
    plain(16, "iq2_xxs", 256, 66, Decode::Host(c"dequantize_row_iq2_xxs")),
    plain(17, "iq2_xs", 256, 74, Decode::Host(c"dequantize_row_iq2_xs")),
    plain(18, "iq3_xxs", 256, 98, Decode::Host(c"dequantize_row_iq3_xxs")),
    plain(19, "iq1_s", 256, 50, Decode::Host(c"dequantize_row_iq1_s")),
    plain(21, "iq3_s", 256, 110, Decode::Host(c"dequantize_row_iq3_s")),
    plain(22, "iq2_s", 256, 82, Decode::Host(c"dequantize_row_iq2_s")),
    plain(29, "iq1_m", 256, 56, Decode::Host(c"dequantize_row_iq1_m")),
    plain(30, "bf16", 1, 2, Decode::Bf16),
];

impl PlainType {
    /// The type with ggml's number `number`, if the host of this process has it and can decode it.
    pub fn from_ggml(number: i32) -> Option<&'static Self> {
        TYPES.iter().find(|t| t.number == number && t.host.get().is_some())
    }

    /// Switches the type on in a host that has it; `find` finds the host's functions.
    pub fn enable(&self, find: impl Fn(&'static CStr) -> Option<Dequantise>) {
        let function = match self.decode {
            Decode::Host(name) => find(name).map(Some),
            Decode::F16 | Decode::Bf16 => Some(None),
        };
        if let Some(function) = function {
            self.host.get_or_init(|| function);
        }
    }

    /// Bytes of `k` weights, a multiple of the block.
    pub fn row_bytes(&self, k: usize) -> usize {
        k / self.block * self.bytes
    }

    /// Turns `out.len()` weights at `row` into floats.
    ///
    /// # Safety
    /// The weights must be readable, whole blocks; AVX-512 needed.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn decode(&self, row: *const u8, out: &mut [f32]) {
        // SAFETY: promised by the caller; lengths are multiples of 32.
        unsafe {
            match (self.decode, self.host.get()) {
                (Decode::Host(_), function) => {
                    function.copied().flatten().expect("enabled")(row, out.as_mut_ptr(), out.len() as i64);
                }
                (Decode::F16, _) => {
                    for (i, out) in out.chunks_exact_mut(16).enumerate() {
                        let half = _mm256_loadu_si256(row.add(32 * i).cast());
                        _mm512_storeu_ps(out.as_mut_ptr(), _mm512_cvtph_ps(half));
                    }
                }
                (Decode::Bf16, _) => {
                    for (i, out) in out.chunks_exact_mut(16).enumerate() {
                        let upper = _mm512_cvtepu16_epi32(_mm256_loadu_si256(row.add(32 * i).cast()));
                        _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_slli_epi32::<16>(upper));
                    }
                }
            }
        }
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
    /// Room for [`PlainRows::BUFFER`] bytes.
    pub buffer: *mut u8,
}

impl PlainRows {
    /// Bytes of room to turn weights into floats.
    pub const BUFFER: usize = CHANNELS * size_of::<f32>();

    /// Makes BF16 tiles of channels `from..from + len` of rows `16 * panel..`, laid out as
    /// [`super::requant::bf16`] does. Rows that are not there repeat the last.
    ///
    /// # Safety
    /// The rows must have the channels, whole blocks; `out` room for them; AVX-512 with BF16 needed.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub unsafe fn bf16(&self, panel: usize, from: usize, len: usize, out: *mut u8) {
        // SAFETY: promised by the caller.
        unsafe {
            let floats = std::slice::from_raw_parts_mut(self.buffer.cast::<f32>(), CHANNELS);
            for lane in 0..LANES {
                let row = self.data.add((panel * LANES + lane).min(self.rows - 1) * self.stride);
                for start in (from..from + len).step_by(CHANNELS) {
                    let floats = &mut floats[..CHANNELS.min(from + len - start)];
                    self.ty.decode(row.add(self.ty.row_bytes(start)), floats);
                    for (i, sixteen) in floats.chunks_exact(16).enumerate() {
                        let k = start - from + 16 * i;
                        let to = out.add(k / STEP_BF16 * STEP_BYTES + k % STEP_BF16 * 2 * LANES + lane * 4);
                        let rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(sixteen.as_ptr()));
                        let pairs: [u32; 8] = std::mem::transmute(rounded);
                        for (j, pair) in pairs.into_iter().enumerate() {
                            to.add(64 * j).cast::<u32>().write(pair);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu;

    /// Given a matrix of bf16 or f16, then every weight is in its place in the tiles, rounded to bf16.
    #[test]
    fn tiles_hold_every_weight() {
        if cpu::best_isa() < cpu::Isa::Amx {
            println!("SKIPPED: no AMX");
            return;
        }
        let (k, rows, from, len) = (4096 + 96, 19, 32, 4096 + 64);
        let value = |row: usize, channel: usize| ((row * 131 + channel * 7) % 251) as f32 - 125.0;
        for (ty, bits) in [(&TYPES[8], true), (&TYPES[0], false)] {
            let encode =
                |v: f32| if bits { half::bf16::from_f32(v).to_bits() } else { half::f16::from_f32(v).to_bits() };
            let data: Vec<u16> = (0..rows * k).map(|i| encode(value(i / k, i % k))).collect();
            let mut buffer = vec![0f32; CHANNELS];
            let mut tiles = vec![0u16; len / STEP_BF16 * STEP_BYTES / 2];
            let source =
                PlainRows { ty, data: data.as_ptr().cast(), stride: 2 * k, rows, buffer: buffer.as_mut_ptr().cast() };
            // SAFETY: the matrix has the channels, the tiles have room, AMX CPUs have AVX-512 and BF16.
            unsafe { source.bf16(1, from, len, tiles.as_mut_ptr().cast()) };
            for lane in 0..LANES {
                for channel in 0..len {
                    let at =
                        channel / STEP_BF16 * STEP_BYTES / 2 + channel % STEP_BF16 / 2 * 32 + lane * 2 + channel % 2;
                    let expected = value((LANES + lane).min(rows - 1), from + channel);
                    assert_eq!(half::bf16::from_bits(tiles[at]).to_f32(), expected, "lane {lane} channel {channel}");
                }
            }
        }
    }
}

//! Codebooks of the types whose quants are indices into one. They are ggml's and not repeated here: each is
//! read off the decoder of the ggml in this process, entry by entry, and believed only if this library then
//! decodes random blocks to the same numbers.

use crate::process::Mutex;
use std::arch::x86_64::*;
use std::ffi::{CStr, c_void};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use super::{Format, LANES, Layout};

/// ggml's functions that turn `weights` weights into floats: `dequantize_row_*(blocks, floats, weights)`.
pub type Dequantise = unsafe extern "C" fn(*const c_void, *mut f32, i64);

/// What the host layer needs to get a type its codebook.
#[derive(Clone, Copy, Debug)]
pub struct Codebook {
    /// The name of ggml's decoder.
    pub decoder: &'static CStr,
    /// Reads the codebook off the decoder, unless it is there already; false if what comes back is none.
    ///
    /// # Safety
    /// The function must be ggml's decoder of that name, or one that does the same.
    pub read: unsafe fn(Dequantise) -> bool,
    /// Whether it was read.
    pub is_there: fn() -> bool,
}

/// Packed blocks that a fresh codebook is tried on.
const TRIALS: usize = 8;

/// `N` entries of `WIDTH` = 4 or 8 unsigned quants. Four are the bytes of a dword. Eight are nibbles, the
/// low ones first, that number the few different quants there are: one look-up in memory then gives two
/// vectors.
#[repr(C, align(64))]
pub struct Grid<const N: usize, const WIDTH: usize> {
    /// Written only before `is_there`.
    entries: [AtomicU32; N],
    levels: [AtomicU8; 16],
    is_there: AtomicBool,
}

impl<const N: usize, const WIDTH: usize> Grid<N, WIDTH> {
    /// Of zeros.
    pub const fn new() -> Self {
        assert!((WIDTH == 4 || WIDTH == 8) && N.is_multiple_of(4));
        Self {
            entries: [const { AtomicU32::new(0) }; N],
            levels: [const { AtomicU8::new(0) }; 16],
            is_there: AtomicBool::new(false),
        }
    }

    /// Whether it was read.
    pub fn is_there(&self) -> bool {
        self.is_there.load(Ordering::Acquire)
    }

    /// See [`Codebook::read`]; `self` must be what `F` looks up. `craft` makes a block of zeros one of scale
    /// 1 whose first entry is the one asked for; unsigned quants must lie in `range`.
    ///
    /// # Safety
    /// `decode` must read blocks of `F` and write their weights.
    pub unsafe fn read<F: Format>(
        &self,
        decode: Dequantise,
        range: RangeInclusive<u8>,
        craft: fn(&mut [u8], usize),
    ) -> bool {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME.lock();
        if self.is_there() {
            return true;
        }
        // SAFETY: promised by the caller.
        let good = unsafe { self.fill::<F>(decode, range, craft) && agrees::<F>(decode) };
        self.is_there.store(good, Ordering::Release);
        good
    }

    /// Reads the entries; false if a quant is no integer in `range`, or there are too many different ones.
    ///
    /// # Safety
    /// As for [`Grid::read`].
    unsafe fn fill<F: Format>(
        &self,
        decode: Dequantise,
        range: RangeInclusive<u8>,
        craft: fn(&mut [u8], usize),
    ) -> bool {
        let mut levels = Vec::new();
        for index in 0..N {
            let mut block = vec![0; F::BYTES];
            craft(&mut block, index);
            // SAFETY: promised by the caller.
            let weights = unsafe { decode_block::<F>(decode, &block) };
            let mut entry = 0;
            for (j, weight) in weights[..WIDTH].iter().enumerate() {
                let quant = weight + F::ZERO_POINT as f32;
                if quant.fract() != 0.0 || !(f32::from(*range.start())..=f32::from(*range.end())).contains(&quant) {
                    return false;
                }
                let quant = quant as u8;
                entry |= if WIDTH == 4 {
                    u32::from(quant) << (8 * j)
                } else {
                    let level = levels.iter().position(|l| *l == quant).unwrap_or(levels.len());
                    if level == levels.len() {
                        levels.push(quant);
                    }
                    if level == 16 {
                        return false;
                    }
                    (level as u32) << (j % 4 * 8 + j / 4 * 4)
                };
            }
            self.entries[index].store(entry, Ordering::Relaxed);
        }
        for (to, level) in self.levels.iter().zip(levels) {
            to.store(level, Ordering::Relaxed);
        }
        true
    }

    /// The unsigned quants of entry `index`.
    pub fn entry(&self, index: usize) -> [u8; WIDTH] {
        let entry = self.entries[index].load(Ordering::Relaxed);
        std::array::from_fn(|j| {
            if WIDTH == 4 {
                return (entry >> (8 * j)) as u8;
            }
            self.levels[(entry >> (j % 4 * 8 + j / 4 * 4) & 15) as usize].load(Ordering::Relaxed)
        })
    }
}

impl<const N: usize> Grid<N, 4> {
    /// The entries of 16 rows.
    ///
    /// # Safety
    /// Indices must be below `N`, and the codebook read if the result is to mean anything.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn entries_avx512(&self, indices: __m512i) -> __m512i {
        // SAFETY: inside the entries; they are written no more once they are there.
        unsafe { _mm512_i32gather_epi32::<4>(indices, self.entries.as_ptr().cast()) }
    }
}

impl<const N: usize> Grid<N, 8> {
    /// The entries of 16 rows: their first halves, their second ones.
    ///
    /// # Safety
    /// As for four.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn entries_avx512(&self, indices: __m512i) -> [__m512i; 2] {
        let low = _mm512_set1_epi8(15);
        // SAFETY: as above; there are 16 levels.
        let (levels, entries) = unsafe {
            let entries = _mm512_i32gather_epi32::<4>(indices, self.entries.as_ptr().cast());
            (_mm512_broadcast_i32x4(_mm_load_si128(self.levels.as_ptr().cast())), entries)
        };
        let half = |nibbles| _mm512_shuffle_epi8(levels, _mm512_and_si512(nibbles, low));
        [half(entries), half(_mm512_srli_epi32::<4>(entries))]
    }
}

/// The weights of one plain block.
///
/// # Safety
/// As for [`Grid::read`].
unsafe fn decode_block<F: Format>(decode: Dequantise, block: &[u8]) -> Vec<f32> {
    assert_eq!(block.len(), F::BYTES);
    // ggml's blocks are made of 16-bit numbers.
    let aligned: Vec<u16> = block.chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    let mut weights = vec![f32::NAN; F::BLOCK];
    // SAFETY: one block in, its weights out.
    unsafe { decode(aligned.as_ptr().cast(), weights.as_mut_ptr(), F::BLOCK as i64) };
    weights
}

/// Whether random blocks mean the same to `decode` and to us, to the last bit.
///
/// # Safety
/// As for [`Grid::read`].
unsafe fn agrees<F: Format>(decode: Dequantise) -> bool {
    let layout = const { Layout::new::<F>() };
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    let mut packed = vec![0; LANES * F::BYTES];
    let mut quants = vec![0; LANES * F::GROUP];
    (0..TRIALS).all(|_| {
        let blocks: Vec<Vec<u8>> = (0..LANES).map(|_| (0..F::BYTES).map(|_| random()).collect()).collect();
        for (lane, block) in blocks.iter().enumerate() {
            // SAFETY: the buffers have the block's sizes.
            unsafe { layout.scatter(packed.as_mut_ptr(), lane, block.as_ptr()) };
        }
        // SAFETY: promised by the caller.
        let expected: Vec<Vec<f32>> = blocks.iter().map(|b| unsafe { decode_block::<F>(decode, b) }).collect();
        (0..F::BLOCK / F::GROUP).all(|group| {
            F::quants(&packed, group, &mut quants);
            let scale = F::scales(&packed, group).scale;
            (0..LANES * F::GROUP).all(|i| {
                let (lane, k) = (i % LANES, i / LANES);
                let weight = scale[lane] * f32::from(quants[place(lane, k)]);
                let wanted = expected[lane][group * F::GROUP + k];
                weight == wanted || weight.is_nan() && wanted.is_nan()
            })
        })
    })
}

/// Where weight `k` of row `lane` lies in the layout of a group's quants.
pub(super) fn place(lane: usize, k: usize) -> usize {
    k / 4 * 64 + lane * 4 + k % 4
}

/// Stores an entry as signed quants, from weight `from` of row `lane` on; bit `from + j` of `signs` negates
/// number `j`.
pub(super) fn store_signed<F: Format>(entry: &[u8], signs: u32, lane: usize, from: usize, out: &mut [i8]) {
    for (j, quant) in entry.iter().enumerate() {
        let quant = (i32::from(*quant) - F::ZERO_POINT) as i8;
        out[place(lane, from + j)] = if signs >> (from + j) & 1 == 1 { -quant } else { quant };
    }
}

/// Unsigned quants with those of `mask` negated: `zero point - (q - zero point)`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn negated<F: Format>(quants: __m512i, mask: __mmask64) -> __m512i {
    _mm512_mask_sub_epi8(quants, mask, _mm512_set1_epi8((2 * F::ZERO_POINT) as i8), quants)
}

/// Sign bytes of which the file has the lower seven bits, four of them in `sevens`: the eighth makes the
/// number of ones even.
pub(super) fn even(sevens: u32) -> u32 {
    let mut p = sevens;
    p ^= p >> 4 & 0x0f0f_0f0f;
    p ^= p >> 2 & 0x3f3f_3f3f;
    p ^= p >> 1;
    sevens | (p & 0x0101_0101) << 7
}

/// [`even`] in registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn even_avx512(sevens: __m512i) -> __m512i {
    // 0x80 where a nibble has an odd number of ones.
    let (ends, middle) = (0x0080_8000, 0x8000_0080_u32 as i32);
    let odd = _mm512_set4_epi32(ends, middle, middle, ends);
    let low = _mm512_set1_epi8(15);
    let parity = |nibbles| _mm512_shuffle_epi8(odd, _mm512_and_si512(nibbles, low));
    let (a, b) = (parity(sevens), parity(_mm512_srli_epi16::<4>(sevens)));
    // sevens | a ^ b
    _mm512_ternarylogic_epi32::<0xf6>(sevens, a, b)
}

/// The four signs of 7 bits in the lower 28, each in a byte of its own, with their eighth bits.
pub(super) fn spread(bits: u32) -> u32 {
    even((0..4).map(|l| (bits >> (7 * l) & 127) << (8 * l)).sum())
}

/// [`spread`] in registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn spread_avx512(bits: __m512i) -> __m512i {
    let field = |v, mask: u32| _mm512_and_si512(v, _mm512_set1_epi32(mask as i32));
    let low = _mm512_or_si512(field(bits, 0x7f), field(_mm512_slli_epi32::<1>(bits), 0x7f00));
    let high = _mm512_or_si512(
        field(_mm512_slli_epi32::<2>(bits), 0x7f_0000),
        field(_mm512_slli_epi32::<3>(bits), 0x7f00_0000),
    );
    even_avx512(_mm512_or_si512(low, high))
}

/// Little-endian dword `lane` of interleaved ones.
pub(super) fn dword(bytes: &[u8], lane: usize) -> u32 {
    u32::from_le_bytes(bytes[4 * lane..4 * lane + 4].try_into().expect("four bytes"))
}

/// One byte of every row.
///
/// # Safety
/// 16 readable bytes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn byte_lanes(bytes: *const u8) -> __m512i {
    // SAFETY: as promised by the caller.
    _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(bytes.cast()) })
}

/// Two bytes of every row.
///
/// # Safety
/// 32 readable bytes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn word_lanes(bytes: *const u8) -> __m512i {
    // SAFETY: as promised by the caller.
    _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(bytes.cast()) })
}

/// The scales of all these types: `d * (2s + 1) * unit`, `unit` a power of two.
pub(super) fn odd_scale(d: f32, s: u32, unit: f32) -> f32 {
    d * ((2 * s + 1) as f32 * unit)
}

/// [`odd_scale`] in registers, of the three or four bits of `s` in `mask`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn odd_scale_avx512(d: __m512, s: __m512i, mask: i32, unit: f32) -> __m512 {
    let s = _mm512_and_si512(s, _mm512_set1_epi32(mask));
    let odd = _mm512_or_si512(_mm512_slli_epi32::<1>(s), _mm512_set1_epi32(1));
    _mm512_mul_ps(d, _mm512_mul_ps(_mm512_cvtepi32_ps(odd), _mm512_set1_ps(unit)))
}

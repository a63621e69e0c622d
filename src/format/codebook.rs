//! Codebooks: tables of ggml's that the quants of some types are indices into. They are not repeated here. Whoever
//! knows a ggml hands in its decoder of the type ([`WeightType::make_readable`]); the codebook is read off it, entry by
//! entry, and used only if this library then decodes random blocks to the same numbers.

use std::arch::x86_64::*;
use std::ffi::{CStr, c_void};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use super::quants::position;
use super::{BlockFields, Format, LANES, WeightType};
use crate::process::Mutex;

/// ggml's functions that turn `weights` weights into floats: `dequantize_row_*(blocks, floats, weights)`.
pub type Dequantise = unsafe extern "C" fn(*const c_void, *mut f32, i64);

/// The codebook of a type.
#[derive(Clone, Copy, Debug)]
pub struct Codebook {
    /// The name of ggml's decoder of the type.
    pub decoder: &'static CStr,
    /// Reads the codebook off the decoder, unless that was done; false if the decoder has none that fits the type.
    ///
    /// # Safety
    /// The function must read whole blocks of the type, and write their weights.
    read: unsafe fn(Dequantise) -> bool,
    is_there: fn() -> bool,
}

impl Codebook {
    /// See [`codebook!`].
    pub(super) const fn new(
        decoder: &'static CStr,
        read: unsafe fn(Dequantise) -> bool,
        is_there: fn() -> bool,
    ) -> Self {
        Self { decoder, read, is_there }
    }
}

/// The value of [`Format::CODEBOOK`]: the type's [`Grid`], the name of ggml's decoder, the range of the unsigned
/// quants, and what [`Grid::read`] takes as `craft`.
macro_rules! codebook {
    ($grid:ident, $decoder:literal, $range:expr, $craft:expr) => {
        Some(Codebook::new(
            $decoder,
            // SAFETY: `Codebook::read` wants a decoder of the type, as `Grid::read` does.
            |decode| unsafe { $grid.read::<Self>(decode, $range, $craft) },
            || $grid.is_there(),
        ))
    };
}
pub(super) use codebook;

impl WeightType {
    /// Whether products can be computed: the type has no codebook, or it was read.
    pub fn is_readable(self) -> bool {
        self.info().codebook.is_none_or(|c| (c.is_there)())
    }

    /// Makes the type readable, if it is not: reads its codebook off the decoder that `decoder` finds by ggml's name.
    /// False if there is no such decoder, or none that fits the type.
    ///
    /// # Safety
    /// What is found must be ggml's function of that name, or one that does the same.
    pub unsafe fn make_readable(self, decoder: impl FnOnce(&'static CStr) -> Option<Dequantise>) -> bool {
        if self.is_readable() {
            return true;
        }
        let codebook = self.info().codebook.expect("a type without a codebook is readable");
        // SAFETY: ggml's decoder of this type reads its blocks and writes their weights.
        decoder(codebook.decoder).is_some_and(|decode| unsafe { (codebook.read)(decode) })
    }
}

/// Packed blocks that a fresh codebook is tried on.
const TRIALS: usize = 8;

/// `N` entries of `WIDTH` = 4 or 8 unsigned quants. Four are the bytes of a 32-bit number. Eight are its nibbles, the
/// lower nibbles of the four bytes first; they are indices into `levels`, the few different quants that there are. So
/// one gather gives two vectors.
#[repr(C, align(64))]
pub struct Grid<const N: usize, const WIDTH: usize> {
    /// Written only before `is_there`, as `levels` are.
    entries: [AtomicU32; N],
    levels: [AtomicU8; 16],
    is_there: AtomicBool,
}

impl<const N: usize, const WIDTH: usize> Grid<N, WIDTH> {
    /// Not read yet.
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

    /// See [`Codebook`]; `self` must be the codebook of `F`. `craft` turns a block of zeros into one of scale 1 whose
    /// first entry has the given index; unsigned quants must lie in `range`.
    ///
    /// # Safety
    /// **Decoder of `F`**: `decode` must read blocks of `F` and write their weights.
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
        // SAFETY: a decoder of `F`.
        let good = unsafe { self.fill::<F>(decode, range, craft) && agrees::<F>(decode) };
        self.is_there.store(good, Ordering::Release);
        good
    }

    /// Reads the entries; false if a quant is no integer in `range`, or there are more than 16 different ones.
    ///
    /// # Safety
    /// `decode` must be a decoder of `F`, as for [`Grid::read`].
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
            // SAFETY: a decoder of `F`.
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
    /// The entries of 16 rows. Without meaning if the codebook was not read.
    ///
    /// # Safety
    /// Indices must be below `N`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn entries_avx512(&self, indices: __m512i) -> __m512i {
        // SAFETY: indices below `N` are inside the entries.
        unsafe { _mm512_i32gather_epi32::<4>(indices, self.entries.as_ptr().cast()) }
    }
}

impl<const N: usize> Grid<N, 8> {
    /// The entries of 16 rows: their first halves, then their second halves. Without meaning if the codebook was not
    /// read.
    ///
    /// # Safety
    /// Indices must be below `N`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn entries_avx512(&self, indices: __m512i) -> [__m512i; 2] {
        let low = _mm512_set1_epi8(15);
        // SAFETY: indices below `N` are inside the entries; there are 16 aligned levels.
        let (levels, entries) = unsafe {
            let entries = _mm512_i32gather_epi32::<4>(indices, self.entries.as_ptr().cast());
            (_mm512_broadcast_i32x4(_mm_load_si128(self.levels.as_ptr().cast())), entries)
        };
        let half = |nibbles| _mm512_shuffle_epi8(levels, _mm512_and_si512(nibbles, low));
        [half(entries), half(_mm512_srli_epi32::<4>(entries))]
    }

    /// The quants of `ENTRIES` entries of 16 rows: `index` gives the indices of entry `l`, `quants` makes vector `r` of
    /// what the entry has for it.
    ///
    /// # Safety
    /// Indices must be below `N`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn vectors_avx512<const ENTRIES: usize>(
        &self,
        index: impl Fn(usize) -> __m512i,
        quants: impl Fn(usize, __m512i) -> __m512i,
    ) -> [__m512i; 8] {
        let mut vectors = [_mm512_setzero_si512(); 8];
        for l in 0..ENTRIES {
            // SAFETY: indices below `N`.
            let [first, second] = unsafe { self.entries_avx512(index(l)) };
            vectors[2 * l] = quants(2 * l, first);
            vectors[2 * l + 1] = quants(2 * l + 1, second);
        }
        vectors
    }
}

/// The weights of one plain block.
///
/// # Safety
/// `decode` must be a decoder of `F`, as for [`Grid::read`].
unsafe fn decode_block<F: Format>(decode: Dequantise, block: &[u8]) -> Vec<f32> {
    assert_eq!(block.len(), F::BYTES);
    // ggml's blocks are made of 16-bit numbers.
    let aligned: Vec<u16> = block.chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    let mut weights = vec![f32::NAN; F::BLOCK];
    // SAFETY: a decoder of `F` gets one block, and room for its weights.
    unsafe { decode(aligned.as_ptr().cast(), weights.as_mut_ptr(), F::BLOCK as i64) };
    weights
}

/// Whether `decode` and this library give the same weights for random blocks, bit for bit.
///
/// # Safety
/// `decode` must be a decoder of `F`, as for [`Grid::read`].
unsafe fn agrees<F: Format>(decode: Dequantise) -> bool {
    let fields = const { BlockFields::new::<F>() };
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
            unsafe { fields.scatter(packed.as_mut_ptr(), lane, block.as_ptr()) };
        }
        // SAFETY: a decoder of `F`.
        let expected: Vec<Vec<f32>> = blocks.iter().map(|b| unsafe { decode_block::<F>(decode, b) }).collect();
        (0..F::BLOCK / F::GROUP).all(|group| {
            F::quants(&packed, group, &mut quants);
            let scale = F::scales(&packed, group).scale;
            (0..LANES * F::GROUP).all(|i| {
                let (lane, k) = (i % LANES, i / LANES);
                let weight = scale[lane] * f32::from(quants[position(lane, k)]);
                let wanted = expected[lane][group * F::GROUP + k];
                weight == wanted || weight.is_nan() && wanted.is_nan()
            })
        })
    })
}

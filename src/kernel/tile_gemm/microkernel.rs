//! The micro-kernel: one C tile of up to 32x32 results. It multiplies a pass of k-steps on the tile unit; meanwhile the
//! vector unit works off the epilogue of the C tile before.
//!
//! ```text
//! tmm0 tmm1     tmm4                       tmm0-3: results (C), tmm4-5: activations, tmm6-7: weights
//! tmm2 tmm3  =  tmm5  x  tmm6 tmm7
//!
//! for every k-step of the pass:
//!     tmm0-3 += (tmm4 above tmm5) x (tmm6 beside tmm7), and load the next k-step
//!     prefetch some of the next row block's activations
//!     scale some rows of the C tile before, add them to their sums     (Epilogue)
//! store tmm0-3
//! ```
//!
//! Functions with tile instructions need a *tile context*: the tile unit is configured with full tiles, and AVX-512 is
//! there. Tile state lives across the asm blocks of a function, which calls nothing in between that could touch it:
//! compilers never use tile registers.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use crate::format::LANES;
use crate::kernel::TILE_NR;
use crate::panel::precision::{OUTLIERS, STEP_BYTES, TILE_MR};
use crate::panel::rows::RowOffsets;

/// Bytes of one C tile: 32x32 numbers of 4 bytes.
pub const CTILE_BYTES: usize = TILE_MR * TILE_NR * 4;
/// Cache lines of activations prefetched per k-step.
pub const PREFETCH_ACT: usize = 4;

/// Operands of one pass of one C tile.
///
/// Valid: both operands have `steps` k-steps of [`STEP_BYTES`], `dots` is writable for [`CTILE_BYTES`].
pub struct KPass {
    /// Activation tiles.
    pub act: *const u8,
    /// Weight tiles.
    pub weights: *const u8,
    /// k-steps of both.
    pub steps: usize,
    /// Where the raw results go.
    pub dots: *mut u8,
    /// Activations to prefetch: a part of the next row block. Any address.
    pub next_act: *const u8,
}

/// A C tile in memory: up to 32 rows of 32 floats.
///
/// Valid: every row that is used has the floats of the masks.
#[derive(Clone, Copy)]
pub struct CTile {
    /// What the rows' offsets count from.
    pub at: *mut f32,
    /// Offsets of the rows.
    pub rows: RowOffsets,
    /// Which columns exist, in both halves; others are not written, and read as 0.
    pub masks: [u16; 2],
}

impl CTile {
    /// Contiguous rows of 32 floats in scratch.
    pub fn sums(at: *mut f32) -> Self {
        Self { at, rows: RowOffsets::Strided(TILE_NR * 4), masks: [u16::MAX; 2] }
    }

    /// # Safety
    /// If the rows are listed, the list must have the row.
    #[inline(always)]
    unsafe fn row(&self, row: usize) -> *mut f32 {
        // SAFETY: the list has the row.
        self.at.wrapping_byte_add(unsafe { self.rows.offset(row) })
    }

    /// One that reads as zeros.
    pub fn zeros() -> Self {
        Self { at: std::ptr::null_mut(), rows: RowOffsets::Strided(0), masks: [0; 2] }
    }
}

/// What is left to do for a C tile whose pass is multiplied: `to = dots * scales + from`.
///
/// Valid: `dots` and the scales are readable and 64-byte aligned, `from` and `to` are valid for `rows` rows, and if
/// `stream` is set, `to` has all 32 columns and is 64-byte aligned.
pub struct Epilogue {
    /// Raw results: int32, or f32 sums of BF16 products.
    pub dots: *const u8,
    /// 32 activation scales, one per row; not read for BF16.
    pub act: *const f32,
    /// 32 weight scales, one per column; not read for BF16.
    pub weights: *const f32,
    /// Rows that exist.
    pub rows: usize,
    /// The sums before.
    pub from: CTile,
    /// The sums after.
    pub to: CTile,
    /// Whether `to` is written past the caches.
    pub stream: bool,
}

impl Epilogue {
    /// One row; `weights` are the weight scales.
    ///
    /// # Safety
    /// The epilogue must be valid and have the row; AVX-512 must be there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn row<const BF16: bool>(&self, row: usize, weights: [__m512; 2]) {
        // SAFETY: a valid epilogue has the row in `dots`, the scales, `from` and `to`.
        unsafe {
            let (from, to) = (self.from.row(row), self.to.row(row));
            let dots = self.dots.add(row * TILE_NR * 4);
            for (p, weights) in weights.into_iter().enumerate() {
                let before = _mm512_maskz_loadu_ps(self.from.masks[p], from.wrapping_add(p * LANES));
                let after = if BF16 {
                    _mm512_add_ps(_mm512_load_ps(dots.add(64 * p).cast()), before)
                } else {
                    let dots = _mm512_cvtepi32_ps(_mm512_load_si512(dots.add(64 * p).cast()));
                    _mm512_fmadd_ps(dots, _mm512_mul_ps(weights, _mm512_set1_ps(*self.act.add(row))), before)
                };
                let to = to.wrapping_add(p * LANES);
                if self.stream {
                    _mm512_stream_ps(to, after);
                } else {
                    _mm512_mask_storeu_ps(to, self.to.masks[p], after);
                }
            }
        }
    }

    /// The weight scales.
    ///
    /// # Safety
    /// As for [`Epilogue::row`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales<const BF16: bool>(&self) -> [__m512; 2] {
        if BF16 {
            return [_mm512_setzero_ps(); 2];
        }
        // SAFETY: a valid epilogue has 32 weight scales.
        unsafe { [_mm512_load_ps(self.weights), _mm512_load_ps(self.weights.add(LANES))] }
    }

    /// Some rows.
    ///
    /// # Safety
    /// As for [`Epilogue::row`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn some<const BF16: bool>(&self, rows: Range<usize>) {
        // SAFETY: the epilogue is valid and has the rows.
        unsafe {
            let weights = self.scales::<BF16>();
            for row in rows {
                self.row::<BF16>(row, weights);
            }
        }
    }
}

/// Multiplies the loaded k-step, tmm0-3 += (tmm4 above tmm5) x (tmm6 beside tmm7), and loads another.
/// Tile registers are not renamed: each is loaded again right after its last use, so that the
/// products that follow hide the load.
macro_rules! step {
    ($tdp:literal, true, $act:expr, $weights:expr) => {
        asm!(
            concat!($tdp, " tmm0, tmm4, tmm6"),
            concat!($tdp, " tmm2, tmm5, tmm6"),
            "tileloaddt1 tmm6, [{w} + {row}*1]",
            concat!($tdp, " tmm1, tmm4, tmm7"),
            "tileloadd tmm4, [{a} + {row}*1]",
            concat!($tdp, " tmm3, tmm5, tmm7"),
            "tileloadd tmm5, [{a} + {row}*1 + 1024]",
            "tileloaddt1 tmm7, [{w} + {row}*1 + 1024]",
            a = in(reg) $act, w = in(reg) $weights, row = in(reg) 64usize,
            options(nostack, preserves_flags, readonly)
        )
    };
    ($tdp:literal, false, $act:expr, $weights:expr) => {
        asm!(
            concat!($tdp, " tmm0, tmm4, tmm6"),
            "tileloaddt1 tmm6, [{w} + {row}*1]",
            concat!($tdp, " tmm1, tmm4, tmm7"),
            "tileloadd tmm4, [{a} + {row}*1]",
            "tileloaddt1 tmm7, [{w} + {row}*1 + 1024]",
            a = in(reg) $act, w = in(reg) $weights, row = in(reg) 64usize,
            options(nostack, preserves_flags, readonly)
        )
    };
}

/// Multiplies the loaded k-step.
macro_rules! last {
    ($tdp:literal, true) => {
        asm!(
            concat!($tdp, " tmm0, tmm4, tmm6"),
            concat!($tdp, " tmm2, tmm5, tmm6"),
            concat!($tdp, " tmm1, tmm4, tmm7"),
            concat!($tdp, " tmm3, tmm5, tmm7"),
            options(nostack, preserves_flags)
        )
    };
    ($tdp:literal, false) => {
        asm!(concat!($tdp, " tmm0, tmm4, tmm6"), concat!($tdp, " tmm1, tmm4, tmm7"), options(nostack, preserves_flags))
    };
}

/// Multiplies one pass into `kpass.dots` and works off `epilogue` meanwhile, `WEAVE` rows per k-step.
/// `TWO`: 32 rows, otherwise the first 16.
///
/// # Safety
/// `kpass` and `epilogue` must be valid, in a tile context.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn multiply<const BF16: bool, const TWO: bool, const WEAVE: usize>(
    kpass: &KPass,
    epilogue: Option<&Epilogue>,
) {
    // SAFETY: both are valid: k-steps below `steps` and rows below `rows` exist.
    unsafe {
        start::<TWO>(kpass.act, kpass.weights);
        let rows = epilogue.map_or(0, |p| p.rows / WEAVE * WEAVE);
        let scales = epilogue.map_or([_mm512_setzero_ps(); 2], |p| p.scales::<BF16>());
        let mut row = 0;
        for step in 1..=kpass.steps {
            if step < kpass.steps {
                let (act, weights) = (kpass.act.add(step * STEP_BYTES), kpass.weights.add(step * STEP_BYTES));
                match (BF16, TWO) {
                    (true, true) => step!("tdpbf16ps", true, act, weights),
                    (true, false) => step!("tdpbf16ps", false, act, weights),
                    (false, true) => step!("tdpbssd", true, act, weights),
                    (false, false) => step!("tdpbssd", false, act, weights),
                }
            } else {
                match (BF16, TWO) {
                    (true, true) => last!("tdpbf16ps", true),
                    (true, false) => last!("tdpbf16ps", false),
                    (false, true) => last!("tdpbssd", true),
                    (false, false) => last!("tdpbssd", false),
                }
            }
            for line in 0..PREFETCH_ACT {
                let at = kpass.next_act.wrapping_add(((step - 1) * PREFETCH_ACT + line) * 64);
                _mm_prefetch::<_MM_HINT_T1>(at.cast());
            }
            if row < rows
                && let Some(p) = epilogue
            {
                for i in 0..WEAVE {
                    p.row::<BF16>(row + i, scales);
                }
                row += WEAVE;
            }
        }
        store_dots::<TWO>(kpass.dots);
        if let Some(p) = epilogue {
            p.some::<BF16>(row..p.rows);
        }
    }
}

/// Stores tmm0-3 (or tmm0-1) as rows of 32 columns.
///
/// # Safety
/// `to` must be writable for [`CTILE_BYTES`], in a tile context.
#[inline]
unsafe fn store_dots<const TWO: bool>(to: *mut u8) {
    // SAFETY: 32 rows of 128 bytes are a C tile.
    unsafe {
        asm!("tilestored [{to} + {row}*1], tmm0", "tilestored [{to} + {row}*1 + 64], tmm1",
            to = in(reg) to, row = in(reg) TILE_NR * 4, options(nostack, preserves_flags));
        if TWO {
            asm!("tilestored [{to} + {row}*1 + 2048], tmm2", "tilestored [{to} + {row}*1 + 2112], tmm3",
                to = in(reg) to, row = in(reg) TILE_NR * 4, options(nostack, preserves_flags));
        }
    }
}

/// In place of an offset: keep the tiles of the step before.
pub const SAME: u32 = u32::MAX;

/// Adds products of BF16 tiles to a C tile in scratch, or starts it with them (`FRESH`). A step is two offsets in
/// bytes: of 32 rows from `left`, and of 32 columns from `right`. There must be one at least; one of both may be
/// [`SAME`], but not in the first step.
///
/// # Safety
/// Every offset must be that of [`STEP_BYTES`] readable bytes, `sums` a C tile of contiguous rows, in a tile context.
#[inline]
pub unsafe fn accumulate<const FRESH: bool>(sums: *mut u8, left: *const u8, right: *const u8, steps: &[[u32; 2]]) {
    // SAFETY: the offsets are those of tiles, `sums` is a C tile.
    unsafe {
        let [first, rest @ ..] = steps else { return };
        start::<true>(left.add(first[0] as usize), right.add(first[1] as usize));
        if !FRESH {
            asm!("tileloadd tmm0, [{from} + {row}*1]", "tileloadd tmm1, [{from} + {row}*1 + 64]",
                "tileloadd tmm2, [{from} + {row}*1 + 2048]", "tileloadd tmm3, [{from} + {row}*1 + 2112]",
                from = in(reg) sums, row = in(reg) TILE_NR * 4, options(nostack, preserves_flags, readonly));
        }
        for step in rest {
            let (rows, columns) = (left.wrapping_add(step[0] as usize), right.wrapping_add(step[1] as usize));
            if step[1] == SAME {
                asm!(
                    "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7", "tileloadd tmm4, [{a} + {row}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7", "tileloadd tmm5, [{a} + {row}*1 + 1024]",
                    a = in(reg) rows, row = in(reg) 64usize, options(nostack, preserves_flags, readonly)
                );
            } else if step[0] == SAME {
                asm!(
                    "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm2, tmm5, tmm6", "tileloadd tmm6, [{w} + {row}*1]",
                    "tdpbf16ps tmm1, tmm4, tmm7", "tdpbf16ps tmm3, tmm5, tmm7", "tileloadd tmm7, [{w} + {row}*1 + 1024]",
                    w = in(reg) columns, row = in(reg) 64usize, options(nostack, preserves_flags, readonly)
                );
            } else {
                step!("tdpbf16ps", true, rows, columns);
            }
        }
        last!("tdpbf16ps", true);
        store_dots::<true>(sums);
    }
}

/// Starts the sums of a C tile with the product of the outlier channels: one k-step in BF16.
///
/// # Safety
/// Both operands must be readable for [`STEP_BYTES`], `sums` writable for [`CTILE_BYTES`], in a tile context.
#[inline]
pub unsafe fn outlier_product(act: *const u8, weights: *const u8, rows: usize, sums: *mut f32) {
    debug_assert_eq!(OUTLIERS, 32);
    // SAFETY: the operands are a k-step, `sums` is a C tile.
    unsafe {
        if rows > TILE_MR / 2 {
            start::<true>(act, weights);
            last!("tdpbf16ps", true);
            store_dots::<true>(sums.cast());
        } else {
            start::<false>(act, weights);
            last!("tdpbf16ps", false);
            store_dots::<false>(sums.cast());
        }
    }
}

/// Sets tmm0-3 to zero and loads the first k-step.
///
/// # Safety
/// Both operands must be readable for [`STEP_BYTES`], in a tile context.
#[inline]
unsafe fn start<const TWO: bool>(act: *const u8, weights: *const u8) {
    // SAFETY: tiles of a k-step are 1,024 bytes apart.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "tileloaddt1 tmm6, [{w} + {row}*1]",
            "tileloadd tmm4, [{a} + {row}*1]",
            "tileloaddt1 tmm7, [{w} + {row}*1 + 1024]",
            a = in(reg) act, w = in(reg) weights, row = in(reg) 64usize,
            options(nostack, preserves_flags, readonly)
        );
        if TWO {
            asm!("tileloadd tmm5, [{a} + {row}*1 + 1024]", a = in(reg) act, row = in(reg) 64usize,
                options(nostack, preserves_flags, readonly));
        }
    }
}

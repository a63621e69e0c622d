//! The scales of all groups of a block in registers, read at once: for code that then multiplies group by group.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::Format;

/// The most groups that a block may have: 256 weights in groups of 16.
const GROUPS: usize = 16;

/// Scales and minima of all groups of one block.
pub struct BlockScales {
    scale: [MaybeUninit<__m512>; GROUPS],
    /// Written only if the type has minima.
    min: [MaybeUninit<__m512>; GROUPS],
}

impl BlockScales {
    /// Nothing is written yet.
    #[inline]
    pub(crate) const fn new() -> Self {
        Self { scale: [const { MaybeUninit::uninit() }; GROUPS], min: [const { MaybeUninit::uninit() }; GROUPS] }
    }

    /// Writes scale and minimum of group `group`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn set<F: Format>(&mut self, group: usize, scale: __m512, min: __m512) {
        self.scale[group].write(scale);
        if F::HAS_MIN {
            self.min[group].write(min);
        }
    }

    /// Scale and minimum of group `group`; minima are 0 if the type has none.
    ///
    /// # Safety
    /// The group must have been written, for the same `F`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(crate) unsafe fn get<F: Format>(&self, group: usize) -> (__m512, __m512) {
        const { assert!(F::BLOCK / F::GROUP <= GROUPS) };
        // SAFETY: the group was written, so it is inside the arrays and initialised.
        unsafe {
            let min = if F::HAS_MIN { self.min.get_unchecked(group).assume_init() } else { _mm512_setzero_ps() };
            (self.scale.get_unchecked(group).assume_init(), min)
        }
    }
}

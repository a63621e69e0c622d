//! The scales of a whole block in vectors, for code that reads its groups one after another.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::Format;

/// Groups of the largest block.
const GROUPS: usize = 16;

/// Scales and minima of all groups of one block.
pub struct BlockScales {
    scale: [MaybeUninit<__m512>; GROUPS],
    /// Not written if the type has none.
    min: [MaybeUninit<__m512>; GROUPS],
}

impl BlockScales {
    /// Without any.
    #[inline]
    pub(crate) const fn new() -> Self {
        Self { scale: [const { MaybeUninit::uninit() }; GROUPS], min: [const { MaybeUninit::uninit() }; GROUPS] }
    }

    /// Those of group `group`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn set<F: Format>(&mut self, group: usize, scale: __m512, min: __m512) {
        self.scale[group].write(scale);
        if F::HAS_MIN {
            self.min[group].write(min);
        }
    }

    /// Those of group `group`; minima 0 if the type has none.
    ///
    /// # Safety
    /// They must be there.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(crate) unsafe fn get<F: Format>(&self, group: usize) -> (__m512, __m512) {
        const { assert!(F::BLOCK / F::GROUP <= GROUPS) };
        // SAFETY: promised by the caller.
        unsafe {
            let min = if F::HAS_MIN { self.min.get_unchecked(group).assume_init() } else { _mm512_setzero_ps() };
            (self.scale.get_unchecked(group).assume_init(), min)
        }
    }
}

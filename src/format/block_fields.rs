//! The fields of a type's block, and the permutation of bytes between plain blocks of 16 rows and a packed block that
//! they describe.

use std::ops::Deref;

use super::{ACT_BLOCK, Field, Format, LANES, MOST_BYTES};

/// The fields of one type's block, in order; see [`Field`] for where their bytes are in a packed block.
#[derive(Clone, Copy, Debug)]
pub struct BlockFields(&'static [Field]);

impl Deref for BlockFields {
    type Target = [Field];

    fn deref(&self) -> &[Field] {
        self.0
    }
}

impl BlockFields {
    /// The fields of `F`; refuses to compile if they do not cover the block, or the block is none that kernels can
    /// read.
    pub const fn new<F: Format>() -> Self {
        let mut covered = 0;
        let mut i = 0;
        while i < F::FIELDS.len() {
            let f = F::FIELDS[i];
            assert!(f.offset == covered, "fields must follow one another without gaps");
            assert!(f.unit == 1 || f.unit == 2 || f.unit == 4, "a unit is 1, 2 or 4 bytes");
            assert!(f.len % f.unit == 0, "a field is a whole number of units");
            covered += f.len;
            i += 1;
        }
        assert!(covered == F::BYTES, "fields must cover the block");
        assert!(F::BLOCK % F::GROUP == 0 && (F::GROUP == 16 || F::GROUP == 32));
        assert!(F::BLOCK.is_multiple_of(ACT_BLOCK) && 256 % F::BLOCK == 0, "blocks of 32, 64, 128 or 256 weights");
        assert!(F::BYTES * ACT_BLOCK <= MOST_BYTES * F::BLOCK, "more bytes than buffers are made for");
        Self(F::FIELDS)
    }

    /// The offset in the packed block of byte `byte` of the plain block of row `lane`.
    pub fn index(&self, lane: usize, byte: usize) -> usize {
        let f = self.iter().find(|f| byte < f.offset + f.len).expect("a byte of the block");
        let j = byte - f.offset;
        LANES * f.offset + (j / f.unit * LANES + lane) * f.unit + j % f.unit
    }

    /// Copies a whole plain block of row `lane` into the packed block.
    ///
    /// # Safety
    /// **Both blocks**: `plain` must be readable for the block's bytes, `packed` writable for 16 times as many, `lane`
    /// below 16. No other thread may use the bytes of this lane meanwhile.
    #[inline]
    pub unsafe fn scatter(&self, packed: *mut u8, lane: usize, plain: *const u8) {
        // SAFETY: the fields cover the block exactly once, so every unit is inside both blocks.
        unsafe {
            self.for_each_unit(lane, |p, q, unit| std::ptr::copy_nonoverlapping(plain.add(q), packed.add(p), unit))
        }
    }

    /// The inverse of [`BlockFields::scatter`].
    ///
    /// # Safety
    /// **Both blocks**, as there, but `packed` is read and `plain` written.
    #[inline]
    pub unsafe fn gather(&self, plain: *mut u8, packed: *const u8, lane: usize) {
        // SAFETY: the fields cover the block exactly once, so every unit is inside both blocks.
        unsafe {
            self.for_each_unit(lane, |p, q, unit| std::ptr::copy_nonoverlapping(packed.add(p), plain.add(q), unit))
        }
    }

    /// Calls `copy(packed offset, plain offset, unit)` for every unit. The unit is a constant in each
    /// branch, so that every copy becomes a single move.
    #[inline(always)]
    fn for_each_unit(&self, lane: usize, mut copy: impl FnMut(usize, usize, usize)) {
        for f in self.0 {
            let base = LANES * f.offset;
            match f.unit {
                4 => (0..f.len / 4).for_each(|u| copy(base + (u * LANES + lane) * 4, f.offset + u * 4, 4)),
                2 => (0..f.len / 2).for_each(|u| copy(base + (u * LANES + lane) * 2, f.offset + u * 2, 2)),
                _ => (0..f.len).for_each(|u| copy(base + u * LANES + lane, f.offset + u, 1)),
            }
        }
    }
}

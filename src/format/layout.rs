//! The byte permutation between a plain block and its place in a packed one.

use super::{ACT_BLOCK, Field, Format, LANES, MOST_BYTES};

/// The permutation of one type; see [`Field`] for the rule.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    fields: &'static [Field],
}

impl Layout {
    /// The permutation of `F`; refuses to compile if the fields do not cover the block.
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
        Self { fields: F::FIELDS }
    }

    /// Where byte `byte` of row `lane`'s plain block lies in the packed block.
    pub fn index(&self, lane: usize, byte: usize) -> usize {
        let f = self.fields.iter().find(|f| byte < f.offset + f.len).expect("a byte of the block");
        let j = byte - f.offset;
        LANES * f.offset + (j / f.unit * LANES + lane) * f.unit + j % f.unit
    }

    /// Copies a whole plain block of row `lane` into the packed block.
    ///
    /// # Safety
    /// `plain` must be readable for the block's bytes, `packed` writable for 16 times as many, and
    /// nobody else may touch the bytes of this lane meanwhile. `lane` < 16.
    #[inline]
    pub unsafe fn scatter(&self, packed: *mut u8, lane: usize, plain: *const u8) {
        // SAFETY: fields cover the block once, so every access is inside both blocks.
        unsafe {
            self.for_each_unit(lane, |p, q, unit| std::ptr::copy_nonoverlapping(plain.add(q), packed.add(p), unit))
        }
    }

    /// The inverse of [`Layout::scatter`].
    ///
    /// # Safety
    /// As there, with the roles of the pointers swapped.
    #[inline]
    pub unsafe fn gather(&self, plain: *mut u8, packed: *const u8, lane: usize) {
        // SAFETY: as in `scatter`.
        unsafe {
            self.for_each_unit(lane, |p, q, unit| std::ptr::copy_nonoverlapping(packed.add(p), plain.add(q), unit))
        }
    }

    /// Calls `copy(packed offset, plain offset, unit)` for every unit; the unit is a constant in each
    /// branch so that the copies become single moves.
    #[inline(always)]
    fn for_each_unit(&self, lane: usize, mut copy: impl FnMut(usize, usize, usize)) {
        for f in self.fields {
            let base = LANES * f.offset;
            match f.unit {
                4 => (0..f.len / 4).for_each(|u| copy(base + (u * LANES + lane) * 4, f.offset + u * 4, 4)),
                2 => (0..f.len / 2).for_each(|u| copy(base + (u * LANES + lane) * 2, f.offset + u * 2, 2)),
                _ => (0..f.len).for_each(|u| copy(base + u * LANES + lane, f.offset + u, 1)),
            }
        }
    }
}

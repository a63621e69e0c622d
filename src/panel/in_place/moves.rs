//! How a plain block becomes a packed one: a list of moves per type, made by the compiler from the type's fields.

use crate::format::{Field, Format};

/// Bytes of each row that one [`Move::Words`] moves.
pub const WORDS_BYTES: usize = 16;
/// At least as many moves as any type needs for a block.
const MAX_MOVES: usize = 24;

/// Some bytes of each of 16 plain blocks, and how they lie in the packed one.
#[derive(Clone, Copy, PartialEq)]
pub enum Move {
    /// Four double words from byte `offset` on; in double word `i`, `units[i]` bytes of a row stay together.
    Words {
        /// First byte within the plain block.
        offset: usize,
        /// 1, 2 or 4.
        units: [usize; 4],
    },
    /// One unit: `unit` bytes at `offset`.
    Unit {
        /// First byte within the plain block.
        offset: usize,
        /// 1, 2 or 4.
        unit: usize,
    },
}

/// The moves of a type.
pub struct Moves<F>(std::marker::PhantomData<F>);

impl<F: Format> Moves<F> {
    /// The moves of a block, and how many there are.
    pub const ALL: ([Move; MAX_MOVES], usize) = {
        let mut moves = [Move::Unit { offset: 0, unit: 1 }; MAX_MOVES];
        let (mut count, mut done) = (0, 0);
        while done < F::BYTES {
            let unit = unit_at(F::FIELDS, done).0;
            let mut next_move = Move::Unit { offset: done, unit };
            let mut next = done + unit;
            // Where four double words cannot begin, those that begin a little before may end: moving a byte twice does
            // no harm.
            let mut back = 0;
            while back < WORDS_BYTES && back <= done {
                if let Some(words) = words(F::FIELDS, F::BYTES, done - back) {
                    (next_move, next) = (words, done - back + WORDS_BYTES);
                    break;
                }
                back += 1;
            }
            moves[count] = next_move;
            (count, done) = (count + 1, next);
        }
        (moves, count)
    };
}

/// Bytes of a row that stay together at byte `offset` of a block, and whether they begin there.
const fn unit_at(fields: &[Field], offset: usize) -> (usize, bool) {
    let mut i = 0;
    while i < fields.len() {
        let Field { offset: first, len, unit, .. } = fields[i];
        if first <= offset && offset < first + len {
            return (unit, (offset - first).is_multiple_of(unit));
        }
        i += 1;
    }
    panic!("fields cover a block")
}

/// Four double words from byte `offset` on, if they lie in the block and each has units of one size that begin where it
/// begins.
const fn words(fields: &[Field], bytes: usize, offset: usize) -> Option<Move> {
    let mut units = [0; 4];
    let mut i = 0;
    while i < WORDS_BYTES {
        if offset + WORDS_BYTES > bytes {
            return None;
        }
        let (unit, begins) = unit_at(fields, offset + i);
        if i % 4 == 0 {
            units[i / 4] = unit;
        }
        if units[i / 4] != unit || begins != (i % 4).is_multiple_of(unit) {
            return None;
        }
        i += 1;
    }
    Some(Move::Words { offset, units })
}

/// Most bytes of two blocks that are packed [`in_pairs`]: Q8_0.
pub const MAX_PAIR: usize = 68;

/// Whether a block is a scale of two bytes, then double words. Two such blocks are a whole number of double words,
/// though those of the first block lie across their borders.
pub const fn in_pairs<F: Format>() -> bool {
    let mut words = F::FIELDS[0].len == 2 && F::FIELDS[0].unit == 2 && F::BYTES % 4 == 2 && F::BYTES <= MAX_PAIR / 2;
    let mut i = 1;
    while i < F::FIELDS.len() {
        words &= F::FIELDS[i].unit == 4;
        i += 1;
    }
    words
}

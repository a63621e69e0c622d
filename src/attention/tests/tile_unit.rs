//! What attention relies on in the tile unit.

use half::bf16;

use super::*;
use crate::kernel::tile_gemm::{SAME, accumulate};

/// Tiles of 32 rows or columns and 64 channels of BF16: 64 bytes for every row or, as columns, for every pair of
/// channels.
#[derive(Clone)]
#[repr(align(64))]
struct TileBytes([u16; 2 * SIDE * SIDE]);

impl TileBytes {
    /// Rows, in two k-steps of 32 channels.
    fn rows(number: impl Fn(usize, usize) -> bf16) -> Self {
        Self(std::array::from_fn(|i| number(i / 32 % 32, i / 1024 * 32 + i % 32).to_bits()))
    }

    /// Columns, in two k-steps.
    fn columns(number: impl Fn(usize, usize) -> bf16) -> Self {
        Self(std::array::from_fn(|i| {
            let (half, pair, lane) = (i / 512 % 2, i / 32 % 16, i % 32);
            number(half * 16 + lane / 2, i / 1024 * 32 + 2 * pair + lane % 2).to_bits()
        }))
    }
}

/// The tile unit adds up products as expected. If a row or a column is not finite, only its own results are not finite,
/// and all others keep their bits. Subnormal numbers count as zero.
#[test]
fn products_of_tiles_keep_rows_and_columns_apart() {
    let Some(proof) = Amx::new() else {
        assert!(is_skipped());
        return;
    };
    let mut random = Random(11);
    let [a, b] = [(); 2].map(|()| (0..32 * 64).map(|_| bf16::from_f32(random.normal())).collect::<Vec<_>>());
    #[repr(align(64))]
    struct Sums([f32; SIDE * SIDE]);
    let product = |left: &TileBytes, right: &TileBytes, fresh: bool| {
        let mut sums = Sums([if fresh { f32::NAN } else { 3.0 }; SIDE * SIDE]);
        let _tiles = TileUnit::enter_full(proof);
        // Every channel is multiplied twice.
        let steps = [[0, 0], [2048, 2048], [SAME, 0], [0, SAME]];
        let (to, left, right) = (sums.0.as_mut_ptr().cast(), left.0.as_ptr().cast(), right.0.as_ptr().cast());
        // SAFETY: full tiles are configured; both operands have two k-steps.
        unsafe {
            if fresh {
                accumulate::<true>(to, left, right, &steps)
            } else {
                accumulate::<false>(to, left, right, &steps)
            }
        }
        sums.0
    };
    let left = |row: usize, channel: usize| a[row * 64 + channel];
    let right = |column: usize, channel: usize| b[column * 64 + channel];
    let clean = product(&TileBytes::rows(left), &TileBytes::columns(right), true);
    let added = product(&TileBytes::rows(left), &TileBytes::columns(right), false);
    for (i, (got, added)) in clean.into_iter().zip(added).enumerate() {
        let dot = |from: usize, to: usize| -> f64 {
            (0..32).map(|c| left(i / 32, from + c).to_f64() * right(i % 32, to + c).to_f64()).sum()
        };
        let want = dot(0, 0) + dot(32, 32) + dot(32, 0) + dot(0, 0);
        assert!(
            (f64::from(got) - want).abs() < 1e-5 && (f64::from(added) - want - 3.0).abs() < 1e-5,
            "{i}: {got}, {want}"
        );
    }
    let bad_left = |row: usize, channel: usize| match (row, channel) {
        (5, 40) => bf16::NAN,
        (23, 1) => bf16::INFINITY,
        _ => left(row, channel),
    };
    let bad_right =
        |column: usize, channel: usize| if (column, channel) == (9, 3) { bf16::NAN } else { right(column, channel) };
    let bad = product(&TileBytes::rows(bad_left), &TileBytes::columns(bad_right), true);
    for (i, (bad, clean)) in bad.into_iter().zip(clean).enumerate() {
        match (i / 32, i % 32) {
            (5, _) | (_, 9) => assert!(bad.is_nan(), "row {}, column {}: {bad}", i / 32, i % 32),
            (23, _) => assert!(!bad.is_finite(), "row 23, column {}: {bad}", i % 32),
            _ => assert_eq!(bad.to_bits(), clean.to_bits(), "row {}, column {}", i / 32, i % 32),
        }
    }
    let tiny = |_: usize, _: usize| bf16::from_bits(1);
    let large = |_: usize, _: usize| bf16::from_f32(1e30);
    assert_eq!(product(&TileBytes::rows(tiny), &TileBytes::columns(large), true), [0.0; SIDE * SIDE]);
}

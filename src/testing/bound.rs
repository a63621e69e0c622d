//! The judge of products: the bound that the header promises for every row of a result, and what it is measured
//! with: the product in double precision, and what 8 bits per 32 activations on exact weights would give.
//!
//! `c_tests/bound.hpp` is the same for hosts.

use crate::format::ACT_BLOCK;
use crate::panel::weights::Shape;
use crate::testing::random::dequantise;
use crate::with_format;

/// Results of a row that a mean of squares needs to say something. Rows of fewer columns are pooled over draws of the
/// weights until they have as many.
pub const OUTPUTS: usize = 256;

/// Activations below may count as zero.
const ZERO: f64 = 1e-30;

/// Rows of activations that share a walk through the weights.
const ROWS: usize = 4;

/// Largest NMSE of a row: twice that of 8 bits per 32 activations (`e8`) or a tenth of the weight type's own error, the
/// latter at most 3e-4; and never less than 1e-5.
pub fn row_bound(quant_nmse: f64, e8: f64) -> f64 {
    (2.0 * e8).max((quant_nmse / 10.0).min(3e-4)).max(1e-5)
}

/// What the results of one row of activations add up to; draws of other weights are added with [`Row::add`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Row {
    /// Results so far.
    pub outputs: usize,
    /// Squares of the exact results.
    pub size: f64,
    /// Squared errors.
    pub error: f64,
    /// Squared errors of 8 bits per 32 activations.
    pub error8: f64,
}

impl Row {
    /// Pools the results of another draw.
    pub fn add(&mut self, other: Row) {
        self.outputs += other.outputs;
        self.size += other.size;
        self.error += other.error;
        self.error8 += other.error8;
    }

    /// Squared error over squared size; NaN if a result is not a number.
    pub fn nmse(&self) -> f64 {
        ratio(self.error, self.size)
    }

    /// The same of 8 bits per 32 activations.
    pub fn e8(&self) -> f64 {
        ratio(self.error8, self.size)
    }

    /// Whether the row keeps the bound; what it has and what it may have, if not.
    pub fn judge(&self, quant_nmse: f32) -> Result<(), String> {
        assert!(self.outputs >= OUTPUTS, "{} results of a row, {OUTPUTS} are needed", self.outputs);
        let bound = row_bound(quant_nmse.into(), self.e8());
        // A comparison with NaN is false.
        if self.nmse() <= bound {
            return Ok(());
        }
        Err(format!("NMSE {:.3e}, allowed {bound:.3e} (8 bits per 32: {:.3e})", self.nmse(), self.e8()))
    }
}

/// No error of nothing is none.
fn ratio(error: f64, size: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / size }
}

/// A weight matrix in double precision.
pub struct Matrix {
    k: usize,
    /// Rows of `k` weights.
    values: Vec<f64>,
}

impl Matrix {
    /// Rows of `k` values each.
    pub fn new(k: usize, values: Vec<f64>) -> Self {
        assert!(k > 0 && k.is_multiple_of(ACT_BLOCK) && values.len().is_multiple_of(k));
        Self { k, values }
    }

    /// What a packed matrix stands for, all its slices.
    pub fn packed(shape: &Shape, packed: &[u8]) -> Self {
        let mut values = vec![0.0; shape.k * shape.n * shape.slices];
        for (packed, values) in packed.chunks(shape.slice_packed).zip(values.chunks_mut(shape.k * shape.n)) {
            with_format!(shape.ty, F => dequantise::<F>(shape, packed, values));
        }
        Self::new(shape.k, values)
    }

    /// Rows of the matrix: columns of a product.
    pub fn columns(&self) -> usize {
        self.values.len() / self.k
    }

    /// Looks at rows of results `out` for as many rows of activations `x`, both contiguous.
    pub fn measure(&self, x: &[f32], out: &[f32]) -> Vec<Row> {
        let (k, n) = (self.k, self.columns());
        let m = x.len() / k;
        assert!(x.len() == m * k && out.len() == m * n, "{m} rows: {} activations, {} results", x.len(), out.len());
        let mut rows = Vec::with_capacity(m);
        for (x, out) in x.chunks(ROWS * k).zip(out.chunks(ROWS * n)) {
            self.measure_some(x, out, &mut rows);
        }
        rows
    }

    /// Judges every row of a product; if it has fewer columns than [`OUTPUTS`], all rows together, which should be alike.
    pub fn judge(&self, quant_nmse: f32, x: &[f32], out: &[f32]) -> Result<(), String> {
        let rows = self.measure(x, out);
        if self.columns() < OUTPUTS {
            let mut all = Row::default();
            rows.into_iter().for_each(|row| all.add(row));
            return all.judge(quant_nmse);
        }
        rows.iter().enumerate().try_for_each(|(i, row)| row.judge(quant_nmse).map_err(|why| format!("row {i}: {why}")))
    }

    /// Up to [`ROWS`] rows.
    fn measure_some(&self, x: &[f32], out: &[f32], rows: &mut Vec<Row>) {
        let (k, n) = (self.k, self.columns());
        let mut exact = vec![0.0; ROWS * k];
        let mut eight = vec![0.0; ROWS * k];
        for ((x, exact), eight) in x.chunks(k).zip(exact.chunks_mut(k)).zip(eight.chunks_mut(k)) {
            widen(x, exact);
            quantise(x, eight);
        }
        let first = rows.len();
        rows.extend((0..x.len() / k).map(|_| Row { outputs: n, ..Row::default() }));
        let rows = &mut rows[first..];
        // Rows that have them; others have nothing to be let off.
        let tiny: Vec<Option<Vec<f64>>> = exact.chunks(k).map(tiny).collect();
        for (column, w) in self.values.chunks(k).enumerate() {
            let (want, with8) = dots(w, &exact, &eight);
            for (i, row) in rows.iter_mut().enumerate() {
                assert!(want[i].abs() < f64::from(f32::MAX), "row {i}: {:e} is no f32", want[i]);
                let allowed = tiny[i].as_ref().map_or(0.0, |t| t.iter().zip(w).map(|(t, w)| t * w.abs()).sum::<f64>());
                let error = |got: f64| {
                    let d = (got - want[i]).abs();
                    // Written so that NaN stays NaN.
                    if d <= allowed { 0.0 } else { (d - allowed).powi(2) }
                };
                row.size += want[i].powi(2);
                row.error += error(out[i * n + column].into());
                row.error8 += error(with8[i]);
            }
        }
    }
}

/// Activations in double precision.
fn widen(x: &[f32], out: &mut [f64]) {
    for (x, out) in x.iter().zip(out) {
        assert!(x.is_finite(), "rows with NaN or infinity have no exact result");
        *out = f64::from(*x);
    }
}

/// Activations in 8 bits per 32 with an f32 scale, as floats again.
fn quantise(x: &[f32], out: &mut [f64]) {
    for (x, out) in x.chunks(ACT_BLOCK).zip(out.chunks_mut(ACT_BLOCK)) {
        let largest = x.iter().fold(0.0, |a: f32, x| a.max(x.abs()));
        let (scale, inverse) = (f64::from(largest / 127.0), 127.0 / f64::from(largest));
        for (x, out) in x.iter().zip(out) {
            *out = if f64::from(largest) < ZERO { 0.0 } else { (f64::from(*x) * inverse).round_ties_even() * scale };
        }
    }
}

/// Magnitudes of those activations that may count as zero, if there are any.
fn tiny(x: &[f64]) -> Option<Vec<f64>> {
    let is_tiny = |x: f64| x != 0.0 && x.abs() < ZERO;
    let magnitudes = || x.iter().map(|x| if is_tiny(*x) { x.abs() } else { 0.0 }).collect();
    x.iter().any(|x| is_tiny(*x)).then(magnitudes)
}

/// Products of a row of weights with [`ROWS`] rows of exact and of quantised activations.
fn dots(w: &[f64], exact: &[f64], eight: &[f64]) -> ([f64; ROWS], [f64; ROWS]) {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the CPU has it.
        unsafe { dots_avx512(w, exact, eight) }
    } else {
        (dots_of(w, exact), dots_of(w, eight))
    }
}

/// # Safety
/// The CPU must have AVX-512 F.
#[target_feature(enable = "avx512f")]
unsafe fn dots_avx512(w: &[f64], exact: &[f64], eight: &[f64]) -> ([f64; ROWS], [f64; ROWS]) {
    (dots_of(w, exact), dots_of(w, eight))
}

/// 8 sums per row, so that the compiler may use vectors.
#[inline(always)]
fn dots_of(w: &[f64], x: &[f64]) -> [f64; ROWS] {
    let k = w.len();
    let mut sums = [[0.0; 8]; ROWS];
    for i in (0..k).step_by(8) {
        let w: &[f64; 8] = w[i..i + 8].try_into().expect("K is a multiple of 32");
        for (row, sums) in sums.iter_mut().enumerate() {
            let x: &[f64; 8] = x[row * k + i..][..8].try_into().expect("so many rows");
            for lane in 0..8 {
                sums[lane] += w[lane] * x[lane];
            }
        }
    }
    sums.map(|s| s.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random::Random;

    const K: usize = 256;

    fn normal(count: usize, seed: u64) -> Vec<f32> {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        (0..count).map(|_| random.normal()).collect()
    }

    fn matrix(columns: usize, seed: u64) -> Matrix {
        Matrix::new(K, normal(columns * K, seed).into_iter().map(f64::from).collect())
    }

    /// Results that are off by `error` (NMSE), each by a random amount.
    fn results(matrix: &Matrix, x: &[f32], error: f64) -> Vec<f32> {
        let mut random = Random((matrix.values[0] * 1e9) as i64 as u64);
        // Of a product of independent weights and activations, both of variance 1/3.
        let typical = (K as f64 / 9.0).sqrt();
        let dot = |x: &[f32], w: &[f64]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * w).sum::<f64>();
        // Of variance 1.
        let mut noise = || f64::from(random.normal()) * 3f64.sqrt();
        let mut result = |x: &[f32], w: &[f64]| (dot(x, w) + noise() * typical * error.sqrt()) as f32;
        x.chunks(K).flat_map(|x| matrix.values.chunks(K).map(|w| result(x, w)).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn the_bound_is_the_promised_one() {
        assert_eq!(row_bound(0.0, 0.0), 1e-5);
        assert_eq!(row_bound(7.3e-3, 5e-5), 3e-4);
        assert_eq!(row_bound(1e-3, 2e-5), 1e-4);
        assert_eq!(row_bound(1e-3, 4e-4), 8e-4);
    }

    #[test]
    fn one_row_of_many_with_too_large_an_error_is_found() {
        let (m, x) = (matrix(OUTPUTS, 1), normal(9 * K, 2));
        assert_eq!(m.judge(2e-3, &x, &results(&m, &x, 1e-4)), Ok(()));
        let mut out = results(&m, &x, 1e-4);
        out[7 * OUTPUTS..8 * OUTPUTS].copy_from_slice(&results(&m, &x[7 * K..8 * K], 4e-4));
        let why = m.judge(2e-3, &x, &out).unwrap_err();
        assert!(why.starts_with("row 7: NMSE"), "{why}");
        for broken in [f32::NAN, f32::INFINITY, 1e3] {
            out.copy_from_slice(&results(&m, &x, 0.0));
            out[3 * OUTPUTS + 5] = broken;
            assert!(m.judge(2e-3, &x, &out).unwrap_err().starts_with("row 3"), "{broken}");
        }
    }

    #[test]
    fn eight_bits_have_the_error_of_uniform_rounding() {
        let (m, x) = (matrix(OUTPUTS, 3), normal(6 * K, 4));
        for row in m.measure(&x, &results(&m, &x, 0.0)) {
            // A step is amax / 127: about 1.1 / 127 here, its variance a 12th of the square, that of activations 1/3.
            let expected = (1.1f64 / 127.0).powi(2) / 12.0 * 3.0;
            assert!(row.error < 1e-12 * row.size, "{row:?}");
            assert!(row.e8() > expected / 2.0 && row.e8() < 2.0 * expected, "{:e} {expected:e}", row.e8());
        }
    }

    #[test]
    fn few_columns_are_pooled_over_draws() {
        let x = normal(K, 5);
        let mut row = Row::default();
        for draw in 0..16 {
            let m = matrix(16, 100 + draw);
            row.add(m.measure(&x, &results(&m, &x, 1e-3))[0]);
        }
        assert_eq!(row.outputs, OUTPUTS);
        assert!(row.nmse() > 5e-4 && row.nmse() < 2e-3, "{:e}", row.nmse());
        assert!(row.judge(1.0).is_err());
    }

    #[test]
    fn tiny_activations_may_count_or_not() {
        let m = matrix(OUTPUTS, 6);
        let x: Vec<f32> =
            normal(K, 7).iter().enumerate().map(|(i, x)| x * if i < 128 { 1e-31 } else { 3e-30 }).collect();
        let without: Vec<f32> = x.iter().map(|x| if x.abs() < 1e-30 { 0.0 } else { *x }).collect();
        for taken in [&x, &without] {
            assert_eq!(m.judge(0.0, &x, &results(&m, taken, 0.0)), Ok(()));
        }
        let zeros = vec![0.0; OUTPUTS];
        assert!(m.judge(0.0, &x, &zeros).is_err());
        assert_eq!(m.judge(0.0, &vec![1e-31; K], &zeros), Ok(()));
        assert_eq!(m.judge(0.0, &vec![0.0; K], &zeros), Ok(()));
        assert!(m.judge(0.0, &vec![0.0; K], &vec![1e-20; OUTPUTS]).is_err());
    }
}

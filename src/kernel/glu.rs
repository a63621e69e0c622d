//! Gated linear units: `op(gate) * up` of the results of two products, as in the first half of a gated feed-forward
//! network.
//!
//! Portable and AVX-512 code take the same steps in the same order, so that they agree bit for bit. The exponential is
//! e^x = 2^n * 2^f with |f| <= 1/2 and a polynomial for 2^f, good to two units in the last place.

use std::arch::x86_64::*;

use crate::cpu::Avx512;

/// The functions that hosts fuse. The constants are those of the hosts and of the models' papers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GluOp {
    /// `x / (1 + e^-x)`.
    Silu,
    /// `x / (1 + e^-2u)`, `u = sqrt(2 / pi) (x + 0.044715 x^3)`: the approximation by tanh.
    Gelu,
    /// `max(x, 0)`.
    Relu,
    /// gpt-oss: `min(x, 7) / (1 + e^(-1.702 min(x, 7)))`, with `1 + clamp(up, -7, 7)`.
    SwigluOai,
}

/// The bounds and the slope of [`GluOp::SwigluOai`].
const OAI_LIMIT: f32 = 7.0;
const OAI_ALPHA: f32 = 1.702;
/// `2 sqrt(2 / pi)` and the cubic's factor of [`GluOp::Gelu`].
const GELU_TWICE: f32 = 1.595_769;
const GELU_CUBIC: f32 = 0.044_715;
/// [`GluTask::limit`] counts above this.
const LEAST_LIMIT: f32 = 1e-6;

/// One row of results.
///
/// Valid: `up`, `dst` and each bias that is not null have `len` floats; `dst` is used by no other thread.
#[derive(Clone, Copy, Debug)]
pub struct GluTask {
    /// The function.
    pub op: GluOp,
    /// If it is above 1e-6: the most that comes out of the function, and the largest magnitude of `up`.
    pub limit: f32,
    /// Results of the first product.
    pub up: *const f32,
    /// Added to `up`; may be null.
    pub up_bias: *const f32,
    /// Added to the gate; may be null.
    pub gate_bias: *const f32,
    /// Results of the second product, the gate; replaced by the result.
    pub dst: *mut f32,
    /// Columns.
    pub len: usize,
}

/// Computes `task`.
///
/// # Safety
/// The task must be valid.
pub unsafe fn run(avx512: Option<Avx512>, task: &GluTask) {
    // SAFETY: the task is valid, and the proof stands for AVX-512.
    unsafe {
        match avx512 {
            Some(_) => vectors(task),
            None => (0..task.len).for_each(|i| {
                let bias = |data: *const f32| if data.is_null() { 0.0 } else { *data.add(i) };
                let (gate, up) = (*task.dst.add(i) + bias(task.gate_bias), *task.up.add(i) + bias(task.up_bias));
                *task.dst.add(i) = one(task, gate, up);
            }),
        }
    }
}

/// The polynomial for 2^f, highest power first (Taylor: ln(2)^k / k!).
const POLYNOMIAL: [f32; 7] =
    [1.540_353e-4, 1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 2.402_265e-1, std::f32::consts::LN_2, 1.0];
/// Powers of 2 beyond which e^x is 0 or infinite.
const LOWEST: f32 = -150.0;
const HIGHEST: f32 = 129.0;

/// e^x.
fn exp(x: f32) -> f32 {
    let t = x * std::f32::consts::LOG2_E;
    // NaN stays NaN: comparisons with it are false.
    let t = if t < LOWEST { LOWEST } else { t };
    let t = if t > HIGHEST { HIGHEST } else { t };
    let n = t.round_ties_even();
    let f = t - n;
    let p = POLYNOMIAL[1..].iter().fold(POLYNOMIAL[0], |p, c| p.mul_add(f, *c));
    // In two steps: 2^n alone may be no normal number.
    let half = (n * 0.5).floor();
    let power = |n: f32| f32::from_bits(((n as i32 + 127) as u32) << 23);
    p * power(half) * power(n - half)
}

/// One result.
fn one(task: &GluTask, gate: f32, up: f32) -> f32 {
    let sigmoid_times = |x: f32, slope: f32| x / (1.0 + exp(-(slope * x)));
    let mut a = match task.op {
        GluOp::Silu => sigmoid_times(gate, 1.0),
        GluOp::Gelu => gate / (1.0 + exp(-(GELU_TWICE * gate * (GELU_CUBIC * gate).mul_add(gate, 1.0)))),
        GluOp::Relu => max(gate, 0.0),
        GluOp::SwigluOai => sigmoid_times(min(gate, OAI_LIMIT), OAI_ALPHA),
    };
    let mut up = up;
    if task.limit > LEAST_LIMIT {
        a = min(a, task.limit);
    }
    if task.op == GluOp::SwigluOai {
        up = 1.0 + max(min(up, OAI_LIMIT), -OAI_LIMIT);
    } else if task.limit > LEAST_LIMIT {
        up = max(min(up, task.limit), -task.limit);
    }
    a * up
}

/// `VMINPS` with the bound first: NaN in `x` stays NaN.
fn min(x: f32, bound: f32) -> f32 {
    if bound < x { bound } else { x }
}

/// `VMAXPS` with the bound first: NaN in `x` stays NaN.
fn max(x: f32, bound: f32) -> f32 {
    if bound > x { bound } else { x }
}

/// # Safety
/// The task must be valid; AVX-512 must be there.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn vectors(task: &GluTask) {
    for at in (0..task.len).step_by(16) {
        let lanes = (task.len - at).min(16);
        let mask = ((1u32 << lanes) - 1) as u16;
        // SAFETY: the task is valid; the mask keeps the last vector inside.
        unsafe {
            let load = |data: *const f32| _mm512_maskz_loadu_ps(mask, data.add(at));
            let biased = |v, bias: *const f32| if bias.is_null() { v } else { _mm512_add_ps(v, load(bias)) };
            let gate = biased(load(task.dst), task.gate_bias);
            let up = biased(load(task.up), task.up_bias);
            _mm512_mask_storeu_ps(task.dst.add(at), mask, sixteen(task, gate, up));
        }
    }
}

/// 16 results.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn sixteen(task: &GluTask, gate: __m512, up: __m512) -> __m512 {
    let all = |v: f32| _mm512_set1_ps(v);
    let bounded = |x, bound: f32| _mm512_min_ps(all(bound), x);
    let symmetric = |x, bound: f32| _mm512_max_ps(all(-bound), bounded(x, bound));
    // x / (1 + e^-y)
    let gated = |x, y| {
        let negative = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(y), _mm512_set1_epi32(i32::MIN)));
        _mm512_div_ps(x, _mm512_add_ps(all(1.0), exp16(negative)))
    };
    let mut a = match task.op {
        GluOp::Silu => gated(gate, gate),
        GluOp::Gelu => {
            let cubic = _mm512_fmadd_ps(_mm512_mul_ps(all(GELU_CUBIC), gate), gate, all(1.0));
            gated(gate, _mm512_mul_ps(_mm512_mul_ps(all(GELU_TWICE), gate), cubic))
        }
        GluOp::Relu => _mm512_max_ps(all(0.0), gate),
        GluOp::SwigluOai => {
            let x = bounded(gate, OAI_LIMIT);
            gated(x, _mm512_mul_ps(all(OAI_ALPHA), x))
        }
    };
    let mut up = up;
    if task.limit > LEAST_LIMIT {
        a = bounded(a, task.limit);
    }
    if task.op == GluOp::SwigluOai {
        up = _mm512_add_ps(all(1.0), symmetric(up, OAI_LIMIT));
    } else if task.limit > LEAST_LIMIT {
        up = symmetric(up, task.limit);
    }
    _mm512_mul_ps(a, up)
}

/// e^x of 16 numbers, to two units in the last place near 0.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) fn exp16(x: __m512) -> __m512 {
    let all = |v: f32| _mm512_set1_ps(v);
    let t = _mm512_mul_ps(x, all(std::f32::consts::LOG2_E));
    let t = _mm512_min_ps(all(HIGHEST), _mm512_max_ps(all(LOWEST), t));
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(t);
    let f = _mm512_sub_ps(t, n);
    let mut p = all(POLYNOMIAL[0]);
    for c in &POLYNOMIAL[1..] {
        p = _mm512_fmadd_ps(p, f, all(*c));
    }
    let half = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(_mm512_mul_ps(n, all(0.5)));
    let power = |n| {
        let biased = _mm512_add_epi32(_mm512_cvttps_epi32(n), _mm512_set1_epi32(127));
        _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
    };
    _mm512_mul_ps(_mm512_mul_ps(p, power(half)), power(_mm512_sub_ps(n, half)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [GluOp; 4] = [GluOp::Silu, GluOp::Gelu, GluOp::Relu, GluOp::SwigluOai];

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * 0.37).sin() * 10f32.powi(i as i32 % 5 - 2)).collect()
    }

    fn run_all(avx512: Option<Avx512>, op: GluOp, limit: f32, n: usize, biased: bool) -> Vec<f32> {
        let (mut gate, bias) = (values(n), values(n + 7));
        let up: Vec<f32> = values(n + 50).split_off(50);
        let pointer = |v: &[f32]| if biased { v.as_ptr() } else { std::ptr::null() };
        let task = GluTask {
            op,
            limit,
            up: up.as_ptr(),
            up_bias: pointer(&bias[7..]),
            gate_bias: pointer(&bias),
            dst: gate.as_mut_ptr(),
            len: n,
        };
        // SAFETY: all arrays have n floats.
        unsafe { run(avx512, &task) };
        gate
    }

    /// Every function, with and without limit, against f64.
    #[test]
    fn results_are_those_of_the_definition() {
        for op in ALL {
            for limit in [0.0, 0.5] {
                for (i, result) in run_all(None, op, limit, 300, true).into_iter().enumerate() {
                    let (gate, bias, up) = (values(300), values(307), values(350));
                    let x = f64::from(gate[i] + bias[i]);
                    let mut up = f64::from(up[50 + i] + bias[7 + i]);
                    let mut a = match op {
                        GluOp::Silu => x / (1.0 + (-x).exp()),
                        GluOp::Gelu => {
                            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                            0.5 * x * (1.0 + u.tanh())
                        }
                        GluOp::Relu => x.max(0.0),
                        GluOp::SwigluOai => x.min(7.0) / (1.0 + (-1.702 * x.min(7.0)).exp()),
                    };
                    if limit > 0.0 {
                        a = a.min(0.5);
                    }
                    if op == GluOp::SwigluOai {
                        up = 1.0 + up.clamp(-7.0, 7.0);
                    } else if limit > 0.0 {
                        up = up.clamp(-0.5, 0.5);
                    }
                    let expected = a * up;
                    // GELU by tanh loses digits where it is nearly zero; absolute error there.
                    let allowed = 2e-6 * expected.abs() + 1e-6;
                    assert!((f64::from(result) - expected).abs() <= allowed, "{op:?} {x}: {result} {expected}");
                }
            }
        }
    }

    #[test]
    fn vectors_agree_with_portable_code_to_the_bit() {
        let avx512 = Avx512::new();
        if avx512.is_none() {
            println!("SKIPPED: no AVX-512");
            return;
        }
        for op in ALL {
            for (limit, n, biased) in [(0.0, 1000, false), (0.3, 33, true), (0.0, 1, true)] {
                let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                let portable = bits(run_all(None, op, limit, n, biased));
                assert_eq!(portable, bits(run_all(avx512, op, limit, n, biased)), "{op:?}");
            }
        }
    }

    #[test]
    fn the_exponential_is_exact_to_two_units_and_has_the_right_ends() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            // The product with log2(e) rounds: a relative error of |x| * 2^-24.
            assert!(error < 2.4e-7 + f64::from(x.abs()) * 1.2e-7, "e^{x}: {error}");
        }
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(200.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        for op in ALL {
            let task = GluTask {
                op,
                limit: 0.0,
                up: std::ptr::null(),
                up_bias: std::ptr::null(),
                gate_bias: std::ptr::null(),
                dst: std::ptr::null_mut(),
                len: 0,
            };
            assert!(one(&task, f32::NAN, 1.0).is_nan() && one(&task, 1.0, f32::NAN).is_nan(), "{op:?}");
        }
    }
}

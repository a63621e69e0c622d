//! MUL_MAT_ID: every row is the product with the expert its token chose.

use super::*;

struct Case {
    k: usize,
    n: usize,
    experts: usize,
    used: usize,
    tokens: usize,
    /// Rows of activations per token.
    per_token: usize,
    /// Expert of a choice, from a random number.
    choose: fn(usize, usize) -> usize,
}

impl Case {
    /// On weights in a plain type, or packed Q8_0.
    fn run(&self, ty: Option<&'static PlainType>, settings: Settings, threads: usize) -> (Vec<f32>, Vec<f64>) {
        let Self { k, n, experts, used, tokens, per_token, .. } = *self;
        let mut random = Random(11);
        let (bytes, values, shape, packed);
        let matrices = match ty {
            None => {
                (bytes, values) = weights(k, n * experts, &mut random);
                (shape, packed) = pack(WeightType::Q8_0, k, n, experts, &bytes);
                Weights::whole(shape, packed.as_ptr(), [k, n, experts, 1])
            }
            Some(ty) => {
                (bytes, values) = plain_weights(ty, k * n * experts, &mut random);
                let (stored, base, nb) = (Stored::Plain(ty), bytes.as_ptr(), [2 * k, 2 * k * n, 2 * k * n * experts]);
                Weights { stored, base, offset: 0, ne: [k, n, experts, 1], nb }
            }
        };
        let x: Vec<f32> = (0..k * per_token * tokens).map(|_| uniform(&mut random)).collect();
        // Ids lie in longer rows, as in a view of sorted numbers.
        let stride = used + 3;
        let ids: Vec<i32> =
            (0..stride * tokens).map(|i| (self.choose)(i, random.next() as usize) as i32 % experts as i32).collect();
        let mut out = vec![f32::NAN; n * used * tokens];
        let op = moe(matrices, (&x, per_token), (&ids, used, stride), &mut out);
        // SAFETY: the ids are there.
        assert!(unsafe { op.choices.find_bad(experts) }.is_none());
        run(Op::Experts(op), settings, threads);

        let mut exact = Vec::new();
        for token in 0..tokens {
            for slot in 0..used {
                let expert = ids[token * stride + slot] as usize;
                let x = &x[(token * per_token + slot % per_token) * k..][..k];
                for col in 0..n {
                    let w = &values[(expert * n + col) * k..][..k];
                    exact.push(w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum());
                }
            }
        }
        (out, exact)
    }
}

fn any(_: usize, random: usize) -> usize {
    random
}

fn one(_: usize, _: usize) -> usize {
    1
}

fn mostly_one(_: usize, random: usize) -> usize {
    if random.is_multiple_of(5) { random / 5 } else { 1 }
}

const CASES: [Case; 9] = [
    Case { k: 64, n: 33, experts: 1, used: 1, tokens: 1, per_token: 1, choose: any },
    Case { k: 96, n: 48, experts: 8, used: 2, tokens: 31, per_token: 1, choose: any },
    Case { k: 96, n: 48, experts: 8, used: 2, tokens: 31, per_token: 2, choose: any },
    Case { k: 288, n: 40, experts: 4, used: 4, tokens: 70, per_token: 1, choose: any },
    Case { k: 288, n: 40, experts: 4, used: 4, tokens: 70, per_token: 4, choose: any },
    Case { k: 288, n: 40, experts: 4, used: 4, tokens: 20, per_token: 2, choose: any },
    Case { k: 64, n: 64, experts: 3, used: 2, tokens: 90, per_token: 1, choose: one },
    Case { k: 320, n: 96, experts: 40, used: 2, tokens: 100, per_token: 2, choose: mostly_one },
    Case { k: 64, n: 5, experts: 257, used: 8, tokens: 3, per_token: 1, choose: any },
];

#[test]
fn every_row_is_the_product_with_its_tokens_expert() {
    for isa in [Isa::Portable, Isa::Avx512, Isa::Amx] {
        if isa > cpu::isa() {
            println!("SKIPPED: no {}", isa.name());
            continue;
        }
        for (i, case) in CASES.iter().enumerate() {
            for exact in [false, true] {
                let settings = Settings { isa, demand: demand(exact) };
                let (out, reference) = case.run(None, settings, 1);
                let e = nmse(&out, &reference);
                assert!(e < 2e-4, "case {i} {} exact {exact}: {e:e}", isa.name());
                for threads in [2, 7] {
                    let again = case.run(None, settings, threads).0;
                    assert!(same_bits(&again, &out), "case {i} {} {threads}", isa.name());
                }
            }
        }
    }
}

#[test]
fn experts_that_are_stored_plain_are_as_good_as_their_type() {
    if Amx::new().is_none() {
        println!("SKIPPED: no AMX");
        return;
    }
    let settings = Settings { isa: Isa::Amx, demand: Demand::Auto };
    for ty in plain::TYPES {
        for (i, case) in CASES.iter().enumerate() {
            let (out, reference) = case.run(Some(ty), settings, 1);
            let e = nmse(&out, &reference);
            assert!(e < plain_limit(ty), "case {i} {}: {e:e}", ty.name);
            assert!(same_bits(&case.run(Some(ty), settings, 3).0, &out), "case {i} {}", ty.name);
        }
    }
}

#[test]
fn ids_that_are_no_experts_are_found() {
    let ids = [0i32, 2, 1, 3, -1, 0];
    let choices = |nb| Choices { data: ids.as_ptr().cast(), used: 2, tokens: 2, nb, skip_others: false };
    // SAFETY: the memory has all ids.
    unsafe {
        assert_eq!(choices([4, 8]).find_bad(4), None);
        assert_eq!(choices([4, 8]).find_bad(3), Some((1, 1, 3)));
        assert_eq!(choices([4, 12]).find_bad(5), Some((1, 1, -1)));
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let (shape, packed) = pack(WeightType::Q8_0, 64, 16, 4, &vec![0; 4 * 16 * 68]);
    let op = |ne: [usize; 4], used, tokens| ExpertMul {
        gate: None,
        weights: Weights::whole(shape, packed.as_ptr(), [64, 16, 4, 1]),
        input: Input { data: std::ptr::null(), ne, nb: [4, 256, 256, 256] },
        choices: Choices { data: std::ptr::null(), used, tokens, nb: [4, 8], skip_others: false },
        output: Output { data: std::ptr::null_mut(), nb: [64, 64, 64] },
    };
    assert!(op([64, 2, 5, 1], 2, 5).check().is_ok());
    assert!(op([32, 2, 5, 1], 2, 5).check().unwrap_err().contains("K differs"));
    assert!(op([64, 2, 5, 1], 2, 6).check().unwrap_err().contains("tokens"));
    assert!(op([64, 3, 5, 1], 2, 5).check().unwrap_err().contains("3 rows"));
    assert!(op([64, 2, 5, 2], 2, 5).check().unwrap_err().contains("batches"));
    assert!(op([64, 1, usize::MAX / 2, 1], 8, usize::MAX / 2).check().unwrap_err().contains("address space"));
}

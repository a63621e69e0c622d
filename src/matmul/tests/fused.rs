//! Weights in place give the bits of packed ones; a gate gives what its two products would; a number
//! of no expert leaves its results alone.

use super::*;
use crate::kernel::glu::{self, GluOp};

/// The same weights, plain.
fn in_place(shape: Shape, plain: &[u8], ne: [usize; 4]) -> Weights {
    Weights { stored: Stored::InPlace { shape, interleave: 1 }, ..Weights::whole(shape, plain.as_ptr(), ne) }
}

#[test]
fn weights_in_place_give_the_bits_of_packed_ones() {
    for ty in crate::format::stand_in::all_types() {
        let b = ty.info().block;
        for (k, n, m) in [(b, 40, 5), (5 * b, 70, 1), (9 * b, 33, 8), (3 * b, 33, 40), (b, 17, 300), (18 * 256, 70, 33)]
        {
            if cpu::isa() < Isa::Amx && m > 40 {
                println!("SKIPPED: no AMX");
                continue;
            }
            let x = activations("fixed outliers", m, k);
            let (shape, packed, _) = weights_and_reference(*ty, k, n, m, &x);
            let mut plain = vec![0; shape.plain_size()];
            // SAFETY: the buffer has the plain size.
            unsafe { shape.read(packed.as_ptr(), 0, &mut plain) };
            let op = |weights| dense(weights, &x, m);
            let whole = op(Weights::whole(shape, packed.as_ptr(), [k, n, 1, 1]));
            let other = op(in_place(shape, &plain, [k, n, 1, 1]));
            assert!(same_bits(&compute(&whole, 2, n * m), &compute(&other, 2, n * m)), "{ty:?} {k} {n} {m}");
        }
    }
}

#[test]
fn a_gate_gives_what_its_two_products_would() {
    let (k, n) = (1024, 720);
    let mut random = Random(9);
    let (up, _) = weights(k, n, &mut random);
    let (gate, _) = weights(k, n, &mut random);
    let (shape, up_packed) = pack(WeightType::Q8_0, k, n, 1, &up);
    let (_, gate_packed) = pack(WeightType::Q8_0, k, n, 1, &gate);
    for m in [1, 3, 40, 300] {
        let x = activations("smooth", m, k);
        let op = |weights, gate| MatMul {
            gate,
            weights,
            input: Input { data: x.as_ptr().cast(), ne: [k, m, 1, 1], nb: [4, 4 * k, 0, 0] },
            output: Output { data: std::ptr::null_mut(), nb: [4 * n, 0, 0] },
        };
        let packed = |bytes: &[u8]| Weights::whole(shape, bytes.as_ptr(), [k, n, 1, 1]);
        let plain = |bytes: &[u8]| in_place(shape, bytes, [k, n, 1, 1]);
        let best = |op: &MatMul| compute(op, 2, n * m);
        let (ups, mut expected) = (best(&op(packed(&up_packed), None)), best(&op(packed(&gate_packed), None)));
        // SAFETY: both have n * m floats.
        unsafe {
            let job = glu::GluTask {
                op: GluOp::Silu,
                limit: 0.0,
                up: ups.as_ptr(),
                up_bias: std::ptr::null(),
                gate_bias: std::ptr::null(),
                dst: expected.as_mut_ptr(),
                len: n * m,
            };
            glu::run(None, &job);
        }
        let gated = |weights| Some(Gate { weights, op: GluOp::Silu, limit: 0.0, biases: Biases::NONE });
        assert!(same_bits(&best(&op(packed(&up_packed), gated(packed(&gate_packed)))), &expected), "m {m}");
        assert!(same_bits(&best(&op(plain(&up), gated(plain(&gate)))), &expected), "m {m}, in place");
        assert!(same_bits(&best(&op(packed(&up_packed), gated(plain(&gate)))), &expected), "m {m}, only up is packed");
        assert!(same_bits(&best(&op(plain(&up), gated(packed(&gate_packed)))), &expected), "m {m}, only the gate is");
    }
}

#[test]
fn a_gate_of_another_shape_is_refused() {
    let (shape, packed) = pack(WeightType::Q8_0, 64, 16, 1, &vec![0; 16 * 68]);
    let weights = Weights::whole(shape, packed.as_ptr(), [64, 16, 1, 1]);
    let other = Weights { ne: [64, 8, 1, 1], ..weights };
    let op = MatMul {
        gate: Some(Gate { weights: other, op: GluOp::Relu, limit: 0.0, biases: Biases::NONE }),
        weights,
        input: Input { data: std::ptr::null(), ne: [64, 1, 1, 1], nb: [4; 4] },
        output: Output { data: std::ptr::null_mut(), nb: [64; 3] },
    };
    assert!(op.check().unwrap_err().contains("differ"));
}

/// Experts with gate and biases, some choices none: every row against its definition, the others untouched.
#[test]
fn gated_experts_have_their_biases_and_skip_what_is_no_expert() {
    let (k, n, experts, used) = (96, 48, 5, 3);
    let mut random = Random(21);
    let (up, up_values) = weights(k, n * experts, &mut random);
    let (gate, gate_values) = weights(k, n * experts, &mut random);
    let (shape, up_packed) = pack(WeightType::Q8_0, k, n, experts, &up);
    let (_, gate_packed) = pack(WeightType::Q8_0, k, n, experts, &gate);
    let bias: Vec<f32> = (0..2 * n * experts).map(|_| uniform(&mut random)).collect();
    for (isa, per_token, tokens, plain) in [
        (Isa::Portable, 1, 9, false),
        (Isa::Avx512, 3, 40, true),
        (Isa::Amx, 1, 9, true),
        (Isa::Amx, 1, 80, true),
        (Isa::Amx, 3, 80, false),
    ] {
        if isa > cpu::isa() {
            println!("SKIPPED: no {}", isa.name());
            continue;
        }
        let x: Vec<f32> = (0..k * per_token * tokens).map(|_| uniform(&mut random)).collect();
        let ids: Vec<i32> = (0..used * tokens).map(|_| (random.next() % 7) as i32 - 1).collect();
        let mut out = vec![f32::MAX; n * used * tokens];
        let whole = |packed: &[u8], bytes: &[u8]| match plain {
            true => in_place(shape, bytes, [k, n, experts, 1]),
            false => Weights::whole(shape, packed.as_ptr(), [k, n, experts, 1]),
        };
        let biases = Biases { up: bias.as_ptr().cast(), gate: bias[n..].as_ptr().cast(), nb: [8 * n, 8 * n] };
        let gate = Gate { weights: whole(&gate_packed, &gate), op: GluOp::SwigluOai, limit: 0.0, biases };
        let op = moe(whole(&up_packed, &up), (&x, per_token), (&ids, used, used), &mut out);
        let op = ExpertMul { gate: Some(gate), choices: Choices { skip_others: true, ..op.choices }, ..op };
        run(Op::Experts(op), Settings { isa, demand: Demand::Auto }, 3);

        let (mut rows, mut reference) = (Vec::new(), Vec::new());
        for (i, id) in ids.iter().enumerate() {
            let got = &out[i * n..][..n];
            let Some(expert) = usize::try_from(*id).ok().filter(|e| *e < experts) else {
                assert!(got.iter().all(|v| *v == f32::MAX), "choice {i} of expert {id}");
                continue;
            };
            let x = &x[(i / used * per_token + i % used % per_token) * k..][..k];
            for col in 0..n {
                let dot = |values: &[f32]| -> f64 {
                    let w = &values[(expert * n + col) * k..][..k];
                    w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
                };
                let up = dot(&up_values) + f64::from(bias[expert * 2 * n + col]);
                let gate = (dot(&gate_values) + f64::from(bias[expert * 2 * n + n + col])).min(7.0);
                reference.push(gate / (1.0 + (-1.702 * gate).exp()) * (1.0 + up.clamp(-7.0, 7.0)));
            }
            rows.extend_from_slice(got);
        }
        let e = nmse(&rows, &reference);
        assert!(e < 5e-4, "{} {per_token} {tokens} plain {plain}: {e:e}", isa.name());
    }
}

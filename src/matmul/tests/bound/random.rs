//! Weights and rows drawn at random.

use super::*;

/// Rows judged if the environment does not say how many.
const ROWS: usize = 6000;

fn wanted() -> usize {
    number("GGML_AMX_TEST_ROWS").map_or(ROWS, |rows| rows as usize)
}

/// Channels of rows, a multiple of the block: mostly few, for there are to be many rows.
fn draw_k(ty: WeightType, random: &mut Random) -> usize {
    let k = match random.next() % 64 {
        0 => 32768,
        1..4 => 4096 + 32 * (random.next() as usize % 8),
        4..16 => 1024 + 32 * (random.next() as usize % 40),
        _ => 32 * (1 + random.next() as usize % 24),
    };
    k.next_multiple_of(ty.info().block)
}

#[test]
fn every_row_keeps_its_bound_whatever_weights_rows_and_neighbours_are() {
    if !has_amx() {
        return;
    }
    let (rows, types) = (wanted(), all_types());
    let mut random = source(0x5eed);
    let mut done = 0;
    while done < rows {
        let ty = pick(&mut random, types);
        let (k, n) = (draw_k(ty, &mut random), OUTPUTS + pick(&mut random, &[0, 0, 1, 80, 512, 1280]));
        let shape = Shape::new(ty, k as i64, n as i64, 1).unwrap();
        let (plain, factors, weighting) = draw_weights(ty, &shape, &mut random);
        let packed = packed(&shape, &plain);
        let matrix = Matrix::packed(&shape, &packed);
        for _ in 0..8 {
            let m = pick(&mut random, &[1, 2, 7, 9, 11, 16, 17, 32, 33, 40, 64, 100, 300]);
            let (x, kind) = draw_activations(m, &factors, &mut random);
            let (in_place, exact) = (random.next().is_multiple_of(2), random.next().is_multiple_of(4));
            let whole = Weights::whole(shape, packed.as_ptr(), [k, n, 1, 1]);
            let stored = Stored::InPlace { shape, interleave: 1 };
            let weights = if in_place { Weights { stored, base: plain.as_ptr(), ..whole } } else { whole };
            let op = dense(weights, &x, m);
            let out = gemm(&op, exact, n * m);
            if let Err(why) = matrix.judge(ty.info().quant_nmse, &x, &out) {
                panic!("{ty:?} K {k} N {n} M {m} {weighting:?} {kind:?} in place {in_place} exact {exact}: {why}");
            }
            done += m;
        }
    }
    println!("{done} rows judged");
}

#[test]
fn every_row_of_every_expert_keeps_its_bound() {
    if !has_amx() {
        return;
    }
    let (rows, types) = (wanted() / 4, all_types());
    let mut random = source(0xe4be27);
    let mut done = 0;
    while done < rows {
        let ty = pick(&mut random, types);
        let (k, n) = (draw_k(ty, &mut random).min(4096), pick(&mut random, &[OUTPUTS, OUTPUTS, 768]));
        let experts = 1 + random.next() as usize % 5;
        let used = 1 + random.next() as usize % experts;
        let per_token = pick(&mut random, &[1, used]);
        let shape = Shape::new(ty, k as i64, n as i64, experts as i64).unwrap();
        let one = Shape::new(ty, k as i64, n as i64, 1).unwrap();
        // Experts are drawn apart; activations suit the first one's channels.
        let drawn: Vec<_> = (0..experts).map(|_| draw_weights(ty, &one, &mut random)).collect();
        let plain = drawn.iter().flat_map(|d| d.0.clone()).collect::<Vec<u8>>();
        let packed = packed(&shape, &plain);
        let matrices: Vec<_> = packed.chunks(shape.slice_packed).map(|p| Matrix::packed(&one, p)).collect();
        for _ in 0..4 {
            let tokens = pick(&mut random, &[1, 5, 20, 60, 200]);
            let (x, kind) = draw_activations(tokens * per_token, &drawn[0].1, &mut random);
            let skew = random.next().is_multiple_of(2);
            let ids: Vec<i32> = (0..tokens)
                .flat_map(|_| {
                    let first = if skew { 0 } else { random.next() as usize };
                    (0..used).map(move |i| ((first + i) % experts) as i32)
                })
                .collect();
            let mut out = vec![f32::NAN; n * used * tokens];
            let exact = random.next().is_multiple_of(4);
            let whole = Weights::whole(shape, packed.as_ptr(), [k, n, experts, 1]);
            let op = moe(whole, (&x, per_token), (&ids, used, used), &mut out);
            run(Op::Experts(op), Settings { isa: Isa::Amx, demand: demand(exact) }, 2);
            for (i, (id, out)) in ids.iter().zip(out.chunks(n)).enumerate() {
                let x = &x[(i / used * per_token + i % used % per_token) * k..][..k];
                if let Err(why) = matrices[*id as usize].judge(ty.info().quant_nmse, x, out) {
                    let weighting = drawn[*id as usize].2;
                    panic!(
                        "{ty:?} K {k} tokens {tokens} expert {id} of {experts} {weighting:?} {kind:?} exact {exact}: {why}"
                    );
                }
            }
            done += ids.len();
        }
    }
    println!("{done} rows judged");
}

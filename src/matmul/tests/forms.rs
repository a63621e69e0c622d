//! The same weights in another form give the same bits: those that the host decodes, those that it has interleaved, and
//! on f32 rows those in place.

use super::*;
use crate::panel::decoded::{DecodedType, ToFloat};

const K: usize = 1024 + 96;
const N: usize = 36;
const EXPERTS: usize = 3;
/// Weights per block of the decoded types.
const BLOCK: usize = 32;

/// Decodes BF16 rows, `INTERLEAVE` of which are interleaved block by block.
///
/// # Safety
/// `x` must have `count` weights, `y` room for them.
unsafe extern "C" fn decode<const INTERLEAVE: usize>(x: *const libc::c_void, y: *mut f32, count: i64) {
    let (x, k) = (x.cast::<[u8; 2]>(), count as usize / INTERLEAVE);
    for i in 0..count as usize {
        let (block, row, at) = (i / BLOCK / INTERLEAVE, i / BLOCK % INTERLEAVE, i % BLOCK);
        // SAFETY: both have the weight.
        unsafe { *y.add(row * k + block * BLOCK + at) = half::bf16::from_le_bytes(*x.add(i)).to_f32() };
    }
}

const fn decoded_type(interleave: usize, to_float: ToFloat) -> DecodedType {
    DecodedType { number: -1, name: "decoded", block: BLOCK, bytes: 2 * BLOCK, meta: 0, interleave, to_float }
}

static DECODED: DecodedType = decoded_type(1, decode::<1>);
static INTERLEAVED: DecodedType = decoded_type(4, decode::<4>);

/// Rows of BF16, every four of them interleaved block by block.
fn interleaved(rows: &[u8]) -> Vec<u8> {
    let (row, block) = (2 * K, 2 * BLOCK);
    let blocks = |four: &[u8]| {
        (0..4 * row / block).flat_map(|i| four[i % 4 * row + i / 4 * block..][..block].to_vec()).collect::<Vec<u8>>()
    };
    rows.chunks(4 * row).flat_map(blocks).collect()
}

fn weights_in(stored: Stored, bytes: &[u8]) -> Weights {
    let nb = [2 * K, 2 * K * N, 2 * K * N * EXPERTS];
    Weights { stored, base: bytes.as_ptr(), offset: 0, ne: [K, N, EXPERTS, 1], nb }
}

/// With every demand: few rows, more than a row block; experts, one of which has no rows, and choices that name none.
#[test]
fn decoded_weights_give_the_bits_of_plain_ones() {
    if !has_amx() {
        return;
    }
    let mut random = Random(41);
    let (bytes, values) = plain_weights(&plain::BF16, EXPERTS * N * K, &mut random);
    let mixed = interleaved(&bytes);
    let forms = [
        weights_in(Stored::Plain(&plain::BF16), &bytes),
        weights_in(Stored::Decoded(&DECODED), &bytes),
        weights_in(Stored::Decoded(&INTERLEAVED), &mixed),
    ];
    for demand in [Demand::Auto, Demand::Bf16, Demand::F32] {
        let settings = Settings { isa: Isa::Amx, demand };
        let limit = if demand == Demand::F32 { 1e-11 } else { plain_limit(&plain::BF16) };
        for m in [1, 33] {
            let x = activations("fixed outliers", m, K);
            let [first, others @ ..] =
                forms.map(|all| results(&dense(Weights { ne: [K, N, 1, 1], ..all }, &x, m), settings, 2, N * m));
            assert!(others.iter().all(|other| same_bits(other, &first)), "{demand:?} M {m}");
            let dot = |w: &[f32], x: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            let exact: Vec<f64> = x.chunks(K).flat_map(|x| values[..N * K].chunks(K).map(move |w| dot(w, x))).collect();
            let e = nmse(&first, &exact);
            assert!(e < limit, "{demand:?} M {m}: {e:e}");
        }
        let (tokens, used) = (40, 2);
        let x = activations("smooth", tokens, K);
        let ids: Vec<i32> = (0..tokens * used).map(|i| [0, 2, 0, -1, 7][i % 5]).collect();
        let [first, others @ ..] = forms.map(|all| {
            let mut out = vec![f32::MAX; N * used * tokens];
            let op = moe(all, (&x, 1), (&ids, used, used), &mut out);
            let choices = Choices { skip_others: true, ..op.choices };
            run(Op::Experts(ExpertMul { choices, ..op }), settings, 2);
            out
        });
        assert!(others.iter().all(|other| same_bits(other, &first)), "{demand:?}, experts");
        for (id, out) in ids.iter().zip(first.chunks(N)) {
            assert!(out.iter().all(|v| (*v == f32::MAX) != (0..3).contains(id)), "{demand:?}, expert {id}");
        }
    }
}

#[test]
fn f32_rows_are_exact_whatever_the_form() {
    if !has_amx() {
        return;
    }
    for ty in [WeightType::Q8_0, WeightType::Q4_K, WeightType::Q6_K] {
        for m in [1, 33] {
            let k = 1024 + 256;
            let x = activations("moving outliers", m, k);
            let (shape, packed, exact) = weights_and_reference(ty, k, N, m, &x);
            let mut bytes = vec![0; shape.plain_size()];
            // SAFETY: the buffers are the tensor's, packed and plain.
            unsafe { shape.read(packed.as_ptr(), 0, &mut bytes) };
            let whole = Weights::whole(shape, packed.as_ptr(), [k, N, 1, 1]);
            let in_place = Stored::InPlace { shape, interleave: 1 };
            let settings = Settings { isa: Isa::Amx, demand: Demand::F32 };
            let [a, b] = [whole, Weights { stored: in_place, base: bytes.as_ptr(), ..whole }]
                .map(|weights| results(&dense(weights, &x, m), settings, 2, N * m));
            assert!(same_bits(&a, &b), "{ty:?} M {m}");
            let e = nmse(&a, &exact);
            assert!(e < 1e-11, "{ty:?} M {m}: {e:e}");
        }
    }
}

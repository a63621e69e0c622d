//! The operands of a product without its weights, read off graph nodes. They are the same in both flavours. Data may be
//! missing.

use super::abi::{GgmlComputeParams, TYPE_F32, TYPE_I32};
use super::tensor::Tensor;
use crate::matmul::{Choices, Input, Op, Output};

/// Dimensions without a sign; `None` if one is negative.
pub fn usizes<const N: usize>(v: [i64; N]) -> Option<[usize; N]> {
    let mut out = [0; N];
    for (o, v) in out.iter_mut().zip(v) {
        *o = usize::try_from(v).ok()?;
    }
    Some(out)
}

/// The activations (src1), which must be f32.
pub fn activations(x: Tensor) -> Result<Input, String> {
    if x.ty() != TYPE_F32 {
        return Err(format!("the activations {} must be f32, they have type {}", x.name(), x.ty()));
    }
    let ne = usizes(x.ne()).ok_or("a dimension of the activations is negative")?;
    Ok(Input { data: x.data().cast(), ne, nb: x.nb() })
}

/// The ids of the experts that each token chose. With `skip_others`, an id that is no expert's is allowed; its result
/// is left as it is.
pub fn choices(ids: Tensor, skip_others: bool) -> Result<Choices, String> {
    let [used, tokens, batches @ ..] = usizes(ids.ne()).ok_or("a dimension of the ids is negative")?;
    if ids.ty() != TYPE_I32 || batches != [1, 1] {
        return Err(format!("the ids {} must be a matrix of i32, they have type {}", ids.name(), ids.ty()));
    }
    Ok(Choices { data: ids.data().cast(), used, tokens, nb: [ids.nb()[0], ids.nb()[1]], skip_others })
}

/// The result (dst), which must be rows of f32.
pub fn result(node: Tensor) -> Result<Output, String> {
    if node.ty() != TYPE_F32 || node.nb()[0] != 4 {
        return Err(format!(
            "the result must be contiguous rows of f32, it has type {} in steps of {}",
            node.ty(),
            node.nb()[0]
        ));
    }
    Ok(Output { data: node.data().cast(), nb: [node.nb()[1], node.nb()[2], node.nb()[3]] })
}

/// Checks that the shapes of a product fit each other and the node that is its result.
pub fn check(op: &Op, node: Tensor) -> Result<(), String> {
    op.check()?;
    let expected = match op {
        Op::Dense(p) => [p.weights.ne[1], p.input.ne[1], p.input.ne[2], p.input.ne[3]],
        Op::Experts(p) => [p.weights.ne[1], p.choices.used, p.choices.tokens, 1],
    };
    match usizes(node.ne()).ok_or("a dimension of the result is negative")? {
        found if found != expected => Err(format!("the result has the shape {found:?}, not {expected:?}")),
        _ => Ok(()),
    }
}

/// Checks the parameters of a thread that is to compute `product`: its index, the number of threads, and the work
/// buffer. Returns the index and the number.
pub fn check_params(product: &Op, params: &GgmlComputeParams) -> Result<(usize, usize), String> {
    if params.nth < 1 || !(0..params.nth).contains(&params.ith) {
        return Err(format!("thread {} of {}", params.ith, params.nth));
    }
    let (index, count) = (params.ith as usize, params.nth as usize);
    let need = product.work_size(count).unwrap_or(usize::MAX);
    if params.wdata.is_null() || params.wsize < need {
        return Err(format!("the work buffer has {} bytes, {need} are needed for {count} threads", params.wsize));
    }
    if product.lacks_data() {
        return Err("a tensor has no data".to_string());
    }
    Ok((index, count))
}

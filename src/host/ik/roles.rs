//! Which tensors graphs only multiply with, told by the names that llama.cpp gives them. A name proves nothing: a graph
//! that does something else with such a tensor gets it back unpacked ([`packed::give_back`](super::packed::give_back)).

/// Matrices of a layer that graphs only multiply with; all are named `blk.<layer>.<role>.weight`.
const ROLES: [&str; 21] = [
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_output",
    "attn_gate",
    "attn_q_a",
    "attn_q_b",
    "attn_kv_a_mqa",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "ffn_up_gate",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
    "ffn_gate_up_exps",
    "ffn_gate_shexp",
    "ffn_up_shexp",
    "ffn_down_shexp",
    "ssm_out",
];

/// Whether a tensor of this name is one that graphs only multiply with.
pub fn is_multiplied_only(name: &str) -> bool {
    let role = || name.strip_prefix("blk.")?.split_once('.')?.1.strip_suffix(".weight");
    name == "output.weight" || role().is_some_and(|role| ROLES.contains(&role))
}

#[cfg(test)]
mod tests {
    use super::is_multiplied_only;

    #[test]
    fn matrices_of_layers_and_the_output_are_known_by_their_whole_name() {
        assert!(
            ["output.weight", "blk.0.attn_q.weight", "blk.12.ffn_down_exps.weight"].map(is_multiplied_only)
                == [true; 3]
        );
        let others =
            ["token_embd.weight", "blk.0.attn_q.bias", "blk.0.attn_q_norm.weight", "attn_q.weight", "xoutput.weight"];
        assert!(others.map(is_multiplied_only) == [false; 5]);
    }
}

//! Slices of big models: a few layers with the true widths and random weights. They say nothing, but
//! take as long per layer as the real ones, and need no download.

use std::path::{Path, PathBuf};

use crate::{
    cache::{self, Cache},
    cpu,
    gguf::{self, Content, Entry, Tensor},
    host::Host,
    program::{self, Way},
    util::{self, Result},
};

const VOCABULARY: u64 = 1024;

/// A model to cut from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Slice {
    /// 4 layers of the width of an 8B model: 4096, 14336, 32 heads, 8 of them for keys and values.
    Dense,
    /// 2 layers of the width of a 30B mixture of experts: 2048, 128 experts of 768, 8 at a time.
    Experts,
}

impl Slice {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Dense, Self::Experts];

    /// Name in tables and of files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense-8b",
            Self::Experts => "moe-30b",
        }
    }

    /// The slice in these weight types, made when they are not there yet. The F16 file they are made of
    /// is not kept.
    pub fn models(self, cache: &Cache, host: &Host, types: &[String]) -> Result<Vec<PathBuf>> {
        let name = |ty: &str| format!("models/slice-{}.{ty}.gguf", self.name());
        let source = cache.path(name("F16"));
        let one = |ty: &String| {
            cache.once(&name(ty), |to| {
                cache.once(&name("F16"), |to| {
                    println!("  making the slice {}", self.name());
                    gguf::write_random(to, &self.metadata(), &self.tensors())
                })?;
                println!("  quantising it to {ty}");
                quantise(host, &source, to, ty)
            })
        };
        let models = types.iter().map(one).collect();
        cache::remove(&source)?;
        models
    }

    fn metadata(self) -> Vec<Entry> {
        let arch = if self == Self::Dense { "llama" } else { "qwen3moe" };
        let mut all = vec![
            ("general.architecture".to_string(), arch.into()),
            ("general.file_type".to_string(), 1u32.into()),
            ("tokenizer.ggml.model".to_string(), "none".into()),
        ];
        let numbers: &[(&str, u32)] = match self {
            Self::Dense => &[("block_count", 4), ("embedding_length", 4096), ("feed_forward_length", 14336)],
            Self::Experts => &[
                ("block_count", 2),
                ("embedding_length", 2048),
                ("feed_forward_length", 6144),
                ("expert_count", 128),
                ("expert_used_count", 8),
                ("expert_feed_forward_length", 768),
                ("attention.key_length", 128),
                ("attention.value_length", 128),
            ],
        };
        let common = [
            ("context_length", 4096),
            ("vocab_size", VOCABULARY as u32),
            ("attention.head_count", 32),
            ("attention.head_count_kv", if self == Self::Dense { 8 } else { 4 }),
        ];
        all.extend(numbers.iter().chain(&common).map(|(key, n)| (format!("{arch}.{key}"), (*n).into())));
        for (key, value) in [("attention.layer_norm_rms_epsilon", 1e-5f32), ("rope.freq_base", 500_000.0)] {
            all.push((format!("{arch}.{key}"), value.into()));
        }
        all
    }

    fn tensors(self) -> Vec<Tensor> {
        let (layers, width) = if self == Self::Dense { (4, 4096) } else { (2, 2048) };
        let mut all: Vec<Tensor> = vec![
            ("token_embd.weight".into(), vec![width, VOCABULARY], Content::Normal16),
            ("output_norm.weight".into(), vec![width], Content::Ones),
            ("output.weight".into(), vec![width, VOCABULARY], Content::Normal16),
        ];
        let kv = if self == Self::Dense { 1024 } else { 512 };
        let mut layer: Vec<(&str, &[u64], Content)> = vec![
            ("attn_norm", &[0], Content::Ones),
            ("ffn_norm", &[0], Content::Ones),
            ("attn_q", &[0, 4096], Content::Normal16),
            ("attn_output", &[4096, 0], Content::Normal16),
        ];
        match self {
            Self::Dense => layer.extend([
                ("ffn_gate", &[0, 14336][..], Content::Normal16),
                ("ffn_up", &[0, 14336], Content::Normal16),
                ("ffn_down", &[14336, 0], Content::Normal16),
            ]),
            Self::Experts => layer.extend([
                ("attn_q_norm", &[128][..], Content::Ones),
                ("attn_k_norm", &[128], Content::Ones),
                ("ffn_gate_inp", &[0, 128], Content::Normal32),
                ("ffn_gate_exps", &[0, 768, 128], Content::Normal16),
                ("ffn_up_exps", &[0, 768, 128], Content::Normal16),
                ("ffn_down_exps", &[768, 0, 128], Content::Normal16),
            ]),
        }
        for i in 0..layers {
            let name = |part: &str| format!("blk.{i}.{part}.weight");
            all.extend(["attn_k", "attn_v"].map(|part| (name(part), vec![width, kv], Content::Normal16)));
            // 0 stands for the model's width.
            let true_size = |d: &u64| if *d == 0 { width } else { *d };
            all.extend(layer.iter().map(|(part, d, c)| (name(part), d.iter().map(true_size).collect(), *c)));
        }
        all
    }
}

fn quantise(host: &Host, from: &Path, to: &Path, ty: &str) -> Result<()> {
    let mut command = program::command(host, "llama-quantize", Way::HostBest)?;
    command.arg("--pure").arg(from).arg(to).args([ty, &cpu::detect().threads.to_string()]);
    util::capture(&mut command, &cache::log(&format!("quantize-slice-{ty}"))?).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_have_the_weights_of_their_models() {
        let weights = |slice: Slice| slice.tensors().iter().map(|t| t.1.iter().product::<u64>()).sum::<u64>();
        let per_layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096;
        assert_eq!(weights(Slice::Dense), 4 * per_layer + 2 * 4096 * 1024 + 4096);
        let experts = 3 * 128 * 768 * 2048;
        assert!((2 * experts..2 * experts + 60_000_000).contains(&weights(Slice::Experts)));
    }

    #[test]
    fn every_key_is_of_the_architecture() {
        for (slice, arch) in [(Slice::Dense, "llama."), (Slice::Experts, "qwen3moe.")] {
            let known = ["general.", "tokenizer.", arch];
            assert!(slice.metadata().iter().all(|(key, _)| known.iter().any(|k| key.starts_with(k))));
        }
    }
}

//! A mixture of experts that must answer like the dense model it is made of.
//!
//! Every expert is the dense feed-forward network with its hidden units in another order: the bytes of experts
//! differ, what they compute does not, and the host's weights of the chosen experts sum to 1. Units move in
//! whole blocks, so nothing is quantised again. A wrong expert is noticed when gate, up and down do not all
//! take the same wrong one.

use std::path::Path;

use crate::{
    gguf::{self, Entry, Info, Normal, Reader},
    util::Result,
};

/// Experts of a layer.
pub const EXPERTS: u64 = 8;
/// Experts that see a token.
const USED: u32 = 2;
/// Standard deviation of the router's weights. Its inputs are normalised, so their direction decides which experts are
/// chosen.
const SIGMA: f64 = 0.05;

/// Where the data of a tensor comes from.
enum Source {
    /// A tensor of the dense model.
    Copy(usize),
    /// The same, once per expert; each expert's rows are moved on by so many rows.
    Rows(usize, u64),
    /// The same, once per expert; within each row, so many columns.
    Columns(usize, u64),
    /// Random numbers.
    Router,
}

/// What ik_llama.cpp calls the same mixture: its `llama` forgets to add the input of layers with experts.
const IN_IK: &str = "ernie4_5-moe";

/// A Mixtral-like model out of a dense one of the architecture `llama`, in the same weight types.
pub fn write(dense: &Path, to: &Path, is_ik: bool) -> Result<()> {
    let dense = Reader::open(dense)?;
    let (tensors, sources): (Vec<Info>, Vec<Source>) = plan(&dense)?.into_iter().unzip();
    let mut random = Normal::new(2);
    gguf::write(to, &metadata(&dense, is_ik)?, &tensors, |index, out| match sources[index] {
        Source::Copy(from) => out.put(&dense.data(from)?),
        Source::Rows(from, step) => {
            let info = &dense.tensors[from];
            let data = dense.data(from)?;
            (0..EXPERTS).try_for_each(|e| {
                let at = (e * step % info.dimensions[1] * info.row_bytes()) as usize;
                out.put(&data[at..])?;
                out.put(&data[..at])
            })
        }
        Source::Columns(from, step) => {
            let info = &dense.tensors[from];
            let data = dense.data(from)?;
            (0..EXPERTS).try_for_each(|e| {
                let at = (e * step % info.dimensions[0] / info.ty.block * info.ty.bytes) as usize;
                data.chunks(info.row_bytes() as usize).try_for_each(|row| {
                    let (head, blocks) = row.split_at(info.ty.head as usize);
                    out.put(head)?;
                    out.put(&blocks[at..])?;
                    out.put(&blocks[..at])
                })
            })
        }
        Source::Router => {
            let weights = (0..tensors[index].elements()).map(|_| (SIGMA * random.next()) as f32);
            out.put(&weights.flat_map(f32::to_le_bytes).collect::<Vec<_>>())
        }
    })
}

fn metadata(dense: &Reader, is_ik: bool) -> Result<Vec<Entry>> {
    let mut all = dense.metadata.clone();
    all.push(("llama.expert_count".into(), (EXPERTS as u32).into()));
    all.push(("llama.expert_used_count".into(), USED.into()));
    if is_ik {
        // All layers have experts, and each as many hidden units as the dense network.
        let units = dense.u32("llama.feed_forward_length")?;
        for (key, n) in
            [("expert_feed_forward_length", units), ("interleave_moe_layer_step", 1), ("leading_dense_block_count", 0)]
        {
            all.push((format!("llama.{key}"), n.into()));
        }
        for (key, value) in &mut all {
            if let Some(rest) = key.strip_prefix("llama.") {
                *key = format!("{IN_IK}.{rest}");
            } else if key == "general.architecture" {
                *value = IN_IK.into();
            }
        }
    }
    Ok(all)
}

/// All tensors of the new model, a router in front of each gate.
fn plan(dense: &Reader) -> Result<Vec<(Info, Source)>> {
    let mut all = Vec::new();
    for (index, info) in dense.tensors.iter().enumerate() {
        let Some((layer, part)) = info.name.strip_suffix(".weight").and_then(|name| name.rsplit_once(".ffn_")) else {
            all.push((info.clone(), Source::Copy(index)));
            continue;
        };
        // Units move in blocks of the rows they are columns of.
        let down = format!("{layer}.ffn_down.weight");
        let down = dense.tensors.iter().find(|t| t.name == down).ok_or(format!("{down} is missing"))?;
        let step = down.ty.block.max(32);
        let source = match part {
            "gate" | "up" => Source::Rows(index, step),
            "down" => Source::Columns(index, step),
            _ => {
                all.push((info.clone(), Source::Copy(index)));
                continue;
            }
        };
        if part == "gate" {
            let router = Info::f32(format!("{layer}.ffn_gate_inp.weight"), [info.dimensions[0], EXPERTS]);
            all.push((router, Source::Router));
        }
        let name = format!("{layer}.ffn_{part}_exps.weight");
        let dimensions = info.dimensions.iter().copied().chain([EXPERTS]).collect();
        all.push((Info { name, dimensions, ty: info.ty }, source));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_the_dense_network_with_its_units_moved() {
        let file = |name: &str| std::env::temp_dir().join(format!("xtask-upcycle-{name}-{}", std::process::id()));
        let (dense, moe) = (file("dense"), file("moe"));
        let q8_0 = gguf::by_name("Q8_0").unwrap();
        let q8 = |name: &str, dimensions: [u64; 2]| Info { name: name.into(), dimensions: dimensions.into(), ty: q8_0 };
        let tensors = [
            Info::f32("blk.3.ffn_norm.weight", [32]),
            q8("blk.3.ffn_gate.weight", [32, 96]),
            q8("blk.3.ffn_down.weight", [96, 2]),
            q8("blk.3.ffn_up.weight", [32, 96]),
        ];
        let data = |i: usize| -> Vec<u8> { (0..tensors[i].bytes()).map(|b| (b / 34 * 5 + i as u64) as u8).collect() };
        let architecture = ("general.architecture".to_string(), "llama".into());
        let metadata = [architecture, ("llama.feed_forward_length".to_string(), 96u32.into())];
        gguf::write(&dense, &metadata, &tensors, |i, out| out.put(&data(i))).unwrap();
        write(&dense, &moe, false).unwrap();
        let made = Reader::open(&moe).unwrap();
        let names: Vec<&str> = made.tensors.iter().map(|t| t.name.as_str()).collect();
        let parts = ["ffn_norm", "ffn_gate_inp", "ffn_gate_exps", "ffn_down_exps", "ffn_up_exps"];
        assert_eq!(names, parts.map(|p| format!("blk.3.{p}.weight")));
        assert_eq!((made.u32("llama.expert_count"), made.u32("llama.expert_used_count")), (Ok(8), Ok(2)));
        assert_eq!(made.metadata[0], metadata[0]);
        assert_eq!(made.data(0).unwrap(), data(0));
        assert_eq!(made.tensors[3].dimensions, [96, 2, 8]);
        let (gate, down) = (made.data(2).unwrap(), made.data(3).unwrap());
        for expert in 0..8 {
            // 3 blocks of 32 units: expert 4 is expert 1 again.
            let first = expert % 3;
            let (rows, wanted) = (&gate[expert * 96 * 34..][..96 * 34], data(1));
            assert_eq!(rows, [&wanted[first * 32 * 34..], &wanted[..first * 32 * 34]].concat());
            for row in 0..2 {
                let (columns, wanted) = (&down[(expert * 2 + row) * 102..][..102], &data(2)[row * 102..][..102]);
                assert_eq!(columns, [&wanted[first * 34..], &wanted[..first * 34]].concat());
            }
        }
        let router = made.data(1).unwrap();
        let router: Vec<f32> = router.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let sigma = (router.iter().map(|w| w * w).sum::<f32>() / router.len() as f32).sqrt();
        assert!(router.len() == 256 && (sigma - 0.05).abs() < 0.01, "{sigma}");
        write(&dense, &moe, true).unwrap();
        let of_ik = Reader::open(&moe).unwrap();
        assert_eq!(of_ik.u32("ernie4_5-moe.expert_feed_forward_length"), Ok(96));
        assert_eq!((of_ik.u32("ernie4_5-moe.expert_count"), &of_ik.metadata[0].1), (Ok(8), &"ernie4_5-moe".into()));
        [dense, moe].iter().for_each(|f| std::fs::remove_file(f).unwrap());
    }
}

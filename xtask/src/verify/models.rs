//! SmolLM2-135M in any weight type, dense and as a mixture of experts.

use std::path::{Path, PathBuf};

use super::{upcycle, widen};
use crate::{
    cache::{self, Cache},
    cpu, fetch,
    gguf::{self, Info, Origin, Reader, Value},
    host::Host,
    program::{self, Way},
    util::{self, Result},
};

const NAME: &str = "SmolLM2-135M-Instruct";

/// One model file.
pub struct Model {
    /// Tells its results apart from those of other models.
    pub label: String,
    /// Where it lies.
    pub file: PathBuf,
    /// How many of the weights of its matrices are of the type it is named by, in percent.
    pub in_type: f64,
    /// MiB of the matrices that this library should hold; routers are F32 and stay with the host.
    pub matrices: f64,
    /// MiB of the token embeddings among them.
    pub embeddings: f64,
    /// In a type of ik_llama.cpp that this library does not pack: it may stay with the host.
    pub may_stay: bool,
}

/// Every type that llama-quantize of a host can write, but for F32, which everything is compared with.
pub fn quantisable(is_ik: bool) -> impl Iterator<Item = &'static str> {
    let not_of = if is_ik { Origin::Ggml } else { Origin::Ik };
    gguf::all().filter(move |ty| ty.origin != not_of && ty.name != "F32").map(|ty| ty.name)
}

/// Every type that this host's llama-quantize writes.
pub fn types_of(host: &Host) -> Vec<String> {
    quantisable(host.kind.is_ik()).map(String::from).collect()
}

/// Makes models by the host's own quantiser.
pub struct Models<'a> {
    pub cache: &'a Cache,
    pub host: &'a Host,
}

impl Models<'_> {
    /// The dense model. Its rows of 576 weights cannot hold blocks of 64 to 256 of some types: those get the
    /// model with rows of 768, which says the same.
    pub fn dense(&self, name: &str) -> Result<Model> {
        let ty = gguf::by_name(name).ok_or(format!("no weight type `{name}`: {}", types_of(self.host).join(", ")))?;
        let q4_1 = fetch::model(self.cache)?;
        let wide = u64::from(Reader::open(&q4_1)?.u32("llama.embedding_length")?) % ty.block != 0;
        let label = if wide { format!("{name}-wide") } else { name.to_string() };
        let file = if name == "Q4_1" {
            q4_1
        } else {
            // The quantisers of two hosts write different bytes.
            let by = if self.host.kind.is_ik() { "-ik" } else { "" };
            let file = format!("models/{NAME}{}{by}.{name}.gguf", if wide { "-wide" } else { "" });
            self.cache.once(&file, |to| {
                println!("    quantising");
                if wide { self.in_wide(&q4_1, to, name) } else { self.in_type(&q4_1, to, name) }
            })?
        };
        Model::new(label, file, name)
    }

    /// The same network as one of [`upcycle::EXPERTS`] experts. The file is 4 times as large, so it is not kept.
    pub fn experts(&self, dense: &Model, name: &str) -> Result<Model> {
        let file = self.cache.path(format!("models/{NAME}-experts.{name}.gguf"));
        upcycle::write(&dense.file, &file, self.host.kind.is_ik())?;
        Model::new(format!("{}-x{}", dense.label, upcycle::EXPERTS), file, name)
    }

    /// The same network as experts in F32.
    pub fn experts_in_f32(&self, dense: &Model, to: &Path) -> Result<()> {
        let f32 = to.with_extension("f32");
        let made = self.in_f32(&dense.file, &f32).and_then(|()| upcycle::write(&f32, to, self.host.kind.is_ik()));
        cache::remove(&f32)?;
        made
    }

    /// The same weights in F32.
    pub fn in_f32(&self, from: &Path, to: &Path) -> Result<()> {
        self.quantise(from, to, &["--allow-requantize"], "F32")
    }

    /// Types that are mixed within each layer: keys and gates in F32, outputs of attention in Q6_0, the others in Q4_1.
    /// By the quantiser of ik_llama.cpp.
    pub fn mixed(&self) -> Result<PathBuf> {
        let q4_1 = fetch::model(self.cache)?;
        self.cache.once(&format!("models/{NAME}-mixed-ik.gguf"), |to| {
            let types = "attn_k=f32,ffn_gate=f32,attn_output=q6_0,.=q4_1";
            self.quantise(&q4_1, to, &["--allow-requantize", "--custom-q", types], "Q4_1")
        })
    }

    fn in_wide(&self, narrow: &Path, to: &Path, name: &str) -> Result<()> {
        let [f32, wide] = ["f32", "wide"].map(|end| to.with_extension(end));
        self.in_f32(narrow, &f32)?;
        let made = widen::write(&f32, &wide).and_then(|()| self.in_type(&wide, to, name));
        cache::remove(&f32)?;
        cache::remove(&wide)?;
        made
    }

    /// Every matrix in this type: by name, because not all types have a kind of file named after them.
    fn in_type(&self, from: &Path, to: &Path, name: &str) -> Result<()> {
        let is_ik = self.host.kind.is_ik();
        let importance = to.with_extension("importance");
        let every = if is_ik { format!(".={}", ik_name(name)) } else { format!(".={name}") };
        let mut extra = vec!["--allow-requantize"];
        extra.extend(if is_ik { &["--custom-q"][..] } else { &["--pure", "--tensor-type"] });
        extra.push(&every);
        if gguf::by_name(name).is_some_and(|ty| ty.by_importance) {
            if is_ik {
                return Err("ik_llama.cpp does not write it without an importance matrix in a format of its own".into());
            }
            write_importance(&Reader::open(from)?.tensors, &importance)?;
            extra.extend(["--imatrix", importance.to_str().ok_or("the cache's path is not UTF-8")?]);
        }
        let made = self.quantise(from, to, &extra, "Q8_0");
        cache::remove(&importance)?;
        made
    }

    fn quantise(&self, from: &Path, to: &Path, extra: &[&str], kind: &str) -> Result<()> {
        let mut command = program::command(self.host, "llama-quantize", Way::HostBest)?;
        command.args(extra).arg(from).arg(to).args([kind, &cpu::detect().threads.to_string()]);
        util::capture(&mut command, &cache::log(&format!("quantize-{kind}"))?).map(|_| ())
    }
}

impl Model {
    fn new(label: String, file: PathBuf, name: &str) -> Result<Self> {
        let tensors = Reader::open(&file)?.tensors;
        let matrices = || tensors.iter().filter(|t| t.is_matrix() && !t.name.contains("ffn_gate_inp"));
        let weights = |of: &dyn Fn(&Info) -> bool| matrices().filter(|t| of(t)).map(Info::elements).sum::<u64>() as f64;
        let in_type = 100.0 * weights(&|t| t.ty.name == name) / weights(&|_| true);
        let mebibytes = |of: &dyn Fn(&Info) -> bool| {
            matrices().filter(|t| of(t)).map(Info::bytes).sum::<u64>() as f64 / f64::from(1 << 20)
        };
        let embeddings = mebibytes(&|t| t.name == "token_embd.weight");
        let matrices = mebibytes(&|_| true);
        let may_stay = gguf::by_name(name).is_some_and(gguf::Type::stays_with_ik);
        Ok(Self { label, file, in_type, matrices, embeddings, may_stay })
    }
}

/// The name ik_llama.cpp itself has for a type: `q4_K`, but `iq4_k`.
fn ik_name(name: &str) -> String {
    let small = name.to_lowercase();
    match small.strip_suffix("_k") {
        Some(stem) if stem.starts_with('q') => format!("{stem}_K"),
        _ => small,
    }
}

/// An importance matrix that finds all channels equally important.
fn write_importance(tensors: &[Info], to: &Path) -> Result<()> {
    let metadata = [
        ("general.type".to_string(), "imatrix".into()),
        ("imatrix.datasets".to_string(), Value::texts(&["none"])),
        ("imatrix.chunk_count".to_string(), 1u32.into()),
        ("imatrix.chunk_size".to_string(), 1u32.into()),
    ];
    let matrices = tensors.iter().filter(|t| t.is_matrix());
    let entries: Vec<Info> = matrices
        .flat_map(|t| {
            let channels = t.dimensions[0] * t.dimensions[2..].iter().product::<u64>();
            [Info::f32(format!("{}.in_sum2", t.name), [channels]), Info::f32(format!("{}.counts", t.name), [1])]
        })
        .collect();
    gguf::write(to, &metadata, &entries, |index, out| {
        out.put(&1f32.to_le_bytes().repeat(entries[index].elements() as usize))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_known_once() {
        let [mut ours, ik] = [false, true].map(|is_ik| quantisable(is_ik).collect::<Vec<_>>());
        let count = ours.len();
        ours.sort_unstable();
        ours.dedup();
        assert_eq!(ours.len(), count);
        assert!(["Q4_0", "NVFP4", "IQ1_S", "BF16"].iter().all(|n| ours.contains(n)) && !ours.contains(&"F32"));
        assert!(["Q4_0", "IQ1_S", "BF16", "IQ4_K", "IQ4_KS"].iter().all(|n| ik.contains(n)) && !ik.contains(&"NVFP4"));
        assert!(ik.iter().all(|n| gguf::by_name(n).unwrap().is_of_ik() != ours.contains(n)));
        assert!(gguf::all().all(|ty| ty.is_of_ik() == (ty.id > 100)));
        assert!(["IQ1_M", "IQ2_S"].iter().all(|n| gguf::by_name(n).unwrap().by_importance));
        assert_eq!(["Q4_K", "IQ4_K", "Q8_0", "IQ2_KL"].map(ik_name), ["q4_K", "iq4_k", "q8_0", "iq2_kl"]);
    }

    #[test]
    fn shares_are_of_matrices_without_routers() {
        let file = std::env::temp_dir().join(format!("xtask-models-{}", std::process::id()));
        let ty = |name| gguf::by_name(name).unwrap();
        let tensors = [
            Info::f32("norm", [64]),
            Info::f32("blk.0.ffn_gate_inp.weight", [64, 8]),
            Info { name: "a".into(), dimensions: vec![64, 3], ty: ty("Q4_0") },
            Info { name: "b".into(), dimensions: vec![64, 1], ty: ty("Q8_0") },
        ];
        gguf::write(&file, &[], &tensors, |i, out| out.put(&vec![0; tensors[i].bytes() as usize])).unwrap();
        let model = Model::new("x".into(), file.clone(), "Q4_0").unwrap();
        assert_eq!((model.in_type, model.matrices), (75.0, f64::from(6 * 18 + 2 * 34) / f64::from(1 << 20)));
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn an_importance_matrix_has_an_entry_per_matrix() {
        let file = std::env::temp_dir().join(format!("xtask-importance-{}", std::process::id()));
        write_importance(&[Info::f32("norm", [5]), Info::f32("w", [4, 3, 2])], &file).unwrap();
        let made = Reader::open(&file).unwrap();
        assert_eq!(made.tensors, [Info::f32("w.in_sum2", [8]), Info::f32("w.counts", [1])]);
        assert_eq!(made.data(0).unwrap(), 1f32.to_le_bytes().repeat(8));
        std::fs::remove_file(&file).unwrap();
    }
}

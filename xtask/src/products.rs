//! How many products this library computed in a host's program, by its own count, and how many it must have. A library
//! that says that it is there may still leave every product to the host.

use std::path::Path;

use crate::{
    gguf::{Info, Reader, Type},
    host::Host,
    program::Settings,
    util::Result,
};

/// The setting that has the count printed when a program ends.
pub const REPORT: (&str, &str) = ("GGML_AMX_REPORT", "products");
/// Matrices of a layer that are multiplied with activations: q, k, v, o, gate, up, down.
const MATRICES: u64 = 7;

/// What a process counted: operation, what multiplied, how often.
#[derive(Debug, Default, PartialEq)]
pub struct Products(Vec<(String, String, u64)>);

impl Products {
    /// The last report of a log; None if there is none.
    pub fn of(log: &str) -> Option<Self> {
        let line = log.lines().filter_map(|l| l.split_once("ggml-amx: products: ")).next_back()?.1.trim();
        if line == "none" {
            return Some(Self::default());
        }
        let item = |text: &str| {
            let [op, kernel, count] = text.split_whitespace().collect::<Vec<_>>().try_into().ok()?;
            Some((op.to_string(), kernel.to_string(), count.parse().ok()?))
        };
        line.split(", ").map(item).collect::<Option<Vec<_>>>().map(Self)
    }

    /// Matrices that were multiplied by one of these kernels (all, if none are named); an operation with a gate has
    /// two.
    pub fn matrices(&self, kernels: &[&str]) -> u64 {
        let of = |(op, kernel, count): &(String, String, u64)| match op.as_str() {
            _ if !kernels.is_empty() && !kernels.contains(&kernel.as_str()) => 0,
            "FLASH_ATTN_EXT" => 0,
            "FUSED_UP_GATE" | "MOE_FUSED_UP_GATE" => 2 * count,
            _ => *count,
        };
        self.0.iter().map(of).sum()
    }
}

/// The least that this library must have computed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Floor {
    /// Matrices, by whatever kernel.
    pub matrices: u64,
    /// Of these on tiles.
    pub on_tiles: u64,
}

impl Floor {
    /// For so many batches of a prompt and single tokens through all layers of a model.
    pub fn new(host: &Host, settings: &Settings<'_>, model: &Path, batches: usize, tokens: usize) -> Result<Self> {
        Self::of(host.kind.is_ik(), settings, model, batches, tokens)
    }

    /// The same for any host of a flavour.
    pub fn of(is_ik: bool, settings: &Settings<'_>, model: &Path, batches: usize, tokens: usize) -> Result<Self> {
        let model = Reader::open(model)?;
        let types: Vec<Type> = model.tensors.iter().filter(|t| is_multiplied(t)).map(|t| t.ty).collect();
        let ours = Share::new(is_ik, settings, &types);
        let each = layers(&model)? * MATRICES;
        let prompt = if ours.prompts { batches as u64 * each } else { 0 };
        let generated = if ours.tokens { tokens as u64 * each } else { 0 };
        Ok(Self { matrices: prompt + generated, on_tiles: if settings.is_amx() { prompt } else { 0 } })
    }

    /// Whether a log has as much.
    pub fn check(&self, log: &str) -> Result<()> {
        let products = Products::of(log).ok_or("this library did not report its products when the program ended")?;
        let found = [products.matrices(&[]), products.matrices(&["int8", "bf16"])];
        let names = ["matrices were multiplied by this library", "of them on tiles"];
        for ((found, wanted), name) in found.into_iter().zip([self.matrices, self.on_tiles]).zip(names) {
            if found < wanted {
                return Err(format!("{found} {name}, at least {wanted} are due"));
            }
        }
        Ok(())
    }
}

/// Whether this library computed nothing, whether it reported that or not.
pub fn none(log: &str) -> bool {
    Products::of(log).is_none_or(|products| products.matrices(&[]) == 0)
}

/// What this library must compute of a model.
#[derive(Debug, PartialEq)]
struct Share {
    /// Batches of a prompt.
    prompts: bool,
    /// Single tokens.
    tokens: bool,
}

impl Share {
    fn new(is_ik: bool, settings: &Settings<'_>, types: &[Type]) -> Self {
        let any = |what: &dyn Fn(&Type) -> bool| types.iter().any(what);
        let stays = any(&|t| t.stays_with_ik());
        let plain = any(&|t| ["F32", "F16", "BF16"].contains(&t.name));
        // What is not packed is multiplied by the tile unit or by the host.
        let in_place = is_ik && (!settings.packed || stays);
        let prompts = if in_place || plain { settings.is_amx() && !(is_ik && plain) } else { true };
        let few_rows_are_slow = is_ik && !settings.packed && any(&|t| t.name == "Q2_K");
        Self { prompts, tokens: prompts && !plain && !stays && !few_rows_are_slow }
    }
}

/// Whether a tensor is one of the layers' matrices; routers are the host's.
fn is_multiplied(tensor: &Info) -> bool {
    tensor.name.starts_with("blk.") && tensor.is_matrix() && !tensor.name.contains("ffn_gate_inp")
}

fn layers(model: &Reader) -> Result<u64> {
    let key = model.metadata.iter().map(|(key, _)| key).find(|key| key.ends_with(".block_count"));
    Ok(model.u32(key.map_or("block_count", String::as_str))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf;

    const LOG: &str = "x\nggml-amx: products: none\nggml-amx: products: MUL_MAT vectors 10, MUL_MAT int8 5, \
        FUSED_UP_GATE bf16 3, FLASH_ATTN_EXT bf16 2\n";

    #[test]
    fn the_last_report_counts() {
        let products = Products::of(LOG).unwrap();
        assert_eq!((products.matrices(&[]), products.matrices(&["int8", "bf16"])), (21, 11));
        assert_eq!(Products::of("ggml-amx: products: none").unwrap().matrices(&[]), 0);
        assert_eq!(Products::of("ggml-amx: version 0.1.0, kernels: amx"), None);
        assert_eq!(Products::of("ggml-amx: products: MUL_MAT int8"), None);
        assert!(none("ggml-amx: products: none") && none("nothing") && !none(LOG));
    }

    #[test]
    fn less_than_the_floor_is_an_error() {
        let floor = Floor { matrices: 21, on_tiles: 11 };
        assert_eq!(floor.check(LOG), Ok(()));
        for more in [Floor { matrices: 22, ..floor }, Floor { on_tiles: 12, ..floor }] {
            assert!(more.check(LOG).is_err(), "{more:?}");
        }
        assert!(Floor::default().check("nothing").is_err());
    }

    #[test]
    fn what_is_due_depends_on_mode_type_and_processor() {
        let amx = Settings::default();
        let avx512 = Settings { isa: Some("avx512"), ..amx };
        let share = |is_ik, settings: &Settings<'_>, name| {
            let Share { prompts, tokens } = Share::new(is_ik, settings, &[gguf::by_name(name).unwrap()]);
            (prompts, tokens)
        };
        let packed = |settings| Settings { packed: true, ..settings };
        assert_eq!(share(false, &avx512, "Q4_0"), (true, true));
        assert_eq!((share(false, &amx, "BF16"), share(false, &avx512, "BF16")), ((true, false), (false, false)));
        assert_eq!((share(true, &amx, "Q4_0"), share(true, &avx512, "Q4_0")), ((true, true), (false, false)));
        assert_eq!((share(true, &amx, "Q2_K"), share(true, &packed(amx), "Q2_K")), ((true, false), (true, true)));
        assert_eq!(share(true, &packed(avx512), "Q4_0"), (true, true));
        let stays = "IQ2_KS";
        assert_eq!(
            (share(true, &packed(amx), stays), share(true, &packed(avx512), stays)),
            ((true, false), (false, false))
        );
        assert_eq!(share(true, &amx, "F16"), (false, false));
    }

    #[test]
    fn layers_are_counted_under_the_name_of_any_architecture() {
        let file = std::env::temp_dir().join(format!("xtask-products-{}", std::process::id()));
        gguf::write(&file, &[("qwen3moe.block_count".to_string(), 3u32.into())], &[], |_, _| Ok(())).unwrap();
        assert_eq!(layers(&Reader::open(&file).unwrap()), Ok(3));
        std::fs::remove_file(&file).unwrap();
    }
}

//! The same model with rows that are multiples of 256: only such rows can hold blocks of 256 weights.
//!
//! Zeros are added to the model's width, and heads of zeros to make up for it. The root mean square of a
//! wider row is smaller, so norms are scaled down by as much. What the model says does not change.

use std::path::Path;

use crate::{
    gguf::{self, Entry, Info, Reader},
    util::Result,
};

/// Rows become multiples of this.
const BLOCK: u64 = 256;

/// How sizes change.
struct Plan {
    /// Widths of the model and of its keys and values: before and after.
    widths: [(u64, u64); 2],
    /// Heads, and those of keys and values: after.
    heads: [u64; 2],
}

/// Writes the wide model; the narrow one is of the architecture `llama` and all F32.
pub fn write(narrow: &Path, to: &Path) -> Result<()> {
    let narrow = Reader::open(narrow)?;
    let plan = Plan::new(&narrow)?;
    let tensors: Vec<Info> = narrow.tensors.iter().map(|t| plan.info(t)).collect();
    if let Some(other) = tensors.iter().find(|t| t.ty.name != "F32") {
        return Err(format!("{} is {}, not F32", other.name, other.ty.name));
    }
    gguf::write(to, &plan.metadata(&narrow.metadata), &tensors, |index, out| {
        out.put(&plan.data(&narrow.tensors[index], &tensors[index], &narrow.data(index)?))
    })
}

impl Plan {
    fn new(narrow: &Reader) -> Result<Self> {
        let number = |key: &str| narrow.u32(&format!("llama.{key}")).map(u64::from);
        let (width, heads, kv_heads) =
            (number("embedding_length")?, number("attention.head_count")?, number("attention.head_count_kv")?);
        let wide = width.next_multiple_of(BLOCK);
        let size = width / heads;
        let (new_heads, new_kv) = (wide / size, wide / size * kv_heads / heads);
        if new_heads * size != wide || new_kv * heads != new_heads * kv_heads {
            return Err(format!("{heads} heads of {size}, {kv_heads} for keys and values, do not fit into {wide}"));
        }
        Ok(Self { widths: [(width, wide), (kv_heads * size, new_kv * size)], heads: [new_heads, new_kv] })
    }

    fn size(&self, old: u64) -> u64 {
        self.widths.iter().find(|(from, _)| *from == old).map_or(old, |(_, to)| *to)
    }

    fn info(&self, old: &Info) -> Info {
        Info { dimensions: old.dimensions.iter().map(|d| self.size(*d)).collect(), ..old.clone() }
    }

    fn metadata(&self, old: &[Entry]) -> Vec<Entry> {
        let [(from, to), _] = self.widths;
        let change = |(key, value): &Entry| {
            let value = match key.strip_prefix("llama.") {
                Some("embedding_length") => (to as u32).into(),
                Some("attention.head_count") => (self.heads[0] as u32).into(),
                Some("attention.head_count_kv") => (self.heads[1] as u32).into(),
                Some("attention.layer_norm_rms_epsilon") => {
                    let epsilon = value.as_f32().unwrap_or_default();
                    (epsilon * from as f32 / to as f32).into()
                }
                _ => value.clone(),
            };
            (key.clone(), value)
        };
        old.iter().map(change).collect()
    }

    /// Rows made longer, rows of zeros at the end; norms scaled.
    fn data(&self, old: &Info, new: &Info, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(new.bytes() as usize);
        let [(from, to), _] = self.widths;
        let scale = (from as f64 / to as f64).sqrt();
        for row in data.chunks(old.row_bytes() as usize) {
            let end = out.len() + new.row_bytes() as usize;
            if old.is_matrix() {
                out.extend(row);
            } else {
                let floats = row.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b)));
                out.extend(floats.flat_map(|v| ((v * scale) as f32).to_le_bytes()));
            }
            out.resize(end, 0);
        }
        out.resize(new.bytes() as usize, 0);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_model_is_widened() {
        let file = |name: &str| std::env::temp_dir().join(format!("xtask-widen-{name}-{}", std::process::id()));
        let (narrow, wide) = (file("narrow"), file("wide"));
        let mut metadata: Vec<Entry> =
            [("embedding_length", 192u32), ("attention.head_count", 3), ("attention.head_count_kv", 1)]
                .map(|(key, n)| (format!("llama.{key}"), n.into()))
                .into();
        metadata.push(("llama.attention.layer_norm_rms_epsilon".into(), 1e-5f32.into()));
        let tensors = [Info::f32("norm", [192]), Info::f32("ffn_down", [512, 192]), Info::f32("attn_q", [192, 192])];
        let ones = |info: &Info| 1f32.to_le_bytes().repeat(info.elements() as usize);
        gguf::write(&narrow, &metadata, &tensors, |i, out| out.put(&ones(&tensors[i]))).unwrap();
        // 3 heads to 1 cannot become 4 to 1 and a third.
        assert!(write(&narrow, &wide).unwrap_err().contains("do not fit"));
        metadata[1].1 = 6u32.into();
        metadata[2].1 = 3u32.into();
        gguf::write(&narrow, &metadata, &tensors, |i, out| out.put(&ones(&tensors[i]))).unwrap();
        write(&narrow, &wide).unwrap();
        let made = Reader::open(&wide).unwrap();
        let numbers = ["embedding_length", "attention.head_count", "attention.head_count_kv"];
        assert_eq!(numbers.map(|key| made.u32(&format!("llama.{key}")).unwrap()), [256, 8, 4]);
        assert_eq!(
            made.tensors.iter().map(|t| t.dimensions.clone()).collect::<Vec<_>>(),
            [vec![256], vec![512, 256], vec![256, 256]]
        );
        let sum = |i: usize| {
            let data = made.data(i).unwrap();
            data.chunks(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).sum::<f64>()
        };
        assert!((sum(0) - 192.0 * 0.75f64.sqrt()).abs() < 1e-4);
        assert_eq!((sum(1), sum(2)), (512.0 * 192.0, 192.0 * 192.0));
        [narrow, wide].iter().for_each(|f| std::fs::remove_file(f).unwrap());
    }
}

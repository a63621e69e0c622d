//! The command line.

use ggml_amx::format::WeightType;

/// What to measure.
pub struct Options {
    /// Weight types; if empty, all that can be measured.
    pub types: Vec<WeightType>,
    /// Rows of activations.
    pub rows: Vec<usize>,
    /// Shapes: (N, K).
    pub shapes: Vec<(usize, usize)>,
    /// Threads, for this library and for hosts.
    pub threads: usize,
    /// Repetitions.
    pub reps: usize,
    /// BF16 wherever the tile GEMM is used.
    pub exact: bool,
    /// Kind of activations.
    pub kind: String,
    /// Use one copy of the weights, so that they stay in the cache if they fit.
    pub warm: bool,
    /// Leave this library's weights as GGUF has them.
    pub in_place: bool,
    /// `NAME=PATH` of other hosts.
    pub hosts: Vec<String>,
    /// Only print what is known of the types.
    pub facts: bool,
    /// Where to write one JSON object per product.
    pub json: Option<String>,
}

impl Options {
    /// The options of this process.
    pub fn read() -> Result<Self, String> {
        let mut o = Self {
            types: Vec::new(),
            rows: vec![1, 2, 4, 8, 16, 32, 64, 128, 512],
            shapes: vec![(4096, 4096), (14336, 4096), (4096, 14336)],
            threads: 2,
            reps: 7,
            exact: false,
            kind: "gate".into(),
            warm: false,
            in_place: false,
            hosts: Vec::new(),
            facts: false,
            json: None,
        };
        let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--types" => o.types = list(&value()?, of_name)?,
                "--m" => o.rows = list(&value()?, number)?,
                "--shapes" => o.shapes = list(&value()?, shape)?,
                "--threads" => o.threads = number(&value()?)?,
                "--reps" => o.reps = number(&value()?)?,
                "--exact" => o.exact = true,
                "--kind" => o.kind = value()?,
                "--warm" => o.warm = true,
                "--in-place" => o.in_place = true,
                "--host" => o.hosts.push(value()?),
                "--facts" => o.facts = true,
                "--json" => o.json = Some(value()?),
                other => return Err(format!("unknown argument `{other}`")),
            }
        }
        if !["gate", "down", "smooth"].contains(&o.kind.as_str()) {
            return Err(format!("--kind {}: gate, down or smooth", o.kind));
        }
        Ok(o)
    }

    /// The types to measure. Hosts must be loaded by then: they have the codebooks.
    pub fn types(&self) -> Result<Vec<WeightType>, String> {
        if let Some(ty) = self.types.iter().find(|ty| !ty.is_readable()) {
            return Err(format!("the codebook of {} comes from a host (--host)", ty.info().name));
        }
        let readable = || WeightType::ALL.iter().copied().filter(|ty| ty.is_readable()).collect();
        Ok(if self.types.is_empty() { readable() } else { self.types.clone() })
    }
}

fn list<T>(text: &str, one: fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    text.split(',').map(|s| one(s.trim())).collect()
}

fn number(s: &str) -> Result<usize, String> {
    s.parse().ok().filter(|n| *n > 0).ok_or(format!("{s} is not a positive number"))
}

fn of_name(s: &str) -> Result<WeightType, String> {
    let found = WeightType::ALL.iter().find(|t| t.info().name.eq_ignore_ascii_case(s));
    found.copied().ok_or(format!("no weight type `{s}`"))
}

fn shape(s: &str) -> Result<(usize, usize), String> {
    let (n, k) = s.split_once('x').ok_or(format!("{s}: shapes are NxK"))?;
    Ok((number(n)?, number(k)?))
}

//! `cargo xtask demo`: from a fresh checkout to a chat answer and a table of speeds, with this library in llama.cpp.

use std::path::Path;

use crate::{
    cache::Cache,
    chat,
    cpu::{self, Cpu},
    fetch,
    host::{self, Host, Kind},
    products::Floor,
    program::{self, Settings, Way},
    speed, stats, symbols, table,
    util::Result,
};

/// What this machine can show.
pub struct Plan {
    /// The machine.
    pub cpu: Cpu,
    /// AMX is expected to work.
    amx: bool,
    /// Ceiling for the instruction set of this library, when it is not AMX.
    isa: Option<String>,
}

impl Plan {
    /// For this machine and GGML_AMX_ISA.
    pub fn new() -> Self {
        let cpu = cpu::detect();
        let asked = std::env::var("GGML_AMX_ISA").ok().filter(|v| !v.is_empty());
        let amx = cpu.amx && asked.as_deref().is_none_or(|v| v == "amx");
        let isa = asked.or_else(|| (!amx && cpu.avx512_vnni).then(|| "avx512".to_string()));
        Self { cpu, amx, isa }
    }

    /// Without AMX and without a ceiling for the instruction set, the library steps aside and says why.
    pub fn settings(&self) -> Settings<'_> {
        Settings { isa: self.isa.as_deref(), ..Settings::default() }
    }

    fn ours(&self) -> Way<'_> {
        Way::Ours(self.settings())
    }

    /// Whether this library will step aside: no AMX, and no ceiling was asked for.
    pub fn steps_aside(&self) -> bool {
        !self.amx && self.isa.is_none()
    }

    /// Checks that this library computed the answer: at least one token for each word. The prompt is too short to need
    /// tiles in every precision, so no batch of it is counted.
    pub fn check(&self, host: &Host, model: &Path, settings: &Settings<'_>, answer: &chat::Answer) -> Result<()> {
        if self.steps_aside() {
            return Ok(());
        }
        let words = answer.text.split_whitespace().count();
        Floor::new(host, settings, model, 0, words)?.check(&answer.log)
    }

    fn ours_label(&self) -> String {
        match (&self.isa, self.amx) {
            (_, true) => "this library".into(),
            (Some(isa), false) => format!("this library, {isa}"),
            (None, false) => "host, no AMX".into(),
        }
    }

    /// What a table of speeds was measured with.
    pub fn print_origin(&self, samples: &speed::Samples) {
        println!("  SmolLM2-135M-Instruct Q4_1, llama-bench, {}", stats::legend(samples.prompt.len()));
        println!("  {}, {} threads, {}", self.cpu.model, self.cpu.threads, cpu::today());
    }

    /// Prints what the machine is, and what follows from that.
    pub fn print(&self) {
        let name = if self.cpu.model.is_empty() { "unknown" } else { &self.cpu.model };
        println!("CPU: {name}, {} threads, AMX-INT8 {}", self.cpu.threads, if self.cpu.amx { "yes" } else { "NO" });
        if self.amx {
            return;
        }
        let why = if self.cpu.amx { "GGML_AMX_ISA rules AMX out" } else { "this machine has no AMX" };
        let instead = match &self.isa {
            Some(isa) => format!("this library runs with GGML_AMX_ISA={isa}"),
            None => "this library steps aside, and what follows is the host's own path".into(),
        };
        println!("NOTE: {why}: {instead}. None of these numbers says anything about AMX.");
    }
}

/// The whole demo; `quick` leaves out the table of speeds.
pub fn run(quick: bool) -> Result<()> {
    let plan = Plan::new();
    println!("ggml-amx in the place of llama.cpp's C++ AMX backend ({})", fetch::HOST.requirement);
    plan.print();

    println!("\n1. The host");
    let host = host::ensure(Kind::Llama)?;
    let baseline = if quick || !plan.amx { None } else { host::baseline()? };
    let model = fetch::model(&Cache::open()?)?;

    println!("\n2. The swap");
    let library = host.cpu_library();
    println!("  {}\n  {}", library.display(), symbols::check_swapped(&library)?);
    println!("  {}", fetch::check_untouched(&Cache::open()?, &fetch::HOST)?);

    println!("\n3. A chat");
    chat(&plan, &host, &model)?;

    if !quick {
        println!("\n4. Speed");
        speed(&plan, &host, baseline.as_ref(), &model)?;
    }
    Ok(())
}

fn chat(plan: &Plan, host: &Host, model: &Path) -> Result<()> {
    let answer = chat::ask(host, model, plan.ours())?;
    println!("  $ {}", answer.command);
    let line = program::amx_line(&answer.log);
    for said in line.into_iter().chain(program::our_lines(&answer.log)) {
        println!("  {said}");
    }
    println!("\n  > {}\n", chat::QUESTION);
    for line in answer.text.lines() {
        println!("  {line}");
    }
    if let Some(why) = chat::garbage(&answer.text) {
        return Err(format!("{why}: {:?}", answer.text));
    }
    plan.check(host, model, &plan.settings(), &answer)?;
    if plan.amx && line.is_none() {
        return Err("the host did not print `AMX model buffer size`: AMX is there but was not used \
            (the lines of ggml-amx above say why; repeat with GGML_AMX_LOG=debug)"
            .into());
    }
    Ok(())
}

fn speed(plan: &Plan, host: &Host, baseline: Option<&Host>, model: &Path) -> Result<()> {
    let threads = plan.cpu.threads;
    let ours = plan.ours();
    if plan.amx && !speed::amx_buffer_used(host, model, ours, threads)? {
        return Err("llama-bench did not use the AMX buffer".into());
    }
    let mut notes = Vec::new();
    let mut theirs = (Way::HostBest, "host, no AMX".to_string());
    if let Some(cpp) = baseline {
        symbols::check_original(&cpp.cpu_library())?;
        match speed::amx_buffer_used(host, model, Way::CppAmx(cpp), threads) {
            Ok(true) => theirs = (Way::CppAmx(cpp), "host's C++ AMX".into()),
            Ok(false) => notes.push("the host's C++ AMX backend stepped aside on this machine".to_string()),
            Err(e) => {
                notes.push(format!("the host's C++ AMX backend failed: {}", e.lines().next().unwrap_or_default()))
            }
        }
        notes.push(format!(
            "C++ AMX: libggml-cpu built by {}; this library: in libggml-cpu built by {}",
            cpp.built_by(),
            host.built_by()
        ));
    } else if plan.amx {
        notes.push(format!("no baseline with AMX: {}", crate::compiler::NO_BASELINE));
    }
    let alone = plan.steps_aside();
    let ways = if alone { vec![ours] } else { vec![theirs.0, ours] };
    let samples = speed::interleaved(host, model, &ways, threads, &speed::Plan::default())?;

    let ours_label = plan.ours_label();
    let header = if alone { vec!["tokens/s", &ours_label] } else { vec!["tokens/s", &theirs.1, &ours_label, "ratio"] };
    let rows: Vec<Vec<String>> = speed::TESTS
        .into_iter()
        .map(|(name, of)| {
            let values: Vec<&[f64]> = samples.iter().map(of).collect();
            let mut row = vec![name.to_string()];
            row.extend(values.iter().map(|v| stats::spread(v, |v| format!("{v:.1}"))));
            if let [theirs, ours] = values[..] {
                row.push(stats::spread(&stats::ratios(ours, theirs), |v| format!("{v:.2}")));
            }
            row
        })
        .collect();
    println!("\n{}", table::render(&header, &rows));
    plan.print_origin(&samples[0]);
    for note in notes {
        println!("  {note}");
    }
    Ok(())
}

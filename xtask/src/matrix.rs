//! `cargo xtask hosts --check`: every host that this library says it serves, as one table: were its structs found, do
//! bytes come back from buffers, are products right, and, where there is a libllama, are a real model's logits.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use crate::{
    bench::report::between_markers,
    cache::{self, Cache},
    compiler,
    copies::{Copy, Edit, instead},
    cpu, fetch,
    host::{self, Host, Kind},
    products::{self, Floor, Products},
    program::{self, Settings},
    symbols, table, text,
    util::{self, Result, io},
    verify,
};

/// Our mean KL divergence may be this many times the host's, or within three standard errors of it.
const MAX_KLD_RATIO: f64 = 1.1;
/// The weights of all logits.
const TYPE: &str = "Q4_1";

/// A host that is looked at.
struct Entry {
    name: &'static str,
    /// How it comes to have this library.
    how: &'static str,
    /// Whether CI has time for it.
    quick: bool,
    /// None: the index answers that it does not have the package.
    make: fn(&Bench) -> Result<Option<Made>>,
}

/// What is loaded.
struct Made {
    version: String,
    /// Libraries and directories of backends, in the order in which they are loaded.
    libraries: Vec<PathBuf>,
    /// libllama, if there is one.
    llama: Option<PathBuf>,
    /// A loader of its own, with the directory of its libraries.
    loader: Option<PathBuf>,
}

const ENTRIES: [Entry; 11] = [
    Entry { name: "ggml, prebuilt", how: "by function", quick: true, make: wheel },
    Entry { name: "llama.cpp, earlier", how: "swapped in", quick: false, make: |_| swapped(Kind::Earlier).map(Some) },
    Entry { name: "node-llama-cpp, prebuilt", how: "by function", quick: true, make: node },
    Entry { name: "llama.cpp", how: "swapped in", quick: true, make: |_| swapped(Kind::Llama).map(Some) },
    Entry { name: "llama.cpp, backends as plug-ins", how: "swapped in", quick: true, make: |_| plugins().map(Some) },
    Entry {
        name: "ggml inside another project, plain make",
        how: "swapped in",
        quick: false,
        make: |_| vendored().map(Some),
    },
    Entry { name: "llama.cpp, later", how: "swapped in", quick: false, make: |_| swapped(Kind::Later).map(Some) },
    Entry { name: "Debian sid, prebuilt", how: "by function", quick: false, make: |bench| sid(bench).map(Some) },
    Entry {
        name: "ik_llama.cpp",
        how: "linked",
        quick: true,
        make: |_| linked(&host::ensure(Kind::IkOurs)?, "").map(Some),
    },
    Entry {
        name: "ik_llama.cpp, 12 sources",
        how: "linked",
        quick: false,
        make: |_| copy("12", &SOURCES_12).map(Some),
    },
    Entry {
        name: "ik_llama.cpp, 16 sources, indexer",
        how: "linked",
        quick: false,
        make: |_| copy("16", &SOURCES_16).map(Some),
    },
];

const IK_HEADER: &str = "ggml/include/ggml.h";
const IK_SOURCES: &str = "#define GGML_MAX_SRC            10";
const IK_KERNELS: &str = "ggml/src/iqk/iqk_mul_mat.h";
const IK_ATTENTION: &str = "ggml/src/iqk/iqk_flash_attn.cpp";

/// As of May 2026.
const SOURCES_12: [Edit; 1] = [instead(IK_HEADER, IK_SOURCES, "#define GGML_MAX_SRC 12")];
/// As of July 2026: flash attention has an argument more.
const SOURCES_16: [Edit; 5] = [
    instead(IK_HEADER, IK_SOURCES, "#define GGML_MAX_SRC 16"),
    instead(IK_KERNELS, "int ith, int nth, int n_swa);", "int ith, int nth, int n_swa, struct ggml_tensor * indexer);"),
    instead(IK_ATTENTION, "int ith, int nth, int n_swa) {", "int ith, int nth, int n_swa, struct ggml_tensor *) {"),
    instead(
        IK_ATTENTION,
        "[[maybe_unused]] int nth, [[maybe_unused]] int n_swa) {",
        "[[maybe_unused]] int nth, [[maybe_unused]] int n_swa, struct ggml_tensor *) {",
    ),
    instead("ggml/src/ggml.c", "ith, nth, dst->op_params[4])) return;", "ith, nth, dst->op_params[4], NULL)) return;"),
];

/// What all hosts are looked at with.
struct Bench {
    program: PathBuf,
    /// This library as a shared one, beside hosts that do not have it in them.
    ours: PathBuf,
    isa: Option<String>,
    text: PathBuf,
    model: PathBuf,
    /// Logits of the same weights in F32.
    base: PathBuf,
    words: usize,
    /// Files of one run would be another one's results.
    _lock: File,
}

/// A line of the table.
struct Row {
    cells: Vec<String>,
    failed: Option<String>,
    /// It failed because an index does not have the package.
    is_absent: bool,
}

/// Looks at the hosts of these names; at all of them, if there are none. `quick`: at those that CI has time for, of
/// which some may be out of reach: `skip` is told. `newest`: at newer versions that the packages' indexes have,
/// besides.
pub fn run(names: &[String], quick: bool, newest: bool, skip: impl Fn(&str, &str)) -> Result<()> {
    let chosen =
        |entry: &&Entry| if names.is_empty() { !quick || entry.quick } else { names.iter().any(|n| n == entry.name) };
    if let Some(unknown) = names.iter().find(|name| ENTRIES.iter().all(|entry| entry.name != **name)) {
        let known: Vec<&str> = ENTRIES.iter().map(|entry| entry.name).collect();
        return Err(format!("no host `{unknown}`: {}", known.join("; ")));
    }
    let bench = Bench::new()?;
    let mut rows: Vec<Row> = ENTRIES.iter().filter(chosen).map(|entry| bench.look(entry)).collect();
    if newest {
        let newer = newer(&bench, &rows);
        rows.extend(newer);
    }
    let header =
        ["host", "version", "this library", "structs", "buffers", "products: NMSE", "logits: KLD ours / host", ""];
    let cells: Vec<Vec<String>> = rows.iter().map(|row| row.cells.clone()).collect();
    println!("\n{}", table::render(&header, &cells));
    println!(
        "  KL divergence of {TYPE} to the same weights in F32, on {} kernels",
        bench.isa.as_deref().unwrap_or("amx")
    );
    let mut failures: Vec<&String> = Vec::new();
    for row in &rows {
        match &row.failed {
            Some(why) if quick && row.is_absent => skip("a prebuilt host", why),
            Some(why) => failures.push(why),
            None => {}
        }
    }
    if names.is_empty() && !quick && !newest && failures.is_empty() {
        bench.write_document(&header[..7], &cells)?;
    }
    match failures.is_empty() {
        true => Ok(()),
        false => Err(failures.into_iter().map(String::as_str).collect::<Vec<_>>().join("\n")),
    }
}

impl Bench {
    fn new() -> Result<Self> {
        let dir = cache::root()?.join("matrix");
        io("create", &dir, fs::create_dir_all(&dir))?;
        let lock = cache::lock(&dir.join("lock"))?;
        let ours = host::our_libraries()?.join("libggml_amx.so");
        let llama = host::ensure(Kind::Llama)?;
        let cache = Cache::open()?;
        let program = dir.join("any_host");
        let mut compile = Command::new(compiler::system()?.cxx);
        compile.args(["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror"]);
        compile.arg(util::repo().join("c_tests/tools/any_host.cpp")).args(["-ldl", "-o"]).arg(&program);
        util::capture(&mut compile, &cache::log("matrix-compile")?)?;
        let text = dir.join("text.txt");
        io("write", &text, fs::write(&text, text::prose(&fetch::source(&cache)?)?))?;
        let asked = std::env::var("GGML_AMX_ISA").ok().filter(|v| !v.is_empty());
        let isa = asked.or_else(|| (!cpu::detect().amx).then(|| "avx512".to_string()));
        let f32 = dir.join("f32.gguf");
        let model = verify::in_f32(&cache, &llama, TYPE, &f32)?;
        let base = dir.join("base");
        let mut bench = Self { program, ours, isa, text, model, base, words: 0, _lock: lock };
        let made = Made { version: String::new(), libraries: shared(&llama), llama: None, loader: None };
        bench.words = bench.logits(&made, &llama.bin_dir().join("libllama.so"), &f32, &bench.base, false)?;
        cache::remove(&f32)?;
        Ok(bench)
    }

    /// The program, in an environment without settings from outside; standard output and error.
    fn call(&self, made: &Made, ours: bool, arguments: &[&str], more: &[PathBuf]) -> Result<util::Output> {
        let mut command = match &made.loader {
            None => Command::new(&self.program),
            Some(dir) => {
                let mut loader = Command::new(dir.join("ld-linux-x86-64.so.2"));
                loader.arg("--library-path").arg(dir).arg(&self.program);
                loader
            }
        };
        program::clean(&mut command);
        command.args(arguments).args(&made.libraries).args(more);
        // Hosts also look for backends in the directory where they are started.
        command.current_dir(self.base.parent().unwrap_or(Path::new("/")));
        let (report, value) = products::REPORT;
        command.env(report, value).envs(self.isa.as_ref().map(|isa| ("GGML_AMX_ISA", isa)));
        if !ours {
            command.env("GGML_AMX_MODE", "off").env("ANY_HOST_PLAIN", "1");
        }
        util::capture(&mut command, &cache::log("matrix")?)
    }

    /// Logits of a model, written to a file: how many words there are. All products must have been this library's, or
    /// none.
    fn logits(&self, made: &Made, llama: &Path, model: &Path, to: &Path, ours: bool) -> Result<usize> {
        let settings = Settings { isa: self.isa.as_deref(), ..Settings::default() };
        let floor = Floor::of(false, &settings, model, 1, 0)?;
        let [model, text, to] = [model, &self.text, to].map(|path| path.display().to_string());
        let more = [llama.to_path_buf()];
        let output = self.call(made, ours, &["logits", &model, &text, &to], &more)?;
        if ours {
            floor.check(&output.stderr)?;
        } else if !products::none(&output.stderr) {
            return Err("products were this library's where none should be".into());
        }
        let words = output.stdout.lines().find_map(|line| line.strip_prefix("logits: ")?.split_whitespace().nth(3));
        words.and_then(|words| words.parse().ok()).ok_or("no logits were written".into())
    }

    fn look(&self, entry: &Entry) -> Row {
        println!("  {}", entry.name);
        let begin = Instant::now();
        let mut cells = vec![entry.name.to_string(), String::new(), entry.how.to_string()];
        let made = (entry.make)(self);
        let is_absent = matches!(made, Ok(None));
        let made = made.and_then(|made| made.ok_or(fetch::NOT_SERVED.to_string()));
        let failed = made.and_then(|made| self.check(&made, &mut cells)).err();
        cells.resize(7, "-".into());
        cells.push(if failed.is_some() { "FAILED".into() } else { util::seconds(begin.elapsed()) });
        Row { failed: failed.map(|why| format!("{}: {why}", entry.name)), cells, is_absent }
    }

    /// Fills the cells behind the first three.
    fn check(&self, made: &Made, cells: &mut Vec<String>) -> Result<()> {
        cells[1].clone_from(&made.version);
        let output = self.call(made, true, &["products"], &[])?;
        let said = |what: &str| output.stdout.lines().find_map(|line| line.strip_prefix(what));
        if said("proof: ggml").is_some_and(|version| !version.trim().is_empty() && made.version.is_empty()) {
            cells[1] = said("proof: ggml").unwrap_or_default().trim().to_string();
        }
        let found = |what: &str| said(what).map(|rest| rest.trim().to_string()).ok_or(format!("no line `{what}`"));
        found("proof:")?;
        cells.push("found".into());
        found("contract of buffers:")?;
        cells.push("right".into());
        let nmse = found("products:")?;
        cells.push(nmse.rsplit(' ').next().unwrap_or_default().to_string());
        some_ours(&output.stderr)?;
        let Some(llama) = &made.llama else { return Ok(()) };
        let dir = self.base.parent().ok_or("the base lies in a directory")?;
        let [ours, theirs] = [dir.join("ours"), dir.join("theirs")];
        self.logits(made, llama, &self.model, &ours, true)?;
        self.logits(made, llama, &self.model, &theirs, false)?;
        let [kld, host] = [self.divergence(&ours)?, self.divergence(&theirs)?];
        cells.push(format!("{:.5} / {:.5}", mean(&kld), mean(&host)));
        let differences: Vec<f64> = kld.iter().zip(&host).map(|(ours, theirs)| ours - theirs).collect();
        let mean_difference = mean(&differences);
        let squares: Vec<f64> = differences.iter().map(|d| (d - mean_difference).powi(2)).collect();
        let error = (mean(&squares) / differences.len() as f64).sqrt();
        if mean(&kld) > MAX_KLD_RATIO * mean(&host) && mean_difference > 3.0 * error {
            return Err(format!("mean KL divergence {:.6}, the host's {:.6}", mean(&kld), mean(&host)));
        }
        Ok(())
    }

    /// KL divergence of each token's distribution to that of the weights in F32.
    fn divergence(&self, file: &Path) -> Result<Vec<f64>> {
        let rows = |path: &Path| -> Result<Vec<Vec<f64>>> {
            let bytes = io("read", path, fs::read(path))?;
            let floats: Vec<f32> =
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            Ok(floats.chunks_exact(self.words).map(log_softmax).collect())
        };
        let (base, found) = (rows(&self.base)?, rows(file)?);
        if base.len() != found.len() {
            return Err(format!("{} rows of logits, not {}", found.len(), base.len()));
        }
        let one = |(p, q): (&Vec<f64>, &Vec<f64>)| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum();
        let all: Vec<f64> = base.iter().zip(&found).map(one).collect();
        if all.iter().all(|kld: &f64| kld.is_finite()) { Ok(all) } else { Err("a logit is NaN or infinite".into()) }
    }

    /// The table of docs/hosts.md.
    fn write_document(&self, header: &[&str], rows: &[Vec<String>]) -> Result<()> {
        let mut out = format!(
            "`cargo xtask hosts --check`, {}, {}, {} kernels; logits: SmolLM2-135M in {TYPE}, mean KL divergence to the same weights \
             in F32.\n\n| {} |\n|{}\n",
            cpu::today(),
            cpu::detect().model,
            self.isa.as_deref().unwrap_or("amx"),
            header.join(" | "),
            "---|".repeat(header.len())
        );
        for row in rows {
            out.push_str(&format!("| {} |\n", row[..header.len()].join(" | ")));
        }
        let path = util::repo().join("docs/hosts.md");
        let old = io("read", &path, fs::read_to_string(&path))?;
        io("write", &path, fs::write(&path, between_markers(&old, "hosts", &out)?))
    }
}

/// This library must have multiplied (the program compares every product itself).
fn some_ours(log: &str) -> Result<()> {
    match Products::of(log).map(|products| products.matrices(&[])) {
        Some(count) if count > 0 => Ok(()),
        _ => Err("no product was this library's".into()),
    }
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let most = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|v| (f64::from(*v) - most).exp()).sum();
    row.iter().map(|v| f64::from(*v) - most - sum.ln()).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The libraries of a shared build.
fn shared(host: &Host) -> Vec<PathBuf> {
    ["libggml-base.so", "libggml-cpu.so", "libggml.so"].map(|name| host.bin_dir().join(name)).into()
}

fn swapped(kind: Kind) -> Result<Made> {
    let host = host::ensure(kind)?;
    if kind != Kind::Llama {
        host::also(&host, &["llama"])?;
    }
    let llama = Some(host.bin_dir().join("libllama.so"));
    Ok(Made { version: String::new(), libraries: shared(&host), llama, loader: None })
}

fn plugins() -> Result<Made> {
    let bin = host::ensure(Kind::Dl)?.bin_dir();
    let libraries = vec![bin.join("libggml-base.so"), bin.join("libggml.so"), bin];
    Ok(Made { version: String::new(), libraries, llama: None, loader: None })
}

fn wheel(bench: &Bench) -> Result<Option<Made>> {
    let Some(root) = fetch::older_ggml(&Cache::open()?)? else { return Ok(None) };
    let mut libraries: Vec<PathBuf> =
        ["libggml-base.so", "libggml-cpu.so", "libggml.so"].map(|name| root.join("lib64").join(name)).into();
    libraries.push(bench.ours.clone());
    Ok(Some(Made { version: String::new(), libraries, llama: None, loader: None }))
}

/// The one library of a directory whose name begins like this.
fn library(dir: &Path, begins: &str) -> Result<PathBuf> {
    let names = io("read", dir, fs::read_dir(dir))?.flatten().map(|entry| entry.path());
    let is = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(begins));
    let mut found: Vec<PathBuf> = names.filter(is).collect();
    found.sort();
    found.into_iter().next().ok_or(format!("{} has no {begins}*", dir.display()))
}

fn node(bench: &Bench) -> Result<Option<Made>> {
    let Some(dir) = fetch::node(&Cache::open()?)? else { return Ok(None) };
    let libraries = vec![dir.join("libggml-base.so"), library(&dir, "libggml.")?, dir.clone(), bench.ours.clone()];
    Ok(Some(Made { version: String::new(), libraries, llama: Some(library(&dir, "libllama.")?), loader: None }))
}

fn sid(bench: &Bench) -> Result<Made> {
    let (version, dir) = fetch::sid(&Cache::open()?)?;
    let backends = library(&dir.join("ggml"), "backends")?;
    let libraries =
        vec![library(&dir, "libggml-base.so.")?, library(&dir, "libggml.so.")?, backends, bench.ours.clone()];
    let llama = library(&dir, "libllama.so.").or_else(|_| library(&dir.join("llama"), "libllama.so."))?;
    Ok(Made { version, libraries, llama: Some(llama), loader: Some(dir) })
}

fn linked(host: &Host, version: &str) -> Result<Made> {
    let libraries = vec![host.build.join("ggml/src/libggml.so")];
    let version = if version.is_empty() { fetch::IK.version() } else { version };
    Ok(Made { version: version.to_string(), libraries, llama: None, loader: None })
}

/// A copy of ik_llama.cpp as it was at another time, linked by the module.
fn copy(name: &str, edits: &[Edit]) -> Result<Made> {
    let pinned = host::ensure(Kind::Ik)?;
    let library = host::our_archive()?;
    let cache = Cache::open()?;
    let (tools, compiler) = (fetch::tools(&cache)?, compiler::system()?);
    let copy = Copy::new(&cache, &format!("ik-sources-{name}"), &pinned, edits, Some("ggml_tensor\\|GGML_MAX_SRC"))?;
    let mut configure = copy.configure(&tools, &compiler);
    let module = util::repo().join("cmake/llama-host.cmake");
    configure.arg(format!("-DCMAKE_PROJECT_INCLUDE={}", module.display()));
    configure.arg(format!("-DGGML_AMX_LIBRARY={}", library.display()));
    util::run_logged(&mut configure, name, &cache::log(&format!("configure-ik-sources-{name}"))?)?;
    let mut make = host::cmake(&tools);
    make.arg("--build").arg(&copy.build).args(["--target", "ggml"]);
    let log = cache::log(&format!("build-ik-sources-{name}"))?;
    util::run_logged(&mut make, &format!("building ik_llama.cpp with {name} sources"), &log)?;
    linked(
        &Host { kind: Kind::IkOurs, source: copy.source, build: copy.build, compiler },
        &format!("{}, edited", fetch::IK.version()),
    )
}

/// A project that has ggml in a folder of its own, builds it with plain make, and takes this library by pkg-config.
fn vendored() -> Result<Made> {
    let cache = Cache::open()?;
    let (source, tools, compiler) = (fetch::source(&cache)?, fetch::tools(&cache)?, compiler::system()?);
    let prefix = crate::fork::package(&cache, &tools, &compiler)?;
    let of = format!("{}\n{}\n{}\n{MAKEFILE}", prefix.display(), source.display(), compiler.label);
    let dir = cache.path(format!("matrix/make-{:08x}", cache::fnv(of.bytes()) >> 32));
    io("create", &dir, fs::create_dir_all(dir.join("vendor")))?;
    let link = dir.join("vendor/ggml");
    cache::remove(&link)?;
    io("create", &link, std::os::unix::fs::symlink(source.join("ggml"), &link))?;
    let makefile = dir.join("Makefile");
    io("write", &makefile, fs::write(&makefile, MAKEFILE))?;
    let mut make = Command::new("make");
    make.arg("-C").arg(&dir).arg(format!("-j{}", cpu::detect().threads));
    make.arg(format!("CC={}", compiler.cc)).arg(format!("CXX={}", compiler.cxx));
    make.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
    util::capture(&mut make, &cache::log("matrix-make")?)?;
    let project = dir.join("libproject.so");
    symbols::check_no_delete(&project)?;
    symbols::check_no_rust(&project)?;
    Ok(Made { version: String::new(), libraries: vec![project], llama: None, loader: None })
}

/// All of ggml for the CPU without its AMX files, and this library's archive in their place (docs/building.md).
const MAKEFILE: &str = "\
GGML := vendor/ggml
SRC := $(wildcard $(GGML)/src/*.c $(GGML)/src/*.cpp $(GGML)/src/ggml-cpu/*.c $(GGML)/src/ggml-cpu/*.cpp) \\
       $(wildcard $(GGML)/src/ggml-cpu/arch/x86/*.c $(GGML)/src/ggml-cpu/arch/x86/*.cpp $(GGML)/src/ggml-cpu/tiled/*.cpp)
OBJ := $(patsubst $(GGML)/%,build/%.o,$(SRC))
FLAGS := -O2 -fPIC -march=native -w -D_GNU_SOURCE -DGGML_USE_CPU \\
         -MMD -Ibuild -I$(GGML)/include -I$(GGML)/src -I$(GGML)/src/ggml-cpu
AMX := $(shell pkg-config --variable=libdir ggml-amx)
MODULE := $(AMX)/cmake/ggml-amx

libproject.so: $(OBJ) build/amx-types.o $(AMX)/libggml_amx.a $(MODULE)/hide-rust.map
\t$(CXX) -shared -o $@ $(OBJ) -L$(AMX) -l:libggml_amx.a -ldl -lpthread -lm -lutil -lrt \\
\t    -Wl,-z,nodelete -Wl,--version-script=$(MODULE)/hide-rust.map

# Are this ggml's types those that the library knows?
build/amx-types.o: $(MODULE)/llama-signatures.cpp build/ggml-version.h
\t$(CXX) -std=c++17 $(FLAGS) -c $< -o $@

# What ggml's own configure writes.
build/ggml-version.h:
\t@mkdir -p build
\tprintf '#define GGML_VERSION \"vendored\"\\n#define GGML_COMMIT \"none\"\\n' > $@

$(OBJ): build/ggml-version.h

# It registers the buffer type only if the compiler has AMX flags, or thinks so.
build/src/ggml-cpu/ggml-cpu.cpp.o: FLAGS += -include $(MODULE)/amx-macros.h

build/%.c.o: $(GGML)/%.c
\t@mkdir -p $(@D)
\t$(CC) -std=c11 $(FLAGS) -c $< -o $@

build/%.cpp.o: $(GGML)/%.cpp
\t@mkdir -p $(@D)
\t$(CXX) -std=c++17 $(FLAGS) -c $< -o $@

-include $(OBJ:.o=.d) build/amx-types.d
";

/// Newer versions of the packages that are pinned; `above` are the rows of the pinned ones.
fn newer(bench: &Bench, above: &[Row]) -> Vec<Row> {
    let packages = [
        (&fetch::HOST, Kind::Llama, "llama.cpp, Python package", "llama.cpp"),
        (&fetch::LATER, Kind::Later, "llama.cpp, Rust package", "llama.cpp, later"),
        (&fetch::IK, Kind::IkOurs, "ik_llama.cpp, Python package", "ik_llama.cpp"),
        (&fetch::NODE, Kind::Dl, "node-llama-cpp", "node-llama-cpp, prebuilt"),
    ];
    let look = |(package, kind, name, pinned): (&fetch::Package, Kind, &'static str, &'static str)| {
        println!("  newest {name}");
        let begin = Instant::now();
        let mut cells = vec![format!("newest {name}"), String::new(), String::new()];
        let done = newest(bench, package, kind, &mut cells, above.iter().find(|row| row.cells[0] == pinned));
        cells.resize(7, "-".into());
        cells.push(match &done {
            Err(_) => "FAILED".into(),
            Ok(false) => "not looked at".into(),
            Ok(true) => util::seconds(begin.elapsed()),
        });
        Row { failed: done.err().map(|why| format!("newest {name}: {why}")), cells, is_absent: false }
    };
    packages.into_iter().map(look).collect()
}

/// Whether it was looked at, here or in the row of the pinned version.
fn newest(
    bench: &Bench,
    package: &fetch::Package,
    kind: Kind,
    cells: &mut Vec<String>,
    pinned: Option<&Row>,
) -> Result<bool> {
    let newest = package.newest(&Cache::open()?)?;
    cells[1].clone_from(&newest.version);
    if newest.version == package.version() {
        cells[2] = "is the pinned one".into();
        return match pinned {
            None => Ok(false),
            Some(Row { failed: Some(_), .. }) => Err("is the pinned one, which failed".into()),
            Some(_) => Ok(true),
        };
    }
    let source = fetch::other_version(&Cache::open()?, package, &newest)?;
    let version = newest.version;
    let libraries = if kind == Kind::Dl {
        cells[2] = "by function".into();
        vec![source.join("libggml-base.so"), library(&source, "libggml.")?, source, bench.ours.clone()]
    } else {
        cells[2] = if kind.is_ik() { "linked" } else { "swapped in" }.into();
        let host = host::of_tree(kind, source, &format!("newest-{}-{version}", kind.name()))?;
        if kind.is_ik() { vec![host.build.join("ggml/src/libggml.so")] } else { shared(&host) }
    };
    bench.check(&Made { version, libraries, llama: None, loader: None }, cells)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_and_equal_ones_do_not_diverge() {
        let row = log_softmax(&[1.0, 2.0, -3.0, 100.0]);
        assert!((row.iter().map(|p| p.exp()).sum::<f64>() - 1.0).abs() < 1e-12);
        let other = log_softmax(&[2.0, 3.0, -2.0, 101.0]);
        let kld: f64 = row.iter().zip(&other).map(|(p, q)| p.exp() * (p - q)).sum();
        assert!(kld.abs() < 1e-12);
    }

    #[test]
    fn names_are_different() {
        let mut names: Vec<&str> = ENTRIES.iter().map(|entry| entry.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ENTRIES.len());
    }
}

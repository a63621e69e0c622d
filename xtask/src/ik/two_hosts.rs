//! Several hosts in one process, each with a part of the program that calls this library's functions: llama.cpp and
//! ik_llama.cpp are both served, each by its own structs, and a second one of either kind by a copy of this library.
//! Then two ik_llama.cpp with this library preloaded.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use super::{SYSTEM_LIBRARIES, objects};
use crate::{
    cache::{self, Cache},
    demo::Plan,
    fetch,
    host::{self, Host, Kind},
    preload, program,
    util::{self, Result, io},
};

/// What a part says of a tensor in this library's buffer type, in llama.cpp and in an ik_llama.cpp that has computed
/// nothing yet.
const PACKED: &str = "13824 bytes, packed";
const PLAIN: &str = "13824 bytes, as they are";
/// What a part says of a product that is right.
const PRODUCT: &str = "a product of 96 x 512 and 40";
/// Links with this library.
const OURS: &str = "-l:libggml_amx.so";

/// Where the program and its parts are built, and from what.
struct Bench {
    dir: PathBuf,
    /// ggml 0.20, as a package has it.
    llama: PathBuf,
    ik: Host,
    /// The folder of this library.
    ours: PathBuf,
}

/// False: the package index does not serve ggml 0.20.
pub fn check() -> Result<bool> {
    let ik = host::ensure(Kind::Ik)?;
    let Some(llama) = fetch::older_ggml(&Cache::open()?)? else { return Ok(false) };
    let dir = util::target().join("two_hosts");
    cache::remove(&dir)?;
    io("create", &dir, fs::create_dir_all(&dir))?;
    let bench = Bench { dir, llama, ik, ours: host::our_libraries()? };
    bench.copy_ik()?;
    bench.copy_llama()?;
    let program = bench.dir.join("two_hosts");
    let source = util::repo().join("c_tests/tools/two_hosts.c");
    bench.compile(&[&source.display().to_string(), "-ldl"], &program)?;
    bench.linked(&program)?;
    let products = bench.preloaded(&program)?;
    println!("  in one process: two of ggml 0.20 and two ik_llama.cpp, each served; preloaded, {products}");
    Ok(true)
}

impl Bench {
    /// ik_llama.cpp's library under two names, for libraries of one name are one to the loader.
    fn copy_ik(&self) -> Result<()> {
        for name in ["ggml_first", "ggml_second"] {
            let mut link = Command::new(&self.ik.compiler.cxx);
            link.arg("-shared").arg(format!("-Wl,-soname,lib{name}.so"));
            link.arg("-o").arg(self.dir.join(format!("lib{name}.so")));
            link.args(objects(&self.ik.build.join("ggml/src/CMakeFiles"))?).args(SYSTEM_LIBRARIES);
            util::capture(&mut link, &cache::log("two-hosts-link")?)?;
        }
        Ok(())
    }

    /// llama.cpp's libraries under other names.
    fn copy_llama(&self) -> Result<()> {
        for part in ["", "-base", "-cpu"] {
            let (from, to) = (format!("libggml{part}.so"), format!("libggmk{part}.so"));
            renamed(&self.llama.join("lib64").join(from), &self.dir.join(&to))?;
            let versioned = self.dir.join(format!("{to}.0"));
            io("create", &versioned, symlink(self.dir.join(to), &versioned))?;
        }
        Ok(())
    }

    fn compile(&self, arguments: &[&str], to: &Path) -> Result<()> {
        let mut gcc = Command::new(&self.ik.compiler.cc);
        gcc.args(["-O1", "-Wall", "-Wextra", "-Werror"]).arg(format!("-I{}", util::repo().join("include").display()));
        gcc.args(arguments).arg("-o").arg(to);
        util::capture(&mut gcc, &cache::log("two-hosts")?).map(|_| ())
    }

    /// A part of the program: `source` of `c_tests/tools` with one host's headers and libraries.
    fn part(&self, name: &str, source: &str, headers: &Path, libraries: &Path, names: &[&str]) -> Result<PathBuf> {
        let to = self.dir.join(format!("lib{name}.so"));
        let find = |dir: &Path| [format!("-L{}", dir.display()), format!("-Wl,-rpath,{}", dir.display())];
        let source = util::repo().join("c_tests/tools").join(source).display().to_string();
        let headers = headers.display().to_string();
        let (theirs, ours) = (find(libraries), find(&self.ours));
        let mut arguments = vec!["-shared", "-fPIC", "-Wl,--no-as-needed", "-isystem", &headers, &source];
        arguments.extend(theirs.iter().chain(&ours).map(String::as_str));
        arguments.extend(names);
        self.compile(&arguments, &to).map(|()| to)
    }

    /// Two of each kind, which call this library's functions.
    fn linked(&self, program: &Path) -> Result<()> {
        let (of_llama, of_ik) = (self.llama.join("include"), self.ik.source.join("ggml/include"));
        let (shim, first) = ("two_hosts_shim.c", self.llama.join("lib64"));
        let parts = [
            self.part("llama", shim, &of_llama, &first, &["-lggml", "-lggml-cpu", "-lggml-base", OURS])?,
            self.part("ik", shim, &of_ik, &self.dir, &["-lggml_first", OURS])?,
            self.part("second_ik", shim, &of_ik, &self.dir, &["-lggml_second", OURS])?,
            self.part("second_llama", shim, &of_llama, &self.dir, &["-lggmk", "-lggmk-cpu", "-lggmk-base", OURS])?,
        ];
        says(run(program, &parts), &[PACKED, "0", PLAIN, "0", PLAIN, "0", PACKED, "0"]).map(|_| ())
    }

    /// Two ik_llama.cpp that know nothing of this library; the line with the products of each, which are the same.
    fn preloaded(&self, program: &Path) -> Result<String> {
        let of_ik = self.ik.source.join("ggml/include");
        let parts = [
            self.part("product", "two_hosts_product.c", &of_ik, &self.dir, &["-lggml_first"])?,
            self.part("second_product", "two_hosts_product.c", &of_ik, &self.dir, &["-lggml_second"])?,
        ];
        let mut run = run(program, &parts);
        run.env("LD_PRELOAD", preload::ensure()?).env("GGML_AMX_MODE", "packed").env("GGML_AMX_REPORT", "products");
        let log = says(run, &[PRODUCT, "0", PRODUCT, "0"])?;
        let ours: Vec<&str> = log.lines().filter(|line| line.contains("products: MUL_MAT ")).collect();
        match ours[..] {
            [first, second] if first == second => Ok(first.to_string()),
            _ => Err(format!("of two preloaded ik_llama.cpp each should have made its products here: {log}")),
        }
    }
}

fn run(program: &Path, parts: &[PathBuf]) -> Command {
    let mut run = Command::new(program);
    run.args(parts);
    program::clean(&mut run);
    run.env("GGML_AMX_ISA", Plan::new().settings().isa.unwrap_or("amx"));
    run
}

/// Every host is asked twice and must say the same; what was logged.
fn says(mut run: Command, turn: &[&str]) -> Result<String> {
    let output = util::capture(&mut run, &cache::log("two-hosts")?)?;
    let expected = [turn, turn].concat();
    if output.stdout.lines().eq(expected.iter().copied()) {
        return Ok(output.stderr);
    }
    Err(format!("hosts in one process said {:?} instead of {expected:?}; {}", output.stdout, output.stderr))
}

/// A copy of a library of ggml under names that the loader does not know yet: `ggmk` where it says `ggml` in names of
/// files.
fn renamed(from: &Path, to: &Path) -> Result<()> {
    let mut bytes = io("read", from, fs::read(from))?;
    for name in [&b"libggml.so"[..], b"libggml-base.so", b"libggml-cpu.so"] {
        let places = bytes.windows(name.len()).enumerate().filter(|(_, w)| *w == name);
        for at in places.map(|(at, _)| at).collect::<Vec<_>>() {
            bytes[at + b"libggm".len()] = b'k';
        }
    }
    io("write", to, fs::write(to, bytes))
}

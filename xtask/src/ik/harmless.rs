//! Processes that the preloaded library must not harm: hosts that Python loads in a scope of their own, programs that
//! are no hosts at all, and other libraries that stand in front of ik_llama.cpp.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use super::short_answer;
use crate::{
    cache::{self, Cache},
    chat,
    demo::Plan,
    fetch,
    host::{self, Host, Kind},
    preload, program,
    util::{self, Result, io},
};

/// Makes a CPU backend, in either host.
const LOCAL: &str = "\
import ctypes, sys
lib = ctypes.CDLL(sys.argv[1])
if hasattr(lib, 'ggml_backend_reg_init_backend_from_str'):
    make = lib.ggml_backend_reg_init_backend_from_str
    make.restype, make.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    print('ik', make(b'CPU') is not None, lib.ggml_backend_reg_get_count() >= 1)
else:
    make = lib.ggml_backend_init_by_type
    make.restype, make.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    print('llama', make(0, None) is not None)
";

/// A process, and how to start it.
type Process<'a> = (&'static str, Box<dyn Fn() -> Command + 'a>);

/// All of them must do the same as without the preloaded library, but for what it says itself in ik_llama.cpp.
pub fn check() -> Result<()> {
    let plan = Plan::new();
    let library = preload::ensure()?;
    let (llama, ik) = (host::ensure(Kind::Later)?, host::ensure(Kind::Ik)?);
    let [llama_library, ik_library] = [&llama, &ik].map(|host| host.lib_dirs()[0].join("libggml.so"));
    let tools = Bystanders::build(&ik)?;
    let processes: [Process<'_>; 7] = [
        ("llama.cpp, loaded by Python", Box::new(|| command("python3", &["-c", LOCAL], Some(&llama_library)))),
        ("ik_llama.cpp, loaded by Python", Box::new(|| command("python3", &["-c", LOCAL], Some(&ik_library)))),
        ("ik_llama.cpp whose callback throws", Box::new(|| command(&tools.throwing, &[], None))),
        ("Python", Box::new(|| command("python3", &["-c", "print(1)"], None))),
        (
            "a program with functions of the same names",
            Box::new(|| command(&tools.program, &[], Some(&tools.its_library))),
        ),
        ("a shell", Box::new(|| command("sh", &["-c", "echo $((6 * 7))"], None))),
        ("a compiler", Box::new(|| command("gcc", &["-xc", "-E", "/dev/null"], None))),
    ];
    for process in &processes {
        for mode in ["auto", "off"] {
            same_with_and_without(process, mode, plan.settings().isa, &library)?;
        }
    }
    println!("  preloaded into {}: nobody noticed", processes.map(|(what, _)| what).join(", "));
    beside_another_library(&plan, &ik, &library, &tools.front)
}

fn command(program: impl AsRef<std::ffi::OsStr>, args: &[&str], last: Option<&Path>) -> Command {
    let mut command = Command::new(program);
    command.args(args).args(last);
    command
}

/// Status and outputs of a process must not depend on the preloaded library.
fn same_with_and_without((what, start): &Process<'_>, mode: &str, isa: Option<&str>, library: &Path) -> Result<()> {
    let run = |preload: Option<&Path>| -> Result<(ExitStatus, Vec<u8>, String)> {
        let mut command = start();
        program::clean(&mut command);
        command.env("GGML_AMX_MODE", mode).envs(isa.map(|isa| ("GGML_AMX_ISA", isa)));
        command.envs(preload.map(|library| ("LD_PRELOAD", library)));
        let output = command.output().map_err(|e| format!("{what} could not be started: {e}"))?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let ours = |line: &&str| !(what.starts_with("ik") && line.starts_with("ggml-amx: "));
        let errors = errors.lines().filter(ours).collect::<Vec<_>>().join("\n");
        Ok((output.status, output.stdout, errors))
    };
    let (without, with) = (run(None)?, run(Some(library))?);
    if without.0.success() && without == with {
        return Ok(());
    }
    Err(format!("{what}, GGML_AMX_MODE={mode}: {without:?} without the preload, with it {with:?}"))
}

/// Another library that stands in front of ik_llama.cpp and counts graphs (`front`) must be called as before, whichever
/// of the two comes first.
fn beside_another_library(plan: &Plan, host: &Host, library: &Path, front: &Path) -> Result<()> {
    let model = fetch::model(&Cache::open()?)?;
    let answer = |preload: &[&Path]| {
        let mut run = short_answer(plan, &host.program("llama-cli"), &model)?;
        plan.settings().apply(&mut run, false);
        run.env("LD_PRELOAD", preload.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(":"));
        let output = util::capture(&mut run, &cache::log("ik-front")?)?;
        Ok::<_, String>((output.stdout, output.stderr.contains("many graphs")))
    };
    let without = answer(&[front])?;
    for both in [[front, library], [library, front]] {
        let with = answer(&both)?;
        if with.1 != without.1 || !with.1 || chat::garbage(&with.0).is_some() {
            return Err(format!(
                "preloaded with another library that counts graphs, {both:?}: {with:?}, alone {without:?}"
            ));
        }
    }
    println!("  preloaded before and behind another library that stands in front of ik_llama.cpp: both are called");
    Ok(())
}

/// Programs and libraries of `c_tests/tools`.
struct Bystanders {
    /// Has functions of the same names as ik_llama.cpp's in a library that it loads.
    program: PathBuf,
    its_library: PathBuf,
    /// Stands in front of ik_llama.cpp's functions as this library does.
    front: PathBuf,
    /// A program of ik_llama.cpp's whose callback throws.
    throwing: PathBuf,
}

impl Bystanders {
    fn build(host: &Host) -> Result<Self> {
        let (tools, dir) = (util::repo().join("c_tests/tools"), host.build.join("bystanders"));
        io("create", &dir, fs::create_dir_all(&dir))?;
        let headers = format!("-I{}", host.source.join("ggml/include").display());
        let libraries = host.lib_dirs()[0].display().to_string();
        let [find, at] = [format!("-L{libraries}"), format!("-Wl,-rpath,{libraries}")];
        let build = |source: &str, name: &str, flags: &[&str]| {
            let to = dir.join(name);
            let compiler = if source.ends_with(".c") { &host.compiler.cc } else { &host.compiler.cxx };
            let mut compile = Command::new(compiler);
            compile.args(["-O1", "-Wall", "-Wextra", "-Werror"]).arg(tools.join(source)).args(flags).arg("-o").arg(&to);
            util::capture(&mut compile, &cache::log("bystanders")?).map(|_| to)
        };
        Ok(Self {
            program: build("bystander.cpp", "bystander", &["-ldl"])?,
            its_library: build("bystander_library.cpp", "libbystander.so", &["-shared", "-fPIC"])?,
            front: build("bystander_front.c", "libfront.so", &["-shared", "-fPIC", "-ldl"])?,
            throwing: build("throwing.cpp", "throwing", &[&headers, &find, &at, "-lggml"])?,
        })
    }
}

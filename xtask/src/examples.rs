//! `cargo xtask examples`: installs this library, and builds and runs `examples/` against it as a user would.
//!
//! Every example compares its own results and ends with 0 only if they are right. It runs with each instruction set
//! that this machine has, and as its user would start it: without AMX the library steps aside then.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cache::{self, Cache},
    compiler::{self, Compiler},
    cpu, fetch, host,
    products::{Products, REPORT},
    test::Options,
    util::{self, Result},
};

/// One folder of `examples/`.
struct Example {
    name: &'static str,
    /// Whether it is a program on ggml. There the library offers a buffer type, or steps aside.
    is_on_ggml: bool,
}

const PACK: Example = Example { name: "pack_and_multiply", is_on_ggml: false };
const OWN: Example = Example { name: "own_ggml_program", is_on_ggml: true };

/// Where examples are built, and with what.
struct Bench {
    tools: PathBuf,
    compiler: Compiler,
    dir: PathBuf,
}

/// All of them; `options.quick` leaves out the one that needs a ggml.
pub fn run(options: &Options) -> Result<()> {
    let cache = Cache::open()?;
    let bench = Bench {
        tools: fetch::tools(&cache)?,
        compiler: compiler::system()?,
        dir: cache.path(format!("builds/examples-{:08x}", cache::fnv(util::repo().to_string_lossy().bytes()) >> 32)),
    };
    cache::remove(&bench.dir)?;
    let installed = bench.install()?;
    bench.check(options, &PACK, &installed, None)?;
    if options.quick {
        options.skip("the example on ggml", "--quick");
        return Ok(());
    }
    match fetch::older_ggml(&cache)? {
        Some(ggml) => bench.check(options, &OWN, &installed, Some(&ggml)),
        None => {
            options.skip("the example on ggml", fetch::NOT_SERVED);
            Ok(())
        }
    }
}

impl Bench {
    /// Installs this library as docs/building.md does, from the libraries that cargo has built; returns the prefix.
    fn install(&self) -> Result<PathBuf> {
        let (build, prefix) = (self.dir.join("package"), self.dir.join("prefix"));
        let archive = host::our_libraries()?.join("libggml_amx.a");
        let library = format!("-DGGML_AMX_LIBRARY={}", archive.display());
        self.configure_and_build(&util::repo().join("cmake"), &build, &[library])?;
        let mut install = host::cmake(&self.tools);
        install.arg("--install").arg(&build).arg("--prefix").arg(&prefix);
        util::capture(&mut install, &cache::log("examples-install")?)?;
        Ok(prefix)
    }

    fn configure_and_build(&self, source: &Path, build: &Path, options: &[String]) -> Result<()> {
        let mut configure = host::cmake(&self.tools);
        configure.arg("-S").arg(source).arg("-B").arg(build).arg("-GNinja").args(options);
        configure.arg("-DCMAKE_BUILD_TYPE=Release");
        configure.arg(format!("-DCMAKE_C_COMPILER={}", self.compiler.cc));
        configure.arg(format!("-DCMAKE_CXX_COMPILER={}", self.compiler.cxx));
        util::capture(&mut configure, &cache::log("examples-configure")?)?;
        let mut make = host::cmake(&self.tools);
        make.arg("--build").arg(build);
        util::capture(&mut make, &cache::log("examples-build")?).map(|_| ())
    }

    /// Builds one with every warning an error, and runs it once for each instruction set.
    fn check(&self, options: &Options, example: &Example, installed: &Path, ggml: Option<&Path>) -> Result<()> {
        let build = self.dir.join(example.name);
        let warnings = "-Wall -Wextra -Wpedantic -Werror";
        let mut arguments = vec![
            format!("-DCMAKE_PREFIX_PATH={}", installed.display()),
            format!("-DCMAKE_C_FLAGS={warnings}"),
            format!("-DCMAKE_CXX_FLAGS={warnings}"),
        ];
        // Its package lies in lib64, where CMake looks on some distributions only.
        arguments.extend(ggml.map(|root| format!("-Dggml_DIR={}", root.join("lib64/cmake/ggml").display())));
        self.configure_and_build(&util::repo().join("examples").join(example.name), &build, &arguments)?;
        let cpu = cpu::detect();
        for isa in isas(cpu.amx, cpu.avx512_vnni) {
            let mut program = Command::new(build.join(example.name));
            program.env_remove("GGML_AMX_ISA").env_remove("GGML_AMX_MODE").env_remove("GGML_AMX_PRECISION");
            program.envs(isa.map(|isa| ("GGML_AMX_ISA", isa))).envs([REPORT]);
            let output = util::capture(&mut program, &cache::log(&format!("example-{}", example.name))?)?;
            let steps_aside = example.is_on_ggml && isa.is_none() && !cpu.amx;
            judge(&output.stdout, &output.stderr, steps_aside, cpu.amx && isa.is_none())
                .map_err(|why| format!("{} (GGML_AMX_ISA={}): {why}", example.name, isa.unwrap_or("")))?;
            options.pass(1);
        }
        println!("  {}: built by find_package, right with every instruction set here", example.name);
        Ok(())
    }
}

/// No ceiling, then each ceiling that this machine reaches.
fn isas(has_amx: bool, has_avx512: bool) -> Vec<Option<&'static str>> {
    let ceilings = [("avx512", has_amx || has_avx512), ("portable", true)];
    let reached = ceilings.into_iter().filter(|(_, reached)| *reached).map(|(isa, _)| Some(isa));
    std::iter::once(None).chain(reached).collect()
}

/// Checks that an example said that its results are right and that there was no AMX, if so; and that the products were
/// this library's.
fn judge(output: &str, log: &str, steps_aside: bool, on_amx: bool) -> Result<()> {
    if output.lines().next_back() != Some("right") {
        return Err(format!("the last line is not `right`:\n{output}"));
    }
    if !on_amx && !output.contains("without AMX") && !output.contains("type AMX") {
        return Err(format!("it does not say that there is no AMX:\n{output}"));
    }
    let count = Products::of(log).map_or(0, |products| products.matrices(&[]));
    if steps_aside != (count == 0) {
        return Err(format!("{count} products were this library's"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_is_one_that_is_run() {
        let dir = util::repo().join("examples");
        let mut folders: Vec<String> = std::fs::read_dir(&dir)
            .unwrap()
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        folders.sort();
        assert_eq!(folders, [OWN.name, PACK.name]);
    }

    #[test]
    fn wrong_results_silence_about_amx_and_other_peoples_products_are_noticed() {
        let (two, none) = ("ggml-amx: products: MUL_MAT vectors 2", "");
        assert_eq!(judge("without AMX: no\nright\n", two, false, false), Ok(()));
        assert_eq!(judge("ggml-amx steps aside (without AMX: no)\nright\n", none, true, false), Ok(()));
        assert_eq!(judge("kernels: AMX\nright\n", two, false, true), Ok(()));
        for (output, log, steps_aside, on_amx) in [
            ("without AMX: no\nWRONG\n", two, false, false),
            ("right\n", two, false, false),
            ("without AMX: no\nright\n", none, false, false),
            ("without AMX: no\nright\n", two, true, false),
        ] {
            assert!(judge(output, log, steps_aside, on_amx).is_err(), "{output} {log}");
        }
    }

    #[test]
    fn each_instruction_set_of_this_machine_is_taken() {
        assert_eq!(isas(false, false), [None, Some("portable")]);
        assert_eq!(isas(true, true), [None, Some("avx512"), Some("portable")]);
    }
}

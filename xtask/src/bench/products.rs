//! `benches/hosts/products.cpp` linked with one build: times of graphs of one product.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    cache,
    host::Host,
    json::{self, Json},
    products::{self, Floor},
    util::{self, Result},
};

/// One run of the program, on two busy cores.
const TIME_LIMIT: Duration = Duration::from_secs(20 * 60);

/// The program of one build.
#[derive(Clone, Debug)]
pub struct Program {
    file: PathBuf,
    /// What the build is.
    pub what: String,
}

impl Program {
    /// Compiled by the build's compiler.
    pub fn build(host: &Host, out: &Path) -> Result<Self> {
        let dir = util::repo().join("benches/hosts");
        let name = format!("products-{}", host.kind.name());
        let file = out.join(&name);
        let lib_dir = host.cpu_library().parent().expect("libraries lie in a directory").display().to_string();
        let mut compile = Command::new(&host.compiler.cxx);
        compile.args(["-std=c++17", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]).arg("-I").arg(&dir);
        for include in host.include_dirs() {
            compile.arg("-isystem").arg(include);
        }
        compile.arg(dir.join("products.cpp")).arg("-o").arg(&file);
        compile.args([format!("-L{lib_dir}"), format!("-Wl,-rpath,{lib_dir}")]).args(["-lggml-cpu", "-lggml-base"]);
        util::capture(&mut compile, &cache::log(&format!("bench-{name}"))?)?;
        Ok(Self { file, what: format!("{}, {}", host.requirement(), host.built_by()) })
    }

    /// The lines it prints with weights in this buffer type, in an environment without settings from outside.
    pub fn run(&self, buffer: &str, threads: usize, args: &[String]) -> Result<Vec<Json>> {
        let mut command = Command::new(&self.file);
        for (key, _) in std::env::vars_os() {
            let text = key.to_string_lossy();
            if ["GGML_", "LD_", "OMP_", "GOMP_"].iter().any(|p| text.starts_with(p)) {
                command.env_remove(&key);
            }
        }
        let (report, value) = products::REPORT;
        command.env(report, value).env("GGML_NO_BACKTRACE", "1");
        command.args(["--buffer", buffer, "--threads", &threads.to_string()]).args(args);
        let log = cache::log(&format!("bench-products-{buffer}"))?;
        let output = util::capture_within(&mut command, &log, TIME_LIMIT)?;
        let lines: Vec<Json> =
            output.stdout.lines().filter(|l| l.starts_with('{')).map(json::parse).collect::<Result<_>>()?;
        // Every line is of a product that was computed.
        if buffer == "AMX" {
            let due = Floor { matrices: lines.len() as u64, ..Floor::default() };
            due.check(&output.stderr)?;
        } else if !products::none(&output.stderr) {
            return Err(format!("this library multiplied weights in a buffer of type {buffer}"));
        }
        Ok(lines)
    }
}

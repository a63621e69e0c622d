//! Developer commands: `cargo xtask COMMAND`. `cargo xtask --help` lists them.

mod bench;
mod c_tests;
mod cache;
mod chat;
mod cmake_tests;
mod compiler;
mod copies;
mod cpu;
mod demo;
mod examples;
mod fetch;
mod fork;
mod gguf;
mod header;
mod host;
mod ik;
mod json;
mod matrix;
mod memory;
mod mutants;
mod neighbours;
mod preload;
mod products;
mod program;
mod race;
mod score;
mod skips;
mod slice;
mod speed;
mod stats;
mod style;
mod symbols;
mod table;
mod test;
mod text;
mod util;
mod verify;

use std::process::ExitCode;

use host::Kind;
use util::Result;

const HELP: &str = "Developer commands of ggml-amx

  cargo xtask demo         llama.cpp with its AMX code replaced by this library: a chat, a table of speeds
  cargo xtask test         every check; what CI runs
  cargo xtask verify       quality of generated text against the host's plain path
  cargo xtask bench        products beside those of other hosts and the machine's limits; whole models
  cargo xtask hosts        downloads and builds the real hosts

Parts of `test`, and checks that are run by hand:

  cargo xtask style        columns of comments and prose, sizes, SAFETY comments, circles of files
  cargo xtask c-tests      the C and C++ tests
  cargo xtask cmake-tests  the CMake modules, on small trees
  cargo xtask examples     examples/, built and run
  cargo xtask fork         a fork of ik_llama.cpp that asks this library by function
  cargo xtask memory       hosts where memory is short
  cargo xtask race         what threads share, under ThreadSanitizer
  cargo xtask neighbours   whether answers depend on what a server computes at the same time
  cargo xtask mutants      planted defects, each of which a test must find
  cargo xtask header       writes include/ggml-amx.h and c_tests/types.h

`cargo xtask COMMAND --help` says more. Downloads, builds and logs go to $GGML_AMX_CACHE,
else $XDG_CACHE_HOME/ggml-amx, else ~/.cache/ggml-amx.";

const HOSTS_HELP: &str = "cargo xtask hosts [KIND ...]
cargo xtask hosts --check [--quick] [--newest] [NAME ...]

Fetches the pinned sources of llama.cpp and ik_llama.cpp and builds them. Without KIND: all of them.

  llama    shared libraries and programs, C++ AMX code replaced by this library
  cpp-amx  libggml-cpu with the host's own C++ AMX backend, built by clang: the baseline
  static   static libraries, no AMX compiler flags, this library linked in
  dl       DL backends, no AMX compiler flags, this library linked in
  later    a later version (ggml 0.26): shared libraries, this library in the place of its AMX code
  earlier  an earlier version (ggml 0.9), the same
  ik       ik_llama.cpp as it is, to compare with
  ik-amx   the same with this library linked in

--check checks every host that is served: are its structs found, do bytes come back from buffers, are products and a
real model's logits right. It writes the table of docs/hosts.md. Some hosts are built first, some downloaded: Debian's
unstable distribution in its version of today, into a folder of its own.

  NAME      only these rows of the table
  --quick   only those that CI has time for
  --newest  also newer versions that the packages' indexes have

Needs gcc, g++, python3 with venv, and binutils; for cpp-amx clang 14 or newer, or gcc 13 or newer.";

const DEMO_HELP: &str = "cargo xtask demo [--quick] [--host ik]

Builds llama.cpp with this library, proves that the C++ AMX backend is gone, asks a chat model a question, and measures
both. Commands are printed with their environment, to be copied into a shell. Without AMX it says so and uses what the
CPU has.

  --quick    no table of speeds; in ik_llama.cpp one of a single turn
  --host ik  in ik_llama.cpp: this library in place and packed beside ik_llama.cpp without it";

const VERIFY_HELP: &str = "cargo xtask verify [--host ik] [--upcycled] [--exact] [--types LIST] [--tokens N] [--json]

Mean KL divergence, same top token and perplexity of SmolLM2 against the same weights in F32: this library and the
host's plain path, side by side. Fails when this library is worse, or has not packed the weights.

  --host ik     in ik_llama.cpp: in place (also with -rtr) and packed, beside ik_llama.cpp without this library; also
                generates 2,000 tokens while every result is searched for NaN
  --upcycled    a mixture of 8 experts that equals the dense model, against the dense weights in F32;
                takes 5 GB of disk for a while
  --exact       with GGML_AMX_PRECISION=exact, whose KL divergence may be a tenth of the host's
  --types LIST  weight types, separated by commas, or `all`: every type llama-quantize writes;
                default Q4_1,Q4_0,Q8_0,Q6_K (in ik_llama.cpp also IQ4_K), with --upcycled Q4_0,Q4_K
  --tokens N    length of the text, at least 4096; default 8192
  --json        the last line printed is a JSON array";

const FORK_HELP: &str = "cargo xtask fork [--verify]

Makes a fork of ik_llama.cpp that has a list of buffer types, chooses one for every tensor, and asks this library by
function who computes a node. Builds it with the installed package, once alone and once with the module; lets a dense
model and a mixture of experts answer in it. Before that: several hosts in one process, and the preloaded library in
hosts that were linked in other ways and in programs that are no hosts.

  --verify  also mean KL divergence and perplexity, against ik_llama.cpp as it is";

const EXAMPLES_HELP: &str = "cargo xtask examples [--quick]

Installs this library, builds examples/ with find_package as a user would, and runs them with each instruction set that
this machine has.

  --quick   not the one on ggml, which needs a package with a prebuilt ggml";

const C_TESTS_HELP: &str = "cargo xtask c-tests [--quick]

Builds and runs the programs in c_tests/, plain and with sanitizers, alone and on real hosts (c_tests/README.md), and
compiles the header with every compiler that is here.

  --quick   no real hosts";

const CMAKE_TESTS_HELP: &str = "cargo xtask cmake-tests

Configures and builds the small trees in cmake/tests with the modules in cmake/: what is replaced, what is refused, with
which words, and what is installed.";

const MEMORY_HELP: &str = "cargo xtask memory

Lets real hosts answer with little memory: below limits of addresses and of private memory, in a small control group if
one can be made, and with locked memory. What loads without this library must load with it.";

const HEADER_HELP: &str = "cargo xtask header

Writes include/ggml-amx.h from the sources in src/capi/ and the table of weight types, and c_tests/types.h from the
table.";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = args.split_first().map_or(("--help", &[][..]), |(c, r)| (c.as_str(), r));
    let help = match command {
        "hosts" => HOSTS_HELP,
        "demo" => DEMO_HELP,
        "verify" => VERIFY_HELP,
        "test" => test::HELP,
        "c-tests" => C_TESTS_HELP,
        "examples" => EXAMPLES_HELP,
        "bench" => bench::HELP,
        "race" => race::HELP,
        "style" => style::HELP,
        "header" => HEADER_HELP,
        "cmake-tests" => CMAKE_TESTS_HELP,
        "fork" => FORK_HELP,
        "memory" => MEMORY_HELP,
        "mutants" => mutants::HELP,
        "neighbours" => neighbours::HELP,
        "--help" | "-h" | "help" => HELP,
        other => return usage(&format!("no command `{other}`"), HELP),
    };
    let wants_help = rest.iter().any(|a| a == "--help" || a == "-h");
    if wants_help || help == HELP {
        println!("{help}");
        return ExitCode::SUCCESS;
    }
    let outcome = match command {
        "test" => match test::Options::parse(rest) {
            Ok(options) => return test::run(&options),
            Err(e) => return usage(&e, help),
        },
        "hosts" if rest.iter().any(|a| a == "--check") => Ok(check_hosts(rest)),
        "hosts" => kinds(rest).map(|kinds| hosts(&kinds)),
        "demo" => demo_options(rest).map(|(quick, is_ik)| if is_ik { ik::demo(quick) } else { demo::run(quick) }),
        "verify" => verify_options(rest).map(|options| verify(&options)),
        "bench" => bench::Options::parse(rest).map(|options| bench::run(&options)),
        "c-tests" => quick(rest).map(|quick| c_tests::run(&test::Options::new(quick, false))),
        "examples" => quick(rest).map(|quick| examples::run(&test::Options::new(quick, false))),
        "cmake-tests" => nothing(rest).map(|()| cmake_tests::run()),
        "race" => nothing(rest).map(|()| race::run(&test::Options::new(false, false))),
        "style" => nothing(rest).map(|()| style::run()),
        "fork" => only(rest, "--verify").map(by_function),
        "memory" => nothing(rest).map(|()| memory::run(|what, why| println!("  SKIPPED {what}: {why}"))),
        "mutants" => Ok(mutants::run(rest)),
        "neighbours" => neighbours::Options::parse(rest).map(|options| neighbours::run(&options)),
        _ => nothing(rest).map(|()| header::run()),
    };
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(why)) => {
            eprintln!("cargo xtask {command} FAILED: {why}");
            ExitCode::FAILURE
        }
        Err(wrong_use) => usage(&wrong_use, help),
    }
}

fn usage(what: &str, help: &str) -> ExitCode {
    eprintln!("{what}\n\n{help}");
    ExitCode::from(2)
}

/// `cargo xtask fork`: this library in processes of ik_llama.cpp, and in a fork that calls its functions.
fn by_function(verify: bool) -> Result<()> {
    ik::processes(|what, why| println!("  SKIPPED {what}: {why}"))?;
    fork::run()?;
    if verify { fork::judge() } else { Ok(()) }
}

/// Commands without arguments.
fn nothing(args: &[String]) -> Result<()> {
    args.first().map_or(Ok(()), |other| Err(format!("unknown argument `{other}`")))
}

fn quick(args: &[String]) -> Result<bool> {
    only(args, "--quick")
}

/// Whether the only argument that is allowed was given.
fn only(args: &[String], known: &str) -> Result<bool> {
    match args.iter().find(|a| *a != known) {
        Some(other) => Err(format!("unknown argument `{other}`")),
        None => Ok(!args.is_empty()),
    }
}

/// `--quick`, and whether the host is ik_llama.cpp.
fn demo_options(args: &[String]) -> Result<(bool, bool)> {
    match args.iter().position(|a| a == "--host") {
        None => Ok((quick(args)?, false)),
        Some(at) => {
            let name = args.get(at + 1).ok_or("--host needs a value")?;
            Ok((quick(&[&args[..at], &args[at + 2..]].concat())?, host::is_ik(name)?))
        }
    }
}

fn kinds(args: &[String]) -> Result<Vec<Kind>> {
    let all = [Kind::Llama, Kind::Static, Kind::Dl, Kind::Later, Kind::Earlier, Kind::CppAmx, Kind::Ik, Kind::IkOurs];
    let named = |a: &String| all.into_iter().find(|k| k.name() == a).ok_or(format!("no host `{a}`"));
    if args.is_empty() { Ok(all.into()) } else { args.iter().map(named).collect() }
}

fn check_hosts(args: &[String]) -> Result<()> {
    let has = |flag: &str| args.iter().any(|a| a == flag);
    let names: Vec<String> =
        args.iter().filter(|a| !["--check", "--quick", "--newest"].contains(&a.as_str())).cloned().collect();
    matrix::run(&names, has("--quick"), has("--newest"), |what, why| println!("  SKIPPED {what}: {why}"))
}

fn hosts(kinds: &[Kind]) -> Result<()> {
    for kind in kinds {
        // A host that was asked for by name must build. Without names, this machine may lack its compiler.
        if *kind == Kind::CppAmx && kinds.len() > 1 {
            if host::baseline()?.is_none() {
                println!("  SKIPPED host cpp-amx: {}", compiler::NO_BASELINE);
            }
        } else {
            host::ensure(*kind)?;
        }
    }
    Ok(())
}

fn verify_options(args: &[String]) -> Result<verify::Options> {
    let mut options = verify::Options::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--types" => options.types = value()?.split(',').map(|t| t.trim().to_uppercase()).collect(),
            "--tokens" => options.tokens = value()?.parse().map_err(|_| "--tokens needs a number".to_string())?,
            "--exact" => options.exact = true,
            "--upcycled" => options.upcycled = true,
            "--host" => options.is_ik = host::is_ik(value()?)?,
            "--json" => options.json = true,
            other => return Err(format!("unknown argument `{other}`")),
        }
    }
    Ok(options)
}

fn verify(options: &verify::Options) -> Result<()> {
    if let verify::Outcome::Skipped(why) = verify::run(options)? {
        println!("SKIPPED verify: {why}");
    }
    Ok(())
}

//! `cargo xtask demo --host ik`: ik_llama.cpp with this library linked in, and loaded before programs that were built
//! without it.

mod harmless;
mod relinked;
mod two_hosts;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cache::{self, Cache},
    chat::{self, Answer},
    demo::Plan,
    fetch,
    host::{self, Host, Kind},
    preload, products,
    program::{self, Settings, Way},
    speed, stats, symbols, table,
    util::{self, Result, io},
    verify,
};

/// What a library of ik_llama.cpp needs from the system.
const SYSTEM_LIBRARIES: [&str; 4] = ["-fopenmp", "-lpthread", "-ldl", "-lm"];
/// Fine enough that rounding does not change a word of the answer.
const EXPERTS_TYPE: &str = "Q8_0";

/// A chat answer without and with this library, and a speed table.
pub fn demo(quick: bool) -> Result<()> {
    let plan = Plan::new();
    println!("ggml-amx in ik_llama.cpp ({})", fetch::IK.requirement);
    plan.print();

    println!("\n1. The host");
    let host = host::ensure(Kind::IkOurs)?;
    let model = fetch::model(&Cache::open()?)?;

    println!("\n2. The link");
    println!("  {}\n  {}", host.cpu_library().display(), symbols::check_wrapped(&host)?);
    println!("  {}", fetch::check_untouched(&Cache::open()?, &fetch::IK)?);

    println!("\n3. A chat");
    let alone = chat(&plan, &host, &model)?;
    println!("\n4. The same network as a mixture of experts, in {EXPERTS_TYPE}");
    verify::with_experts(&host, EXPERTS_TYPE, |model| chat(&plan, &host, model))?;
    println!("\n5. A chat without building ik_llama.cpp again");
    preloaded(&plan, &model, &alone)?;
    println!("\n6. Speed");
    speeds(&plan, &host, &model, if quick { 1 } else { speed::Plan::default().rounds })
}

/// The question to the host alone, whose answer comes back, and to this library in every mode.
fn chat(plan: &Plan, host: &Host, model: &Path) -> Result<Answer> {
    let alone = ask(host, model, Way::HostBest, "ik_llama.cpp alone")?;
    println!("\n  > {}\n", chat::QUESTION);
    alone.text.lines().for_each(|line| println!("  {line}"));
    in_every_mode(plan, host, model, None, &alone)?;
    Ok(alone)
}

/// The question to this library, linked in or loaded before the host's.
fn in_every_mode(plan: &Plan, host: &Host, model: &Path, preload: Option<&Path>, alone: &Answer) -> Result<()> {
    for (name, settings) in modes(plan) {
        let settings = Settings { preload, ..settings };
        let answer = ask(host, model, Way::Ours(settings), name)?;
        plan.check(host, model, &settings, &answer).map_err(|why| format!("{name}: {why}"))?;
        compare(name, &answer, alone);
    }
    Ok(())
}

/// An unchanged build, with this library loaded before it: it must say so and answer.
fn preloaded(plan: &Plan, model: &Path, alone: &Answer) -> Result<()> {
    let host = host::ensure(Kind::Ik)?;
    let library = preload::ensure()?;
    println!("  LD_PRELOAD={}", library.display());
    let unchanged = ask(&host, model, Way::HostBest, "ik_llama.cpp as it is")?;
    if !program::our_lines(&unchanged.log).is_empty() {
        return Err("the unchanged build has this library in it".into());
    }
    compare("ik_llama.cpp as it is", &unchanged, alone);
    in_every_mode(plan, &host, model, Some(&library), alone)
}

/// The preloaded library in processes of every kind. `skip` gets what cannot be checked, and why.
pub fn processes(skip: impl FnOnce(&str, &str)) -> Result<()> {
    if !two_hosts::check()? {
        skip("two hosts in one process", "the package index does not serve ggml 0.20");
    }
    relinked::out_of_reach()?;
    relinked::other_arguments()?;
    harmless::check()
}

/// Puts the objects of the shared build into archives, as a static build has them. Calls must reach this library, and
/// the linker must pull in what it calls of the host.
pub fn linked_statically() -> Result<()> {
    let plan = Plan::new();
    let host = host::ensure(Kind::IkOurs)?;
    let model = fetch::model(&Cache::open()?)?;
    let dir = host.build.join("static");
    cache::remove(&dir)?;
    io("create", &dir, fs::create_dir_all(&dir))?;
    let mut ggml = objects(&host.build.join("ggml/src/CMakeFiles"))?;
    ggml.push(host.build.join("ggml-amx.o"));
    let archives = [("libllama.a", objects(&host.build.join("src/CMakeFiles"))?), ("libggml.a", ggml)];
    for (name, members) in &archives {
        let mut ar = Command::new("ar");
        ar.arg("rcs").arg(dir.join(name)).args(members);
        util::capture(&mut ar, &cache::log("ik-static-ar")?)?;
    }
    let program = dir.join("llama-cli");
    let mut link = Command::new(&host.compiler.cxx);
    let names = symbols::wrapped()?;
    link.args(names.iter().map(|name| format!("-Wl,--wrap={name},--undefined={name}"))).arg("-o").arg(&program);
    link.args(objects(&host.build.join("examples/main/CMakeFiles"))?).arg(host.build.join("common/libcommon.a"));
    link.args(archives.iter().map(|(name, _)| dir.join(name)));
    link.args(["-fopenmp", "-lpthread", "-ldl", "-lm", "-lutil", "-lrt"]);
    util::capture(&mut link, &cache::log("ik-static-link")?)?;
    let mut run = short_answer(&plan, &program, &model)?;
    run.current_dir(&dir);
    let settings = Settings { packed: true, ..plan.settings() };
    settings.apply(&mut run, false);
    let (report, value) = products::REPORT;
    run.env(report, value);
    let output = util::capture(&mut run, &cache::log("ik-static")?)?;
    let answer =
        Answer { text: output.stdout.trim().into(), log: output.stderr, command: util::shown_with_environment(&run) };
    plan.check(&host, &model, &settings, &answer).map_err(|why| format!("statically linked: {why}"))?;
    println!("  statically linked: {}", answer.text);
    chat::garbage(&answer.text).map_or(Ok(()), |why| Err(format!("statically linked: {why}")))
}

/// A program of the host that answers the question in a few words.
fn short_answer(plan: &Plan, program: &Path, model: &Path) -> Result<Command> {
    let mut run = Command::new(program);
    // It leaves a log file where it is started.
    run.current_dir(cache::logs()?);
    run.arg("-m").arg(model).args(["-p", &chat::templated(), "--no-display-prompt"]);
    run.args(["--temp", "0", "-n", "32", "-c", "512", "-t", &plan.cpu.threads.to_string()]);
    Ok(run)
}

/// Object files below a directory.
fn objects(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in io("read", dir, fs::read_dir(dir))?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.extend(objects(&path)?);
        } else if path.extension().is_some_and(|e| e == "o") {
            all.push(path);
        }
    }
    all.sort();
    Ok(all)
}

fn modes(plan: &Plan) -> [(&'static str, Settings<'_>); 2] {
    let settings = plan.settings();
    [("this library, in place", settings), ("this library, packed", Settings { packed: true, ..settings })]
}

fn ask(host: &Host, model: &Path, way: Way<'_>, name: &str) -> Result<Answer> {
    let answer = chat::ask(host, model, way)?;
    println!("  {name}\n    $ {}", answer.command);
    for said in program::our_lines(&answer.log) {
        println!("    {said}");
    }
    match chat::garbage(&answer.text) {
        Some(why) => Err(format!("{name}: {why}: {:?}", answer.text)),
        None => Ok(answer),
    }
}

/// Prints how both answers compare. Other words are no error: each kernel rounds activations in its own way, and the
/// last digit of a logit may choose another word.
fn compare(name: &str, answer: &Answer, alone: &Answer) {
    if answer.text == alone.text {
        println!("    the same text");
    } else {
        println!("    other words, as activations are rounded in another way:");
        answer.text.lines().for_each(|line| println!("  {name}: {line}"));
    }
}

fn speeds(plan: &Plan, host: &Host, model: &Path, rounds: usize) -> Result<()> {
    let mut sides = vec![("ik", Way::HostBest), ("ik -rtr", Way::Repacked)];
    let names = ["in place", "packed"];
    sides.extend(names.into_iter().zip(modes(plan)).map(|(name, (_, settings))| (name, Way::Ours(settings))));
    let ways: Vec<Way<'_>> = sides.iter().map(|(_, way)| *way).collect();
    let threads = plan.cpu.threads;
    let samples = speed::interleaved(host, model, &ways, threads, &speed::Plan { rounds, ..speed::Plan::default() })?;
    let rows: Vec<Vec<String>> = speed::TESTS
        .into_iter()
        .map(|(name, of)| {
            let cells = samples.iter().map(|s| stats::spread(of(s), |v| format!("{v:.1}")));
            std::iter::once(name.to_string()).chain(cells).collect()
        })
        .collect();
    let header: Vec<&str> = std::iter::once("tokens/s").chain(sides.iter().map(|(name, _)| *name)).collect();
    println!("\n{}", table::render(&header, &rows));
    plan.print_origin(&samples[0]);
    Ok(())
}

//! Whole programs where memory is short: what loads without this library must load with it, answer, and have packed
//! what fits. Where the host locks its memory, packed memory is locked too.

use std::{fs, path::Path, process::Command};

use crate::{
    cache::{self, Cache},
    chat,
    demo::Plan,
    fetch,
    host::{self, Host, Kind},
    program::{self, Settings, Way},
    util::{self, Result},
};

/// Limits of the address space to try, in MiB: from less than the host alone needs to more than packed weights need.
/// The model has 92 MiB.
const ADDRESSES: [u64; 8] = [180, 220, 250, 285, 320, 400, 500, 800];
/// Limits of private memory (`ulimit -d`) to try, in MiB.
const DATA: [u64; 6] = [60, 90, 150, 220, 300, 500];
/// The limit of a control group: the host alone drops pages of the file as it needs others.
const GROUP: u64 = 150 << 20;

/// Tries each host with limits, with locked memory, and in a control group where one can be made.
pub fn run(skip: impl Fn(&str, &str)) -> Result<()> {
    let plan = Plan::new();
    let model = fetch::model(&Cache::open()?)?;
    for kind in [Kind::Llama, Kind::IkOurs] {
        let host = host::ensure(kind)?;
        limited(&plan, &host, &model, ("addresses", "-v", &ADDRESSES))?;
        limited(&plan, &host, &model, ("memory of its own", "-d", &DATA))?;
        match group() {
            Ok(group) if in_group(&plan, &host, &model, &group)? => {}
            Ok(_) => skip("a model with little memory", "the host alone does not load in a small control group"),
            Err(why) => skip("a model in a control group with little memory", &why),
        }
    }
    locked(&plan, &host::ensure(Kind::Llama)?, &model)
}

/// Lets the host answer in a few words, alone or with this library, in a shell that sets a limit first.
fn answer(plan: &Plan, host: &Host, model: &Path, ours: bool, limit: &str, extra: &[&str]) -> Result<util::Output> {
    let is_ik = host.kind.is_ik();
    let way = if ours { Way::Ours(Settings { packed: is_ik, ..plan.settings() }) } else { Way::HostBest };
    let program = program::command(host, if is_ik { "llama-cli" } else { "llama-completion" }, way)?;
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{limit}; exec \"$0\" \"$@\"")]).arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    if let Some(dir) = program.get_current_dir() {
        shell.current_dir(dir);
    }
    shell.arg("-m").arg(model).args(["--temp", "0", "--seed", "1", "-n", "16", "-c", "128"]).args(extra);
    match is_ik {
        true => shell.args(["-p", &chat::templated(), "--no-display-prompt"]),
        false => shell.args(["-p", chat::QUESTION, "-fit", "off", "-cnv", "-st", "--jinja", "-lv", "4"]),
    };
    util::capture(&mut shell, &cache::log("memory")?)
}

/// What the library says about weights that stay, or about tensors that are packed.
fn said<'a>(output: &'a util::Output, part: &str) -> Option<&'a str> {
    program::our_lines(&output.stderr).into_iter().find(|line| line.contains(part))
}

/// Limits of one kind, by an option of the shell's `ulimit`, with one and with two threads. What mostly loads without
/// this library must load with it. (Even alone, the host may find no room for its threads now and then.)
fn limited(plan: &Plan, host: &Host, model: &Path, (what, option, limits): (&str, &str, &[u64])) -> Result<()> {
    let (mut alone, mut partly) = (0, 0);
    for (limit, threads) in limits.iter().flat_map(|limit| [(limit, "1"), (limit, "2")]) {
        let command = format!("ulimit {option} {}", limit << 10);
        let run = |ours| answer(plan, host, model, ours, &command, &["-t", threads]);
        if (0..2).any(|_| run(false).is_err()) {
            continue;
        }
        alone += 1;
        let named = |why: String| {
            format!("with {limit} MiB of {what} and {threads} threads, where the host alone loads: {why}")
        };
        let ours = run(true).map_err(named)?;
        if !ours.stdout.contains("Paris") {
            return Err(named(format!("{:?}", ours.stdout)));
        }
        partly += usize::from(said(&ours, "stay").is_some());
    }
    if alone < 3 {
        return Err(format!("the host alone loads the model with {alone} limits of {what}: nothing was shown"));
    }
    if partly == 0 && !plan.steps_aside() {
        return Err(format!("with no limit of {what} only a part of the weights fits: nothing was shown"));
    }
    println!(
        "  {}: loads with every one of {alone} limits of {what} with which the host alone does, {partly} of them too few for all weights",
        host.kind.name()
    );
    Ok(())
}

/// A new control group with little memory: the file that takes process ids, or why there is none.
fn group() -> std::result::Result<String, String> {
    for (root, limit) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")] {
        let group = Path::new(root).join(format!("ggml-amx-{}", std::process::id()));
        let made = group.is_dir() || fs::create_dir(&group).is_ok();
        if made && fs::write(group.join(limit), GROUP.to_string()).is_ok() {
            return Ok(group.join("cgroup.procs").display().to_string());
        }
        let _ = fs::remove_dir(&group);
    }
    Err("no control group can be made here".into())
}

/// False if the host alone does not load in it.
fn in_group(plan: &Plan, host: &Host, model: &Path, procs: &str) -> Result<bool> {
    let command = format!("echo $$ > {procs}");
    let run = |ours| answer(plan, host, model, ours, &command, &["-t", "2"]);
    let (alone, ours) = (run(false), run(true));
    let _ = Path::new(procs).parent().map(fs::remove_dir);
    if alone.is_err() {
        return Ok(false);
    }
    let ours = ours.map_err(|why| format!("in a control group with {} MiB: {why}", GROUP >> 20))?;
    if !ours.stdout.contains("Paris") {
        return Err(format!("in a control group with {} MiB: {:?}", GROUP >> 20, ours.stdout));
    }
    let line = said(&ours, "stay").filter(|line| line.contains("control group"));
    match line {
        Some(line) => println!("  {}, in a control group with {} MiB: {line}", host.kind.name(), GROUP >> 20),
        None if plan.steps_aside() => {}
        None => return Err(format!("in a control group with {} MiB nothing was said: {}", GROUP >> 20, ours.stderr)),
    }
    Ok(true)
}

/// `--load-mode mlock`: locked, or a line that says why not.
fn locked(plan: &Plan, host: &Host, model: &Path) -> Result<()> {
    if plan.steps_aside() {
        return Ok(());
    }
    let all = answer(plan, host, model, true, ":", &["--load-mode", "mlock"])?;
    let line = said(&all, "locked in memory").ok_or("--load-mode mlock: nothing was said about packed memory")?;
    println!("  {}: {line}", host.kind.name());
    let none = answer(plan, host, model, true, ":", &[])?;
    match said(&none, "locked in memory") {
        None => Ok(()),
        Some(line) => Err(format!("without --load-mode mlock: {line}")),
    }
}

//! `cargo xtask demo --host ik`: ik_llama.cpp with this library linked in, and loaded before programs that were built
//! without it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cache::{self, Cache},
    chat::{self, Answer},
    cpu,
    demo::Plan,
    fetch,
    host::{self, Host, Kind},
    preload, products,
    program::{self, Settings, Way},
    speed, symbols, table,
    util::{self, Result, io},
    verify,
};

/// Fine enough that no path's rounding decides about a word.
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

/// The objects of the shared build in archives, as a static build has them: calls must reach this library, and what
/// it calls of the host must be pulled in.
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
    let answer = Answer { text: output.stdout.trim().into(), log: output.stderr, command: util::shown(&run) };
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

/// A library of the host whose calls stay inside it (`-Bsymbolic-functions`, which distributions link with): a
/// preloaded library is not reached. It must say so, pack nothing, and leave the answer as it is.
pub fn out_of_reach() -> Result<()> {
    let link = |host: &Host, dir: &Path| {
        let mut link = Command::new(&host.compiler.cxx);
        link.args(["-shared", "-Wl,-Bsymbolic-functions,-soname,libggml.so", "-o"]).arg(dir.join("libggml.so"));
        link.args(objects(&host.build.join("ggml/src/CMakeFiles"))?).args(["-fopenmp", "-lpthread", "-ldl", "-lm"]);
        util::capture(&mut link, &cache::log("ik-symbolic-link")?).map(|_| ())
    };
    changed("linked with -Bsymbolic-functions", "nothing is packed", &[true], link)
}

/// A library of a later host, one of whose kernels has one more argument in the midst of the others. It must be left
/// alone, with weights in place too.
pub fn other_arguments() -> Result<()> {
    const KERNEL: &str = "iqk_mul_mat_4d";
    let link = |host: &Host, dir: &Path| {
        let log = cache::log("ik-other-arguments")?;
        let mut all = Vec::new();
        for (number, object) in objects(&host.build.join("ggml/src/CMakeFiles"))?.into_iter().enumerate() {
            let name = object.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // Who defines it, and who calls it.
            let new = if name.starts_with("iqk_mul_mat") { "known_kernel" } else { "calls_kernel" };
            let to = dir.join(format!("{number}.o"));
            let mut rename = Command::new("objcopy");
            rename.arg("--redefine-sym").arg(format!("{KERNEL}={new}")).arg(object).arg(&to);
            util::capture(&mut rename, &log)?;
            all.push(to);
        }
        let mut link = Command::new(&host.compiler.cxx);
        link.args(["-shared", "-fPIC", "-Wl,-soname,libggml.so", "-o"]).arg(dir.join("libggml.so"));
        link.args(["-x", "c"]).arg(util::repo().join("c_tests/tools/other_kernel.c")).args(["-x", "none"]).args(all);
        link.args(["-fopenmp", "-lpthread", "-ldl", "-lm"]);
        util::capture(&mut link, &log).map(|_| ())
    };
    changed("a kernel with one more argument", "with other arguments than are known", &[true, false], link)
}

/// A host of which one library was made otherwise (`link` makes it, in a directory), with this library preloaded,
/// packed or not: the answer is as without, and a line says so.
fn changed(what: &str, says: &str, packed: &[bool], link: impl Fn(&Host, &Path) -> Result<()>) -> Result<()> {
    let plan = Plan::new();
    let host = host::ensure(Kind::Ik)?;
    let (library, model) = (preload::ensure()?, fetch::model(&Cache::open()?)?);
    let dir = host.build.join("changed");
    cache::remove(&dir)?;
    io("create", &dir, fs::create_dir_all(&dir))?;
    link(&host, &dir)?;
    let answer = |packed: Option<bool>| {
        let mut run = short_answer(&plan, &host.program("llama-cli"), &model)?;
        // Before the directory that the program was linked with.
        run.env("LD_LIBRARY_PATH", &dir);
        if let Some(packed) = packed {
            Settings { packed, preload: Some(&library), ..plan.settings() }.apply(&mut run, false);
        }
        util::capture(&mut run, &cache::log("ik-changed")?)
    };
    let alone = answer(None)?;
    for packed in packed {
        let ours = answer(Some(*packed))?;
        if alone.stdout != ours.stdout {
            return Err(format!("{what}: {:?} instead of {:?}", ours.stdout, alone.stdout));
        }
        match program::our_lines(&ours.stderr).iter().find(|line| line.contains(says)) {
            Some(line) => println!("  {what}: {line}"),
            None if plan.steps_aside() => {}
            None => return Err(format!("{what}: this library does not say {says:?}")),
        }
    }
    Ok(())
}

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

/// Processes that the preloaded library must not harm: hosts that Python loads in a scope of their own, and programs
/// that are no hosts at all. They must print the same as without it, but for what this library itself says in
/// ik_llama.cpp.
pub fn harmless() -> Result<()> {
    let plan = Plan::new();
    let library = preload::ensure()?;
    let [llama, ik] = [Kind::Later, Kind::Ik].map(host::ensure);
    let (llama, ik) = (llama?, ik?);
    let (host, model) = (ik.clone(), fetch::model(&Cache::open()?)?);
    let [llama, ik] = [llama.lib_dirs()[0].join("libggml.so"), ik.lib_dirs()[0].join("libggml.so")];
    let [bystander, its_library, front, throwing] = bystanders(&host)?;
    let python = |library: &Path| {
        let mut command = Command::new("python3");
        command.args(["-c", LOCAL]).arg(library);
        command
    };
    let program = |name: &str, args: &[&str]| {
        let mut command = Command::new(name);
        command.args(args);
        command
    };
    type Make<'a> = Box<dyn Fn() -> Command + 'a>;
    let processes: [(&str, Make<'_>); 7] = [
        ("llama.cpp, loaded by Python", Box::new(|| python(&llama))),
        ("ik_llama.cpp, loaded by Python", Box::new(|| python(&ik))),
        ("ik_llama.cpp whose callback throws", Box::new(|| Command::new(&throwing))),
        ("Python", Box::new(|| program("python3", &["-c", "print(1)"]))),
        (
            "a program with functions of the same names",
            Box::new(|| {
                let mut command = Command::new(&bystander);
                command.arg(&its_library);
                command
            }),
        ),
        ("a shell", Box::new(|| program("sh", &["-c", "echo $((6 * 7))"]))),
        ("a compiler", Box::new(|| program("gcc", &["-xc", "-E", "/dev/null"]))),
    ];
    for (what, make) in &processes {
        for mode in ["auto", "off"] {
            let run = |preload: bool| {
                let mut command = make();
                program::clean(&mut command);
                command.env("GGML_AMX_MODE", mode);
                if let Some(isa) = plan.settings().isa {
                    command.env("GGML_AMX_ISA", isa);
                }
                if preload {
                    command.env("LD_PRELOAD", &library);
                }
                let output = command.output().map_err(|e| format!("{what} could not be started: {e}"))?;
                let errors = String::from_utf8_lossy(&output.stderr).into_owned();
                let ours = |line: &&str| !(what.starts_with("ik") && line.starts_with("ggml-amx: "));
                let errors = errors.lines().filter(ours).collect::<Vec<_>>().join("\n");
                Ok::<_, String>((output.status, output.stdout, errors))
            };
            let (without, with) = (run(false)?, run(true)?);
            if !without.0.success() || without != with {
                return Err(format!("{what}, GGML_AMX_MODE={mode}: {without:?} without the preload, with it {with:?}"));
            }
        }
    }
    println!("  preloaded into {}: nobody noticed", processes.map(|(what, _)| what).join(", "));
    let answer = |preload: &[&Path]| {
        let mut run = short_answer(&plan, &host.program("llama-cli"), &model)?;
        plan.settings().apply(&mut run, false);
        run.env("LD_PRELOAD", preload.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(":"));
        let output = util::capture(&mut run, &cache::log("ik-front")?)?;
        Ok::<_, String>((output.stdout, output.stderr.contains("many graphs")))
    };
    let without = answer(&[&front])?;
    for both in [[front.as_path(), &library], [&library, &front]] {
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

/// A program, a library for it that has functions of the same names as ik_llama.cpp's, a library that stands in front
/// of ik_llama.cpp's as this one does, and a program of ik_llama.cpp's whose callback throws.
fn bystanders(host: &Host) -> Result<[PathBuf; 4]> {
    let (tools, dir) = (util::repo().join("c_tests/tools"), host.build.join("bystanders"));
    io("create", &dir, fs::create_dir_all(&dir))?;
    let headers = format!("-I{}", host.source.join("ggml/include").display());
    let libraries = host.lib_dirs()[0].display().to_string();
    let [find, at] = [format!("-L{libraries}"), format!("-Wl,-rpath,{libraries}")];
    let made = [
        ("bystander.cpp", "bystander", &["-ldl"][..]),
        ("bystander_library.cpp", "libbystander.so", &["-shared", "-fPIC"]),
        ("bystander_front.c", "libfront.so", &["-shared", "-fPIC", "-ldl"]),
        ("throwing.cpp", "throwing", &[&headers, &find, &at, "-lggml"]),
    ];
    let made = made.map(|(source, name, flags)| {
        let to = dir.join(name);
        let compiler = if source.ends_with(".c") { &host.compiler.cc } else { &host.compiler.cxx };
        let mut compile = Command::new(compiler);
        compile.args(["-O1", "-Wall", "-Wextra", "-Werror"]).arg(tools.join(source)).args(flags).arg("-o").arg(&to);
        util::capture(&mut compile, &cache::log("bystanders")?).map(|_| to)
    });
    let [program, library, front, throwing] = made;
    Ok([program?, library?, front?, throwing?])
}

/// Several hosts in one process, each with a part of the program that calls this library's functions: llama.cpp and
/// ik_llama.cpp are both served, each by its own structs, and a second one of either kind by a copy of this library.
/// Then two ik_llama.cpp under the preload.
pub fn two_hosts() -> Result<bool> {
    let ik = host::ensure(Kind::Ik)?;
    let ours = host::our_libraries()?;
    let preload = preload::ensure()?;
    let cache = Cache::open()?;
    let Some(llama) = fetch::older_ggml(&cache)? else { return Ok(false) };
    let dir = util::target().join("two_hosts");
    cache::remove(&dir)?;
    io("create", &dir, fs::create_dir_all(&dir))?;
    // Two libraries of one name would be one to the loader.
    for name in ["ggml_first", "ggml_second"] {
        let mut link = Command::new(&ik.compiler.cxx);
        link.arg("-shared").arg(format!("-Wl,-soname,lib{name}.so")).arg("-o").arg(dir.join(format!("lib{name}.so")));
        link.args(objects(&ik.build.join("ggml/src/CMakeFiles"))?).args(["-fopenmp", "-lpthread", "-ldl", "-lm"]);
        util::capture(&mut link, &cache::log("two-hosts-link")?)?;
    }
    let tools = util::repo().join("c_tests/tools");
    let compile = |arguments: &[&str], to: &Path| {
        let mut gcc = Command::new(&ik.compiler.cc);
        gcc.args(["-O1", "-Wall", "-Wextra", "-Werror"]).arg(format!("-I{}", util::repo().join("include").display()));
        gcc.args(arguments).arg("-o").arg(to);
        util::capture(&mut gcc, &cache::log("two-hosts")?).map(|_| ())
    };
    for (from, to) in
        [("libggml.so", "libggmk.so"), ("libggml-base.so", "libggmk-base.so"), ("libggml-cpu.so", "libggmk-cpu.so")]
    {
        renamed(&llama.join("lib64").join(from), &dir.join(to))?;
        let versioned = dir.join(format!("{to}.0"));
        io("create", &versioned, std::os::unix::fs::symlink(dir.join(to), &versioned))?;
    }
    let part = |name: &str, shim: &str, headers: &Path, libraries: &Path, names: &[&str]| {
        let to = dir.join(format!("lib{name}.so"));
        let find = |dir: &Path| [format!("-L{}", dir.display()), format!("-Wl,-rpath,{}", dir.display())];
        let (shim, headers) = (tools.join(shim).display().to_string(), headers.display().to_string());
        let mut arguments = vec!["-shared", "-fPIC", "-Wl,--no-as-needed", "-isystem", &headers, &shim];
        let (theirs, ours) = (find(libraries), find(&ours));
        arguments.extend(theirs.iter().chain(&ours).map(String::as_str));
        arguments.extend(names);
        compile(&arguments, &to).map(|()| to)
    };
    let program = dir.join("two_hosts");
    compile(&[&tools.join("two_hosts.c").display().to_string(), "-ldl"], &program)?;
    let run = |parts: &[PathBuf]| {
        let mut run = Command::new(&program);
        run.args(parts);
        program::clean(&mut run);
        run.env("GGML_AMX_ISA", Plan::new().settings().isa.unwrap_or("amx"));
        run
    };
    let check = |mut run: Command, turn: &[&str]| {
        let output = util::capture(&mut run, &cache::log("two-hosts")?)?;
        let expected = [turn, turn].concat();
        if output.stdout.lines().ne(expected.iter().copied()) {
            let (said, errors) = (output.stdout, output.stderr);
            return Err(format!("hosts in one process said {said:?} instead of {expected:?}; {errors}"));
        }
        Ok(output.stderr)
    };
    let (of_llama, of_ik) = (llama.join("include"), ik.source.join("ggml/include"));
    let surface = "two_hosts_shim.c";
    let (first, second) = (llama.join("lib64"), ["-lggmk", "-lggmk-cpu", "-lggmk-base", "-l:libggml_amx.so"]);
    let parts = [
        part("llama", surface, &of_llama, &first, &["-lggml", "-lggml-cpu", "-lggml-base", "-l:libggml_amx.so"])?,
        part("ik", surface, &of_ik, &dir, &["-lggml_first", "-l:libggml_amx.so"])?,
        part("second_ik", surface, &of_ik, &dir, &["-lggml_second", "-l:libggml_amx.so"])?,
        part("second_llama", surface, &of_llama, &dir, &second)?,
    ];
    let (packed, plain) = ("13824 bytes, packed", "13824 bytes, as they are");
    check(run(&parts), &[packed, "0", plain, "0", plain, "0", packed, "0"])?;
    let parts = [
        part("product", "two_hosts_product.c", &of_ik, &dir, &["-lggml_first"])?,
        part("second_product", "two_hosts_product.c", &of_ik, &dir, &["-lggml_second"])?,
    ];
    let mut preloaded = run(&parts);
    preloaded.env("LD_PRELOAD", preload).env("GGML_AMX_MODE", "packed").env("GGML_AMX_REPORT", "products");
    let product = "a product of 96 x 512 and 40";
    let said = check(preloaded, &[product, "0", product, "0"])?;
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("products: MUL_MAT ")).collect();
    if ours.len() != 2 || ours[0] != ours[1] {
        return Err(format!("of two ik_llama.cpp under the preload each should have made its products here: {said}"));
    }
    println!("  in one process: two of ggml 0.20 and two ik_llama.cpp, each served; preloaded, {}", ours[0]);
    Ok(true)
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
    println!("  {name}\n    $ {}", answer.command.replace('\n', "\\n"));
    for said in program::our_lines(&answer.log) {
        println!("    {said}");
    }
    match chat::garbage(&answer.text) {
        Some(why) => Err(format!("{name}: {why}: {:?}", answer.text)),
        None => Ok(answer),
    }
}

/// Nobody rounds activations alike, so that the last digit of a logit may choose another word; both answer.
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
    let rows: Vec<Vec<String>> = ["prompt (pp512)", "generation (tg64)"]
        .into_iter()
        .enumerate()
        .map(|(test, name)| {
            let values = samples.iter().map(|s| if test == 0 { &s.prompt } else { &s.generation });
            let medians = values.map(|v| format!("{:.1}", speed::median(v)));
            std::iter::once(name.to_string()).chain(medians).collect()
        })
        .collect();
    let header: Vec<&str> = std::iter::once("tokens/s").chain(sides.iter().map(|(name, _)| *name)).collect();
    println!("\n{}", table::render(&header, &rows));
    println!("  SmolLM2-135M-Instruct Q4_1, llama-bench, medians of {} interleaved runs each", samples[0].prompt.len());
    println!("  {}, {threads} threads, {}", plan.cpu.model, cpu::today());
    Ok(())
}

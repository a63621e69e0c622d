//! A fork of ik_llama.cpp that has a list of buffer types, chooses one for every tensor, and asks this library by
//! function who computes a node. It is the pinned tree with a few lines of ours. It links the installed package, once
//! alone and once together with the module that takes calls of kernels.

use std::path::{Path, PathBuf};

use crate::{
    cache::{self, Cache},
    chat,
    compiler::{self, Compiler},
    copies::{Copy, Edit, behind, instead},
    cpu, fetch,
    gguf::Reader,
    host::{self, Host, Kind},
    products::{self, Products},
    program::{self, Settings, Way},
    util::{self, Result},
    verify,
};

const GGML: &str = "ggml/src/ggml.c";
const BACKEND: &str = "ggml/src/ggml-backend.cpp";
const CMAKE: &str = "ggml/src/CMakeLists.txt";
const LOADER: &str = "src/llama-load-tensors.cpp";
const LLAMA: &str = "src/llama.cpp";

/// What makes a fork of the tree.
const EDITS: [Edit; 11] = [
    behind(
        CMAKE,
        "target_link_libraries(ggml PRIVATE Threads::Threads ${GGML_EXTRA_LIBS})",
        "
find_package(ggml-amx CONFIG REQUIRED)
target_link_libraries(ggml PRIVATE ggml-amx::static)
target_include_directories(ggml PUBLIC $<BUILD_INTERFACE:$<TARGET_PROPERTY:ggml-amx::static,INTERFACE_INCLUDE_DIRECTORIES>>)
",
    ),
    behind(GGML, "#include \"iqk/iqk_cpu_ops.h\"", "\n#include \"ggml-amx.h\"\n#include \"ggml-backend.h\"\n"),
    // Who computes a node.
    behind(
        GGML,
        "    if (tensor->op == GGML_OP_NONE || ggml_is_empty(tensor)) {
        return i;
    }
",
        "
    if (ggml_backend_amx_compute_forward(params, tensor)) {
        return i;
    }
",
    ),
    // The work buffer.
    instead(
        GGML,
        "        work_size = MAX(work_size, cur);
    }

    if (work_size > 0) {",
        "        size_t amx = 0;
        if (ggml_backend_amx_work_size(n_threads, node, &amx)) {
            cur = MAX(cur, amx);
        }
        work_size = MAX(work_size, cur);
    }

    if (work_size > 0) {",
    ),
    // A product is not computed together with the one before it if its weights do not lie in host memory.
    // FORK_UNGUARDED: a fork that forgot this.
    behind(
        GGML,
        "cgraph->nodes[node_n+1]->src[1] == src1 &&",
        "
                   (getenv(\"FORK_UNGUARDED\") || !cgraph->nodes[node_n+1]->src[0]->buffer || ggml_backend_buffer_is_host(cgraph->nodes[node_n+1]->src[0]->buffer)) &&",
    ),
    behind(BACKEND, "#include \"ggml-backend-impl.h\"", "\n#include \"ggml-amx.h\"\n"),
    instead(
        BACKEND,
        "    return ggml_backend_buft_is_host(buft);

    GGML_UNUSED(backend);",
        "    return ggml_backend_buft_is_host(buft) || (buft && buft == ggml_backend_amx_buffer_type());

    GGML_UNUSED(backend);",
    ),
    behind(
        LOADER,
        "#include \"ggml.h\"",
        "
#include \"ggml-amx.h\"
#include \"../ggml/src/ggml-backend-impl.h\"
",
    ),
    // Which buffer type a tensor gets: that of AMX if it computes what the graph does with it, the CPU's for vectors,
    // else it stays in the mapped file. FORK_PLAIN names some that are not asked for.
    behind(
        LOADER,
        "    bool has_buft_overrides = false;

    std::unordered_set<ggml_tensor *> split_tensors;
",
        "
    ggml_backend_buffer_type_t select_buft(const std::string & name) {
        static const char * plain = getenv(\"FORK_PLAIN\");
        static ggml_backend_buffer_type unmapped = *ggml_backend_cpu_buffer_type();
        const ggml_tensor * meta = ml.get_tensor_meta(name.c_str());
        if (!meta || (plain && std::regex_search(name, std::regex(plain)))) return nullptr;
        if (ggml_n_dims(meta) < 2) return &unmapped;
        for (auto list = ggml_backend_amx_get_extra_bufts(); *list; ++list) {
            ggml_init_params params = { 16*ggml_tensor_overhead(), NULL, true };
            ggml_context * ctx = ggml_init(params);
            ggml_tensor * w = ggml_dup_tensor(ctx, meta);
            ggml_set_name(w, name.c_str());
            ggml_tensor * op;
            if (name.find(\"token_embd\") != std::string::npos) {
                op = ggml_get_rows(ctx, w, ggml_new_tensor_1d(ctx, GGML_TYPE_I32, 512));
            } else if (ggml_n_dims(meta) == 3) {
                op = ggml_mul_mat_id(ctx, w, ggml_new_tensor_3d(ctx, GGML_TYPE_F32, w->ne[0], 2, 512), ggml_new_tensor_2d(ctx, GGML_TYPE_I32, 2, 512));
            } else {
                op = ggml_mul_mat(ctx, w, ggml_new_tensor_2d(ctx, GGML_TYPE_F32, w->ne[0], 512));
            }
            w->buffer = ggml_backend_buft_alloc_buffer(*list, 0);
            const bool supported = ggml_backend_amx_supports_op(nullptr, op);
            ggml_backend_buffer_free(w->buffer);
            ggml_free(ctx);
            if (supported) return *list;
        }
        return nullptr;
    }
",
    ),
    instead(
        LOADER,
        "            ctx = ctx_for_buft(o.second);
            break;
        }
    }",
        "            return ctx_for_buft(o.second);
        }
    }
    if (ggml_backend_buffer_type_t buft = select_buft(name)) {
        ctx = ctx_for_buft(buft);
    }",
    ),
    behind(
        LLAMA,
        "    // print memory requirements
",
        "    for (auto & it : ctx_map) {
        std::map<std::string, size_t> held;
        for (auto * cur = ggml_get_first_tensor(it.second); cur != NULL; cur = ggml_get_next_tensor(it.second, cur)) {
            held[ggml_get_name(cur)] = ggml_nbytes(cur);
        }
        size_t bytes = 0;
        for (auto & tensor : held) bytes += tensor.second;
        const bool mapped = ml.use_mmap && use_mmap_buffer && it.first == llama_default_buffer_type_cpu(true);
        LLAMA_LOG_INFO(\"fork: %s%s holds %zu tensors of %zu bytes\\n\", ggml_backend_buft_name(it.first), mapped ? \"_Mapped\" : \"\", held.size(), bytes);
    }
",
    ),
];

/// The package as `cmake --install` puts it below a prefix.
pub fn package(cache: &Cache, tools: &Path, compiler: &Compiler) -> Result<PathBuf> {
    let key = format!("{:08x}", cache::fnv(util::repo().to_string_lossy().bytes()) >> 32);
    let (build, prefix) = (cache.path(format!("builds/package-{key}")), cache.path(format!("builds/prefix-{key}")));
    let mut configure = host::cmake(tools);
    configure.arg("-S").arg(util::repo().join("cmake")).arg("-B").arg(&build).arg("-GNinja");
    configure.arg(format!("-DCMAKE_C_COMPILER={}", compiler.cc));
    let mut make = host::cmake(tools);
    make.arg("--build").arg(&build);
    let mut install = host::cmake(tools);
    install.arg("--install").arg(&build).arg("--prefix").arg(&prefix);
    let log = cache::log("fork-package")?;
    util::capture(&mut configure, &log)?;
    util::capture(&mut make, &log)?;
    // Files of an earlier installation must not be found. Files keep their times, so nothing is built again.
    cache::remove(&prefix)?;
    util::capture(&mut install, &log)?;
    Ok(prefix)
}

/// Builds the fork; `with_module`: also with the module that takes calls of kernels.
pub fn ensure(with_module: bool) -> Result<Host> {
    let pinned = host::ensure(Kind::Ik)?;
    let cache = Cache::open()?;
    let (tools, compiler) = (fetch::tools(&cache)?, compiler::system()?);
    let name = if with_module { "fork-module" } else { "fork" };
    let prefix = package(&cache, &tools, &compiler)?;
    let copy = Copy::new(&cache, name, &pinned, &EDITS, None)?;
    let mut configure = copy.configure(&tools, &compiler);
    configure.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.display()));
    if with_module {
        let module = prefix.join("lib/cmake/ggml-amx/llama-host.cmake");
        configure.arg(format!("-DCMAKE_PROJECT_INCLUDE={}", module.display()));
    }
    util::run_logged(&mut configure, name, &cache::log(&format!("configure-{name}"))?)?;
    let mut make = host::cmake(&tools);
    make.arg("--build").arg(&copy.build).args(["--target", "llama-cli", "llama-perplexity", "llama-quantize"]);
    util::run_logged(&mut make, &format!("building {name}"), &cache::log(&format!("build-{name}"))?)?;
    Ok(Host { kind: Kind::Ik, source: copy.source, build: copy.build, compiler })
}

/// One run of the chat program.
struct Case<'a> {
    model: &'a Path,
    threads: u32,
    /// A pattern of names that the fork leaves in the file.
    plain: Option<&'static str>,
    extra: &'static [&'static str],
    /// Whether the fork computes products together with the one before without asking. Then nothing may be packed.
    unguarded: bool,
}

const fn case<'a>(
    model: &'a Path,
    threads: u32,
    plain: Option<&'static str>,
    extra: &'static [&'static str],
) -> Case<'a> {
    Case { model, threads, plain, extra, unguarded: false }
}

/// The fork without and with the module: a dense model and a mixture of experts, on several threads, mapped and not,
/// with matrices of a layer packed, plain and in F32 beside each other, must answer, compute with packed weights, and
/// hold the file's bytes once.
pub fn run() -> Result<()> {
    let isa = isa();
    let pinned = host::ensure(Kind::Ik)?;
    let model = fetch::model(&Cache::open()?)?;
    let mixed = verify::mixed(&pinned)?;
    for with_module in [false, true] {
        let fork = ensure(with_module)?;
        println!(
            "  a fork that asks by function{}",
            if with_module { ", and calls kernels through the module" } else { "" }
        );
        let mut cases = vec![
            case(&model, 1, None, &["--no-mmap"][..]),
            case(&model, 2, None, &[]),
            case(&model, 4, None, &[]),
            case(&model, 2, None, &["-rtr"]),
            case(&model, 2, Some("attn_q|attn_v|ffn_up"), &[]),
            case(&model, 2, Some("attn_k|ffn_gate"), &["--no-mmap"]),
            case(&mixed, 2, None, &[]),
            case(&mixed, 2, Some("attn_v|ffn_up"), &[]),
            Case { unguarded: true, ..case(&model, 2, None, &[]) },
        ];
        if with_module {
            cases.retain(|case| case.extra.is_empty() && case.threads == 2 && !case.unguarded);
        }
        cases.iter().try_for_each(|case| check(&pinned, &fork, isa.as_deref(), case))?;
        verify::with_experts(&pinned, "Q8_0", |experts| {
            let cases = [
                case(experts, 2, None, &[]),
                case(experts, 4, Some("ffn_up_exps|attn_k"), &["--no-mmap"]),
                case(experts, 1, Some("ffn_gate_exps"), &[]),
            ];
            cases
                .iter()
                .take(if with_module { 1 } else { 3 })
                .try_for_each(|case| check(&pinned, &fork, isa.as_deref(), case))
        })?;
    }
    Ok(())
}

/// Quality of the text that the fork writes, against the pinned tree.
pub fn judge() -> Result<()> {
    let isa = isa();
    let settings = Settings { isa: isa.as_deref(), ..Settings::default() };
    let fork = ensure(false)?;
    verify::in_fork(&fork, settings)
}

/// The ceiling that the user asked for, or the highest that this machine has.
fn isa() -> Option<String> {
    let asked = std::env::var("GGML_AMX_ISA").ok().filter(|v| !v.is_empty());
    asked.or_else(|| (!cpu::detect().amx).then(|| "avx512".to_string()))
}

fn check(pinned: &Host, fork: &Host, isa: Option<&str>, case: &Case<'_>) -> Result<()> {
    let ask = |host: &Host, way: Way<'_>| {
        let mut command = program::command(host, "llama-cli", way)?;
        command.arg("-m").arg(case.model).args(["-p", &chat::templated(), "--no-display-prompt"]).args(case.extra);
        command.args(["--temp", "0", "--seed", "1", "-n", "32", "-c", "512", "-t", &case.threads.to_string()]);
        command.envs(case.plain.map(|plain| ("FORK_PLAIN", plain)));
        command.envs(case.unguarded.then_some(("FORK_UNGUARDED", "1")));
        let shown = util::shown(&command);
        let output = program::run_proved(host, command, way, &cache::log("fork")?)?;
        Ok::<_, String>((shown, output.stdout.trim().to_string(), output.stderr))
    };
    let (_, alone, _) = ask(pinned, Way::HostBest)?;
    let (shown, text, log) = ask(fork, Way::Ours(Settings { isa, checked: true, ..Settings::default() }))?;
    let named =
        |why: String| format!("{}{shown}: {why}", case.plain.map(|p| format!("FORK_PLAIN='{p}' ")).unwrap_or_default());
    if let Some(why) = chat::garbage(&text) {
        return Err(named(format!("{why}: {text:?}")));
    }
    if case.unguarded {
        let said = program::our_lines(&log);
        return match said
            .iter()
            .find(|line| line.contains("nothing is packed: this host computes MUL_MAT that follows"))
        {
            Some(_) if text == alone && products::none(&log) => {
                println!("    that does not ask about every product: nothing is packed, the same text");
                Ok(())
            }
            _ => Err(named(format!("a fork that computes packed weights by itself: {said:?}; {text:?}"))),
        };
    }
    let products = Products::of(&log).ok_or_else(|| named("no products were counted".into()))?;
    let file = Reader::open(case.model)?;
    let packed: Vec<_> =
        file.tensors.iter().filter(|t| t.name.starts_with("blk.") && t.is_matrix() && t.ty.name != "F32").collect();
    let left = |name: &str| case.plain.is_some_and(|plain| plain.split('|').any(|part| name.contains(part)));
    let expected = packed.iter().filter(|t| !left(&t.name)).count() as u64;
    // The prompt and all tokens but the last; the end of the text may come early.
    if products.matrices(&[]) < expected * 8 {
        return Err(named(format!("{} products of {expected} packed matrices", products.matrices(&[]))));
    }
    let held = buffers(&log);
    let total: u64 = held.iter().map(|(_, bytes)| bytes).sum();
    let of_file: u64 = file.tensors.iter().map(|t| t.bytes()).sum();
    let names: Vec<&str> = held.iter().map(|(name, _)| name.as_str()).collect();
    if total != of_file || !names.contains(&"AMX") || names.len() != if case.extra.is_empty() { 3 } else { names.len() }
    {
        return Err(named(format!("{held:?} are {total} bytes of tensors, the file has {of_file}")));
    }
    let same = if text == alone { "the same text as the pinned tree's" } else { "an answer in other words" };
    println!(
        "    {}, {} threads{}{}: {}; {} products; {same}",
        case.model.file_name().unwrap_or_default().to_string_lossy(),
        case.threads,
        case.extra.iter().map(|arg| format!(", {arg}")).collect::<String>(),
        case.plain.map(|plain| format!(", plain: {plain}")).unwrap_or_default(),
        held.iter()
            .map(|(name, bytes)| format!("{name} {:.1} MiB", *bytes as f64 / f64::from(1 << 20)))
            .collect::<Vec<_>>()
            .join(", "),
        products.matrices(&[])
    );
    Ok(())
}

/// What the fork says that its buffers hold: names and bytes.
fn buffers(log: &str) -> Vec<(String, u64)> {
    let line = |line: &str| {
        let mut words = line.split_once("fork: ")?.1.split_whitespace();
        let name = words.next()?.to_string();
        Some((name, words.rev().nth(1)?.parse().ok()?))
    };
    log.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_buffers_hold_is_read() {
        let log = "x\nllm_load_tensors: fork: AMX holds 7 tensors of 128 bytes\nfork: CPU_Mapped holds 1 tensors of 9 bytes\n";
        assert_eq!(buffers(log), [("AMX".to_string(), 128), ("CPU_Mapped".to_string(), 9)]);
    }
}

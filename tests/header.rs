//! The checked-in C header and the table of types for C tests are those that the sources generate.

#[test]
fn the_checked_in_headers_are_the_generated_ones() {
    let generated = include_str!(concat!(env!("OUT_DIR"), "/ggml-amx.h"));
    let checked_in = include_str!("../include/ggml-amx.h");
    assert!(generated == checked_in, "include/ggml-amx.h has drifted: run `cargo xtask header`");
    let generated = include_str!(concat!(env!("OUT_DIR"), "/types.h"));
    assert!(generated == include_str!("../c_tests/types.h"), "c_tests/types.h has drifted: run `cargo xtask header`");
}

#[test]
fn the_version_macros_are_the_version_of_cargo_toml() {
    let header = include_str!("../include/ggml-amx.h");
    for (name, value) in [
        ("_MAJOR", env!("CARGO_PKG_VERSION_MAJOR").to_string()),
        ("_MINOR", env!("CARGO_PKG_VERSION_MINOR").to_string()),
        ("_PATCH", env!("CARGO_PKG_VERSION_PATCH").to_string()),
        ("", format!("\"{}\"", env!("CARGO_PKG_VERSION"))),
    ] {
        assert!(header.contains(&format!("\n#define GGML_AMX_VERSION{name} {value}\n")), "GGML_AMX_VERSION{name}");
    }
}

#[test]
fn every_function_of_the_header_is_documented_in_a_c_readers_terms() {
    let header = include_str!("../include/ggml-amx.h");
    let mut functions = 0;
    for comment in header.split("/**").skip(1) {
        let (comment, code) = comment.split_once("*/").unwrap();
        let declaration = code.split(';').next().unwrap_or_default();
        if !declaration.contains('(') || declaration.contains('{') {
            continue; // an enum, a struct, or the last one of these
        }
        functions += 1;
        let takes = !declaration.contains("(void)");
        let words = ["Returns:", "Threads:"].into_iter().chain(takes.then_some("Parameters:"));
        for word in words.chain(declaration.contains('*').then_some("Ownership:")) {
            assert!(comment.contains(word), "no `{word}` for{declaration}");
        }
    }
    let declared = header.lines().filter(|line| !line.starts_with("//") && line.ends_with(");")).count();
    assert_eq!(functions, declared, "a function without a comment");
    assert!(functions > 10 && !header.contains("# Safety"), "{functions}");
}

/// Compiles the assertions of the build script against this header. `None` if there is no C compiler.
fn is_accepted(name: &str, header: &str) -> Option<bool> {
    let dir = std::env::temp_dir().join(format!("ggml-amx-header-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("ggml-amx.h"), header).unwrap();
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let assertions = concat!(env!("OUT_DIR"), "/layout.c");
    let output = std::process::Command::new(compiler)
        .args(["-std=c11", "-fsyntax-only", "-I"])
        .arg(&dir)
        .arg(assertions)
        .output();
    std::fs::remove_dir_all(&dir).unwrap();
    output.ok().map(|o| o.status.success())
}

#[test]
fn the_example_on_top_of_the_header_compiles() {
    let header = include_str!("../include/ggml-amx.h");
    let example: String = header
        .lines()
        .take_while(|l| l.starts_with("//"))
        .filter_map(|l| l.strip_prefix("//     "))
        .collect::<Vec<_>>()
        .join("\n");
    assert!(example.contains("ggml_amx_mul_mat(&args)"), "{example}");
    let code = format!(
        "#include <stdio.h>\n#include <stdlib.h>\n#include \"ggml-amx.h\"\n\
         int32_t f(int64_t k, int64_t n, int64_t m, const void * plain, size_t plain_size, const float * floats, float * results);\n\
         int32_t f(int64_t k, int64_t n, int64_t m, const void * plain, size_t plain_size, const float * floats, float * results) {{\n\
         {example}\nfree(packed);\nreturn status;\n}}\n"
    );
    let file = std::env::temp_dir().join(format!("ggml-amx-example-{}.c", std::process::id()));
    std::fs::write(&file, code).unwrap();
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let include = concat!("-I", env!("CARGO_MANIFEST_DIR"), "/include");
    let output = std::process::Command::new(compiler)
        .args(["-std=c11", "-Wall", "-Wextra", "-Wno-missing-field-initializers", "-Werror", "-fsyntax-only", include])
        .arg(&file)
        .output();
    std::fs::remove_file(&file).unwrap();
    match output {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => println!("SKIPPED: no C compiler"),
    }
}

#[test]
fn a_header_with_other_sizes_or_offsets_does_not_compile_with_the_assertions_of_the_build() {
    let header = include_str!("../include/ggml-amx.h");
    let Some(as_it_is) = is_accepted("same", header) else {
        println!("SKIPPED: no C compiler");
        return;
    };
    assert!(as_it_is);
    let changes = [
        ("wider", "  int32_t isa;", "  int64_t isa;"),
        ("inserted", "  int64_t k;", "  int64_t reserved_too; int64_t k;"),
        ("gone", "  size_t packed_size;", ""),
        ("longer", "  size_t dst_stride;", "  size_t dst_stride; size_t more;"),
        ("narrower", "  int32_t reserved;", "  int16_t reserved;"),
    ];
    for (name, from, to) in changes {
        assert_eq!(header.matches(from).count(), 1, "{name}: the header has no `{from}`");
        assert_eq!(is_accepted(name, &header.replace(from, to)), Some(false), "{name}");
    }
}

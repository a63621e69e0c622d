//! The checked-in C header, and the table of types for C tests, are those the sources generate.

#[test]
fn the_checked_in_headers_are_the_generated_ones() {
    let generated = include_str!(concat!(env!("OUT_DIR"), "/ggml-amx.h"));
    let checked_in = include_str!("../include/ggml-amx.h");
    assert!(generated == checked_in, "include/ggml-amx.h has drifted: run `cargo xtask header`");
    let generated = include_str!(concat!(env!("OUT_DIR"), "/types.h"));
    assert!(generated == include_str!("../c_tests/types.h"), "c_tests/types.h has drifted: run `cargo xtask header`");
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

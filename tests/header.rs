//! The checked-in C header is the one the sources generate.

#[test]
fn the_checked_in_header_is_the_generated_one() {
    let generated = include_str!(concat!(env!("OUT_DIR"), "/ggml-amx.h"));
    let checked_in = include_str!("../include/ggml-amx.h");
    assert!(generated == checked_in, "include/ggml-amx.h has drifted: run `cargo xtask header`");
}

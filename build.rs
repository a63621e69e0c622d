//! Generates the C header from `src/capi` into `OUT_DIR`, where a test compares it with the one that is
//! checked in. With `GGML_AMX_UPDATE_HEADER=1` the checked-in header is written too.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed=cbindgen.toml");
    println!("cargo:rerun-if-env-changed=GGML_AMX_UPDATE_HEADER");
    // A name to link by, and no unloading: hosts keep pointers to our static objects, and worker
    // threads may still run our code when a plug-in loader closes us.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libggml_amx.so");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");

    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    let header = out.join("ggml-amx.h");
    match generate(&root) {
        Ok(bindings) => {
            bindings.write_to_file(&header);
            if std::env::var_os("GGML_AMX_UPDATE_HEADER").is_some_and(|v| v == "1") {
                bindings.write_to_file(root.join("include/ggml-amx.h"));
            }
        }
        Err(error) => panic!("cbindgen: {error}"),
    }
}

fn generate(root: &Path) -> Result<cbindgen::Bindings, cbindgen::Error> {
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    let sources = ["src/capi/types.rs", "src/capi/standalone.rs", "src/capi/backend.rs"];
    sources
        .iter()
        .fold(cbindgen::Builder::new().with_config(config), |builder, file| builder.with_src(root.join(file)))
        .generate()
}

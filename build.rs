//! Generates the C header from `src/capi` and the table of weight types, and the table for C tests, into `OUT_DIR`,
//! where a test compares them with those that are checked in. With `GGML_AMX_UPDATE_HEADER=1` the checked-in files are
//! written too. Then a C compiler, if there is one, compares the header's structs with those of the library.

use std::path::{Path, PathBuf};
use std::{env, fs};

#[path = "src/capi/args.rs"]
#[allow(dead_code)] // only sizes and offsets matter here
mod args;
#[path = "src/format/table.rs"]
#[allow(dead_code)] // not all columns are for C
mod table;

use table::{FieldKind, ROWS, TypeRow};

/// A C compiler that cannot compile this is not asked about the header.
const ANY_PROGRAM: &str = "#include <stdbool.h>\n#include <stddef.h>\n#include <stdint.h>\n_Static_assert(1, \"\");\n";

fn main() {
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed=include");
    println!("cargo:rerun-if-changed=cbindgen.toml");
    println!("cargo:rerun-if-env-changed=GGML_AMX_UPDATE_HEADER");
    println!("cargo:rerun-if-env-changed=CC");
    // A name to link by, and no unloading: hosts keep pointers to our static objects, and worker
    // threads may still run our code when a plug-in loader closes us.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libggml_amx.so");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");

    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let header = out.join("ggml-amx.h");
    let types = out.join("types.rs");
    write(&types, &enum_of_types());
    write(&out.join("types.h"), &types_for_c_tests());
    match generate(&root, &types) {
        Ok(bindings) => {
            let text = for_c_readers(&bindings);
            write(&header, &text);
            if env::var_os("GGML_AMX_UPDATE_HEADER").is_some_and(|v| v == "1") {
                write(&root.join("include/ggml-amx.h"), &text);
                write(&root.join("c_tests/types.h"), &types_for_c_tests());
            }
        }
        Err(error) => panic!("cbindgen: {error}"),
    }
    compare_layouts(&root.join("include"), &header, &out);
}

fn generate(root: &Path, types: &Path) -> Result<cbindgen::Bindings, cbindgen::Error> {
    let mut config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    config.after_includes = Some(version_macros());
    let builder = cbindgen::Builder::new().with_config(config).with_src(root.join("src/capi/types.rs")).with_src(types);
    let sources = ["src/capi/args.rs", "src/capi/standalone.rs", "src/capi/backend.rs"];
    sources.iter().fold(builder, |builder, file| builder.with_src(root.join(file))).generate()
}

fn write(file: &Path, text: &str) {
    fs::write(file, text).unwrap_or_else(|e| panic!("cannot write {}: {e}", file.display()));
}

/// The header's enum of weight types, in the Rust that cbindgen reads.
fn enum_of_types() -> String {
    let mut text = String::from(
        "/// The weight types that are packed; the numbers are those of ggml's enum ggml_type, above 100 of ik_llama.cpp's.\n\
         #[repr(C)]\n\
         pub enum ggml_amx_type {\n",
    );
    for TypeRow { capitals, number, origin, block, bytes, fields, .. } in ROWS {
        let needs_host = fields.iter().any(|f| f.kind == FieldKind::Indices);
        let note = match origin {
            table::Origin::Ik => "; ik_llama.cpp's",
            _ if needs_host => "; ggml_amx_mul_mat needs a ggml in the process",
            _ => "",
        };
        text += &format!("    /// {block} weights in {bytes} bytes{note}.\n    GGML_AMX_TYPE_{capitals} = {number},\n");
    }
    text + "}\n"
}

/// The table as C macros: `TYPE_...` is a type's number, `ROW_...` begins the initialiser of a `struct format`.
fn types_for_c_tests() -> String {
    let mut text = String::from(
        "/* The table of weight types. Generated from src/format/table.rs by the build script; `cargo xtask header` writes\n \
         * it anew. Do not edit. */\n\
         #ifndef GGML_AMX_TEST_TYPES_H\n#define GGML_AMX_TEST_TYPES_H\n\n\
         /* What the bytes of a field mean. */\n\
         enum field_kind { FIELD_END, FIELD_F16, FIELD_F32, FIELD_E8M0, FIELD_UE4M3, FIELD_F16_NIBBLES, FIELD_U8, FIELD_QUANTS, FIELD_INDICES };\n\n\
         /* A field of a block: its kind, first byte and bytes. */\n\
         struct format_field {\n    enum field_kind kind;\n    int at, bytes;\n};\n\n\
         enum {\n",
    );
    for row in ROWS {
        text += &format!("    TYPE_{} = {},\n", row.capitals, row.number);
    }
    text += "};\n\n/* Number, name, weights and bytes of a block, fields. */\n";
    for TypeRow { capitals, block, bytes, fields, .. } in ROWS {
        let fields: Vec<String> =
            fields.iter().map(|f| format!("{{{}, {}, {}}}", kind_in_c(f.kind), f.offset, f.len)).collect();
        let fields = fields.join(", ");
        text += &format!("#define ROW_{capitals} TYPE_{capitals}, \"{capitals}\", {block}, {bytes}, {{{fields}}}\n");
    }
    text + "\n#endif\n"
}

fn kind_in_c(kind: FieldKind) -> &'static str {
    match kind {
        FieldKind::F16 => "FIELD_F16",
        FieldKind::F32 => "FIELD_F32",
        FieldKind::E8M0 => "FIELD_E8M0",
        FieldKind::UE4M3 => "FIELD_UE4M3",
        FieldKind::F16Nibbles => "FIELD_F16_NIBBLES",
        FieldKind::U8 => "FIELD_U8",
        FieldKind::Quants => "FIELD_QUANTS",
        FieldKind::Indices => "FIELD_INDICES",
    }
}

/// The version of Cargo.toml, for the preprocessor.
fn version_macros() -> String {
    let of = |part: &str| env::var(format!("CARGO_PKG_VERSION{part}")).expect("cargo sets it");
    let line = |name: &str, value: String| format!("#define GGML_AMX_VERSION{name} {value}\n");
    String::from("\n/* The version of this header; ggml_amx_version() is that of the library. */\n")
        + &line("_MAJOR", of("_MAJOR"))
        + &line("_MINOR", of("_MINOR"))
        + &line("_PATCH", of("_PATCH"))
        + line("", format!("\"{}\"", of(""))).trim_end()
}

/// The header's text, with a heading that C readers know instead of Rust's `# Safety`.
fn for_c_readers(bindings: &cbindgen::Bindings) -> String {
    let mut text = Vec::new();
    bindings.write(&mut text);
    String::from_utf8(text).expect("cbindgen writes UTF-8").replace(" * # Safety\n", " * Preconditions:\n")
}

/// A struct of the header: its name there, its size, and of every field the name, offset and size.
struct Layout {
    name: &'static str,
    size: usize,
    fields: Vec<(&'static str, usize, usize)>,
}

/// The size of the field that `_get` gives.
fn size_of_field<S, F>(_get: fn(&S) -> &F) -> usize {
    size_of::<F>()
}

/// The layout of a struct of `args`, all of whose fields must be named.
macro_rules! layout {
    ($name:literal = $ty:ident { $($field:ident),* $(,)? }) => {{
        let _all_of_them = |x: $ty| { let $ty { $($field: _),* } = x; };
        Layout {
            name: $name,
            size: size_of::<$ty>(),
            fields: vec![$((
                stringify!($field).trim_start_matches("r#"),
                core::mem::offset_of!($ty, $field),
                size_of_field(|x: &$ty| &x.$field),
            )),*],
        }
    }};
}

fn layouts() -> Vec<Layout> {
    use args::MulMatArgs;
    vec![layout!(
        "ggml_amx_mul_mat_args" = MulMatArgs {
            struct_size,
            r#type,
            n_threads,
            isa,
            reserved,
            k,
            n,
            m,
            packed,
            packed_size,
            src1,
            src1_stride,
            dst,
            dst_stride,
        }
    )]
}

/// The C source that compiles only if the header has these layouts.
fn assertions(layouts: &[Layout]) -> String {
    // Not in quotes: the generated one lies beside this source.
    let mut text = String::from("#include <ggml-amx.h>\n");
    let mut demand = |expression: String, value: usize| {
        text += &format!("_Static_assert({expression} == {value}, \"the library has {value}\");\n");
    };
    for Layout { name, size, fields } in layouts {
        demand(format!("sizeof(struct {name})"), *size);
        for (field, offset, size) in fields {
            demand(format!("offsetof(struct {name}, {field})"), *offset);
            demand(format!("sizeof(((struct {name} *) 0)->{field})"), *size);
        }
    }
    text
}

/// Ends the build if the checked-in header has other sizes or offsets than the library.
fn compare_layouts(include: &Path, generated: &Path, out: &Path) {
    let layouts = layouts();
    let header = fs::read_to_string(generated).expect("written above");
    for line in header.lines().filter(|line| line.starts_with("struct ") && line.ends_with('{')) {
        let known = layouts.iter().any(|layout| line == format!("struct {} {{", layout.name));
        assert!(known, "build.rs does not compare `{line}` of the header: add it to layouts()");
    }
    let width = env::var("CARGO_CFG_TARGET_POINTER_WIDTH").expect("cargo sets it");
    if width != usize::BITS.to_string() {
        return; // the sizes known here are those of the machine that builds
    }
    let source = |name: &str, text: &str| {
        let file = out.join(name);
        write(&file, text);
        let mut build = cc::Build::new();
        build.cargo_metadata(false).std("c11").include(include).file(file);
        build
    };
    let compare = source("layout.c", &assertions(&layouts));
    if let Err(why) = source("any.c", ANY_PROGRAM).cargo_warnings(false).try_compile_intermediates() {
        println!(
            "cargo:warning=ggml-amx: include/ggml-amx.h is not compared with the library, for no C compiler works: {why}"
        );
        println!("cargo:warning=ggml-amx: the library needs none, and is complete. CC names another compiler.");
        return;
    }
    if compare.try_compile_intermediates().is_err() {
        panic!(
            "include/ggml-amx.h has other sizes or offsets than the library, see the warnings above and {}.\n\
             After a change in src/capi: `cargo xtask header`.",
            out.join("layout.c").display()
        );
    }
}

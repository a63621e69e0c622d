//! Adding a weight type takes two files of the library: its own, and its row in the table.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// What a checkout needs to be compiled.
const TREE: [&str; 11] = [
    "Cargo.toml",
    "Cargo.lock",
    "build.rs",
    "cbindgen.toml",
    "README.md",
    "src",
    "benches",
    "c_tests",
    "include",
    "tests",
    "xtask",
];
/// What the build script writes.
const GENERATED: [&str; 2] = ["c_tests/types.h", "include/ggml-amx.h"];
/// A row like that of Q5_1.
const ROW: &str = r#"        MADE_UP = 999, "made_up", made_up::MadeUp, of Ik, 32 in 24,
            [d: F16 2/2, m: F16 2/2, qh: Quants 4/4, qs: Quants 16/4],
            "Made up.";
"#;

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name() != "target" {
                copy(&entry.path(), &to.join(entry.file_name()));
            }
        }
    } else {
        fs::copy(from, to).unwrap();
    }
}

/// Every file below `dir`, by its path from `root`.
fn contents(root: &Path, dir: &Path, into: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            contents(root, &path, into);
        } else {
            into.insert(path.strip_prefix(root).unwrap().to_path_buf(), fs::read(&path).unwrap());
        }
    }
}

#[test]
fn given_a_made_up_type_then_two_files_are_all_it_touches() {
    let repo = Path::new(env!("CARGO_MANIFEST_DIR"));
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("new-type");
    let tree = scratch.join("tree");
    let _ = fs::remove_dir_all(&tree);
    fs::create_dir_all(&tree).unwrap();
    TREE.iter().for_each(|name| copy(&repo.join(name), &tree.join(name)));
    let all = || {
        let mut all = BTreeMap::new();
        contents(&tree, &tree, &mut all);
        all
    };
    let before = all();

    let implementation = fs::read_to_string(tree.join("src/format/q5_1.rs")).unwrap();
    fs::write(tree.join("src/format/made_up.rs"), implementation.replace("Q5_1", "MadeUp")).unwrap();
    let table = fs::read_to_string(tree.join("src/format/table.rs")).unwrap();
    let end = table.find("    } };\n").expect("the end of the rows");
    fs::write(tree.join("src/format/table.rs"), format!("{}{ROW}{}", &table[..end], &table[end..])).unwrap();

    // The library, its tests and benchmarks, and xtask.
    let output = Command::new(env!("CARGO"))
        .args(["check", "--workspace", "--all-targets", "--offline", "--locked", "--target-dir"])
        .arg(scratch.join("target"))
        .current_dir(&tree)
        .env("GGML_AMX_UPDATE_HEADER", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let after = all();
    let touched: Vec<String> = after
        .iter()
        .filter(|(path, bytes)| before.get(*path) != Some(bytes))
        .map(|(path, _)| path.display().to_string())
        .collect();
    let (generated, by_hand): (Vec<String>, Vec<String>) =
        touched.into_iter().partition(|path| GENERATED.contains(&path.as_str()));
    assert_eq!(by_hand, ["src/format/made_up.rs", "src/format/table.rs"]);
    assert_eq!(generated, GENERATED);
    let has = |file: &str, text: &str| String::from_utf8_lossy(&after[Path::new(file)]).contains(text);
    assert!(has("include/ggml-amx.h", "GGML_AMX_TYPE_MADE_UP = 999,"));
    assert!(has("c_tests/types.h", "#define ROW_MADE_UP TYPE_MADE_UP, \"MADE_UP\", 32, 24, {{FIELD_F16, 0, 2}"));
}

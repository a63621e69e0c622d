//! `--newest`: versions of the pinned packages that their indexes have now.

use std::time::Instant;

use super::{
    Bench, Row,
    hosts::{Made, library, shared},
};
use crate::{
    cache::Cache,
    fetch,
    host::{self, Kind},
    util::{self, Result},
};

/// Newer versions of the packages that are pinned; `above` are the rows of the pinned ones.
pub(super) fn newer(bench: &Bench, above: &[Row]) -> Vec<Row> {
    let packages = [
        (&fetch::HOST, Kind::Llama, "llama.cpp, Python package", "llama.cpp"),
        (&fetch::LATER, Kind::Later, "llama.cpp, Rust package", "llama.cpp, later"),
        (&fetch::IK, Kind::IkOurs, "ik_llama.cpp, Python package", "ik_llama.cpp"),
        (&fetch::NODE, Kind::Dl, "node-llama-cpp", "node-llama-cpp, prebuilt"),
    ];
    let look = |(package, kind, name, pinned): (&fetch::Package, Kind, &'static str, &'static str)| {
        println!("  newest {name}");
        let begin = Instant::now();
        let mut cells = vec![format!("newest {name}"), String::new(), String::new()];
        let done = newest(bench, package, kind, &mut cells, above.iter().find(|row| row.cells[0] == pinned));
        cells.resize(7, "-".into());
        cells.push(match &done {
            Err(_) => "FAILED".into(),
            Ok(false) => "not looked at".into(),
            Ok(true) => util::seconds(begin.elapsed()),
        });
        Row { failed: done.err().map(|why| format!("newest {name}: {why}")), cells, is_absent: false }
    };
    packages.into_iter().map(look).collect()
}

/// Whether it was looked at, here or in the row of the pinned version.
fn newest(
    bench: &Bench,
    package: &fetch::Package,
    kind: Kind,
    cells: &mut Vec<String>,
    pinned: Option<&Row>,
) -> Result<bool> {
    let newest = package.newest(&Cache::open()?)?;
    cells[1].clone_from(&newest.version);
    if newest.version == package.version() {
        cells[2] = "is the pinned one".into();
        return match pinned {
            None => Ok(false),
            Some(Row { failed: Some(_), .. }) => Err("is the pinned one, which failed".into()),
            Some(_) => Ok(true),
        };
    }
    let source = fetch::other_version(&Cache::open()?, package, &newest)?;
    let version = newest.version;
    let libraries = if kind == Kind::Dl {
        cells[2] = "by function".into();
        vec![source.join("libggml-base.so"), library(&source, "libggml.")?, source, bench.ours.clone()]
    } else {
        cells[2] = if kind.is_ik() { "linked" } else { "swapped in" }.into();
        let host = host::of_tree(kind, source, &format!("newest-{}-{version}", kind.name()))?;
        if kind.is_ik() { vec![host.build.join("ggml/src/libggml.so")] } else { shared(&host) }
    };
    bench.check(&Made { version, libraries, llama: None, loader: None }, cells)?;
    Ok(true)
}

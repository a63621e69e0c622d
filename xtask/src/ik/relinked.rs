//! Hosts of which one library was linked otherwise than by its own build, with this library preloaded: it must leave
//! them alone and say so.

use std::{fs, path::Path, process::Command};

use super::{SYSTEM_LIBRARIES, objects, short_answer};
use crate::{
    cache::{self, Cache},
    demo::Plan,
    fetch,
    host::{self, Host, Kind},
    preload,
    program::{self, Settings},
    util::{self, Result, io},
};

/// A library of the host whose calls stay inside it (`-Bsymbolic-functions`, which distributions link with): a
/// preloaded library is not reached. It must say so, pack nothing, and leave the answer as it is.
pub fn out_of_reach() -> Result<()> {
    let link = |host: &Host, dir: &Path| {
        let mut link = Command::new(&host.compiler.cxx);
        link.args(["-shared", "-Wl,-Bsymbolic-functions,-soname,libggml.so", "-o"]).arg(dir.join("libggml.so"));
        link.args(objects(&host.build.join("ggml/src/CMakeFiles"))?).args(SYSTEM_LIBRARIES);
        util::capture(&mut link, &cache::log("ik-symbolic-link")?).map(|_| ())
    };
    changed("linked with -Bsymbolic-functions", "nothing is packed", &[true], link)
}

/// A library of a later host, one of whose kernels has one more argument between the others. It must be left alone,
/// with weights in place too.
pub fn other_arguments() -> Result<()> {
    const KERNEL: &str = "iqk_mul_mat_4d";
    let link = |host: &Host, dir: &Path| {
        let log = cache::log("ik-other-arguments")?;
        let mut all = Vec::new();
        for (number, object) in objects(&host.build.join("ggml/src/CMakeFiles"))?.into_iter().enumerate() {
            let name = object.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // The file that defines the kernel gets one name, the files that call it the other.
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
        link.args(SYSTEM_LIBRARIES);
        util::capture(&mut link, &log).map(|_| ())
    };
    changed("a kernel with one more argument", "with other arguments than are known", &[true, false], link)
}

/// A host with one library that `link` makes, in a directory, and with this library preloaded: for each mode in
/// `packed` the answer must be that of the host alone, and a line must say why (`says`).
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

//! Trees that are not known, as the modules see it: in llama.cpp they are left as they are, in ik_llama.cpp they end
//! the configure.

use std::{fs, process::Command};

use super::{Bench, RELEASE, unwrapped, write};
use crate::{
    cache,
    util::{self, Result, io},
};

/// Versions of llama.cpp that are not known: an option of the small tree, and what the module says of it. Macros are
/// defined in every way in which the types of a target can be changed.
const UNKNOWN: [(&str, &str); 16] = [
    ("-DWITHOUT=ggml-cpu/amx/mmq.cpp", "has no source ggml-cpu/amx/mmq.cpp"),
    ("-DMORE=ggml-cpu/amx/tile.cpp", "has a source ggml-cpu/amx/tile.cpp"),
    ("-DMORE=ggml-cpu/other.cpp", "ggml-cpu/other.cpp of target ggml-cpu uses its AMX code too"),
    ("-DNAME=ggml_cpu", "found none (target ggml_cpu is one with its sources"),
    ("-DCMAKE_SYSTEM_PROCESSOR=aarch64;-DCMAKE_SYSTEM_NAME=Linux", "this build is for Linux aarch64"),
    ("-DCMAKE_CXX_FLAGS=-DOTHER_ORDER", "unknown type of extra_buffer_type"),
    ("-DCMAKE_CXX_FLAGS_RELEASE=-O2 -DOTHER_ORDER", "unknown type of extra_buffer_type"),
    ("-DDEFINED_FOR_FOLDER=OTHER_ORDER", "unknown type of extra_buffer_type"),
    ("-DDEFINED_FOR_TARGET=OTHER_ORDER", "unknown type of extra_buffer_type"),
    ("-DDEFINED_FOR_LINKED=OTHER_ORDER", "unknown type of extra_buffer_type"),
    ("-DDEFINED_FOR_TARGET=OTHER_SWAPPED", "unknown order of the virtual functions of tensor_traits"),
    ("-DDEFINED_FOR_TARGET=OTHER_FRONT", "unknown order of the virtual functions of tensor_traits"),
    ("-DDEFINED_FOR_TARGET=OTHER_BEHIND", "unknown order of the virtual functions of extra_buffer_type"),
    ("-DDEFINED_FOR_TARGET=OTHER_FIELD", "unknown type of ggml_compute_params: ith"),
    ("-DDEFINED_FOR_TARGET=OTHER_GUARD", "ggml-cpu.cpp does not call ggml_backend_amx_buffer_type()"),
    ("-DDEFINED_FOR_TARGET=OTHER_CALL", "ggml-cpu.cpp calls _Z24ggml_backend_amx_preparev"),
];

/// Cases, one of each kind, in which GGML_AMX_REQUIRED must end the configure.
const REQUIRED: [usize; 4] = [0, 3, 4, 9];

impl Bench {
    /// A llama.cpp that is not known gets a warning that says why, and the build goes on; with GGML_AMX_REQUIRED it is
    /// an error.
    pub(super) fn trees_that_cannot_be_served_are_left_as_they_are(&self) -> Result<()> {
        let module = util::repo().join("cmake/llama-host.cmake");
        for (number, (option, why)) in UNKNOWN.into_iter().enumerate() {
            let build = self.dir.join(format!("llama-unknown-{number}"));
            let options: Vec<&str> = [RELEASE].into_iter().chain(option.split(';')).collect();
            let mut configure = self.configure("llama", &build, &module, &options);
            let said = util::capture(&mut configure, &cache::log("cmake-tests-unknown")?)?.stderr;
            let said = unwrapped(&said);
            for part in [why, "left as it is", "GGML_AMX_REQUIRED"] {
                if !said.contains(part) {
                    return Err(format!("{option}: no `{part}` in {said}"));
                }
            }
            let mut rules = self.build(&build);
            rules.args(["--", "-t", "commands"]);
            let rules = util::capture(&mut rules, &cache::log("cmake-tests-unknown")?)?.stdout;
            if !rules.contains("ggml-cpu/amx/amx.cpp") || rules.contains("ggml-amx.o") || rules.contains("amx-macros") {
                return Err(format!("{option}: an unknown tree was changed"));
            }
            if !REQUIRED.contains(&number) {
                continue;
            }
            let options: Vec<&str> = options.into_iter().chain(["-DGGML_AMX_REQUIRED=ON"]).collect();
            let mut required = self.configure("llama", &build, &module, &options);
            match util::capture(&mut required, &cache::log("cmake-tests-required")?) {
                Err(said) if unwrapped(&said).contains(why) => {}
                Err(said) => return Err(format!("GGML_AMX_REQUIRED: {said}")),
                Ok(_) => return Err(format!("GGML_AMX_REQUIRED: {option} was no error")),
            }
        }
        println!(
            "  trees that are not known are left as they are, {} kinds, or end the configure if asked to",
            UNKNOWN.len()
        );
        Ok(())
    }

    /// Warnings and noexcept do not matter, and both options of CMake bring the module in.
    pub(super) fn trees_that_can_be_served_are(&self) -> Result<()> {
        let (library, module) = (self.stand_in()?, util::repo().join("cmake/llama-host.cmake"));
        let top_level = format!("-DCMAKE_PROJECT_TOP_LEVEL_INCLUDES={}", module.display());
        let cases = [
            ["-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror", RELEASE],
            ["-DDEFINED_FOR_TARGET=KNOWN_NOEXCEPT", RELEASE],
            ["-DCMAKE_PROJECT_INCLUDE=", &top_level],
        ];
        for (number, [first, second]) in cases.into_iter().enumerate() {
            let options = [first, second, library.as_str()];
            let build = self.dir.join(format!("llama-known-{number}"));
            let mut configure = self.configure("llama", &build, &module, &options);
            let said = util::capture(&mut configure, &cache::log("cmake-tests-known")?)?;
            if !said.stdout.contains("replaces the AMX code of ggml-cpu") {
                return Err(format!("{first}: was not served: {}", said.stderr));
            }
        }
        println!("  warnings that are errors, noexcept, and CMAKE_PROJECT_TOP_LEVEL_INCLUDES change nothing");
        Ok(())
    }

    /// An ik_llama.cpp whose kernels take something else.
    pub(super) fn kernels_of_another_type_end_the_configure(&self) -> Result<()> {
        let (library, module) = (self.stand_in()?, util::repo().join("cmake/llama-host.cmake"));
        let ways =
            ["CMAKE_CXX_FLAGS", "CMAKE_CXX_FLAGS_RELEASE", "FLAGS_OF_FOLDER", "OPTION_OF_TARGET", "OPTION_OF_LINKED"];
        for way in ways {
            let other = format!("-D{way}=-DOTHER_KERNEL");
            let options = [RELEASE, &other, &library];
            let mut configure = self.configure("ik", &self.dir.join(format!("ik-{way}")), &module, &options);
            match util::capture(&mut configure, &cache::log("cmake-tests-ik")?) {
                Err(why) if unwrapped(&why).contains("unknown type of iqk_mul_mat_4d") => {}
                Err(why) => return Err(format!("a kernel of another type, {way}: {why}")),
                Ok(_) => return Err(format!("a kernel of another type was taken, {way}")),
            }
        }
        println!("  kernels of another type end the configure, {} ways", ways.len());
        Ok(())
    }

    /// A tree that is updated after it was configured.
    pub(super) fn headers_that_change_are_looked_at_again(&self) -> Result<()> {
        let (library, module) = (self.stand_in()?, util::repo().join("cmake/llama-host.cmake"));
        let cases = [
            ("llama", "src/ggml-cpu/traits.h", "OTHER_ORDER", "unknown type of extra_buffer_type"),
            ("ik", "src/iqk/iqk_mul_mat.h", "OTHER_KERNEL", "unknown type of iqk_mul_mat_4d"),
        ];
        for (tree, header, other, why) in cases {
            let (copy, build) = (self.dir.join(format!("tree-{tree}")), self.dir.join(format!("changed-{tree}")));
            let mut copies = Command::new("cp");
            copies.arg("-r").arg(util::repo().join("cmake/tests").join(tree)).arg(&copy);
            util::capture(&mut copies, &cache::log("cmake-tests-changed")?)?;
            let mut configure = self.configure(&copy.to_string_lossy(), &build, &module, &[RELEASE, &library]);
            util::capture(&mut configure, &cache::log("cmake-tests-changed")?)?;
            let header = copy.join(header);
            let text = io("read", &header, fs::read_to_string(&header))?;
            write(&header, &text.replace(&format!("#ifdef {other}"), "#if 1"))?;
            let mut again = self.build(&build);
            again.args(["--target", "build.ninja"]);
            let said = match util::capture(&mut again, &cache::log("cmake-tests-changed")?) {
                Ok(_) if tree == "ik" => return Err("a kernel whose type has changed was taken".into()),
                Ok(said) => said.stderr + &said.stdout,
                Err(why) => why,
            };
            if !unwrapped(&said).contains(why) {
                return Err(format!("{} has changed, and nothing said `{why}`: {said}", header.display()));
            }
        }
        println!("  headers that change are looked at again");
        Ok(())
    }
}

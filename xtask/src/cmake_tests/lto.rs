//! Link-time optimisation of ik_llama.cpp must be found, however it is turned on.

use super::{Bench, MULTI, RELEASE};
use crate::{
    cache,
    util::{self, Result},
};

/// Options of a configure run, and whether they turn link-time optimisation on for code that calls are taken from.
type LtoCase = (&'static [&'static str], bool);

const LTO_CASES: [LtoCase; 16] = [
    (&[RELEASE], false),
    (&[RELEASE, "-DCMAKE_CXX_FLAGS=-flto"], true),
    (&[RELEASE, "-DCMAKE_CXX_FLAGS_RELEASE=-O2 -flto=auto"], true),
    (&[RELEASE, "-DCMAKE_C_FLAGS_RELEASE=-O2 -flto"], true),
    (&["-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_RELEASE=-O2 -flto"], false),
    (&[RELEASE, "-DCMAKE_CXX_FLAGS=-flto", "-DCMAKE_CXX_FLAGS_RELEASE=-O2 -fno-lto"], false),
    (&[RELEASE, "-DFLAGS_OF_FOLDER=-flto"], true),
    (&[RELEASE, "-DOPTION_OF_TARGET=-flto"], true),
    (&[RELEASE, "-DOPTION_OF_LINKED=-flto"], true),
    (&[RELEASE, "-DOPTION_OF_FILE=-flto"], true),
    (&[RELEASE, "-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=ON"], true),
    (&["-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=ON"], true),
    (&[MULTI], false),
    (&[MULTI, "-DCMAKE_CXX_FLAGS_RELEASE=-O2 -flto"], true),
    (&[MULTI, "-DCMAKE_INTERPROCEDURAL_OPTIMIZATION_RELEASE=ON"], true),
    (&[RELEASE, "-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=ON", "-DCMAKE_INTERPROCEDURAL_OPTIMIZATION_RELEASE=OFF"], false),
];

impl Bench {
    /// Calls inside one link-time unit never reach the linker's `--wrap`.
    pub(super) fn link_time_optimisation_is_found(&self) -> Result<()> {
        let library = self.stand_in()?;
        for (number, (options, is_on)) in LTO_CASES.into_iter().enumerate() {
            let build = self.dir.join(format!("ik-{number}"));
            let options: Vec<&str> = options.iter().copied().chain([library.as_str()]).collect();
            let mut configure = self.configure("ik", &build, &util::repo().join("cmake/llama-host.cmake"), &options);
            let outcome = util::capture(&mut configure, &cache::log("cmake-tests-ik")?);
            match outcome {
                Ok(_) if is_on => return Err(format!("link-time optimisation was not found: {options:?}")),
                Err(why) if !is_on || !why.contains("link-time optimisation") => {
                    return Err(format!("{options:?}: {why}"));
                }
                _ => {}
            }
        }
        println!("  link-time optimisation is found, {} ways", LTO_CASES.len());
        Ok(())
    }
}

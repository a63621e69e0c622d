# Builds the crate with cargo from a CMake build. Used by CMakeLists.txt (install) and by
# llama-host.cmake (link into a host); only a source checkout has this file.

# Adds the custom target NAME, which leaves libggml_amx.a and libggml_amx.so in
# TARGET_DIR/release. It runs at every build because only cargo knows what has changed.
function(ggml_amx_add_cargo_build NAME TARGET_DIR)
    cmake_path(GET CMAKE_CURRENT_FUNCTION_LIST_DIR PARENT_PATH repo)

    if(CMAKE_CROSSCOMPILING)
        message(FATAL_ERROR "ggml-amx: building the library while cross-compiling is not supported; "
                            "build it on the target and pass -DGGML_AMX_LIBRARY=/path/to/libggml_amx.a")
    endif()
    find_program(GGML_AMX_CARGO cargo HINTS ENV CARGO_HOME "$ENV{HOME}/.cargo" PATH_SUFFIXES bin
                 DOC "cargo, to build libggml_amx")
    if(NOT GGML_AMX_CARGO)
        message(FATAL_ERROR "ggml-amx: cargo not found. Install Rust (https://rustup.rs), or pass "
                            "-DGGML_AMX_CARGO=/path/to/cargo, or use a prebuilt library: "
                            "-DGGML_AMX_LIBRARY=/path/to/libggml_amx.a")
    endif()

    # CARGO_BUILD_TARGET would move the output to another folder; MAKEFLAGS names a job server
    # that make does not hand on to custom commands, which rustc complains about.
    # The working directory matters: cargo looks for .cargo/config.toml from there.
    add_custom_target(${NAME}
        COMMAND "${CMAKE_COMMAND}" -E env --unset=CARGO_BUILD_TARGET --unset=MAKEFLAGS
                "${GGML_AMX_CARGO}" build --release --lib
                --manifest-path "${repo}/Cargo.toml" --target-dir "${TARGET_DIR}"
        BYPRODUCTS "${TARGET_DIR}/release/libggml_amx.a" "${TARGET_DIR}/release/libggml_amx.so"
        WORKING_DIRECTORY "${repo}"
        COMMENT "ggml-amx: cargo build --release"
        USES_TERMINAL VERBATIM)
endfunction()

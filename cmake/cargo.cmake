# Builds the crate with cargo from a CMake build. Used by CMakeLists.txt (install) and by
# llama-host.cmake (link into a host); only a source checkout has this file.

# Adds the custom target NAME, which leaves libggml_amx.a and libggml_amx.so in the folder that
# OUT is set to, below TARGET_DIR. It runs at every build because only cargo knows what has changed.
function(ggml_amx_add_cargo_build NAME TARGET_DIR OUT)
    cmake_path(GET CMAKE_CURRENT_FUNCTION_LIST_DIR PARENT_PATH repo)
    if(TARGET ${NAME})
        # This project is a subdirectory of the same build.
        get_target_property(dir ${NAME} GGML_AMX_DIR)
        set(${OUT} "${dir}" PARENT_SCOPE)
        return()
    endif()

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

    # The machine's own target, by name: a user's build.target or CARGO_BUILD_TARGET may be another
    # one, and moves the output in any case.
    execute_process(COMMAND "${GGML_AMX_CARGO}" -vV WORKING_DIRECTORY "${repo}"
                    OUTPUT_VARIABLE version ERROR_VARIABLE error RESULT_VARIABLE status)
    if(NOT version MATCHES "(^|\n)host: *([^ \n]+)")
        message(FATAL_ERROR "ggml-amx: `${GGML_AMX_CARGO} -vV` does not say what it builds for (${status}):\n"
                            "${version}${error}")
    endif()
    set(host "${CMAKE_MATCH_2}")
    set(dir "${TARGET_DIR}/${host}/release")

    # --locked: the versions that were tested, or an error. MAKEFLAGS names a job server that make does
    # not hand on to custom commands, which rustc complains about.
    # The working directory matters: cargo looks for .cargo/config.toml from there.
    add_custom_target(${NAME}
        COMMAND "${CMAKE_COMMAND}" -E env --unset=MAKEFLAGS
                "${GGML_AMX_CARGO}" build --release --lib --locked --target "${host}"
                --manifest-path "${repo}/Cargo.toml" --target-dir "${TARGET_DIR}"
        BYPRODUCTS "${dir}/libggml_amx.a" "${dir}/libggml_amx.so"
        WORKING_DIRECTORY "${repo}"
        COMMENT "ggml-amx: cargo build --release"
        USES_TERMINAL VERBATIM)
    set_target_properties(${NAME} PROPERTIES GGML_AMX_DIR "${dir}")
    set(${OUT} "${dir}" PARENT_SCOPE)
endfunction()

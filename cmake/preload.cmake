# The library for LD_PRELOAD: brings ggml-amx into ik_llama.cpp programs that were built without it.
# Only a source checkout has this file.

# Adds the command that makes libggml_amx_preload.so out of the archive LIBRARY. It shows the
# functions of ik_llama.cpp under their plain names, so that the loader prefers them, and the C API.
# Its only undefined names are functions of libc and weak ones, because programs that are no hosts must start too.
function(ggml_amx_add_preload LIBRARY HEADER DEPENDS OUT)
    ggml_amx_wrapped_names(names)
    ggml_amx_functions_of("${HEADER}" functions)
    # For a copy of this library that serves a second host of a process.
    list(APPEND functions ggml_amx_bind)
    set(visible ${names} ${functions})
    list(JOIN visible ";\n        " visible)
    set(script "${CMAKE_CURRENT_BINARY_DIR}/preload.map")
    file(CONFIGURE OUTPUT "${script}" CONTENT "{\n    global:\n        @visible@;\n    local:\n        *;\n};\n" @ONLY)

    # -Xlinker: a comma in the path would end an argument of -Wl.
    list(TRANSFORM names REPLACE "(.+)" "-Wl,--defsym=\\1=__wrap_\\1" OUTPUT_VARIABLE same)
    list(TRANSFORM names PREPEND "-Wl,--undefined=__wrap_" OUTPUT_VARIABLE roots)
    list(TRANSFORM functions PREPEND "-Wl,--undefined=")
    set(library "${CMAKE_CURRENT_BINARY_DIR}/libggml_amx_preload.so")
    # No unwinder of its own (-static-libgcc), because exceptions of the process pass through. nodelete: hosts keep
    # pointers to static objects. Debug info is in libggml_amx.so.
    add_custom_command(
        OUTPUT "${library}"
        COMMAND "${CMAKE_C_COMPILER}" -shared -o "${library}"
                -Wl,-soname,libggml_amx_preload.so -Xlinker "--version-script=${script}" ${same}
                -Wl,-z,defs -Wl,-z,nodelete -Wl,-z,now -Wl,--gc-sections -Wl,--as-needed -Wl,--strip-debug
                ${roots} ${functions} "${LIBRARY}" -ldl -lpthread -lm -lrt
        DEPENDS "${LIBRARY}" "${script}" ${DEPENDS}
        COMMENT "ggml-amx: ${library}"
        VERBATIM)
    set(${OUT} "${library}" PARENT_SCOPE)
endfunction()

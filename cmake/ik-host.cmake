# Puts ggml-amx into an unedited ik_llama.cpp tree. Included by llama-host.cmake, which finds out
# what the tree is.
#
# ik_llama.cpp has no place where a backend could hook in, so the linker hands over calls: with
# -Wl,--wrap=NAME every call of NAME goes to __wrap_NAME of this library, which may call the host's
# own function as __real_NAME. No file of the host is compiled in another way.

# Stops unless the target is one whose calls can be taken.
function(ggml_amx_check_ik TARGET)
    get_target_property(type ${TARGET} TYPE)
    get_target_property(sources ${TARGET} SOURCES)
    get_target_property(dir ${TARGET} SOURCE_DIR)
    set(unknown "ggml-amx: do not know this version of ik_llama.cpp: ")
    if(NOT type MATCHES "^(STATIC|SHARED)_LIBRARY$")
        message(FATAL_ERROR "${unknown}target ${TARGET} is neither a static nor a shared library")
    endif()
    if(NOT sources MATCHES "(^|[/;])iqk/iqk_mul_mat\\.cpp(;|$)")
        message(FATAL_ERROR "ggml-amx: this is ik_llama.cpp, but target ${TARGET} has no source "
                            "iqk/iqk_mul_mat.cpp. Configure with GGML_IQK_MUL_MAT=ON")
    endif()
    set(text "")
    foreach(header IN ITEMS iqk/iqk_mul_mat.h ../include/ggml.h ../include/ggml-alloc.h ../include/ggml-backend.h)
        if(NOT EXISTS "${dir}/${header}")
            message(FATAL_ERROR "${unknown}there is no ${dir}/${header}")
        endif()
        file(READ "${dir}/${header}" one)
        string(APPEND text "${one}")
    endforeach()
    ggml_amx_wrapped_names(names)
    foreach(name IN LISTS names)
        if(NOT text MATCHES "[ *]${name} *\\(")
            message(FATAL_ERROR "${unknown}its headers do not declare ${name}")
        endif()
    endforeach()
    string(TOUPPER "${CMAKE_BUILD_TYPE}" config)
    get_target_property(lto ${TARGET} INTERPROCEDURAL_OPTIMIZATION)
    get_target_property(lto_of_type ${TARGET} "INTERPROCEDURAL_OPTIMIZATION_${config}")
    if(lto OR lto_of_type OR "${CMAKE_C_FLAGS} ${CMAKE_CXX_FLAGS}" MATCHES "-flto")
        message(FATAL_ERROR "ggml-amx: link-time optimisation would keep calls from the linker's --wrap; "
                            "configure ik_llama.cpp with GGML_LTO=OFF")
    endif()
endfunction()

# TARGETS are the libraries with iqk sources; the other arguments are those of ggml_amx_make_object.
function(ggml_amx_wrap_ik TARGETS LIBRARY HEADER DEPENDS)
    foreach(target IN LISTS TARGETS)
        ggml_amx_check_ik(${target})
    endforeach()
    if(NOT LIBRARY MATCHES "\\.a$")
        message(FATAL_ERROR "ggml-amx: ik_llama.cpp needs the static library; "
                            "GGML_AMX_LIBRARY=${LIBRARY} is none")
    endif()
    ggml_amx_wrapped_names(names)
    list(TRANSFORM names PREPEND "__wrap_" OUTPUT_VARIABLE entries)
    ggml_amx_make_object("${LIBRARY}" "${HEADER}" "${DEPENDS}" "${entries}" object)
    list(TRANSFORM names PREPEND "LINKER:--wrap=" OUTPUT_VARIABLE wraps)
    list(TRANSFORM names PREPEND "LINKER:--undefined=" OUTPUT_VARIABLE needed)
    foreach(target IN LISTS TARGETS)
        ggml_amx_add_object(${target} "${object}")
        # PUBLIC: libllama and the programs call some of them too.
        target_link_options(${target} PUBLIC ${wraps})
        get_target_property(type ${target} TYPE)
        if(type STREQUAL "STATIC_LIBRARY")
            # This library refers to the host's own functions weakly, which takes nothing out of an archive.
            target_link_options(${target} INTERFACE ${needed})
        endif()
    endforeach()
    list(JOIN TARGETS " " shown)
    list(JOIN names " " functions)
    message(STATUS "ggml-amx: this is ik_llama.cpp; linked into ${shown}, takes calls of ${functions}")
    message(STATUS "ggml-amx: library ${LIBRARY}")
endfunction()

# Puts ggml-amx in the place of the C++ AMX code of an unedited llama.cpp (or ggml) tree, or into an
# unedited ik_llama.cpp tree (ik-host.cmake):
#
#   cmake -S llama.cpp -B build -DCMAKE_PROJECT_TOP_LEVEL_INCLUDES=/path/to/llama-host.cmake
#
# (CMake 3.20 to 3.23 ignore that option: use -DCMAKE_PROJECT_INCLUDE=, which does the same here), or include(/path/to/llama-host.cmake) in a project that adds one of them as a subdirectory.
# Nothing happens before the end of the top-level CMakeLists.txt, when all targets are known.

include_guard(GLOBAL)
cmake_policy(PUSH)
cmake_policy(VERSION 3.20...3.31)

include("${CMAKE_CURRENT_LIST_DIR}/object.cmake")
include("${CMAKE_CURRENT_LIST_DIR}/signatures.cmake")
include("${CMAKE_CURRENT_LIST_DIR}/ik-host.cmake")

set(GGML_AMX_LIBRARY "" CACHE FILEPATH
    "Prebuilt libggml_amx.a or .so; empty: build it with cargo, or use the installed one")

option(GGML_AMX_REQUIRED "End the configure if the tree is one that ggml-amx cannot be put into" OFF)

# All targets built below the directory DIR: ggml may be any number of add_subdirectory() deep.
function(ggml_amx_targets_below DIR OUT)
    get_property(targets DIRECTORY "${DIR}" PROPERTY BUILDSYSTEM_TARGETS)
    get_property(subdirs DIRECTORY "${DIR}" PROPERTY SUBDIRECTORIES)
    foreach(subdir IN LISTS subdirs)
        ggml_amx_targets_below("${subdir}" below)
        list(APPEND targets ${below})
    endforeach()
    set(${OUT} "${targets}" PARENT_SCOPE)
endfunction()

# The library to link (LIBRARY), its header (HEADER) and the targets that make it (DEPENDS).
function(ggml_amx_locate LIBRARY HEADER DEPENDS)
    set(here "${CMAKE_CURRENT_FUNCTION_LIST_DIR}")
    cmake_path(GET here PARENT_PATH repo)
    set(depends "")
    if(EXISTS "${repo}/Cargo.toml")
        set(header "${repo}/include/ggml-amx.h")
        if(NOT GGML_AMX_LIBRARY)
            include("${here}/cargo.cmake")
            ggml_amx_add_cargo_build(ggml-amx-cargo "${CMAKE_BINARY_DIR}/ggml-amx-cargo" dir)
            set(library "${dir}/libggml_amx.a")
            set(depends ggml-amx-cargo)
        endif()
    else()
        if(NOT TARGET ggml-amx::static)
            include("${here}/ggml-amx-config.cmake")
        endif()
        get_target_property(library ggml-amx::static IMPORTED_LOCATION)
        get_target_property(header ggml-amx::static INTERFACE_INCLUDE_DIRECTORIES)
        string(APPEND header "/ggml-amx.h")
    endif()
    if(GGML_AMX_LIBRARY)
        set(library "${GGML_AMX_LIBRARY}")
        if(NOT EXISTS "${library}")
            message(FATAL_ERROR "ggml-amx: GGML_AMX_LIBRARY=${library} does not exist")
        elseif(NOT library MATCHES "\\.(a|so[.0-9]*)$")
            message(FATAL_ERROR "ggml-amx: GGML_AMX_LIBRARY=${library} is neither a .a nor a .so")
        endif()
    endif()
    set(${LIBRARY} "${library}" PARENT_SCOPE)
    set(${HEADER} "${header}" PARENT_SCOPE)
    set(${DEPENDS} "${depends}" PARENT_SCOPE)
endfunction()

# Sets OUT to the sources that are not found in a ggml-cpu target, or to nothing.
function(ggml_amx_missing_sources TARGET OUT)
    get_target_property(sources ${TARGET} SOURCES)
    set(missing "")
    foreach(file IN ITEMS ggml-cpu amx/amx amx/mmq)
        set(found "${sources}")
        list(FILTER found INCLUDE REGEX "(^|/)ggml-cpu/${file}\\.cpp$")
        if(NOT found)
            list(APPEND missing "ggml-cpu/${file}.cpp")
        endif()
    endforeach()
    set(${OUT} "${missing}" PARENT_SCOPE)
endfunction()

# Swaps the AMX code of one ggml-cpu target; LINK is an object file or an imported shared library.
function(ggml_amx_swap TARGET LINK)
    get_target_property(sources ${TARGET} SOURCES)
    get_target_property(source_dir ${TARGET} SOURCE_DIR)
    set(entry "${sources}")
    list(FILTER entry INCLUDE REGEX "(^|/)ggml-cpu/ggml-cpu\\.cpp$")
    foreach(file IN ITEMS amx mmq)
        set(swapped "${sources}")
        list(FILTER swapped INCLUDE REGEX "(^|/)ggml-cpu/amx/${file}\\.cpp$")
        list(REMOVE_ITEM sources ${swapped})
    endforeach()
    set_property(TARGET ${TARGET} PROPERTY SOURCES "${sources}")

    # All variants of GGML_CPU_ALL_VARIANTS share the file and its properties: set them once.
    set(macros "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/amx-macros.h")
    cmake_path(ABSOLUTE_PATH entry BASE_DIRECTORY "${source_dir}")
    get_property(options SOURCE "${entry}" TARGET_DIRECTORY ${TARGET} PROPERTY COMPILE_OPTIONS)
    if(NOT macros IN_LIST options)
        set_property(SOURCE "${entry}" TARGET_DIRECTORY ${TARGET}
                     APPEND PROPERTY COMPILE_OPTIONS -include "${macros}")
    endif()

    if(TARGET ${LINK})
        target_link_libraries(${TARGET} PRIVATE ${LINK})
    else()
        ggml_amx_add_object(${TARGET} "${LINK}")
    endif()
endfunction()

function(ggml_amx_into_host)
    # The pointer size is unknown here if only a subdirectory enables a language.
    if(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux" OR "${CMAKE_SIZEOF_VOID_P}" EQUAL 4
       OR NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$")
        message(WARNING "ggml-amx: works on 64-bit x86 Linux only; this build for "
                        "${CMAKE_SYSTEM_NAME} ${CMAKE_SYSTEM_PROCESSOR} is left as it is")
        return()
    endif()

    ggml_amx_targets_below("${CMAKE_SOURCE_DIR}" targets)
    set(cpu_targets "")
    set(ik_targets "")
    foreach(target IN LISTS targets)
        get_target_property(type ${target} TYPE)
        get_target_property(sources ${target} SOURCES)
        if("${sources}" MATCHES "(^|[/;])iqk/iqk_[^/;]*\\.cpp(;|$)")
            list(APPEND ik_targets ${target})
        elseif(target MATCHES "^ggml-cpu(-|$)" AND type MATCHES "^(STATIC|SHARED|MODULE)_LIBRARY$")
            list(APPEND cpu_targets ${target})
        endif()
    endforeach()
    if(NOT cpu_targets AND NOT ik_targets)
        message(FATAL_ERROR "ggml-amx: looked for a library target named ggml-cpu or ggml-cpu-<variant> in "
                            "${CMAKE_SOURCE_DIR} and all its subdirectories, or one with the iqk sources "
                            "of ik_llama.cpp, and found none. Is this a llama.cpp, ik_llama.cpp or ggml tree, "
                            "with GGML_CPU=ON and LLAMA_USE_SYSTEM_GGML=OFF?")
    endif()

    # All of them before the first is changed.
    foreach(target IN LISTS cpu_targets)
        ggml_amx_missing_sources(${target} missing)
        set(unknown "")
        if(missing)
            list(JOIN missing ", " missing)
            set(unknown "target ${target} has no source ${missing}")
        else()
            get_target_property(dir ${target} SOURCE_DIR)
            ggml_amx_unknown_signatures(llama-signatures.cpp "${dir};${dir}/ggml-cpu;${dir}/../include" unknown)
        endif()
        if(unknown)
            set(unknown "ggml-amx: do not know this version of ggml: ${unknown}")
            if(GGML_AMX_REQUIRED)
                message(FATAL_ERROR "${unknown}")
            endif()
            message(WARNING "${unknown}. The tree is left as it is, with its own AMX code; "
                            "-DGGML_AMX_REQUIRED=ON would end here")
            return()
        endif()
    endforeach()

    ggml_amx_locate(library header depends)
    if(ik_targets)
        ggml_amx_wrap_ik("${ik_targets}" "${library}" "${header}" "${depends}")
        return()
    endif()
    if(library MATCHES "\\.a$")
        # the C++ name that ggml-cpu.cpp calls
        set(entry _Z28ggml_backend_amx_buffer_typev)
        ggml_amx_make_object("${library}" "${header}" "${depends}" "${entry}" link)
    else()
        set(link ggml-amx-prebuilt)
        add_library(${link} SHARED IMPORTED GLOBAL)
        set_target_properties(${link} PROPERTIES IMPORTED_LOCATION "${library}")
    endif()
    foreach(target IN LISTS cpu_targets)
        ggml_amx_swap(${target} "${link}")
    endforeach()
    list(JOIN cpu_targets " " names)
    message(STATUS "ggml-amx: replaces the AMX code of ${names}")
    message(STATUS "ggml-amx: library ${library}")
endfunction()

cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL ggml_amx_into_host)
cmake_policy(POP)

# Puts ggml-amx in the place of the C++ AMX code of an unedited llama.cpp (or ggml) tree:
#
#   cmake -S llama.cpp -B build -DCMAKE_PROJECT_TOP_LEVEL_INCLUDES=/path/to/llama-host.cmake
#
# or include(/path/to/llama-host.cmake) in a project that adds llama.cpp or ggml as a subdirectory.
# Nothing happens before the end of the top-level CMakeLists.txt, when all targets are known.

include_guard(GLOBAL)
cmake_policy(PUSH)
cmake_policy(VERSION 3.24...3.31)

set(GGML_AMX_LIBRARY "" CACHE FILEPATH
    "Prebuilt libggml_amx.a or .so; empty: build it with cargo, or use the installed one")

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
        set(target_dir "${CMAKE_BINARY_DIR}/ggml-amx-cargo")
        set(library "${target_dir}/release/libggml_amx.a")
        if(NOT GGML_AMX_LIBRARY)
            include("${here}/cargo.cmake")
            ggml_amx_add_cargo_build(ggml-amx-cargo "${target_dir}")
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

# Makes one object file of the archive LIBRARY (target ggml-amx-object). An object becomes a part
# of libggml-cpu itself, static or shared: no link order to keep, no second archive to install,
# and nothing drops the exported functions that the host does not call itself. Only what HEADER
# declares stays visible, so that a host with Rust code of its own does not meet a second Rust
# standard library.
function(ggml_amx_make_object LIBRARY HEADER DEPENDS OUT)
    if(NOT CMAKE_LINKER OR NOT CMAKE_OBJCOPY)
        message(FATAL_ERROR "ggml-amx: needs a linker and objcopy (binutils), found "
                            "CMAKE_LINKER=${CMAKE_LINKER} CMAKE_OBJCOPY=${CMAKE_OBJCOPY}")
    endif()
    set(exports _Z28ggml_backend_amx_buffer_typev) # the C++ name that ggml-cpu.cpp calls
    file(STRINGS "${HEADER}" lines REGEX "^[A-Za-z].*ggml_(backend_)?amx_[a-z0-9_]+ *\\(")
    foreach(line IN LISTS lines)
        string(REGEX MATCH "(ggml_(backend_)?amx_[a-z0-9_]+) *\\(" name "${line}")
        list(APPEND exports "${CMAKE_MATCH_1}")
    endforeach()
    list(TRANSFORM exports PREPEND "--undefined=" OUTPUT_VARIABLE roots)
    # Kept, though hidden: a linker merges the sections that hold it, which it must know by name.
    list(APPEND exports DW.ref.rust_eh_personality)
    list(TRANSFORM exports PREPEND "--keep-global-symbol=" OUTPUT_VARIABLE keep)

    # .llvmbc/.llvmcmd: bitcode that Rust's own libraries carry for LTO. Joined by the linker it is
    # not valid any more, and binutils with an LLVM plug-in (ar, nm) abort on it.
    # Debug info stays only where the host has its own.
    set(object "${CMAKE_BINARY_DIR}/ggml-amx.o")
    set(whole "${CMAKE_BINARY_DIR}/ggml-amx-whole.o")
    add_custom_command(
        OUTPUT "${object}"
        BYPRODUCTS "${whole}"
        COMMAND "${CMAKE_LINKER}" -r ${roots} -o "${whole}" "${LIBRARY}"
        COMMAND "${CMAKE_OBJCOPY}" ${keep} --remove-section=.llvmbc --remove-section=.llvmcmd
                "$<$<CONFIG:Release,MinSizeRel>:--strip-debug>" "${whole}" "${object}"
        DEPENDS "${LIBRARY}" ${DEPENDS}
        COMMENT "ggml-amx: one object from ${LIBRARY}"
        COMMAND_EXPAND_LISTS VERBATIM)
    add_custom_target(ggml-amx-object DEPENDS "${object}")
    set(${OUT} "${object}" PARENT_SCOPE)
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
        if(NOT swapped OR NOT entry)
            message(FATAL_ERROR "ggml-amx: do not know this version of ggml: target ${TARGET} has no "
                                "source ggml-cpu/amx/${file}.cpp or ggml-cpu/ggml-cpu.cpp")
        endif()
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
        set_source_files_properties("${LINK}" TARGET_DIRECTORY ${TARGET}
                                    PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
        target_sources(${TARGET} PRIVATE "${LINK}")
        add_dependencies(${TARGET} ggml-amx-object)
        # What Rust's standard library needs (rustc --print native-static-libs). gcc_s is left out:
        # the compiler adds it, or libgcc_eh for a fully static program. As flags, because the
        # host may have a target that is named "util".
        target_link_libraries(${TARGET} PRIVATE -ldl -lpthread -lm -lutil -lrt)
    endif()
endfunction()

function(ggml_amx_swap_all)
    # The pointer size is unknown here if only a subdirectory enables a language.
    if(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux" OR "${CMAKE_SIZEOF_VOID_P}" EQUAL 4
       OR NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$")
        message(WARNING "ggml-amx: works on 64-bit x86 Linux only; this build for "
                        "${CMAKE_SYSTEM_NAME} ${CMAKE_SYSTEM_PROCESSOR} is left as it is")
        return()
    endif()

    ggml_amx_targets_below("${CMAKE_SOURCE_DIR}" targets)
    set(cpu_targets "")
    foreach(target IN LISTS targets)
        get_target_property(type ${target} TYPE)
        get_target_property(sources ${target} SOURCES)
        if("${sources}" MATCHES "(^|[/;])iqk/iqk_[^/;]*\\.cpp(;|$)")
            message(FATAL_ERROR "ggml-amx: this is ik_llama.cpp (target ${target} has iqk sources); "
                                "support for it arrives in a later release of ggml-amx")
        elseif(target MATCHES "^ggml-cpu(-|$)" AND type MATCHES "^(STATIC|SHARED|MODULE)_LIBRARY$")
            list(APPEND cpu_targets ${target})
        endif()
    endforeach()
    if(NOT cpu_targets)
        message(FATAL_ERROR "ggml-amx: looked for a library target named ggml-cpu or ggml-cpu-<variant> in "
                            "${CMAKE_SOURCE_DIR} and all its subdirectories, and found none. Is this a "
                            "llama.cpp or ggml tree, with GGML_CPU=ON and LLAMA_USE_SYSTEM_GGML=OFF?")
    endif()

    ggml_amx_locate(library header depends)
    if(library MATCHES "\\.a$")
        ggml_amx_make_object("${library}" "${header}" "${depends}" link)
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

cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL ggml_amx_swap_all)
cmake_policy(POP)

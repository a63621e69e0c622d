# Shared by llama-host.cmake, ik-host.cmake and preload.cmake: the names that this library shows, and one object made of
# its archive.

# Has builds configure again when FILE has changed.
function(ggml_amx_depend_on FILE)
    get_property(files DIRECTORY "${CMAKE_SOURCE_DIR}" PROPERTY CMAKE_CONFIGURE_DEPENDS)
    if(NOT FILE IN_LIST files)
        set_property(DIRECTORY "${CMAKE_SOURCE_DIR}" APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${FILE}")
    endif()
endfunction()

# The functions that HEADER declares.
function(ggml_amx_functions_of HEADER OUT)
    ggml_amx_depend_on("${HEADER}")
    set(names "")
    file(STRINGS "${HEADER}" lines REGEX "^[A-Za-z].*ggml_(backend_)?amx_[a-z0-9_]+ *\\(")
    foreach(line IN LISTS lines)
        string(REGEX MATCH "(ggml_(backend_)?amx_[a-z0-9_]+) *\\(" name "${line}")
        list(APPEND names "${CMAKE_MATCH_1}")
    endforeach()
    set(${OUT} "${names}" PARENT_SCOPE)
endfunction()

# The functions of ik_llama.cpp that calls are taken from; __wrap_NAME is this library's.
function(ggml_amx_wrapped_names OUT)
    set(list "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/ik-wrapped.txt")
    ggml_amx_depend_on("${list}")
    file(STRINGS "${list}" names)
    set(${OUT} "${names}" PARENT_SCOPE)
endfunction()

# Makes one object file of the archive LIBRARY (target ggml-amx-object). An object becomes a part
# of the host's library itself, static or shared: no link order to keep, no second archive to
# install, and nothing drops the exported functions that the host does not call itself. Only ENTRIES
# and what HEADER declares stay visible, so that a host with Rust code of its own does not meet a
# second Rust standard library.
function(ggml_amx_make_object LIBRARY HEADER DEPENDS ENTRIES OUT)
    if(NOT CMAKE_LINKER OR NOT CMAKE_OBJCOPY)
        message(FATAL_ERROR "ggml-amx: needs a linker and objcopy (binutils), found "
                            "CMAKE_LINKER=${CMAKE_LINKER} CMAKE_OBJCOPY=${CMAKE_OBJCOPY}")
    endif()
    ggml_amx_functions_of("${HEADER}" exports)
    list(APPEND exports ${ENTRIES})
    list(TRANSFORM exports PREPEND "--undefined=" OUTPUT_VARIABLE roots)
    # Kept, although it is hidden: the linker merges the sections that hold it and finds them by this name.
    list(APPEND exports DW.ref.rust_eh_personality)
    list(TRANSFORM exports PREPEND "--keep-global-symbol=" OUTPUT_VARIABLE keep)

    # .llvmbc/.llvmcmd: bitcode for LTO from Rust's own libraries. Joined by the linker it is invalid, and binutils with
    # an LLVM plug-in (ar, nm) abort on it. Debug info stays only where the host has its own.
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

# The host's installation has this library in it, so it also has the licence: beside the modules where they were
# installed, above them in a checkout.
function(ggml_amx_install_license)
    set(here "${CMAKE_CURRENT_FUNCTION_LIST_DIR}")
    set(license "${here}/LICENSE")
    if(NOT EXISTS "${license}")
        cmake_path(GET here PARENT_PATH repo)
        set(license "${repo}/LICENSE")
    endif()
    set(share share)
    if(CMAKE_INSTALL_DATADIR)
        set(share "${CMAKE_INSTALL_DATADIR}")
    endif()
    install(FILES "${license}" DESTINATION "${share}/licenses/ggml-amx")
endfunction()

# Puts the object file into a library target of the host.
function(ggml_amx_add_object TARGET OBJECT)
    set_source_files_properties("${OBJECT}" TARGET_DIRECTORY ${TARGET}
                                PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
    target_sources(${TARGET} PRIVATE "${OBJECT}")
    add_dependencies(${TARGET} ggml-amx-object)
    # What Rust's standard library needs (rustc --print native-static-libs). gcc_s is left out:
    # the compiler adds it, or libgcc_eh for a fully static program. As flags, because the
    # host may have a target that is named "util".
    target_link_libraries(${TARGET} PRIVATE -ldl -lpthread -lm -lutil -lrt)
    # A host may unload a plug-in. Our threads would then wake up in unmapped code, and the host's lists would point to
    # unmapped objects, so the code stays mapped. This is a link option of what can be unloaded: the target, or what a
    # static library is linked into.
    get_target_property(type ${TARGET} TYPE)
    if(type STREQUAL "STATIC_LIBRARY")
        set(of "$<TARGET_PROPERTY:TYPE>")
        target_link_options(${TARGET} INTERFACE
            "$<$<OR:$<STREQUAL:${of},SHARED_LIBRARY>,$<STREQUAL:${of},MODULE_LIBRARY>>:LINKER:-z,nodelete>")
    else()
        target_link_options(${TARGET} PRIVATE LINKER:-z,nodelete)
    endif()
endfunction()

# Sets OUT to what the file FILE of this folder says is not known in a host's headers, which are below
# the folders DIRS, or to nothing. The file is compiled, not linked.
function(ggml_amx_unknown_signatures FILE DIRS OUT)
    set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
    set(CMAKE_CXX_STANDARD 17)
    set(CMAKE_CXX_STANDARD_REQUIRED ON)
    list(JOIN DIRS ";" dirs)
    unset(ggml_amx_compiled CACHE) # the headers may have changed
    try_compile(ggml_amx_compiled "${CMAKE_BINARY_DIR}/ggml-amx-signatures"
                "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/${FILE}"
                CMAKE_FLAGS "-DINCLUDE_DIRECTORIES:STRING=${dirs}"
                OUTPUT_VARIABLE log)
    set(unknown "")
    if(NOT ggml_amx_compiled)
        string(REGEX MATCHALL "unknown type of [^\"\n\r']+" unknown "${log}")
        list(REMOVE_DUPLICATES unknown)
        list(JOIN unknown ", " unknown)
        if(unknown STREQUAL "")
            # A header is missing, say: the compiler's own words.
            string(REGEX MATCH "[^\n]*error[: ][^\n]*" unknown "${log}")
        endif()
        if(unknown STREQUAL "")
            set(unknown "${FILE} cannot be compiled: ${log}")
        endif()
    endif()
    unset(ggml_amx_compiled CACHE)
    set(${OUT} "${unknown}" PARENT_SCOPE)
endfunction()

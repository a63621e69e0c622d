/* Included by force (-include) before ggml-cpu/ggml-cpu.cpp and no other file, see llama-host.cmake.
 *
 * That file registers the AMX buffer type only if the compiler was given AMX flags. ggml-amx asks
 * the CPU at run time, so the host shall always call it. The intrinsics come first: their headers
 * look at the same macros to decide which instruction sets they still have to switch on. */
#if !defined(__AMX_INT8__) || !defined(__AVX512VNNI__)
#    include <immintrin.h>
#    ifndef __AMX_INT8__
#        define __AMX_INT8__ 1
#    endif
#    ifndef __AVX512VNNI__
#        define __AVX512VNNI__ 1
#    endif
#endif

// Registers the AMX buffer type if the compiler was given AMX flags, as ggml does. OTHER_...: versions that are not
// known.
#include "amx/amx.h"
#include "traits.h"

#ifdef OTHER_GUARD
#    define WANTED defined(__AMX_INT8__) && defined(__AVX512VNNI__) && defined(__NOT_EVEN_THIS__)
#else
#    define WANTED defined(__AMX_INT8__) && defined(__AVX512VNNI__)
#endif

extern "C" ggml_backend_buffer_type * extra_buffer_type() {
#ifdef OTHER_CALL
    ggml_backend_amx_prepare();
#endif
#if WANTED
    return ggml_backend_amx_buffer_type();
#else
    return nullptr;
#endif
}

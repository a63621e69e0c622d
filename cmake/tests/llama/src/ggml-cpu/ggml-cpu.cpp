// Registers the AMX buffer type if the compiler was given AMX flags, as ggml does.
struct ggml_backend_buffer_type;
ggml_backend_buffer_type * ggml_backend_amx_buffer_type();

extern "C" ggml_backend_buffer_type * extra_buffer_type() {
#if defined(__AMX_INT8__) && defined(__AVX512VNNI__)
    return ggml_backend_amx_buffer_type();
#else
    return nullptr;
#endif
}

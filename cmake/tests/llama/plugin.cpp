struct ggml_backend_buffer_type;
extern "C" ggml_backend_buffer_type * extra_buffer_type();

extern "C" int plugin_entry() {
    return extra_buffer_type() != nullptr;
}

void * ggml_backend_alloc_ctx_tensors_from_buft();

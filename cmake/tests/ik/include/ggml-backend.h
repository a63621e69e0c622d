void * ggml_backend_cpu_init();
int ggml_backend_reg_get_count();
int ggml_backend_tensor_alloc();

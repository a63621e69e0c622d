#pragma once
#include "ggml.h"
typedef struct ggml_backend * ggml_backend_t;
typedef struct ggml_backend_buffer * ggml_backend_buffer_t;
typedef struct ggml_backend_buffer_type * ggml_backend_buffer_type_t;
#ifdef __cplusplus
extern "C" {
#endif
ggml_backend_t ggml_backend_cpu_init(void);
size_t ggml_backend_reg_get_count(void);
void ggml_backend_tensor_alloc(ggml_backend_buffer_t buffer, struct ggml_tensor * tensor, void * addr);
#ifdef __cplusplus
}
#endif

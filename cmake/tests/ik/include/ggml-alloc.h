#pragma once
#include "ggml-backend.h"
#ifdef __cplusplus
extern "C" {
#endif
struct ggml_backend_buffer * ggml_backend_alloc_ctx_tensors_from_buft(struct ggml_context * ctx, ggml_backend_buffer_type_t buft);
#ifdef __cplusplus
}
#endif

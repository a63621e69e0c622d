#pragma once
#include <stddef.h>
enum ggml_status { GGML_STATUS_SUCCESS = 0 };
struct ggml_context;
struct ggml_tensor;
#ifdef __cplusplus
extern "C" {
#endif
enum ggml_status ggml_graph_compute(struct ggml_cgraph * cgraph, struct ggml_cplan * cplan);
#ifdef __cplusplus
}
#endif

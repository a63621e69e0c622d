#pragma once
#include <cstddef>
struct ggml_tensor;
struct ggml_backend_buffer_type;
struct ggml_backend_device;
typedef ggml_backend_buffer_type * ggml_backend_buffer_type_t;
typedef ggml_backend_device * ggml_backend_dev_t;

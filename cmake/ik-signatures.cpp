// The functions of ik_llama.cpp whose calls are taken (ik-wrapped.txt), with the types that src/capi/ik.rs knows. This
// is compiled against the host's headers when a build is configured: arguments of other types would be misread.
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml.h"
#include "iqk/iqk_mul_mat.h"

#include <cstddef>
#include <type_traits>

template <class Function, class... Known> constexpr bool is_one_of() {
    return (std::is_same<Function, Known>::value || ...);
}

#define KNOWN(name, ...) static_assert(is_one_of<decltype(name), __VA_ARGS__>(), "unknown type of " #name)

typedef const void * data;

KNOWN(iqk_mul_mat_4d, bool(long, long, long, long, long, long, long, long, long, long, long, long, long, int, data, long, int,
                           data, long, float *, long, int, int));
KNOWN(iqk_mul_mat_moe,
      bool(long, long, long, int, int, data, long, int, data, long, float *, long, long, data, int, int));
KNOWN(iqk_moe_fused_up_gate, bool(long, long, long, int, int, int, data, data, long, int, data, long, const char *,
                                  const char *, float *, long, long, data, float, int, int));

#define FLASH_ATTN                                                                                                     \
    int, int, float, int, int, long, long, int, int, long, long, int, int, long, long, int, int, long, int, int, int,  \
        int, int, int, int, int, int, int, data, data, data, data, data, float, float, float *, void *, barrier_t,     \
        void *, int, int, int
// Since July 2026 with an indexer; nodes with one are left to the host.
KNOWN(iqk_flash_attn_noalibi, bool(FLASH_ATTN), bool(FLASH_ATTN, struct ggml_tensor *));

KNOWN(ggml_graph_compute, enum ggml_status(struct ggml_cgraph *, struct ggml_cplan *));
KNOWN(ggml_backend_cpu_init, ggml_backend_t());
KNOWN(ggml_backend_reg_get_count, std::size_t());
KNOWN(ggml_backend_tensor_alloc, void(ggml_backend_buffer_t, struct ggml_tensor *, void *),
      enum ggml_status(ggml_backend_buffer_t, struct ggml_tensor *, void *));
KNOWN(ggml_backend_alloc_ctx_tensors_from_buft,
      struct ggml_backend_buffer *(struct ggml_context *, ggml_backend_buffer_type_t));

/* Part of a program with several hosts in one process (two_hosts.c): linked with one of them, and with this library. */
#include "ggml-amx.h"

#include <ggml-backend.h>
#include <ggml.h>

#include <stdio.h>
#include <string.h>

/* Has the host's own code write and read weights in a buffer of this library's; says what it saw. 0 if it serves, 1 if
 * it steps aside, 2 if something is wrong. */
int shim_run(void) {
    struct ggml_backend_buffer_type * amx = ggml_backend_amx_buffer_type();
    struct ggml_backend_buffer_type ** list = ggml_backend_amx_get_extra_bufts();
    if (!amx) {
        return list && !list[0] ? 1 : 2;
    }
    if (!list || list[0] != amx || list[1] || strcmp(ggml_backend_buft_name(amx), "AMX") != 0) {
        return 2;
    }
    struct ggml_init_params params = { 16 * ggml_tensor_overhead(), NULL, true };
    struct ggml_context * ctx = ggml_init(params);
    struct ggml_tensor * w = ggml_new_tensor_2d(ctx, GGML_TYPE_Q4_0, 512, 48);
    ggml_set_name(w, "blk.0.attn_q.weight");
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(ctx, amx);
    if (!buffer) {
        return 2;
    }
    static unsigned char wrote[512 / 32 * 18 * 48], read[sizeof wrote];
    for (size_t i = 0; i < sizeof wrote; i++) {
        wrote[i] = (unsigned char) (i * 31 + i / 7);
    }
    if (ggml_nbytes(w) != sizeof wrote) {
        return 2;
    }
    ggml_backend_tensor_set(w, wrote, 0, sizeof wrote);
    ggml_backend_tensor_get(w, read, 0, sizeof read);
    struct ggml_tensor * x = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 512, 3);
    const bool right = memcmp(wrote, read, sizeof read) == 0 && ggml_backend_amx_supports_op(NULL, ggml_mul_mat(ctx, w, x));
    printf("%d bytes, %s\n", (int) sizeof wrote, memcmp(wrote, w->data, sizeof wrote) ? "packed" : "as they are");
    ggml_backend_buffer_free(buffer);
    ggml_free(ctx);
    return right ? 0 : 2;
}

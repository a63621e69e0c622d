/* One product through a host of any build (shared, static, DL): the backends load, the AMX buffer type is
 * there, the weight goes in, the numbers come out. Uses nothing but ggml's public API. */
#define _GNU_SOURCE
#include "host.h"

#include "formats.h"

static void given_a_host_of_this_build_then_one_product_is_right(void) {
    struct rng r = {90};
    for (int f = 0; f < N_HOST_FORMATS; f++) {
        const int64_t k = 512, n = 100, m = 40;
        struct ggml_context * packed = host_context(1), * ops = host_context(2), * graph = host_context(0);
        struct ggml_tensor * w = ggml_new_tensor_2d(packed, (enum ggml_type) FORMATS[f].type, k, n);
        ggml_backend_buffer_t weights = ggml_backend_alloc_ctx_tensors_from_buft(packed, host.amx);
        uint8_t * bytes = (uint8_t *) malloc(ggml_nbytes(w)), * back = (uint8_t *) malloc(ggml_nbytes(w));
        format_random(&FORMATS[f], &r, bytes, ggml_nbytes(w) / (size_t) FORMATS[f].block_bytes);
        ggml_backend_tensor_set(w, bytes, 0, ggml_nbytes(w));
        ggml_backend_tensor_get(w, back, 0, ggml_nbytes(w));
        CHECK(memcmp(bytes, back, ggml_nbytes(w)) == 0, "%s: the weight reads back differently", FORMATS[f].name);
        struct ggml_tensor * x = ggml_new_tensor_2d(ops, GGML_TYPE_F32, k, m), * y = ggml_mul_mat(ops, w, x);
        ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(ops, host.plain);
        for (int64_t i = 0; i < k * m; i++) {
            ((float *) x->data)[i] = rng_normal(&r);
        }
        memset(y->data, 0xff, ggml_nbytes(y));
        CHECK(ggml_backend_dev_supports_op(host.cpu, y), "%s: not supported", FORMATS[f].name);
        CHECK(host_compute(graph, y, 2) == GGML_STATUS_SUCCESS, "%s: graph compute", FORMATS[f].name);
        float * floats = (float *) malloc((size_t) (k * n) * sizeof(float));
        format_dequantise(&FORMATS[f], bytes, floats, k * n);
        double * want = (double *) malloc((size_t) (n * m) * sizeof(double)), error = 0, size = 0;
        product_f64(floats, (const float *) x->data, (size_t) k, want, k, n, m);
        for (int64_t i = 0; i < n * m; i++) {
            const double d = (double) ((float *) y->data)[i] - want[i];
            error += d * d;
            size += want[i] * want[i];
        }
        CHECK(error <= 5e-4 * size, "%s: NMSE %g", FORMATS[f].name, error / size);
        free(want);
        free(floats);
        free(back);
        free(bytes);
        ggml_backend_buffer_free(buffer);
        ggml_backend_buffer_free(weights);
        ggml_free(graph);
        ggml_free(ops);
        ggml_free(packed);
    }
}

int main(void) {
    host_open_with_buffer_type();
    RUN(given_a_host_of_this_build_then_one_product_is_right);
    return harness_report("smoke_host");
}

/* Part of a program with several hosts in one process (two_hosts.c): linked with one of them, ik_llama.cpp, and not
 * with this library, which is preloaded. */
#include <ggml-backend.h>
#include <ggml.h>

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { K = 512, N = 96, M = 40 };

/* A product as a program makes it: weights in the host's own buffer type, a graph, the CPU backend. 0 if it is
 * right. */
int shim_run(void) {
    const struct ggml_init_params params = { 16 * ggml_tensor_overhead() + ggml_graph_overhead(), NULL, true };
    struct ggml_context * weights = ggml_init(params);
    struct ggml_context * others = ggml_init(params);
    struct ggml_tensor * w = ggml_new_tensor_2d(weights, GGML_TYPE_Q4_0, K, N);
    ggml_set_name(w, "blk.0.attn_q.weight");
    struct ggml_tensor * x = ggml_new_tensor_2d(others, GGML_TYPE_F32, K, M);
    struct ggml_tensor * y = ggml_mul_mat(others, w, x);
    ggml_backend_t cpu = ggml_backend_cpu_init();
    ggml_backend_buffer_type_t buft = ggml_backend_cpu_buffer_type();
    ggml_backend_buffer_t of_weights = ggml_backend_alloc_ctx_tensors_from_buft(weights, buft);
    ggml_backend_buffer_t of_others = ggml_backend_alloc_ctx_tensors_from_buft(others, buft);
    if (!cpu || !of_weights || !of_others) {
        return 2;
    }
    ggml_backend_buffer_set_usage(of_weights, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    static uint8_t blocks[N][K / 32][18];
    static float activations[M][K], results[M][N];
    for (size_t i = 0; i < sizeof blocks; i++) {
        ((uint8_t *) blocks)[i] = (uint8_t) (i * 2654435761u >> 13);
    }
    for (int n = 0; n < N; n++) {
        for (int b = 0; b < K / 32; b++) {
            /* A scale of 1, little endian f16. */
            memcpy(blocks[n][b], "\x00\x3c", 2);
        }
    }
    for (int m = 0; m < M; m++) {
        for (int k = 0; k < K; k++) {
            activations[m][k] = (float) ((m * 31 + k * 17) % 23 - 11);
        }
    }
    ggml_backend_tensor_set(w, blocks, 0, sizeof blocks);
    ggml_backend_tensor_set(x, activations, 0, sizeof activations);
    struct ggml_cgraph * graph = ggml_new_graph(others);
    ggml_build_forward_expand(graph, y);
    ggml_backend_cpu_set_n_threads(cpu, 2);
    ggml_backend_graph_compute(cpu, graph);
    ggml_backend_tensor_get(y, results, 0, sizeof results);
    double error = 0, all = 0;
    for (int m = 0; m < M; m++) {
        for (int n = 0; n < N; n++) {
            double sum = 0;
            for (int k = 0; k < K; k++) {
                const uint8_t both = blocks[n][k / 32][2 + k % 16];
                sum += ((k % 32 < 16 ? both & 15 : both >> 4) - 8) * (double) activations[m][k];
            }
            error += (results[m][n] - sum) * (results[m][n] - sum);
            all += sum * sum;
        }
    }
    ggml_backend_buffer_free(of_weights);
    ggml_backend_buffer_free(of_others);
    ggml_backend_free(cpu);
    ggml_free(weights);
    ggml_free(others);
    printf("a product of %d x %d and %d\n", N, K, M);
    return error <= 3e-4 * all ? 0 : 2;
}

// A program of ik_llama.cpp whose callback throws an exception through a graph that is being computed, and goes on.

#include <ggml-backend.h>
#include <ggml.h>

#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <vector>

static bool is_cancelled(void *) { throw std::runtime_error("cancelled"); }

static bool not_cancelled(void *) { return false; }

int main() {
    std::vector<char> memory(4 << 20);
    ggml_context * context = ggml_init({memory.size(), memory.data(), false});
    ggml_tensor * weights = ggml_new_tensor_2d(context, GGML_TYPE_F32, 64, 64);
    ggml_tensor * rows = ggml_new_tensor_2d(context, GGML_TYPE_F32, 64, 2);
    std::memset(weights->data, 0, ggml_nbytes(weights));
    std::memset(rows->data, 0, ggml_nbytes(rows));
    ggml_cgraph * graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, ggml_mul_mat(context, weights, ggml_relu(context, rows)));

    ggml_backend_t backend = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(backend, 1);
    for (int i = 0; i < 4; i++) {
        ggml_backend_cpu_set_abort_callback(backend, i % 2 ? not_cancelled : is_cancelled, nullptr);
        try {
            std::printf("status %d\n", static_cast<int>(ggml_backend_graph_compute(backend, graph)));
        } catch (const std::exception & e) {
            std::puts(e.what());
        }
    }
    ggml_backend_free(backend);
    ggml_free(context);
}

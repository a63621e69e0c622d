// llama.cpp: its C++ AMX backend. What that does not take, its other extra buffers or plain code multiply.
// Every thread calls what the host's own threads call for a node of a graph.

#include "host.h"
#include "shim.hpp"

#include "ggml-backend.h"
#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "traits.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

// Exported by libggml-cpu, declared in none of its headers for callers outside.
extern "C" void ggml_compute_forward_mul_mat(const ggml_compute_params * params, ggml_tensor * dst);

namespace {

// The pool lends its barrier: its own threads sleep after the first graph.
ggml_threadpool * pool = nullptr;
std::vector<uint8_t> work;

uint8_t * work_start() {
    return from_a_cache_line(work.data());
}

struct alignas(64) TileConfig {
    uint8_t bytes[64] = {};
};

// The host loads its tile configuration once per thread, and others release it meanwhile: keep it.
struct KeptTiles {
    TileConfig config;

    void load() const {
        if (config.bytes[0] != 0) {
            asm volatile("ldtilecfg %0" ::"m"(config));
        }
    }
    void save_and_release() {
        TileConfig now;
        asm volatile("sttilecfg %0\n\ttilerelease" : "=m"(now));
        if (now.bytes[0] != 0) {
            config = now;
        }
    }
};

thread_local KeptTiles tiles;

void log_warnings(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

ggml_context * new_context(size_t tensors) {
    return ggml_init({tensors * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true});
}

// The first extra buffer type that takes the product, as the host's loader chooses; NULL: none.
ggml_backend_buffer_type_t buffer_type_for(ggml_tensor * product) {
    ggml_backend_dev_t device = ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0);
    for (ggml_backend_buffer_type_t type : ggml_backend_cpu_get_extra_buffer_types()) {
        if (!type || !type->context) {
            continue;
        }
        ggml_backend_buffer_t probe = ggml_backend_buft_alloc_buffer(type, 0);
        product->src[0]->buffer     = probe;
        auto * extra                = (ggml::cpu::extra_buffer_type *) type->context;
        const bool takes            = extra->supports_op(device, product);
        product->src[0]->buffer     = nullptr;
        ggml_backend_buffer_free(probe);
        if (takes) {
            return type;
        }
    }
    return nullptr;
}

}  // namespace

struct bench_matrix {
    ggml_context *                     weights_context = nullptr;
    ggml_context *                     context         = nullptr;
    std::vector<ggml_tensor *>         weights;
    std::vector<ggml_backend_buffer_t> buffers;
    std::vector<ggml_tensor *>         products;
    int                                threads = 0;
    const char *                       form    = "";
};

static bool allocate(bench_matrix & matrix, ggml_backend_buffer_type_t type, const void * plain) {
    for (ggml_tensor * tensor : matrix.weights) {
        ggml_backend_buffer_t buffer =
            ggml_backend_buft_alloc_buffer(type, ggml_backend_buft_get_alloc_size(type, tensor));
        if (!buffer) {
            return false;
        }
        matrix.buffers.push_back(buffer);
        ggml_backend_tensor_alloc(buffer, tensor, ggml_backend_buffer_get_base(buffer));
        ggml_backend_tensor_set(tensor, plain, 0, ggml_nbytes(tensor));
    }
    return true;
}

bench_matrix * bench_create(const char * type_name, const char * variant, int64_t k, int64_t n, const void * plain,
                            int copies, int threads) {
    const ggml_type type = type_of_name(type_name);
    if (type == GGML_TYPE_COUNT || *variant) {
        return nullptr;
    }
    ggml_log_set(log_warnings, nullptr);
    ggml_cpu_init();
    bench_matrix * matrix   = new bench_matrix;
    matrix->threads         = threads;
    matrix->weights_context = new_context(copies + 2);
    for (int i = 0; i < copies; i++) {
        matrix->weights.push_back(ggml_new_tensor_2d(matrix->weights_context, type, k, n));
    }
    ggml_tensor * x     = ggml_new_tensor_2d(matrix->weights_context, GGML_TYPE_F32, k, 512);
    ggml_tensor * probe = ggml_mul_mat(matrix->weights_context, matrix->weights[0], x);

    ggml_backend_buffer_type_t buffer_type = buffer_type_for(probe);
    if (!buffer_type) {
        buffer_type = ggml_backend_cpu_buffer_type();
    }
    matrix->form = ggml_backend_buft_name(buffer_type);
    if (!allocate(*matrix, buffer_type, plain)) {
        bench_destroy(matrix);
        return nullptr;
    }
    return matrix;
}

const char * bench_form(const bench_matrix * matrix) {
    return matrix->form;
}

// One run of a real graph: starts the pool, and with it its barrier knows the number of threads.
static void start_pool(ggml_cgraph * graph, int threads) {
    ggml_threadpool_params params = ggml_threadpool_params_default(threads);
    params.poll                   = 0;
    pool                          = ggml_threadpool_new(&params);
    ggml_cplan plan               = ggml_graph_plan(graph, threads, pool);
    plan.work_data                = work_start();
    tiles.load();
    if (ggml_graph_compute(graph, &plan) != GGML_STATUS_SUCCESS || plan.n_threads != threads) {
        fprintf(stderr, "llama.cpp does not compute the graph on %d threads\n", threads);
        abort();
    }
    tiles.save_and_release();
}

void bench_prepare(bench_matrix * matrix, int64_t m, const float * x, float * y) {
    ggml_free(matrix->context);
    matrix->context = new_context(matrix->weights.size() + 1);
    matrix->products.clear();
    ggml_tensor * input = ggml_new_tensor_2d(matrix->context, GGML_TYPE_F32, matrix->weights[0]->ne[0], m);
    input->data         = const_cast<float *>(x);
    for (ggml_tensor * weights : matrix->weights) {
        matrix->products.push_back(ggml_mul_mat(matrix->context, weights, input));
        matrix->products.back()->data = y;
    }
    ggml_cgraph * graph = ggml_new_graph_custom(matrix->context, 4, false);
    ggml_build_forward_expand(graph, matrix->products[0]);
    const size_t size = ggml_graph_plan(graph, matrix->threads, nullptr).work_size;
    if (work.size() < size + 64) {
        work.assign(size + 64, 0);
    }
    if (!pool) {
        start_pool(graph, matrix->threads);
    }
}

void bench_run(bench_matrix * matrix, int copy, int ith, int nth, void (*)(void *), void *) {
    ggml_compute_params params = {ith, nth, work.size() - 64, work_start(), pool, false};
    ggml_tensor *       node   = matrix->products[copy];
    tiles.load();
    if (!ggml_cpu_extra_compute_forward(&params, node)) {
        ggml_compute_forward_mul_mat(&params, node);
    }
    tiles.save_and_release();
}

void bench_destroy(bench_matrix * matrix) {
    for (ggml_backend_buffer_t buffer : matrix->buffers) {
        ggml_backend_buffer_free(buffer);
    }
    ggml_free(matrix->context);
    ggml_free(matrix->weights_context);
    delete matrix;
}

// A program on ggml that puts its weights into this library's buffers, so that their products are computed here.
//
// Three steps are new beside any other program on ggml: ask for the buffer type, name it to ggml's CPU backend, and
// allocate the weights in it. Without AMX there is no such buffer type: the weights then go into ggml's own buffers and
// ggml multiplies them, and the output says so. Every result is compared with a sum in double precision; the exit code
// is 1 if one is too far off.
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <ggml-amx.h>

#include <algorithm>
#include <cstdio>
#include <random>
#include <vector>

// ggml's list of buffer types that its CPU backend can compute with. It is exported by libggml-cpu and stands in no
// header that is installed. A ggml that was built with ggml-amx's CMake module has the buffer type in it already.
std::vector<ggml_backend_buffer_type_t> & ggml_backend_cpu_get_extra_buffer_types();

namespace {

constexpr int64_t K = 1024, N = 512;
constexpr ggml_type TYPE = GGML_TYPE_Q4_0;
// Rounding activations to 8 bits costs about 1e-4 of the squared result, the library at most 3e-4.
constexpr double MOST_ERROR = 1e-3;

// The buffer type for weights: ours, or ggml's own where this library steps aside.
ggml_backend_buffer_type_t buffer_type_for_weights() {
    ggml_backend_buffer_type_t ours = ggml_backend_amx_buffer_type();
    if (!ours) {
        return ggml_backend_cpu_buffer_type();
    }
    auto & known = ggml_backend_cpu_get_extra_buffer_types();
    if (std::find(known.begin(), known.end(), ours) == known.end()) {
        known.push_back(ours);
    }
    return ours;
}

ggml_context * new_context() {
    // Only descriptions of tensors; their data lies in buffers.
    return ggml_init({ggml_tensor_overhead() * 8 + ggml_graph_overhead(), nullptr, true});
}

// Multiplies m rows of activations, and compares. The relative squared error, or -1 if ggml declines.
double multiply(ggml_backend_t backend, ggml_tensor * weights, const std::vector<float> & exact_weights, int64_t m) {
    ggml_context * context = new_context();
    ggml_tensor * activations = ggml_new_tensor_2d(context, GGML_TYPE_F32, K, m);
    ggml_tensor * results = ggml_mul_mat(context, weights, activations);
    ggml_cgraph * graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, results);
    if (!ggml_backend_supports_op(backend, results)) {
        ggml_free(context);
        return -1;
    }
    // Activations and results lie in the backend's own buffers, as always.
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(context, backend);
    std::vector<float> x(size_t(K * m)), y(size_t(N * m));
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::generate(x.begin(), x.end(), [&] { return normal(random); });
    ggml_backend_tensor_set(activations, x.data(), 0, ggml_nbytes(activations));
    const bool done = ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS;
    ggml_backend_tensor_get(results, y.data(), 0, ggml_nbytes(results));
    ggml_backend_buffer_free(buffer);
    ggml_free(context);

    double error = 0, size = 0;
    for (size_t i = 0; i < size_t(m); i++) {
        for (size_t j = 0; j < size_t(N); j++) {
            double exact = 0;
            for (size_t l = 0; l < size_t(K); l++) {
                exact += double(x[i * K + l]) * double(exact_weights[j * K + l]);
            }
            error += (y[i * N + j] - exact) * (y[i * N + j] - exact);
            size += exact * exact;
        }
    }
    return done ? error / size : -1;
}

} // namespace

int main() {
    // Before anything asks the CPU backend what it can compute.
    ggml_backend_buffer_type_t buffer_type = buffer_type_for_weights();
    if (buffer_type == ggml_backend_cpu_buffer_type()) {
        printf("ggml-amx steps aside (without AMX: %s); ggml multiplies\n", ggml_amx_isa_reason());
    }

    // Random weights as ggml's quantiser writes them, and what they stand for. A program that loads a model has the
    // bytes from its file.
    std::vector<float> floats(size_t(K * N));
    std::mt19937 random(0);
    std::normal_distribution<float> normal;
    std::generate(floats.begin(), floats.end(), [&] { return normal(random); });
    std::vector<uint8_t> bytes(ggml_row_size(TYPE, K) * N);
    ggml_quantize_chunk(TYPE, floats.data(), bytes.data(), 0, N, K, nullptr);
    ggml_get_type_traits(TYPE)->to_float(bytes.data(), floats.data(), K * N);

    // The weights, in a buffer of that type. Writing them packs them.
    ggml_context * context = new_context();
    ggml_tensor * weights = ggml_new_tensor_2d(context, TYPE, K, N);
    ggml_set_name(weights, "weights");
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(context, buffer_type);
    if (!buffer) {
        fprintf(stderr, "no buffer of type %s\n", ggml_backend_buft_name(buffer_type));
        return 1;
    }
    ggml_backend_buffer_set_usage(buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    ggml_backend_tensor_set(weights, bytes.data(), 0, bytes.size());
    printf("weights lie in a buffer of type %s\n", ggml_backend_buffer_name(buffer));

    ggml_backend_t backend = ggml_backend_cpu_init();
    bool good = true;
    for (int64_t m : {1, 64}) {
        const double error = multiply(backend, weights, floats, m);
        printf("%lld row%s of activations: relative squared error %.1e\n", (long long) m, m == 1 ? "" : "s", error);
        good = good && error >= 0 && error < MOST_ERROR;
    }
    puts(good ? "right" : "WRONG");
    ggml_backend_free(backend);
    ggml_backend_buffer_free(buffer);
    ggml_free(context);
    return good ? 0 : 1;
}

// MUL_MAT_ID of one llama.cpp build, as a graph of one op: experts in the buffer type asked for, ids from a skewed
// routing, several tensors in turns so that their weights come from memory. One JSON line per product. Builds are
// compared by running their programs in turns: `cargo xtask bench --experts`.

#include "shim.hpp"

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <sstream>
#include <string>
#include <vector>

namespace {

struct Shape {
    const char * name;
    int64_t      k, n, experts, used, x_rows;  // x_rows: of activations per token
};

// Qwen3-30B-A3B: gate and up read one row per token, down one per chosen expert.
const Shape SHAPES[] = {
    { "up", 2048, 768, 128, 8, 1 },
    { "down", 768, 2048, 128, 8, 8 },
};

struct Options {
    std::string              buffer = "AMX";
    std::vector<std::string> types  = { "q4_0", "q4_K" };
    std::vector<int64_t>     tokens = { 1, 4, 32, 128, 512, 2048 };
    std::vector<std::string> shapes = { "up", "down" };
    int                      threads = 1;
    int                      reps    = 7;
    int                      copies  = 4;
};

[[noreturn]] void fail(const std::string & why) {
    fprintf(stderr, "experts: %s\n", why.c_str());
    exit(1);
}

std::vector<std::string> split(const char * list) {
    std::vector<std::string> parts;
    std::istringstream       in(list);
    for (std::string part; std::getline(in, part, ',');) {
        parts.push_back(part);
    }
    return parts;
}

int positive(const std::string & text) {
    const int n = atoi(text.c_str());
    return n > 0 ? n : (fail("`" + text + "` is not a positive number"), 0);
}

Options parse(int argc, char ** argv) {
    Options o;
    for (int i = 1; i < argc; i += 2) {
        const std::string name = argv[i];
        if (i + 1 == argc) {
            fail(name + " needs a value");
        }
        const char * value = argv[i + 1];
        if (name == "--buffer") {
            o.buffer = value;
        } else if (name == "--types") {
            o.types = split(value);
        } else if (name == "--shapes") {
            o.shapes = split(value);
        } else if (name == "--tokens") {
            o.tokens.clear();
            for (const std::string & t : split(value)) {
                o.tokens.push_back(positive(t));
            }
        } else if (name == "--threads") {
            o.threads = positive(value);
        } else if (name == "--reps") {
            o.reps = positive(value);
        } else if (name == "--copies") {
            o.copies = positive(value);
        } else {
            fail("unknown argument `" + name + "`");
        }
    }
    return o;
}

// nullptr: the build has no buffer type of this name.
ggml_backend_buffer_type_t buffer_type(const std::string & name) {
    if (name == ggml_backend_buft_name(ggml_backend_cpu_buffer_type())) {
        return ggml_backend_cpu_buffer_type();
    }
    ggml_backend_reg_t reg = ggml_backend_cpu_reg();
    auto get = (ggml_backend_dev_get_extra_bufts_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_dev_get_extra_bufts");
    for (ggml_backend_buffer_type_t * at = get ? get(ggml_backend_reg_dev_get(reg, 0)) : nullptr; at && *at; at++) {
        if (name == ggml_backend_buft_name(*at)) {
            return *at;
        }
    }
    return nullptr;
}

// As in a model: some experts are chosen several times as often as others, and no two of a token are the same.
// Popularity falls off as 1 / sqrt(rank), with ranks in a random order.
std::vector<int32_t> route(const Shape & shape, int64_t tokens, std::mt19937 & random) {
    std::vector<double> popularity(shape.experts);
    for (int64_t i = 0; i < shape.experts; i++) {
        popularity[i] = 1 / std::sqrt(double(i + 1));
    }
    std::shuffle(popularity.begin(), popularity.end(), random);
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < tokens; t++) {
        std::vector<double> left = popularity;
        for (int64_t i = 0; i < shape.used; i++) {
            const int32_t id = std::discrete_distribution<int32_t>(left.begin(), left.end())(random);
            left[id]         = 0;
            ids.push_back(id);
        }
    }
    return ids;
}

struct Context {
    ggml_context * context;

    explicit Context(size_t tensors)
        : context(ggml_init({ tensors * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true })) {}
    Context(const Context &) = delete;
    ~Context() {
        ggml_backend_buffer_free(buffer);
        ggml_free(context);
    }

    ggml_backend_buffer_t buffer = nullptr;

    void allocate(ggml_backend_buffer_type_t type) {
        buffer = ggml_backend_alloc_ctx_tensors_from_buft(context, type);
        if (!buffer) {
            fail("out of memory");
        }
    }
};

// Does the build take experts of this type and shape in this buffer type? Asked as llama.cpp's loader asks.
bool takes(ggml_backend_buffer_type_t buffer, ggml_type type, const Shape & shape) {
    Context       c(4);
    ggml_tensor * w = ggml_new_tensor_3d(c.context, type, shape.k, shape.n, shape.experts);
    ggml_tensor * y = ggml_mul_mat_id(c.context, w, ggml_new_tensor_3d(c.context, GGML_TYPE_F32, shape.k, shape.used, 512),
                                      ggml_new_tensor_2d(c.context, GGML_TYPE_I32, shape.used, 512));
    w->buffer       = ggml_backend_buft_alloc_buffer(buffer, 0);
    const bool yes  = ggml_backend_dev_supports_op(ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0), y);
    ggml_backend_buffer_free(w->buffer);
    return yes;
}

// The tensors of experts, all different in their order: one quantised expert after the other, from another start.
void fill(const std::vector<ggml_tensor *> & tensors, std::mt19937 & random) {
    const ggml_tensor &             like = *tensors[0];
    const int64_t                   size = like.ne[0] * like.ne[1];
    std::normal_distribution<float> normal(0, 0.02f);
    std::vector<float>              values(size);
    const size_t                    bytes = ggml_row_size(like.type, size);
    std::vector<uint8_t>            some(8 * bytes), all;
    for (int i = 0; i < 8; i++) {
        std::generate(values.begin(), values.end(), [&] { return normal(random); });
        ggml_quantize_chunk(like.type, values.data(), some.data() + i * bytes, 0, like.ne[1], like.ne[0], nullptr);
    }
    for (size_t t = 0; t < tensors.size(); t++) {
        all.clear();
        for (int64_t e = 0; e < like.ne[2]; e++) {
            const auto from = some.begin() + (t + e) % 8 * bytes;
            all.insert(all.end(), from, from + bytes);
        }
        ggml_backend_tensor_set(tensors[t], all.data(), 0, all.size());
    }
}

// Milliseconds of every repetition; each takes the next tensor of experts.
std::vector<double> measure(const std::vector<ggml_tensor *> & experts, const Shape & shape, int64_t tokens,
                            ggml_backend_t backend, int reps, std::mt19937 & random) {
    Context       c(2 + experts.size());
    ggml_tensor * x   = ggml_new_tensor_3d(c.context, GGML_TYPE_F32, shape.k, shape.x_rows, tokens);
    ggml_tensor * ids = ggml_new_tensor_2d(c.context, GGML_TYPE_I32, shape.used, tokens);
    std::vector<ggml_tensor *> products;
    for (ggml_tensor * w : experts) {
        products.push_back(ggml_mul_mat_id(c.context, w, x, ids));
    }
    c.allocate(ggml_backend_cpu_buffer_type());
    std::normal_distribution<float> normal(0, 1);
    float *                         values = (float *) x->data;
    std::generate(values, values + ggml_nelements(x), [&] { return normal(random); });
    std::vector<double> times;
    for (int i = -2; i < reps; i++) {  // two rounds to warm up
        const std::vector<int32_t> routing = route(shape, tokens, random);
        memcpy(ids->data, routing.data(), ggml_nbytes(ids));
        Context       graph_context(0);
        ggml_cgraph * graph = ggml_new_graph(graph_context.context);
        ggml_build_forward_expand(graph, products[(i + 2) % products.size()]);
        const auto start = std::chrono::steady_clock::now();
        if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
            fail("the graph was not computed");
        }
        const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
        if (i >= 0) {
            times.push_back(took.count());
        }
    }
    return times;
}

void print(const Options & o, const std::string & type, const Shape & shape, int64_t tokens, std::vector<double> times) {
    std::sort(times.begin(), times.end());
    const size_t half   = times.size() / 2;
    const double median = times.size() % 2 ? times[half] : (times[half - 1] + times[half]) / 2;
    const double flops  = 2.0 * double(shape.k * shape.n * shape.used * tokens);
    printf("{\"buffer\":\"%s\",\"type\":\"%s\",\"shape\":\"%s\",\"k\":%lld,\"n\":%lld,\"experts\":%lld,\"used\":%lld,\"tokens\":%lld,"
           "\"threads\":%d,\"ms\":%.4f,\"best_ms\":%.4f,\"gflops\":%.2f}\n",
           o.buffer.c_str(), type.c_str(), shape.name, (long long) shape.k, (long long) shape.n, (long long) shape.experts,
           (long long) shape.used, (long long) tokens, o.threads, median, times[0], flops / median * 1e-6);
    fflush(stdout);
}

}  // namespace

int main(int argc, char ** argv) {
    const Options              o      = parse(argc, argv);
    ggml_backend_buffer_type_t buffer = buffer_type(o.buffer);
    if (!buffer) {
        fail("this build has no buffer type " + o.buffer);
    }
    ggml_backend_t backend = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(backend, o.threads);
    for (const std::string & name : o.types) {
        const ggml_type type = type_of_name(name.c_str());
        if (type == GGML_TYPE_COUNT) {
            fail("unknown type " + name);
        }
        for (const Shape & shape : SHAPES) {
            if (std::find(o.shapes.begin(), o.shapes.end(), shape.name) == o.shapes.end()) {
                continue;
            }
            if (!takes(buffer, type, shape)) {
                fprintf(stderr, "experts: no %s experts in %s\n", name.c_str(), o.buffer.c_str());
                continue;
            }
            std::mt19937               random(1);
            Context                    weights(o.copies);
            std::vector<ggml_tensor *> experts;
            for (int i = 0; i < o.copies; i++) {
                experts.push_back(ggml_new_tensor_3d(weights.context, type, shape.k, shape.n, shape.experts));
            }
            weights.allocate(buffer);
            fill(experts, random);
            for (int64_t tokens : o.tokens) {
                print(o, name, shape, tokens, measure(experts, shape, tokens, backend, o.reps, random));
            }
        }
    }
    ggml_backend_free(backend);
    return 0;
}

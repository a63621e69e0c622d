// MUL_MAT and MUL_MAT_ID of one llama.cpp build, as graphs of one op: weights in the buffer type asked for, ids from a
// skewed routing, several tensors in turns so that their weights come from memory. One JSON line per product; nothing
// for types that the build does not take in this buffer. Builds, or buffer types, are compared by running their
// programs in turns: `cargo xtask bench --experts`, `--type-table`.

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

    // One matrix for all tokens: MUL_MAT.
    bool dense() const { return experts == 1; }
};

// Qwen3-30B-A3B: gate and up read one row per token, down one per chosen expert. Attention of 8B models.
const Shape SHAPES[] = {
    { "up", 2048, 768, 128, 8, 1 },
    { "down", 768, 2048, 128, 8, 8 },
    { "matrix", 4096, 4096, 1, 1, 1 },
};

// A product is repeated for at least this long, so that short ones have many times.
constexpr double LEAST_MS = 50;
// Different rows of weights: some quantisers take half a microsecond per weight.
constexpr int64_t DIFFERENT_ROWS = 32;

struct Options {
    std::string              buffer = "AMX";
    std::vector<std::string> types  = { "q4_0", "q4_K" };
    std::vector<int64_t>     tokens = { 1, 4, 32, 128, 512, 2048 };
    std::vector<std::string> shapes = { "up", "down" };
    int                      threads = 1;
    int                      reps    = 7;
    // MiB of weights that are read before a tensor is used again: more than caches hold.
    int                      memory  = 640;
};

[[noreturn]] void fail(const std::string & why) {
    fprintf(stderr, "products: %s\n", why.c_str());
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
        } else if (name == "--memory") {
            o.memory = positive(value);
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

ggml_tensor * new_weights(const Context & c, ggml_type type, const Shape & shape) {
    return ggml_new_tensor_3d(c.context, type, shape.k, shape.n, shape.experts);
}

// Activations, the ids of a product with experts (else nullptr), and the product with some weights.
struct Operands {
    ggml_context * context;
    ggml_tensor *  x;
    ggml_tensor *  ids = nullptr;

    Operands(const Context & c, const Shape & shape, int64_t x_rows, int64_t tokens) : context(c.context) {
        if (shape.dense()) {
            x = ggml_new_tensor_2d(context, GGML_TYPE_F32, shape.k, tokens);
        } else {
            x   = ggml_new_tensor_3d(context, GGML_TYPE_F32, shape.k, x_rows, tokens);
            ids = ggml_new_tensor_2d(context, GGML_TYPE_I32, shape.used, tokens);
        }
    }
    ggml_tensor * times(ggml_tensor * w) const { return ids ? ggml_mul_mat_id(context, w, x, ids) : ggml_mul_mat(context, w, x); }
};

// Does the build take weights of this type and shape in this buffer type? Asked as llama.cpp's loader asks.
bool takes(ggml_backend_buffer_type_t buffer, ggml_type type, const Shape & shape) {
    Context       c(4);
    ggml_tensor * w = new_weights(c, type, shape);
    ggml_tensor * y = Operands(c, shape, shape.used, 512).times(w);
    w->buffer       = ggml_backend_buft_alloc_buffer(buffer, 0);
    const bool yes  = ggml_backend_dev_supports_op(ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0), y);
    ggml_backend_buffer_free(w->buffer);
    return yes;
}

// A few quantised rows. Types that need an importance matrix get one that finds all channels equally important.
std::vector<uint8_t> some_rows(ggml_type type, int64_t k, std::mt19937 & random) {
    std::normal_distribution<float> normal(0, 0.02f);
    std::vector<float>              values(DIFFERENT_ROWS * k);
    std::generate(values.begin(), values.end(), [&] { return normal(random); });
    const std::vector<float> ones(k, 1);
    std::vector<uint8_t>     rows(DIFFERENT_ROWS * ggml_row_size(type, k));
    ggml_quantize_chunk(type, values.data(), rows.data(), 0, DIFFERENT_ROWS, k,
                        ggml_quantize_requires_imatrix(type) ? ones.data() : nullptr);
    return rows;
}

// Every tensor has the same few rows, in an order of its own.
void fill(const std::vector<ggml_tensor *> & tensors, std::mt19937 & random) {
    const ggml_tensor &        like = *tensors[0];
    const size_t               row  = ggml_row_size(like.type, like.ne[0]);
    const std::vector<uint8_t> rows = some_rows(like.type, like.ne[0], random);
    std::vector<uint8_t>       all(ggml_nbytes(&like));
    for (ggml_tensor * tensor : tensors) {
        for (size_t at = 0; at < all.size(); at += row) {
            memcpy(&all[at], &rows[random() % DIFFERENT_ROWS * row], row);
        }
        ggml_backend_tensor_set(tensor, all.data(), 0, all.size());
    }
}

// Milliseconds of every repetition; each takes the next tensor of weights, from `next` on.
std::vector<double> measure(const std::vector<ggml_tensor *> & weights, size_t & next, const Shape & shape, int64_t tokens,
                            ggml_backend_t backend, int reps, std::mt19937 & random) {
    Context        c(3);
    const Operands operands(c, shape, shape.x_rows, tokens);
    ggml_tensor *  product = operands.times(weights[0]);
    c.allocate(ggml_backend_cpu_buffer_type());
    std::normal_distribution<float> normal(0, 1);
    float *                         values = (float *) operands.x->data;
    std::generate(values, values + ggml_nelements(operands.x), [&] { return normal(random); });
    std::vector<double> times;
    double              sum = 0;
    for (int i = -2; i < reps || sum < LEAST_MS; i++) {  // two rounds to warm up
        if (operands.ids) {
            const std::vector<int32_t> routing = route(shape, tokens, random);
            memcpy(operands.ids->data, routing.data(), ggml_nbytes(operands.ids));
        }
        product->src[0] = weights[next++ % weights.size()];
        Context       graph_context(0);
        ggml_cgraph * graph = ggml_new_graph(graph_context.context);
        ggml_build_forward_expand(graph, product);
        const auto start = std::chrono::steady_clock::now();
        if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
            fail("the graph was not computed");
        }
        const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
        if (i >= 0) {
            times.push_back(took.count());
            sum += took.count();
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
                fprintf(stderr, "products: no %s weights (%s) in %s\n", name.c_str(), shape.name, o.buffer.c_str());
                continue;
            }
            const size_t               bytes  = ggml_row_size(type, shape.k) * shape.n * shape.experts;
            const size_t               copies = std::max<size_t>(2, ((size_t) o.memory << 20) / bytes + 1);
            std::mt19937               random(1);
            Context                    context(copies);
            std::vector<ggml_tensor *> weights;
            for (size_t i = 0; i < copies; i++) {
                weights.push_back(new_weights(context, type, shape));
            }
            context.allocate(buffer);
            fill(weights, random);
            size_t next = 0;
            for (int64_t tokens : o.tokens) {
                print(o, name, shape, tokens, measure(weights, next, shape, tokens, backend, o.reps, random));
            }
        }
    }
    ggml_backend_free(backend);
    return 0;
}

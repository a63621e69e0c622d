// What the programs for ik_llama.cpp share: finding our buffer type, weights in every place they may live in, exact
// results, and the rule that judges ours.
#pragma once

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "cpu.h"

#include "bound.hpp"
#include "common.hpp"
#include "formats.h"

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace ik {

using namespace common;

template <typename T, void (*free)(T *)> struct deleter {
    void operator()(T * t) const { free(t); }
};
using context_ptr = std::unique_ptr<ggml_context, deleter<ggml_context, ggml_free>>;
using buffer_ptr = std::unique_ptr<ggml_backend_buffer, deleter<ggml_backend_buffer, ggml_backend_buffer_free>>;
using backend_ptr = std::unique_ptr<ggml_backend, deleter<ggml_backend, ggml_backend_free>>;
using gallocr_ptr = std::unique_ptr<ggml_gallocr, deleter<ggml_gallocr, ggml_gallocr_free>>;

// Ours, as the host's registry has it.
inline ggml_backend_buffer_type_t amx;

// More threads than rows, on purpose: some get nothing to do.
inline const int THREADS[] = {1, 2, 3, 7};

// One per thread count; not for several threads at once.
inline ggml_backend_t backend(int n_threads) {
    static backend_ptr backends[65];
    if (!backends[n_threads]) {
        backends[n_threads].reset(ggml_backend_cpu_init());
        ggml_backend_cpu_set_n_threads(backends[n_threads].get(), n_threads);
    }
    return backends[n_threads].get();
}

constexpr size_t GRAPH_NODES = 64;

// Some tensors of one context in one buffer, and a few graphs. Create the tensors, then call allocate().
struct tensors {
    context_ptr context;
    buffer_ptr buffer;

    explicit tensors(size_t n, size_t graphs = 4) {
        ggml_init_params params = {};
        params.mem_size = n * ggml_tensor_overhead() + graphs * ggml_graph_overhead_custom(GRAPH_NODES, false);
        params.no_alloc = true;
        context.reset(ggml_init(params));
        if (!context) {
            printf("FAILED setup: ggml_init\n");
            exit(1);
        }
    }
    ggml_context * get() const { return context.get(); }
    void allocate(ggml_backend_buffer_type_t buft = ggml_backend_cpu_buffer_type()) {
        buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(get(), buft));
        CHECK(buffer != nullptr, "no buffer of type %s", ggml_backend_buft_name(buft));
    }
};

// Looks for our buffer type. Without it our functions are not in front of the host's, and the program fails here.
inline void open() {
    host_settle_for_lesser_kernels();
    const tensors first(1, 0); // the host fills its tables with the first context
    for (size_t i = 0, count = ggml_backend_reg_get_count(); i < count; i++) {
        if (strcmp(ggml_backend_reg_get_name(i), "AMX") == 0) {
            amx = ggml_backend_reg_get_default_buffer_type(i);
        }
    }
    if (!CHECK(amx != nullptr, "the host's registry has no AMX: the library is not in front of it")) {
        exit(harness_report("setup"));
    }
}

// The graph of some nodes, in this order, in a context that must outlive it.
inline ggml_cgraph * graph_of(ggml_context * context, const std::vector<ggml_tensor *> & nodes) {
    ggml_cgraph * graph = ggml_new_graph_custom(context, GRAPH_NODES, false);
    for (ggml_tensor * node : nodes) {
        ggml_build_forward_expand(graph, node);
    }
    return graph;
}

inline void compute(ggml_backend_t on, ggml_cgraph * graph) {
    const ggml_status status = ggml_backend_graph_compute(on, graph);
    CHECK(status == GGML_STATUS_SUCCESS, "graph compute says %d", int(status));
}

// Sets every byte of dst to 0xff: each float is a NaN until it is written.
inline void poison(ggml_tensor * dst) {
    memset(dst->data, 0xff, ggml_nbytes(dst));
}

inline std::vector<float> floats_of(const ggml_tensor * t) {
    const float * data = static_cast<const float *>(t->data);
    return std::vector<float>(data, data + ggml_nelements(t));
}

// ---- weights and activations

// Rows that lie interleaved in a type that the host's -rtr makes.
inline int64_t together_in(ggml_type type) {
    switch (type) {
        case GGML_TYPE_Q4_0_R8:
        case GGML_TYPE_Q8_0_R8:
        case GGML_TYPE_IQ4_XS_R8: return 8;
        case GGML_TYPE_IQ4_NL_R4:
        case GGML_TYPE_Q4_K_R4:
        case GGML_TYPE_Q5_K_R4:
        case GGML_TYPE_Q6_K_R4:
        case GGML_TYPE_IQ4_K_R4: return 4;
        default: return 1;
    }
}

// Normal weights of a usual size, their quantised bytes, and the floats those bytes stand for.
struct matrix {
    ggml_type type;
    int64_t k, rows;
    std::vector<uint8_t> bytes;
    std::vector<float> floats;
    std::vector<double> norms; // squared, of every row
    double quantisation = 0;   // squared error of the quantised weights over the squared size of the originals

    matrix(ggml_type type, int64_t k, int64_t rows, rng & r) : type(type), k(k), rows(rows), floats(size_t(k * rows)) {
        std::vector<float> original(floats.size());
        for (float & w : original) {
            w = 0.02f * rng_normal(&r);
        }
        bytes.resize(ggml_row_size(type, k) * size_t(rows));
        ggml_quantize_chunk(type, original.data(), bytes.data(), 0, rows, k, nullptr);
        if (const ggml_to_float_t to_float = ggml_internal_get_type_traits(type).to_float) {
            // The host decodes interleaved rows together.
            const int64_t step = together_in(type) > 1 ? together_in(type) : rows;
            for (int64_t row = 0; row < rows; row += step) {
                to_float(bytes.data() + size_t(row) * ggml_row_size(type, k), floats.data() + row * k, k * step);
            }
        } else {
            floats = original; // F32
        }
        double size = 0;
        for (size_t i = 0; i < original.size(); i++) {
            const double error = double(floats[i]) - double(original[i]);
            quantisation += error * error;
            size += double(original[i]) * double(original[i]);
        }
        quantisation /= size;
        for (int64_t i = 0; i < rows; i++) {
            norms.push_back(squared_norm(floats.data() + i * k, k));
        }
    }
};

inline std::vector<float> activations(int64_t k, int64_t rows, bool outliers, rng & r) {
    std::vector<float> x(size_t(k * rows));
    fill_activations(x.data(), k, rows, outliers, r);
    return x;
}

// Where weights live: in the host's memory as from a mapped file, packed by us, plain in our buffer (because of their
// name), or where only the host computes with them.
enum class home { in_place, packed, stored, host };
inline const home HOMES[] = {home::in_place, home::packed, home::stored, home::host};

inline const char * name_of(home h) {
    switch (h) {
        case home::in_place: return "in place";
        case home::packed: return "packed";
        case home::stored: return "stored";
        default: return "of the host";
    }
}

// From this many rows of activations on we multiply weights in place: from there the host's own kernels are slower.
inline int64_t least_rows(ggml_type type) {
    return type == GGML_TYPE_Q2_K ? 12 : 1;
}

// Whether products of this many rows are ours.
inline bool is_ours(home h, int64_t rows, ggml_type type) {
    return h == home::packed || (h != home::host && rows >= least_rows(type) && host_has_amx() && !getenv("GGML_AMX_ISA"));
}

// A weight tensor and its buffer.
struct weight {
    tensors t{1, 0};
    ggml_tensor * tensor;

    weight(home h, const matrix & m, int64_t n, int64_t ne2 = 1, int64_t ne3 = 1, const char * role = "ffn_up") {
        tensor = ggml_new_tensor_4d(t.get(), m.type, m.k, n, ne2, ne3);
        ggml_set_name(tensor, text("blk.0.%s.weight", h == home::packed ? role : "whatever").c_str());
        t.allocate(h == home::packed || h == home::stored ? amx : ggml_backend_cpu_buffer_type());
        if (h != home::host) {
            ggml_backend_buffer_set_usage(t.buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        }
        CHECK(ggml_nbytes(tensor) <= m.bytes.size(), "the matrix is too small");
        ggml_backend_tensor_set(tensor, m.bytes.data(), 0, ggml_nbytes(tensor));
        // Read directly, not through the buffer's functions: only this shows what is packed.
        const bool plain = memcmp(tensor->data, m.bytes.data(), ggml_nbytes(tensor)) == 0;
        CHECK(plain == (h != home::packed), "%s %s is %s", ggml_type_name(m.type), name_of(h), plain ? "plain" : "packed");
    }
    operator ggml_tensor *() const { return tensor; }
};

// ---- exact results and the rule

// What an op should give, and the size that results of such norms have: |w| |x| / sqrt(K).
struct reference {
    std::vector<double> exact, size;
    double independent = 1e9; // number of independent errors
    double e8 = 0;            // NMSE that 8 bits per 32 activations give

    void add(double result, double its_size) {
        exact.push_back(result);
        size.push_back(its_size);
    }
    double slack() const { return 1 + 6 * std::sqrt(2 / independent); }

    double nmse(const std::vector<float> & got) const {
        double error = 0, all = 0, typical = 0;
        for (size_t i = 0; i < exact.size(); i++) {
            const double d = double(got[i]) - exact[i];
            error += d * d;
            all += exact[i] * exact[i];
            typical += size[i] * size[i];
        }
        return all + typical > 0 ? error / std::max(all, typical) : error;
    }
};

// The exact products of rows of activations with all rows of a matrix.
struct products {
    const matrix & m;
    int64_t rows;
    std::vector<float> x;
    std::vector<double> exact; // [row * m.rows + weight row]
    std::vector<double> norms;
    double e8; // NMSE of 8 bits per 32 activations: of the products too, as weights are independent

    products(const matrix & m, const std::vector<float> & x) : m(m), rows(int64_t(x.size()) / m.k), x(x), exact(size_t(rows * m.rows)) {
        product_f64(m.floats.data(), this->x.data(), size_t(m.k), exact.data(), m.k, m.rows, rows);
        for (int64_t i = 0; i < rows; i++) {
            norms.push_back(squared_norm(x.data() + i * m.k, m.k));
        }
        e8 = bound::e8_of(x);
    }
    products(const matrix & m, int64_t rows, bool outliers, rng & r) : products(m, activations(m.k, rows, outliers, r)) {}
    const float * row(int64_t i) const { return x.data() + i * m.k; }
    double at(int64_t x_row, int64_t w_row) const { return exact[size_t(x_row * m.rows + w_row)]; }
    double size(int64_t x_row, int64_t w_row) const { return std::sqrt(m.norms[size_t(w_row)] * norms[size_t(x_row)] / double(m.k)); }

    // Of the first rows of both.
    reference first(int64_t n, int64_t count) const {
        reference want;
        for (int64_t i = 0; i < count; i++) {
            for (int64_t j = 0; j < n; j++) {
                want.add(at(i, j), size(i, j));
            }
        }
        want.independent = double(count * std::min(n, m.k));
        want.e8 = e8;
        return want;
    }
};

// ggml's own limit for an operation (tests/test-backend-ops.cpp).
constexpr double NMSE_LIMIT = 5e-4;

// Errors that a mean of squares needs, so that six standard deviations of it are a factor below 1.5. Fewer are pooled
// with those of other products of the same kind.
constexpr double ENOUGH = 288;

struct pooled {
    // Sums over products, each weighted with its number of errors.
    double error = 0, independent = 0, bound = 0;
};

// Our NMSE may be at most the bound that the header promises. The host's may be at most the larger of its own (times
// 1.1) and a tenth of what quantising the weights cost. No single error may be ten times the usual one (twenty times
// for the host).
inline double judge(const std::vector<float> & got, const reference & want, bool is_ours, double host, double quantisation, const std::string & what) {
    const double ours = want.nmse(got), slack = want.slack();
    CHECK(!is_ours || want.e8 > 0, "%s: nobody said what 8 bits cost: the test is wrong", what.c_str());
    const double bound = is_ours ? bound::of_row(quantisation, want.e8) : std::max(1.1 * host, quantisation / 10);
    if (!is_ours || want.independent >= ENOUGH) {
        CHECK(ours <= bound * slack, "%s: NMSE %.3g, allowed %.3g (8 bits per 32: %.3g, host %.3g, quantisation / 10 %.3g, slack %.2f)", what.c_str(), ours,
              bound * slack, want.e8, host, quantisation / 10, slack);
    } else {
        static std::map<double, pooled> pools;
        pooled & pool = pools[quantisation];
        pool.error += ours * want.independent;
        pool.bound += bound * want.independent;
        pool.independent += want.independent;
        if (!(pool.independent < ENOUGH)) {
            const double allowed = pool.bound * (1 + 6 * std::sqrt(2 / pool.independent));
            CHECK(pool.error <= allowed, "%s and others before it: NMSE %.3g, allowed %.3g", what.c_str(), pool.error / pool.independent, allowed / pool.independent);
            pool = {};
        }
    }
    double worst = 0;
    size_t at = 0;
    for (size_t i = 0; i < want.exact.size(); i++) {
        const double d = std::fabs(double(got[i]) - want.exact[i]);
        const double error = want.size[i] > 0 ? d / want.size[i] : d;
        if (!(error <= worst)) { // NaN counts
            worst = error, at = i;
        }
    }
    const double allowed = (is_ours ? 10 : 20 * std::sqrt(slack)) * std::sqrt(bound);
    CHECK(worst <= allowed, "%s: result %zu is %g, exact %g: off by %.3g of the usual size, allowed %.3g", what.c_str(), at,
          double(got[at]), want.exact[at], worst, allowed);
    return ours;
}

// The error that the host's own kernels may have, for programs that do not run them for comparison.
inline double usual_error(bool is_ours) {
    return is_ours ? 1e-4 : 3e-3;
}

// The result of a graph that ends in `node`, by one thread and by another number of them each time; with `ours` both
// must have the same bits. Other nodes may come before it.
inline std::vector<float> result_of(ggml_context * context, ggml_tensor * node, bool ours, const std::string & what, const std::vector<ggml_tensor *> & before = {}) {
    std::vector<ggml_tensor *> nodes = before;
    nodes.push_back(node);
    ggml_cgraph * graph = graph_of(context, nodes);
    std::vector<float> first;
    static size_t turn = 0;
    for (int threads : {1, THREADS[1 + turn++ % 3]}) {
        poison(node);
        compute(backend(threads), graph);
        const std::vector<float> got = floats_of(node);
        if (first.empty()) {
            first = got;
        } else if (ours) {
            CHECK(same_bits(got, first), "%s: other bits with %d threads", what.c_str(), threads);
        }
    }
    return first;
}

// A weight and what it gives.
struct known {
    matrix m;
    products p;
    int64_t n, count;

    known(ggml_type type, int64_t k, int64_t n, int64_t count, rng & r) : m(type, k, n, r), p(m, count, false, r), n(n), count(count) {}

    // With weights that lie where our kernels multiply them if rows are enough, packed or not.
    void check(ggml_tensor * w, const std::string & what, int64_t rows = 0) const {
        rows = rows ? rows : count;
        const bool is_packed = memcmp(w->data, m.bytes.data(), m.bytes.size()) != 0;
        const bool ours = is_ours(is_packed ? home::packed : home::in_place, rows, m.type);
        tensors t(4);
        ggml_tensor * x = ggml_new_tensor_2d(t.get(), GGML_TYPE_F32, m.k, rows), * y = ggml_mul_mat(t.get(), w, x);
        t.allocate();
        memcpy(x->data, p.x.data(), ggml_nbytes(x));
        judge(result_of(t.get(), y, ours, what), p.first(n, rows), ours, 1e-3, m.quantisation, what);
    }
    void set(ggml_tensor * w) const { ggml_backend_tensor_set(w, m.bytes.data(), 0, m.bytes.size()); }
};

} // namespace ik

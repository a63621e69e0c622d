// One MUL_MAT_ID on two tensors with the same weights: in our buffer and in an ordinary one. dst row (slot, token)
// is matrix ids[token][slot] times src1 row (slot % ne11, token).
#pragma once

#include "parity.hpp"

#include <set>

namespace experts {

using namespace parity;

// What an op should give. `size` is what a result of these norms usually is: |w| |x| / sqrt(K).
struct reference {
    std::vector<double> exact, size;
    double typical = 0;     // sum of squares of `size`
    double independent = 0; // errors that are: few say little

    void add(double result, double squared_size) {
        exact.push_back(result);
        size.push_back(std::sqrt(squared_size));
        typical += squared_size;
    }

    // `products`: different pairs of a matrix and a row of src1. Pairs that share a row share its rounding.
    void count(size_t products, size_t rows, int64_t k, int64_t n) { independent = std::min(double(products) * double(n), double(rows) * double(k)); }

    double slack() const { return 1 + 6 * std::sqrt(2 / independent); }
};

// A sum over all results hides one wrong row among thousands: no single error may be ten times the usual one.
inline void judge_each(const float * got, const reference & want, const rule & rule, const std::string & what) {
    const double allowed = std::min(NMSE_LIMIT, std::max(1.1 * std::max(rule.host, rule.host_pool), rule.quantisation / 10)) * want.slack();
    double worst = 0;
    size_t at = 0;
    for (size_t i = 0; i < want.exact.size(); i++) {
        const double error = std::fabs(double(got[i]) - want.exact[i]) / want.size[i];
        if (!(error <= worst)) { // NaN counts
            worst = error, at = i;
        }
    }
    CHECK(worst <= 10 * std::sqrt(allowed), "%s: result %zu is %g, exact %g: off by %.3g of the usual size, allowed %.3g", what.c_str(), at,
          double(got[at]), want.exact[at], worst, 10 * std::sqrt(allowed));
}

// Computes both ops and judges ours, for every thread count and once more: the bits must not depend on either.
// `pool` becomes the host's error if it is 0.
inline double check_op(ggml_tensor * ours, ggml_tensor * plain, const reference & want, double quantisation, double & pool, const std::string & what) {
    tensors host_graph(1), our_graph(1);
    poison(plain);
    compute(graph_of(host_graph.get(), plain), 2);
    const double theirs = nmse(static_cast<float *>(plain->data), want.exact.data(), want.exact.size(), want.typical);
    // twice the limit is what super-blocks of 256 activations cost with outliers
    CHECK(theirs <= 3 * NMSE_LIMIT * want.slack(), "%s: the host's own NMSE is %.3g: the test is wrong", what.c_str(), theirs);
    pool = pool > 0 ? pool : theirs;
    const rule rule{theirs, pool, quantisation};
    ggml_cgraph * graph = graph_of(our_graph.get(), ours);
    std::vector<float> first;
    double error = 0;
    for (int threads : {THREADS[0], THREADS[1], THREADS[2], THREADS[3], THREADS[1]}) {
        poison(ours);
        compute(graph, threads);
        const std::vector<float> result = floats_of(ours);
        if (first.empty()) {
            error = nmse(result.data(), want.exact.data(), result.size(), want.typical);
            judge(error, rule, want.slack(), what);
            judge_each(result.data(), want, rule, what);
            first = result;
        } else {
            CHECK(same_bits(result, first), "%s: other bits with %d threads", what.c_str(), threads);
        }
    }
    return error;
}

// The exact result of an op on plain weights, along every stride.
inline reference follow_strides(const ggml_tensor * op) {
    const ggml_tensor * w = op->src[0], * x = op->src[1], * ids = op->src[2];
    const int64_t k = w->ne[0], n = w->ne[1];
    const auto at = [](const ggml_tensor * t, int64_t i0, int64_t i1, int64_t i2) {
        return static_cast<const char *>(t->data) + size_t(i0) * t->nb[0] + size_t(i1) * t->nb[1] + size_t(i2) * t->nb[2];
    };
    std::vector<std::vector<float>> matrices(size_t(w->ne[2]));
    std::vector<std::vector<double>> norms(matrices.size()); // squared, of every row
    std::set<const char *> rows;
    std::set<std::pair<int32_t, const char *>> products;
    std::vector<float> input(static_cast<size_t>(k));
    std::vector<double> output(static_cast<size_t>(n));
    reference want;
    for (int64_t token = 0; token < ids->ne[1]; token++) {
        for (int64_t slot = 0; slot < ids->ne[0]; slot++) {
            int32_t id;
            memcpy(&id, at(ids, slot, token, 0), sizeof id);
            std::vector<float> & matrix = matrices.at(size_t(id));
            for (int64_t i = 0; matrix.size() < size_t(k * n); i++) {
                matrix.resize(size_t((i + 1) * k));
                ggml_get_type_traits(w->type)->to_float(at(w, 0, i, id), matrix.data() + i * k, k);
                norms[size_t(id)].push_back(squared_norm(matrix.data() + i * k, k));
            }
            const char * row = at(x, 0, slot % x->ne[1], token);
            rows.insert(row);
            products.insert({id, row});
            memcpy(input.data(), row, size_t(k) * sizeof(float));
            product_f64(matrix.data(), input.data(), size_t(k), output.data(), k, n, 1);
            const double xx = squared_norm(input.data(), k);
            for (size_t i = 0; i < size_t(n); i++) {
                want.add(output[i], norms[size_t(id)][i] * xx / double(k));
            }
        }
    }
    want.count(products.size(), rows.size(), k, n);
    return want;
}

} // namespace experts

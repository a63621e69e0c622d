// One MUL_MAT_ID on two tensors with the same weights: in our buffer and in an ordinary one. dst row (slot, token)
// is matrix ids[token][slot] times src1 row (slot % ne11, token).
#pragma once

#include "parity.hpp"

namespace experts {

using namespace parity;

// What an op should give, rows of `n` results. `size` is what a result of these norms usually is: |w| |x| / sqrt(K).
struct reference {
    int64_t n;
    std::vector<double> exact, eight, size; // `eight`: with 8 bits per 32 activations
    double typical = 0;                     // sum of squares of `size`

    explicit reference(int64_t n) : n(n) {}
    void add(double result, double with_eight_bits, double squared_size) {
        exact.push_back(result);
        eight.push_back(with_eight_bits);
        size.push_back(std::sqrt(squared_size));
        typical += squared_size;
    }
};

// A sum over many results hides a single wrong one, so no error may be ten times the usual one.
inline void judge_each(const float * got, const reference & want, double own_error, const std::string & what) {
    bound::row all;
    double worst = 0;
    size_t at = 0;
    for (size_t i = 0; i < want.exact.size(); i++) {
        all.add(double(got[i]), want.exact[i], want.eight[i]);
        const double error = std::fabs(double(got[i]) - want.exact[i]) / want.size[i];
        if (!(error <= worst)) { // NaN counts
            worst = error, at = i;
        }
    }
    // For few results the usual size counts, because theirs may be near 0 by chance.
    const double e8 = all.error8 / std::max(all.size, want.typical), allowed = 10 * std::sqrt(bound::of_row(own_error, e8));
    CHECK(worst <= allowed, "%s: result %zu is %g, exact %g: off by %.3g of the usual size, allowed %.3g", what.c_str(), at, double(got[at]), want.exact[at],
          worst, allowed);
}

// Computes both ops and judges ours, short rows in `pool`, for every thread count and once more: the bits must not
// depend on either.
inline double check_op(ggml_tensor * ours, ggml_tensor * plain, const reference & want, double own_error, bound::row & pool, const std::string & what) {
    tensors host_graph(1), our_graph(1);
    poison(plain);
    compute(graph_of(host_graph.get(), plain), 2);
    const double theirs = nmse(static_cast<float *>(plain->data), want.exact.data(), want.exact.size(), want.typical);
    CHECK(theirs <= limit_of_host(want.exact.size()), "%s: the host's own NMSE is %.3g: the test is wrong", what.c_str(), theirs);
    ggml_cgraph * graph = graph_of(our_graph.get(), ours);
    std::vector<float> first;
    for (int threads : {THREADS[0], THREADS[1], THREADS[2], THREADS[3], THREADS[1]}) {
        poison(ours);
        compute(graph, threads);
        const std::vector<float> result = floats_of(ours);
        if (first.empty()) {
            bound::check_rows(result.data(), want.exact, want.eight, size_t(want.n), own_error, pool, what);
            judge_each(result.data(), want, own_error, what);
            first = result;
        } else {
            CHECK(same_bits(result, first), "%s: other bits with %d threads", what.c_str(), threads);
        }
    }
    return nmse(first.data(), want.exact.data(), first.size(), want.typical);
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
    std::vector<float> input(static_cast<size_t>(k));
    std::vector<double> output(static_cast<size_t>(n)), eight(output.size());
    reference want(n);
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
            memcpy(input.data(), row, size_t(k) * sizeof(float));
            product_f64(matrix.data(), input.data(), size_t(k), output.data(), k, n, 1);
            product_f64(matrix.data(), bound::eight_bits(input.data(), input.size()).data(), size_t(k), eight.data(), k, n, 1);
            const double xx = squared_norm(input.data(), k);
            for (size_t i = 0; i < size_t(n); i++) {
                want.add(output[i], eight[i], norms[size_t(id)][i] * xx / double(k));
            }
        }
    }
    return want;
}

} // namespace experts

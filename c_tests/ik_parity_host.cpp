// ik_llama.cpp: MUL_MAT with weights in place, packed, and stored plain in our buffer, against the host's own kernels
// and double precision. Experts are in ik_experts_host.cpp, gates in ik_gates_host.cpp.
#include "ik.hpp"

namespace {

using namespace ik;

const ggml_type TYPES[] = {GGML_TYPE_Q4_0, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_XS, GGML_TYPE_Q5_0};

// One product of the first rows of activations, computed and judged for every home.
void check_product(const products & p, int64_t n, int64_t m, double & host_pool, const std::string & what, std::vector<home> homes,
                   const std::vector<std::unique_ptr<weight>> & weights) {
    const reference want = p.first(n, m);
    double host = 0;
    for (size_t i = 0; i < homes.size(); i++) {
        tensors t(4);
        ggml_tensor * x = ggml_new_tensor_2d(t.get(), GGML_TYPE_F32, p.m.k, m);
        ggml_tensor * y = ggml_mul_mat(t.get(), *weights[i], x);
        t.allocate();
        memcpy(x->data, p.x.data(), ggml_nbytes(x));
        const std::string which = what + ", " + name_of(homes[i]);
        const std::vector<float> got = result_of(t.get(), y, is_ours(homes[i], m, p.m.type), which);
        if (homes[i] == home::host) { // the first
            host = want.nmse(got);
            CHECK(std::isfinite(host), "%s: NaN", which.c_str());
            host_pool = host_pool == 0 ? host : host_pool;
        } else {
            judge(got, want, is_ours(homes[i], m, p.m.type), std::max(host, host_pool), p.m.quantisation, which);
        }
    }
}

void check_matrix(ggml_type type, int64_t k, int64_t n, const std::vector<int64_t> & counts, bool outliers, rng & r) {
    const matrix m(type, k, n, r);
    const products p(m, counts[0], outliers, r);
    std::vector<home> homes = {home::host, home::in_place, home::stored};
    double pool = 0;
    // The host wants 16 rows of interleaved weights for 32 of activations, and gives NaN for all of IQ4_NL_R4.
    if (together_in(type) > 1 && (n % 16 != 0 || type == GGML_TYPE_IQ4_NL_R4)) {
        homes = {home::in_place};
        pool = usual_error(true);
    } else if (together_in(type) == 1 && n % 16 == 0) { // others are stored plain whatever their name
        homes.push_back(home::packed);
    }
    std::vector<std::unique_ptr<weight>> weights;
    for (home h : homes) {
        weights.push_back(std::make_unique<weight>(h, m, n));
    }
    for (int64_t count : counts) { // most rows first: they give the pooled error of the host
        check_product(p, n, count, pool,
                      text("%s%s K %lld N %lld M %lld", ggml_type_name(type), outliers ? " outliers" : "", (long long) k, (long long) n, (long long) count),
                      homes, weights);
    }
}

void given_any_type_and_shape_when_multiplied_then_as_exact_as_the_rule_demands() {
    rng r = {1};
    for (ggml_type type : TYPES) {
        const int64_t k = ggml_blck_size(type) == 32 ? 576 : 768;
        for (bool outliers : {false, true}) {
            check_matrix(type, k, 48, {300, 33, 32, 31, 16, 15, 2, 1}, outliers, r);
            check_matrix(type, k, 16, {33, 31, 16, 1}, outliers, r);
            check_matrix(type, 4352, 16, {33, 16, 1}, outliers, r);
        }
        check_matrix(type, k, 33, {300, 33, 16, 15, 1}, true, r);
        check_matrix(type, k, 1008, {33, 16, 2, 1}, true, r);
        check_matrix(type, k, 1000, {33, 1}, false, r);
        check_matrix(type, 4352, 48, {300, 2}, true, r);
        check_matrix(type, ggml_blck_size(type), 16, {33, 1}, false, r);
    }
}

// Interleaved rows (-rtr) are read in place, from one row of activations on.
void given_rows_that_the_host_interleaved_when_multiplied_then_as_exact_as_the_rule_demands() {
    rng r = {4};
    if (!host_has_amx()) {
        // The host's own kernels give NaN for IQ4_NL_R4, and end the process for 8 rows beyond a multiple of 16.
        harness_skip("no AMX: weights in place are the host's");
        return;
    }
    for (ggml_type type : {GGML_TYPE_Q4_0_R8, GGML_TYPE_Q8_0_R8, GGML_TYPE_IQ4_XS_R8, GGML_TYPE_IQ4_NL_R4, GGML_TYPE_Q4_K_R4, GGML_TYPE_Q5_K_R4,
                           GGML_TYPE_Q6_K_R4, GGML_TYPE_IQ4_K_R4}) {
        const int64_t k = ggml_blck_size(type) == 32 ? 576 : 768;
        for (bool outliers : {false, true}) {
            check_matrix(type, k, 48, {300, 33, 31, 16, 9, 8, 2, 1}, outliers, r);
        }
        check_matrix(type, k, 16, {33, 1}, true, r);
        check_matrix(type, k, 40, {300, 33, 8, 1}, false, r); // the last panel has 8 rows
        check_matrix(type, k, 1008, {33, 2, 1}, true, r);
        check_matrix(type, k, 1000, {33, 1}, false, r);
        check_matrix(type, 4352, 48, {33, 2}, false, r);
        check_matrix(type, ggml_blck_size(type), 8, {33, 1}, false, r);
    }
}

// Types that are not packed may also lie in our buffer.
void given_floats_under_the_name_of_a_packed_tensor_when_multiplied_then_right() {
    rng r = {2};
    for (ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16}) {
        const matrix m(type, 256, 48, r);
        const products p(m, 20, true, r);
        tensors w(1, 0);
        ggml_tensor * a = ggml_new_tensor_2d(w.get(), type, 256, 48);
        ggml_set_name(a, "blk.0.ffn_up.weight");
        w.allocate(amx);
        ggml_backend_tensor_set(a, m.bytes.data(), 0, m.bytes.size());
        for (int64_t count : {20, 1}) {
            tensors t(4);
            ggml_tensor * x = ggml_new_tensor_2d(t.get(), GGML_TYPE_F32, 256, count), * y = ggml_mul_mat(t.get(), a, x);
            t.allocate();
            memcpy(x->data, p.x.data(), ggml_nbytes(x));
            const std::string what = text("%s M %lld in our buffer", ggml_type_name(type), (long long) count);
            judge(result_of(t.get(), y, false, what), p.first(48, count), false, 1e-5, 0, what);
        }
    }
}

// The host computes neighbouring products of the same activations together, without asking again.
void given_neighbours_with_the_same_activations_when_the_host_fuses_them_then_all_are_right() {
    rng r = {3};
    for (ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_XS}) {
        const matrix m1(type, 768, 48, r), m2(type, 768, 96, r);
        const products p1(m1, 40, false, r), p2(m2, p1.x);
        for (home h1 : HOMES) {
            for (home h2 : HOMES) {
                const weight w1(h1, m1, 48), w2(h2, m2, 96);
                for (int64_t count : {1, 15, 40}) {
                    tensors t(8);
                    ggml_tensor * x = ggml_new_tensor_2d(t.get(), GGML_TYPE_F32, 768, count);
                    // the third is the first again
                    ggml_tensor * y[] = {ggml_mul_mat(t.get(), w1, x), ggml_mul_mat(t.get(), w2, x), ggml_mul_mat(t.get(), w1, x)};
                    t.allocate();
                    memcpy(x->data, p1.x.data(), ggml_nbytes(x));
                    ggml_cgraph * graph = graph_of(t.get(), {y[0], y[1], y[2]});
                    for (int threads : THREADS) {
                        std::for_each(std::begin(y), std::end(y), poison);
                        compute(backend(threads), graph);
                        const std::string what = text("%s M %lld, %s before %s, %d threads", ggml_type_name(type), (long long) count, name_of(h1), name_of(h2), threads);
                        const bool ours1 = is_ours(h1, count, type), ours2 = is_ours(h2, count, type);
                        judge(floats_of(y[0]), p1.first(48, count), ours1, usual_error(ours1), m1.quantisation, what + ", first");
                        judge(floats_of(y[1]), p2.first(96, count), ours2, usual_error(ours2), m2.quantisation, what + ", second");
                        judge(floats_of(y[2]), p1.first(48, count), ours1, usual_error(ours1), m1.quantisation, what + ", third");
                    }
                }
            }
        }
    }
}

// A product along every stride of its operands, against the host's own.
struct operands {
    ggml_tensor * w, * x;
};

void check_layout(ggml_type type, home h, int64_t m_rows, const std::string & what, const std::vector<int64_t> & ne, rng & r,
                  const std::function<operands(ggml_context *, ggml_tensor * w, ggml_tensor * x)> & layout, const std::vector<int64_t> & x_ne) {
    const matrix m(type, ne[0], ne[1] * ne[2] * ne[3], r);
    const weight host(home::host, m, ne[1], ne[2], ne[3]), ours(h, m, ne[1], ne[2], ne[3]);
    std::vector<float> got[2];
    reference want;
    const std::string which = text("%s %s, M %lld, %s", ggml_type_name(type), name_of(h), (long long) m_rows, what.c_str());
    std::vector<float> values;
    for (int i = 0; i < 2; i++) {
        tensors t(16);
        ggml_tensor * x0 = ggml_new_tensor_4d(t.get(), GGML_TYPE_F32, x_ne[0], x_ne[1], x_ne[2], x_ne[3]);
        const operands o = layout(t.get(), i == 0 ? host.tensor : ours.tensor, x0);
        ggml_tensor * y = ggml_mul_mat(t.get(), o.w, o.x);
        t.allocate();
        values = values.empty() ? activations(x_ne[0], ggml_nrows(x0), true, r) : values;
        memcpy(x0->data, values.data(), ggml_nbytes(x0));
        got[i] = result_of(t.get(), y, i == 1 && is_ours(h, o.x->ne[1], type), which);
        if (i == 0) { // of the host's weights, which can be read
            std::vector<double> out(static_cast<size_t>(o.w->ne[1]));
            std::vector<float> row(static_cast<size_t>(ne[0])), part(row.size() * out.size());
            const auto at = [](const ggml_tensor * t, int64_t i1, int64_t i2, int64_t i3) {
                return static_cast<const char *>(t->data) + size_t(i1) * t->nb[1] + size_t(i2) * t->nb[2] + size_t(i3) * t->nb[3];
            };
            for (int64_t i3 = 0; i3 < o.x->ne[3]; i3++) {
                for (int64_t i2 = 0; i2 < o.x->ne[2]; i2++) {
                    std::vector<double> norms;
                    for (int64_t j = 0; j < o.w->ne[1]; j++) {
                        const char * from = at(o.w, j, i2 / (o.x->ne[2] / o.w->ne[2]), i3 / (o.x->ne[3] / o.w->ne[3]));
                        ggml_internal_get_type_traits(type).to_float(from, part.data() + j * ne[0], ne[0]);
                        norms.push_back(squared_norm(part.data() + j * ne[0], ne[0]));
                    }
                    for (int64_t i1 = 0; i1 < o.x->ne[1]; i1++) {
                        memcpy(row.data(), at(o.x, i1, i2, i3), size_t(ne[0]) * sizeof(float));
                        product_f64(part.data(), row.data(), size_t(ne[0]), out.data(), ne[0], o.w->ne[1], 1);
                        const double norm = squared_norm(row.data(), ne[0]);
                        for (size_t j = 0; j < out.size(); j++) {
                            want.add(out[j], std::sqrt(norms[j] * norm / double(ne[0])));
                        }
                    }
                }
            }
            want.independent = double(ggml_nrows(o.x)) * double(std::min(o.w->ne[1], ne[0]));
            want.e8 = bound::e8_of(values);
        }
    }
    judge(got[1], want, is_ours(h, m_rows, type), want.nmse(got[0]), m.quantisation, which);
}

void given_batches_views_and_strides_when_multiplied_then_right() {
    rng r = {4};
    for (ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_Q5_0, GGML_TYPE_Q4_K}) {
        const int64_t k = ggml_blck_size(type) == 32 ? 288 : 512;
        for (home h : {home::in_place, home::packed, home::stored}) {
            for (int64_t m : {1, 5, 16, 40}) {
                const auto check = [&](const char * what, const std::vector<int64_t> & ne, const auto & layout, const std::vector<int64_t> & x_ne) {
                    check_layout(type, h, m, what, ne, r, layout, x_ne);
                };
                const auto as_they_are = [](ggml_context *, ggml_tensor * w, ggml_tensor * x) { return operands{w, x}; };
                check("batches of both", {k, 48, 2, 3}, as_they_are, {k, m, 2, 3});
                check("one matrix for all batches", {k, 48, 1, 1}, as_they_are, {k, m, 4, 2});
                check("each matrix for three batches", {k, 32, 2, 1}, as_they_are, {k, m, 6, 1});
                check("each matrix for three batches, wide", {k, 256, 2, 1}, as_they_are, {k, m, 6, 1});
                for (int64_t first : {16, 3}) {
                    check(first == 16 ? "whole panels of a larger matrix" : "some rows of a larger matrix", {k, 96, 1, 1},
                          [=](ggml_context * c, ggml_tensor * w, ggml_tensor * x) {
                              return operands{ggml_view_2d(c, w, k, first == 16 ? 64 : 50, w->nb[1], size_t(first) * w->nb[1]), x};
                          },
                          {k, m, 1, 1});
                }
                check("rows of every matrix of a batch", {k, 64, 3, 1},
                      [=](ggml_context * c, ggml_tensor * w, ggml_tensor * x) {
                          return operands{ggml_view_3d(c, w, k, 32, 3, w->nb[1], w->nb[2], 32 * w->nb[1]), x};
                      },
                      {k, m, 3, 1});
                check("rows cut into matrices", {k, 96, 1, 1},
                      [=](ggml_context * c, ggml_tensor * w, ggml_tensor * x) { return operands{ggml_reshape_3d(c, w, k, 32, 3), x}; }, {k, m, 3, 1});
                check("every other row of activations", {k, 48, 1, 1},
                      [=](ggml_context * c, ggml_tensor * w, ggml_tensor * x) {
                          return operands{w, ggml_view_2d(c, x, k, m, 2 * x->nb[1], x->nb[1])};
                      },
                      {k, 2 * m + 1, 1, 1});
                check("batches and rows of activations exchanged", {k, 48, 3, 1},
                      [=](ggml_context * c, ggml_tensor * w, ggml_tensor * x) { return operands{w, ggml_permute(c, x, 0, 2, 1, 3)}; }, {k, 3, m, 1});
                check("a part of every row of activations", {k, 48, 1, 1},
                      [=](ggml_context * c, ggml_tensor * w, ggml_tensor * x) { return operands{w, ggml_view_2d(c, x, k, m, x->nb[1], 32)}; },
                      {k + 64, m, 1, 1});
            }
        }
    }
}

} // namespace

int main() {
    open();
    RUN(given_any_type_and_shape_when_multiplied_then_as_exact_as_the_rule_demands);
    RUN(given_rows_that_the_host_interleaved_when_multiplied_then_as_exact_as_the_rule_demands);
    RUN(given_floats_under_the_name_of_a_packed_tensor_when_multiplied_then_right);
    RUN(given_neighbours_with_the_same_activations_when_the_host_fuses_them_then_all_are_right);
    RUN(given_batches_views_and_strides_when_multiplied_then_right);
    return harness_report("ik_parity_host");
}

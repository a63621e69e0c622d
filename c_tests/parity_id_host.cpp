// MUL_MAT_ID on a grid of types, sizes, routings and thread counts: experts in our buffer against the bound that the
// header promises for every row; the host's own result with experts in an ordinary buffer shows that the test is right.
// Layouts are in parity_id_layout_host.cpp.
#include "experts.hpp"

namespace {

using namespace experts;

// Experts draw their rows from one matrix and src1 its rows from another: the product of the two holds every exact
// result of a type and K.
struct rows {
    static constexpr int64_t W = 1000, X = 300;
    weights w;
    std::vector<float> x;
    std::vector<double> exact, eight; // [x row * W + w row]
    std::vector<double> w2, x2;       // squared norms
    bool outliers;

    rows(ggml_type type, int64_t k, bool outliers, rng & r) : w(type, k, W, r), x(size_t(X * k)), exact(size_t(X * W)), eight(exact.size()), outliers(outliers) {
        fill_activations(x.data(), k, X, outliers, r);
        product_f64(w.floats.data(), x.data(), size_t(k), exact.data(), k, W, X);
        product_f64(w.floats.data(), bound::eight_bits(x.data(), x.size()).data(), size_t(k), eight.data(), k, W, X);
        for (int64_t i = 0; i < W; i++) {
            w2.push_back(squared_norm(w.floats.data() + i * k, k));
        }
        for (int64_t i = 0; i < X; i++) {
            x2.push_back(squared_norm(x.data() + i * k, k));
        }
    }
};

struct shape {
    int64_t n, experts, used, tokens, x_rows; // x_rows: of src1 per token, 1 or `used`
};

// The same experts in both buffers.
struct packed_and_plain {
    const rows & from;
    std::vector<int32_t> row; // [expert * n + i] of `from`
    tensors in_amx{1}, in_cpu{1};
    ggml_tensor * ours, * plain;
    bound::row pool;

    packed_and_plain(const rows & from, int64_t n, int64_t experts, rng & r) : from(from) {
        const size_t size = ggml_row_size(from.w.type, from.w.k);
        std::vector<uint8_t> bytes;
        bytes.reserve(size * size_t(n * experts));
        for (int64_t i = 0; i < n * experts; i++) {
            row.push_back(int32_t(rng_below(&r, rows::W)));
            const uint8_t * at = from.w.bytes.data() + size * size_t(row.back());
            bytes.insert(bytes.end(), at, at + size);
        }
        ours = ggml_new_tensor_3d(in_amx.get(), from.w.type, from.w.k, n, experts);
        plain = ggml_new_tensor_3d(in_cpu.get(), from.w.type, from.w.k, n, experts);
        in_amx.allocate(host.amx);
        in_cpu.allocate(host.plain);
        ggml_backend_tensor_set(ours, bytes.data(), 0, bytes.size());
        ggml_backend_tensor_set(plain, bytes.data(), 0, bytes.size());
    }
};

void check_shape(packed_and_plain & p, const shape & s, double & worst, rng & r) {
    const int64_t k = p.from.w.k;
    tensors t(8);
    ggml_tensor * x = ggml_new_tensor_3d(t.get(), GGML_TYPE_F32, k, s.x_rows, s.tokens);
    ggml_tensor * ids = ggml_new_tensor_2d(t.get(), GGML_TYPE_I32, s.used, s.tokens);
    ggml_tensor * y_ours = ggml_mul_mat_id(t.get(), p.ours, x, ids);
    ggml_tensor * y_host = ggml_mul_mat_id(t.get(), p.plain, x, ids);
    t.allocate(host.plain);
    reference want(s.n);
    for (int64_t token = 0; token < s.tokens; token++) {
        std::vector<int32_t> x_row;
        for (int64_t i = 0; i < s.x_rows; i++) {
            x_row.push_back(int32_t(rng_below(&r, rows::X)));
            std::copy_n(p.from.x.begin() + x_row.back() * k, k, static_cast<float *>(x->data) + (token * s.x_rows + i) * k);
        }
        const std::vector<int32_t> chosen = choose(s.used, s.experts, r);
        std::copy(chosen.begin(), chosen.end(), static_cast<int32_t *>(ids->data) + token * s.used);
        for (int64_t slot = 0; slot < s.used; slot++) {
            const int32_t from = x_row[size_t(slot % s.x_rows)];
            for (int64_t i = 0; i < s.n; i++) {
                const int32_t row = p.row[size_t(chosen[size_t(slot)] * s.n + i)];
                want.add(p.from.exact[size_t(from * rows::W + row)], p.from.eight[size_t(from * rows::W + row)],
                         p.from.w2[size_t(row)] * p.from.x2[size_t(from)] / double(k));
            }
        }
    }
    const std::string what = text("%s%s K %lld N %lld, %lld of %lld experts, %lld tokens with %lld rows", ggml_type_name(p.from.w.type),
                                  p.from.outliers ? " outliers" : "", (long long) k, (long long) s.n, (long long) s.used, (long long) s.experts,
                                  (long long) s.tokens, (long long) s.x_rows);
    if (!CHECK(ggml_backend_dev_supports_op(host.cpu, y_ours), "%s: not supported", what.c_str())) {
        return;
    }
    const double error = check_op(y_ours, y_host, want, p.from.w.own_error(), p.pool, what);
    if (s.tokens >= 31) {
        worst = std::max(worst, error);
    }
}

// Every number of tokens, of experts used, and of rows of src1, most work first.
void check_experts(const rows & from, int64_t n, int64_t experts, const std::vector<int64_t> & tokens, double & worst, rng & r) {
    packed_and_plain p(from, n, experts, r);
    for (int64_t used : {8, 2, 1}) {
        for (int64_t count : tokens) {
            for (int64_t x_rows : used > 1 ? std::vector<int64_t>{used, 1} : std::vector<int64_t>{1}) {
                if (used <= experts) {
                    check_shape(p, {n, experts, used, count, x_rows}, worst, r);
                }
            }
        }
    }
}

bool slow() {
    const char * isa = getenv("GGML_AMX_ISA");
    return isa && strcmp(isa, "portable") == 0;
}

void print_worst(ggml_type type, double worst) {
    printf("    %s: worst NMSE from 31 tokens on is %.2e, own error %.2e\n", ggml_type_name(type), worst, bound::own_error(ggml_type_name(type)));
}

void check_full_grid(ggml_type type, bool outliers) {
    rng r = {90};
    double worst = 0;
    for (int64_t k : {256, 512}) {
        const rows from(type, k, outliers, r);
        for (int64_t experts : {1, 2, 8, 128, 257}) {
            for (int64_t n : {32, 33, 48, 768}) {
                // The largest take seconds each: 512 tokens only with few rows, 768 rows only with few experts.
                if (n == 768 && (experts > 8 || k > 256 || slow())) {
                    continue;
                }
                if (SANITIZED && experts != 2 && n != 33) {
                    continue;
                }
                const bool many = experts == 8 ? n != 33 : n == 33;
                check_experts(from, n, experts, many ? std::vector<int64_t>{512, 31, 2, 1} : std::vector<int64_t>{31, 2, 1}, worst, r);
            }
        }
    }
    if (slow()) {
        harness_skip("experts of 768 rows: minutes with the portable kernels");
    }
    print_worst(type, worst);
}

void given_normal_activations_then_every_row_of_the_grid_keeps_its_bound() {
    check_full_grid(GGML_TYPE_Q4_0, false);
    check_full_grid(GGML_TYPE_Q6_K, false);
}

void given_outlier_channels_then_every_row_of_the_grid_keeps_its_bound() {
    check_full_grid(GGML_TYPE_Q4_K, true);
}

void given_any_type_then_every_row_of_a_smaller_grid_keeps_its_bound() {
    rng r = {91};
    for (ggml_type type : TYPES) {
        for (bool outliers : {false, true}) {
            double worst = 0;
                    for (int64_t k : ggml_blck_size(type) == 32 ? std::vector<int64_t>{96, 256, 576} : std::vector<int64_t>{256, 512}) {
                const rows from(type, k, outliers, r);
                check_experts(from, 33, 8, {300, 31, 1}, worst, r);
                check_experts(from, 48, 2, {64, 17, 16, 2}, worst, r);
                check_experts(from, 32, 128, {31, 1}, worst, r);
            }
            print_worst(type, worst);
        }
    }
}

// As in a model: more rows than a panel has, and more than one thread takes at a time.
void given_matrices_of_a_usual_size_then_few_and_many_tokens_are_right() {
    rng r = {92};
    for (ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_Q5_K}) {
        const rows from(type, 2048, true, r);
        double worst = 0;
        packed_and_plain p(from, 770, 16, r);
        for (int64_t tokens : {slow() ? 20 : 120, 4, 1}) {
            check_shape(p, {770, 16, 4, tokens, 1}, worst, r);
            check_shape(p, {770, 16, 4, tokens, 4}, worst, r);
        }
    }
}

} // namespace

int main() {
    open();
    RUN(given_any_type_then_every_row_of_a_smaller_grid_keeps_its_bound);
    RUN(given_matrices_of_a_usual_size_then_few_and_many_tokens_are_right);
    RUN(given_normal_activations_then_every_row_of_the_grid_keeps_its_bound);
    RUN(given_outlier_channels_then_every_row_of_the_grid_keeps_its_bound);
    return harness_report("parity_id_host");
}

// MUL_MAT on the whole grid of types, sizes and thread counts: the weight in our buffer against the host's own
// result with the weight in an ordinary buffer, and both against double precision. Layouts (batches, views,
// permutations) are in parity_layout_host.cpp.
#include "parity.hpp"

namespace {

using namespace parity;

const int64_t MS[] = {200, 64, 33, 32, 31, 17, 16, 15, 3, 2, 1}; // the largest first: it gives the pooled host error
const int64_t NS[] = {1, 5, 16, 31, 32, 48, 576, 1000};
constexpr int64_t M_MAX = 200, N_MAX = 1000;

std::vector<int64_t> ks_of(ggml_type type) {
    return ggml_blck_size(type) == 32 ? std::vector<int64_t>{32, 64, 96, 256, 512, 576} : std::vector<int64_t>{256, 512, 2048};
}

// One weight matrix and one set of activations serve the whole grid of a type: a smaller K takes the first
// columns, a smaller N or M the first rows. So does the exact product, kept for every K.
struct grid {
    weights w;
    std::vector<int64_t> ks;
    std::vector<float> x;
    std::vector<std::vector<double>> exact;  // [k][m * N_MAX + n]
    std::vector<std::vector<double>> w2, x2; // [k][row]: squared norms

    grid(ggml_type type, bool outliers, rng & r) : w(type, ks_of(type).back(), N_MAX, r), ks(ks_of(type)), x(size_t(M_MAX * w.k)) {
        fill_activations(x.data(), w.k, M_MAX, outliers, r);
        std::vector<double> sums(size_t(M_MAX * N_MAX)), part(sums.size());
        std::vector<double> wn(N_MAX), xn(M_MAX);
        int64_t done = 0;
        for (int64_t k : ks) {
            // columns done .. k of both, copied together so that product_f64 can walk them
            std::vector<float> wc = columns(w.floats, N_MAX, done, k), xc = columns(x, M_MAX, done, k);
            product_f64(wc.data(), xc.data(), size_t(k - done), part.data(), k - done, N_MAX, M_MAX);
            std::transform(sums.begin(), sums.end(), part.begin(), sums.begin(), std::plus<double>());
            add_norms(wn, wc, k - done);
            add_norms(xn, xc, k - done);
            exact.push_back(sums);
            w2.push_back(wn);
            x2.push_back(xn);
            done = k;
        }
    }

    std::vector<float> columns(const std::vector<float> & from, int64_t rows, int64_t begin, int64_t end) const {
        std::vector<float> to;
        for (int64_t i = 0; i < rows; i++) {
            to.insert(to.end(), from.begin() + i * w.k + begin, from.begin() + i * w.k + end);
        }
        return to;
    }

    static void add_norms(std::vector<double> & norms, const std::vector<float> & rows, int64_t k) {
        for (size_t i = 0; i < norms.size(); i++) {
            for (int64_t j = 0; j < k; j++) {
                norms[i] += double(rows[i * size_t(k) + size_t(j)]) * double(rows[i * size_t(k) + size_t(j)]);
            }
        }
    }
};

double sum_of_first(const std::vector<double> & v, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += v[size_t(i)];
    }
    return sum;
}

struct worst {
    double ours = 0, host = 0;
};

// All M and thread counts for one weight of K x N.
void check_weight(const grid & g, size_t ki, int64_t n, bool outliers, worst & worst) {
    const int64_t k = g.ks[ki];
    tensors in_amx(1), in_cpu(1);
    ggml_tensor * w_amx = ggml_new_tensor_2d(in_amx.get(), g.w.type, k, n);
    ggml_tensor * w_cpu = ggml_new_tensor_2d(in_cpu.get(), g.w.type, k, n);
    in_amx.allocate(host.amx);
    in_cpu.allocate(host.plain);
    const size_t row = ggml_row_size(g.w.type, k), row_max = ggml_row_size(g.w.type, g.w.k);
    std::vector<uint8_t> bytes(row * size_t(n));
    for (int64_t i = 0; i < n; i++) {
        std::copy_n(g.w.bytes.begin() + std::ptrdiff_t(size_t(i) * row_max), row, bytes.begin() + std::ptrdiff_t(size_t(i) * row));
    }
    ggml_backend_tensor_set(w_amx, bytes.data(), 0, bytes.size());
    ggml_backend_tensor_set(w_cpu, bytes.data(), 0, bytes.size());
    rule rule{0, 0, g.w.quantisation_nmse()};
    for (int64_t m : MS) {
        tensors t(8);
        ggml_tensor * x = ggml_new_tensor_2d(t.get(), GGML_TYPE_F32, k, m);
        ggml_tensor * y_amx = ggml_mul_mat(t.get(), w_amx, x);
        ggml_tensor * y_cpu = ggml_mul_mat(t.get(), w_cpu, x);
        t.allocate(host.plain);
        std::vector<double> exact;
        for (int64_t i = 0; i < m; i++) {
            std::copy_n(g.x.begin() + i * g.w.k, k, static_cast<float *>(x->data) + i * k);
            exact.insert(exact.end(), g.exact[ki].begin() + i * N_MAX, g.exact[ki].begin() + i * N_MAX + n);
        }
        const double typical = sum_of_first(g.w2[ki], n) * sum_of_first(g.x2[ki], m) / double(k);
        const std::string what = text("%s%s K %lld N %lld M %lld", ggml_type_name(g.w.type), outliers ? " outliers" : "", (long long) k, (long long) n, (long long) m);
        tensors host_graph(1), our_graph(1);
        poison(y_cpu);
        compute(graph_of(host_graph.get(), y_cpu), 2);
        rule.host = nmse(static_cast<float *>(y_cpu->data), exact.data(), exact.size(), typical);
        rule.host_pool = m == M_MAX ? rule.host : rule.host_pool;
        CHECK(ggml_backend_dev_supports_op(host.cpu, y_amx), "%s: not supported", what.c_str());
        ggml_cgraph * graph = graph_of(our_graph.get(), y_amx);
        for (int threads : THREADS) {
            poison(y_amx);
            compute(graph, threads);
            const double ours = nmse(static_cast<float *>(y_amx->data), exact.data(), exact.size(), typical);
            judge(ours, rule, slack(k, n, m), text("%s threads %d", what.c_str(), threads));
            if (m == M_MAX) {
                worst.ours = std::max(worst.ours, ours);
                worst.host = std::max(worst.host, rule.host);
            }
        }
    }
}

void check_grid(bool outliers) {
    const char * isa = getenv("GGML_AMX_ISA");
    const bool slow = isa && strcmp(isa, "portable") == 0;
    if (slow) {
        harness_skip("N of 576 and more with K above 256: minutes with the portable kernels");
    }
    rng r = {50};
    for (ggml_type type : TYPES) {
        const grid g(type, outliers, r);
        worst worst;
        for (size_t ki = 0; ki < g.ks.size(); ki++) {
            for (int64_t n : NS) {
                if (slow && n >= 576 && g.ks[ki] > 256) {
                    continue;
                }
                check_weight(g, ki, n, outliers, worst);
            }
        }
        printf("    %s%s: worst NMSE at M = %lld is %.2e, the host's %.2e, a tenth of the quantisation error %.2e\n", ggml_type_name(type),
               outliers ? " with outliers" : "", (long long) M_MAX, worst.ours, worst.host, g.w.quantisation_nmse() / 10);
    }
}

void given_normal_activations_then_the_whole_grid_is_as_exact_as_the_rule_demands() {
    check_grid(false);
}

void given_outlier_channels_then_the_whole_grid_is_as_exact_as_the_rule_demands() {
    check_grid(true);
}

// ggml skips ops without elements; the plan still asks for a work size.
void given_no_rows_of_activations_then_nothing_happens() {
    for (ggml_type type : TYPES) {
        tensors in_amx(1), t(4);
        ggml_tensor * w = ggml_new_tensor_2d(in_amx.get(), type, 256, 40);
        in_amx.allocate(host.amx);
        ggml_backend_buffer_clear(in_amx.buffer.get(), 0);
        ggml_tensor * one = ggml_new_tensor_1d(t.get(), GGML_TYPE_F32, 1); // an empty context cannot be allocated
        ggml_tensor * y = ggml_mul_mat(t.get(), w, ggml_new_tensor_2d(t.get(), GGML_TYPE_F32, 256, 0));
        t.allocate(host.plain);
        poison(one);
        tensors more(1);
        compute(graph_of(more.get(), y), 2);
        uint32_t bits;
        memcpy(&bits, one->data, sizeof bits);
        CHECK(bits == 0xffffffff, "%s: something was written", ggml_type_name(type));
    }
}

} // namespace

int main() {
    open();
    RUN(given_no_rows_of_activations_then_nothing_happens);
    RUN(given_normal_activations_then_the_whole_grid_is_as_exact_as_the_rule_demands);
    RUN(given_outlier_channels_then_the_whole_grid_is_as_exact_as_the_rule_demands);
    return harness_report("parity_host");
}

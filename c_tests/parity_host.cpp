// MUL_MAT on the whole grid of types, sizes and thread counts: every row against the bound that the header promises.
// Layouts (batches, views, permutations), also beside the host's own kernels, are in parity_layout_host.cpp.
#include "parity.hpp"

namespace {

using namespace parity;

// Rows of activations (M), columns (N) and channels (K). Long rows come with few rows and columns, because products in
// double precision take time.
struct range {
    int64_t k;
    std::vector<int64_t> ms, ns;
};

std::vector<range> ranges_of(ggml_type type, bool outliers) {
    const std::vector<int64_t> all = {1, 2, 3, 15, 16, 17, 31, 32, 33, 64, 200}, some = {1, 2, 15, 16, 17, 33};
    const std::vector<int64_t> wide = {1, 5, 16, 31, 32, 48, 576, 1000}, narrow = {16, 32, 576};
    std::vector<range> ranges;
    if (ggml_blck_size(type) == 32) {
        ranges = {{32, some, wide}, {64, some, narrow}, {96, some, narrow}, {256, some, narrow}, {512, some, narrow}, {576, all, wide}};
    } else {
        ranges = {{256, some, wide}, {512, all, wide}, {2048, some, narrow}};
    }
    ranges.push_back({4096, {1, 16, 64}, {16, 256}});
    if (outliers) {
        ranges.push_back({32768, {1, 17}, {16}});
    }
    return ranges;
}

// Weights and activations of one type and K. Columns of fewer than bound::OUTPUTS are drawn from them several times.
struct grid {
    range at;
    int64_t rows; // of the weights
    weights w;
    std::vector<float> x;
    std::vector<double> exact, eight; // [m * rows + n]

    grid(ggml_type type, const range & at, bool outliers, rng & r)
        : at(at), rows(std::max(largest(at.ns), draws(smallest(at.ns)) * smallest(at.ns))), w(type, at.k, rows, r), x(size_t(largest(at.ms) * at.k)),
          exact(size_t(largest(at.ms) * rows)), eight(exact.size()) {
        fill_activations(x.data(), at.k, largest(at.ms), outliers, r);
        const std::vector<float> x8 = bound::eight_bits(x.data(), x.size());
        product_f64(w.floats.data(), x.data(), size_t(at.k), exact.data(), at.k, rows, largest(at.ms));
        product_f64(w.floats.data(), x8.data(), size_t(at.k), eight.data(), at.k, rows, largest(at.ms));
    }
    static int64_t largest(const std::vector<int64_t> & of) { return *std::max_element(of.begin(), of.end()); }
    static int64_t smallest(const std::vector<int64_t> & of) { return *std::min_element(of.begin(), of.end()); }
    static int64_t draws(int64_t n) { return (bound::OUTPUTS + n - 1) / n; }
};

struct worst {
    double ours = 0, e8 = 0;
};

// The first m rows of activations times `n` rows of the weights, from `first` on; sums of our results by row.
void check_draw(const grid & g, int64_t first, int64_t n, int64_t m, bool all_threads, std::vector<bound::row> & rows, const std::string & what) {
    tensors in_amx(1), t(4), graphs(1);
    ggml_tensor * w = ggml_new_tensor_2d(in_amx.get(), g.w.type, g.at.k, n);
    in_amx.allocate(host.amx);
    ggml_backend_tensor_set(w, g.w.bytes.data() + ggml_row_size(g.w.type, g.at.k) * size_t(first), 0, ggml_nbytes(w));
    ggml_tensor * x = ggml_new_tensor_2d(t.get(), GGML_TYPE_F32, g.at.k, m), * y = ggml_mul_mat(t.get(), w, x);
    t.allocate(host.plain);
    memcpy(x->data, g.x.data(), ggml_nbytes(x));
    CHECK(ggml_backend_dev_supports_op(host.cpu, y), "%s: not supported", what.c_str());
    ggml_cgraph * graph = graph_of(graphs.get(), y);
    static size_t turn = 0;
    std::vector<float> got;
    for (int threads : all_threads ? std::vector<int>(std::begin(THREADS), std::end(THREADS)) : std::vector<int>{THREADS[turn++ % std::size(THREADS)]}) {
        poison(y);
        compute(graph, threads);
        const std::vector<float> result = floats_of(y);
        if (got.empty()) {
            got = result;
        }
        CHECK(same_bits(got, result), "%s: other bits with %d threads", what.c_str(), threads);
    }
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++) {
            const size_t at = size_t(i * g.rows + first + j);
            rows[size_t(i)].add(double(got[size_t(i * n + j)]), g.exact[at], g.eight[at]);
        }
    }
}

// Every number of rows for one number of columns: each row against the bound.
void check_columns(const grid & g, int64_t n, bool outliers, worst & worst) {
    // Few columns need many draws.
    const std::vector<int64_t> ms = n < 16 ? std::vector<int64_t>{1, 16, 33} : g.at.ms;
    for (int64_t m : ms) {
        const std::string what = text("%s%s K %lld N %lld M %lld", ggml_type_name(g.w.type), outliers ? " outliers" : "", (long long) g.at.k, (long long) n, (long long) m);
        std::vector<bound::row> rows(static_cast<size_t>(m));
        for (int64_t draw = 0; draw < grid::draws(n); draw++) {
            check_draw(g, draw * n, n, m, draw == 0, rows, what);
        }
        for (size_t i = 0; i < rows.size(); i++) {
            bound::check(rows[i], g.w.own_error(), what + text(", row %zu", i));
            worst.ours = std::max(worst.ours, rows[i].nmse());
            worst.e8 = std::max(worst.e8, rows[i].e8());
        }
    }
}

void check_grid(bool outliers) {
    const char * isa = getenv("GGML_AMX_ISA");
    const bool slow = isa && strcmp(isa, "portable") == 0;
    if (slow) {
        harness_skip("N of 576 and more with K above 256: minutes with the portable kernels");
    }
    for (ggml_type type : TYPES) {
        worst worst;
        for (const range & at : ranges_of(type, outliers)) {
            // No two shapes have the same numbers.
            rng r = {uint64_t(type) << 32 | uint64_t(at.k) << 1 | uint64_t(outliers)};
            const grid g(type, at, outliers, r);
            for (int64_t n : at.ns) {
                if (!slow || n < 576 || at.k <= 256) {
                    check_columns(g, n, outliers, worst);
                }
            }
        }
        printf("    %s%s: worst NMSE of a row %.2e, of 8 bits per 32 activations %.2e, own error %.2e\n", ggml_type_name(type), outliers ? " with outliers" : "",
               worst.ours, worst.e8, bound::own_error(ggml_type_name(type)));
    }
}

void given_normal_activations_then_every_row_of_the_grid_keeps_its_bound() {
    check_grid(false);
}

void given_outlier_channels_then_every_row_of_the_grid_keeps_its_bound() {
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
    RUN(given_normal_activations_then_every_row_of_the_grid_keeps_its_bound);
    RUN(given_outlier_channels_then_every_row_of_the_grid_keeps_its_bound);
    return harness_report("parity_host");
}

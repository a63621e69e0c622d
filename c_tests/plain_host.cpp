// BF16 and F16 weights: stored plain in our buffer, many rows of activations on the tile unit in one or two numbers
// of BF16 each, few left to the host with its own bits.
#include "experts.hpp"

namespace {

using namespace parity;


const ggml_type FLOATS[] = {GGML_TYPE_BF16, GGML_TYPE_F16};

// From this many rows on (for experts: on average) we multiply.
int64_t our_rows(ggml_type type) {
    return type == GGML_TYPE_F16 ? 32 : 16;
}

// Rounding activations to BF16's 8 bits costs 2.8e-6 on average, to the 11 of F16, as hosts do, 64 times less.
double limit(ggml_type type) {
    return 1.25 * 2.8e-6 / (type == GGML_TYPE_F16 ? 64 : 1);
}

bool ours_has_amx() {
    const char * isa = getenv("GGML_AMX_ISA");
    return !isa || strcmp(isa, "amx") == 0;
}

// The same op on the same weights in both buffers, the same activations; `make` builds it on the weight.
template <typename F> struct pair_of {
    tensors in[2] = {tensors(1), tensors(1)}, ops[2] = {tensors(6), tensors(6)};
    ggml_tensor * y[2];

    pair_of(const weights & w, const int64_t (&ne)[3], F make) {
        for (int side = 0; side < 2; side++) {
            ggml_tensor * t = ggml_new_tensor_3d(in[side].get(), w.type, ne[0], ne[1], ne[2]);
            in[side].allocate(side ? host.plain : host.amx);
            ggml_backend_tensor_set(t, w.bytes.data(), 0, w.bytes.size());
            y[side] = make(ops[side].get(), t);
            ops[side].allocate(host.plain);
        }
    }

    std::vector<float> run(int side, int threads) {
        tensors graph(1);
        poison(y[side]);
        compute(graph_of(graph.get(), y[side]), threads);
        return floats_of(y[side]);
    }
};

void given_any_number_of_rows_then_few_have_the_hosts_bits_and_many_are_as_exact() {
    rng r = {201};
    for (ggml_type type : FLOATS) {
        for (int64_t k : {32, 96, 576, 4160}) {
            const weights w(type, k, 77, r);
            for (int64_t m : {1, 15, 16, 31, 32, 33, 100}) {
                std::vector<float> x(size_t(k * m));
                fill_activations(x.data(), k, m, k == 576, r);
                pair_of both(w, {k, 77, 1}, [&](ggml_context * c, ggml_tensor * t) { return ggml_mul_mat(c, t, ggml_new_tensor_2d(c, GGML_TYPE_F32, k, m)); });
                for (ggml_tensor * y : both.y) {
                    memcpy(y->src[1]->data, x.data(), x.size() * sizeof(float));
                }
                const std::string what = text("%s K %lld M %lld", ggml_type_name(type), (long long) k, (long long) m);
                CHECK(ggml_backend_dev_supports_op(host.cpu, both.y[0]), "%s: not supported", what.c_str());
                const std::vector<float> first = both.run(0, 1);
                CHECK(experts::same_bits(both.run(0, 3), first), "%s: other bits with 3 threads", what.c_str());
                if (m < our_rows(type) || !ours_has_amx()) {
                    CHECK(experts::same_bits(first, both.run(1, 1)), "%s: other bits than the host's", what.c_str());
                    continue;
                }
                std::vector<double> exact(first.size());
                product_f64(w.floats.data(), x.data(), size_t(k), exact.data(), k, 77, m);
                const double e = nmse(first.data(), exact.data(), exact.size(), 0), host = nmse(both.run(1, 1).data(), exact.data(), exact.size(), 0);
                CHECK(e <= limit(type), "%s: NMSE %.3g", what.c_str(), e);
                CHECK(type != GGML_TYPE_F16 || e <= host, "%s: NMSE %.3g, the host's %.3g", what.c_str(), e, host);
            }
        }
    }
}

// As llama.cpp's loader asks: a weight in a buffer of size 0.
void given_the_loader_probes_then_16_bits_are_taken_where_the_tile_unit_is() {
    for (ggml_type type : {GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_F32}) {
        for (int64_t k : {32, 40, 576}) {
            for (bool experts : {false, true}) {
                ggml_context_ptr c(host_context(6));
                ggml_tensor * w = ggml_new_tensor_3d(c.get(), type, k, 50, experts ? 4 : 1);
                ggml_tensor * x = ggml_new_tensor_3d(c.get(), GGML_TYPE_F32, k, experts ? 2 : 512, experts ? 512 : 1);
                ggml_tensor * y = experts ? ggml_mul_mat_id(c.get(), w, x, ggml_new_tensor_2d(c.get(), GGML_TYPE_I32, 2, 512)) : ggml_mul_mat(c.get(), w, x);
                ggml_backend_buffer_ptr none(ggml_backend_buft_alloc_buffer(host.amx, 0));
                w->buffer = none.get();
                const bool want = type != GGML_TYPE_F32 && k % 32 == 0 && ours_has_amx();
                // while memory is measured, weights have such buffers too, and graphs of one token
                ggml_tensor * one = ggml_mul_mat(c.get(), w, ggml_new_tensor_3d(c.get(), GGML_TYPE_F32, k, 1, experts ? 4 : 1));
                CHECK(ggml_backend_dev_supports_op(host.cpu, one) == want, "%s K %lld: one row", ggml_type_name(type), (long long) k);
                CHECK(ggml_backend_dev_supports_op(host.cpu, y) == want, "%s K %lld%s: %s", ggml_type_name(type), (long long) k,
                      experts ? " experts" : "", want ? "refused" : "accepted");
            }
        }
    }
}

void given_views_and_batches_then_the_result_is_the_hosts() {
    rng r = {202};
    for (ggml_type type : FLOATS) {
        const weights w(type, 128, 3 * 50, r);
        const auto views = {
            +[](ggml_context * c, ggml_tensor * t) { return ggml_view_3d(c, t, 128, 21, 3, t->nb[1], t->nb[2], 5 * t->nb[1]); },
            +[](ggml_context * c, ggml_tensor * t) { return ggml_view_3d(c, t, 64, 50, 3, t->nb[1], t->nb[2], 64 * t->nb[0]); },
            // Rows whose length is no multiple of 32.
            +[](ggml_context * c, ggml_tensor * t) { return ggml_view_3d(c, t, 40, 50, 3, t->nb[1], t->nb[2], 0); },
            +[](ggml_context * c, ggml_tensor * t) { return ggml_view_2d(c, t, 128, 25, 2 * t->nb[1], t->nb[2]); },
        };
        int index = 0;
        for (auto view : views) {
            pair_of both(w, {128, 50, 3}, [&](ggml_context * c, ggml_tensor * t) {
                ggml_tensor * v = view(c, t);
                return ggml_mul_mat(c, v, ggml_new_tensor_3d(c, GGML_TYPE_F32, v->ne[0], 40, 2 * v->ne[2]));
            });
            ggml_tensor * x[2] = {both.y[0]->src[1], both.y[1]->src[1]};
            fill_activations(static_cast<float *>(x[0]->data), x[0]->ne[0], ggml_nrows(x[0]), false, r);
            memcpy(x[1]->data, x[0]->data, ggml_nbytes(x[0]));
            const std::vector<float> ours = both.run(0, 2), theirs = both.run(1, 2);
            const std::vector<double> want(theirs.begin(), theirs.end());
            const double e = nmse(ours.data(), want.data(), want.size(), 0);
            CHECK(e <= 2 * limit(type), "%s view %d: NMSE against the host's is %.3g", ggml_type_name(type), index, e);
            index++;
        }
    }
}

void given_experts_then_the_result_is_the_hosts() {
    rng r = {203};
    for (ggml_type type : FLOATS) {
        const weights w(type, 96, 4 * 40, r);
        for (int64_t tokens : {3, 70}) {
            for (int64_t rows : {1, 2}) {
                pair_of both(w, {96, 40, 4}, [&](ggml_context * c, ggml_tensor * t) {
                    ggml_tensor * ids = ggml_new_tensor_2d(c, GGML_TYPE_I32, 2, tokens);
                    return ggml_mul_mat_id(c, t, ggml_new_tensor_3d(c, GGML_TYPE_F32, 96, rows, tokens), ids);
                });
                for (int i = 0; i < 2 * tokens; i++) {
                    const int32_t id = int32_t(rng_below(&r, 4));
                    static_cast<int32_t *>(both.y[0]->src[2]->data)[i] = id;
                    static_cast<int32_t *>(both.y[1]->src[2]->data)[i] = id;
                }
                fill_activations(static_cast<float *>(both.y[0]->src[1]->data), 96, rows * tokens, false, r);
                memcpy(both.y[1]->src[1]->data, both.y[0]->src[1]->data, ggml_nbytes(both.y[0]->src[1]));
                const std::vector<float> ours = both.run(0, 3), theirs = both.run(1, 3);
                const std::vector<double> want(theirs.begin(), theirs.end());
                const double e = nmse(ours.data(), want.data(), want.size(), 0);
                const std::string what = text("%s, %lld tokens, %lld rows each", ggml_type_name(type), (long long) tokens, (long long) rows);
                CHECK(e <= 2 * limit(type), "%s: NMSE against the host's is %.3g", what.c_str(), e);
                CHECK(e == 0 || 2 * tokens >= 4 * our_rows(type), "%s: other numbers than the host's", what.c_str());
            }
        }
    }
}

} // namespace

int main() {
    open();
    RUN(given_any_number_of_rows_then_few_have_the_hosts_bits_and_many_are_as_exact);
    RUN(given_the_loader_probes_then_16_bits_are_taken_where_the_tile_unit_is);
    RUN(given_views_and_batches_then_the_result_is_the_hosts);
    RUN(given_experts_then_the_result_is_the_hosts);
    return harness_report("plain_host");
}

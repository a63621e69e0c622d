// ik_llama.cpp: MUL_MAT_ID with weights in place and packed, against the host's own kernels and double precision.
#include "ik_experts.hpp"

namespace {

using namespace ik;

// From 32 rows of activations on, the host's kernels need whole groups of 16 rows of weights.
std::vector<home> homes_of(int64_t n, ggml_type type) {
    if (together_in(type) > 1) {
        return {home::host, home::in_place};
    }
    return n % 16 == 0 ? std::vector<home>{home::host, home::in_place, home::packed} : std::vector<home>{home::in_place};
}

void check_id(const drawn & d, const std::vector<std::unique_ptr<weight>> & weights, const shape & s, rng & r) {
    const int64_t k = d.p.m.k;
    const routing route(s, d.n, k, d.experts, d.p.rows, r);
    reference want = route.expect(d.n, [&](int64_t e, int64_t i, int64_t x) { return std::pair(d.exact(e, i, x), d.size(e, i, x)); });
    want.e8 = d.p.e8;
    const std::vector<home> homes = homes_of(d.n, d.p.m.type);
    double host = usual_error(true);
    for (size_t h = 0; h < homes.size(); h++) {
        if (d.n % 16 != 0 && !experts_are_ours(homes[h], s, d.experts, d.p.m.type)) {
            continue;
        }
        tensors t(8);
        const inputs in(t.get(), route, k);
        ggml_tensor * y = ggml_mul_mat_id(t.get(), *weights[h], in.x, in.ids);
        t.allocate();
        in.fill(route, d.p);
        const bool ours = experts_are_ours(homes[h], s, d.experts, d.p.m.type);
        const std::string what = text("%s K %lld N %lld, %lld of %lld experts, %lld tokens with %lld rows%s%s, %s", ggml_type_name(d.p.m.type), (long long) k,
                                      (long long) d.n, (long long) s.used, (long long) d.experts, (long long) s.tokens, (long long) s.x_rows,
                                      s.strided ? ", strided" : "", s.some_bad ? ", some ids name none" : "", name_of(homes[h]));
        const std::vector<float> got = result_of(t.get(), y, ours, what);
        if (homes[h] == home::host) {
            host = want.nmse(got);
            CHECK(std::isfinite(host), "%s: NaN", what.c_str());
            continue;
        }
        judge(got, want, ours, std::max(host, 2e-5), d.p.m.quantisation, what);
    }
}

void given_any_routing_when_multiplied_then_as_exact_as_the_rule_demands() {
    rng r = {10};
    for (ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_XS, GGML_TYPE_Q5_0, GGML_TYPE_Q4_0_R8,
                           GGML_TYPE_Q4_K_R4, GGML_TYPE_IQ4_K_R4}) {
        const int64_t k = ggml_blck_size(type) == 32 ? 160 : 512;
        for (bool outliers : {false, true}) {
            const bool all = outliers ? type == GGML_TYPE_Q4_0 || type == GGML_TYPE_Q6_K : type == GGML_TYPE_Q4_K;
            const matrix m(type, k, 200, r);
            const products p(m, 150, outliers, r);
            for (int64_t experts : {1, 2, 8, 128}) {
                for (int64_t n : {16, 48, 33}) {
                    if ((n == 33 && (experts == 128 || outliers || together_in(type) > 1)) || (!all && (n != 48 || experts == 2))) {
                        continue;
                    }
                    const drawn d(p, n, experts, r);
                    std::vector<std::unique_ptr<weight>> weights;
                    for (home h : homes_of(n, type)) {
                        weights.push_back(std::make_unique<weight>(h, d.m, n, experts, 1, "ffn_down_exps"));
                    }
                    for (int64_t used : {1, 2, 8}) {
                        for (int64_t tokens : {1, 2, 31, 200}) {
                            if (used > experts || (tokens == 200 && (n == 16 || used == 2)) || (n == 16 && used == 2)) {
                                continue;
                            }
                            check_id(d, weights, {used, tokens, 1}, r);
                            if (used > 1 && n == 48) {
                                check_id(d, weights, {used, tokens, used}, r);
                            }
                            if (n == 48 && outliers && all) {
                                check_id(d, weights, {used, tokens, used == 8 ? 4 : 1, true, true}, r);
                                check_id(d, weights, {used, tokens, used, true, false}, r);
                            }
                        }
                    }
                }
            }
        }
    }
}

void given_no_id_that_names_an_expert_when_multiplied_then_zeros() {
    rng r = {11};
    const matrix m(GGML_TYPE_Q4_0, 64, 32 * 4, r);
    for (home h : {home::in_place, home::packed}) {
        const weight w(h, m, 32, 4, 1, "ffn_up_exps");
        for (int64_t tokens : {1, 40}) {
            tensors t(8);
            ggml_tensor * x = ggml_new_tensor_3d(t.get(), GGML_TYPE_F32, 64, 1, tokens), * ids = ggml_new_tensor_2d(t.get(), GGML_TYPE_I32, 2, tokens);
            ggml_tensor * y[] = {ggml_mul_mat_id(t.get(), w, x, ids), ggml_moe_up_gate(t.get(), w, w, x, ids, GGML_UNARY_OP_SILU)};
            t.allocate();
            std::fill_n(static_cast<float *>(x->data), ggml_nelements(x), 1.0f);
            for (int64_t i = 0; i < ggml_nelements(ids); i++) {
                static_cast<int32_t *>(ids->data)[i] = i % 3 == 0 ? -1 : i % 3 == 1 ? 4 : INT32_MAX;
            }
            for (ggml_tensor * node : y) {
                const std::string what = text("%s %s, %lld tokens", ggml_op_name(node->op), name_of(h), (long long) tokens);
                const std::vector<float> got = result_of(t.get(), node, true, what);
                CHECK(std::all_of(got.begin(), got.end(), [](float v) { return v == 0; }), "%s: not all are 0", what.c_str());
            }
        }
    }
}

} // namespace

int main() {
    open();
    RUN(given_any_routing_when_multiplied_then_as_exact_as_the_rule_demands);
    RUN(given_no_id_that_names_an_expert_when_multiplied_then_zeros);
    return harness_report("ik_experts_host");
}

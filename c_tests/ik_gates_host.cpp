// ik_llama.cpp: FUSED_UP_GATE and MOE_FUSED_UP_GATE with weights in place and packed, against the host's own kernels
// and double precision.
#include "ik_experts.hpp"

namespace {

using namespace ik;

struct activation {
    ggml_unary_op op;
    float limit;
};

const activation ACTIVATIONS[] = {{GGML_UNARY_OP_SILU, 0},   {GGML_UNARY_OP_GELU, 0},    {GGML_UNARY_OP_RELU, 0},         {GGML_UNARY_OP_SWIGLU_OAI, 0},
                                  {GGML_UNARY_OP_SILU, 0.3f}, {GGML_UNARY_OP_GELU, 0.5f}, {GGML_UNARY_OP_SWIGLU_OAI, 0.2f}};

// iqk_mul_mat.cpp, 136 to 171.
double combine(const activation & a, double up, double gate) {
    double g = 0;
    switch (a.op) {
        case GGML_UNARY_OP_SILU: g = gate / (1 + std::exp(-gate)); break;
        case GGML_UNARY_OP_GELU: g = 0.5 * gate * (1 + std::tanh(0.79788456080286535588 * gate * (1 + 0.044715 * gate * gate))); break;
        case GGML_UNARY_OP_RELU: g = std::max(gate, 0.0); break;
        default: g = std::min(gate, 7.0) / (1 + std::exp(-1.702 * std::min(gate, 7.0)));
    }
    if (a.limit > 0) {
        g = std::min(g, double(a.limit));
    }
    if (a.op == GGML_UNARY_OP_SWIGLU_OAI) {
        up = 1 + std::clamp(up, -7.0, 7.0);
    } else if (a.limit > 0) {
        up = std::clamp(up, -double(a.limit), double(a.limit));
    }
    return g * up;
}

std::pair<double, double> combined(const activation & a, double up, double gate, double up_size, double gate_size) {
    const double more = a.op == GGML_UNARY_OP_SWIGLU_OAI ? 1 : 0;
    return {combine(a, up, gate), (more + up_size) * gate_size};
}

void set_limit(ggml_tensor * node, float limit) {
    memcpy(node->op_params + 1, &limit, sizeof limit);
}

std::string name_of(const activation & a) {
    return text("%s%s", ggml_unary_op_name(a.op), a.limit > 0 ? " with a limit" : "");
}

// A product with enough activations: the host asks for too small a work buffer for some with gates.
ggml_tensor * ballast(ggml_context * c, int64_t k, int64_t rows) {
    ggml_tensor * w = ggml_new_tensor_2d(c, GGML_TYPE_Q8_0, k, 1), * x = ggml_new_tensor_2d(c, GGML_TYPE_F32, k, 2 * rows + 64);
    return ggml_mul_mat(c, w, x);
}

void given_up_and_gate_when_fused_then_as_exact_as_the_rule_demands() {
    rng r = {12};
    for (ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_XS}) {
        const int64_t k = ggml_blck_size(type) == 32 ? 576 : 512;
        for (int64_t n : {48, 1008}) {
            const matrix mu(type, k, n, r), mg(type, k, n, r);
            const products pu(mu, n == 48 ? 200 : 33, true, r), pg(mg, pu.x);
            const std::vector<home> homes = {home::host, home::in_place, home::stored, home::packed};
            std::vector<std::unique_ptr<weight>> up, gate;
            for (home h : homes) {
                up.push_back(std::make_unique<weight>(h, mu, n, 1, 1, "ffn_up"));
                gate.push_back(std::make_unique<weight>(h, mg, n, 1, 1, "ffn_gate"));
            }
            for (const activation & a : ACTIVATIONS) {
                for (int64_t tokens : n == 48 ? std::vector<int64_t>{200, 33, 16, 15, 1} : std::vector<int64_t>{33, 2}) {
                    reference want;
                    for (int64_t x = 0; x < tokens; x++) {
                        for (int64_t i = 0; i < n; i++) {
                            const auto [exact, size] = combined(a, pu.at(x, i), pg.at(x, i), pu.size(x, i), pg.size(x, i));
                            want.add(exact, size);
                        }
                    }
                    want.independent = double(tokens * std::min(n, k)) / 4; // some results are near 0
                    want.e8 = 2 * pu.e8;
                    double host = 0;
                    for (size_t h = 0; h < homes.size(); h++) {
                        tensors t(8);
                        ggml_tensor * x = ggml_new_tensor_2d(t.get(), GGML_TYPE_F32, k, tokens);
                        ggml_tensor * y = ggml_fused_up_gate(t.get(), *up[h], *gate[h], x, a.op), * work = ballast(t.get(), k, tokens);
                        set_limit(y, a.limit);
                        t.allocate();
                        memset(work->src[0]->data, 0, ggml_nbytes(work->src[0]));
                        memset(work->src[1]->data, 0, ggml_nbytes(work->src[1]));
                        memcpy(x->data, pu.x.data(), ggml_nbytes(x));
                        const bool ours = is_ours(homes[h], tokens, type);
                        const std::string what = text("%s K %lld N %lld M %lld, %s, %s", ggml_type_name(type), (long long) k, (long long) n, (long long) tokens,
                                                      name_of(a).c_str(), name_of(homes[h]));
                        const std::vector<float> got = result_of(t.get(), y, ours, what, {work});
                        host = h == 0 ? want.nmse(got) : host;
                        if (h > 0) {
                            judge(got, want, ours, std::max(host, 2e-5), 2 * mu.quantisation, what);
                        }
                    }
                }
            }
        }
    }
}

// How the matrices and biases of experts with gates are given.
enum class form { two, merged };

struct gated {
    form f;
    bool biases;
};

void check_moe(const drawn & up, const drawn & gate, const gated & g, const activation & a, const shape & s, rng & r) {
    const int64_t k = up.p.m.k, n = up.n, experts = up.experts;
    const routing route(s, n, k, experts, up.p.rows, r);
    std::vector<float> bias[2]; // up, gate
    for (auto & b : bias) {
        for (int64_t i = 0; i < n * experts; i++) {
            b.push_back(g.biases ? 0.3f * rng_normal(&r) : 0);
        }
    }
    reference want = route.expect(n, [&](int64_t e, int64_t i, int64_t x) {
        const double bu = double(bias[0][size_t(e * n + i)]), bg = double(bias[1][size_t(e * n + i)]);
        return combined(a, up.exact(e, i, x) + bu, gate.exact(e, i, x) + bg, std::hypot(up.size(e, i, x), bu), std::hypot(gate.size(e, i, x), bg));
    });
    want.independent /= 4;
    want.e8 = 2 * up.p.e8;
    // Rows of the merged tensor: of every expert those of the gate, then those of `up`.
    matrix both = up.m;
    std::vector<float> both_bias;
    both.rows *= 2;
    both.bytes.clear();
    const size_t bytes = ggml_row_size(up.m.type, k) * size_t(n);
    for (int64_t e = 0; e < experts; e++) {
        both.bytes.insert(both.bytes.end(), gate.m.bytes.begin() + int64_t(bytes) * e, gate.m.bytes.begin() + int64_t(bytes) * (e + 1));
        both.bytes.insert(both.bytes.end(), up.m.bytes.begin() + int64_t(bytes) * e, up.m.bytes.begin() + int64_t(bytes) * (e + 1));
        both_bias.insert(both_bias.end(), bias[1].begin() + n * e, bias[1].begin() + n * (e + 1));
        both_bias.insert(both_bias.end(), bias[0].begin() + n * e, bias[0].begin() + n * (e + 1));
    }
    double host = 3 * usual_error(true);
    for (home h : {home::host, home::in_place, home::packed}) {
        const bool ours = experts_are_ours(h, s, experts, up.m.type), merged = g.f == form::merged;
        if (n % 16 != 0 && !ours) {
            continue;
        }
        const weight wu(h, merged ? both : up.m, merged ? 2 * n : n, experts, 1, merged ? "ffn_gate_up_exps" : "ffn_up_exps");
        const std::unique_ptr<weight> wg = merged ? nullptr : std::make_unique<weight>(h, gate.m, n, experts, 1, "ffn_gate_exps");
        tensors t(12);
        const inputs in(t.get(), route, k);
        ggml_tensor * bu = ggml_new_tensor_2d(t.get(), GGML_TYPE_F32, merged ? 2 * n : n, experts);
        ggml_tensor * bg = ggml_new_tensor_2d(t.get(), GGML_TYPE_F32, n, experts);
        ggml_tensor * y = ggml_moe_up_gate_ext(t.get(), wu, merged ? nullptr : wg->tensor, in.x, in.ids, g.biases ? bu : nullptr,
                                               g.biases && !merged ? bg : nullptr, a.op);
        ggml_tensor * work = ballast(t.get(), k, s.used * s.tokens + experts * (s.tokens + 1));
        set_limit(y, a.limit);
        t.allocate();
        memset(work->src[0]->data, 0, ggml_nbytes(work->src[0]));
        memset(work->src[1]->data, 0, ggml_nbytes(work->src[1]));
        memcpy(bu->data, merged ? both_bias.data() : bias[0].data(), ggml_nbytes(bu));
        memcpy(bg->data, bias[1].data(), ggml_nbytes(bg));
        in.fill(route, up.p);
        const std::string what =
            text("%s K %lld N %lld, %lld of %lld experts, %lld tokens with %lld rows, %s%s%s, %s%s%s", ggml_type_name(up.p.m.type), (long long) k, (long long) n,
                 (long long) s.used, (long long) experts, (long long) s.tokens, (long long) s.x_rows, name_of(a).c_str(), merged ? ", merged" : "",
                 g.biases ? ", biases" : "", name_of(h), s.strided ? ", strided" : "", s.some_bad ? ", some ids name none" : "");
        const std::vector<float> got = result_of(t.get(), y, ours, what, {work});
        if (h == home::host) {
            host = want.nmse(got);
            CHECK(std::isfinite(host), "%s: NaN", what.c_str());
            continue;
        }
        judge(got, want, ours, std::max(host, 2e-5), 2 * up.p.m.quantisation, what);
    }
}

void given_experts_with_gates_when_fused_then_as_exact_as_the_rule_demands() {
    rng r = {13};
    for (ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_XS}) {
        const int64_t k = ggml_blck_size(type) == 32 ? 160 : 512;
        const matrix m(type, k, 200, r);
        const products p(m, 100, true, r);
        for (int64_t experts : {1, 8, 128}) {
            for (int64_t n : {48, 24}) {
                if (n == 24 && experts != 8) {
                    continue;
                }
                const drawn up(p, n, experts, r), gate(p, n, experts, r);
                for (const gated & g : {gated{form::two, false}, gated{form::two, true}, gated{form::merged, false}, gated{form::merged, true}}) {
                    if (n == 24 && g.f == form::two) {
                        continue; // not packed
                    }
                    for (const activation & a : ACTIVATIONS) {
                        const bool all = type == GGML_TYPE_Q4_0 || type == GGML_TYPE_Q4_K;
                        if (a.op != GGML_UNARY_OP_SILU && (experts != 8 || (!all && a.limit == 0))) {
                            continue;
                        }
                        const int64_t used = std::min<int64_t>(experts, 4);
                        check_moe(up, gate, g, a, {used, 1, 1}, r);
                        check_moe(up, gate, g, a, {used, 70, 1, a.limit > 0, a.limit > 0}, r);
                        if (a.op == GGML_UNARY_OP_SILU) {
                            check_moe(up, gate, g, a, {used, 7, used, true, true}, r);
                            check_moe(up, gate, g, a, {used, 70, used}, r);
                        }
                    }
                }
            }
        }
    }
}

// Up and gate may live in different buffers: one moved by -ot, one not.
void given_up_and_gate_in_different_places_when_fused_then_right() {
    rng r = {14};
    const int64_t k = 256, n = 48;
    const matrix m(GGML_TYPE_Q4_K, k, 200, r);
    const products p(m, 100, false, r);
    const drawn up(p, n, 4, r), gate(p, n, 4, r);
    const activation a = {GGML_UNARY_OP_SILU, 0};
    for (home hu : HOMES) {
        for (home hg : HOMES) {
            const weight wu(hu, up.m, n, 4, 1, "ffn_up_exps"), wg(hg, gate.m, n, 4, 1, "ffn_gate_exps");
            const weight du(hu, up.m, n), dg(hg, gate.m, n, 1, 1, "ffn_gate");
            for (int64_t tokens : {1, 48}) {
                const routing route({2, tokens, 1}, n, k, 4, p.rows, r);
                tensors t(12);
                const inputs in(t.get(), route, k);
                ggml_tensor * x = ggml_new_tensor_2d(t.get(), GGML_TYPE_F32, k, tokens);
                ggml_tensor * work = ballast(t.get(), k, 300), * y = ggml_moe_up_gate(t.get(), wu, wg, in.x, in.ids, a.op);
                ggml_tensor * dense = ggml_fused_up_gate(t.get(), du, dg, x, a.op);
                t.allocate();
                memset(work->src[0]->data, 0, ggml_nbytes(work->src[0]));
                memset(work->src[1]->data, 0, ggml_nbytes(work->src[1]));
                in.fill(route, p);
                memcpy(x->data, p.x.data(), ggml_nbytes(x));
                const std::string what = text("%lld tokens, up %s, gate %s", (long long) tokens, name_of(hu), name_of(hg));
                reference want = route.expect(n, [&](int64_t e, int64_t i, int64_t row) {
                    return combined(a, up.exact(e, i, row), gate.exact(e, i, row), up.size(e, i, row), gate.size(e, i, row));
                });
                want.independent /= 4;
                judge(result_of(t.get(), y, false, what, {work}), want, false, 1e-3, 2 * m.quantisation, "experts, " + what);
                reference dense_want;
                for (int64_t row = 0; row < tokens; row++) {
                    for (int64_t i = 0; i < n; i++) {
                        const auto [exact, size] = combined(a, up.exact(0, i, row), gate.exact(0, i, row), up.size(0, i, row), gate.size(0, i, row));
                        dense_want.add(exact, size);
                    }
                }
                dense_want.independent = double(tokens * n) / 4;
                judge(result_of(t.get(), dense, false, what, {work}), dense_want, false, 1e-3, 2 * m.quantisation, "dense, " + what);
            }
        }
    }
}

} // namespace

int main() {
    open();
    RUN(given_up_and_gate_when_fused_then_as_exact_as_the_rule_demands);
    RUN(given_experts_with_gates_when_fused_then_as_exact_as_the_rule_demands);
    RUN(given_up_and_gate_in_different_places_when_fused_then_right);
    return harness_report("ik_gates_host");
}

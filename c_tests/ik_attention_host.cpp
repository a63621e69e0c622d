// ik_llama.cpp: FLASH_ATTN_EXT with caches, masks and heads of all kinds, against double precision; behind a product of
// quantised weights, and in several contexts at once.
#include "ik.hpp"

#include "child.h"

#include <thread>

namespace {

using namespace ik;

enum class sight { all, causal, window, none_for_some, biased };

const char * name_of(sight s) {
    switch (s) {
        case sight::all: return "no mask";
        case sight::causal: return "causal";
        case sight::window: return "window";
        case sight::none_for_some: return "tokens that see nothing";
        default: return "biased";
    }
}

// What the mask adds to the score of a key. The last token sees all keys.
float seen(sight s, int64_t token, int64_t key, int64_t tokens, int64_t keys) {
    const int64_t position = keys - tokens + token;
    switch (s) {
        case sight::all: return 0;
        case sight::causal: return key <= position ? 0 : -INFINITY;
        case sight::window: return key <= position && key + 20 > position ? 0 : -INFINITY;
        case sight::none_for_some: return token % 3 != 1 && key <= position ? 0 : -INFINITY;
        default: return -float(key % 7) / 4;
    }
}

struct attention {
    ggml_type k_type = GGML_TYPE_F16, v_type = GGML_TYPE_F16;
    int64_t dk = 64, dv = 64, heads = 8, kv_heads = 4, tokens = 40, keys = 96;
    sight mask = sight::causal;
    float softcap = 0;
    bool sinks = false;

    std::string name() const {
        return text("%s/%s, %lldx%lld, %lld of %lld heads, %lld tokens, %lld keys, %s%s%s", ggml_type_name(k_type), ggml_type_name(v_type), (long long) dk,
                    (long long) dv, (long long) kv_heads, (long long) heads, (long long) tokens, (long long) keys, name_of(mask),
                    softcap > 0 ? ", soft cap" : "", sinks ? ", sinks" : "");
    }
    // The host's own kernels do the others: few queries per head of the cache, or fewer tiles of 32 than half the
    // threads. Where results shall be exact, all are ours.
    bool is_ours() const {
        const char * precision = getenv("GGML_AMX_PRECISION");
        if (precision && strcmp(precision, "exact") == 0) {
            return host_has_amx() && !getenv("GGML_AMX_ISA");
        }
        const int64_t queries = tokens * heads / kv_heads, tiles = (queries + 31) / 32 * kv_heads, most_threads = *std::max_element(std::begin(THREADS), std::end(THREADS));
        return tokens > 1 && queries >= 16 && 2 * tiles >= most_threads && host_has_amx() && !getenv("GGML_AMX_ISA");
    }
};

// Rows of a cache, and the floats they stand for.
struct cache {
    std::vector<uint8_t> bytes;
    std::vector<float> floats;

    cache(ggml_type type, int64_t width, int64_t rows, rng & r) : floats(size_t(width * rows)) {
        for (float & f : floats) {
            f = rng_normal(&r);
        }
        bytes.resize(ggml_row_size(type, width) * size_t(rows));
        ggml_quantize_chunk(type, floats.data(), bytes.data(), 0, rows, width, nullptr);
        ggml_internal_get_type_traits(type).to_float(bytes.data(), floats.data(), width * rows);
    }
};

// The operands of an operation and its exact result.
struct operands {
    attention a;
    std::vector<float> q, sinks;
    cache k, v;
    float scale;
    reference want;

    // Rows of K and V lie head by head in every key.
    operands(const attention & a, rng & r)
        : a(a), q(activations(a.dk, a.heads * a.tokens, false, r)), sinks(activations(a.heads, 1, false, r)), k(a.k_type, a.dk, a.kv_heads * a.keys, r),
          v(a.v_type, a.dv, a.kv_heads * a.keys, r), scale(1 / std::sqrt(float(a.dk))) {
        std::vector<double> weights(size_t(a.keys), 0);
        for (int64_t i = 0; i < a.tokens * a.heads; i++) {
            const int64_t token = i / a.heads, head = i % a.heads, from = head / (a.heads / a.kv_heads);
            double largest = a.sinks ? double(sinks[size_t(head)]) : -INFINITY, sum = 0;
            for (int64_t key = 0; key < a.keys; key++) {
                double score = 0;
                for (int64_t c = 0; c < a.dk; c++) {
                    score += double(q[size_t(i * a.dk + c)]) * double(k.floats[size_t((key * a.kv_heads + from) * a.dk + c)]);
                }
                score *= double(scale);
                score = a.softcap > 0 ? double(a.softcap) * std::tanh(score / double(a.softcap)) : score;
                weights[size_t(key)] = score + double(seen(a.mask, token, key, a.tokens, a.keys));
                largest = std::max(largest, weights[size_t(key)]);
            }
            std::vector<double> result(size_t(a.dv), 0);
            for (int64_t key = 0; key < a.keys; key++) {
                const double weight = std::isinf(weights[size_t(key)]) ? 0 : std::exp(weights[size_t(key)] - largest);
                sum += weight;
                for (int64_t c = 0; c < a.dv; c++) {
                    result[size_t(c)] += weight * double(v.floats[size_t((key * a.kv_heads + from) * a.dv + c)]);
                }
            }
            sum += a.sinks ? std::exp(double(sinks[size_t(head)]) - largest) : 0;
            for (double x : result) {
                want.add(sum > 0 ? x / sum : 0, 0.1);
            }
        }
    }

    ggml_tensor * rows(ggml_context * c, ggml_type type, int64_t width) const {
        ggml_tensor * t = ggml_new_tensor_3d(c, type, width, a.kv_heads, a.keys);
        return ggml_permute(c, t, 0, 2, 1, 3);
    }

    // The node, in a context with room for it; its operands are filled by fill() once they have memory.
    ggml_tensor * node(ggml_context * c) const {
        ggml_tensor * x = ggml_permute(c, ggml_new_tensor_3d(c, GGML_TYPE_F32, a.dk, a.heads, a.tokens), 0, 2, 1, 3);
        ggml_tensor * mask = a.mask == sight::all ? nullptr : ggml_new_tensor_2d(c, GGML_TYPE_F16, a.keys, GGML_PAD(a.tokens, GGML_KQ_MASK_PAD));
        ggml_tensor * y = ggml_flash_attn_ext(c, x, rows(c, a.k_type, a.dk), rows(c, a.v_type, a.dv), mask, scale, 0, a.softcap);
        if (a.sinks) {
            ggml_flash_attn_ext_add_sinks(y, ggml_new_tensor_1d(c, GGML_TYPE_F32, a.heads));
        }
        return y;
    }

    void fill(ggml_tensor * y) const {
        memcpy(y->src[0]->data, q.data(), q.size() * sizeof(float));
        memcpy(y->src[1]->data, k.bytes.data(), k.bytes.size());
        memcpy(y->src[2]->data, v.bytes.data(), v.bytes.size());
        if (ggml_tensor * mask = y->src[3]) {
            for (int64_t i = 0; i < mask->ne[0] * mask->ne[1]; i++) {
                const int64_t token = i / a.keys;
                static_cast<ggml_fp16_t *>(mask->data)[i] = ggml_fp32_to_fp16(token < a.tokens ? seen(a.mask, token, i % a.keys, a.tokens, a.keys) : -INFINITY);
            }
        }
        if (a.sinks) {
            memcpy(y->src[4]->data, sinks.data(), sinks.size() * sizeof(float));
        }
    }
};

void check(const attention & a, rng & r) {
    const operands o(a, r);
    tensors t(16);
    ggml_tensor * y = o.node(t.get());
    t.allocate();
    o.fill(y);
    const std::vector<float> got = result_of(t.get(), y, a.is_ours(), a.name());
    // Without a product of quantised weights in the graph ours is exact to 16 bits.
    const double error = o.want.nmse(got), allowed = a.is_ours() ? 1e-8 : NMSE_LIMIT;
    CHECK(error <= allowed, "%s: NMSE %.3g, allowed %.3g", a.name().c_str(), error, allowed);
}

void given_heads_and_masks_of_all_kinds_when_computed_then_as_the_definition_says() {
    rng r = {41};
    if (!host_has_amx()) {
        // Its own kernels end the process for rows that see nothing.
        harness_skip("no AMX: flash attention is the host's");
        return;
    }
    for (sight mask : {sight::all, sight::causal, sight::window, sight::none_for_some, sight::biased}) {
        for (int64_t tokens : {8, 9, 16, 33, 200}) {
            attention a;
            a.mask = mask, a.tokens = tokens;
            for (int64_t keys : {int64_t(256), tokens}) {
                a.keys = keys;
                check(a, r);
            }
        }
    }
    struct shape {
        int64_t dk, dv, heads, kv_heads;
    };
    for (const shape & s : {shape{128, 128, 8, 1}, shape{128, 128, 3, 3}, shape{96, 96, 4, 4}, shape{192, 128, 2, 2}, shape{576, 512, 16, 1}, shape{256, 256, 4, 2},
                            shape{80, 80, 2, 1}, shape{40, 24, 12, 4}}) {
        attention a;
        a.dk = s.dk, a.dv = s.dv, a.heads = s.heads, a.kv_heads = s.kv_heads;
        for (int64_t tokens : {16, 100}) {
            a.tokens = tokens, a.keys = 288;
            check(a, r);
        }
    }
    attention a;
    a.softcap = 3;
    check(a, r);
    a.sinks = true;
    check(a, r);
    a.softcap = 0, a.mask = sight::none_for_some;
    check(a, r);
}

void given_caches_of_all_types_when_computed_then_as_the_definition_says() {
    rng r = {42};
    if (!host_has_amx()) {
        harness_skip("no AMX: flash attention is the host's");
        return;
    }
    for (ggml_type k : {GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q6_0, GGML_TYPE_Q4_0, GGML_TYPE_IQ4_NL}) {
        for (ggml_type v : {GGML_TYPE_F16, k}) {
            attention a;
            a.k_type = k, a.v_type = v, a.keys = 320, a.tokens = 70;
            check(a, r);
        }
    }
}

// Few tokens are the host's.
void given_a_token_when_computed_then_as_the_definition_says() {
    rng r = {43};
    for (int64_t tokens : {1, 2, 7}) {
        attention a;
        a.tokens = tokens, a.keys = 256;
        check(a, r);
    }
}

// Behind quantised weights: no more exact than they are.
void given_quantised_weights_in_the_graph_when_computed_then_fine_enough() {
    rng r = {44};
    const known first(GGML_TYPE_Q4_0, 256, 48, 20, r);
    attention a;
    a.keys = 256;
    const operands o(a, r);
    const weight w(home::in_place, first.m, 48);
    tensors t(24);
    ggml_tensor * x = ggml_new_tensor_2d(t.get(), GGML_TYPE_F32, 256, 20), * product = ggml_mul_mat(t.get(), w, x), * y = o.node(t.get());
    t.allocate();
    memcpy(x->data, first.p.x.data(), ggml_nbytes(x));
    o.fill(y);
    const std::vector<float> got = result_of(t.get(), y, a.is_ours(), a.name(), {product});
    const double error = o.want.nmse(got);
    CHECK(error <= 1e-5, "NMSE %.3g", error);
    CHECK(!a.is_ours() || error >= 1e-9, "NMSE %.3g: as fine as without quantised weights", error);
}

// What a mask hides must not reach a result, even if it is NaN. A token that sees a NaN has one.
void given_nan_in_the_cache_when_computed_then_only_tokens_that_see_it_have_it() {
    rng r = {46};
    attention a;
    if (!a.is_ours()) {
        harness_skip("no AMX: flash attention is the host's");
        return;
    }
    a.tokens = a.keys = 40;
    const operands clean(a, r);
    std::vector<float> want;
    for (int which : {0, 1, 2}) { // NaN in nothing, in keys, in values
        const int64_t width = which == 1 ? a.dk : a.dv, bad = 20; // in the first 32 keys
        operands o = clean;
        if (which > 0) {
            uint8_t * rows = (which == 1 ? o.k : o.v).bytes.data();
            memset(rows + size_t(bad * a.kv_heads * width) * 2, 0xff, size_t(a.kv_heads * width) * 2);
        }
        tensors t(16);
        ggml_tensor * y = o.node(t.get());
        t.allocate();
        o.fill(y);
        const std::vector<float> got = result_of(t.get(), y, true, a.name());
        if (which == 0) {
            want = got;
            continue;
        }
        for (int64_t token = 0; token < a.tokens; token++) {
            const size_t from = size_t(token * a.heads * a.dv), size = size_t(a.heads * a.dv);
            if (token < bad) {
                CHECK(memcmp(&got[from], &want[from], size * sizeof(float)) == 0, "operand %d: token %lld, which does not see it", which, (long long) token);
            } else {
                const bool all_nan = std::all_of(&got[from], &got[from] + size, [](float x) { return std::isnan(x); });
                CHECK(all_nan, "operand %d: token %lld, which sees it", which, (long long) token);
            }
        }
    }
}

// In a process of its own: the last token has the same bits, however many are computed with it, on any number of
// threads.
int exact_mode() {
    open();
    harness_test = "exact mode";
    rng r = {47};
    for (ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0}) {
        attention a;
        a.k_type = a.v_type = type, a.tokens = 70, a.keys = 256;
        const operands all(a, r);
        const size_t row = size_t(a.heads * a.dv);
        std::vector<float> last;
        for (int64_t tokens : {int64_t(70), int64_t(1), int64_t(2), int64_t(9)}) {
            operands o = all;
            o.a.tokens = tokens;
            o.q.erase(o.q.begin(), o.q.end() - ptrdiff_t(tokens * a.heads * a.dk));
            tensors t(16);
            ggml_tensor * y = o.node(t.get());
            t.allocate();
            o.fill(y);
            const std::vector<float> got = result_of(t.get(), y, true, o.a.name());
            const std::vector<float> end(got.end() - ptrdiff_t(row), got.end());
            if (last.empty()) {
                last = end;
            }
            CHECK(same_bits(end, last), "%s: the last token has other bits than among 70", o.a.name().c_str());
        }
    }
    return harness_report("exact mode");
}

void given_exact_results_when_tokens_come_in_other_numbers_then_the_same_bits() {
    if (!host_has_amx() || getenv("GGML_AMX_ISA")) {
        harness_skip("no AMX: flash attention is the host's");
        return;
    }
    const char * const env[] = {"GGML_AMX_PRECISION", "exact", nullptr};
    struct child c = child_exec("exact", env);
    CHECK(c.signal == 0 && c.code == 0, "signal %d, code %d: %s%s", c.signal, c.code, c.out, c.err);
    child_free(&c);
}

void given_several_contexts_when_they_compute_at_once_then_the_bits_of_a_single_one() {
    rng r = {45};
    attention a;
    a.keys = 256;
    std::vector<std::unique_ptr<operands>> all;
    std::vector<std::vector<float>> alone;
    for (int64_t tokens : {8, 40, 64}) {
        a.tokens = tokens, a.dk = a.dv = tokens == 40 ? 128 : 64;
        all.push_back(std::make_unique<operands>(a, r));
        tensors t(16);
        ggml_tensor * y = all.back()->node(t.get());
        t.allocate();
        all.back()->fill(y);
        alone.push_back(result_of(t.get(), y, a.is_ours(), a.name()));
    }
    std::vector<std::thread> threads;
    for (size_t context = 0; context < all.size(); context++) {
        threads.emplace_back([&, context] {
            const backend_ptr on(ggml_backend_cpu_init());
            tensors t(16);
            ggml_tensor * y = all[context]->node(t.get());
            t.allocate();
            all[context]->fill(y);
            ggml_cgraph * graph = graph_of(t.get(), {y});
            for (int round = 0; round < 40; round++) {
                ggml_backend_cpu_set_n_threads(on.get(), 1 + (round + int(context)) % 3);
                poison(y);
                compute(on.get(), graph);
                CHECK(!all[context]->a.is_ours() || same_bits(floats_of(y), alone[context]), "context %zu, round %d", context, round);
            }
        });
    }
    for (std::thread & t : threads) {
        t.join();
    }
}

} // namespace

int main(int argc, char **) {
    if (argc > 1) {
        return exact_mode();
    }
    open();
    RUN(given_heads_and_masks_of_all_kinds_when_computed_then_as_the_definition_says);
    RUN(given_caches_of_all_types_when_computed_then_as_the_definition_says);
    RUN(given_a_token_when_computed_then_as_the_definition_says);
    RUN(given_quantised_weights_in_the_graph_when_computed_then_fine_enough);
    RUN(given_nan_in_the_cache_when_computed_then_only_tokens_that_see_it_have_it);
    RUN(given_exact_results_when_tokens_come_in_other_numbers_then_the_same_bits);
    RUN(given_several_contexts_when_they_compute_at_once_then_the_bits_of_a_single_one);
    return harness_report("ik_attention_host");
}

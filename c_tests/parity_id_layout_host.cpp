// MUL_MAT_ID with every layout and routing a model may use: strided ids and activations, views of packed experts,
// and whole blocks. The probe, misuse and other ops are in surface_id_host.cpp.
#include "experts.hpp"
#include "layout.hpp"

namespace {

using namespace experts;
using layout::as_it_is;
using layout::dims;
using layout::viewer;
using layout::views;

// Fills the tensor that ids are a view of: a row of it has n numbers.
using router = void (*)(int32_t * row, int64_t n, int64_t token, int64_t experts, rng & r);

// As an argsort over all experts leaves them; a shorter row has the first of them.
void shuffled(int32_t * row, int64_t n, int64_t, int64_t experts, rng & r) {
    const std::vector<int32_t> chosen = choose(n, experts, r);
    std::copy(chosen.begin(), chosen.end(), row);
}

// Sizes are for blocks of 32 and grow for super-blocks.
struct id_case {
    const char * name;
    dims weight, src1;
    int64_t ids[2];
    router route = shuffled;
    viewer weight_view = as_it_is, src1_view = as_it_is, ids_view = as_it_is;
    views how = views::initialised;
    bool may_be_refused = false; // supports_op decides; what it accepts must be right
};

ggml_tensor * known(ggml_tensor * t) {
    for (ggml_tensor * v = t; v->view_src && !v->buffer; v = v->view_src) {
        CHECK(ggml_backend_view_init(v) == GGML_STATUS_SUCCESS, "view_init");
    }
    return t;
}

void check_draw(const id_case & small, ggml_type type, bool outliers, bound::row & pool, rng & r) {
    id_case c = small;
    c.weight.ne[0] *= ggml_blck_size(type) / 32;
    c.src1.ne[0] *= ggml_blck_size(type) / 32;
    const weights w(type, c.weight.ne[0], c.weight.ne[1] * c.weight.ne[2], r);
    tensors in_amx(1), in_cpu(1), data(2), views(16), results(4);
    ggml_tensor * packed = ggml_new_tensor(in_amx.get(), type, 4, c.weight.ne), * plain = ggml_new_tensor(in_cpu.get(), type, 4, c.weight.ne);
    ggml_tensor * x = ggml_new_tensor(data.get(), GGML_TYPE_F32, 4, c.src1.ne), * ids = ggml_new_tensor_2d(data.get(), GGML_TYPE_I32, c.ids[0], c.ids[1]);
    in_amx.allocate(host.amx);
    in_cpu.allocate(host.plain);
    data.allocate(host.plain);
    ggml_backend_tensor_set(packed, w.bytes.data(), 0, w.bytes.size());
    ggml_backend_tensor_set(plain, w.bytes.data(), 0, w.bytes.size());
    fill_activations(static_cast<float *>(x->data), x->ne[0], ggml_nrows(x), outliers, r);
    for (int64_t i = 0; i < c.ids[1]; i++) {
        c.route(static_cast<int32_t *>(ids->data) + i * c.ids[0], c.ids[0], i, c.weight.ne[2], r);
    }
    ggml_tensor * a = c.weight_view(views.get(), packed), * b = known(c.src1_view(views.get(), x)), * i = known(c.ids_view(views.get(), ids));
    ggml_tensor * ours = ggml_mul_mat_id(results.get(), c.how == layout::views::raw ? a : known(a), b, i);
    ggml_tensor * theirs = ggml_mul_mat_id(results.get(), known(c.weight_view(views.get(), plain)), b, i);
    results.allocate(host.plain);
    const std::string what = text("%s %s, %lld tokens%s", ggml_type_name(type), c.name, (long long) i->ne[1], outliers ? " with outliers" : "");
    // The device asks us only if it sees the buffer. A raw view has none.
    if (c.how == layout::views::raw || ggml_backend_dev_supports_op(host.cpu, ours)) {
        check_op(ours, theirs, follow_strides(theirs), w.own_error(), pool, what);
    } else {
        CHECK(c.may_be_refused, "%s: not supported", what.c_str());
    }
}

// Repeated with new numbers until there are enough results to judge.
void check_type(const id_case & c, ggml_type type, bool outliers, rng & r) {
    bound::row pool;
    do {
        check_draw(c, type, outliers, pool, r);
    } while (pool.outputs > 0);
}

// The types take turns, three per case. With outliers only blocks of 32: the host's own error on super-blocks is
// above the limit.
void check(const id_case & c, rng & r) {
    static size_t turn = 0;
    for (int i = 0; i < 3; i++, turn++) {
        const ggml_type type = TYPES[turn % std::size(TYPES)];
        check_type(c, type, i == 0 && ggml_blck_size(type) == 32, r);
    }
}

// 5 experts of 40 x 64.
id_case usual(const char * name, int64_t tokens, int64_t x_rows = 1, int64_t used = 2) {
    return {name, {{64, 40, 5, 1}}, {{64, x_rows, tokens, 1}}, {used, tokens}};
}

// ---- ids

void given_ids_with_strides_then_the_gaps_are_not_read() {
    rng r = {80};
    for (int64_t m : {1, 2, 50}) {
        for (int64_t x_rows : {1, 3}) {
            id_case c = usual("the first columns of an argsort", m, x_rows);
            c.ids[0] = 5;
            c.ids_view = [](ggml_context * x, ggml_tensor * t) { return ggml_view_4d(x, t, 3, t->ne[1], 1, 1, t->nb[1], t->nb[2], t->nb[3], 0); };
            check(c, r);
            c.name = "the last columns of an argsort";
            c.ids_view = [](ggml_context * x, ggml_tensor * t) { return ggml_view_2d(x, t, 3, t->ne[1], t->nb[1], 2 * t->nb[0]); };
            check(c, r);
            c = usual("every other row of ids", m, x_rows, 3);
            c.ids[1] = 2 * m;
            c.ids_view = [](ggml_context * x, ggml_tensor * t) { return ggml_view_2d(x, t, 3, t->ne[1] / 2, 2 * t->nb[1], t->nb[1]); };
            check(c, r);
            c = usual("one row of ids for all tokens", m, x_rows, 3);
            c.ids_view = [](ggml_context * x, ggml_tensor * t) { return ggml_view_2d(x, t, 3, t->ne[1], 0, 0); };
            check(c, r);
        }
        id_case c = usual("ids transposed", m, 3);
        c.ids[0] = m, c.ids[1] = 3;
        c.route = [](int32_t * row, int64_t n, int64_t, int64_t experts, rng & g) {
            std::generate_n(row, n, [&] { return int32_t(rng_below(&g, uint64_t(experts))); });
        };
        c.ids_view = [](ggml_context * x, ggml_tensor * t) { return ggml_transpose(x, t); };
        check(c, r);
    }
}

void given_experts_that_repeat_or_get_nothing_then_every_slot_is_right() {
    const struct {
        const char * name;
        router route;
    } routes[] = {
        {"the same expert in all slots", [](int32_t * row, int64_t n, int64_t token, int64_t e, rng &) { std::fill_n(row, n, int32_t(token * 3 % e)); }},
        {"one expert in two slots", [](int32_t * row, int64_t n, int64_t token, int64_t e, rng & g) {
             shuffled(row, n, token, e, g);
             row[n - 1] = row[0]; }},
        {"everything to the last expert", [](int32_t * row, int64_t n, int64_t, int64_t e, rng &) { std::fill_n(row, n, int32_t(e - 1)); }},
        {"everything to the first expert", [](int32_t * row, int64_t n, int64_t, int64_t, rng &) { std::fill_n(row, n, 0); }},
        {"one token away from all others", [](int32_t * row, int64_t n, int64_t token, int64_t e, rng &) { std::fill_n(row, n, token == 0 ? int32_t(e - 1) : 1); }},
        {"random with repeats", [](int32_t * row, int64_t n, int64_t, int64_t e, rng & g) { std::generate_n(row, n, [&] { return int32_t(rng_below(&g, uint64_t(e))); }); }},
    };
    rng r = {81};
    for (const auto & route : routes) {
        for (int64_t m : {1, 2, 33, 150}) {
            for (int64_t x_rows : {1, 4}) {
                id_case c = usual(route.name, m, x_rows, 4);
                c.route = route.route;
                check(c, r);
            }
        }
    }
}

// NaN in an expert that no token chose must not reach a result; a token of zeros gives zeros.
void given_experts_nobody_chose_and_a_token_of_zeros_then_neither_disturbs_the_others() {
    rng r = {82};
    for (ggml_type type : TYPES) {
        const int64_t k = 2 * ggml_blck_size(type), n = 40, m = 40;
        weights w(type, k, 3 * n, r);
        std::fill(w.bytes.begin(), w.bytes.begin() + std::ptrdiff_t(w.bytes.size() / 3), uint8_t(0xff));
        tensors packed(1), ops(3), graph(1);
        ggml_tensor * t = ggml_new_tensor_3d(packed.get(), type, k, n, 3);
        ggml_tensor * x = ggml_new_tensor_3d(ops.get(), GGML_TYPE_F32, k, 1, m), * ids = ggml_new_tensor_2d(ops.get(), GGML_TYPE_I32, 1, m);
        packed.allocate(host.amx);
        ggml_backend_tensor_set(t, w.bytes.data(), 0, w.bytes.size());
        ggml_tensor * y = ggml_mul_mat_id(ops.get(), t, x, ids);
        ops.allocate(host.plain);
        if (!CHECK(ggml_backend_dev_supports_op(host.cpu, y), "%s: not supported", ggml_type_name(type))) {
            continue;
        }
        fill_activations(static_cast<float *>(x->data), k, m, false, r);
        std::fill_n(static_cast<float *>(x->data) + 7 * k, k, 0.0f);
        for (int64_t i = 0; i < m; i++) {
            static_cast<int32_t *>(ids->data)[i] = i % 9 == 0 ? 2 : 1;
        }
        poison(y);
        compute(graph_of(graph.get(), y), 2);
        const std::vector<float> result = floats_of(y);
        CHECK(std::all_of(result.begin(), result.end(), [](float v) { return std::isfinite(v); }), "%s: NaN or infinity in the result", ggml_type_name(type));
        CHECK(std::all_of(result.begin() + 7 * n, result.begin() + 8 * n, [](float v) { return v == 0; }), "%s: zeros give something", ggml_type_name(type));
    }
}

// ---- src1 and weights

void given_any_src1_that_ggml_takes_then_its_strides_are_followed() {
    rng r = {83};
    for (int64_t m : {1, 3, 17, 60}) {
        id_case c = usual("half as many rows as slots", m, 2, 4);
        check(c, r);
        c = usual("tokens as a matrix, reshaped", m, m, 3);
        c.src1.ne[2] = 1;
        c.src1_view = [](ggml_context * x, ggml_tensor * t) { return ggml_reshape_3d(x, t, t->ne[0], 1, t->ne[1]); };
        check(c, r);
        c = usual("tokens and slots permuted", m, m, 3);
        c.src1.ne[2] = 3;
        c.src1_view = [](ggml_context * x, ggml_tensor * t) { return ggml_permute(x, t, 0, 2, 1, 3); };
        check(c, r);
        // rows of K + 3 blocks, taken from the middle, at an offset of one float
        c = usual("odd row stride", m, 3, 3);
        c.src1.ne[0] = 160;
        c.src1_view = [](ggml_context * x, ggml_tensor * t) { return ggml_view_3d(x, t, t->ne[0] / 5 * 2, 3, t->ne[2], t->nb[1], t->nb[2], 4); };
        check(c, r);
        c = usual("half of a gate-and-up row", m, 2, 2);
        c.src1.ne[0] = 128;
        c.src1_view = [](ggml_context * x, ggml_tensor * t) { return ggml_view_3d(x, t, t->ne[0] / 2, t->ne[1], t->ne[2], t->nb[1], t->nb[2], t->nb[1] / 2); };
        check(c, r);
        c = usual("every other token", 2 * m, 1, 2);
        c.ids[1] = m;
        c.src1_view = [](ggml_context * x, ggml_tensor * t) { return ggml_view_3d(x, t, t->ne[0], 1, t->ne[2] / 2, t->nb[1], 2 * t->nb[2], t->nb[2]); };
        check(c, r);
        c = usual("one row for all slots and tokens", m, 1, 3);
        c.src1_view = [](ggml_context * x, ggml_tensor * t) { return ggml_view_3d(x, t, t->ne[0], 1, t->ne[2], t->nb[1], 0, 0); };
        check(c, r);
    }
}

void check_weight_views(views how) {
    const struct {
        const char * name;
        dims weight;
        viewer view;
        bool may_be_refused;
    } cases[] = {
        {"experts 2 to 4 of 7", {{64, 40, 7, 1}}, [](auto * c, auto * w) { return ggml_view_3d(c, w, w->ne[0], w->ne[1], 3, w->nb[1], w->nb[2], 2 * w->nb[2]); }, false},
        {"a matrix reshaped to experts", {{64, 96, 1, 1}}, [](auto * c, auto * w) { return ggml_reshape_3d(c, w, w->ne[0], 32, 3); }, false},
        {"experts that end inside panels", {{64, 60, 1, 1}}, [](auto * c, auto * w) { return ggml_reshape_3d(c, w, w->ne[0], 20, 3); }, false},
        {"inner rows of every expert", {{64, 40, 3, 1}}, [](auto * c, auto * w) { return ggml_view_3d(c, w, w->ne[0], 21, 3, w->nb[1], w->nb[2], 3 * w->nb[1]); }, false},
        {"every other expert", {{64, 32, 6, 1}}, [](auto * c, auto * w) { return ggml_view_3d(c, w, w->ne[0], w->ne[1], 3, w->nb[1], 2 * w->nb[2], 0); }, true},
        {"the first half of the columns", {{128, 40, 3, 1}}, [](auto * c, auto * w) { return ggml_view_3d(c, w, w->ne[0] / 2, w->ne[1], 3, w->nb[1], w->nb[2], 0); }, true},
    };
    rng r = {84};
    for (const auto & v : cases) {
        if (v.may_be_refused && how == views::raw) {
            continue; // nobody asks supports_op about a raw view: what it refuses must not be computed
        }
        for (int64_t m : {1, 4, 50}) {
            id_case c{v.name, v.weight, {{64, 1, m, 1}}, {2, m}};
            c.weight_view = v.view;
            c.route = [](int32_t * row, int64_t n, int64_t token, int64_t, rng & g) { shuffled(row, n, token, 3, g); };
            c.how = how;
            c.may_be_refused = v.may_be_refused;
            check(c, r);
        }
    }
}

void given_views_of_experts_that_the_buffer_knows_then_they_multiply_like_copies() {
    check_weight_views(views::initialised);
}

void given_views_of_experts_that_the_buffer_never_saw_then_they_are_found_through_their_parent() {
    check_weight_views(views::raw);
}

// ---- whole blocks

// Routing, gate, up and down as llama.cpp's build_moe_ffn: ids come out of the graph itself.
std::vector<float> moe_block(const weights & gate, const weights & up, const weights & down, ggml_backend_buffer_type_t buft, int64_t experts, int64_t tokens, int threads) {
    rng r = {86};
    const int64_t k = gate.k, ff = down.k;
    tensors experts_in(3), data(2), ops(24), graph(1);
    ggml_tensor * w[3];
    for (int i = 0; i < 3; i++) {
        w[i] = ggml_new_tensor_3d(experts_in.get(), gate.type, i < 2 ? k : ff, i < 2 ? ff : k, experts);
    }
    ggml_tensor * x = ggml_new_tensor_2d(data.get(), GGML_TYPE_F32, k, tokens), * logits = ggml_new_tensor_2d(data.get(), GGML_TYPE_F32, experts, tokens);
    experts_in.allocate(buft);
    data.allocate(host.plain);
    for (int i = 0; i < 3; i++) {
        const weights & from = i == 0 ? gate : i == 1 ? up : down;
        ggml_backend_tensor_set(w[i], from.bytes.data(), 0, from.bytes.size());
    }
    fill_activations(static_cast<float *>(x->data), k, tokens, false, r);
    fill_activations(static_cast<float *>(logits->data), experts, tokens, false, r);
    ggml_context * c = ops.get();
    ggml_tensor * chosen = ggml_argsort_top_k(c, ggml_soft_max(c, logits), 4);
    ggml_tensor * in = ggml_reshape_3d(c, x, k, 1, tokens);
    ggml_tensor * inner = ggml_mul(c, ggml_silu(c, ggml_mul_mat_id(c, w[0], in, chosen)), ggml_mul_mat_id(c, w[1], in, chosen));
    ggml_tensor * y = ggml_mul_mat_id(c, w[2], inner, chosen);
    ops.allocate(host.plain);
    for (const ggml_tensor * op : {y, inner->src[1]}) {
        if (!CHECK(ggml_backend_dev_supports_op(host.cpu, op), "%s: not supported", ggml_type_name(gate.type))) {
            return std::vector<float>(size_t(ggml_nelements(y)), 0);
        }
    }
    compute(graph_of(graph.get(), y), threads);
    return floats_of(y);
}

void given_a_block_of_experts_then_the_whole_graph_is_right() {
    const int64_t k = 256, ff = 512, experts = 12;
    rng r = {85};
    for (ggml_type type : TYPES) {
        const weights gate(type, k, ff * experts, r), up(type, k, ff * experts, r), down(type, ff, k * experts, r);
        for (int64_t tokens : {1, 40}) {
            const std::vector<float> theirs = moe_block(gate, up, down, host.plain, experts, tokens, 2);
            const std::vector<double> want(theirs.begin(), theirs.end());
            std::vector<float> first;
            for (int threads : THREADS) {
                const std::vector<float> ours = moe_block(gate, up, down, host.amx, experts, tokens, threads);
                first = first.empty() ? ours : first;
                CHECK(same_bits(ours, first), "%s, %lld tokens: other bits with %d threads", ggml_type_name(type), (long long) tokens, threads);
            }
            const double e = nmse(first.data(), want.data(), want.size(), 0);
            CHECK(e <= 1e-3, "%s, %lld tokens: NMSE against the host's graph is %g", ggml_type_name(type), (long long) tokens, e);
        }
    }
}

} // namespace

int main() {
    open();
    RUN(given_ids_with_strides_then_the_gaps_are_not_read);
    RUN(given_experts_that_repeat_or_get_nothing_then_every_slot_is_right);
    RUN(given_experts_nobody_chose_and_a_token_of_zeros_then_neither_disturbs_the_others);
    RUN(given_any_src1_that_ggml_takes_then_its_strides_are_followed);
    RUN(given_views_of_experts_that_the_buffer_knows_then_they_multiply_like_copies);
    RUN(given_views_of_experts_that_the_buffer_never_saw_then_they_are_found_through_their_parent);
    RUN(given_a_block_of_experts_then_the_whole_graph_is_right);
    return harness_report("parity_id_layout_host");
}

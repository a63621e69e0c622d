// MUL_MAT with every layout a model may use: batches and broadcast, permuted and strided src1, views of packed
// weights, and whatever the loader's probe accepts (that must be computed later, there is no way back).
#include "layout.hpp"

#include "child.h"

namespace {

using namespace layout;

// Sizes below are for blocks of 32 (check_case makes them larger for super-blocks): K = 64, mostly N = 40.

void given_batches_and_broadcast_weights_then_every_slice_is_right() {
    const int64_t pairs[][4] = {
        // ne02, ne03, ne12, ne13
        {1, 1, 3, 1}, {1, 1, 2, 3}, {2, 1, 2, 1}, {2, 1, 6, 1}, {2, 3, 2, 3}, {2, 2, 4, 6}, {3, 1, 3, 2}, {1, 2, 2, 4}, {8, 1, 8, 1},
    };
    rng r = {60};
    for (const auto & p : pairs) {
        for (int64_t m : {1, 5, 33}) {
            for (int64_t n : {16, 40}) {
                const std::string name = text("batch %lldx%lld of %lldx%lld, N = %lld", (long long) p[2], (long long) p[3], (long long) p[0], (long long) p[1], (long long) n);
                layout_case c{name.c_str(), {{64, n, p[0], p[1]}}, {{64, m, p[2], p[3]}}};
                check_case(c, r);
            }
        }
    }
}

void given_permuted_activations_then_the_strides_are_followed() {
    rng r = {61};
    for (int64_t m : {1, 2, 17, 40}) {
        // what attention builds: [K, heads, tokens] seen as [K, tokens, heads]
        layout_case heads{"heads as batch", {{64, 40, 3, 1}}, {{64, 3, m, 2}}};
        heads.src1_view = [](ggml_context * c, ggml_tensor * x) { return ggml_permute(c, x, 0, 2, 1, 3); };
        check_case(heads, r);
        heads.name = "heads as batch, one weight for all";
        heads.weight = {{64, 40, 1, 1}};
        check_case(heads, r);
        layout_case outer{"outermost as rows", {{64, 33, 1, 1}}, {{64, 3, 2, m}}};
        outer.src1_view = [](ggml_context * c, ggml_tensor * x) { return ggml_permute(c, x, 0, 3, 2, 1); };
        check_case(outer, r);
        layout_case swapped{"outer two swapped", {{64, 33, 2, 1}}, {{64, m, 3, 4}}};
        swapped.src1_view = [](ggml_context * c, ggml_tensor * x) { return ggml_permute(c, x, 0, 1, 3, 2); };
        check_case(swapped, r);
    }
}

void given_strided_activations_then_the_gaps_are_not_read() {
    rng r = {62};
    for (int64_t m : {1, 3, 16, 65}) {
        // rows of K + 3 blocks, taken from the middle, at an offset of one float
        layout_case odd{"odd row stride", {{64, 40, 1, 1}}, {{160, m, 1, 1}}};
        odd.src1_view = [](ggml_context * c, ggml_tensor * x) { return ggml_view_2d(c, x, x->ne[0] / 5 * 2, x->ne[1], x->nb[1], 4); };
        check_case(odd, r);
        layout_case even{"every other row", {{64, 40, 1, 1}}, {{64, 2 * m, 1, 1}}};
        even.src1_view = [](ggml_context * c, ggml_tensor * x) { return ggml_view_2d(c, x, x->ne[0], x->ne[1] / 2, 2 * x->nb[1], x->nb[1]); };
        check_case(even, r);
        layout_case batch{"strided batch", {{64, 40, 2, 1}}, {{96, m + 2, 5, 1}}};
        batch.src1_view = [](ggml_context * c, ggml_tensor * x) {
            return ggml_view_3d(c, x, x->ne[0] / 3 * 2, x->ne[1] - 2, 4, x->nb[1], x->nb[2], x->nb[2] + x->nb[1] + 12);
        };
        check_case(batch, r);
    }
}

// The weight seen through a view; `how` says whether the view has been shown to the buffer.
void check_weight_views(views how) {
    const struct {
        const char * name;
        dims weight;
        viewer view;
        int64_t ne2;
        bool may_be_refused;
    } cases[] = {
        {"rows 3 to the last but one", {{64, 53, 1, 1}}, [](auto * c, auto * w) { return ggml_view_2d(c, w, w->ne[0], w->ne[1] - 4, w->nb[1], 3 * w->nb[1]); }, 1, false},
        {"one row in the middle", {{64, 53, 1, 1}}, [](auto * c, auto * w) { return ggml_view_2d(c, w, w->ne[0], 1, w->nb[1], 21 * w->nb[1]); }, 1, false},
        {"second half, at a panel", {{64, 64, 1, 1}}, [](auto * c, auto * w) { return ggml_view_2d(c, w, w->ne[0], 32, w->nb[1], 32 * w->nb[1]); }, 1, false},
        {"reshaped to 3-D inside panels", {{64, 40, 1, 1}}, [](auto * c, auto * w) { return ggml_reshape_3d(c, w, w->ne[0], 10, 4); }, 4, false},
        {"reshaped to 3-D at panels", {{64, 64, 1, 1}}, [](auto * c, auto * w) { return ggml_reshape_3d(c, w, w->ne[0], 16, 4); }, 8, false},
        {"slices flattened", {{64, 24, 3, 1}}, [](auto * c, auto * w) { return ggml_reshape_2d(c, w, w->ne[0], w->ne[1] * w->ne[2]); }, 1, false},
        {"the second of three slices", {{64, 24, 3, 1}}, [](auto * c, auto * w) { return ggml_view_2d(c, w, w->ne[0], w->ne[1], w->nb[1], w->nb[2]); }, 1, false},
        {"inner rows of every slice", {{64, 24, 3, 1}}, [](auto * c, auto * w) { return ggml_view_3d(c, w, w->ne[0], 19, w->ne[2], w->nb[1], w->nb[2], 2 * w->nb[1]); }, 3, false},
        {"a view of a view", {{64, 53, 1, 1}}, [](auto * c, auto * w) {
             ggml_tensor * v = ggml_view_2d(c, w, w->ne[0], w->ne[1] - 5, w->nb[1], 5 * w->nb[1]);
             return ggml_view_2d(c, v, w->ne[0], v->ne[1] - 2, v->nb[1], 2 * v->nb[1]); }, 1, false},
        {"every other row", {{64, 40, 1, 1}}, [](auto * c, auto * w) { return ggml_view_2d(c, w, w->ne[0], 20, 2 * w->nb[1], w->nb[1]); }, 1, true},
        {"slices transposed with rows", {{64, 8, 5, 1}}, [](auto * c, auto * w) { return ggml_permute(c, w, 0, 2, 1, 3); }, 8, true},
    };
    rng r = {63};
    for (const auto & v : cases) {
        if (v.may_be_refused && how == views::raw) {
            continue; // nobody asks supports_op about a raw view: what it refuses must not be computed
        }
        for (int64_t m : {1, 4, 33}) {
            layout_case c{v.name, v.weight, {{64, m, v.ne2, 1}}, v.view, as_it_is, how, v.may_be_refused};
            check_case(c, r);
        }
    }
    // half of the columns
    for (int64_t m : how == views::raw ? std::vector<int64_t>{} : std::vector<int64_t>{1, 4, 33}) {
        layout_case c{"the first half of the columns", {{128, 40, 1, 1}}, {{64, m, 1, 1}}, as_it_is, as_it_is, how, true};
        c.weight_view = [](ggml_context * x, ggml_tensor * w) { return ggml_view_2d(x, w, w->ne[0] / 2, w->ne[1], w->nb[1], 0); };
        check_case(c, r);
        c.name = "the second half of the columns";
        c.weight_view = [](ggml_context * x, ggml_tensor * w) { return ggml_view_2d(x, w, w->ne[0] / 2, w->ne[1], w->nb[1], w->nb[1] / 2); };
        check_case(c, r);
    }
}

void given_views_of_weights_that_the_buffer_knows_then_they_multiply_like_copies() {
    check_weight_views(views::initialised);
}

void given_views_of_weights_that_the_buffer_never_saw_then_they_are_found_through_their_parent() {
    check_weight_views(views::raw);
}

// ---- the loader's probe

// What src/llama-model-loader.cpp asks: the weight with a zero-size dummy buffer, src1 without any buffer.
bool probe(ggml_type type, const dims & ne, ggml_op op) {
    tensors t(8);
    ggml_tensor * w = ggml_new_tensor(t.get(), type, 4, ne.ne);
    ggml_tensor * node = nullptr;
    switch (op) {
        case GGML_OP_MUL_MAT:
            node = ggml_mul_mat(t.get(), w, ggml_new_tensor_4d(t.get(), GGML_TYPE_F32, ne.ne[0], 512, ne.ne[2], ne.ne[3]));
            break;
        case GGML_OP_MUL_MAT_ID:
            node = ggml_mul_mat_id(t.get(), w, ggml_new_tensor_3d(t.get(), GGML_TYPE_F32, ne.ne[0], 2, 512), ggml_new_tensor_2d(t.get(), GGML_TYPE_I32, 2, 512));
            break;
        case GGML_OP_GET_ROWS:
            node = ggml_get_rows(t.get(), w, ggml_new_tensor_1d(t.get(), GGML_TYPE_I32, 512));
            break;
        default:
            node = ggml_add(t.get(), ggml_new_tensor(t.get(), GGML_TYPE_F32, 4, ne.ne), w);
    }
    w->buffer = ggml_backend_buft_alloc_buffer(host.amx, 0);
    const bool accepted = ggml_backend_dev_supports_op(host.cpu, node);
    ggml_backend_buffer_free(w->buffer);
    return accepted;
}

void given_weights_the_loader_probes_then_every_matrix_of_our_types_is_accepted_and_nothing_else() {
    for (ggml_type type : TYPES) {
        const int64_t k = 2 * ggml_blck_size(type);
        for (int64_t n : {1, 5, 16, 40, 100}) {
            for (int64_t ne2 : {1, 3}) {
                for (int64_t ne3 : {1, 2}) {
                    CHECK(probe(type, {{k, n, ne2, ne3}}, GGML_OP_MUL_MAT), "%s %lldx%lldx%lldx%lld is refused", ggml_type_name(type), (long long) k,
                          (long long) n, (long long) ne2, (long long) ne3);
                }
            }
        }
        CHECK(!probe(type, {{k, 40, 1, 1}}, GGML_OP_GET_ROWS), "%s is accepted for GET_ROWS: nobody unpacks it", ggml_type_name(type));
        CHECK(!probe(type, {{k, 40, 1, 1}}, GGML_OP_ADD), "%s is accepted for ADD", ggml_type_name(type));
    }
    // BF16 and F16: plain_host.cpp
    CHECK(!probe(GGML_TYPE_F32, {{256, 40, 1, 1}}, GGML_OP_MUL_MAT), "f32 is accepted");
}

// Every weight shape the probe accepts, with every src1 a graph may bring.
void given_a_weight_the_probe_accepted_then_whatever_comes_at_run_time_is_computed() {
    const dims shapes[] = {{{64, 1, 1, 1}}, {{64, 40, 1, 1}}, {{32, 33, 3, 1}}, {{64, 20, 2, 2}}};
    rng r = {64};
    for (const dims & shape : shapes) {
        dims wide = shape;
        wide.ne[0] *= 8; // right for every type
        if (!CHECK(probe(GGML_TYPE_Q4_K, wide, GGML_OP_MUL_MAT) && probe(GGML_TYPE_Q4_0, shape, GGML_OP_MUL_MAT), "the probe refuses")) {
            continue;
        }
        for (int64_t m : {1, 2, 31, 70}) {
            const dims same = {{shape.ne[0], m, shape.ne[2], shape.ne[3]}}, more = {{shape.ne[0], m, 2 * shape.ne[2], 3 * shape.ne[3]}};
            check_case({"probed, src1 as probed", shape, same}, r);
            check_case({"probed, src1 broadcast", shape, more}, r);
            layout_case permuted{"probed, src1 permuted", shape, {{shape.ne[0], shape.ne[2], m, shape.ne[3]}}};
            permuted.src1_view = [](ggml_context * c, ggml_tensor * x) { return ggml_permute(c, x, 0, 2, 1, 3); };
            check_case(permuted, r);
        }
    }
}

// ---- other ops beside ours

// Two packed weights of different sizes and a LoRA adapter (A, B: F16 in ordinary memory) in one graph:
// y = W1 x + B (A x), z = W2 y.
void given_an_adapter_beside_packed_weights_then_the_whole_graph_is_right() {
    const int64_t k = 512, n = 256, n2 = 33, rank = 8, m = 20;
    rng r = {65};
    for (ggml_type type : TYPES) {
        const weights w1(type, k, n, r), w2(type, n, n2, r);
        tensors data(3);
        ggml_tensor * a = ggml_new_tensor_2d(data.get(), GGML_TYPE_F16, k, rank), * b = ggml_new_tensor_2d(data.get(), GGML_TYPE_F16, rank, n);
        ggml_tensor * x = ggml_new_tensor_2d(data.get(), GGML_TYPE_F32, k, m);
        data.allocate(host.plain);
        for (ggml_tensor * t : {a, b}) {
            for (int64_t i = 0; i < ggml_nelements(t); i++) {
                static_cast<ggml_fp16_t *>(t->data)[i] = ggml_fp32_to_fp16(0.05f * rng_normal(&r));
            }
        }
        fill_activations(static_cast<float *>(x->data), k, m, false, r);
        std::vector<float> result[2];
        for (int side = 0; side < 2; side++) {
            tensors both(2), ops(8);
            ggml_tensor * first = ggml_new_tensor_2d(both.get(), type, k, n), * second = ggml_new_tensor_2d(both.get(), type, n, n2);
            both.allocate(side ? host.amx : host.plain);
            ggml_backend_tensor_set(first, w1.bytes.data(), 0, w1.bytes.size());
            ggml_backend_tensor_set(second, w2.bytes.data(), 0, w2.bytes.size());
            ggml_context * c = ops.get();
            ggml_tensor * y = ggml_add(c, ggml_mul_mat(c, first, x), ggml_mul_mat(c, b, ggml_mul_mat(c, a, x)));
            ggml_tensor * z = ggml_mul_mat(c, second, y);
            ops.allocate(host.plain);
            tensors graph(1);
            compute(graph_of(graph.get(), z), 3);
            result[side] = floats_of(z);
        }
        const std::vector<double> want(result[0].begin(), result[0].end());
        const double e = nmse(result[1].data(), want.data(), want.size(), 0);
        CHECK(e <= 1e-3, "%s: NMSE against the host's graph is %g", ggml_type_name(type), e);
    }
}

// Types we store but do not pack: the host computes on them in our buffer with the same bits as in its own.
void given_weights_that_are_stored_plain_then_the_host_multiplies_them_itself() {
    rng r = {68};
    for (ggml_type type : {GGML_TYPE_F32}) {
        const weights w(type, 512, 40, r);
        tensors data(1);
        ggml_tensor * x = ggml_new_tensor_2d(data.get(), GGML_TYPE_F32, 512, 33);
        data.allocate(host.plain);
        fill_activations(static_cast<float *>(x->data), 512, 33, false, r);
        std::vector<float> result[2];
        for (int side = 0; side < 2; side++) {
            tensors weight(1), ops(1), graph(1);
            ggml_tensor * t = ggml_new_tensor_2d(weight.get(), type, 512, 40), * y = ggml_mul_mat(ops.get(), t, x);
            weight.allocate(side ? host.amx : host.plain);
            ops.allocate(host.plain);
            ggml_backend_tensor_set(t, w.bytes.data(), 0, w.bytes.size());
            CHECK(ggml_backend_dev_supports_op(host.cpu, y), "%s: not supported", ggml_type_name(type));
            poison(y);
            compute(graph_of(graph.get(), y), 2);
            result[side] = floats_of(y);
        }
        CHECK(memcmp(result[0].data(), result[1].data(), result[0].size() * sizeof(float)) == 0, "%s: other bits than in the host's own buffer", ggml_type_name(type));
    }
}

// ---- ops we do not support, computed without asking first

struct unsupported {
    ggml_type type;
    ggml_op op; // GET_ROWS or CPY (to F32)
};

// Exit code 0: the result is right; 3: wrong numbers without a word.
int compute_unsupported(void * context) {
    const unsupported u = *static_cast<unsupported *>(context);
    setenv("GGML_NO_BACKTRACE", "1", 1); // ggml would start a debugger
    rng r = {66};
    const weights w(u.type, 256, 40, r);
    std::vector<float> result[2];
    for (int side = 0; side < 2; side++) {
        tensors weight(1), ops(4), graph(1);
        ggml_tensor * t = ggml_new_tensor_2d(weight.get(), u.type, 256, 40);
        weight.allocate(side ? host.amx : host.plain);
        ggml_backend_tensor_set(t, w.bytes.data(), 0, w.bytes.size());
        ggml_context * c = ops.get();
        ggml_tensor * ids = ggml_new_tensor_1d(c, GGML_TYPE_I32, 2);
        ggml_tensor * op = u.op == GGML_OP_GET_ROWS ? ggml_get_rows(c, t, ids) : ggml_cpy(c, t, ggml_new_tensor_2d(c, GGML_TYPE_F32, 256, 40));
        ops.allocate(host.plain);
        const int32_t rows[] = {7, 39};
        ggml_backend_tensor_set(ids, rows, 0, sizeof rows);
        compute(graph_of(graph.get(), op), 1); // OpenMP hangs in a forked child
        result[side] = floats_of(op);
    }
    return result[0] == result[1] ? 0 : 3;
}

void given_an_op_we_do_not_support_then_packed_bytes_are_never_silently_read_as_plain_ones() {
    for (ggml_type type : TYPES) {
        for (ggml_op op : {GGML_OP_GET_ROWS, GGML_OP_CPY}) {
            unsupported u{type, op};
            child c = child_fork(compute_unsupported, &u);
            const bool loud = c.signal == SIGABRT && c.err[0], right = c.signal == 0 && c.code == 0;
            CHECK(loud || right, "%s of %s: signal %d, exit code %d (3 = wrong numbers)\n%s", ggml_op_name(op), ggml_type_name(type), c.signal, c.code, c.err);
            child_free(&c);
        }
    }
}

} // namespace

int main() {
    open();
    RUN(given_batches_and_broadcast_weights_then_every_slice_is_right);
    RUN(given_permuted_activations_then_the_strides_are_followed);
    RUN(given_strided_activations_then_the_gaps_are_not_read);
    RUN(given_views_of_weights_that_the_buffer_knows_then_they_multiply_like_copies);
    RUN(given_views_of_weights_that_the_buffer_never_saw_then_they_are_found_through_their_parent);
    RUN(given_weights_the_loader_probes_then_every_matrix_of_our_types_is_accepted_and_nothing_else);
    RUN(given_a_weight_the_probe_accepted_then_whatever_comes_at_run_time_is_computed);
    RUN(given_an_adapter_beside_packed_weights_then_the_whole_graph_is_right);
    RUN(given_weights_that_are_stored_plain_then_the_host_multiplies_them_itself);
    RUN(given_an_op_we_do_not_support_then_packed_bytes_are_never_silently_read_as_plain_ones);
    return harness_report("parity_layout_host");
}

// Around MUL_MAT_ID: the loader's probe, ids that name no expert, an op driven by hand, and other ops on packed
// experts, which must never be read as plain ones.
#include "ggml-amx.h"

#include "experts.hpp"

#include "child.h"

#include <ggml-cpu-impl.h>

namespace {

using namespace experts;

// ---- the loader's probe

// What src/llama-model-loader.cpp asks: the weight with a zero-size dummy buffer, src1 and ids without any.
bool probe(ggml_op op, ggml_type type, int64_t k, int64_t n, int64_t experts, int64_t used, ggml_type src1 = GGML_TYPE_F32) {
    tensors t(8);
    ggml_context * c = t.get();
    ggml_tensor * w = ggml_new_tensor_3d(c, type, k, n, experts), * node = nullptr;
    ggml_tensor * x = ggml_new_tensor_3d(c, src1, k, used, 512), * ids = ggml_new_tensor_2d(c, GGML_TYPE_I32, used, 512);
    switch (op) {
        case GGML_OP_MUL_MAT_ID: node = ggml_mul_mat_id(c, w, x, ids); break;
        case GGML_OP_MUL_MAT: node = ggml_mul_mat(c, w, ggml_new_tensor_4d(c, src1, k, 512, experts, 1)); break;
        case GGML_OP_ADD_ID: node = ggml_add_id(c, x, w, ids); break;
        case GGML_OP_GET_ROWS: node = ggml_get_rows(c, w, ggml_new_tensor_2d(c, GGML_TYPE_I32, 512, experts)); break;
        case GGML_OP_OUT_PROD: node = ggml_out_prod(c, w, ggml_new_tensor_3d(c, src1, 16, n, experts)); break;
        default: node = ggml_add(c, ggml_new_tensor_3d(c, GGML_TYPE_F32, k, n, experts), w); break;
    }
    w->buffer = ggml_backend_buft_alloc_buffer(host.amx, 0);
    const bool accepted = ggml_backend_dev_supports_op(host.cpu, node);
    ggml_backend_buffer_free(w->buffer);
    return accepted;
}

void given_experts_the_loader_probes_then_every_shape_of_our_types_is_accepted_and_nothing_else() {
    for (ggml_type type : TYPES) {
        const char * name = ggml_type_name(type);
        for (int64_t blocks : {1, 2, 3, 8}) {
            for (int64_t n : {1, 5, 16, 33, 768}) {
                for (int64_t experts : {1, 2, 8, 257}) {
                    for (int64_t used : {1, 2, 8, 10}) {
                        CHECK(probe(GGML_OP_MUL_MAT_ID, type, blocks * ggml_blck_size(type), n, experts, used), "%s, %lld blocks, N %lld, %lld of %lld experts: refused",
                              name, (long long) blocks, (long long) n, (long long) used, (long long) experts);
                    }
                }
            }
        }
        for (ggml_op op : {GGML_OP_ADD_ID, GGML_OP_GET_ROWS, GGML_OP_OUT_PROD, GGML_OP_ADD}) {
            CHECK(!probe(op, type, 512, 40, 4, 2), "%s is accepted for %s: nobody unpacks it", name, ggml_op_name(op));
        }
        for (ggml_type src1 : {GGML_TYPE_F16, GGML_TYPE_BF16}) {
            CHECK(!probe(GGML_OP_MUL_MAT_ID, type, 512, 40, 4, 2, src1), "%s is accepted with %s activations", name, ggml_type_name(src1));
        }
    }
    CHECK(!probe(GGML_OP_MUL_MAT_ID, GGML_TYPE_F32, 256, 40, 4, 2), "f32 is accepted");
}

// Experts in the buffer type to test or in an ordinary one, and one op on them.
struct product {
    tensors in{1}, ops{5}, graph{1};
    ggml_tensor * experts, * x, * ids, * y;

    product(ggml_backend_buffer_type_t buft, const weights & w, int64_t n_experts, int64_t used, int64_t x_rows, int64_t tokens) {
        experts = ggml_new_tensor_3d(in.get(), w.type, w.k, w.rows / n_experts, n_experts);
        in.allocate(buft);
        ggml_backend_tensor_set(experts, w.bytes.data(), 0, w.bytes.size());
        x = ggml_new_tensor_3d(ops.get(), GGML_TYPE_F32, w.k, x_rows, tokens);
        ids = ggml_new_tensor_2d(ops.get(), GGML_TYPE_I32, used, tokens);
        y = ggml_mul_mat_id(ops.get(), experts, x, ids);
        ops.allocate(host.plain);
        rng r = {95};
        fill_activations(static_cast<float *>(x->data), w.k, x_rows * tokens, false, r);
        for (int64_t i = 0; i < tokens; i++) {
            const std::vector<int32_t> chosen = choose(used, n_experts, r);
            std::copy(chosen.begin(), chosen.end(), static_cast<int32_t *>(ids->data) + i * used);
        }
    }

    std::vector<float> run(int threads) {
        poison(y);
        compute(graph_of(graph.get(), y), threads);
        return floats_of(y);
    }
};

// Every shape the probe accepts; there is no way back at run time.
void given_a_shape_the_probe_accepted_then_it_is_computed() {
    rng r = {96};
    for (ggml_type type : TYPES) {
        bound::row pool;
        for (int64_t blocks : {1, 3}) {
            for (int64_t n : {1, 5, 33}) {
                for (int64_t experts : {1, 3}) {
                    const weights w(type, blocks * ggml_blck_size(type), n * experts, r);
                    for (int64_t used : {int64_t(1), experts}) {
                        for (int64_t x_rows : {int64_t(1), used}) {
                            product ours(host.amx, w, experts, used, x_rows, 20), theirs(host.plain, w, experts, used, x_rows, 20);
                            const std::string what = text("%s, %lld blocks, N %lld, %lld of %lld experts", ggml_type_name(type), (long long) blocks, (long long) n,
                                                          (long long) used, (long long) experts);
                            if (CHECK(ggml_backend_dev_supports_op(host.cpu, ours.y), "%s: not supported", what.c_str())) {
                                check_op(ours.y, theirs.y, follow_strides(theirs.y), w.own_error(), pool, what);
                            }
                        }
                    }
                }
            }
        }
    }
}

// ggml skips ops without elements; the plan still asks for a work size.
void given_no_tokens_then_nothing_happens() {
    rng r = {97};
    for (ggml_type type : TYPES) {
        const weights w(type, 256, 80, r);
        tensors in(1), t(4), graph(1);
        ggml_tensor * experts = ggml_new_tensor_3d(in.get(), type, 256, 40, 2), * one = ggml_new_tensor_1d(t.get(), GGML_TYPE_F32, 1);
        in.allocate(host.amx);
        ggml_backend_tensor_set(experts, w.bytes.data(), 0, w.bytes.size());
        ggml_tensor * y = ggml_mul_mat_id(t.get(), experts, ggml_new_tensor_3d(t.get(), GGML_TYPE_F32, 256, 1, 0), ggml_new_tensor_2d(t.get(), GGML_TYPE_I32, 2, 0));
        t.allocate(host.plain);
        poison(one);
        compute(graph_of(graph.get(), y), 2);
        uint32_t bits;
        memcpy(&bits, one->data, sizeof bits);
        CHECK(bits == 0xffffffff, "%s: something was written", ggml_type_name(type));
    }
}

// One thread by hand, in a work buffer of exactly the size asked for, at an odd address.
void given_an_op_driven_by_hand_then_its_bits_are_those_of_the_graph() {
    rng r = {98};
    for (ggml_type type : TYPES) {
        const weights w(type, 512, 8 * 70, r);
        for (int64_t tokens : {1, 5, 90}) {
            for (int64_t x_rows : {1, 3}) {
                product p(host.amx, w, 8, 3, x_rows, tokens);
                size_t size = 0, more = 0;
                const std::string what = text("%s, %lld tokens with %lld rows", ggml_type_name(type), (long long) tokens, (long long) x_rows);
                if (!CHECK(ggml_backend_amx_work_size(1, p.y, &size) && ggml_backend_amx_work_size(8, p.y, &more), "%s: no work size", what.c_str())) {
                    continue;
                }
                CHECK(more >= size, "%s: %zu bytes for 8 threads, %zu for one", what.c_str(), more, size);
                const std::vector<float> want = p.run(1);
                poison(p.y);
                std::vector<uint8_t> work(size + 2, uint8_t(0xa5));
                ggml_compute_params params = {};
                params.nth = 1, params.wdata = work.data() + 1, params.wsize = size;
                CHECK(ggml_backend_amx_compute_forward(&params, p.y), "%s: not computed", what.c_str());
                CHECK(same_bits(floats_of(p.y), want), "%s: other bits than the graph", what.c_str());
                CHECK(work.front() == 0xa5 && work.back() == 0xa5, "%s: written outside the work buffer", what.c_str());
            }
        }
    }
}

// ---- ids that name no expert

struct bad_id {
    int32_t id;
    int64_t tokens, token, slot;
};

int compute_bad_id(void * context) {
    const bad_id b = *static_cast<bad_id *>(context);
    setenv("GGML_NO_BACKTRACE", "1", 1); // ggml would start a debugger
    rng r = {99};
    const weights w(GGML_TYPE_Q4_0, 64, 5 * 40, r);
    product p(host.amx, w, 5, 3, 1, b.tokens);
    if (!ggml_backend_dev_supports_op(host.cpu, p.y)) {
        return 3; // the host would read packed bytes
    }
    static_cast<int32_t *>(p.ids->data)[b.token * 3 + b.slot] = b.id;
    p.run(1); // OpenMP hangs in a forked child
    return 0;
}

void given_an_id_that_names_no_expert_then_the_process_ends_and_says_which() {
    if (host.amx == host.plain) {
        harness_skip("ids out of range: the host does not look at them");
        return;
    }
    bad_id cases[] = {{-1, 1, 0, 0}, {5, 1, 0, 2}, {5, 70, 69, 2}, {-7, 70, 0, 1}, {123456789, 70, 30, 0}, {INT32_MAX, 2, 1, 1}, {INT32_MIN, 40, 39, 2}};
    for (bad_id & b : cases) {
        child c = child_fork(compute_bad_id, &b);
        const std::string number = std::to_string(b.id);
        CHECK(c.signal == SIGABRT, "id %d of token %lld: signal %d, exit code %d (3 = not supported)\n%s", b.id, (long long) b.token, c.signal, c.code, c.err);
        CHECK(strstr(c.err, "MUL_MAT_ID") && strstr(c.err, number.c_str()), "id %d is not named: %s", b.id, c.err);
        child_free(&c);
    }
}

// ---- other ops on packed experts

void given_one_expert_as_a_matrix_then_mul_mat_takes_it() {
    rng r = {100};
    for (ggml_type type : TYPES) {
        const int64_t k = 2 * ggml_blck_size(type), n = 40;
        const weights w(type, k, 3 * n, r);
        product ours(host.amx, w, 3, 2, 1, 17), theirs(host.plain, w, 3, 2, 1, 17);
        std::vector<float> result[2];
        for (product * p : {&ours, &theirs}) {
            tensors ops(3), graph(1);
            ggml_tensor * e = ggml_view_2d(ops.get(), p->experts, k, n, p->experts->nb[1], 2 * p->experts->nb[2]);
            ggml_tensor * y = ggml_mul_mat(ops.get(), e, ggml_reshape_2d(ops.get(), p->x, k, 17));
            CHECK(ggml_backend_view_init(e) == GGML_STATUS_SUCCESS && ggml_backend_view_init(y->src[1]) == GGML_STATUS_SUCCESS, "view_init");
            ops.allocate(host.plain);
            CHECK(ggml_backend_dev_supports_op(host.cpu, y), "%s: not supported", ggml_type_name(type));
            poison(y);
            compute(graph_of(graph.get(), y), 2);
            result[p == &theirs] = floats_of(y);
        }
        const std::vector<double> want(result[1].begin(), result[1].end());
        const double e = nmse(result[0].data(), want.data(), want.size(), 0);
        CHECK(e <= 1e-3, "%s: NMSE against the host's is %g", ggml_type_name(type), e);
    }
}

// Types we store but do not pack: the host computes on them in our buffer with the same bits as in its own.
void given_experts_that_are_stored_plain_then_the_host_multiplies_them_itself() {
    rng r = {101};
    for (ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16}) {
        const weights w(type, 256, 120, r);
        product ours(host.amx, w, 3, 2, 1, 17), theirs(host.plain, w, 3, 2, 1, 17);
        CHECK(ggml_backend_dev_supports_op(host.cpu, ours.y), "%s: not supported", ggml_type_name(type));
        CHECK(same_bits(ours.run(2), theirs.run(2)), "%s: other bits than in the host's own buffer", ggml_type_name(type));
    }
}

} // namespace

int main() {
    open();
    RUN(given_an_id_that_names_no_expert_then_the_process_ends_and_says_which); // forks: before other threads exist
    RUN(given_experts_the_loader_probes_then_every_shape_of_our_types_is_accepted_and_nothing_else);
    RUN(given_a_shape_the_probe_accepted_then_it_is_computed);
    RUN(given_no_tokens_then_nothing_happens);
    RUN(given_an_op_driven_by_hand_then_its_bits_are_those_of_the_graph);
    RUN(given_one_expert_as_a_matrix_then_mul_mat_takes_it);
    RUN(given_experts_that_are_stored_plain_then_the_host_multiplies_them_itself);
    return harness_report("surface_id_host");
}

// ik_llama.cpp: graphs that use addresses and weights again, the host's allocator and scheduler, and several contexts
// at once.
#include "ik.hpp"

#include <atomic>
#include <thread>

#ifdef __SANITIZE_ADDRESS__
// A leak of the host's own, in ggml_backend_sched_free.
extern "C" const char * __lsan_default_suppressions();
extern "C" const char * __lsan_default_suppressions() {
    return "leak:ggml_backend_sched_new";
}
#endif

namespace {

using namespace ik;

// Nodes that lie at the same address, one after the other, with the same weights: each must get its own product.
void given_the_same_weights_and_result_address_in_one_graph_when_sizes_differ_then_each_is_right() {
    rng r = {27};
    const known a(GGML_TYPE_Q4_0, 256, 48, 64, r), g(GGML_TYPE_Q4_0, 256, 48, 64, r);
    for (home h : {home::in_place, home::packed}) {
        for (const std::vector<int64_t> & counts : {std::vector<int64_t>{4, 40, 4}, {40, 4, 40}, {4, 40}, {40, 40}, {15, 16, 17}}) {
            for (int kind = 0; kind < 3; kind++) { // MUL_MAT, MUL_MAT_ID, FUSED_UP_GATE
                const weight w(h, a.m, 48, 1, 1, kind == 1 ? "ffn_up_exps" : "ffn_up"), gate(h, g.m, 48, 1, 1, "ffn_gate");
                tensors t(64), results(1, 0);
                ggml_tensor * arena = ggml_new_tensor_1d(results.get(), GGML_TYPE_F32, 64 * 48);
                results.allocate();
                std::vector<ggml_tensor *> nodes, xs, copies, all;
                for (size_t i = 0; i < counts.size(); i++) {
                    ggml_tensor * x = ggml_new_tensor_3d(t.get(), GGML_TYPE_F32, 256, kind == 1 ? 1 : counts[i], kind == 1 ? counts[i] : 1);
                    ggml_tensor * ids = ggml_new_tensor_2d(t.get(), GGML_TYPE_I32, 1, counts[i]);
                    ggml_set_name(ids, "ids");
                    ggml_tensor * y = kind == 0   ? ggml_mul_mat(t.get(), w, x)
                                      : kind == 1 ? ggml_mul_mat_id(t.get(), w, x, ids)
                                                  : ggml_fused_up_gate(t.get(), w, gate, x, GGML_UNARY_OP_RELU);
                    ggml_backend_tensor_alloc(results.buffer.get(), y, arena->data);
                    ggml_tensor * copy = ggml_cont(t.get(), y);
                    nodes.push_back(y), xs.push_back(x), copies.push_back(copy);
                    all.push_back(y), all.push_back(copy);
                }
                t.allocate();
                for (size_t i = 0; i < xs.size(); i++) {
                    memcpy(xs[i]->data, a.p.row(int64_t(7 * i)), ggml_nbytes(xs[i]));
                }
                for (ggml_tensor * at = ggml_get_first_tensor(t.get()); at; at = ggml_get_next_tensor(t.get(), at)) {
                    if (strcmp(at->name, "ids") == 0) {
                        memset(at->data, 0, ggml_nbytes(at));
                    }
                }
                ggml_cgraph * graph = graph_of(t.get(), all);
                for (int threads : THREADS) {
                    poison(arena);
                    std::for_each(copies.begin(), copies.end(), poison);
                    compute(backend(threads), graph);
                    for (size_t i = 0; i < counts.size(); i++) {
                        reference want;
                        for (int64_t row = int64_t(7 * i); row < int64_t(7 * i) + counts[i]; row++) {
                            for (int64_t j = 0; j < 48; j++) {
                                const double u = a.p.at(row, j);
                                double gated = 0;
                                if (kind == 2) {
                                    product_f64(g.m.floats.data() + 256 * j, a.p.row(row), 256, &gated, 256, 1, 1);
                                }
                                want.add(kind == 2 ? u * std::max(gated, 0.0) : u, kind == 2 ? a.p.size(row, j) * 0.5 : a.p.size(row, j));
                            }
                        }
                        want.independent = double(counts[i] * 48) / (kind == 2 ? 4 : 1);
                        want.e8 = (kind == 2 ? 2 : 1) * a.p.e8;
                        const bool ours = is_ours(h, counts[i], a.m.type);
                        judge(floats_of(copies[i]), want, ours, 1e-3, 2 * a.m.quantisation,
                              text("%s %s, %zu of %zu, %lld rows, %d threads", ggml_op_name(nodes[i]->op), name_of(h), i, counts.size(), (long long) counts[i], threads));
                    }
                }
            }
        }
    }
}

// As a model runs: one allocator, graph after graph, layers with the same addresses.
struct layers {
    static constexpr int64_t K = 256;
    std::vector<matrix> m;
    std::vector<std::unique_ptr<weight>> w;

    layers(home h, rng & r) {
        for (int i = 0; i < 6; i++) {
            m.emplace_back(i % 2 ? GGML_TYPE_Q6_K : GGML_TYPE_Q4_0, K, K, r);
            w.push_back(std::make_unique<weight>(i == 4 ? home::stored : h, m.back(), K));
        }
    }

    // Some layers, each weight used twice; every output is of the size of the input.
    std::vector<float> run(ggml_backend_t on, ggml_gallocr_t allocator, const std::vector<float> & input) const {
        tensors t(64);
        ggml_tensor * x0 = ggml_new_tensor_2d(t.get(), GGML_TYPE_F32, K, int64_t(input.size()) / K), * x = x0;
        ggml_set_input(x0);
        for (int layer = 0; layer < 4; layer++) {
            ggml_tensor * q = ggml_mul_mat(t.get(), *w[0], x), * k = ggml_mul_mat(t.get(), *w[size_t(1 + layer % 2)], x);
            ggml_tensor * h = ggml_add(t.get(), q, k);
            h = ggml_fused_up_gate(t.get(), *w[3], *w[5], h, GGML_UNARY_OP_SILU);
            x = ggml_rms_norm(t.get(), ggml_add(t.get(), x, ggml_mul_mat(t.get(), *w[4], h)), 1e-5f);
        }
        ggml_set_output(x);
        ggml_cgraph * graph = graph_of(t.get(), {x});
        CHECK(ggml_gallocr_alloc_graph(allocator, graph), "the graph was not allocated");
        memcpy(x0->data, input.data(), ggml_nbytes(x0));
        compute(on, graph);
        return floats_of(x);
    }
};

void given_graph_after_graph_when_addresses_are_used_again_then_as_the_first_time() {
    rng r = {28};
    std::vector<std::vector<float>> inputs;
    for (int64_t rows : {33, 1, 20, 2, 16, 15}) {
        inputs.push_back(activations(layers::K, rows, false, r));
    }
    std::vector<std::vector<float>> plain;
    for (home h : {home::host, home::in_place, home::packed}) {
        rng same = {29};
        const layers l(h, same);
        const gallocr_ptr allocator(ggml_gallocr_new(ggml_backend_cpu_buffer_type()));
        std::vector<std::vector<float>> first;
        for (int round = 0; round < 8; round++) {
            for (size_t i = 0; i < inputs.size(); i++) {
                const std::vector<float> got = l.run(backend(THREADS[(size_t(round) + i) % 4]), allocator.get(), inputs[i]);
                if (round == 0) {
                    first.push_back(got);
                }
                if (h == home::packed) {
                    CHECK(same_bits(got, first[i]), "%s: graph %zu, round %d: other bits", name_of(h), i, round);
                }
                if (h != home::host) {
                    double error = 0, size = 0;
                    for (size_t j = 0; j < got.size(); j++) {
                        const double d = double(got[j]) - double(plain[i][j]);
                        error += d * d, size += double(plain[i][j]) * double(plain[i][j]);
                    }
                    CHECK(error / size < 5e-3, "%s: graph %zu, round %d: NMSE %.3g against the host", name_of(h), i, round, error / size);
                }
            }
        }
        if (h == home::host) {
            plain = first;
        }
    }
}

void given_several_contexts_when_they_compute_at_once_then_the_bits_of_a_single_one() {
    rng r = {30};
    const layers l(home::packed, r);
    const int64_t sizes[] = {1, 7, 20, 40};
    std::vector<std::vector<float>> inputs, want;
    const gallocr_ptr allocator(ggml_gallocr_new(ggml_backend_cpu_buffer_type()));
    for (int64_t rows : sizes) {
        inputs.push_back(activations(layers::K, rows, false, r));
        want.push_back(l.run(backend(1), allocator.get(), inputs.back()));
    }
    std::vector<std::thread> threads;
    for (int context = 0; context < 3; context++) {
        threads.emplace_back([&, context] {
            const gallocr_ptr own(ggml_gallocr_new(ggml_backend_cpu_buffer_type()));
            const backend_ptr on(ggml_backend_cpu_init());
            for (int round = 0; round < 40; round++) {
                ggml_backend_cpu_set_n_threads(on.get(), 1 + (round + context) % 3);
                const size_t i = size_t(round * 3 + context) % inputs.size();
                const std::vector<float> got = l.run(on.get(), own.get(), inputs[i]);
                // w[4] is computed by the host if rows are few, whose bits may depend on the number of threads
                double worst = 0;
                for (size_t j = 0; j < got.size(); j++) {
                    worst = std::max(worst, double(std::fabs(got[j] - want[i][j])));
                }
                CHECK(same_bits(got, want[i]), "context %d, round %d, %lld rows: other bits, by %g", context, round, (long long) sizes[i], worst);
            }
        });
    }
    for (std::thread & t : threads) {
        t.join();
    }
}

// A model is loaded and unloaded again and again while others compute. Every context has packed weights of its own in
// the same table.
void given_many_contexts_when_models_come_and_go_then_the_bits_of_a_single_one() {
    constexpr int CONTEXTS = 40;
    rng r = {34};
    const layers l(home::packed, r);
    const std::vector<float> input = activations(layers::K, 7, false, r);
    const gallocr_ptr allocator(ggml_gallocr_new(ggml_backend_cpu_buffer_type()));
    const std::vector<float> want = l.run(backend(1), allocator.get(), input);
    std::atomic<int> computing{CONTEXTS};
    std::vector<std::thread> threads;
    for (int context = 0; context < CONTEXTS; context++) {
        threads.emplace_back([&] {
            const gallocr_ptr own(ggml_gallocr_new(ggml_backend_cpu_buffer_type()));
            const backend_ptr on(ggml_backend_cpu_init());
            ggml_backend_cpu_set_n_threads(on.get(), 1);
            for (int round = 0; round < 20; round++) {
                CHECK(same_bits(l.run(on.get(), own.get(), input), want), "round %d: other bits", round);
            }
            computing--;
        });
    }
    threads.emplace_back([&] {
        rng own = {35};
        const known a(GGML_TYPE_Q4_0, 256, 48, 4, own);
        while (computing > 0) {
            const weight w(home::packed, a.m, 48);
            std::vector<uint8_t> back(a.m.bytes.size());
            ggml_backend_tensor_get(w, back.data(), 0, back.size());
            CHECK(back == a.m.bytes, "other bytes");
        }
    });
    for (std::thread & t : threads) {
        t.join();
    }
}

// Most of these threads take no part in our products.
void given_many_more_threads_than_cores_when_a_graph_runs_then_the_bits_of_one() {
    rng r = {36};
    for (home h : {home::packed, home::in_place}) {
        const layers l(h, r);
        const gallocr_ptr allocator(ggml_gallocr_new(ggml_backend_cpu_buffer_type()));
        for (int64_t rows : {1, 20}) {
            const std::vector<float> input = activations(layers::K, rows, false, r);
            const std::vector<float> want = l.run(backend(1), allocator.get(), input);
            for (int round = 0; round < 5; round++) {
                const std::vector<float> got = l.run(backend(64), allocator.get(), input);
                double error = 0, size = 0;
                for (size_t j = 0; j < got.size(); j++) {
                    const double d = double(got[j]) - double(want[j]);
                    error += d * d, size += double(want[j]) * double(want[j]);
                }
                // Results of the host may have other bits.
                CHECK(h == home::packed ? same_bits(got, want) : error <= 1e-4 * size, "%s, %lld rows, round %d", name_of(h), (long long) rows, round);
            }
        }
    }
}

// The scheduler: our buffer belongs to the CPU, so nothing is copied.
void given_a_scheduler_when_weights_are_packed_then_one_split_and_right() {
    rng r = {31};
    const known a(GGML_TYPE_Q4_K, 256, 48, 20, r);
    const weight w(home::packed, a.m, 48);
    ggml_backend_t cpu = backend(2);
    ggml_backend_sched_t sched = ggml_backend_sched_new(&cpu, nullptr, 1, GRAPH_NODES, false);
    tensors t(8);
    ggml_tensor * x = ggml_new_tensor_2d(t.get(), GGML_TYPE_F32, 256, 20);
    ggml_set_input(x);
    ggml_tensor * y = ggml_mul_mat(t.get(), w, x);
    ggml_set_output(y);
    ggml_cgraph * graph = graph_of(t.get(), {y});
    if (CHECK(ggml_backend_sched_alloc_graph(sched, graph), "not allocated")) {
        CHECK(ggml_backend_sched_get_n_splits(sched) == 1, "%d splits", ggml_backend_sched_get_n_splits(sched));
        ggml_backend_tensor_set(x, a.p.x.data(), 0, ggml_nbytes(x));
        CHECK(ggml_backend_sched_graph_compute(sched, graph) == GGML_STATUS_SUCCESS, "not computed");
        judge(floats_of(y), a.p.first(48, 20), true, 1e-4, a.m.quantisation, "scheduler");
    }
    ggml_backend_sched_free(sched);
}

} // namespace

int main() {
    open();
    RUN(given_the_same_weights_and_result_address_in_one_graph_when_sizes_differ_then_each_is_right);
    RUN(given_graph_after_graph_when_addresses_are_used_again_then_as_the_first_time);
    RUN(given_several_contexts_when_they_compute_at_once_then_the_bits_of_a_single_one);
    RUN(given_many_contexts_when_models_come_and_go_then_the_bits_of_a_single_one);
    RUN(given_many_more_threads_than_cores_when_a_graph_runs_then_the_bits_of_one);
    RUN(given_a_scheduler_when_weights_are_packed_then_one_split_and_right);
    return harness_report("ik_graph_host");
}

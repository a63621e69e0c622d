// Products in difficult company: far more threads than cores, other threads that compute or load at the same time,
// threads older than the AMX permission, foreign tile state, forked children, and threads with tiny signal stacks.
#include "parity.hpp"

#include "child.h"

#include <atomic>
#include <thread>

namespace {

using namespace parity;

// One product with a packed weight. run() must give the same bits every time.
struct product {
    weights w;
    tensors packed{1}, ops{4}, graph_context{1};
    ggml_tensor * weight, * y;
    ggml_cgraph * graph;

    product(ggml_type type, int64_t k, int64_t n, int64_t m, uint64_t seed) : product(type, k, n, m, rng{seed}) {}

    product(ggml_type type, int64_t k, int64_t n, int64_t m, rng r) : w(type, k, n, r) {
        weight = ggml_new_tensor_2d(packed.get(), type, k, n);
        packed.allocate(host.amx);
        ggml_backend_tensor_set(weight, w.bytes.data(), 0, w.bytes.size());
        ggml_tensor * x = ggml_new_tensor_2d(ops.get(), GGML_TYPE_F32, k, m);
        y = ggml_mul_mat(ops.get(), weight, x);
        ops.allocate(host.plain);
        fill_activations(static_cast<float *>(x->data), k, m, false, r);
        graph = graph_of(graph_context.get(), y);
    }

    std::vector<float> run(int n_threads) { return run_on(backend(n_threads)); }

    std::vector<float> run_on(ggml_backend_t on) {
        poison(y);
        CHECK(ggml_backend_graph_compute(on, graph) == GGML_STATUS_SUCCESS, "graph compute");
        return floats_of(y);
    }
};

ggml_backend_ptr new_backend(int n_threads) {
    ggml_backend_ptr on(ggml_backend_dev_init(host.cpu, nullptr));
    host.set_n_threads(on.get(), n_threads);
    return on;
}

void given_two_contexts_that_compute_at_once_while_a_third_thread_loads_then_nobody_disturbs_anybody() {
    for (ggml_type type : TYPES) {
        product one(type, 512, 100, 70, 70), two(type, 256, 200, 3, 71);
        const std::vector<float> want_one = one.run(2), want_two = two.run(2);
        std::atomic<bool> stop{false};
        std::thread loader([&] {
            rng r = {72};
            std::vector<uint8_t> bytes(one.w.bytes.size()), back(bytes.size());
            while (!stop) {
                tensors t(1);
                ggml_tensor * w = ggml_new_tensor_2d(t.get(), type, 512, 100);
                t.allocate(host.amx);
                rng_bytes(&r, bytes.data(), bytes.size());
                ggml_backend_tensor_set(w, bytes.data(), 0, bytes.size());
                ggml_backend_tensor_get(w, back.data(), 0, back.size());
                CHECK(bytes == back, "%s: what was loaded meanwhile reads back differently", ggml_type_name(type));
            }
        });
        auto worker = [&](product & p, const std::vector<float> & want) {
            const ggml_backend_ptr on = new_backend(2);
            for (int i = 0; i < 25; i++) {
                CHECK(same_bits(p.run_on(on.get()), want), "%s: run %d differs from the run alone", ggml_type_name(type), i);
            }
        };
        std::thread a(worker, std::ref(one), std::cref(want_one)), b(worker, std::ref(two), std::cref(want_two));
        a.join();
        b.join();
        stop = true;
        loader.join();
    }
}

// As in a container with a quota: threads wait for others that do not run just now.
void given_far_more_threads_than_cores_then_the_bits_of_one() {
    for (ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_Q6_K}) {
        for (int64_t m : {1, 33}) {
            product p(type, 512, 1000, m, 74);
            const std::vector<float> want = p.run(1);
            for (int threads : {16, 64}) {
                for (int i = 0; i < 3; i++) {
                    CHECK(same_bits(p.run(threads), want), "%s M %lld: other bits with %d threads", ggml_type_name(type), (long long) m, threads);
                }
            }
        }
    }
}

// ---- threads older than the permission

std::atomic<int> old_thread_step{0};
std::function<void()> old_thread_work;

// Started before the host is opened; computes when it is told to.
void old_thread() {
    while (old_thread_step != 1) {
        std::this_thread::yield();
    }
    old_thread_work();
    old_thread_step = 2;
}

void given_a_thread_older_than_the_amx_permission_then_it_computes_like_the_others() {
    product p(GGML_TYPE_Q4_0, 512, 100, 70, 73);
    const std::vector<float> want = p.run(1);
    old_thread_work = [&] {
        const ggml_backend_ptr on = new_backend(1); // one thread: the caller computes
        CHECK(same_bits(p.run_on(on.get()), want), "the old thread computes other bits");
    };
    old_thread_step = 1;
    while (old_thread_step != 2) {
        std::this_thread::yield();
    }
}

// ---- foreign tile state

// LDTILECFG's operand (Intel SDM, "TILECFG Memory Layout").
struct alignas(64) tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_per_row[16];
    uint8_t rows[16];
};
static_assert(sizeof(tile_config) == 64, "LDTILECFG reads 64 bytes");

// Does the kernel let this process use tile data? (ARCH_GET_XCOMP_PERM, bit 18)
bool tiles_permitted() {
    uint64_t permitted = 0;
    return syscall(SYS_arch_prctl, 0x1022, &permitted) == 0 && (permitted >> 18 & 1);
}

// False, with a SKIPPED line, where there is no tile state to disturb.
bool tiles_are_in_use() {
    if (tiles_permitted()) {
        return true;
    }
    const char * ceiling = getenv("GGML_AMX_ISA");
    CHECK(!host_has_amx() || (ceiling && strcmp(ceiling, "amx") != 0), "an AMX CPU, a buffer type, but no permission for tile data");
    harness_skip("no tile state in this process");
    return false;
}

// Another library's odd configuration, with its data left in the tiles.
void leave_foreign_tiles() {
    tile_config config = {};
    config.palette = 1;
    for (int i = 0; i < 8; i++) {
        config.bytes_per_row[i] = uint16_t(4 * (i + 1));
        config.rows[i] = uint8_t(i + 1);
    }
    alignas(64) uint8_t data[16 * 64];
    memset(data, 0x7f, sizeof data);
    __asm__ volatile("ldtilecfg %0\n\t"
                     "tileloadd (%1,%2,1), %%tmm0\n\t"
                     "tileloadd (%1,%2,1), %%tmm3\n\t"
                     "tileloadd (%1,%2,1), %%tmm7\n\t"
                     :
                     : "m"(config), "r"(data), "r"(uint64_t(64))
                     : "memory");
}

bool tiles_are_released() {
    tile_config config;
    memset(&config, 0xff, sizeof config);
    __asm__ volatile("sttilecfg %0" : "=m"(config) : : "memory");
    const uint8_t * bytes = reinterpret_cast<const uint8_t *>(&config);
    return std::all_of(bytes, bytes + sizeof config, [](uint8_t b) { return b == 0; });
}

void given_foreign_tile_state_before_an_op_then_the_result_is_the_same() {
    if (!tiles_are_in_use()) {
        return;
    }
    for (ggml_type type : TYPES) {
        for (int64_t m : {1, 3, 16, 33, 200}) {
            product p(type, 512, 70, m, 74);
            const std::vector<float> want = p.run(1);
            leave_foreign_tiles();
            CHECK(same_bits(p.run(1), want), "%s M %lld: foreign tiles changed the result", ggml_type_name(type), (long long) m);
        }
    }
    __asm__ volatile("tilerelease");
}

void given_an_op_that_ended_then_its_tiles_are_released() {
    if (!tiles_are_in_use()) {
        return;
    }
    for (ggml_type type : TYPES) {
        for (int64_t m : {1, 16, 64}) {
            product p(type, 512, 70, m, 75);
            p.run(1);
            CHECK(tiles_are_released(), "%s M %lld: tile state is left behind: context switches and idle power pay for it", ggml_type_name(type), (long long) m);
        }
    }
}

// ---- other processes

struct fork_work {
    product * p;
    const std::vector<float> * want;
};

// One thread: OpenMP, where the host uses it, does not survive fork() with more.
int compute_in_child(void * context) {
    const fork_work * work = static_cast<const fork_work *>(context);
    const ggml_backend_ptr on = new_backend(1);
    return same_bits(work->p->run_on(on.get()), *work->want) ? 0 : 3;
}

// Our own threads are gone in a child too: loading must not wait for them.
int load_and_compute_in_child(void * context) {
    const int code = compute_in_child(context);
    const fork_work * work = static_cast<const fork_work *>(context);
    product again(work->p->w.type, work->p->w.k, work->p->w.rows, 70, 76);
    std::vector<uint8_t> back(again.w.bytes.size());
    ggml_backend_tensor_get(again.weight, back.data(), 0, back.size());
    const ggml_backend_ptr on = new_backend(1);
    return code ? code : back != again.w.bytes ? 4 : same_bits(again.run_on(on.get()), *work->want) ? 0 : 5;
}

void given_a_fork_then_the_child_loads_and_computes_like_its_parent() {
    for (ggml_type type : TYPES) {
        product p(type, 2048, 1000, 70, 76); // large enough to be packed by several threads
        const std::vector<float> want = p.run(1);
        fork_work work = {&p, &want};
        child first = child_fork(compute_in_child, &work), second = child_fork(load_and_compute_in_child, &work);
        CHECK(first.signal == 0 && first.code == 0, "%s compute: signal %d (14: it hangs), exit code %d\n%s", ggml_type_name(type), first.signal, first.code, first.err);
        CHECK(second.signal == 0 && second.code == 0, "%s load: signal %d (14: it hangs), exit code %d (4 read back, 5 result)\n%s", ggml_type_name(type),
              second.signal, second.code, second.err);
        child_free(&first);
        child_free(&second);
        CHECK(same_bits(p.run(1), want), "%s: the parent computes other bits afterwards", ggml_type_name(type));
    }
}

// Child program: a thread with a signal stack of 2 KiB sleeps while the library is asked for the first time.
// Exit codes: 0 = works, 1 = failed checks, 10 = no buffer type, 11 = the kernel takes no such stack.
int with_a_tiny_signal_stack() {
    harness_test = "with_a_tiny_signal_stack";
    std::atomic<int> state{0};
    std::thread sleeper([&] {
        static char memory[2048];
        stack_t stack = {};
        stack.ss_sp = memory;
        stack.ss_size = sizeof memory;
        state = sigaltstack(&stack, nullptr) == 0 ? 1 : 2;
        pause(); // until the process ends
    });
    sleeper.detach();
    while (state == 0) {
        std::this_thread::yield();
    }
    if (state == 2) {
        _exit(11);
    }
    host_open();
    int code = 10;
    if (host.amx) {
        product p(GGML_TYPE_Q4_0, 512, 100, 70, 77);
        const std::vector<float> y = p.run(1);
        CHECK(std::all_of(y.begin(), y.end(), [](float v) { return std::isfinite(v); }), "the product has holes");
        code = harness_failed ? 1 : 0;
    }
    fflush(stdout);
    _exit(code);
}

void given_a_thread_with_a_tiny_signal_stack_then_there_is_a_reason_or_a_result_but_no_crash() {
    const char * const env[] = {nullptr};
    child c = child_exec("tiny-signal-stack", env);
    if (c.code == 11) {
        harness_skip("this kernel refuses a signal stack of 2 KiB");
    } else {
        CHECK(c.signal == 0, "killed by signal %d\n%s", c.signal, c.err);
        CHECK(c.code == 0 || c.code == 10, "exit code %d\n%s%s", c.code, c.out, c.err);
        if (c.code == 10) {
            CHECK(count_lines_with(c.err, "ggml-amx:") == 1, "expected one line, got: %s", c.err);
            CHECK(count_lines_with(c.err, "sigaltstack") == 1, "the line does not name the signal stack: %s", c.err);
        }
    }
    child_free(&c);
}

} // namespace

int main(int argc, char **) {
    if (argc > 1) {
        return with_a_tiny_signal_stack();
    }
    std::thread(old_thread).detach();
    open();
    RUN(given_a_thread_older_than_the_amx_permission_then_it_computes_like_the_others);
    RUN(given_foreign_tile_state_before_an_op_then_the_result_is_the_same);
    RUN(given_an_op_that_ended_then_its_tiles_are_released);
    RUN(given_a_fork_then_the_child_loads_and_computes_like_its_parent);
    RUN(given_far_more_threads_than_cores_then_the_bits_of_one);
    RUN(given_two_contexts_that_compute_at_once_while_a_third_thread_loads_then_nobody_disturbs_anybody);
    RUN(given_a_thread_with_a_tiny_signal_stack_then_there_is_a_reason_or_a_result_but_no_crash);
    return harness_report("parity_process_host");
}

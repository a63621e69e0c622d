/* Which weights are packed where memory is short: this is decided when a loader asks, before it allocates. What is
 * asked twice counts once, what is asked without allocating changes nothing, and what was accepted can be allocated.
 * Packed memory is locked where the host locks its own. */
#define _GNU_SOURCE
#include "host.h"

#include "child.h"

#include <sys/resource.h>

enum { N = 40, MIB = 1 << 20 };

/* Asks about weights of 4 MiB (Q8_0: 4.25) named after a number, as the loader does. */
static bool ask(struct ggml_context * weights, struct ggml_tensor ** w, int number, bool by_experts) {
    char name[32];
    *w = ggml_new_tensor_2d(weights, GGML_TYPE_Q8_0, 1024, 4096);
    snprintf(name, sizeof name, "blk.%d.ffn_up.weight", number);
    ggml_set_name(*w, name);
    struct ggml_context * ops = host_context(4);
    struct ggml_tensor * op = by_experts ? ggml_mul_mat_id(ops, *w, ggml_new_tensor_3d(ops, GGML_TYPE_F32, 1024, 1, 512), ggml_new_tensor_2d(ops, GGML_TYPE_I32, 1, 512))
                                         : ggml_mul_mat(ops, *w, ggml_new_tensor_2d(ops, GGML_TYPE_F32, 1024, 512));
    (*w)->buffer = ggml_backend_buft_alloc_buffer(host.amx, 0);
    const bool answer = ggml_backend_dev_supports_op(host.cpu, op);
    ggml_backend_buffer_free((*w)->buffer);
    (*w)->buffer = NULL;
    ggml_free(ops);
    return answer;
}

/* Goes through a model of N matrices; the answers as bits. Tensors that are accepted are in `accepted` afterwards. */
static uint64_t pass(struct ggml_context * accepted, int first) {
    struct ggml_context * all = host_context(N), * others = host_context(N);
    uint64_t answers = 0;
    for (int i = 0; i < N; i++) {
        struct ggml_tensor * w;
        if (ask(all, &w, first + i, false)) {
            answers |= (uint64_t) 1 << i;
            ggml_set_name(ggml_dup_tensor(accepted, w), w->name);
        }
        /* a tied output: the same tensor, for another operation */
        if (i == 3) {
            struct ggml_tensor * again;
            CHECK(ask(others, &again, first + i, true) == ((answers >> i & 1) != 0), "another answer for the same tensor");
        }
    }
    ggml_free(others);
    ggml_free(all);
    return answers;
}

static int count(uint64_t answers) {
    return __builtin_popcountll(answers);
}

static void given_enough_memory_then_all_weights_are_accepted(void) {
    struct ggml_context * accepted = host_context(N);
    CHECK(count(pass(accepted, 0)) == N, "some were refused");
    ggml_free(accepted);
}

#ifndef __SANITIZE_ADDRESS__ /* which needs all of the address space, and locks nothing */

/* Bytes of address space in use. */
static size_t mapped(void) {
    size_t pages = 0;
    FILE * file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%zu", &pages) != 1) {
        pages = 0;
    }
    if (file) {
        fclose(file);
    }
    return pages * 4096;
}

/* With room for about half of the model. */
static int in_little_memory(void * unused) {
    (void) unused;
    /* A tenth stays free, and room for threads. */
    const size_t half = mapped() + (size_t) N / 2 * 17 * MIB / 4, limit = (half + 160 * MIB) / 9 * 10;
    const struct rlimit addresses = {limit, limit};
    setrlimit(RLIMIT_AS, &addresses);
    struct ggml_context * accepted = host_context(N);
    const uint64_t first = pass(accepted, 0);
    CHECK(count(first) > N / 4 && count(first) < N * 3 / 4, "%d of %d were accepted", count(first), N);
    for (int again = 0; again < 3; again++) { /* asks without allocating */
        struct ggml_context * unused_too = host_context(N);
        CHECK(pass(unused_too, 0) == first, "other answers in pass %d", again);
        ggml_free(unused_too);
    }
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(accepted, host.amx);
    CHECK(buffer != NULL, "what was accepted cannot be allocated");
    /* Another model gets what is left; weights that are packed stay packed. */
    struct ggml_context * more = host_context(N);
    CHECK(count(pass(more, 100)) < N / 4, "%d more were accepted", count(pass(more, 200)));
    struct ggml_context * ops = host_context(4);
    struct ggml_tensor * w = ggml_get_first_tensor(accepted);
    CHECK(ggml_backend_dev_supports_op(host.cpu, ggml_mul_mat(ops, w, ggml_new_tensor_2d(ops, GGML_TYPE_F32, 1024, 2))), "a packed tensor is refused");
    ggml_backend_buffer_free(buffer);
    /* Unloaded and loaded again. */
    struct ggml_context * again = host_context(N);
    const int reloaded = count(pass(again, 0));
    CHECK(reloaded >= count(first) - 1, "%d of %d again", reloaded, count(first));
    buffer = ggml_backend_alloc_ctx_tensors_from_buft(again, host.amx);
    CHECK(buffer != NULL, "what was accepted cannot be allocated again");
    ggml_backend_buffer_free(buffer);
    ggml_free(ops);
    ggml_free(again);
    ggml_free(more);
    ggml_free(accepted);
    return harness_report("child");
}

static void given_few_addresses_then_what_fits_is_accepted_and_can_be_allocated(void) {
    struct child c = child_fork(in_little_memory, NULL);
    CHECK(c.signal == 0 && c.code == 0, "signal %d, exit code %d\n%s%s", c.signal, c.code, c.out, c.err);
    CHECK(count_lines_with(c.err, "stay with the host") >= 1 && strstr(c.err, "RLIMIT_AS"), "nobody said why\n%s", c.err);
    child_free(&c);
}

/* kB of locked memory. */
static long locked(void) {
    char line[256];
    long kb = -1;
    FILE * file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file)) {
        if (sscanf(line, "VmLck: %ld", &kb) == 1) {
            break;
        }
    }
    if (file) {
        fclose(file);
    }
    return kb;
}

/* Plans a product on weights of 4.25 MiB in our buffer. */
static void plan_product(void) {
    struct ggml_context * weights = host_context(1), * ops = host_context(4);
    struct ggml_tensor * w = ggml_new_tensor_2d(weights, GGML_TYPE_Q8_0, 1024, 4096);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(weights, host.amx);
    ggml_backend_buffer_clear(buffer, 0);
    struct ggml_cgraph * graph = ggml_new_graph(ops);
    ggml_build_forward_expand(graph, ggml_mul_mat(ops, w, ggml_new_tensor_2d(ops, GGML_TYPE_F32, 1024, 2)));
    ggml_backend_buffer_t data = ggml_backend_alloc_ctx_tensors_from_buft(ops, host.plain);
    ggml_backend_buffer_clear(data, 0);
    ggml_backend_t backend = ggml_backend_dev_init(host.cpu, NULL);
    ggml_backend_graph_compute(backend, graph);
    ggml_backend_free(backend);
    ggml_backend_buffer_free(data);
    printf("locked %ld\n", locked());
    ggml_backend_buffer_free(buffer);
    ggml_free(ops);
    ggml_free(weights);
}

static int locks(void * context) {
    const bool host_locks = ((bool *) context)[0], may_lock = ((bool *) context)[1];
    static char page[8192];
    if (host_locks && mlock(page, sizeof page) != 0) {
        return 3;
    }
    if (!may_lock) {
        const struct rlimit few = {64 << 10, 64 << 10};
        if (setrlimit(RLIMIT_MEMLOCK, &few) != 0 || (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0))) {
            return 4;
        }
    }
    plan_product();
    return 0;
}

static void given_a_host_that_locks_its_weights_then_packed_ones_are_locked_too_or_it_is_said(void) {
    for (int i = 0; i < 4; i++) {
        bool how[2] = {i & 1, i & 2};
        struct rlimit limit;
        getrlimit(RLIMIT_MEMLOCK, &limit);
        const bool can = geteuid() == 0 || limit.rlim_cur > 6 * MIB;
        struct child c = child_fork(locks, how);
        long kb = -1;
        CHECK(c.signal == 0 && c.code == 0 && sscanf(strstr(c.out, "locked ") ? strstr(c.out, "locked ") : "", "locked %ld", &kb) == 1, "signal %d, exit code %d\n%s%s",
              c.signal, c.code, c.out, c.err);
        const bool done = how[0] && how[1] && can;
        CHECK(done == (kb > 4096), "%ld kB are locked (the host locks: %d, it may: %d)", kb, how[0], how[1]);
        CHECK(!done || strstr(c.err, "are locked in memory"), "not said\n%s", c.err);
        CHECK(!how[0] || how[1] || strstr(c.err, "are not locked in memory"), "nobody said why not\n%s", c.err);
        child_free(&c);
    }
}

#endif

int main(void) {
    host_open_with_buffer_type();
    RUN(given_enough_memory_then_all_weights_are_accepted);
#ifndef __SANITIZE_ADDRESS__
    RUN(given_few_addresses_then_what_fits_is_accepted_and_can_be_allocated);
    RUN(given_a_host_that_locks_its_weights_then_packed_ones_are_locked_too_or_it_is_said);
#endif
    return harness_report("memory_host");
}

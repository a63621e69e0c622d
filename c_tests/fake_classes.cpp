// Hosts whose C++ classes and compute parameters are others than those of any version: a virtual function more, in another
// place, fields in another order. Each is served right, or declined with a line that names the thing; none crashes. The classes
// are real ones, so that calls go by the compiler's own tables.
#define HOSTS 14 // hosts that this program can have
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define FAKE_DEVICE (&fake_device)
static int fake_device;
#include "fake_ggml.h"

#include "ggml-amx.h"

#include "child.h"

#include <vector>

// What each host is like, and the word that the line must have; none: it is served.
static const struct {
    const char * what, * named;
} EXPECTED[HOSTS] = {
    {"as it is known", nullptr},
    {"a virtual function in front of supports_op", "extra_buffer_type"},
    {"a virtual function between supports_op and get_tensor_traits", "extra_buffer_type"},
    {"a virtual function behind get_tensor_traits", nullptr},
    {"supports_op and get_tensor_traits swapped", "get_tensor_traits"},
    {"work_size and compute_forward swapped", "compute_forward"},
    {"a virtual function in front of work_size", "compute_forward"},
    {"a virtual function behind compute_forward", nullptr},
    {"wsize and wdata swapped", "ggml_compute_params.wsize"},
    {"a field in front of ith", "ggml_compute_params.ith"},
    {"a field behind the thread pool", nullptr},
    {"the thread pool in front of wdata", "ggml_compute_params.threadpool"},
    {"get_tensor_traits is never called", "get_tensor_traits"},
    {"nth in front of ith", "ggml_compute_params.ith"},
};

// ---- the host

struct fake_pool {
    char lock[88];
    void * graph;
    char more[200];
};

struct fake_params {
#if HOST == 9
    int64_t first;
#endif
#if HOST == 13
    int32_t nth, ith;
#else
    int32_t ith, nth;
#endif
#if HOST == 8
    void * wdata;
    size_t wsize;
    fake_pool * pool;
#elif HOST == 11
    size_t wsize;
    fake_pool * pool;
    void * wdata;
#else
    size_t wsize;
    void * wdata;
    fake_pool * pool;
#endif
    bool use_ref;
#if HOST == 10
    void * more;
#endif
};

struct traits {
    virtual ~traits() {}
#if HOST == 6
    virtual int priority() { return 0; }
#endif
#if HOST == 5
    virtual bool compute_forward(fake_params * params, ggml_tensor * op) = 0;
    virtual bool work_size(int n_threads, const ggml_tensor * op, size_t & size) = 0;
#else
    virtual bool work_size(int n_threads, const ggml_tensor * op, size_t & size) = 0;
    virtual bool compute_forward(fake_params * params, ggml_tensor * op) = 0;
#endif
#if HOST == 7
    virtual int priority() { return 0; }
#endif
};

struct extra {
    virtual ~extra() {}
#if HOST == 1
    virtual int priority() { return 0; }
#endif
#if HOST == 4
    virtual traits * get_tensor_traits(const ggml_tensor * op) = 0;
    virtual bool supports_op(void * device, const ggml_tensor * op) = 0;
#else
    virtual bool supports_op(void * device, const ggml_tensor * op) = 0;
#if HOST == 2
    virtual int priority() { return 0; }
#endif
    virtual traits * get_tensor_traits(const ggml_tensor * op) = 0;
#endif
#if HOST == 3
    virtual int priority() { return 0; }
#endif
};

// The list that ggml-cpu makes at the first question, our buffer type in it.
static std::vector<fake_buft> & list() {
    static std::vector<fake_buft> all = {fake_host_door()};
    return all;
}

static extra * extra_of(fake_buft buft) {
    return buft ? static_cast<extra *>(buft->context) : nullptr;
}

extern "C" {

bool ggml_backend_dev_supports_op(void * device, const ggml_tensor * op) {
    for (fake_buft buft : list()) {
        for (int i = 0; i < 4; i++) {
            if (buft && op->src[i] && op->src[i]->buffer && op->src[i]->buffer->buft == buft) {
                return extra_of(buft)->supports_op(device, op);
            }
        }
    }
    return true;
}

void * ggml_backend_cpu_init(void) {
    return calloc(1, 64);
}

void ggml_backend_cpu_set_n_threads(void * backend, int n) {
    (void) backend, (void) n;
}

void ggml_backend_free(void * backend) {
    free(backend);
}

int ggml_backend_graph_compute(void * backend, void * graph) {
    (void) backend;
    fake_graph * in = static_cast<fake_graph *>(graph);
    std::vector<char> work;
    for (int n = 0; n < in->count; n++) {
        size_t size = 0;
        for (fake_buft buft : list()) {
#if HOST != 12
            traits * of_node = buft ? extra_of(buft)->get_tensor_traits(in->nodes[n]) : nullptr;
            if (of_node && of_node->work_size(1, in->nodes[n], size)) {
                work.resize(size + 64);
            }
#else
            (void) buft, (void) size;
#endif
        }
    }
    fake_pool pool = {};
    pool.graph = graph;
    fake_params params = {};
    params.nth = 1, params.wsize = work.size(), params.pool = &pool;
    params.wdata = work.data();
    for (int n = 0; n < in->count; n++) {
        for (fake_buft buft : list()) {
#if HOST != 12
            traits * of_node = buft ? extra_of(buft)->get_tensor_traits(in->nodes[n]) : nullptr;
            if (of_node) {
                of_node->compute_forward(&params, in->nodes[n]);
            }
#else
            (void) buft, (void) params;
#endif
        }
    }
    return 0;
}

} // extern "C"

// ---- what a loader does

// 0: served, 3: declined, anything else: something is wrong.
static int load(void * first_allocates) {
    setenv("GGML_AMX_ISA", "portable", 1);
    const fake_buft amx = list()[0];
    if (!amx) {
        return 4;
    }
    static char arena[1 << 16];
    fake_init_params params = {sizeof arena, arena, true};
    void * context = ggml_init(params);
    fake_tensor w = ggml_new_tensor_4d(context, 2, 64, 32, 1, 1), x = ggml_new_tensor_4d(context, 0, 64, 3, 1, 1);
    fake_tensor op = ggml_mul_mat(context, w, x);
    if (first_allocates && ggml_backend_buft_alloc_buffer(amx, 4096) == nullptr) {
        return 3;
    }
    fake_buffer_interface none = {};
    w->buffer = ggml_backend_buffer_init(amx, none, nullptr, 0);
    // Whatever the host takes for supports_op.
    const bool supported = ggml_backend_dev_supports_op(FAKE_DEVICE, op);
    const fake_buffer buffer = ggml_backend_buft_alloc_buffer(amx, 4096);
    return supported && buffer ? 0 : !supported && !buffer ? 3 : supported ? 5 : 6;
}

static void given_a_host_with_other_classes_then_it_is_served_right_or_declined_by_name() {
    for (int allocates = 0; allocates < 2; allocates++) {
        child c = child_fork(load, allocates ? &fake_device : nullptr);
        const char * named = EXPECTED[HOST].named;
        CHECK(c.signal == 0 && c.code == (named ? 3 : 0), "%s: signal %d, exit code %d (0 served, 3 declined)\n%s", EXPECTED[HOST].what, c.signal, c.code, c.err);
        CHECK(!named || count_lines_with(c.err, named) == 1, "%s: no line names it\n%s", EXPECTED[HOST].what, c.err);
        CHECK(named || count_lines_with(c.err, "not used") == 0, "%s\n%s", EXPECTED[HOST].what, c.err);
        child_free(&c);
    }
}

int main() {
    RUN(given_a_host_with_other_classes_then_it_is_served_right_or_declined_by_name);
    return harness_report("fake_classes");
}

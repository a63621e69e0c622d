// Hosts whose C++ classes and compute parameters differ from those of every version: one more virtual function, another
// order of functions or fields. Each is served correctly, or declined with a line that names the difference; none
// crashes. The classes are real ones, so that calls go through the compiler's own vtables.
#define HOSTS 35 // hosts that this program can have
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
static int fake_device;
#if HOST == 20 || HOST == 34
extern "C" void * fake_reg(void);
#define FAKE_DEVICE fake_reg()
#else
#define FAKE_DEVICE (&fake_device)
#endif
#if HOST == 24
static bool fake_throws(int type);
#define FAKE_WITHOUT_TENSORS(type) fake_throws(type)
#endif
#include "fake_ggml.h"

#include "ggml-amx.h"

#include "child.h"

#include <sys/mman.h>

#include <stdexcept>
#include <thread>
#include <typeinfo>
#include <vector>

// What each host is like, and the word that the line must have; no word: it is served.
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
    {"no virtual destructors", "a destructor of extra_buffer_type"},
    {"no virtual destructor of the traits", "a destructor of tensor_traits"},
    {"a number in front of the thread pool", "ggml_compute_params.threadpool"},
    {"a thread of its own computes", nullptr},
    {"a buffer of the type is made while a graph is computed", nullptr},
    {"type information is asked for", nullptr},
    {"the registry asks for the buffer type", "in a function that it is made by"},
    {"an exception while a graph is computed", "threw an exception"},
    {"a thread pool of 64 bytes", "ggml_compute_params.threadpool"},
    {"sizes of 32 bits", "tensor_traits::work_size"},
    {"an exception while tensors are made", "threw an exception"},
    {"a thread of its own calls a virtual function that is not known", "from a thread that the trial waits for"},
    {"a thread of its own makes a buffer of the type", nullptr},
    {"the work buffer is a number", "ggml_compute_params.wdata"},
    {"nothing in the place of the work buffer", "ggml_compute_params.wdata"},
    {"sizes that cannot be written", "tensor_traits::work_size"},
    {"only some nodes are asked about", "for some nodes only"},
    {"nodes are asked about from later on", nullptr},
    {"sizes of 32 bits, and nothing behind them", "a size of 32 bits"},
    {"sizes are planned apart", nullptr},
    {"a thread of the registry's asks for the buffer type", "in a function that it is made by"},
};

// ---- the host

#if HOST == 24
static bool fake_throws(int type) {
    if (type == 26) {
        throw std::runtime_error("no integers");
    }
    return false;
}
#endif

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
#elif HOST == 16
    size_t wsize;
    void * wdata;
    size_t chunk;
    fake_pool * pool;
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

#if HOST == 23 || HOST == 32
typedef uint32_t fake_size;
#else
typedef size_t fake_size;
#endif

struct traits {
#if HOST != 14 && HOST != 15
    virtual ~traits() {}
#endif
#if HOST == 6
    virtual int priority() { return 0; }
#endif
#if HOST == 5
    virtual bool compute_forward(fake_params * params, ggml_tensor * op) = 0;
    virtual bool work_size(int n_threads, const ggml_tensor * op, fake_size & size) = 0;
#else
    virtual bool work_size(int n_threads, const ggml_tensor * op, fake_size & size) = 0;
    virtual bool compute_forward(fake_params * params, ggml_tensor * op) = 0;
#endif
#if HOST == 7
    virtual int priority() { return 0; }
#endif
};

struct extra {
#if HOST != 14
    virtual ~extra() {}
#endif
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
#if HOST == 3 || HOST == 25
    virtual int priority() { return 0; }
#endif
};

// The list that ggml-cpu makes at the first question, our buffer type in it.
static std::vector<fake_buft> & list() {
    static std::vector<fake_buft> all = {fake_host_door()};
    return all;
}

#if HOST == 19
struct other : extra {
    int more;
};
#endif

static extra * extra_of(fake_buft buft) {
    extra * of = buft ? static_cast<extra *>(buft->context) : nullptr;
#if HOST == 19
    if (of && (typeid(*of) == typeid(int) || dynamic_cast<other *>(of) || !strstr(typeid(*of).name(), "extra_buffer_type"))) {
        return nullptr;
    }
#endif
    return of;
}

#if HOST == 20 || HOST == 34
extern "C" void * fake_reg(void) {
#if HOST == 20
    fake_host_door();
#else
    std::thread([] { fake_host_door(); }).join();
#endif
    return &fake_device;
}
#endif

#if HOST == 31
static bool fake_asks;
#else
static bool fake_asks = true;
#endif

extern "C" {

bool ggml_backend_dev_supports_op(void * device, const ggml_tensor * op) {
    if (!fake_asks || (HOST == 30 && op->src[0]->ne[0] != 64)) {
        return true;
    }
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

static int fake_compute(void * graph);

#if HOST == 32 || HOST == 33
struct fake_plan {
    size_t size;
    void * more[30];
};

fake_plan ggml_graph_plan(const fake_graph * graph, int threads, void * pool) {
    struct {
        alignas(8) fake_size size;
        uint32_t behind;
    } room = {};
    traits * of_node = extra_of(list()[0])->get_tensor_traits(graph->nodes[0]);
    if (of_node) {
        of_node->work_size(threads, graph->nodes[0], room.size);
    }
    return {room.size + 64 * (pool ? 2 : 1), {}};
}
#endif

int ggml_backend_graph_compute(void * backend, void * graph) {
    (void) backend;
#if HOST == 17
    int result = 0;
    std::thread([&] { result = fake_compute(graph); }).join();
    return result;
#elif HOST == 18
    return ggml_backend_buft_alloc_buffer(list()[0], 64) ? 1 : fake_compute(graph);
#elif HOST == 21
    fake_compute(graph);
    throw std::runtime_error("this graph is unexpected");
#elif HOST == 25
    std::thread([&] { extra_of(list()[0])->priority(); }).join();
    return fake_compute(graph);
#elif HOST == 26
    std::thread([&] { ggml_backend_buft_alloc_buffer(list()[0], 64); }).join();
    return fake_compute(graph);
#else
    return fake_compute(graph);
#endif
}

// Two pages, of which the second cannot be accessed.
HARNESS_UNUSED static char * fake_end_of_memory(void) {
    char * pages = static_cast<char *>(mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(pages + 4096, 4096, PROT_NONE);
    return pages + 4096;
}

static int fake_compute(void * graph) {
    fake_graph * in = static_cast<fake_graph *>(graph);
    std::vector<char> work;
    for (int n = 0; n < in->count; n++) {
        // What is behind the size stays as it is.
        struct {
            alignas(8) fake_size size;
            uint32_t behind;
        } room = {0, HOST == 32 ? 0 : 0xabcdabcd};
        fake_size * size = &room.size;
#if HOST == 29
        char * page = fake_end_of_memory() - 4096;
        mprotect(page, 4096, PROT_READ);
        size = reinterpret_cast<fake_size *>(page);
#endif
        for (fake_buft buft : list()) {
#if HOST != 12
            traits * of_node = buft ? extra_of(buft)->get_tensor_traits(in->nodes[n]) : nullptr;
            if (of_node && of_node->work_size(1, in->nodes[n], *size)) {
                work.resize(*size + 64);
            }
#else
            (void) buft, (void) size;
#endif
        }
        if (room.behind != 0xabcdabcd && HOST != 32) {
            fprintf(stderr, "host: memory behind a size was overwritten\n");
            abort();
        }
    }
#if HOST == 22
    // The parameters end where memory ends, and have no graph.
    fake_pool & pool = *reinterpret_cast<fake_pool *>(fake_end_of_memory() - 64);
#else
    fake_pool pool = {};
    pool.graph = graph;
#endif
    fake_params params = {};
    params.nth = 1, params.wsize = work.size(), params.pool = &pool;
    params.wdata = work.data();
#if HOST == 16
    params.chunk = 1 << 20;
#elif HOST == 27
    params.wdata = reinterpret_cast<void *>(1 << 20);
#elif HOST == 28
    params.wdata = fake_end_of_memory() - 64;
#endif
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

// Hosts that are declined before there is a buffer type.
#define DECLINED_AT_ONCE (HOST == 20 || HOST == 24 || HOST == 34)

// 0: served, 3: declined, anything else: something is wrong.
static int load(void * first_allocates) {
    setenv("GGML_AMX_ISA", "portable", 1);
    const fake_buft amx = list()[0];
    if (!amx) {
        return DECLINED_AT_ONCE ? 3 : 4;
    }
    static char arena[1 << 16];
    fake_init_params params = {sizeof arena, arena, true};
    void * context = ggml_init(params);
    fake_tensor w = ggml_new_tensor_4d(context, 2, 64, 32, 1, 1), x = ggml_new_tensor_4d(context, 0, 64, 3, 1, 1);
    fake_tensor op = ggml_mul_mat(context, w, x);
    if (first_allocates && ggml_backend_buft_alloc_buffer(amx, 4096) == nullptr) {
        return 3;
    }
    fake_asks = true;
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

/* Finding our buffer type inside a real ggml host, through the host's public registry only, so that the
 * same programs run against shared, static and DL builds. C11 (with _GNU_SOURCE first) and C++17.
 *
 * GGML_AMX_TEST_BACKENDS: directory of the DL backends (a DL build finds nothing without it).
 * GGML_AMX_TEST_BUFT: name of the buffer type to test, default AMX; "CPU" or "CPU_REPACK" check the tests
 * themselves. */
#ifndef GGML_AMX_TEST_HOST_H
#define GGML_AMX_TEST_HOST_H

#include "cpu.h"

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml.h>

struct host {
    ggml_backend_dev_t cpu;           /* the CPU device */
    ggml_backend_buffer_type_t plain; /* its ordinary buffer type: GGUF layout, readable */
    ggml_backend_buffer_type_t amx;   /* ours, NULL if the library stepped aside */
    ggml_backend_set_n_threads_t set_n_threads;
};

static struct host host;

/* Stores the CPU backend's function of this name (NULL if unknown) in the function pointer at `to`; copied
 * because ISO C has no cast from void * to a function pointer. */
static void host_function(const char * name, void * to) {
    void * function = ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(host.cpu), name);
    memcpy(to, &function, sizeof function);
}

/* The extra buffer type of this name, or the ordinary one; NULL if there is none. */
static ggml_backend_buffer_type_t host_find_buft(const char * name) {
    if (strcmp(ggml_backend_buft_name(host.plain), name) == 0) {
        return host.plain;
    }
    ggml_backend_dev_get_extra_bufts_t get = NULL;
    host_function("ggml_backend_dev_get_extra_bufts", &get);
    for (ggml_backend_buffer_type_t * at = get ? get(host.cpu) : NULL; at && *at; at++) {
        if (strcmp(ggml_backend_buft_name(*at), name) == 0) {
            return *at;
        }
    }
    return NULL;
}

/* Loads the backends and looks for the buffer type; host.amx may be NULL afterwards. */
HARNESS_UNUSED static void host_open(void) {
    host_settle_for_lesser_kernels();
    const char * backends = getenv("GGML_AMX_TEST_BACKENDS"), * name = getenv("GGML_AMX_TEST_BUFT");
    if (backends) {
        ggml_backend_load_all_from_path(backends);
    } else {
        ggml_backend_load_all();
    }
    host.cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (!host.cpu) {
        printf("FAILED setup: the host has no CPU backend (GGML_AMX_TEST_BACKENDS names the directory of DL backends)\n");
        exit(1);
    }
    host.plain = ggml_backend_dev_buffer_type(host.cpu);
    host_function("ggml_backend_set_n_threads", &host.set_n_threads);
    host.amx = host_find_buft(name ? name : "AMX");
}

/* host_open() for tests that need the buffer type: without it the program fails here. */
HARNESS_UNUSED static void host_open_with_buffer_type(void) {
    host_open();
    if (!CHECK(host.amx != NULL, "the host offers no AMX buffer type")) {
        exit(harness_report("setup"));
    }
}

/* Tensor structs without data. */
HARNESS_UNUSED static struct ggml_context * host_context(size_t tensors) {
    struct ggml_init_params params = HARNESS_ZERO;
    params.mem_size = tensors * ggml_tensor_overhead() + ggml_graph_overhead();
    params.no_alloc = true;
    struct ggml_context * context = ggml_init(params);
    if (!context) {
        printf("FAILED setup: ggml_init\n");
        exit(1);
    }
    return context;
}

/* Computes one op (and what it depends on) on a CPU backend of its own. */
HARNESS_UNUSED static enum ggml_status host_compute(struct ggml_context * context, struct ggml_tensor * op, int n_threads) {
    ggml_backend_t backend = ggml_backend_dev_init(host.cpu, NULL);
    host.set_n_threads(backend, n_threads);
    struct ggml_cgraph * graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, op);
    const enum ggml_status status = ggml_backend_graph_compute(backend, graph);
    ggml_backend_free(backend);
    return status;
}

#endif

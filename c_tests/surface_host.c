/* The drop-in C functions of ggml-amx.h inside a host: they reach the same library that the host's CPU backend asks
 * through C++, they can compute an op step by step, and misuse ends the process with a message. */
#define _GNU_SOURCE
#include "ggml-amx.h"

#include "host.h"

#include "child.h"
#include "formats.h"

#include <ggml-cpu-impl.h>

/* A product on a packed (or plain) weight of type FORMATS[f], everything allocated and filled. */
struct product {
    struct ggml_context * packed, * ops;
    ggml_backend_buffer_t weights, buffer;
    struct ggml_tensor * w, * y;
};

static struct product product_new(ggml_backend_buffer_type_t buft, int f, int64_t m) {
    struct rng r = {100};
    struct product p = HARNESS_ZERO;
    p.packed = host_context(1), p.ops = host_context(3);
    p.w = ggml_new_tensor_2d(p.packed, (enum ggml_type) FORMATS[f].type, 512, 70);
    p.weights = ggml_backend_alloc_ctx_tensors_from_buft(p.packed, buft);
    uint8_t * bytes = (uint8_t *) malloc(ggml_nbytes(p.w));
    format_random(&FORMATS[f], &r, bytes, ggml_nbytes(p.w) / (size_t) FORMATS[f].block_bytes);
    ggml_backend_tensor_set(p.w, bytes, 0, ggml_nbytes(p.w));
    free(bytes);
    struct ggml_tensor * x = ggml_new_tensor_2d(p.ops, GGML_TYPE_F32, 512, m);
    p.y = ggml_mul_mat(p.ops, p.w, x);
    p.buffer = ggml_backend_alloc_ctx_tensors_from_buft(p.ops, host.plain);
    for (int64_t i = 0; i < 512 * m; i++) {
        ((float *) x->data)[i] = rng_normal(&r);
    }
    memset(p.y->data, 0xff, ggml_nbytes(p.y));
    return p;
}

static void product_free(struct product * p) {
    ggml_backend_buffer_free(p->buffer);
    ggml_backend_buffer_free(p->weights);
    ggml_free(p->ops);
    ggml_free(p->packed);
}

static void given_a_host_then_the_c_functions_name_the_buffer_type_that_the_host_uses(void) {
    CHECK(ggml_backend_amx_buffer_type() == host.amx, "another buffer type than the host's");
    CHECK(ggml_backend_amx_buffer_type() == ggml_backend_amx_buffer_type(), "another pointer at every call");
    struct ggml_backend_buffer_type ** list = ggml_backend_amx_get_extra_bufts();
    CHECK(list && list[0] == host.amx && list[1] == NULL, "the list does not hold exactly our buffer type");
}

static void given_any_op_then_the_c_functions_say_what_the_device_says(void) {
    for (int f = 0; f < N_HOST_FORMATS; f++) {
        struct product ours = product_new(host.amx, f, 9), plain = product_new(host.plain, f, 9);
        size_t size = 77;
        CHECK(ggml_backend_amx_supports_op(host.cpu, ours.y) && ggml_backend_amx_supports_op(NULL, ours.y), "%s: not supported", FORMATS[f].name);
        CHECK(ggml_backend_amx_work_size(4, ours.y, &size) && size != 77, "%s: no work size", FORMATS[f].name);
        size_t more = 0;
        CHECK(ggml_backend_amx_work_size(8, ours.y, &more) && more >= size, "%s: %zu bytes for 8 threads, %zu for 4", FORMATS[f].name, more, size);
        size = 77;
        CHECK(!ggml_backend_amx_work_size(4, plain.y, &size) && size == 77, "%s: a work size for a plain weight", FORMATS[f].name);
        CHECK(!ggml_backend_amx_work_size(4, ours.y, NULL), "%s: a work size without a place for it", FORMATS[f].name);
        struct ggml_compute_params params = HARNESS_ZERO;
        params.nth = 1;
        CHECK(!ggml_backend_amx_compute_forward(&params, plain.y), "%s: a plain weight was computed", FORMATS[f].name);
        CHECK(!ggml_backend_amx_compute_forward(NULL, ours.y) && !ggml_backend_amx_compute_forward(&params, NULL), "NULL was computed");
        for (size_t i = 0; i < ggml_nbytes(plain.y); i++) {
            if (!CHECK(((uint8_t *) plain.y->data)[i] == 0xff && ((uint8_t *) ours.y->data)[i] == 0xff, "dst was written")) {
                break;
            }
        }
        product_free(&ours);
        product_free(&plain);
    }
}

/* One thread by hand, in a work buffer of exactly the size asked for, at an odd address. */
static void given_an_op_driven_by_hand_then_its_bits_are_those_of_the_graph(void) {
    static const int64_t ms[] = {1, 5, 33};
    for (int f = 0; f < N_HOST_FORMATS; f++) {
        for (int m = 0; m < 3; m++) {
            struct product p = product_new(host.amx, f, ms[m]);
            struct ggml_context * graph = host_context(0);
            const size_t bytes = ggml_nbytes(p.y);
            CHECK(host_compute(graph, p.y, 1) == GGML_STATUS_SUCCESS, "graph compute");
            float * want = (float *) malloc(bytes);
            memcpy(want, p.y->data, bytes);
            memset(p.y->data, 0xff, bytes);
            size_t size = 0;
            CHECK(ggml_backend_amx_work_size(1, p.y, &size), "no work size");
            uint8_t * work = (uint8_t *) malloc(size + 2);
            work[0] = work[size + 1] = 0xa5;
            struct ggml_compute_params params = HARNESS_ZERO;
            params.nth = 1, params.wdata = work + 1, params.wsize = size;
            CHECK(ggml_backend_amx_compute_forward(&params, p.y), "%s: not computed", FORMATS[f].name);
            CHECK(memcmp(want, p.y->data, bytes) == 0, "%s M %lld: other bits than the graph", FORMATS[f].name, (long long) ms[m]);
            CHECK(work[0] == 0xa5 && work[size + 1] == 0xa5, "%s: written outside the work buffer", FORMATS[f].name);
            free(work);
            free(want);
            ggml_free(graph);
            product_free(&p);
        }
    }
}

/* ---- misuse */

enum misuse { WORK_BUFFER_TOO_SMALL, NO_WORK_BUFFER, THREAD_BEYOND_THE_COUNT, NO_DST, NO_SRC1, N_MISUSES };

/* What the message names. */
static const char * const MISUSES[] = {"work buffer", "work buffer", "thread", "data", "data"};

static int misuse_an_op(void * context) {
    const enum misuse which = *(const enum misuse *) context;
    setenv("GGML_NO_BACKTRACE", "1", 1); /* ggml would start a debugger */
    struct product p = product_new(host.amx, 0, 5);
    size_t size = 0;
    ggml_backend_amx_work_size(1, p.y, &size);
    struct ggml_compute_params params = HARNESS_ZERO;
    params.nth = 1, params.wsize = size, params.wdata = malloc(size);
    switch (which) {
        case WORK_BUFFER_TOO_SMALL: params.wsize--; break;
        case NO_WORK_BUFFER: params.wdata = NULL; break;
        case THREAD_BEYOND_THE_COUNT: params.ith = 1; break;
        case NO_DST: p.y->data = NULL; break;
        case NO_SRC1: p.y->src[1]->data = NULL; break;
        default: break;
    }
    return ggml_backend_amx_compute_forward(&params, p.y) ? 3 : 4;
}

static void given_an_op_that_cannot_be_computed_then_the_process_ends_with_a_message(void) {
    for (int i = 0; i < N_MISUSES; i++) {
        enum misuse which = (enum misuse) i;
        struct child c = child_fork(misuse_an_op, &which);
        CHECK(c.signal == SIGABRT, "misuse %d: signal %d, exit code %d", i, c.signal, c.code);
        CHECK(strstr(c.err, "MUL_MAT") && strstr(c.err, MISUSES[i]), "misuse %d: message is \"%s\"", i, c.err);
        child_free(&c);
    }
}

/* ---- shapes from broken files */

/* Loader's probe, allocation and a whole graph with a weight that has no rows. (ggml itself takes no product with
 * a weight that has no columns.) */
static int use_empty_weights(void * context) {
    (void) context;
    setenv("GGML_NO_BACKTRACE", "1", 1);
    for (int f = 0; f < N_HOST_FORMATS; f++) {
        struct ggml_context * c = host_context(5), * graph = host_context(0);
        struct ggml_tensor * w = ggml_new_tensor_2d(c, (enum ggml_type) FORMATS[f].type, 512, 0);
        struct ggml_tensor * y = ggml_mul_mat(c, w, ggml_new_tensor_2d(c, GGML_TYPE_F32, 512, 512));
        w->buffer = ggml_backend_buft_alloc_buffer(host.amx, 0);
        ggml_backend_dev_supports_op(host.cpu, y); /* it only must not crash */
        ggml_backend_buffer_free(w->buffer);
        w->buffer = NULL;
        if (ggml_backend_buft_get_alloc_size(host.amx, w) != 0) {
            return 3;
        }
        ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(host.amx, 64);
        if (ggml_backend_tensor_alloc(buffer, w, ggml_backend_buffer_get_base(buffer)) != GGML_STATUS_SUCCESS) {
            return 4;
        }
        if (host_compute(graph, y, 1) != GGML_STATUS_SUCCESS) {
            return 5;
        }
        ggml_backend_buffer_free(buffer);
        ggml_free(graph);
        ggml_free(c);
    }
    return 0;
}

static void given_weights_without_rows_then_nothing_crashes(void) {
    struct child c = child_fork(use_empty_weights, NULL);
    CHECK(c.signal == 0 && c.code == 0, "signal %d, exit code %d (3 size, 4 allocation, 5 compute)\n%.600s", c.signal, c.code, c.err);
    child_free(&c);
}

int main(void) {
    host_open_with_buffer_type();
    RUN(given_a_host_then_the_c_functions_name_the_buffer_type_that_the_host_uses);
    RUN(given_any_op_then_the_c_functions_say_what_the_device_says);
    RUN(given_an_op_driven_by_hand_then_its_bits_are_those_of_the_graph);
    RUN(given_an_op_that_cannot_be_computed_then_the_process_ends_with_a_message);
    RUN(given_weights_without_rows_then_nothing_crashes);
    return harness_report("surface_host");
}

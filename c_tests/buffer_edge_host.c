/* What must fail with a clear message: empty buffers, buffers that cannot be allocated, writes out of bounds. And a
 * tensor of more than 4 GiB (GGML_AMX_TEST_BIG=0 leaves it out). */
#define _GNU_SOURCE
#include "host.h"

#include "child.h"
#include "formats.h"
#include "shadow.h"

#include <ggml-backend-impl.h>

/* Under AddressSanitizer an impossible malloc returns NULL as it does without. */
const char * __asan_default_options(void);
const char * __asan_default_options(void) {
    return "allocator_may_return_null=1";
}

static void given_a_size_of_zero_then_the_dummy_buffer_names_its_type_and_can_be_freed(void) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(host.amx, 0);
    CHECK(buffer != NULL, "no dummy buffer");
    CHECK(ggml_backend_buffer_get_type(buffer) == host.amx, "the dummy buffer has another type");
    CHECK(ggml_backend_buffer_get_size(buffer) == 0 && ggml_backend_buffer_get_base(buffer) == NULL, "the dummy buffer has memory");
    ggml_backend_buffer_clear(buffer, 1);
    ggml_backend_buffer_free(buffer);
}

static void allocate_the_impossible(void * result) {
    *(ggml_backend_buffer_t *) result = ggml_backend_buft_alloc_buffer(host.amx, (size_t) 1 << 60);
}

static void given_a_size_nobody_can_allocate_then_the_buffer_is_null_and_a_line_says_so(void) {
    for (int i = 0; i < 2; i++) {
        ggml_backend_buffer_t buffer = NULL;
        char * log = stderr_of(allocate_the_impossible, &buffer);
        CHECK(buffer == NULL, "2^60 bytes were allocated");
        CHECK(count_lines_with(log, "ggml-amx:") == 1, "log: \"%s\"", log);
        CHECK(count_lines_with(log, "1152921504606846976") == 1 || strstr(log, "iB") || strstr(log, "GB"), "the line does not name the size: \"%s\"", log);
        free(log);
    }
    ggml_backend_buffer_t small = ggml_backend_buft_alloc_buffer(host.amx, 4096);
    CHECK(small != NULL, "a small buffer is refused afterwards");
    ggml_backend_buffer_free(small);
}

/* 64 bits are not enough for the padded size: the allocation must fail, not wrap around. */
static void given_a_context_whose_sum_is_impossible_then_ggml_gets_null(void) {
    struct ggml_context * context = host_context(2);
    ggml_new_tensor_2d(context, GGML_TYPE_Q8_0, (int64_t) 1 << 30, (int64_t) 1 << 28);
    ggml_backend_buffer_t buffer = NULL;
    buffer = ggml_backend_alloc_ctx_tensors_from_buft(context, host.amx);
    CHECK(buffer == NULL, "2^58 weights were allocated");
    ggml_free(context);
}

/* ---- out of bounds */

enum attack { SET_BEYOND, GET_BEYOND, MEMSET_BEYOND, DIRECT_SET_BEYOND, DIRECT_GET_BEYOND, DIRECT_MEMSET_BEYOND, DIRECT_SET_WRAPPING, N_ATTACKS };

struct victim {
    enum attack attack;
    enum ggml_type type;
};

/* Exit code 0: the process lives and nothing outside the range was changed; 3: a neighbour was changed. */
static int attack(void * context) {
    const struct victim * v = (const struct victim *) context;
    setenv("GGML_NO_BACKTRACE", "1", 1); /* ggml would start a debugger */
    struct ggml_context * tensors = host_context(3);
    struct ggml_tensor * t[3];
    for (int i = 0; i < 3; i++) {
        t[i] = ggml_new_tensor_2d(tensors, v->type, 256, 16); /* whole panels: no padding between neighbours */
    }
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(tensors, host.amx);
    ggml_backend_buffer_clear(buffer, 0x33);
    const size_t size = ggml_nbytes(t[1]);
    uint8_t * data = (uint8_t *) malloc(2 * size);
    memset(data, 0x44, 2 * size);
    switch (v->attack) {
        case SET_BEYOND:
            ggml_backend_tensor_set(t[1], data, size - 8, 9);
            break;
        case GET_BEYOND:
            ggml_backend_tensor_get(t[1], data, size, 1);
            break;
        case MEMSET_BEYOND:
            ggml_backend_tensor_memset(t[1], 0x44, 1, size);
            break;
        case DIRECT_SET_BEYOND:
            buffer->iface.set_tensor(buffer, t[1], data, size - 8, 64);
            break;
        case DIRECT_GET_BEYOND:
            buffer->iface.get_tensor(buffer, t[1], data, size - 8, 64);
            break;
        case DIRECT_MEMSET_BEYOND:
            buffer->iface.memset_tensor(buffer, t[1], 0x44, size, 64);
            break;
        case DIRECT_SET_WRAPPING: /* offset + size is 8 in 64 bits */
            buffer->iface.set_tensor(buffer, t[1], data, SIZE_MAX - 7, 16);
            break;
        default:
            break;
    }
    for (int i = 0; i < 3; i += 2) {
        ggml_backend_tensor_get(t[i], data, 0, size);
        for (size_t b = 0; b < size; b++) {
            if (data[b] != 0x33) {
                return 3;
            }
        }
    }
    return 0;
}

static void given_a_range_beyond_the_tensor_then_ggml_aborts_with_a_message(void) {
    for (int type = 0; type < N_BOX_TYPES; type++) {
        for (int a = SET_BEYOND; a <= MEMSET_BEYOND; a++) {
            struct victim v = {(enum attack) a, BOX_TYPES[type]};
            struct child c = child_fork(attack, &v);
            CHECK(c.signal == SIGABRT, "%s, attack %d: signal %d, exit code %d", ggml_type_name(v.type), a, c.signal, c.code);
            CHECK(strstr(c.err, "out of bounds") != NULL, "%s, attack %d: message is \"%s\"", ggml_type_name(v.type), a, c.err);
            child_free(&c);
        }
    }
}

/* The same without ggml's own checks, directly at our callbacks: they must say so, and never change a neighbour's
 * bytes. */
static void given_a_range_beyond_the_tensor_past_the_checks_of_ggml_then_we_refuse_loudly(void) {
    for (int type = 0; type < N_PACKED_TYPES; type++) {
        for (int a = DIRECT_SET_BEYOND; a < N_ATTACKS; a++) {
            struct victim v = {(enum attack) a, BOX_TYPES[type]};
            struct child c = child_fork(attack, &v);
            CHECK(c.signal == SIGABRT || (c.signal == 0 && c.code == 0), "%s, attack %d: signal %d, exit code %d (3 = a neighbour was changed)\n%s",
                  ggml_type_name(v.type), a, c.signal, c.code, c.err);
            CHECK(c.err[0] != 0, "%s, attack %d: no message", ggml_type_name(v.type), a);
            child_free(&c);
        }
    }
}

/* ---- more than 4 GiB */

static long available_gib(void) {
    FILE * file = fopen("/proc/meminfo", "r");
    char line[256];
    long kib = 0;
    while (file && fgets(line, sizeof line, file)) {
        if (sscanf(line, "MemAvailable: %ld", &kib) == 1) {
            break;
        }
    }
    if (file) {
        fclose(file);
    }
    return kib >> 20;
}

/* Writes and reads back rows [row, row + rows) with random bytes, cut at odd places. */
static void check_rows_of(struct ggml_tensor * t, int64_t row, int64_t rows, struct rng * r) {
    const size_t size = (size_t) rows * t->nb[1], at = (size_t) row * t->nb[1], cut = 1 + rng_below(r, size - 1);
    uint8_t * want = (uint8_t *) malloc(size), * got = (uint8_t *) malloc(size);
    rng_bytes(r, want, size);
    ggml_backend_tensor_set(t, want + cut, at + cut, size - cut);
    ggml_backend_tensor_set(t, want, at, cut);
    ggml_backend_tensor_get(t, got, at, size);
    CHECK(memcmp(want, got, size) == 0, "rows %lld.. read back differently", (long long) row);
    free(want);
    free(got);
}

/* The last rows times one and 40 activation rows, through a view. */
static void check_product_of_last_rows(struct ggml_tensor * w, int64_t rows, int64_t m, struct rng * r) {
    const struct format * f = &FORMATS[2]; /* Q8_0 */
    const int64_t k = w->ne[0], first = w->ne[1] - rows;
    const size_t size = (size_t) rows * w->nb[1];
    uint8_t * plain = (uint8_t *) malloc(size);
    format_random(f, r, plain, size / 34);
    ggml_backend_tensor_set(w, plain, (size_t) first * w->nb[1], size);
    float * floats = (float *) malloc((size_t) (rows * k) * sizeof(float));
    format_dequantise(f, plain, floats, rows * k);

    struct ggml_context * data = host_context(2), * graph = host_context(8);
    struct ggml_tensor * x = ggml_new_tensor_2d(data, GGML_TYPE_F32, k, m);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(data, host.plain);
    for (int64_t i = 0; i < k * m; i++) {
        ((float *) x->data)[i] = rng_normal(r);
    }
    struct ggml_tensor * view = ggml_view_2d(graph, w, k, rows, w->nb[1], (size_t) first * w->nb[1]);
    CHECK(ggml_backend_view_init(view) == GGML_STATUS_SUCCESS, "view_init");
    struct ggml_tensor * y = ggml_mul_mat(graph, view, x);
    float * dst = (float *) aligned_alloc(64, (ggml_nbytes(y) + 63) / 64 * 64);
    memset(dst, 0xff, ggml_nbytes(y));
    ggml_backend_buffer_t dst_buffer = ggml_backend_dev_buffer_from_host_ptr(host.cpu, dst, ggml_nbytes(y), ggml_nbytes(y));
    CHECK(ggml_backend_tensor_alloc(dst_buffer, y, dst) == GGML_STATUS_SUCCESS, "dst");
    CHECK(ggml_backend_dev_supports_op(host.cpu, y), "a view of the last rows is not supported");
    CHECK(host_compute(graph, y, 2) == GGML_STATUS_SUCCESS, "compute");
    double * want = (double *) malloc((size_t) (rows * m) * sizeof(double)), error = 0, norm = 0;
    product_f64(floats, (const float *) x->data, (size_t) k, want, k, rows, m);
    for (int64_t i = 0; i < rows * m; i++) {
        error += (dst[i] - want[i]) * (dst[i] - want[i]);
        norm += want[i] * want[i];
    }
    CHECK(error <= 5e-4 * norm, "%lld rows of activations: NMSE %g", (long long) m, error / norm);
    ggml_backend_buffer_free(dst_buffer);
    ggml_backend_buffer_free(buffer);
    ggml_free(data);
    ggml_free(graph);
    free(want);
    free(dst);
    free(floats);
    free(plain);
}

static void given_a_tensor_of_more_than_4_gib_then_its_last_row_is_as_good_as_its_first(void) {
    const char * big = getenv("GGML_AMX_TEST_BIG");
    if (big && strcmp(big, "0") == 0) {
        harness_skip("a tensor of 5.6 GB: GGML_AMX_TEST_BIG=0");
        return;
    }
    if (available_gib() < 16) {
        harness_skip("a tensor of 5.6 GB: %ld GiB of memory are available, 16 are needed", available_gib());
        return;
    }
    struct rng r = {30};
    struct ggml_context * context = host_context(1);
    struct ggml_tensor * t = ggml_new_tensor_2d(context, GGML_TYPE_Q8_0, 40960, 128256);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(context, host.amx);
    if (CHECK(buffer != NULL, "%zu bytes were not allocated", ggml_nbytes(t))) {
        CHECK(ggml_backend_buffer_get_size(buffer) >= ggml_nbytes(t), "the buffer is too small");
        check_rows_of(t, 0, 3, &r);
        const size_t edges[] = {(size_t) 1 << 31, (size_t) 1 << 32, (size_t) 5 << 30};
        for (int i = 0; i < 3; i++) {
            check_rows_of(t, (int64_t) (edges[i] / t->nb[1]) - 2, 5, &r);
        }
        check_rows_of(t, ((int64_t) 1 << 31) / t->ne[0] - 1, 3, &r); /* 2^31 and 2^32 weights */
        check_rows_of(t, ((int64_t) 1 << 32) / t->ne[0] - 1, 3, &r);
        check_rows_of(t, t->ne[1] - 1, 1, &r);
        check_product_of_last_rows(t, 37, 1, &r);
        check_product_of_last_rows(t, 37, 40, &r);
        ggml_backend_buffer_free(buffer);
    }
    ggml_free(context);
}

int main(void) {
    host_open_with_buffer_type();
    RUN(given_a_size_of_zero_then_the_dummy_buffer_names_its_type_and_can_be_freed);
    RUN(given_a_size_nobody_can_allocate_then_the_buffer_is_null_and_a_line_says_so);
    RUN(given_a_context_whose_sum_is_impossible_then_ggml_gets_null);
    RUN(given_a_range_beyond_the_tensor_then_ggml_aborts_with_a_message);
    RUN(given_a_range_beyond_the_tensor_past_the_checks_of_ggml_then_we_refuse_loudly);
    RUN(given_a_tensor_of_more_than_4_gib_then_its_last_row_is_as_good_as_its_first);
    return harness_report("buffer_edge_host");
}

/* The environment variables, each in a fresh process that loads the host: what they turn off, which kernels
 * they choose (with the same results), and what is said about unknown values. */
#define _GNU_SOURCE
#include "ggml-amx.h"

#include "host.h"

#include "child.h"
#include "formats.h"

/* Every variable the library reads, unset, then what a test sets. */
#define CLEAN_ENV "GGML_AMX_MODE", NULL, "GGML_AMX_ISA", NULL, "GGML_AMX_LOG", NULL, "GGML_AMX_THREADS", NULL

/* ---- child programs; they name their result by exit code */

enum { HAS_BUFFER_TYPE = 20, NO_BUFFER_TYPE = 21 };

/* Is there a buffer type? Asked twice, because a reason is given once. */
static int ask(void) {
    host_open();
    ggml_backend_buffer_type_t again = host_find_buft("AMX");
    return host.amx != again ? 1 : host.amx ? HAS_BUFFER_TYPE : NO_BUFFER_TYPE;
}

/* Writes the results of a small grid, as raw floats, to standard output. */
static int compute_grid(void) {
    host_open();
    if (!host.amx) {
        return NO_BUFFER_TYPE;
    }
    static const int64_t ms[] = {1, 2, 5, 16, 33, 64}, ns[] = {1, 48, 100};
    struct rng r = {80};
    for (int f = 0; f < N_HOST_FORMATS; f++) {
        const int64_t k = 512;
        for (int n = 0; n < 3; n++) {
            struct ggml_context * packed = host_context(1);
            struct ggml_tensor * w = ggml_new_tensor_2d(packed, (enum ggml_type) FORMATS[f].type, k, ns[n]);
            ggml_backend_buffer_t weights = ggml_backend_alloc_ctx_tensors_from_buft(packed, host.amx);
            uint8_t * bytes = (uint8_t *) malloc(ggml_nbytes(w));
            format_random(&FORMATS[f], &r, bytes, ggml_nbytes(w) / (size_t) FORMATS[f].block_bytes);
            ggml_backend_tensor_set(w, bytes, 0, ggml_nbytes(w));
            for (int m = 0; m < 6; m++) {
                struct ggml_context * ops = host_context(2), * graph = host_context(0);
                struct ggml_tensor * x = ggml_new_tensor_2d(ops, GGML_TYPE_F32, k, ms[m]), * y = ggml_mul_mat(ops, w, x);
                ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(ops, host.plain);
                for (int64_t i = 0; i < k * ms[m]; i++) {
                    ((float *) x->data)[i] = rng_normal(&r);
                }
                memset(y->data, 0xff, ggml_nbytes(y));
                if (host_compute(graph, y, 2) != GGML_STATUS_SUCCESS) {
                    return 1;
                }
                fwrite(y->data, 1, ggml_nbytes(y), stdout);
                ggml_backend_buffer_free(buffer);
                ggml_free(ops);
                ggml_free(graph);
            }
            free(bytes);
            ggml_backend_buffer_free(weights);
            ggml_free(packed);
        }
    }
    return HAS_BUFFER_TYPE;
}

/* Loads a tensor that is large enough to be packed by several threads, and reads it back. */
static int load_large(void) {
    host_open();
    if (!host.amx) {
        return NO_BUFFER_TYPE;
    }
    struct rng r = {81};
    struct ggml_context * context = host_context(1);
    struct ggml_tensor * w = ggml_new_tensor_2d(context, GGML_TYPE_Q8_0, 4096, 1001);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(context, host.amx);
    const size_t size = ggml_nbytes(w);
    uint8_t * bytes = (uint8_t *) malloc(size), * back = (uint8_t *) malloc(size);
    rng_bytes(&r, bytes, size);
    ggml_backend_tensor_set(w, bytes, 0, size);
    ggml_backend_tensor_get(w, back, 0, size);
    const bool same = memcmp(bytes, back, size) == 0;
    free(bytes);
    free(back);
    ggml_backend_buffer_free(buffer);
    ggml_free(context);
    return same ? HAS_BUFFER_TYPE : 1;
}

/* ---- a reader of the log that calls this library and the host back */

static int lines_of_ours, reading;

static void read_line(enum ggml_log_level level, const char * text, void * context) {
    (void) level, (void) context;
    fputs(text, stderr);
    lines_of_ours += strncmp(text, "ggml-amx: ", 10) == 0;
    if (reading++ == 0 && host.cpu) {
        ggml_backend_amx_buffer_type();
        ggml_backend_amx_get_extra_bufts();
        ggml_amx_isa_reason();
        host_find_buft("AMX"); /* the host's list, in whose making this library is asked */
    }
    reading--;
}

static int ask_and_read(void) {
    ggml_log_set(read_line, NULL);
    host_open();
    return lines_of_ours == 0 ? 1 : host.amx ? HAS_BUFFER_TYPE : NO_BUFFER_TYPE;
}

/* ---- tests */

static void given_a_log_callback_that_calls_back_then_nothing_hangs(void) {
    static const char * const logs[] = {"info", "debug"};
    for (int i = 0; i < 2; i++) {
        const char * const env[] = {CLEAN_ENV, "GGML_AMX_ISA", "portable", "GGML_AMX_LOG", logs[i], NULL};
        struct child c = child_exec("read", env);
        CHECK(c.signal != SIGALRM, "GGML_AMX_LOG=%s: it hangs\n%s", logs[i], c.err);
        CHECK(c.signal == 0 && c.code == HAS_BUFFER_TYPE, "GGML_AMX_LOG=%s: signal %d, exit code %d (1 = no line came)\n%s", logs[i], c.signal, c.code, c.err);
        child_free(&c);
    }
}

static void given_mode_off_then_there_is_no_buffer_type_and_one_line_says_so(void) {
    const char * const env[] = {CLEAN_ENV, "GGML_AMX_MODE", "off", NULL};
    struct child c = child_exec("ask", env);
    CHECK(c.signal == 0 && c.code == NO_BUFFER_TYPE, "signal %d, exit code %d\n%s", c.signal, c.code, c.err);
    CHECK(count_lines_with(c.err, "ggml-amx:") == 1, "expected one line, got: %s", c.err);
    CHECK(count_lines_with(c.err, "GGML_AMX_MODE") == 1, "the line does not name GGML_AMX_MODE: %s", c.err);
    child_free(&c);
}

static void given_modes_that_pack_then_there_is_a_buffer_type(void) {
    static const char * const modes[] = {NULL, "auto", "packed", ""};
    for (int i = 0; i < 4; i++) {
        const char * const env[] = {CLEAN_ENV, "GGML_AMX_ISA", "portable", "GGML_AMX_MODE", modes[i] ? modes[i] : "auto", NULL};
        struct child c = child_exec("ask", env);
        CHECK(c.signal == 0 && c.code == HAS_BUFFER_TYPE, "GGML_AMX_MODE=%s: signal %d, exit code %d\n%s", modes[i], c.signal, c.code, c.err);
        CHECK(count_lines_with(c.err, "unknown") == 0, "GGML_AMX_MODE=%s: %s", modes[i], c.err);
        child_free(&c);
    }
}

/* Compares the grid of results, in the order in which compute() writes them, with that of the portable kernels. They
 * have the same bits, but for AMX from 5 rows on, where the tile GEMM works. */
static void check_grid(const char * isa, const float * got, const float * want) {
    static const int64_t ns[] = {1, 48, 100}, ms[] = {1, 2, 5, 16, 33, 64};
    for (int i = 0; i < N_HOST_FORMATS * 3 * 6; i++) {
        const int64_t n = ns[i / 6 % 3], m = ms[i % 6];
        double error = 0, size = 0;
        for (int64_t j = 0; j < n * m; j++) {
            error += ((double) got[j] - (double) want[j]) * ((double) got[j] - (double) want[j]);
            size += (double) want[j] * (double) want[j];
        }
        const bool other_bits = m >= 5 && strcmp(isa, "amx") == 0;
        CHECK(other_bits ? error <= 5e-4 * size : memcmp(got, want, (size_t) (n * m) * sizeof(float)) == 0,
              "GGML_AMX_ISA=%s type %d N %lld M %lld: differs from portable, NMSE %.3g", isa, i / 18, (long long) n, (long long) m, error / size);
        got += n * m, want += n * m;
    }
}

static void given_each_instruction_set_then_the_results_are_the_same(void) {
    static const char * const isas[] = {"portable", "avx512", "amx"};
    struct child got[3];
    for (int i = 0; i < 3; i++) {
        const char * const env[] = {CLEAN_ENV, "GGML_AMX_ISA", isas[i], "GGML_AMX_REPORT", "products", NULL};
        got[i] = child_exec("compute", env);
        const bool available = i == 0 || (i == 1 ? host_cpu_has_avx512() : host_has_amx());
        if (!available) {
            CHECK(got[i].code == NO_BUFFER_TYPE, "GGML_AMX_ISA=%s on a CPU without it: exit code %d", isas[i], got[i].code);
            CHECK(count_lines_with(got[i].err, "ggml-amx:") >= 1, "GGML_AMX_ISA=%s on a CPU without it: no reason", isas[i]);
            harness_skip("GGML_AMX_ISA=%s: this CPU does not have it", isas[i]);
            continue;
        }
        CHECK(got[i].signal == 0 && got[i].code == HAS_BUFFER_TYPE, "GGML_AMX_ISA=%s: signal %d, exit code %d\n%s", isas[i], got[i].signal, got[i].code, got[i].err);
        CHECK(got[i].out_size == (size_t) N_HOST_FORMATS * (1 + 48 + 100) * (1 + 2 + 5 + 16 + 33 + 64) * sizeof(float), "%zu bytes of results", got[i].out_size);
        if (got[i].out_size != got[0].out_size) {
            continue;
        }
        /* Every product was ours, and by these kernels. */
        CHECK(strstr(got[i].err, isas[i][1] == 'o' ? "ggml-amx: products: MUL_MAT portable " : "ggml-amx: products: MUL_MAT vectors ") != NULL, "GGML_AMX_ISA=%s: no report of products\n%s", isas[i], got[i].err);
        CHECK((strstr(got[i].err, "MUL_MAT int8 ") != NULL) == (i == 2), "GGML_AMX_ISA=%s: int8 tiles\n%s", isas[i], got[i].err);
        check_grid(isas[i], (const float *) (const void *) got[i].out, (const float *) (const void *) got[0].out);
        for (size_t at = 0; at + sizeof(float) <= got[i].out_size; at += sizeof(float)) {
            float value;
            memcpy(&value, got[i].out + at, sizeof value);
            if (!CHECK(isfinite(value), "GGML_AMX_ISA=%s: float %zu of the grid is %g", isas[i], at / sizeof(float), (double) value)) {
                break;
            }
        }
    }
    for (int i = 0; i < 3; i++) {
        child_free(&got[i]);
    }
}

static void given_any_number_of_packing_threads_then_weights_are_packed(void) {
    static const char * const threads[] = {"1", "2", "3", "1024"};
    for (int i = 0; i < 4; i++) {
        const char * const env[] = {CLEAN_ENV, "GGML_AMX_ISA", "portable", "GGML_AMX_THREADS", threads[i], NULL};
        struct child c = child_exec("load", env);
        CHECK(c.signal == 0 && c.code == HAS_BUFFER_TYPE, "GGML_AMX_THREADS=%s: signal %d, exit code %d (1 = other bytes)\n%s", threads[i], c.signal, c.code, c.err);
        CHECK(count_lines_with(c.err, "GGML_AMX_THREADS") == 0, "GGML_AMX_THREADS=%s: %s", threads[i], c.err);
        child_free(&c);
    }
}

struct unknown {
    const char * name, * value;
    const char * allowed[4]; /* words the line must contain */
};

static void given_an_unknown_value_then_one_error_line_names_the_allowed_ones(void) {
    static const struct unknown cases[] = {
        {"GGML_AMX_MODE", "sideways", {"auto", "packed", "off"}},
        {"GGML_AMX_MODE", "OFF ", {"auto", "packed", "off"}},
        {"GGML_AMX_ISA", "sse9", {"amx", "avx512", "portable"}},
        {"GGML_AMX_LOG", "loud", {"quiet", "info", "debug"}},
        {"GGML_AMX_THREADS", "-1", {"1", NULL}},
        {"GGML_AMX_THREADS", "many", {"1", NULL}},
        {"GGML_AMX_THREADS", "0", {"1", NULL}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char * const env[] = {CLEAN_ENV, cases[i].name, cases[i].value, NULL};
        struct child c = child_exec("ask", env);
        CHECK(c.signal == 0 && (c.code == HAS_BUFFER_TYPE || !host_has_amx()), "%s=%s: signal %d, exit code %d: the default is not used\n%s",
              cases[i].name, cases[i].value, c.signal, c.code, c.err);
        CHECK(count_lines_with(c.err, cases[i].name) == 1, "%s=%s: expected one line, got: %s", cases[i].name, cases[i].value, c.err);
        const char * line = strstr(c.err, cases[i].name);
        for (int w = 0; line && w < 4 && cases[i].allowed[w]; w++) {
            const char * end = strchr(line, '\n'), * hit = strstr(line + strlen(cases[i].name) + 1 + strlen(cases[i].value), cases[i].allowed[w]);
            CHECK(hit && (!end || hit < end), "%s=%s: the line does not name %s: %s", cases[i].name, cases[i].value, cases[i].allowed[w], c.err);
        }
        child_free(&c);
    }
}

static void given_a_quiet_log_then_off_is_silent(void) {
    const char * const env[] = {CLEAN_ENV, "GGML_AMX_MODE", "off", "GGML_AMX_LOG", "quiet", NULL};
    struct child c = child_exec("ask", env);
    CHECK(c.signal == 0 && c.code == NO_BUFFER_TYPE, "signal %d, exit code %d", c.signal, c.code);
    CHECK(count_lines_with(c.err, "ggml-amx") == 0, "printed: %s", c.err);
    child_free(&c);
}

int main(int argc, char ** argv) {
    if (argc > 1) {
        return strcmp(argv[1], "read") == 0 ? ask_and_read() : strcmp(argv[1], "compute") == 0 ? compute_grid() : strcmp(argv[1], "load") == 0 ? load_large() : ask();
    }
    RUN(given_mode_off_then_there_is_no_buffer_type_and_one_line_says_so);
    RUN(given_modes_that_pack_then_there_is_a_buffer_type);
    RUN(given_each_instruction_set_then_the_results_are_the_same);
    RUN(given_any_number_of_packing_threads_then_weights_are_packed);
    RUN(given_an_unknown_value_then_one_error_line_names_the_allowed_ones);
    RUN(given_a_quiet_log_then_off_is_silent);
    RUN(given_a_log_callback_that_calls_back_then_nothing_hangs);
    return harness_report("env_host");
}

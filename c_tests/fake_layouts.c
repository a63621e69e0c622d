/* Hosts of versions that do not exist yet: members of structs inserted, removed and swapped, tensors longer and
 * shorter, functions missing or behaving differently. Each is served correctly, or left alone with a line that names
 * the reason; none ends the process. The program is built once for every HOST from 0 on. */
#define _GNU_SOURCE
#define HOSTS 42 /* read by the program that builds this one */

/* SERVED, or a part of the line that names the reason. */
#define SERVED ""
#if HOST == 0
#define EXPECTED SERVED /* ggml 0.25 */
#elif HOST == 1
#define FAKE_SOURCES 12
#define EXPECTED SERVED
#elif HOST == 2
#define FAKE_SOURCES 16
#define EXPECTED SERVED
#elif HOST == 3
#define FAKE_SOURCES 6
#define EXPECTED SERVED
#elif HOST == 4 /* a gradient, as in ik_llama.cpp */
#define FAKE_TENSOR_MEMBERS \
    int32_t type, backend; \
    FAKE_T_BUFFER FAKE_T_SHAPE FAKE_T_OP fake_tensor grad; \
    FAKE_T_SRC FAKE_T_VIEW FAKE_T_DATA FAKE_T_NAME
#define EXPECTED SERVED
#elif HOST == 5 /* everything somewhere else */
#define FAKE_TENSOR_MEMBERS \
    FAKE_T_VIEW FAKE_T_DATA FAKE_T_OP int32_t type; \
    FAKE_T_SRC FAKE_T_SHAPE FAKE_T_BUFFER FAKE_T_NAME
#define EXPECTED SERVED
#elif HOST == 6
#define FAKE_NAME 128
#define EXPECTED SERVED
#elif HOST == 7 /* longer, by a member that is not padding */
#define FAKE_TENSOR_MEMBERS \
    int32_t type; \
    FAKE_T_BUFFER FAKE_T_SHAPE FAKE_T_OP FAKE_T_SRC FAKE_T_VIEW FAKE_T_DATA FAKE_T_NAME int64_t tail[9];
#define EXPECTED SERVED
#elif HOST == 8 /* a member behind the sources that is no source */
#define FAKE_TENSOR_MEMBERS \
    int32_t type; \
    FAKE_T_BUFFER FAKE_T_SHAPE FAKE_T_OP FAKE_T_SRC int64_t no_source; \
    FAKE_T_VIEW FAKE_T_DATA FAKE_T_NAME char padding[8];
#define FAKE_NO_SOURCE
#define EXPECTED SERVED
#elif HOST == 9 /* ggml 0.26 */
#define FAKE_TYPE_MEMBERS \
    FAKE_Y_NAME FAKE_Y_ALLOC FAKE_Y_ALLOC_N FAKE_Y_ALIGNMENT FAKE_Y_MAX_SIZE FAKE_Y_ALLOC_SIZE FAKE_Y_ALLOC_SIZE_N FAKE_Y_IS_HOST
#define EXPECTED SERVED
#elif HOST == 10
#define FAKE_TYPE_MEMBERS \
    FAKE_Y_NAME FAKE_Y_ALLOC FAKE_Y_ALIGNMENT FAKE_Y_MAX_SIZE FAKE_Y_ALLOC_SIZE FAKE_Y_IS_HOST void (*more[9])(void);
#define EXPECTED SERVED
#elif HOST == 11
#define FAKE_TYPE_MEMBERS FAKE_Y_IS_HOST FAKE_Y_MAX_SIZE FAKE_Y_ALLOC_SIZE FAKE_Y_ALIGNMENT FAKE_Y_ALLOC FAKE_Y_NAME
#define EXPECTED SERVED
#elif HOST == 12 /* ggml 0.9 */
#define FAKE_BUFFER_MEMBERS \
    FAKE_B_FREE FAKE_B_BASE FAKE_B_INIT FAKE_B_MEMSET FAKE_B_SET FAKE_B_GET FAKE_B_COPY FAKE_B_CLEAR FAKE_B_RESET
#define EXPECTED SERVED
#elif HOST == 13 /* a name, as in ik_llama.cpp */
#define FAKE_BUFFER_MEMBERS \
    void (*get_name)(void); \
    FAKE_B_FREE FAKE_B_BASE FAKE_B_INIT FAKE_B_MEMSET FAKE_B_SET FAKE_B_GET FAKE_B_COPY FAKE_B_CLEAR FAKE_B_RESET
#define EXPECTED SERVED
#elif HOST == 14
#define FAKE_BUFFER_MEMBERS \
    FAKE_B_RESET FAKE_B_GET FAKE_B_SET FAKE_B_MEMSET FAKE_B_2D FAKE_B_COPY FAKE_B_CLEAR FAKE_B_INIT FAKE_B_BASE FAKE_B_FREE
#define EXPECTED SERVED
#elif HOST == 15
#define FAKE_BUFFER_MEMBERS \
    FAKE_B_FREE FAKE_B_BASE FAKE_B_INIT FAKE_B_MEMSET FAKE_B_SET FAKE_B_GET FAKE_B_2D FAKE_B_COPY FAKE_B_CLEAR FAKE_B_RESET void (*more[7])(void);
#define EXPECTED SERVED
#elif HOST == 16
#define FAKE_BEHIND_BUFFER \
    size_t size; \
    void * context, * binding;
#define EXPECTED SERVED
#elif HOST == 17 /* a function that calls another member than its name says, with other arguments */
#define FAKE_TYPE_MEMBERS \
    FAKE_Y_NAME FAKE_Y_ALLOC FAKE_Y_ALLOC_N FAKE_Y_ALIGNMENT FAKE_Y_MAX_SIZE FAKE_Y_ALLOC_SIZE FAKE_Y_ALLOC_SIZE_N FAKE_Y_IS_HOST
#define FAKE_ALLOC_BY_LIST
#define EXPECTED "ggml_backend_buft_alloc_buffer calls member 2 with other arguments"
#elif HOST == 18 /* a function that needs an unknown member */
#define FAKE_BUFFER_MEMBERS \
    FAKE_B_FREE FAKE_B_BASE FAKE_B_INIT FAKE_B_MEMSET FAKE_B_SET FAKE_B_GET FAKE_B_2D FAKE_B_COPY FAKE_B_CLEAR FAKE_B_RESET \
    void (*before_set)(fake_buffer);
#define FAKE_BEFORE_SET
#define EXPECTED "ggml_backend_tensor_set"
#elif HOST == 19
#define FAKE_WITHOUT_COUNT
#define EXPECTED "ggml_graph_n_nodes is missing"
#elif HOST == 20
#define FAKE_MUL_MAT_NAME "MATMUL"
#define EXPECTED "should be \"MUL_MAT\""
#elif HOST == 21
#define FAKE_Q4_0_BYTES 20
#define EXPECTED "q4_0"
#elif HOST == 22 /* two candidates that cannot be told apart */
#define FAKE_TENSOR_MEMBERS \
    int32_t type; \
    FAKE_T_BUFFER FAKE_T_SHAPE FAKE_T_OP FAKE_T_SRC FAKE_T_VIEW FAKE_T_DATA void * second_data; \
    FAKE_T_NAME
#define FAKE_SECOND_DATA
#define EXPECTED "ggml_tensor.data"
#elif HOST == 23
#define FAKE_TENSOR_MEMBERS \
    int32_t type; \
    FAKE_T_BUFFER FAKE_T_SHAPE FAKE_T_OP FAKE_T_SRC FAKE_T_VIEW FAKE_T_DATA FAKE_T_NAME char padding[4096];
#define EXPECTED "sizeof(ggml_tensor)"
#elif HOST == 24 /* no room for a name */
#define FAKE_NAME 8
#define EXPECTED "ggml_tensor.name has 8 bytes"
#elif HOST == 25 /* GGML_MAX_DIMS 5 */
#define FAKE_TENSOR_MEMBERS \
    int32_t type; \
    FAKE_T_BUFFER int64_t ne[5]; \
    size_t nb[5]; \
    FAKE_T_OP FAKE_T_SRC FAKE_T_VIEW FAKE_T_DATA FAKE_T_NAME char padding[8];
#define EXPECTED "has not four dimensions"
#elif HOST == 26 /* the same, the other way round */
#define FAKE_TENSOR_MEMBERS \
    int32_t type; \
    FAKE_T_BUFFER size_t nb[5]; \
    int64_t ne[5]; \
    FAKE_T_OP FAKE_T_SRC FAKE_T_VIEW FAKE_T_DATA FAKE_T_NAME char padding[8];
#define EXPECTED "has not four dimensions"
#elif HOST == 27
#define FAKE_TENSOR_MEMBERS \
    int32_t type; \
    FAKE_T_BUFFER size_t nb[4]; \
    int64_t ne[4]; \
    FAKE_T_OP FAKE_T_SRC FAKE_T_VIEW FAKE_T_DATA FAKE_T_NAME char padding[8];
#define EXPECTED SERVED
#elif HOST == 28 /* aligned to a cache line */
#define FAKE_TENSOR_MEMBERS \
    int32_t type; \
    FAKE_T_BUFFER FAKE_T_SHAPE FAKE_T_OP FAKE_T_SRC FAKE_T_VIEW FAKE_T_DATA FAKE_T_NAME char padding[8] __attribute__((aligned(64)));
#define EXPECTED SERVED
#elif HOST == 29 /* numbers of 16 bits, and something else beside them */
#define FAKE_TENSOR_MEMBERS \
    int16_t type, of_host; \
    FAKE_T_BUFFER FAKE_T_SHAPE int16_t op, of_op; \
    int32_t op_params[16], flags; \
    FAKE_T_SRC FAKE_T_VIEW FAKE_T_DATA FAKE_T_NAME char padding[8];
#define FAKE_NARROW
#define EXPECTED SERVED
#elif HOST == 30 /* a counter where `extra` was */
#define FAKE_TENSOR_MEMBERS \
    int32_t type; \
    FAKE_T_BUFFER FAKE_T_SHAPE FAKE_T_OP FAKE_T_SRC FAKE_T_VIEW FAKE_T_DATA char name[64]; \
    int64_t uses; \
    char padding[8];
#define FAKE_USES
#define EXPECTED SERVED
#elif HOST == 31 /* views of views */
#define FAKE_VIEWS_OF_VIEWS
#define EXPECTED "a view of a view"
#elif HOST == 32 /* functions that call members without checking for NULL */
#define FAKE_CALLS_ALL
#define EXPECTED SERVED
#elif HOST == 33
#define FAKE_ALIGNS(buft) 64
#define EXPECTED SERVED
#elif HOST == 34
#define FAKE_WITHOUT_OP_NAMES
#define EXPECTED "should be \"MUL_MAT\""
#elif HOST == 35
#define FAKE_WITHOUT_TENSORS(type) (type == 26)
#define EXPECTED "ggml_new_tensor_4d gave NULL"
#elif HOST == 36
#define FAKE_WITHOUT_GRAPHS
#define EXPECTED "ggml_new_graph_custom gave NULL"
#elif HOST == 37
#define FAKE_ALIGNS(buft) ((buft)->get_alignment(buft))
#define EXPECTED SERVED
#elif HOST == 38
#define FAKE_CHECKS_BOUNDS
#define EXPECTED SERVED
#elif HOST == 39
static volatile int fake_no_tensors = 1; /* volatile, so that the compiler cannot know */
#define FAKE_WITHOUT_TENSORS(type) ((void) (type), fake_no_tensors)
#define EXPECTED "ggml_new_tensor_4d gave NULL"
#elif HOST == 40 /* an operation that ends the process when it has more sources than it needs */
#define FAKE_FEW_SOURCES
#define EXPECTED SERVED
#elif HOST == 41 /* pages */
#define FAKE_ALIGNS(buft) ((buft)->context ? 64 : 4096)
#define EXPECTED SERVED
#else
#error "no such host"
#endif

#include "fake_ggml.h"

#include "ggml-amx.h"

#include "child.h"

enum { K = 64, N = 32, ROWS = 2 };

struct ggml_compute_params {
    int ith, nth;
    size_t wsize;
    void * wdata, * threadpool;
};

/* Exit codes of the child. */
enum { STEPPED_ASIDE = 3, WRONG_NAME, NO_BUFFER, NOT_KEPT, REFUSED, NO_SIZE, NOT_COMPUTED, WRONG_RESULT, OVERWRITTEN };

/* A model of one matrix in our buffers, and a product with it, all through the host's functions. */
static int serve(void) {
    fake_buft buft = ggml_backend_amx_buffer_type();
    if (!buft) {
        return STEPPED_ASIDE;
    }
    if (strcmp(ggml_backend_buft_name(buft), "AMX") != 0 || ggml_backend_buft_is_host(buft)) {
        return WRONG_NAME;
    }
    void * context = ggml_init((struct fake_init_params){0, NULL, true});
    fake_tensor weights = ggml_new_tensor_4d(context, 2, K, N, 1, 1), x = ggml_new_tensor_4d(context, 0, K, ROWS, 1, 1);
    fake_tensor result = ggml_mul_mat(context, weights, x);
    fake_buffer buffer = ggml_backend_buft_alloc_buffer(buft, ggml_backend_buft_get_alloc_size(buft, weights));
    if (!buffer) {
        return NO_BUFFER;
    }
#ifdef FAKE_CALLS_ALL
    if (buft->get_max_size(buft) < 4096) {
        return NO_SIZE;
    }
#endif
    ggml_backend_tensor_alloc(buffer, weights, ggml_backend_buffer_get_base(buffer));
#ifdef FAKE_USES
    if (weights->uses != 0) {
        return OVERWRITTEN;
    }
#endif
    /* Row n consists of n % 8 - 4, scale 1. */
    uint8_t plain[N][K / 32][18], back[N][K / 32][18];
    for (int n = 0; n < N; n++) {
        for (int b = 0; b < K / 32; b++) {
            plain[n][b][0] = 0, plain[n][b][1] = 0x3c;
            memset(plain[n][b] + 2, (n % 8 + 4) * 0x11, 16);
        }
    }
    ggml_backend_tensor_set(weights, plain, 0, sizeof plain);
    ggml_backend_tensor_get(weights, back, 0, sizeof back);
    if (memcmp(plain, back, sizeof plain) != 0) {
        return NOT_KEPT;
    }
    float activations[ROWS][K], results[ROWS][N];
    for (int i = 0; i < ROWS * K; i++) {
        (&activations[0][0])[i] = i < K ? 1 : -2;
    }
    x->data = activations, result->data = results;
#ifdef FAKE_NO_SOURCE
    result->no_source = 0x123457;
#endif
#ifdef FAKE_NARROW
    weights->of_host = x->of_host = result->of_host = 1, result->of_op = 3;
#endif
    if (!ggml_backend_amx_supports_op(NULL, result)) {
        return REFUSED;
    }
    struct ggml_compute_params params = {0, 1, 0, NULL, NULL};
    if (!ggml_backend_amx_work_size(1, result, &params.wsize)) {
        return NO_SIZE;
    }
    params.wdata = malloc(params.wsize);
    if (!ggml_backend_amx_compute_forward(&params, result)) {
        return NOT_COMPUTED;
    }
    for (int m = 0; m < ROWS; m++) {
        for (int n = 0; n < N; n++) {
            const float wanted = (float) ((n % 8 - 4) * K * (m ? -2 : 1));
            if (results[m][n] < wanted - 0.01f || results[m][n] > wanted + 0.01f) {
                return WRONG_RESULT;
            }
        }
    }
    ggml_backend_buffer_clear(buffer, 0);
#ifdef FAKE_CALLS_ALL
    ggml_backend_buffer_reset(buffer);
#endif
    ggml_backend_buffer_free(buffer);
    return 0;
}

static void given_a_host_of_another_version_then_it_is_served_right_or_left_alone_with_a_reason(void) {
    const char * const env[] = {"GGML_AMX_ISA", "portable", "GGML_AMX_LOG", NULL, "GGML_AMX_MODE", NULL, NULL};
    struct child c = child_exec("serve", env);
    const char * const expected = EXPECTED;
    CHECK(c.signal == 0 && c.code == (*expected ? STEPPED_ASIDE : 0), "host %d: signal %d, exit code %d\n%s", HOST, c.signal, c.code, c.err);
    CHECK(!*expected || (strstr(c.err, "not used: ") && strstr(c.err, expected)), "host %d: no line with \"%s\"\n%s", HOST, expected, c.err);
    child_free(&c);
}

int main(int argc, char ** argv) {
    (void) argv;
    if (argc > 1) {
        return serve();
    }
    RUN(given_a_host_of_another_version_then_it_is_served_right_or_left_alone_with_a_reason);
    return harness_report("fake_layouts");
}

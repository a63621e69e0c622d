/* Every status code of the stand-alone API, provoked by hand: wrong arguments give the documented code,
 * an error text that names the wrong thing, and leave the buffers alone. No ggml in this process. */
#define _GNU_SOURCE
#include "ggml-amx.h"

#include "child.h"
#include "formats.h"

#include <pthread.h>

/* One small product that works; tests break one thing at a time. */
enum { K = 256, N = 20, M = 3 };

struct product {
    uint8_t * plain;
    uint8_t * packed;
    float src1[M * K];
    float dst[M * N];
    struct ggml_amx_mul_mat_args args;
};

static struct product product_new(void) {
    struct product p = HARNESS_ZERO;
    struct rng r = {1};
    const size_t plain = ggml_amx_plain_size(GGML_AMX_TYPE_Q4_K, K, N), packed = ggml_amx_packed_size(GGML_AMX_TYPE_Q4_K, K, N);
    p.plain = (uint8_t *) malloc(plain);
    p.packed = (uint8_t *) malloc(packed);
    format_random(&FORMATS[3], &r, p.plain, plain / 144);
    for (int i = 0; i < M * K; i++) {
        p.src1[i] = rng_normal(&r);
    }
    CHECK(ggml_amx_pack(GGML_AMX_TYPE_Q4_K, K, N, p.plain, plain, p.packed, packed) == GGML_AMX_OK, "%s", ggml_amx_last_error());
    p.args.struct_size = sizeof p.args;
    p.args.type = GGML_AMX_TYPE_Q4_K;
    p.args.n_threads = 1;
    p.args.k = K, p.args.n = N, p.args.m = M;
    p.args.packed = p.packed, p.args.packed_size = packed;
    p.args.src1_stride = K * sizeof(float);
    p.args.dst_stride = N * sizeof(float);
    return p;
}

static void product_free(struct product * p) {
    free(p->plain);
    free(p->packed);
}

/* Calls with the product's own buffers, dst poisoned, and tells whether dst was left alone. */
static int32_t product_run(struct product * p, bool * dst_untouched) {
    memset(p->dst, 0xff, sizeof p->dst);
    if (!p->args.src1) {
        p->args.src1 = p->src1;
    }
    if (!p->args.dst) {
        p->args.dst = p->dst;
    }
    const int32_t status = ggml_amx_mul_mat(&p->args);
    *dst_untouched = true;
    for (size_t i = 0; i < sizeof p->dst; i++) {
        *dst_untouched = *dst_untouched && ((const uint8_t *) p->dst)[i] == 0xff;
    }
    return status;
}

/* Does the text contain `word` between characters that are no part of a name? ("" = anything non-empty) */
static bool names(const char * text, const char * word) {
    const size_t n = strlen(word);
    for (const char * at = text; (at = strstr(at, word)) != NULL && *at; at++) {
        const char before = at == text ? ' ' : at[-1], after = at[n];
        const char * const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
        if (n == 0 || (!strchr(letters, before) && (after == 0 || !strchr(letters, after)))) {
            return true;
        }
    }
    return false;
}

/* The last call failed with this status, and its text names `word`. */
#define CHECK_STATUS(got, want, word)                                                                                  \
    do {                                                                                                               \
        const int32_t status_ = (got);                                                                                 \
        CHECK(status_ == (want), "status %d, last error \"%s\"", status_, ggml_amx_last_error());                      \
        CHECK(names(ggml_amx_last_error(), (word)), "last error \"%s\" does not name %s", ggml_amx_last_error(), (word)); \
        CHECK(strchr(ggml_amx_last_error(), '\n') == NULL, "last error is one line");                                  \
    } while (0)

static void given_a_correct_call_then_it_succeeds_and_leaves_no_error(void) {
    struct product p = product_new();
    bool untouched;
    const int32_t status = product_run(&p, &untouched);
    CHECK(status == GGML_AMX_OK && !untouched, "status %d: %s", status, ggml_amx_last_error());
    CHECK(ggml_amx_last_error()[0] == 0, "last error after success is \"%s\"", ggml_amx_last_error());
    product_free(&p);
}

static void given_a_null_pointer_then_the_text_says_which_argument(void) {
    struct product p = product_new();
    const size_t plain = ggml_amx_plain_size(GGML_AMX_TYPE_Q4_K, K, N), packed = p.args.packed_size;
    CHECK_STATUS(ggml_amx_pack(GGML_AMX_TYPE_Q4_K, K, N, NULL, plain, p.packed, packed), GGML_AMX_NULL_POINTER, "plain");
    CHECK_STATUS(ggml_amx_pack(GGML_AMX_TYPE_Q4_K, K, N, p.plain, plain, NULL, packed), GGML_AMX_NULL_POINTER, "packed");
    CHECK_STATUS(ggml_amx_unpack(GGML_AMX_TYPE_Q4_K, K, N, NULL, packed, p.plain, plain), GGML_AMX_NULL_POINTER, "packed");
    CHECK_STATUS(ggml_amx_unpack(GGML_AMX_TYPE_Q4_K, K, N, p.packed, packed, NULL, plain), GGML_AMX_NULL_POINTER, "plain");
    CHECK_STATUS(ggml_amx_mul_mat(NULL), GGML_AMX_NULL_POINTER, "args");
    struct ggml_amx_mul_mat_args args = p.args;
    args.src1 = p.src1, args.dst = p.dst, args.packed = NULL;
    CHECK_STATUS(ggml_amx_mul_mat(&args), GGML_AMX_NULL_POINTER, "packed");
    args = p.args, args.src1 = NULL, args.dst = p.dst;
    CHECK_STATUS(ggml_amx_mul_mat(&args), GGML_AMX_NULL_POINTER, "src1");
    args = p.args, args.src1 = p.src1, args.dst = NULL;
    CHECK_STATUS(ggml_amx_mul_mat(&args), GGML_AMX_NULL_POINTER, "dst");
    product_free(&p);
}

static void given_a_wrong_struct_size_then_nothing_else_of_the_struct_is_believed(void) {
    const size_t sizes[] = {0, 8, sizeof(struct ggml_amx_mul_mat_args) - 1, sizeof(struct ggml_amx_mul_mat_args) + 8, SIZE_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct product p = product_new();
        bool untouched;
        p.args.struct_size = sizes[i];
        CHECK_STATUS(product_run(&p, &untouched), GGML_AMX_BAD_STRUCT_SIZE, "struct_size");
        CHECK(untouched, "dst was written");
        product_free(&p);
    }
}

/* Types whose codebooks are ggml's, in a process without ggml: they can still be packed. */
static void given_a_type_with_a_codebook_and_no_ggml_then_it_is_packed_but_not_multiplied(void) {
    const struct {
        int32_t type;
        const char * name;
        size_t block_bytes;
    } types[] = {
        {GGML_AMX_TYPE_IQ3_XXS, "iq3_xxs", 98}, {GGML_AMX_TYPE_IQ3_S, "iq3_s", 110}, {GGML_AMX_TYPE_IQ2_XXS, "iq2_xxs", 66},
        {GGML_AMX_TYPE_IQ2_XS, "iq2_xs", 74},   {GGML_AMX_TYPE_IQ2_S, "iq2_s", 82},  {GGML_AMX_TYPE_IQ1_S, "iq1_s", 50},
        {GGML_AMX_TYPE_IQ1_M, "iq1_m", 56},
    };
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        struct product p = product_new();
        const int32_t type = types[i].type;
        const size_t size = ggml_amx_plain_size(type, K, N), packed = ggml_amx_packed_size(type, K, N);
        CHECK(size == K / 256 * N * types[i].block_bytes, "%s: plain size %zu", types[i].name, size);
        CHECK(packed <= p.args.packed_size, "%s takes more room than Q4_K", types[i].name);
        uint8_t * back = (uint8_t *) malloc(size);
        CHECK(ggml_amx_pack(type, K, N, p.plain, size, p.packed, packed) == GGML_AMX_OK, "%s", ggml_amx_last_error());
        CHECK(ggml_amx_unpack(type, K, N, p.packed, packed, back, size) == GGML_AMX_OK, "%s", ggml_amx_last_error());
        CHECK(memcmp(back, p.plain, size) == 0, "%s: other bytes came back", types[i].name);
        free(back);
        bool untouched;
        p.args.type = type;
        CHECK_STATUS(product_run(&p, &untouched), GGML_AMX_NOT_AVAILABLE, types[i].name);
        CHECK_STATUS(product_run(&p, &untouched), GGML_AMX_NOT_AVAILABLE, "ggml");
        CHECK(untouched, "dst was written");
        product_free(&p);
    }
}

static void given_a_type_that_is_not_packed_then_it_is_called_unknown(void) {
    const int32_t types[] = {0, 1, 4, 9, 15, 24, 28, 30, 36, 43, 1000, -1, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        struct product p = product_new();
        const size_t plain = ggml_amx_plain_size(GGML_AMX_TYPE_Q4_K, K, N);
        char number[16];
        snprintf(number, sizeof number, "%d", types[i]);
        CHECK_STATUS(ggml_amx_pack(types[i], K, N, p.plain, plain, p.packed, p.args.packed_size), GGML_AMX_UNKNOWN_TYPE, number);
        CHECK_STATUS(ggml_amx_unpack(types[i], K, N, p.packed, p.args.packed_size, p.plain, plain), GGML_AMX_UNKNOWN_TYPE, number);
        CHECK(ggml_amx_plain_size(types[i], K, N) == 0, "a size for type %d", types[i]);
        CHECK(names(ggml_amx_last_error(), number), "\"%s\" does not name %s", ggml_amx_last_error(), number);
        CHECK(ggml_amx_packed_size(types[i], K, N) == 0, "a packed size for type %d", types[i]);
        bool untouched;
        p.args.type = types[i];
        CHECK_STATUS(product_run(&p, &untouched), GGML_AMX_UNKNOWN_TYPE, number);
        CHECK(untouched, "dst was written");
        product_free(&p);
    }
}

struct shape {
    int64_t k, n, m;
    const char * word; /* what the text must name */
};

static void given_an_impossible_shape_then_no_buffer_is_touched(void) {
    const int64_t huge = INT64_MAX / 256 * 256; /* a multiple of every block */
    const struct shape shapes[] = {
        {1, N, M, "k"},       {255, N, M, "k"},       {257, N, M, "k"},     {-256, N, M, "k"},   {INT64_MIN, N, M, "k"},
        {INT64_MAX, N, M, "k"}, {K, -1, M, "n"},      {K, INT64_MIN, M, "n"}, {K, N, -1, "m"},     {K, N, INT64_MIN, "m"},
        {huge, N, M, ""},     {K, INT64_MAX, M, ""},  {huge, INT64_MAX, M, ""}, {huge, huge, huge, ""}, {K, INT64_MAX / 16, M, ""},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        const struct shape s = shapes[i];
        struct product p = product_new();
        const size_t plain = ggml_amx_plain_size(GGML_AMX_TYPE_Q4_K, K, N), packed = p.args.packed_size;
        if (s.m == M) {
            CHECK_STATUS(ggml_amx_pack(GGML_AMX_TYPE_Q4_K, s.k, s.n, p.plain, plain, p.packed, packed), GGML_AMX_BAD_SHAPE, s.word);
            CHECK_STATUS(ggml_amx_unpack(GGML_AMX_TYPE_Q4_K, s.k, s.n, p.packed, packed, p.plain, plain), GGML_AMX_BAD_SHAPE, s.word);
            CHECK(ggml_amx_plain_size(GGML_AMX_TYPE_Q4_K, s.k, s.n) == 0, "a size for %lld x %lld", (long long) s.k, (long long) s.n);
            CHECK(ggml_amx_packed_size(GGML_AMX_TYPE_Q4_K, s.k, s.n) == 0, "a packed size for %lld x %lld", (long long) s.k, (long long) s.n);
            CHECK(ggml_amx_last_error()[0] != 0, "a size of 0 comes without an error text");
        }
        bool untouched;
        p.args.k = s.k, p.args.n = s.n, p.args.m = s.m;
        p.args.src1_stride = p.args.dst_stride = SIZE_MAX / 4 * 4;
        CHECK_STATUS(product_run(&p, &untouched), GGML_AMX_BAD_SHAPE, s.word);
        CHECK(untouched, "dst was written");
        product_free(&p);
    }
}

static void given_row_counts_and_strides_whose_product_overflows_then_the_call_is_refused(void) {
    const size_t strides[] = {SIZE_MAX / 4 * 4, SIZE_MAX / 8 * 4, (size_t) INT64_MAX / 2 * 4};
    for (size_t i = 0; i < 6; i++) {
        struct product p = product_new();
        bool untouched;
        *(i % 2 ? &p.args.src1_stride : &p.args.dst_stride) = strides[i / 2];
        p.args.m = INT64_MAX;
        const int32_t status = product_run(&p, &untouched);
        CHECK(status == GGML_AMX_BAD_SHAPE || status == GGML_AMX_OUT_OF_BOUNDS, "status %d: %s", status, ggml_amx_last_error());
        CHECK(ggml_amx_last_error()[0] != 0 && untouched, "dst was written, or no text");
        product_free(&p);
    }
}

static void given_a_buffer_one_byte_too_small_then_the_text_says_which(void) {
    struct product p = product_new();
    const size_t plain = ggml_amx_plain_size(GGML_AMX_TYPE_Q4_K, K, N), packed = p.args.packed_size;
    const size_t plain_sizes[] = {plain - 1, 1, 0}, packed_sizes[] = {packed - 1, plain, 0};
    for (int i = 0; i < 3; i++) {
        CHECK_STATUS(ggml_amx_pack(GGML_AMX_TYPE_Q4_K, K, N, p.plain, plain_sizes[i], p.packed, packed), GGML_AMX_BUFFER_TOO_SMALL, "plain");
        CHECK_STATUS(ggml_amx_pack(GGML_AMX_TYPE_Q4_K, K, N, p.plain, plain, p.packed, packed_sizes[i]), GGML_AMX_BUFFER_TOO_SMALL, "packed");
        CHECK_STATUS(ggml_amx_unpack(GGML_AMX_TYPE_Q4_K, K, N, p.packed, packed_sizes[i], p.plain, plain), GGML_AMX_BUFFER_TOO_SMALL, "packed");
        CHECK_STATUS(ggml_amx_unpack(GGML_AMX_TYPE_Q4_K, K, N, p.packed, packed, p.plain, plain_sizes[i]), GGML_AMX_BUFFER_TOO_SMALL, "plain");
        bool untouched;
        p.args.packed_size = packed_sizes[i];
        CHECK_STATUS(product_run(&p, &untouched), GGML_AMX_BUFFER_TOO_SMALL, "packed");
        CHECK(untouched, "dst was written");
    }
    product_free(&p);
}

/* The header promises it: an error leaves the target as it was. */
static void given_an_error_then_pack_and_unpack_leave_their_target_alone(void) {
    struct product p = product_new();
    const size_t plain = ggml_amx_plain_size(GGML_AMX_TYPE_Q4_K, K, N), packed = p.args.packed_size;
    uint8_t * target = (uint8_t *) malloc(packed);
    memset(target, 0xa5, packed);
    ggml_amx_pack(99, K, N, p.plain, plain, target, packed);
    ggml_amx_pack(GGML_AMX_TYPE_Q4_K, K + 1, N, p.plain, plain, target, packed);
    ggml_amx_pack(GGML_AMX_TYPE_Q4_K, K, N, p.plain, plain - 1, target, packed);
    ggml_amx_pack(GGML_AMX_TYPE_Q4_K, K, N, p.plain, plain, target, packed - 1);
    ggml_amx_pack(GGML_AMX_TYPE_Q4_K, K, N, NULL, plain, target, packed);
    ggml_amx_unpack(99, K, N, p.packed, packed, target, plain);
    ggml_amx_unpack(GGML_AMX_TYPE_Q4_K, K, N, p.packed, packed - 1, target, plain);
    ggml_amx_unpack(GGML_AMX_TYPE_Q4_K, K, N, p.packed, packed, target, plain - 1);
    ggml_amx_unpack(GGML_AMX_TYPE_Q4_K, K, N, NULL, packed, target, plain);
    for (size_t i = 0; i < packed; i++) {
        if (!CHECK(target[i] == 0xa5, "byte %zu was written", i)) {
            break;
        }
    }
    free(target);
    product_free(&p);
}

/* A product with this stride of src1 or dst is refused with an error that names it. */
static void check_stride_is_refused(bool is_src1, size_t stride) {
    struct product p = product_new();
    bool untouched;
    *(is_src1 ? &p.args.src1_stride : &p.args.dst_stride) = stride;
    CHECK_STATUS(product_run(&p, &untouched), GGML_AMX_OUT_OF_BOUNDS, is_src1 ? "src1_stride" : "dst_stride");
    CHECK(untouched, "dst was written");
    product_free(&p);
}

static void given_a_stride_shorter_than_a_row_then_it_is_out_of_bounds(void) {
    const size_t src1_strides[] = {K * sizeof(float) - 4, 4, 0}, dst_strides[] = {N * sizeof(float) - 4, 4, 0};
    for (int i = 0; i < 3; i++) {
        check_stride_is_refused(true, src1_strides[i]);
        check_stride_is_refused(false, dst_strides[i]);
    }
}

static void given_a_stride_that_is_no_multiple_of_4_then_it_is_out_of_bounds(void) {
    for (size_t more = 1; more < 4; more++) {
        check_stride_is_refused(true, K * sizeof(float) + more);
        check_stride_is_refused(false, N * sizeof(float) + more);
    }
}

static void given_no_rows_of_weights_then_the_size_is_0_without_an_error(void) {
    struct product p = product_new();
    CHECK(ggml_amx_mul_mat(NULL) != GGML_AMX_OK, "provokes an error");
    CHECK(ggml_amx_plain_size(GGML_AMX_TYPE_Q4_K, K, 0) == 0 && ggml_amx_last_error()[0] == 0, "last error \"%s\"", ggml_amx_last_error());
    CHECK(ggml_amx_packed_size(GGML_AMX_TYPE_Q4_K, K, 0) == 0 && ggml_amx_last_error()[0] == 0, "last error \"%s\"", ggml_amx_last_error());
    bool untouched;
    p.args.n = 0;
    const int32_t status = product_run(&p, &untouched);
    CHECK(status == GGML_AMX_OK && untouched, "status %d: %s", status, ggml_amx_last_error());
    product_free(&p);
}

static void given_rows_of_no_weights_then_the_products_are_0(void) {
    struct product p = product_new();
    bool untouched;
    p.args.k = 0;
    const int32_t status = product_run(&p, &untouched);
    CHECK(status == GGML_AMX_OK, "status %d: %s", status, ggml_amx_last_error());
    for (int i = 0; i < M * N; i++) {
        CHECK(p.dst[i] == 0, "dst[%d] is %g: an empty sum is 0", i, (double) p.dst[i]);
    }
    product_free(&p);
}

static void given_no_rows_of_activations_then_nothing_is_written(void) {
    struct product p = product_new();
    bool untouched;
    p.args.m = 0;
    const int32_t status = product_run(&p, &untouched);
    CHECK(status == GGML_AMX_OK && untouched, "status %d: %s", status, ggml_amx_last_error());
    product_free(&p);
}

static void given_any_number_of_threads_then_the_call_works(void) {
    const int32_t threads[] = {0, 1, 3, 64, 1000000};
    for (int i = 0; i < 5; i++) {
        struct product p = product_new();
        bool untouched;
        p.args.n_threads = threads[i];
        const int32_t status = product_run(&p, &untouched);
        CHECK(status == GGML_AMX_OK && !untouched, "%d threads: status %d: %s", threads[i], status, ggml_amx_last_error());
        product_free(&p);
    }
    struct product p = product_new();
    bool untouched;
    p.args.n_threads = -1;
    const int32_t status = product_run(&p, &untouched);
    CHECK(status != GGML_AMX_OK && untouched, "-1 threads: status %d", status);
    CHECK(names(ggml_amx_last_error(), "n_threads"), "\"%s\" does not name n_threads", ggml_amx_last_error());
    product_free(&p);
}

static void given_a_reserved_field_that_is_set_then_the_call_is_refused(void) {
    struct product p = product_new();
    bool untouched;
    p.args.reserved = 1;
    const int32_t status = product_run(&p, &untouched);
    CHECK(status != GGML_AMX_OK && untouched, "status %d", status);
    CHECK(names(ggml_amx_last_error(), "reserved"), "\"%s\" does not name reserved", ggml_amx_last_error());
    product_free(&p);
}

/* Checks isa 0..3 against what this process may use; -1 and 4 are no instruction sets. */
static void given_each_instruction_set_then_those_above_what_is_usable_are_not_available(void) {
    const int32_t best = ggml_amx_isa_available();
    for (int32_t isa = -1; isa <= 4; isa++) {
        struct product p = product_new();
        bool untouched;
        p.args.isa = isa;
        const int32_t status = product_run(&p, &untouched);
        if (isa >= 0 && isa <= best) {
            CHECK(status == GGML_AMX_OK && !untouched, "isa %d: status %d: %s", isa, status, ggml_amx_last_error());
        } else {
            CHECK(status != GGML_AMX_OK && untouched, "isa %d: status %d", isa, status);
            CHECK(isa < 0 || isa > 3 || status == GGML_AMX_NOT_AVAILABLE, "isa %d: status %d", isa, status);
            CHECK(ggml_amx_last_error()[0] != 0, "isa %d: no error text", isa);
        }
        product_free(&p);
    }
}

/* The child, where the environment lowers the ceiling: the same checks, and one of the ceiling. */
static int under_a_ceiling(int want) {
    harness_test = "under_a_ceiling";
    CHECK(ggml_amx_isa_available() <= want, "GGML_AMX_ISA allows %d, isa_available is %d", want, ggml_amx_isa_available());
    CHECK(ggml_amx_isa_reason()[0] != 0, "no reason although AMX is not usable");
    RUN(given_each_instruction_set_then_those_above_what_is_usable_are_not_available);
    return harness_report("under_a_ceiling");
}

static void given_a_lower_ceiling_in_the_environment_then_higher_instruction_sets_are_not_available(void) {
    const char * const portable[] = {"GGML_AMX_ISA", "portable", NULL}, * const avx512[] = {"GGML_AMX_ISA", "avx512", NULL};
    struct child one = child_exec("portable", portable), two = child_exec("avx512", avx512);
    CHECK(one.code == 0, "portable: exit %d signal %d\n%s%s", one.code, one.signal, one.out, one.err);
    CHECK(two.code == 0, "avx512: exit %d signal %d\n%s%s", two.code, two.signal, two.out, two.err);
    child_free(&one);
    child_free(&two);
}

static void * last_error_of_a_new_thread(void * result) {
    snprintf((char *) result, 64, "%s", ggml_amx_last_error());
    return NULL;
}

static void given_an_error_on_one_thread_then_other_threads_do_not_see_it(void) {
    CHECK(ggml_amx_mul_mat(NULL) == GGML_AMX_NULL_POINTER, "provokes an error");
    char text[64] = "not set";
    pthread_t thread;
    pthread_create(&thread, NULL, last_error_of_a_new_thread, text);
    pthread_join(thread, NULL);
    CHECK(text[0] == 0, "a fresh thread sees \"%s\"", text);
    CHECK(ggml_amx_last_error()[0] != 0, "this thread lost its error");
}

static void given_overlong_buffers_then_the_rest_is_left_alone(void) {
    struct product p = product_new();
    const size_t plain = ggml_amx_plain_size(GGML_AMX_TYPE_Q4_K, K, N), packed = p.args.packed_size;
    uint8_t * back = (uint8_t *) malloc(plain + 64);
    memset(back, 0xa5, plain + 64);
    CHECK(ggml_amx_unpack(GGML_AMX_TYPE_Q4_K, K, N, p.packed, packed, back, plain + 64) == GGML_AMX_OK, "%s", ggml_amx_last_error());
    CHECK(memcmp(back, p.plain, plain) == 0, "unpacked bytes differ");
    for (size_t i = plain; i < plain + 64; i++) {
        CHECK(back[i] == 0xa5, "byte %zu behind the tensor was written", i - plain);
    }
    free(back);
    product_free(&p);
}

int main(int argc, char ** argv) {
    if (argc > 1) {
        return under_a_ceiling(strcmp(argv[1], "portable") == 0 ? GGML_AMX_ISA_PORTABLE : GGML_AMX_ISA_AVX512);
    }
    RUN(given_a_correct_call_then_it_succeeds_and_leaves_no_error);
    RUN(given_a_null_pointer_then_the_text_says_which_argument);
    RUN(given_a_wrong_struct_size_then_nothing_else_of_the_struct_is_believed);
    RUN(given_a_type_with_a_codebook_and_no_ggml_then_it_is_packed_but_not_multiplied);
    RUN(given_a_type_that_is_not_packed_then_it_is_called_unknown);
    RUN(given_an_impossible_shape_then_no_buffer_is_touched);
    RUN(given_row_counts_and_strides_whose_product_overflows_then_the_call_is_refused);
    RUN(given_a_buffer_one_byte_too_small_then_the_text_says_which);
    RUN(given_an_error_then_pack_and_unpack_leave_their_target_alone);
    RUN(given_a_stride_shorter_than_a_row_then_it_is_out_of_bounds);
    RUN(given_a_stride_that_is_no_multiple_of_4_then_it_is_out_of_bounds);
    RUN(given_no_rows_of_weights_then_the_size_is_0_without_an_error);
    RUN(given_rows_of_no_weights_then_the_products_are_0);
    RUN(given_no_rows_of_activations_then_nothing_is_written);
    RUN(given_any_number_of_threads_then_the_call_works);
    RUN(given_a_reserved_field_that_is_set_then_the_call_is_refused);
    RUN(given_each_instruction_set_then_those_above_what_is_usable_are_not_available);
    RUN(given_a_lower_ceiling_in_the_environment_then_higher_instruction_sets_are_not_available);
    RUN(given_an_error_on_one_thread_then_other_threads_do_not_see_it);
    RUN(given_overlong_buffers_then_the_rest_is_left_alone);
    return harness_report("api_status");
}

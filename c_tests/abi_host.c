/* The layouts the library relies on, asked of the compiler with the host's real headers: the table in
 * docs (sizes and offsets of ggml 0.25.3), and formats.h against the host's own dequantisers. */
#define _GNU_SOURCE
#include "host.h"

#include "formats.h"

#include <ggml-backend-impl.h>
#include <ggml-cpu-impl.h>

struct entry {
    const char * what;
    size_t got, want;
};

#define AT(type, member, place) {#type "." #member, offsetof(struct type, member), (place)}
#define SIZE(type, size) {"sizeof " #type, sizeof(struct type), (size)}
#define NUMBER(name, value) {#name, (size_t) (name), (value)}

static void check_entries(const struct entry * entries, size_t n) {
    for (size_t i = 0; i < n; i++) {
        CHECK(entries[i].got == entries[i].want, "%s is %zu, the library expects %zu", entries[i].what, entries[i].got, entries[i].want);
    }
}
#define CHECK_ENTRIES(entries) check_entries(entries, sizeof(entries) / sizeof((entries)[0]))

static void given_the_headers_then_ggml_tensor_has_the_expected_layout(void) {
    static const struct entry entries[] = {
        SIZE(ggml_tensor, 336),         AT(ggml_tensor, type, 0),     AT(ggml_tensor, buffer, 8),      AT(ggml_tensor, ne, 16),
        AT(ggml_tensor, nb, 48),        AT(ggml_tensor, op, 80),      AT(ggml_tensor, op_params, 84),  AT(ggml_tensor, flags, 148),
        AT(ggml_tensor, src, 152),      AT(ggml_tensor, view_src, 232), AT(ggml_tensor, view_offs, 240), AT(ggml_tensor, data, 248),
        AT(ggml_tensor, name, 256),     AT(ggml_tensor, extra, 320),  {"GGML_MAX_SRC", GGML_MAX_SRC, 10}, {"GGML_MAX_DIMS", GGML_MAX_DIMS, 4},
        {"GGML_MAX_NAME", GGML_MAX_NAME, 64}, {"sizeof op", sizeof(((struct ggml_tensor *) 0)->op), 4},
        {"sizeof type", sizeof(((struct ggml_tensor *) 0)->type), 4},
    };
    CHECK_ENTRIES(entries);
}

static void given_the_headers_then_buffer_types_have_the_expected_layout(void) {
    static const struct entry entries[] = {
        SIZE(ggml_backend_buffer_type_i, 48),
        AT(ggml_backend_buffer_type_i, get_name, 0),
        AT(ggml_backend_buffer_type_i, alloc_buffer, 8),
        AT(ggml_backend_buffer_type_i, get_alignment, 16),
        AT(ggml_backend_buffer_type_i, get_max_size, 24),
        AT(ggml_backend_buffer_type_i, get_alloc_size, 32),
        AT(ggml_backend_buffer_type_i, is_host, 40),
        SIZE(ggml_backend_buffer_type, 64),
        AT(ggml_backend_buffer_type, iface, 0),
        AT(ggml_backend_buffer_type, device, 48),
        AT(ggml_backend_buffer_type, context, 56),
    };
    CHECK_ENTRIES(entries);
}

static void given_the_headers_then_buffers_have_the_expected_layout(void) {
    static const struct entry entries[] = {
        SIZE(ggml_backend_buffer_i, 88),
        AT(ggml_backend_buffer_i, free_buffer, 0),
        AT(ggml_backend_buffer_i, get_base, 8),
        AT(ggml_backend_buffer_i, init_tensor, 16),
        AT(ggml_backend_buffer_i, memset_tensor, 24),
        AT(ggml_backend_buffer_i, set_tensor, 32),
        AT(ggml_backend_buffer_i, get_tensor, 40),
        AT(ggml_backend_buffer_i, set_tensor_2d, 48),
        AT(ggml_backend_buffer_i, get_tensor_2d, 56),
        AT(ggml_backend_buffer_i, cpy_tensor, 64),
        AT(ggml_backend_buffer_i, clear, 72),
        AT(ggml_backend_buffer_i, reset, 80),
        SIZE(ggml_backend_buffer, 120),
        AT(ggml_backend_buffer, iface, 0),
        AT(ggml_backend_buffer, buft, 88),
        AT(ggml_backend_buffer, context, 96),
        AT(ggml_backend_buffer, size, 104),
        AT(ggml_backend_buffer, usage, 112),
    };
    CHECK_ENTRIES(entries);
}

static void given_the_headers_then_compute_params_have_the_expected_layout(void) {
    static const struct entry entries[] = {
        SIZE(ggml_compute_params, 40),          AT(ggml_compute_params, ith, 0),         AT(ggml_compute_params, nth, 4),
        AT(ggml_compute_params, wsize, 8),      AT(ggml_compute_params, wdata, 16),      AT(ggml_compute_params, threadpool, 24),
        AT(ggml_compute_params, use_ref, 32),
    };
    CHECK_ENTRIES(entries);
}

static void given_the_headers_then_op_type_and_status_numbers_are_the_expected_ones(void) {
    static const struct entry entries[] = {
        NUMBER(GGML_OP_NONE, 0),        NUMBER(GGML_OP_MUL_MAT, 29),    NUMBER(GGML_OP_MUL_MAT_ID, 30), NUMBER(GGML_OP_GET_ROWS, 40),
        NUMBER(GGML_OP_FLASH_ATTN_EXT, 74), NUMBER(GGML_TYPE_F32, 0),   NUMBER(GGML_TYPE_F16, 1),       NUMBER(GGML_TYPE_Q4_0, 2),
        NUMBER(GGML_TYPE_Q4_1, 3),      NUMBER(GGML_TYPE_Q8_0, 8),      NUMBER(GGML_TYPE_Q4_K, 12),     NUMBER(GGML_TYPE_Q5_K, 13),
        NUMBER(GGML_TYPE_Q6_K, 14),     NUMBER(GGML_TYPE_IQ4_XS, 23),   NUMBER(GGML_TYPE_I32, 26),      NUMBER(GGML_STATUS_SUCCESS, 0),
        NUMBER(GGML_TYPE_Q5_0, 6),       NUMBER(GGML_TYPE_Q5_1, 7),       NUMBER(GGML_TYPE_Q2_K, 10),      NUMBER(GGML_TYPE_Q3_K, 11),
        NUMBER(GGML_TYPE_IQ4_NL, 20),    NUMBER(GGML_TYPE_TQ1_0, 34),     NUMBER(GGML_TYPE_TQ2_0, 35),     NUMBER(GGML_TYPE_MXFP4, 39),
        NUMBER(GGML_TYPE_NVFP4, 40),     NUMBER(GGML_TYPE_Q1_0, 41),      NUMBER(GGML_TYPE_Q2_0, 42),      NUMBER(GGML_BACKEND_API_VERSION, 2),
    };
    CHECK_ENTRIES(entries);
}

/* The members lie where the header says, in an object the host itself built: a buffer, a view, an op node. */
static void given_objects_made_by_the_host_then_the_fields_are_where_the_headers_say(void) {
    struct ggml_context * context = host_context(8);
    struct ggml_tensor * w = ggml_new_tensor_2d(context, GGML_TYPE_Q4_K, 512, 48);
    struct ggml_tensor * view = ggml_view_2d(context, w, 512, 40, w->nb[1], 5 * w->nb[1]);
    struct ggml_tensor * op = ggml_mul_mat(context, view, ggml_new_tensor_2d(context, GGML_TYPE_F32, 512, 7));
    const char * raw = (const char *) view;
    struct ggml_tensor * parent;
    size_t offset;
    memcpy(&parent, raw + 232, sizeof parent);
    memcpy(&offset, raw + 240, sizeof offset);
    CHECK(parent == w && offset == 5 * w->nb[1], "view_src %p view_offs %zu", (void *) parent, offset);
    int32_t number;
    memcpy(&number, (const char *) op + 80, sizeof number);
    CHECK(number == 29, "op is %d", number);
    memcpy(&parent, (const char *) op + 152, sizeof parent);
    CHECK(parent == view, "src[0] is not at 152");
    ggml_free(context);
}

static void given_random_blocks_then_the_dequantisers_of_these_tests_are_the_hosts(void) {
    struct rng r = {40};
    uint8_t * blocks = (uint8_t *) malloc(64 * 256);
    float got[64 * 256], want[64 * 256];
    for (int f = 0; f < N_HOST_FORMATS; f++) {
        const struct format * format = &FORMATS[f];
        const struct ggml_type_traits * traits = ggml_get_type_traits((enum ggml_type) format->type);
        CHECK(traits->blck_size == format->block && traits->type_size == (size_t) format->block_bytes, "%s: blocks of %lld weights in %zu bytes",
              traits->type_name, (long long) traits->blck_size, traits->type_size);
        format_random(format, &r, blocks, 64);
        format_dequantise(format, blocks, got, 64 * format->block);
        traits->to_float(blocks, want, 64 * format->block);
        CHECK(memcmp(got, want, (size_t) (64 * format->block) * sizeof(float)) == 0, "%s: other floats", format->name);
    }
    free(blocks);
}

int main(void) {
    host_open();
    RUN(given_the_headers_then_ggml_tensor_has_the_expected_layout);
    RUN(given_the_headers_then_buffer_types_have_the_expected_layout);
    RUN(given_the_headers_then_buffers_have_the_expected_layout);
    RUN(given_the_headers_then_compute_params_have_the_expected_layout);
    RUN(given_the_headers_then_op_type_and_status_numbers_are_the_expected_ones);
    RUN(given_objects_made_by_the_host_then_the_fields_are_where_the_headers_say);
    RUN(given_random_blocks_then_the_dequantisers_of_these_tests_are_the_hosts);
    return harness_report("abi_host");
}

/* Compares the struct layouts that the library finds out or relies on with the host's real headers, and formats.h with
 * the host's own dequantisers. */
#define _GNU_SOURCE
#include "host.h"

#include "child.h"
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

/* What the library says that it found, against what the compiler makes of the host's headers. */
static void given_the_headers_then_the_layout_that_was_found_is_theirs(void) {
    const char * const env[] = {"GGML_AMX_LOG", "debug", "GGML_AMX_ISA", "portable", "GGML_AMX_MODE", NULL, NULL};
    struct child c = child_exec("open", env);
    CHECK(c.signal == 0 && c.code == 0, "signal %d, exit code %d\n%s", c.signal, c.code, c.err);
    char tensor[512], buffer[512], buffer_type[512];
#define T(member) offsetof(struct ggml_tensor, member)
#define B(member) (offsetof(struct ggml_backend_buffer, member) / 8)
#define Y(member) (offsetof(struct ggml_backend_buffer_type, member) / 8)
    snprintf(tensor, sizeof tensor,
             "TensorLayout { size: %zu, ty: %zu, buffer: %zu, ne: %zu, nb: %zu, op: %zu, op_params: %zu, src: %zu, sources: %d, view_src: %zu, "
             "view_offs: %zu, data: %zu, name: %zu, name_bytes: %d, extra: Some(%zu) }",
             sizeof(struct ggml_tensor), T(type), T(buffer), T(ne), T(nb), T(op), T(op_params), T(src), GGML_MAX_SRC, T(view_src), T(view_offs), T(data),
             T(name), GGML_MAX_NAME, T(extra));
    snprintf(buffer, sizeof buffer,
             "BufferLayout { members: %zu, get_name: None, free_buffer: %zu, get_base: %zu, init_tensor: %zu, memset_tensor: Some(%zu), set_tensor: %zu, "
             "get_tensor: %zu, set_tensor_2d: Some(%zu), get_tensor_2d: Some(%zu), cpy_tensor: Some(%zu), clear: %zu, reset: Some(%zu), buft: %zu, context: %zu, size: %zu, "
             "usage: Some(%zu) }",
             B(buft), B(iface.free_buffer), B(iface.get_base), B(iface.init_tensor), B(iface.memset_tensor), B(iface.set_tensor), B(iface.get_tensor),
             B(iface.set_tensor_2d), B(iface.get_tensor_2d), B(iface.cpy_tensor), B(iface.clear), B(iface.reset), B(buft), B(context), B(size), B(usage));
    snprintf(buffer_type, sizeof buffer_type,
             "BufferTypeLayout { get_name: %zu, alloc_buffer: %zu, get_alignment: %zu, get_max_size: Some(%zu), get_alloc_size: %zu, is_host: %zu, device: Some(%zu) }",
             Y(iface.get_name), Y(iface.alloc_buffer), Y(iface.get_alignment), Y(iface.get_max_size), Y(iface.get_alloc_size), Y(iface.is_host), Y(device));
    const char * const wanted[] = {tensor, buffer, buffer_type};
    for (int i = 0; i < 3; i++) {
        CHECK(strstr(c.err, wanted[i]), "%s was not found:\n%s", wanted[i], c.err);
    }
    CHECK(Y(device) + 1 == Y(context), "the context of a buffer type does not lie behind its device");
    child_free(&c);
}

static void given_the_headers_then_compute_params_have_the_expected_layout(void) {
    static const struct entry entries[] = {
        SIZE(ggml_compute_params, 40),          AT(ggml_compute_params, ith, 0),         AT(ggml_compute_params, nth, 4),
        AT(ggml_compute_params, wsize, 8),      AT(ggml_compute_params, wdata, 16),      AT(ggml_compute_params, threadpool, 24),
        AT(ggml_compute_params, use_ref, 32),
    };
    CHECK_ENTRIES(entries);
}

static void given_the_headers_then_type_and_status_numbers_are_the_expected_ones(void) {
    static const struct entry entries[] = {
        NUMBER(GGML_OP_NONE, 0),        NUMBER(GGML_TYPE_F32, 0),       NUMBER(GGML_TYPE_F16, 1),       NUMBER(GGML_TYPE_Q4_0, 2),
        NUMBER(GGML_TYPE_Q4_1, 3),      NUMBER(GGML_TYPE_Q8_0, 8),      NUMBER(GGML_TYPE_Q4_K, 12),     NUMBER(GGML_TYPE_Q5_K, 13),
        NUMBER(GGML_TYPE_Q6_K, 14),     NUMBER(GGML_TYPE_IQ4_XS, 23),   NUMBER(GGML_TYPE_I32, 26),      NUMBER(GGML_STATUS_SUCCESS, 0),
        NUMBER(GGML_TYPE_Q5_0, 6),       NUMBER(GGML_TYPE_Q5_1, 7),       NUMBER(GGML_TYPE_Q2_K, 10),      NUMBER(GGML_TYPE_Q3_K, 11),
        NUMBER(GGML_TYPE_IQ4_NL, 20),    NUMBER(GGML_TYPE_TQ1_0, 34),     NUMBER(GGML_TYPE_TQ2_0, 35),     NUMBER(GGML_TYPE_MXFP4, 39),
        NUMBER(GGML_TYPE_NVFP4, 40),     NUMBER(GGML_TYPE_Q1_0, 41),      NUMBER(GGML_TYPE_Q2_0, 42),
    };
    CHECK_ENTRIES(entries);
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

int main(int argc, char ** argv) {
    (void) argv;
    host_open();
    if (argc > 1) {
        return 0; /* "open" */
    }
    RUN(given_the_headers_then_the_layout_that_was_found_is_theirs);
    RUN(given_the_headers_then_compute_params_have_the_expected_layout);
    RUN(given_the_headers_then_type_and_status_numbers_are_the_expected_ones);
    RUN(given_random_blocks_then_the_dequantisers_of_these_tests_are_the_hosts);
    return harness_report("abi_host");
}

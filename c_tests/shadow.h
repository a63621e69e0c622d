/* Tensors with a shadow: a plain array that receives every write the tensor receives, so that the two can be
 * compared at any time. Needs host.h before. */
#ifndef GGML_AMX_TEST_SHADOW_H
#define GGML_AMX_TEST_SHADOW_H

#include "host.h"

struct shadow {
    struct ggml_tensor * tensor;
    uint8_t * bytes;
    size_t size;
};

/* The packed types, then some that are stored plain. */
static const enum ggml_type BOX_TYPES[] = {
    GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_XS,
    GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q2_K, GGML_TYPE_Q3_K, GGML_TYPE_IQ4_NL, GGML_TYPE_TQ1_0, GGML_TYPE_TQ2_0,
    GGML_TYPE_MXFP4, GGML_TYPE_NVFP4, GGML_TYPE_Q1_0, GGML_TYPE_Q2_0, GGML_TYPE_IQ3_XXS, GGML_TYPE_IQ3_S, GGML_TYPE_IQ2_XXS,
    GGML_TYPE_IQ2_XS, GGML_TYPE_IQ2_S, GGML_TYPE_IQ1_S, GGML_TYPE_IQ1_M, GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_I32,
    GGML_TYPE_BF16,
};
enum { N_PACKED_TYPES = 25, N_BOX_TYPES = sizeof BOX_TYPES / sizeof BOX_TYPES[0] };

HARNESS_UNUSED static bool is_packed_type(enum ggml_type type) {
    for (int i = 0; i < N_PACKED_TYPES; i++) {
        if (BOX_TYPES[i] == type) {
            return true;
        }
    }
    return false;
}

/* Blocks per row, rows, and the two outer dimensions. */
struct shape {
    int64_t blocks, rows, ne2, ne3;
};

HARNESS_UNUSED static const struct shape SHAPES[] = {
    {1, 1, 1, 1}, {3, 5, 1, 1}, {2, 16, 1, 1}, {1, 31, 3, 1}, {2, 33, 2, 2}, {8, 48, 1, 1}, {5, 7, 1, 4}, {18, 100, 1, 1},
};
enum { N_SHAPES = sizeof SHAPES / sizeof SHAPES[0] };

/* One buffer with one tensor of every type, all zero at first. */
struct box {
    struct ggml_context * context;
    ggml_backend_buffer_t buffer;
    int n;
    struct shadow tensors[N_BOX_TYPES];
};

HARNESS_UNUSED static struct box box_new(ggml_backend_buffer_type_t buft, struct shape shape) {
    struct box box = HARNESS_ZERO;
    box.context = host_context(N_BOX_TYPES);
    box.n = N_BOX_TYPES;
    for (int i = 0; i < box.n; i++) {
        box.tensors[i].tensor = ggml_new_tensor_4d(box.context, BOX_TYPES[i], shape.blocks * ggml_blck_size(BOX_TYPES[i]), shape.rows, shape.ne2, shape.ne3);
        box.tensors[i].size = ggml_nbytes(box.tensors[i].tensor);
        box.tensors[i].bytes = (uint8_t *) calloc(box.tensors[i].size, 1);
    }
    box.buffer = ggml_backend_alloc_ctx_tensors_from_buft(box.context, buft);
    if (!CHECK(box.buffer != NULL, "no buffer for %d tensors", box.n)) {
        exit(1);
    }
    ggml_backend_buffer_clear(box.buffer, 0);
    return box;
}

HARNESS_UNUSED static void box_free(struct box * box) {
    for (int i = 0; i < box->n; i++) {
        free(box->tensors[i].bytes);
    }
    ggml_backend_buffer_free(box->buffer);
    ggml_free(box->context);
}

/* Reads [at, at + size) back and compares; one byte more on both sides of the target must stay as it was. */
HARNESS_UNUSED static bool shadow_check(const struct shadow * s, size_t at, size_t size, const char * when) {
    uint8_t * got = (uint8_t *) malloc(size + 2);
    memset(got, 0xee, size + 2);
    ggml_backend_tensor_get(s->tensor, got + 1, at, size);
    const bool edges = got[0] == 0xee && got[size + 1] == 0xee;
    size_t first = 0;
    while (first < size && got[1 + first] == s->bytes[at + first]) {
        first++;
    }
    bool ok = CHECK(edges, "%s: the read of %zu bytes at %zu wrote outside its target", when, size, at);
    ok = CHECK(first == size, "%s: %s %lld x %lld x %lld x %lld, read of %zu at %zu: byte %zu is %02x, not %02x", when,
               ggml_type_name(s->tensor->type), (long long) s->tensor->ne[0], (long long) s->tensor->ne[1], (long long) s->tensor->ne[2],
               (long long) s->tensor->ne[3], size, at, at + first, first < size ? got[1 + first] : 0, first < size ? s->bytes[at + first] : 0) && ok;
    free(got);
    return ok;
}

HARNESS_UNUSED static void box_check(const struct box * box, const char * when) {
    for (int i = 0; i < box->n; i++) {
        shadow_check(&box->tensors[i], 0, box->tensors[i].size, when);
    }
}

/* A random place: small, around a row, or anything. */
HARNESS_UNUSED static void shadow_random_range(const struct shadow * s, struct rng * r, size_t * at, size_t * size) {
    const size_t row = ggml_row_size(s->tensor->type, s->tensor->ne[0]);
    const size_t limits[] = {8, row, 2 * row + 3, s->size};
    *at = rng_below(r, s->size);
    if (rng_below(r, 4) == 0) {
        *at = *at / row * row;
    }
    *size = 1 + rng_below(r, limits[rng_below(r, 4)]);
    if (*size > s->size - *at) {
        *size = s->size - *at;
    }
}

/* n_copies pieces of `size` bytes, `stride` apart in the tensor, another stride in the array. */
HARNESS_UNUSED static void shadow_random_2d(struct shadow * s, struct rng * r) {
    const size_t row = ggml_row_size(s->tensor->type, s->tensor->ne[0]);
    const size_t stride = rng_below(r, 2) ? row : 1 + rng_below(r, 3 * row);
    const size_t at = rng_below(r, s->size);
    size_t size = 1 + rng_below(r, stride);
    if (size > s->size - at) {
        size = s->size - at;
    }
    const size_t copies = 1 + rng_below(r, (s->size - at - size) / stride + 1), stride_data = size + rng_below(r, 20);
    uint8_t * data = (uint8_t *) malloc(copies * stride_data);
    if (rng_below(r, 2)) {
        rng_bytes(r, data, copies * stride_data);
        for (size_t i = 0; i < copies; i++) {
            memcpy(s->bytes + at + i * stride, data + i * stride_data, size);
        }
        ggml_backend_tensor_set_2d(s->tensor, data, at, size, copies, stride, stride_data);
    } else {
        memset(data, 0xee, copies * stride_data);
        ggml_backend_tensor_get_2d(s->tensor, data, at, size, copies, stride, stride_data);
        bool same = true, edges = true;
        for (size_t i = 0; i < copies; i++) {
            same = same && memcmp(data + i * stride_data, s->bytes + at + i * stride, size) == 0;
            for (size_t b = size; b < stride_data; b++) {
                edges = edges && data[i * stride_data + b] == 0xee;
            }
        }
        CHECK(same, "get_2d of %s: %zu copies of %zu bytes at %zu, stride %zu: other bytes", ggml_type_name(s->tensor->type), copies, size, at, stride);
        CHECK(edges, "get_2d wrote between its rows");
    }
    free(data);
}

/* One random write, read or memset. */
HARNESS_UNUSED static void shadow_random_step(struct shadow * s, struct rng * r) {
    size_t at, size;
    shadow_random_range(s, r, &at, &size);
    switch (rng_below(r, 5)) {
        case 0:
        case 1: {
            uint8_t * data = (uint8_t *) malloc(size);
            rng_bytes(r, data, size);
            memcpy(s->bytes + at, data, size);
            ggml_backend_tensor_set(s->tensor, data, at, size);
            free(data);
        } break;
        case 2: {
            const uint8_t value = (uint8_t) rng_next(r);
            memset(s->bytes + at, value, size);
            ggml_backend_tensor_memset(s->tensor, value, at, size);
        } break;
        case 3:
            shadow_random_2d(s, r);
            break;
        default:
            shadow_check(s, at, size, "in between");
    }
}

#endif

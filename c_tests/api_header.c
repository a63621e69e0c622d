/* The header is complete on its own and lives beside the host's headers, in C11 (and C++17: the same
 * text is api_header.cpp). GGML_AMX_TEST_ORDER: 0 = alone, 1 = before ggml's headers, 2 = after them. */
#ifndef GGML_AMX_TEST_ORDER
#define GGML_AMX_TEST_ORDER 0
#endif

#if GGML_AMX_TEST_ORDER == 2
#include <ggml-backend.h>
#include <ggml.h>
#endif
#include "ggml-amx.h" /* first in orders 0 and 1, so that no other header supplies what it needs */
#include "ggml-amx.h" /* twice, which must do no harm */
#if GGML_AMX_TEST_ORDER == 1
#include <ggml.h>
#include <ggml-backend.h>
#endif

#include "harness.h"

#if GGML_AMX_TEST_ORDER
/* The header's struct names are ggml's: these lines compile only if the types are the same. */
static ggml_backend_buffer_type_t (*const same_buffer_type)(void) = ggml_backend_amx_buffer_type;
static bool (*const same_tensor)(ggml_backend_dev_t, const struct ggml_tensor *) = ggml_backend_amx_supports_op;
#endif

/* Sizes and places that callers of other languages rely on. */
static void given_the_argument_struct_when_compiled_then_its_layout_is_the_documented_one(void) {
    const size_t got[] = {
        offsetof(struct ggml_amx_mul_mat_args, struct_size), offsetof(struct ggml_amx_mul_mat_args, type),
        offsetof(struct ggml_amx_mul_mat_args, n_threads),   offsetof(struct ggml_amx_mul_mat_args, isa),
        offsetof(struct ggml_amx_mul_mat_args, reserved),    offsetof(struct ggml_amx_mul_mat_args, k),
        offsetof(struct ggml_amx_mul_mat_args, n),           offsetof(struct ggml_amx_mul_mat_args, m),
        offsetof(struct ggml_amx_mul_mat_args, packed),      offsetof(struct ggml_amx_mul_mat_args, packed_size),
        offsetof(struct ggml_amx_mul_mat_args, src1),        offsetof(struct ggml_amx_mul_mat_args, src1_stride),
        offsetof(struct ggml_amx_mul_mat_args, dst),         offsetof(struct ggml_amx_mul_mat_args, dst_stride),
        sizeof(struct ggml_amx_mul_mat_args),
    };
    const size_t want[] = {0, 8, 12, 16, 20, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96};
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
        CHECK(got[i] == want[i], "entry %zu lies at %zu, not %zu", i, got[i], want[i]);
    }
}

static void given_the_enums_when_compiled_then_their_numbers_are_the_documented_ones(void) {
    const int got[] = {
        GGML_AMX_ISA_AUTO,      GGML_AMX_ISA_PORTABLE,  GGML_AMX_ISA_AVX512,   GGML_AMX_ISA_AMX,
        GGML_AMX_OK,            GGML_AMX_NULL_POINTER,  GGML_AMX_BAD_STRUCT_SIZE, GGML_AMX_UNKNOWN_TYPE,
        GGML_AMX_BAD_SHAPE,     GGML_AMX_OUT_OF_BOUNDS, GGML_AMX_BUFFER_TOO_SMALL, GGML_AMX_NOT_AVAILABLE,
        GGML_AMX_INTERNAL,      GGML_AMX_TYPE_Q4_0,     GGML_AMX_TYPE_Q4_1,    GGML_AMX_TYPE_Q8_0,
        GGML_AMX_TYPE_Q4_K,     GGML_AMX_TYPE_Q5_K,     GGML_AMX_TYPE_Q6_K,    GGML_AMX_TYPE_IQ4_XS,
        GGML_AMX_TYPE_Q5_0,     GGML_AMX_TYPE_Q5_1,     GGML_AMX_TYPE_Q2_K,     GGML_AMX_TYPE_Q3_K,
        GGML_AMX_TYPE_IQ4_NL,   GGML_AMX_TYPE_TQ1_0,    GGML_AMX_TYPE_TQ2_0,    GGML_AMX_TYPE_MXFP4,
        GGML_AMX_TYPE_NVFP4,    GGML_AMX_TYPE_Q1_0,     GGML_AMX_TYPE_Q2_0,     GGML_AMX_TYPE_IQ3_XXS,
        GGML_AMX_TYPE_IQ3_S,    GGML_AMX_TYPE_IQ2_XXS,  GGML_AMX_TYPE_IQ2_XS,   GGML_AMX_TYPE_IQ2_S,
        GGML_AMX_TYPE_IQ1_S,    GGML_AMX_TYPE_IQ1_M,    GGML_AMX_TYPE_Q6_0,     GGML_AMX_TYPE_IQ2_K,
        GGML_AMX_TYPE_IQ3_K,    GGML_AMX_TYPE_IQ4_K,    GGML_AMX_TYPE_IQ5_K,    GGML_AMX_TYPE_IQ6_K,
    };
    const int want[] = {0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 8, 2, 3, 8, 12, 13, 14, 23, 6, 7, 10, 11, 20, 34, 35, 39, 40, 41, 42, 18, 21, 16, 17, 22, 19, 29,
                        133, 137, 138, 139, 140, 141};
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
        CHECK(got[i] == want[i], "constant %zu is %d, not %d", i, got[i], want[i]);
    }
}

/* Every declared function exists in the library under its C name. */
static void given_the_library_when_linked_then_every_declared_function_is_there(void) {
    CHECK(strcmp(ggml_amx_version(), GGML_AMX_VERSION) == 0, "version is \"%s\"", ggml_amx_version());
    CHECK(ggml_amx_last_error() != NULL && ggml_amx_isa_reason() != NULL, "texts are never NULL");
    const size_t plain = ggml_amx_plain_size(GGML_AMX_TYPE_Q8_0, 32, 1);
    CHECK(plain == 34, "one block of Q8_0 has %zu bytes", plain);
    CHECK(ggml_amx_packed_size(GGML_AMX_TYPE_Q8_0, 32, 1) == 16 * plain, "one row is padded to 16");
    CHECK(ggml_amx_pack(GGML_AMX_TYPE_Q8_0, 32, 1, NULL, 0, NULL, 0) != GGML_AMX_OK, "pack is linked");
    CHECK(ggml_amx_unpack(GGML_AMX_TYPE_Q8_0, 32, 1, NULL, 0, NULL, 0) != GGML_AMX_OK, "unpack is linked");
    CHECK(ggml_amx_mul_mat(NULL) != GGML_AMX_OK, "mul_mat is linked");
    const int32_t isa = ggml_amx_isa_available();
    CHECK(isa >= GGML_AMX_ISA_PORTABLE && isa <= GGML_AMX_ISA_AMX, "isa_available is %d", isa);
    CHECK((isa == GGML_AMX_ISA_AMX) == (ggml_amx_isa_reason()[0] == 0), "a reason (\"%s\") is given exactly when AMX is not usable (isa %d)",
          ggml_amx_isa_reason(), isa);
#if GGML_AMX_TEST_ORDER
    CHECK(same_buffer_type != NULL && same_tensor != NULL, "the host's types fit");
#endif
}

int main(void) {
    RUN(given_the_argument_struct_when_compiled_then_its_layout_is_the_documented_one);
    RUN(given_the_enums_when_compiled_then_their_numbers_are_the_documented_ones);
    RUN(given_the_library_when_linked_then_every_declared_function_is_there);
#ifdef __cplusplus
    return harness_report("api_header (C++17)");
#else
    return harness_report("api_header (C11)");
#endif
}

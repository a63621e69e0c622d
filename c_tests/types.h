/* The table of weight types. Generated from src/format/table.rs by the build script; `cargo xtask header` writes
 * it anew. Do not edit. */
#ifndef GGML_AMX_TEST_TYPES_H
#define GGML_AMX_TEST_TYPES_H

/* What the bytes of a field mean. */
enum field_kind { FIELD_END, FIELD_F16, FIELD_F32, FIELD_E8M0, FIELD_UE4M3, FIELD_F16_NIBBLES, FIELD_U8, FIELD_QUANTS, FIELD_INDICES };

/* A field of a block: its kind, first byte and bytes. */
struct format_field {
    enum field_kind kind;
    int at, bytes;
};

enum {
    TYPE_Q4_0 = 2,
    TYPE_Q4_1 = 3,
    TYPE_Q5_0 = 6,
    TYPE_Q5_1 = 7,
    TYPE_Q8_0 = 8,
    TYPE_Q2_K = 10,
    TYPE_Q3_K = 11,
    TYPE_Q4_K = 12,
    TYPE_Q5_K = 13,
    TYPE_Q6_K = 14,
    TYPE_IQ2_XXS = 16,
    TYPE_IQ2_XS = 17,
    TYPE_IQ3_XXS = 18,
    TYPE_IQ1_S = 19,
    TYPE_IQ4_NL = 20,
    TYPE_IQ3_S = 21,
    TYPE_IQ2_S = 22,
    TYPE_IQ4_XS = 23,
    TYPE_IQ1_M = 29,
    TYPE_TQ1_0 = 34,
    TYPE_TQ2_0 = 35,
    TYPE_MXFP4 = 39,
    TYPE_NVFP4 = 40,
    TYPE_Q1_0 = 41,
    TYPE_Q2_0 = 42,
    TYPE_Q6_0 = 133,
    TYPE_IQ2_K = 137,
    TYPE_IQ3_K = 138,
    TYPE_IQ4_K = 139,
    TYPE_IQ5_K = 140,
    TYPE_IQ6_K = 141,
};

/* Number, name, weights and bytes of a block, fields. */
#define ROW_Q4_0 TYPE_Q4_0, "Q4_0", 32, 18, {{FIELD_F16, 0, 2}, {FIELD_QUANTS, 2, 16}}
#define ROW_Q4_1 TYPE_Q4_1, "Q4_1", 32, 20, {{FIELD_F16, 0, 2}, {FIELD_F16, 2, 2}, {FIELD_QUANTS, 4, 16}}
#define ROW_Q5_0 TYPE_Q5_0, "Q5_0", 32, 22, {{FIELD_F16, 0, 2}, {FIELD_QUANTS, 2, 4}, {FIELD_QUANTS, 6, 16}}
#define ROW_Q5_1 TYPE_Q5_1, "Q5_1", 32, 24, {{FIELD_F16, 0, 2}, {FIELD_F16, 2, 2}, {FIELD_QUANTS, 4, 4}, {FIELD_QUANTS, 8, 16}}
#define ROW_Q8_0 TYPE_Q8_0, "Q8_0", 32, 34, {{FIELD_F16, 0, 2}, {FIELD_QUANTS, 2, 32}}
#define ROW_Q2_K TYPE_Q2_K, "Q2_K", 256, 84, {{FIELD_U8, 0, 16}, {FIELD_QUANTS, 16, 64}, {FIELD_F16, 80, 2}, {FIELD_F16, 82, 2}}
#define ROW_Q3_K TYPE_Q3_K, "Q3_K", 256, 110, {{FIELD_QUANTS, 0, 32}, {FIELD_QUANTS, 32, 64}, {FIELD_U8, 96, 12}, {FIELD_F16, 108, 2}}
#define ROW_Q4_K TYPE_Q4_K, "Q4_K", 256, 144, {{FIELD_F16, 0, 2}, {FIELD_F16, 2, 2}, {FIELD_U8, 4, 12}, {FIELD_QUANTS, 16, 128}}
#define ROW_Q5_K TYPE_Q5_K, "Q5_K", 256, 176, {{FIELD_F16, 0, 2}, {FIELD_F16, 2, 2}, {FIELD_U8, 4, 12}, {FIELD_QUANTS, 16, 32}, {FIELD_QUANTS, 48, 128}}
#define ROW_Q6_K TYPE_Q6_K, "Q6_K", 256, 210, {{FIELD_QUANTS, 0, 128}, {FIELD_QUANTS, 128, 64}, {FIELD_U8, 192, 16}, {FIELD_F16, 208, 2}}
#define ROW_IQ2_XXS TYPE_IQ2_XXS, "IQ2_XXS", 256, 66, {{FIELD_F16, 0, 2}, {FIELD_INDICES, 2, 64}}
#define ROW_IQ2_XS TYPE_IQ2_XS, "IQ2_XS", 256, 74, {{FIELD_F16, 0, 2}, {FIELD_INDICES, 2, 64}, {FIELD_U8, 66, 8}}
#define ROW_IQ3_XXS TYPE_IQ3_XXS, "IQ3_XXS", 256, 98, {{FIELD_F16, 0, 2}, {FIELD_INDICES, 2, 64}, {FIELD_U8, 66, 32}}
#define ROW_IQ1_S TYPE_IQ1_S, "IQ1_S", 256, 50, {{FIELD_F16, 0, 2}, {FIELD_INDICES, 2, 32}, {FIELD_INDICES, 34, 16}}
#define ROW_IQ4_NL TYPE_IQ4_NL, "IQ4_NL", 32, 18, {{FIELD_F16, 0, 2}, {FIELD_QUANTS, 2, 16}}
#define ROW_IQ3_S TYPE_IQ3_S, "IQ3_S", 256, 110, {{FIELD_F16, 0, 2}, {FIELD_INDICES, 2, 64}, {FIELD_INDICES, 66, 8}, {FIELD_U8, 74, 32}, {FIELD_U8, 106, 4}}
#define ROW_IQ2_S TYPE_IQ2_S, "IQ2_S", 256, 82, {{FIELD_F16, 0, 2}, {FIELD_INDICES, 2, 32}, {FIELD_U8, 34, 32}, {FIELD_INDICES, 66, 8}, {FIELD_U8, 74, 8}}
#define ROW_IQ4_XS TYPE_IQ4_XS, "IQ4_XS", 256, 136, {{FIELD_F16, 0, 2}, {FIELD_U8, 2, 2}, {FIELD_U8, 4, 4}, {FIELD_QUANTS, 8, 128}}
#define ROW_IQ1_M TYPE_IQ1_M, "IQ1_M", 256, 56, {{FIELD_INDICES, 0, 32}, {FIELD_INDICES, 32, 16}, {FIELD_F16_NIBBLES, 48, 8}}
#define ROW_TQ1_0 TYPE_TQ1_0, "TQ1_0", 256, 54, {{FIELD_QUANTS, 0, 48}, {FIELD_QUANTS, 48, 4}, {FIELD_F16, 52, 2}}
#define ROW_TQ2_0 TYPE_TQ2_0, "TQ2_0", 256, 66, {{FIELD_QUANTS, 0, 64}, {FIELD_F16, 64, 2}}
#define ROW_MXFP4 TYPE_MXFP4, "MXFP4", 32, 17, {{FIELD_E8M0, 0, 1}, {FIELD_QUANTS, 1, 16}}
#define ROW_NVFP4 TYPE_NVFP4, "NVFP4", 64, 36, {{FIELD_UE4M3, 0, 4}, {FIELD_QUANTS, 4, 32}}
#define ROW_Q1_0 TYPE_Q1_0, "Q1_0", 128, 18, {{FIELD_F16, 0, 2}, {FIELD_QUANTS, 2, 16}}
#define ROW_Q2_0 TYPE_Q2_0, "Q2_0", 64, 18, {{FIELD_F16, 0, 2}, {FIELD_QUANTS, 2, 16}}
#define ROW_Q6_0 TYPE_Q6_0, "Q6_0", 32, 26, {{FIELD_F16, 0, 2}, {FIELD_QUANTS, 2, 8}, {FIELD_QUANTS, 10, 16}}
#define ROW_IQ2_K TYPE_IQ2_K, "IQ2_K", 256, 76, {{FIELD_F16, 0, 2}, {FIELD_U8, 2, 2}, {FIELD_U8, 4, 8}, {FIELD_QUANTS, 12, 64}}
#define ROW_IQ3_K TYPE_IQ3_K, "IQ3_K", 256, 110, {{FIELD_F16, 0, 2}, {FIELD_U8, 2, 2}, {FIELD_U8, 4, 2}, {FIELD_U8, 6, 8}, {FIELD_QUANTS, 14, 64}, {FIELD_QUANTS, 78, 32}}
#define ROW_IQ4_K TYPE_IQ4_K, "IQ4_K", 256, 144, {{FIELD_F16, 0, 2}, {FIELD_U8, 2, 2}, {FIELD_U8, 4, 4}, {FIELD_U8, 8, 8}, {FIELD_QUANTS, 16, 128}}
#define ROW_IQ5_K TYPE_IQ5_K, "IQ5_K", 256, 176, {{FIELD_F16, 0, 2}, {FIELD_U8, 2, 2}, {FIELD_U8, 4, 4}, {FIELD_U8, 8, 8}, {FIELD_QUANTS, 16, 128}, {FIELD_QUANTS, 144, 32}}
#define ROW_IQ6_K TYPE_IQ6_K, "IQ6_K", 256, 212, {{FIELD_F16, 0, 2}, {FIELD_U8, 2, 2}, {FIELD_U8, 4, 16}, {FIELD_QUANTS, 20, 128}, {FIELD_QUANTS, 148, 64}}

#endif

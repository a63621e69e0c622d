/* The packed weight types as a GGUF file stores them: dequantisers, random blocks, and the product in double precision.
 * The dequantisers are written a second time on purpose (the layouts come from ggml-common.h and ggml-quants.c). Random
 * blocks follow the kinds of their fields (types.h, which is made from the library's table). abi_host compares this
 * file with the host's own code, block sizes too. ik_llama.cpp's own types come last: no host of these tests has
 * them. */
#ifndef GGML_AMX_TEST_FORMATS_H
#define GGML_AMX_TEST_FORMATS_H

#include "harness.h"
#include "types.h"

struct format {
    int type; /* ggml's number */
    const char * name;
    int block;       /* weights per block */
    int block_bytes;
    struct format_field fields[8]; /* up to FIELD_END */
    void (*dequantise)(const uint8_t * block, float * to);
};

static float f16_to_f32(const uint8_t * at) {
    const unsigned h = at[0] | (unsigned) at[1] << 8;
    const int exponent = h >> 10 & 31;
    const int mantissa = h & 1023;
    const double magnitude = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return (float) (h >> 15 ? -magnitude : magnitude); /* scales here are finite */
}

static void dequantise_q4_0(const uint8_t * b, float * y) {
    const float d = f16_to_f32(b);
    for (int j = 0; j < 16; j++) {
        y[j] = d * (float) ((b[2 + j] & 15) - 8);
        y[j + 16] = d * (float) ((b[2 + j] >> 4) - 8);
    }
}

static void dequantise_q4_1(const uint8_t * b, float * y) {
    const float d = f16_to_f32(b), m = f16_to_f32(b + 2);
    for (int j = 0; j < 16; j++) {
        y[j] = d * (float) (b[4 + j] & 15) + m;
        y[j + 16] = d * (float) (b[4 + j] >> 4) + m;
    }
}

static void dequantise_q8_0(const uint8_t * b, float * y) {
    const float d = f16_to_f32(b);
    for (int j = 0; j < 32; j++) {
        y[j] = d * (float) (int8_t) b[2 + j];
    }
}

/* Scale and minimum of sub-block j (0..7): 6 bits each, packed into 12 bytes. */
static void k_scale_min(const uint8_t * s, int j, int * scale, int * min) {
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        *min = s[j + 4] >> 4 | (s[j] >> 6) << 4;
    }
}

static void dequantise_q4_k(const uint8_t * b, float * y) {
    const float d = f16_to_f32(b), dmin = f16_to_f32(b + 2);
    for (int j = 0; j < 8; j++) {
        int scale, min;
        k_scale_min(b + 4, j, &scale, &min);
        const uint8_t * q = b + 16 + j / 2 * 32;
        for (int i = 0; i < 32; i++) {
            y[32 * j + i] = d * (float) scale * (float) (q[i] >> 4 * (j % 2) & 15) - dmin * (float) min;
        }
    }
}

static void dequantise_q5_k(const uint8_t * b, float * y) {
    const float d = f16_to_f32(b), dmin = f16_to_f32(b + 2);
    for (int j = 0; j < 8; j++) {
        int scale, min;
        k_scale_min(b + 4, j, &scale, &min);
        const uint8_t * high = b + 16;
        const uint8_t * low = b + 48 + j / 2 * 32;
        for (int i = 0; i < 32; i++) {
            const int q = (low[i] >> 4 * (j % 2) & 15) | (high[i] >> j & 1) << 4;
            y[32 * j + i] = d * (float) scale * (float) q - dmin * (float) min;
        }
    }
}

static void dequantise_q6_k(const uint8_t * b, float * y) {
    const float d = f16_to_f32(b + 208);
    for (int i = 0; i < 256; i++) {
        const int half = i / 128, r = i % 128, part = r / 32, l = r % 32; /* part: which of 4 runs of 32 */
        const uint8_t low = b[64 * half + l + 32 * (part % 2)] >> 4 * (part / 2) & 15;
        const uint8_t high = b[128 + 32 * half + l] >> 2 * part & 3;
        const int8_t scale = (int8_t) b[192 + 8 * half + 2 * part + l / 16];
        y[i] = d * (float) scale * (float) ((low | high << 4) - 32);
    }
}

static const int8_t IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

static void dequantise_iq4_xs(const uint8_t * b, float * y) {
    const float d = f16_to_f32(b);
    const unsigned scales_high = b[2] | (unsigned) b[3] << 8;
    for (int j = 0; j < 8; j++) {
        const int scale = (b[4 + j / 2] >> 4 * (j % 2) & 15) | (int) (scales_high >> 2 * j & 3) << 4;
        for (int i = 0; i < 16; i++) {
            const uint8_t q = b[8 + 16 * j + i];
            y[32 * j + i] = d * (float) (scale - 32) * (float) IQ4_VALUES[q & 15];
            y[32 * j + 16 + i] = d * (float) (scale - 32) * (float) IQ4_VALUES[q >> 4];
        }
    }
}

static void dequantise_iq4_nl(const uint8_t * b, float * y) {
    const float d = f16_to_f32(b);
    for (int j = 0; j < 16; j++) {
        y[j] = d * (float) IQ4_VALUES[b[2 + j] & 15];
        y[j + 16] = d * (float) IQ4_VALUES[b[2 + j] >> 4];
    }
}

/* Weight j (0..31) of 4 bytes of fifth bits and 16 of nibbles. */
static int five_bits(const uint8_t * b, int j) {
    return (b[4 + j % 16] >> 4 * (j / 16) & 15) | (b[j / 8] >> j % 8 & 1) << 4;
}

static void dequantise_q5_0(const uint8_t * b, float * y) {
    for (int j = 0; j < 32; j++) {
        y[j] = f16_to_f32(b) * (float) (five_bits(b + 2, j) - 16);
    }
}

static void dequantise_q5_1(const uint8_t * b, float * y) {
    for (int j = 0; j < 32; j++) {
        y[j] = f16_to_f32(b) * (float) five_bits(b + 4, j) + f16_to_f32(b + 2);
    }
}

/* Weight i (0..255) of 64 bytes of bit pairs. */
static int bit_pair(const uint8_t * b, int i) {
    return b[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
}

static void dequantise_q2_k(const uint8_t * b, float * y) {
    const float d = f16_to_f32(b + 80), dmin = f16_to_f32(b + 82);
    for (int i = 0; i < 256; i++) {
        const uint8_t s = b[i / 16]; /* low nibble scale, high nibble minimum */
        y[i] = d * (float) (s & 15) * (float) bit_pair(b + 16, i) - dmin * (float) (s >> 4);
    }
}

static void dequantise_q3_k(const uint8_t * b, float * y) {
    const float d = f16_to_f32(b + 108);
    const uint8_t * s = b + 96;
    for (int i = 0; i < 256; i++) {
        const int g = i / 16, third = b[i % 32] >> i / 32 & 1;
        const int scale = (s[g % 8] >> g / 8 * 4 & 15) | (s[8 + g % 4] >> g / 4 * 2 & 3) << 4;
        y[i] = d * (float) (scale - 32) * (float) (bit_pair(b + 32, i) + 4 * third - 4);
    }
}

static void dequantise_tq2_0(const uint8_t * b, float * y) {
    for (int i = 0; i < 256; i++) {
        y[i] = f16_to_f32(b + 64) * (float) (bit_pair(b, i) - 1);
    }
}

/* Digit n of a byte that stands for byte / 256 in base 3. */
static int base3_digit(uint8_t byte, int n) {
    unsigned rest = byte;
    for (; n > 0; n--) {
        rest = rest * 3 % 256;
    }
    return (int) (rest * 3 / 256);
}

static void dequantise_tq1_0(const uint8_t * b, float * y) {
    const float d = f16_to_f32(b + 52);
    for (int i = 0; i < 256; i++) {
        const int digit = i < 160   ? base3_digit(b[i % 32], i / 32)
                          : i < 240 ? base3_digit(b[32 + i % 16], (i - 160) / 16)
                                    : base3_digit(b[48 + i % 4], (i - 240) / 4);
        y[i] = d * (float) (digit - 1);
    }
}

/* A 4-bit float (1 bit of mantissa), doubled. */
static float fp4_doubled(int q) {
    static const float value[8] = {0, 1, 2, 3, 4, 6, 8, 12};
    return q == 8 ? 0 : q < 8 ? value[q] : -value[q - 8];
}

static void dequantise_mxfp4(const uint8_t * b, float * y) {
    const float d = (float) ldexp(1, b[0] - 128);
    for (int j = 0; j < 16; j++) {
        y[j] = d * fp4_doubled(b[1 + j] & 15);
        y[j + 16] = d * fp4_doubled(b[1 + j] >> 4);
    }
}

static void dequantise_nvfp4(const uint8_t * b, float * y) {
    for (int g = 0; g < 4; g++) {
        const int exponent = b[g] >> 3 & 15, mantissa = b[g] & 7; /* 0x7f is no number and does not occur here */
        const float d = (float) (exponent ? ldexp(8 + mantissa, exponent - 11) : ldexp(mantissa, -10));
        for (int j = 0; j < 8; j++) {
            const uint8_t q = b[4 + 8 * g + j];
            y[16 * g + j] = d * fp4_doubled(q & 15);
            y[16 * g + 8 + j] = d * fp4_doubled(q >> 4);
        }
    }
}

static void dequantise_q1_0(const uint8_t * b, float * y) {
    for (int i = 0; i < 128; i++) {
        y[i] = b[2 + i / 8] >> i % 8 & 1 ? f16_to_f32(b) : -f16_to_f32(b);
    }
}

static void dequantise_q2_0(const uint8_t * b, float * y) {
    for (int i = 0; i < 64; i++) {
        y[i] = f16_to_f32(b) * (float) ((b[2 + i / 4] >> i % 4 * 2 & 3) - 1);
    }
}

static void dequantise_q6_0(const uint8_t * b, float * y) {
    for (int j = 0; j < 16; j++) {
        const int high = b[2 + j % 8] >> j / 8 * 4;
        y[j] = f16_to_f32(b) * (float) (((b[10 + j] & 15) | (high & 3) << 4) - 32);
        y[j + 16] = f16_to_f32(b) * (float) (((b[10 + j] >> 4) | (high >> 2 & 3) << 4) - 32);
    }
}

/* Bit g of the 16 at b. */
static int bit_of_16(const uint8_t * b, int g) {
    return b[g / 8] >> g % 8 & 1;
}

/* Nibble g. */
static int nibble_of(const uint8_t * b, int g) {
    return b[g / 2] >> g % 2 * 4 & 15;
}

static void dequantise_iq2_k(const uint8_t * b, float * y) {
    static const float value[4] = {-31, -13, 1, 17};
    for (int i = 0; i < 256; i++) {
        const int g = i / 16;
        const float second = bit_of_16(b + 2, g) ? 5 : 0;
        y[i] = f16_to_f32(b) * (float) (nibble_of(b + 4, g) - 8) * (value[bit_pair(b + 12, i)] + second);
    }
}

static void dequantise_iq3_k(const uint8_t * b, float * y) {
    static const float value[8] = {-63, -40, -23, -10, 1, 13, 28, 47};
    for (int i = 0; i < 256; i++) {
        const int g = i / 16, third = b[78 + i % 32] >> i / 32 & 1;
        const int scale = (2 * nibble_of(b + 6, g) + 1) * (bit_of_16(b + 4, g) ? -1 : 1);
        const float second = bit_of_16(b + 2, g) ? 4 : 0;
        y[i] = f16_to_f32(b) * (float) scale * (value[bit_pair(b + 14, i) + 4 * third] + second);
    }
}

/* The scale of group g of IQ4_K and IQ5_K: four bits at b + 8, two more at b + 4. */
static int six_bit_scale(const uint8_t * b, int g) {
    return (nibble_of(b + 8, g) | (b[4 + g / 4] >> g % 4 * 2 & 3) << 4) - 32;
}

static void dequantise_iq4_k(const uint8_t * b, float * y) {
    for (int i = 0; i < 256; i++) {
        const int g = i / 16, q = b[16 + i / 32 * 16 + i % 16] >> g % 2 * 4 & 15;
        y[i] = f16_to_f32(b) * (float) six_bit_scale(b, g) * (float) (IQ4_VALUES[q] + 4 * bit_of_16(b + 2, g));
    }
}

/* Nibble of weight i, 64 in 32 bytes. */
static int nibble_in_64(const uint8_t * b, int i) {
    return b[i / 64 * 32 + i % 32] >> i % 64 / 32 * 4 & 15;
}

static void dequantise_iq5_k(const uint8_t * b, float * y) {
    static const float value[32] = {-126, -114, -103, -92, -83, -74, -65, -57, -50, -43, -36, -30, -24, -18, -12, -6,
                                    -1,   5,    11,   17,  23,  29,  36,  43,  51,  59,  68,  77,  87,  97,  109, 121};
    for (int i = 0; i < 256; i++) {
        const int g = i / 16, q = nibble_in_64(b + 16, i) | (b[144 + i % 32] >> i / 32 & 1) << 4;
        y[i] = f16_to_f32(b) * (float) six_bit_scale(b, g) * (value[q] + (float) (2 * bit_of_16(b + 2, g)));
    }
}

static void dequantise_iq6_k(const uint8_t * b, float * y) {
    static const float value[64] = {
        -127, -121, -115, -109, -104, -98, -93, -88, -84, -79, -74, -70, -66, -62, -58, -54, -51, -47, -44, -40, -37, -34,
        -31,  -28,  -25,  -22,  -19,  -16, -13, -11, -8,  -5,  -2,  0,   3,   6,   9,   12,  14,  17,  20,  23,  27,  30,
        33,   36,   40,   44,   47,   51,  55,  59,  63,  68,  72,  77,  82,  87,  92,  98,  103, 109, 115, 121};
    for (int i = 0; i < 256; i++) {
        const int g = i / 16, q = nibble_in_64(b + 20, i) | bit_pair(b + 148, i) << 4;
        y[i] = f16_to_f32(b) * (float) (int8_t) b[4 + g] * (value[q] + (float) bit_of_16(b + 2, g));
    }
}

HARNESS_UNUSED static const struct format FORMATS[] = {
    {ROW_Q4_0, dequantise_q4_0},
    {ROW_Q4_1, dequantise_q4_1},
    {ROW_Q8_0, dequantise_q8_0},
    {ROW_Q4_K, dequantise_q4_k},
    {ROW_Q5_K, dequantise_q5_k},
    {ROW_Q6_K, dequantise_q6_k},
    {ROW_IQ4_XS, dequantise_iq4_xs},
    {ROW_Q5_0, dequantise_q5_0},
    {ROW_Q5_1, dequantise_q5_1},
    {ROW_Q2_K, dequantise_q2_k},
    {ROW_Q3_K, dequantise_q3_k},
    {ROW_IQ4_NL, dequantise_iq4_nl},
    {ROW_TQ1_0, dequantise_tq1_0},
    {ROW_TQ2_0, dequantise_tq2_0},
    {ROW_MXFP4, dequantise_mxfp4},
    {ROW_NVFP4, dequantise_nvfp4},
    {ROW_Q1_0, dequantise_q1_0},
    {ROW_Q2_0, dequantise_q2_0},
    {ROW_Q6_0, dequantise_q6_0},
    {ROW_IQ2_K, dequantise_iq2_k},
    {ROW_IQ3_K, dequantise_iq3_k},
    {ROW_IQ4_K, dequantise_iq4_k},
    {ROW_IQ5_K, dequantise_iq5_k},
    {ROW_IQ6_K, dequantise_iq6_k},
};
/* All of them; those before ik_llama.cpp's. */
enum { N_FORMATS = sizeof FORMATS / sizeof FORMATS[0], N_IK_FORMATS = 6, N_HOST_FORMATS = N_FORMATS - N_IK_FORMATS };

/* Bytes of n rows of k weights. */
HARNESS_UNUSED static size_t format_bytes(const struct format * f, int64_t k, int64_t n) {
    return (size_t) (k / f->block) * (size_t) f->block_bytes * (size_t) n;
}

/* Blocks of random bits, with scales of 2^-10 to 2^-7 of either sign (8-bit scales: of such a size, positive). */
HARNESS_UNUSED static void format_random(const struct format * f, struct rng * r, uint8_t * to, size_t blocks) {
    rng_bytes(r, to, blocks * (size_t) f->block_bytes);
    for (size_t i = 0; i < blocks; i++) {
        for (const struct format_field * field = f->fields; field->kind != FIELD_END; field++) {
            uint8_t * at = to + i * (size_t) f->block_bytes + field->at;
            for (int b = 0; b < field->bytes; b++) {
                if (field->kind == FIELD_F16 && b % 2 == 1) {
                    at[b] = (uint8_t) ((at[b] & 0x83) | (5 + rng_below(r, 3)) << 2);
                } else if (field->kind == FIELD_E8M0 || field->kind == FIELD_UE4M3) {
                    at[b] = (uint8_t) ((field->kind == FIELD_E8M0 ? 118 : 16) + rng_below(r, 3));
                }
            }
        }
    }
}

/* Dequantises n weights (a multiple of the block). */
HARNESS_UNUSED static void format_dequantise(const struct format * f, const uint8_t * from, float * to, int64_t n) {
    for (int64_t i = 0; i < n / f->block; i++) {
        f->dequantise(from + i * f->block_bytes, to + i * f->block);
    }
}

/* dst[m][n] = sum_k x[m][k] * w[n][k] in double precision; x_stride counts floats. Eight partial sums let
 * the compiler use vectors; the sanitizers stay out because this is the slowest loop of the suite. */
__attribute__((no_sanitize("address"), no_sanitize("undefined"))) HARNESS_UNUSED static void
product_f64(const float * w, const float * x, size_t x_stride, double * dst, int64_t k, int64_t n, int64_t m) {
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++) {
            double sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
            const float * a = x + (size_t) i * x_stride;
            const float * b = w + j * k;
            for (int64_t l = 0; l < k; l += 8) { /* every block is a multiple of 8 */
                for (int p = 0; p < 8; p++) {
                    sum[p] += (double) a[l + p] * (double) b[l + p];
                }
            }
            dst[i * n + j] = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
        }
    }
}

#endif

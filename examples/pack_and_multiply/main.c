/* Packs a matrix of Q4_0 weights once and multiplies rows of floats with it, without any ggml.
 *
 * It runs on any x86-64 processor. Without AMX the library takes its vector kernels, or plain code; the first line
 * says which. Every result is compared with a sum in double precision; the exit code is 1 if one is too far off. */
#include <ggml-amx.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    K = 1024,         /* weights per row, a multiple of the block */
    N = 256,          /* rows of weights: results per row of activations */
    MOST_ROWS = 64,   /* rows of activations: a prompt; one row is what a generated token has */
    BLOCK = 32,       /* weights of a Q4_0 block */
    BLOCK_BYTES = 18, /* its scale (f16), then two weights in each of 16 bytes */
};

/* Rounding activations to 8 bits costs about 1e-4 of the squared result, the library at most 3e-4. */
static const double MOST_ERROR = 1e-3;

static uint32_t random_bits(void) {
    static uint32_t state = 12345;
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

/* Random blocks with the scale 1/16. A GGUF file has the same bytes. */
static void make_weights(uint8_t * plain, float * values) {
    for (int n = 0; n < N; n++) {
        for (int b = 0; b < K / BLOCK; b++) {
            uint8_t * block = plain + (n * (K / BLOCK) + b) * BLOCK_BYTES;
            float * of_block = values + n * K + b * BLOCK;
            block[0] = 0x00; /* 1/16 as f16 is 0x2c00 */
            block[1] = 0x2c;
            for (int i = 0; i < BLOCK / 2; i++) {
                block[2 + i] = (uint8_t) random_bits();
                of_block[i] = (float) ((block[2 + i] & 15) - 8) / 16;
                of_block[i + BLOCK / 2] = (float) ((block[2 + i] >> 4) - 8) / 16;
            }
        }
    }
}

/* The squared error of m rows of results, relative to the squares of the exact results. */
static double error_of(const float * results, const float * activations, const float * weights, int m) {
    double error = 0, size = 0;
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < N; j++) {
            double exact = 0;
            for (int l = 0; l < K; l++) {
                exact += (double) activations[i * K + l] * weights[j * K + l];
            }
            const double off = results[i * N + j] - exact;
            error += off * off;
            size += exact * exact;
        }
    }
    return error / size;
}

/* Ends the program with the library's own words if a call failed. */
static void must(int32_t status, const char * call) {
    if (status != GGML_AMX_OK) {
        fprintf(stderr, "%s: status %d: %s\n", call, (int) status, ggml_amx_last_error());
        exit(1);
    }
}

int main(void) {
    static const char * const ISA_NAMES[] = {"", "plain x86-64", "AVX-512", "AMX"};
    const int32_t isa = ggml_amx_isa_available();
    printf("ggml-amx %s, kernels: %s\n", ggml_amx_version(), ISA_NAMES[isa]);
    if (isa != GGML_AMX_ISA_AMX) {
        printf("without AMX: %s\n", ggml_amx_isa_reason());
    }

    const int32_t type = GGML_AMX_TYPE_Q4_0;
    const size_t plain_size = ggml_amx_plain_size(type, K, N);
    const size_t packed_size = ggml_amx_packed_size(type, K, N);
    uint8_t * plain = malloc(plain_size), * packed = malloc(packed_size), * back = malloc(plain_size);
    float * weights = malloc(sizeof(float) * N * K);
    float * activations = malloc(sizeof(float) * MOST_ROWS * K);
    float * results = malloc(sizeof(float) * MOST_ROWS * N);
    if (!plain || !packed || !back || !weights || !activations || !results) {
        fprintf(stderr, "no memory\n");
        return 1;
    }
    make_weights(plain, weights);
    for (int i = 0; i < MOST_ROWS * K; i++) {
        activations[i] = (float) (random_bits() % 2001) / 1000 - 1;
    }

    /* Once, as the model is loaded. Afterwards the plain bytes are not needed any more. */
    must(ggml_amx_pack(type, K, N, plain, plain_size, packed, packed_size), "ggml_amx_pack");
    must(ggml_amx_unpack(type, K, N, packed, packed_size, back, plain_size), "ggml_amx_unpack");
    const bool same = memcmp(plain, back, plain_size) == 0;
    printf("%d x %d weights in Q4_0: %zu bytes, packed %zu; unpacked: %s\n", N, K, plain_size, packed_size,
           same ? "the same bytes" : "OTHER BYTES");

    /* For every product. */
    bool good = same;
    for (int m = 1; m <= MOST_ROWS; m *= MOST_ROWS) {
        struct ggml_amx_mul_mat_args args = {
            .struct_size = sizeof args,
            .type = type,
            .n_threads = 0, /* all cores */
            .isa = GGML_AMX_ISA_AUTO,
            .k = K,
            .n = N,
            .m = m,
            .packed = packed,
            .packed_size = packed_size,
            .src1 = activations,
            .src1_stride = sizeof(float) * K,
            .dst = results,
            .dst_stride = sizeof(float) * N,
        };
        must(ggml_amx_mul_mat(&args), "ggml_amx_mul_mat");
        const double error = error_of(results, activations, weights, m);
        printf("%d row%s of activations: relative squared error %.1e\n", m, m == 1 ? "" : "s", error);
        good = good && error < MOST_ERROR; /* a NaN is not below it */
    }
    puts(good ? "right" : "WRONG");
    free(plain);
    free(packed);
    free(back);
    free(weights);
    free(activations);
    free(results);
    return good ? 0 : 1;
}

/* Packing is a permutation of bytes: sizes, the way there and back for every type, and no access outside
 * the buffers (forbidden pages on both sides). No ggml in this process. */
#define _GNU_SOURCE
#include "ggml-amx.h"

#include "formats.h"
#include "guard.h"

static const int64_t ROWS[] = {1, 5, 16, 31, 32, 33, 48, 576};
enum { N_ROWS = sizeof ROWS / sizeof ROWS[0] };

/* Numbers of blocks per row: odd, even, and more than one cache line of scales. */
static const int64_t BLOCKS[] = {1, 2, 3, 8, 18};
enum { N_BLOCKS = sizeof BLOCKS / sizeof BLOCKS[0] };

static void given_any_shape_then_packed_size_is_plain_size_with_rows_rounded_up_to_16(void) {
    for (int f = 0; f < N_FORMATS; f++) {
        for (int b = 0; b < N_BLOCKS; b++) {
            for (int64_t n = 1; n <= 70; n++) {
                const int64_t k = BLOCKS[b] * FORMATS[f].block;
                const size_t plain = ggml_amx_plain_size(FORMATS[f].type, k, n);
                const size_t packed = ggml_amx_packed_size(FORMATS[f].type, k, n);
                CHECK(plain == format_bytes(&FORMATS[f], k, n), "%s %lldx%lld: plain %zu", FORMATS[f].name, (long long) k, (long long) n, plain);
                CHECK(packed == format_bytes(&FORMATS[f], k, (n + 15) / 16 * 16), "%s %lldx%lld: packed %zu", FORMATS[f].name,
                      (long long) k, (long long) n, packed);
            }
        }
    }
}

static void given_a_tensor_of_more_than_4_gib_then_its_size_is_exact(void) {
    const size_t plain = ggml_amx_plain_size(GGML_AMX_TYPE_Q8_0, 40960, 128256);
    CHECK(plain == (size_t) 40960 / 32 * 34 * 128256, "plain size of 40960x128256 is %zu", plain);
    const size_t packed = ggml_amx_packed_size(GGML_AMX_TYPE_Q6_K, 65536, 1000001);
    CHECK(packed == (size_t) 65536 / 256 * 210 * 1000016, "packed size of 65536x1000001 is %zu", packed);
}

/* Packs and unpacks random bytes; every buffer touches a forbidden page and inputs are read-only. */
static void there_and_back(const struct format * f, int64_t k, int64_t n, enum guard_side side, struct rng * r) {
    const size_t plain_size = ggml_amx_plain_size(f->type, k, n), packed_size = ggml_amx_packed_size(f->type, k, n);
    struct guarded plain = guard_new(plain_size, side), packed = guard_new(packed_size, side), back = guard_new(plain_size, side);
    rng_bytes(r, plain.data, plain_size);
    guard_seal(plain);
    memset(packed.data, 0x5a, packed_size);
    int32_t status = ggml_amx_pack(f->type, k, n, plain.data, plain_size, packed.data, packed_size);
    CHECK(status == GGML_AMX_OK, "%s %lldx%lld: pack: %d %s", f->name, (long long) k, (long long) n, status, ggml_amx_last_error());
    guard_seal(packed);
    status = ggml_amx_unpack(f->type, k, n, packed.data, packed_size, back.data, plain_size);
    CHECK(status == GGML_AMX_OK, "%s %lldx%lld: unpack: %d %s", f->name, (long long) k, (long long) n, status, ggml_amx_last_error());
    CHECK(memcmp(plain.data, back.data, plain_size) == 0, "%s %lldx%lld: the bytes that come back are others", f->name, (long long) k, (long long) n);
    guard_free(plain);
    guard_free(packed);
    guard_free(back);
}

static void given_random_bytes_when_packed_and_unpacked_then_they_are_the_same(void) {
    struct rng r = {2};
    for (int f = 0; f < N_FORMATS; f++) {
        for (int n = 0; n < N_ROWS; n++) {
            for (int b = 0; b < N_BLOCKS; b++) {
                there_and_back(&FORMATS[f], BLOCKS[b] * FORMATS[f].block, ROWS[n], GUARD_AFTER, &r);
            }
            there_and_back(&FORMATS[f], 3 * FORMATS[f].block, ROWS[n], GUARD_BEFORE, &r);
        }
    }
}

static int compare_bytes(const void * a, const void * b) {
    return *(const uint8_t *) a - *(const uint8_t *) b;
}

/* A permutation keeps the multiset of bytes: nothing is recomputed or thrown away (rows a multiple of 16,
 * so that there is no padding). */
static void given_whole_panels_when_packed_then_the_bytes_are_only_moved(void) {
    struct rng r = {3};
    for (int f = 0; f < N_FORMATS; f++) {
        const int64_t k = 2 * FORMATS[f].block, n = 48;
        const size_t size = ggml_amx_plain_size(FORMATS[f].type, k, n);
        uint8_t * plain = (uint8_t *) malloc(size), * packed = (uint8_t *) malloc(size);
        rng_bytes(&r, plain, size);
        CHECK(ggml_amx_pack(FORMATS[f].type, k, n, plain, size, packed, size) == GGML_AMX_OK, "%s", ggml_amx_last_error());
        CHECK(memcmp(plain, packed, size) != 0, "%s: packing moved nothing", FORMATS[f].name);
        qsort(plain, size, 1, compare_bytes);
        qsort(packed, size, 1, compare_bytes);
        CHECK(memcmp(plain, packed, size) == 0, "%s: packing changed the bytes themselves", FORMATS[f].name);
        free(plain);
        free(packed);
    }
}

/* Equal inputs give equal packed bytes, padding included: packed data may be written to a file or compared. */
static void given_the_same_weights_twice_then_the_packed_bytes_are_equal_padding_included(void) {
    struct rng r = {4};
    for (int f = 0; f < N_FORMATS; f++) {
        const int64_t k = 2 * FORMATS[f].block, n = 21;
        const size_t plain_size = ggml_amx_plain_size(FORMATS[f].type, k, n), size = ggml_amx_packed_size(FORMATS[f].type, k, n);
        uint8_t * plain = (uint8_t *) malloc(plain_size), * one = (uint8_t *) malloc(size), * two = (uint8_t *) malloc(size);
        rng_bytes(&r, plain, plain_size);
        memset(one, 0x00, size);
        memset(two, 0xff, size);
        CHECK(ggml_amx_pack(FORMATS[f].type, k, n, plain, plain_size, one, size) == GGML_AMX_OK, "%s", ggml_amx_last_error());
        CHECK(ggml_amx_pack(FORMATS[f].type, k, n, plain, plain_size, two, size) == GGML_AMX_OK, "%s", ggml_amx_last_error());
        CHECK(memcmp(one, two, size) == 0, "%s: the padding keeps what was in the buffer before", FORMATS[f].name);
        free(plain);
        free(one);
        free(two);
    }
}

int main(void) {
    RUN(given_any_shape_then_packed_size_is_plain_size_with_rows_rounded_up_to_16);
    RUN(given_a_tensor_of_more_than_4_gib_then_its_size_is_exact);
    RUN(given_random_bytes_when_packed_and_unpacked_then_they_are_the_same);
    RUN(given_whole_panels_when_packed_then_the_bytes_are_only_moved);
    RUN(given_the_same_weights_twice_then_the_packed_bytes_are_equal_padding_included);
    return harness_report("api_pack");
}

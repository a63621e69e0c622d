/* The stand-alone product against double precision, with the dequantisers of formats.h: every type, tail
 * sizes, strides, thread counts; all instruction sets give the same bits. No ggml in this process. */
#define _GNU_SOURCE
#include "ggml-amx.h"

#include "formats.h"
#include "guard.h"

/* ggml's own limit for a MUL_MAT (tests/test-backend-ops.cpp). */
static const double NMSE_LIMIT = 5e-4;

static const char * const ISA_NAMES[] = {"auto", "portable", "avx512", "amx"};

/* One weight matrix, quantised and dequantised. */
struct weights {
    const struct format * f;
    int64_t k, n;
    struct guarded packed;
    float * floats;
};

static struct weights weights_new(const struct format * f, int64_t k, int64_t n, struct rng * r) {
    struct weights w = HARNESS_ZERO;
    w.f = f, w.k = k, w.n = n;
    const size_t plain_size = format_bytes(f, k, n);
    uint8_t * plain = (uint8_t *) malloc(plain_size);
    format_random(f, r, plain, (size_t) (k / f->block * n));
    w.floats = (float *) malloc((size_t) (k * n) * sizeof(float));
    format_dequantise(f, plain, w.floats, k * n);
    w.packed = guard_new(ggml_amx_packed_size(f->type, k, n), GUARD_AFTER);
    const int32_t status = ggml_amx_pack(f->type, k, n, plain, plain_size, w.packed.data, w.packed.size);
    CHECK(status == GGML_AMX_OK, "pack: %d %s", status, ggml_amx_last_error());
    guard_seal(w.packed);
    free(plain);
    return w;
}

static void weights_free(struct weights * w) {
    guard_free(w->packed);
    free(w->floats);
}

/* m rows of activations whose last byte touches a forbidden page; `gap` floats between rows. */
static struct guarded activations_new(int64_t k, int64_t m, size_t gap, struct rng * r) {
    struct guarded g = guard_new(((size_t) (m - 1) * ((size_t) k + gap) + (size_t) k) * sizeof(float), GUARD_AFTER);
    for (size_t i = 0; i < g.size / sizeof(float); i++) {
        ((float *) g.data)[i] = rng_normal(r);
    }
    for (int64_t i = 0; i + 1 < m; i++) { /* between the rows: who reads there gets NaN */
        memset(g.data + ((size_t) i * ((size_t) k + gap) + (size_t) k) * sizeof(float), 0xff, gap * sizeof(float));
    }
    guard_seal(g);
    return g;
}

/* Runs one product into a poisoned, guarded dst (same gap between rows); the caller frees it. */
static struct guarded product_run(const struct weights * w, struct guarded src1, int64_t m, size_t gap, int32_t isa, int32_t threads) {
    struct guarded dst = guard_new(((size_t) (m - 1) * ((size_t) w->n + gap) + (size_t) w->n) * sizeof(float), GUARD_AFTER);
    memset(dst.data, 0xff, dst.size);
    struct ggml_amx_mul_mat_args args = HARNESS_ZERO;
    args.struct_size = sizeof args;
    args.type = w->f->type, args.n_threads = threads, args.isa = isa;
    args.k = w->k, args.n = w->n, args.m = m;
    args.packed = w->packed.data, args.packed_size = w->packed.size;
    args.src1 = (const float *) src1.data, args.src1_stride = ((size_t) w->k + gap) * sizeof(float);
    args.dst = (float *) dst.data, args.dst_stride = ((size_t) w->n + gap) * sizeof(float);
    const int32_t status = ggml_amx_mul_mat(&args);
    CHECK(status == GGML_AMX_OK, "%s %lldx%lldx%lld isa %s threads %d: status %d %s", w->f->name, (long long) w->k, (long long) w->n,
          (long long) m, ISA_NAMES[isa], threads, status, ggml_amx_last_error());
    return dst;
}

/* Squared error over squared size of the products. A single product can be near 0 by chance, so the size is at
 * least what independent normal weights and activations of these norms give. */
static double nmse(const struct weights * w, const float * x, size_t x_stride, const float * got, size_t got_stride, int64_t m) {
    double * want = (double *) malloc((size_t) (w->n * m) * sizeof(double));
    product_f64(w->floats, x, x_stride, want, w->k, w->n, m);
    double error = 0, size = 0, ww = 0, xx = 0;
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < w->n; j++) {
            const double d = (double) got[(size_t) i * got_stride + (size_t) j] - want[i * w->n + j];
            error += d * d;
            size += want[i * w->n + j] * want[i * w->n + j];
        }
        for (int64_t l = 0; l < w->k; l++) {
            xx += (double) x[(size_t) i * x_stride + (size_t) l] * (double) x[(size_t) i * x_stride + (size_t) l];
        }
    }
    for (int64_t i = 0; i < w->k * w->n; i++) {
        ww += (double) w->floats[i] * (double) w->floats[i];
    }
    free(want);
    return error / fmax(size, ww * xx / (double) w->k);
}

/* From this many rows on the tile GEMM works, whose requantised weights give other bits. */
enum { GEMM_ROWS = 5 };

/* All instruction sets on one shape. The best one is compared with double precision. The others must have its bits;
 * where AMX computes in another way, they are compared with double precision too. */
static void check_shape(const struct weights * w, int64_t m, size_t gap, int32_t threads, struct rng * r) {
    struct guarded x = activations_new(w->k, m, gap, r);
    const int32_t best = ggml_amx_isa_available();
    struct guarded want = product_run(w, x, m, gap, GGML_AMX_ISA_AUTO, threads);
    const double e = nmse(w, (const float *) x.data, (size_t) w->k + gap, (const float *) want.data, (size_t) w->n + gap, m);
    CHECK(e <= NMSE_LIMIT, "%s %lldx%lldx%lld threads %d: NMSE %.3g", w->f->name, (long long) w->k, (long long) w->n, (long long) m, threads, e);
    for (int64_t i = 0; i + 1 < m; i++) {
        const uint8_t * between = want.data + ((size_t) i * ((size_t) w->n + gap) + (size_t) w->n) * sizeof(float);
        for (size_t b = 0; b < gap * sizeof(float); b++) {
            CHECK(between[b] == 0xff, "%s: dst was written between rows %lld and %lld", w->f->name, (long long) i, (long long) i + 1);
        }
    }
    for (int32_t isa = GGML_AMX_ISA_PORTABLE; isa <= best; isa++) {
        struct guarded got = product_run(w, x, m, gap, isa, threads);
        if (m < GEMM_ROWS || isa == best || best < GGML_AMX_ISA_AMX) {
            CHECK(memcmp(got.data, want.data, want.size) == 0, "%s %lldx%lldx%lld threads %d: isa %s gives other bits than auto (%s)", w->f->name,
                  (long long) w->k, (long long) w->n, (long long) m, threads, ISA_NAMES[isa], ISA_NAMES[best]);
        } else {
            const double other = nmse(w, (const float *) x.data, (size_t) w->k + gap, (const float *) got.data, (size_t) w->n + gap, m);
            CHECK(other <= NMSE_LIMIT, "%s %lldx%lldx%lld threads %d isa %s: NMSE %.3g", w->f->name, (long long) w->k, (long long) w->n,
                  (long long) m, threads, ISA_NAMES[isa], other);
        }
        guard_free(got);
    }
    guard_free(want);
    guard_free(x);
}

static void given_every_type_and_tail_size_then_all_instruction_sets_agree_and_are_right(void) {
    static const int64_t ns[] = {1, 5, 16, 31, 33, 48, 100}, ms[] = {1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 64, 100}, blocks[] = {1, 3, 8};
#ifdef __SANITIZE_ADDRESS__
    const int step = 3; /* every M with some N */
#else
    const int step = 1;
#endif
    struct rng r = {5};
    for (int f = 0; f < N_FORMATS; f++) {
        for (int n = 0; n < 7; n++) {
            for (int b = 0; b < 3; b++) {
                struct weights w = weights_new(&FORMATS[f], blocks[b] * FORMATS[f].block, ns[n], &r);
                for (int m = (n + b) % step; m < 12; m += step) {
                    check_shape(&w, ms[m], 0, 1 + m % 3, &r);
                }
                weights_free(&w);
            }
        }
    }
}

static void given_gaps_between_rows_then_they_are_neither_read_nor_written(void) {
    static const size_t gaps[] = {1, 3, 16, 100};
    struct rng r = {6};
    for (int f = 0; f < N_FORMATS; f++) {
        struct weights w = weights_new(&FORMATS[f], 2 * FORMATS[f].block, 37, &r);
        for (int g = 0; g < 4; g++) {
            check_shape(&w, 5, gaps[g], 1, &r);
            check_shape(&w, 33, gaps[g], 2, &r);
        }
        weights_free(&w);
    }
}

static void given_more_threads_than_rows_or_cores_then_the_result_is_right(void) {
    static const int32_t threads[] = {0, 1, 2, 3, 7, 64};
    struct rng r = {7};
    for (int f = 0; f < N_FORMATS; f++) {
        struct weights w = weights_new(&FORMATS[f], 512, 70, &r);
        for (int t = 0; t < 6; t++) {
            check_shape(&w, 1, 0, threads[t], &r);
            check_shape(&w, 40, 0, threads[t], &r);
        }
        weights_free(&w);
    }
}

/* The widest ffn_down of an 8B model: sums of 14336 products. */
static void given_long_rows_then_the_sums_stay_exact(void) {
    struct rng r = {20};
    for (int f = 0; f < N_FORMATS; f++) {
        struct weights w = weights_new(&FORMATS[f], 14336, 33, &r);
        check_shape(&w, 1, 0, 2, &r);
        check_shape(&w, 40, 0, 2, &r);
        weights_free(&w);
    }
}

static void given_activations_of_zero_then_the_products_are_zero(void) {
    struct rng r = {21};
    for (int f = 0; f < N_FORMATS; f++) {
        struct weights w = weights_new(&FORMATS[f], 512, 37, &r);
        struct guarded x = guard_new(40 * 512 * sizeof(float), GUARD_AFTER);
        memset(x.data, 0, x.size);
        struct guarded y = product_run(&w, x, 40, 0, GGML_AMX_ISA_AUTO, 2);
        for (int i = 0; i < 40 * 37; i++) {
            CHECK(((float *) y.data)[i] == 0, "%s: product %d is %g", w.f->name, i, (double) ((float *) y.data)[i]);
        }
        guard_free(y);
        guard_free(x);
        weights_free(&w);
    }
}

/* A token with NaN must not spoil the others of its batch. With few rows the others keep their bits. The tile GEMM
 * looks at all rows to choose its precision, so there they only stay close. */
static void check_bad_rows(const struct weights * w, int64_t m, int32_t isa, struct rng * r) {
    static const float bad[] = {NAN, INFINITY, -INFINITY, 3e38f, 1e-42f};
    const size_t row_bytes = (size_t) w->n * sizeof(float);
    struct guarded good = activations_new(w->k, m, 0, r), x = guard_new(good.size, GUARD_AFTER);
    struct guarded want = product_run(w, good, m, 0, isa, 2);
    memcpy(x.data, good.data, x.size);
    for (int i = 0; i < 5 && 13 * i + 3 < m; i++) {
        ((float *) x.data)[(13 * i + 3) * w->k + 100 * i] = bad[i]; /* rows 3, 16, 29, 42, 55 */
    }
    struct guarded got = product_run(w, x, m, 0, isa, 2);
    for (int64_t row = 0; row < m; row++) {
        const float * a = (const float *) (const void *) (got.data + (size_t) row * row_bytes);
        const float * b = (const float *) (const void *) (want.data + (size_t) row * row_bytes);
        if (row % 13 == 3) {
            const bool is_finite = row >= 42; /* 3e38 and 1e-42 are numbers, their products may be large */
            CHECK(is_finite || !isfinite(a[0]), "%s isa %s: row %lld hides what went into it", w->f->name, ISA_NAMES[isa], (long long) row);
            continue;
        }
        double error = 0, size = 0;
        for (int64_t j = 0; j < w->n; j++) {
            error += ((double) a[j] - (double) b[j]) * ((double) a[j] - (double) b[j]);
            size += (double) b[j] * (double) b[j];
        }
        const bool keeps_bits = m < GEMM_ROWS || isa < GGML_AMX_ISA_AMX;
        CHECK(keeps_bits ? memcmp(a, b, row_bytes) == 0 : error <= 1e-3 * size, "%s M %lld isa %s: row %lld changed because of values in other rows",
              w->f->name, (long long) m, ISA_NAMES[isa], (long long) row);
    }
    guard_free(got);
    guard_free(want);
    guard_free(x);
    guard_free(good);
}

static void given_nan_infinity_and_huge_values_in_some_rows_then_the_other_rows_stay_right(void) {
    struct rng r = {22};
    for (int f = 0; f < N_FORMATS; f++) {
        struct weights w = weights_new(&FORMATS[f], 512, 37, &r);
        for (int32_t isa = GGML_AMX_ISA_PORTABLE; isa <= ggml_amx_isa_available(); isa++) {
            check_bad_rows(&w, 31, isa, &r);
            check_bad_rows(&w, 65, isa, &r);
        }
        weights_free(&w);
    }
}

static void given_any_number_of_threads_then_the_bits_are_the_same(void) {
    static const int64_t ms[] = {1, 4, 17, 40, 130};
    static const int32_t threads[] = {0, 2, 3, 7, 64};
    struct rng r = {17};
    for (int f = 0; f < N_FORMATS; f++) {
        struct weights w = weights_new(&FORMATS[f], 512, 170, &r);
        for (int m = 0; m < 5; m++) {
            struct guarded x = activations_new(w.k, ms[m], 0, &r);
            struct guarded one = product_run(&w, x, ms[m], 0, GGML_AMX_ISA_AUTO, 1);
            for (int t = 0; t < 5; t++) {
                struct guarded many = product_run(&w, x, ms[m], 0, GGML_AMX_ISA_AUTO, threads[t]);
                CHECK(memcmp(one.data, many.data, one.size) == 0, "%s M %lld: %d threads give other bits than one", w.f->name, (long long) ms[m], threads[t]);
                guard_free(many);
            }
            guard_free(one);
            guard_free(x);
        }
        weights_free(&w);
    }
}

static void given_the_same_call_twice_then_the_bits_are_the_same(void) {
    struct rng r = {8};
    for (int f = 0; f < N_FORMATS; f++) {
        struct weights w = weights_new(&FORMATS[f], 512, 100, &r);
        struct guarded x = activations_new(w.k, 65, 0, &r);
        struct guarded one = product_run(&w, x, 65, 0, GGML_AMX_ISA_AUTO, 3);
        for (int i = 0; i < 10; i++) {
            struct guarded two = product_run(&w, x, 65, 0, GGML_AMX_ISA_AUTO, 3);
            CHECK(memcmp(one.data, two.data, one.size) == 0, "%s: run %d differs", w.f->name, i);
            guard_free(two);
        }
        guard_free(one);
        guard_free(x);
        weights_free(&w);
    }
}

/* One-hot activations pick single weights: every weight of the matrix must land in its own place. */
static void given_one_hot_activations_then_every_weight_is_where_it_belongs(void) {
    struct rng r = {9};
    for (int f = 0; f < N_FORMATS; f++) {
        struct weights w = weights_new(&FORMATS[f], 256, 21, &r);
        struct guarded x = guard_new(256 * 256 * sizeof(float), GUARD_AFTER);
        memset(x.data, 0, x.size);
        for (int i = 0; i < 256; i++) {
            ((float *) x.data)[i * 256 + i] = 127.0f; /* the top of an int8 scale: quantised without error */
        }
        struct guarded dst = product_run(&w, x, 256, 0, GGML_AMX_ISA_AUTO, 2);
        double largest = 0;
        for (int64_t i = 0; i < w.k * w.n; i++) {
            largest = fmax(largest, fabs((double) w.floats[i]));
        }
        for (int64_t i = 0; i < 256; i++) {
            for (int64_t j = 0; j < w.n; j++) {
                const double got = (double) ((float *) dst.data)[i * w.n + j] / 127.0, want = (double) w.floats[j * w.k + i];
                CHECK(fabs(got - want) <= 0.01 * largest, "%s row %lld column %lld: %g instead of %g", w.f->name, (long long) j, (long long) i, got, want);
            }
        }
        guard_free(dst);
        guard_free(x);
        weights_free(&w);
    }
}

static void given_this_cpu_then_every_instruction_set_is_compared_or_named(void) {
    const int32_t best = ggml_amx_isa_available();
    CHECK(best >= GGML_AMX_ISA_PORTABLE && best <= GGML_AMX_ISA_AMX, "isa_available is %d", best);
    for (int32_t isa = best + 1; isa <= GGML_AMX_ISA_AMX; isa++) {
        harness_skip("the %s kernels were not compared: %s", ISA_NAMES[isa], ggml_amx_isa_reason());
    }
}

int main(void) {
    RUN(given_this_cpu_then_every_instruction_set_is_compared_or_named);
    RUN(given_one_hot_activations_then_every_weight_is_where_it_belongs);
    RUN(given_every_type_and_tail_size_then_all_instruction_sets_agree_and_are_right);
    RUN(given_gaps_between_rows_then_they_are_neither_read_nor_written);
    RUN(given_more_threads_than_rows_or_cores_then_the_result_is_right);
    RUN(given_any_number_of_threads_then_the_bits_are_the_same);
    RUN(given_long_rows_then_the_sums_stay_exact);
    RUN(given_activations_of_zero_then_the_products_are_zero);
    RUN(given_nan_infinity_and_huge_values_in_some_rows_then_the_other_rows_stay_right);
    RUN(given_the_same_call_twice_then_the_bits_are_the_same);
    return harness_report("api_mul_mat");
}

/* What the program `benches/mul_mat` asks of another host: its own product of one weight matrix, run by
 * our threads. One shared object per host implements it; `cargo xtask bench` compiles them. */
#ifndef GGML_AMX_BENCH_HOST_H
#define GGML_AMX_BENCH_HOST_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct bench_matrix;

/* `copies` of the weights in the host's own form: n rows of k weights of the type that ggml_type_name calls
 * `type`, read from `plain`. `variant` is empty or names another form. NULL: the host has no such form. */
struct bench_matrix *bench_create(const char *type, const char *variant, int64_t k, int64_t n, const void *plain,
                                  int copies, int threads);

/* The form the weights have now: a buffer type, or a type with interleaved rows. */
const char *bench_form(const struct bench_matrix *matrix);

/* Fixes the activations (m rows of k floats) and the result (m rows of n floats) of what follows. */
void bench_prepare(struct bench_matrix *matrix, int64_t m, const float *x, float *y);

/* The part of thread `ith` of `nth`, on one of the copies, as in a graph of the host: activations are
 * quantised here. `barrier(context)` waits for all threads. */
void bench_run(struct bench_matrix *matrix, int copy, int ith, int nth, void (*barrier)(void *), void *context);

void bench_destroy(struct bench_matrix *matrix);

#ifdef __cplusplus
}
#endif

#endif

/* What every test program here shares: counted checks, SKIPPED lines, and random numbers that are the
 * same on every machine. A program's main() calls RUN() once per test and returns harness_report().
 * Exit code: 0 = all checks passed, 1 = some failed, 77 = nothing could be checked. C11 and C++17. */
#ifndef GGML_AMX_TEST_HARNESS_H
#define GGML_AMX_TEST_HARNESS_H

#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __cplusplus
#define HARNESS_ZERO {}
#else
#define HARNESS_ZERO {0}
#endif

#define HARNESS_UNUSED __attribute__((unused))

static const char * harness_test = "setup"; /* the test that runs now */
static long harness_checks, harness_failed, harness_failed_before, harness_skipped;

/* Lines of failures that are printed per test. */
enum { HARNESS_MAX_LINES = 12 };

/* Counts one check; a failure prints where, what, and the message. Safe from several threads. */
__attribute__((format(printf, 5, 6))) HARNESS_UNUSED static bool
harness_check(bool ok, const char * file, int line, const char * what, const char * format, ...) {
    __atomic_fetch_add(&harness_checks, 1, __ATOMIC_RELAXED);
    if (ok) {
        return true;
    }
    const long in_test = __atomic_fetch_add(&harness_failed, 1, __ATOMIC_RELAXED) - harness_failed_before;
    if (in_test < HARNESS_MAX_LINES) {
        char message[1024];
        va_list args;
        va_start(args, format);
        vsnprintf(message, sizeof message, format, args);
        va_end(args);
        const char * name = strrchr(file, '/');
        printf("FAILED %s (%s:%d): %s [%s]\n", harness_test, name ? name + 1 : file, line, message, what);
    } else if (in_test == HARNESS_MAX_LINES) {
        printf("FAILED %s: more failures follow, not shown\n", harness_test);
    }
    fflush(stdout);
    return false;
}

/* CHECK(condition, "message with %d values", n); the value is the condition. */
#define CHECK(condition, ...) harness_check((condition), __FILE__, __LINE__, #condition, __VA_ARGS__)

/* Records that something could not be checked here, and why. */
__attribute__((format(printf, 1, 2))) HARNESS_UNUSED static void harness_skip(const char * format, ...) {
    char reason[512];
    va_list args;
    va_start(args, format);
    vsnprintf(reason, sizeof reason, format, args);
    va_end(args);
    printf("SKIPPED %s: %s\n", harness_test, reason);
    fflush(stdout);
    harness_skipped++;
}

HARNESS_UNUSED static void harness_run(const char * name, void (*test)(void)) {
    harness_test = name;
    harness_failed_before = harness_failed;
    const long checks = harness_checks, skipped = harness_skipped;
    test();
    /* A test that checks nothing and names no reason would be a silent skip. */
    CHECK(harness_checks > checks || harness_skipped > skipped, "the test made no check");
}
#define RUN(test) harness_run(#test, test)

HARNESS_UNUSED static int harness_report(const char * program) {
    printf("%s: %ld checks, %ld failed\n", program, harness_checks, harness_failed);
    fflush(stdout);
    return harness_failed ? 1 : harness_checks == 0 && harness_skipped ? 77 : 0;
}

/* ---- random numbers: splitmix64 */

struct rng {
    uint64_t state;
};

HARNESS_UNUSED static uint64_t rng_next(struct rng * r) {
    uint64_t z = (r->state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* 0 .. n-1 */
HARNESS_UNUSED static uint64_t rng_below(struct rng * r, uint64_t n) {
    return rng_next(r) % n;
}

HARNESS_UNUSED static void rng_bytes(struct rng * r, void * to, size_t size) {
    uint8_t * bytes = (uint8_t *) to;
    for (size_t i = 0; i < size; i++) {
        bytes[i] = (uint8_t) (rng_next(r) >> 56);
    }
}

/* Standard normal (Box-Muller). */
HARNESS_UNUSED static float rng_normal(struct rng * r) {
    const double u = ((double) (rng_next(r) >> 11) + 1.0) * 0x1p-53;
    const double v = (double) (rng_next(r) >> 11) * 0x1p-53;
    return (float) (sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
}

#endif

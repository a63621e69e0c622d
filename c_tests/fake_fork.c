/* Forked children of a process that has another thread in the library's first call. */
#define _GNU_SOURCE
#include <unistd.h>

/* Making a context takes long, so there is always a thread in the first call. */
static int slow;
#define FAKE_BEFORE_INIT usleep(__atomic_load_n(&slow, __ATOMIC_RELAXED) ? 20000 : 0)
#include "fake_ggml.h"

#include "ggml-amx.h"

#include "child.h"

#include <pthread.h>

/* ---- fork during the first call */

static void * first_call(void * unused) {
    (void) unused;
    return ggml_backend_amx_buffer_type();
}

static int ask(void * unused) {
    (void) unused;
    __atomic_store_n(&slow, 0, __ATOMIC_RELAXED);
    alarm(20);
    return ggml_backend_amx_buffer_type() ? 0 : 1;
}

/* Another thread begins the first call; `after` microseconds later this one forks. */
static int fork_during_the_first_call(void * after) {
    pthread_t other;
    __atomic_store_n(&slow, 1, __ATOMIC_RELAXED);
    pthread_create(&other, NULL, first_call, NULL);
    usleep(*(useconds_t *) after);
    struct child c = child_fork(ask, NULL);
    void * made = NULL;
    pthread_join(other, &made);
    fputs(c.err, stderr);
    const int ok = c.signal == 0 && c.code == 0 && made && made == ggml_backend_amx_buffer_type();
    child_free(&c);
    return ok ? 0 : 1;
}

static void given_a_fork_during_the_first_call_then_the_child_makes_it_anew(void) {
    for (useconds_t after = 0; after < 200000; after = after * 2 + 1000) {
        struct child c = child_fork(fork_during_the_first_call, &after);
        CHECK(c.signal == 0 && c.code == 0, "%u microseconds after it began: signal %d, exit code %d\n%s", after, c.signal, c.code, c.err);
        child_free(&c);
    }
}

int main(void) {
    setenv("GGML_AMX_ISA", "portable", 1);
    RUN(given_a_fork_during_the_first_call_then_the_child_makes_it_anew);
    return harness_report("fake_fork");
}

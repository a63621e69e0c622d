/* Forked children of a process whose other threads are in the library: in its first call, or writing to its buffers; and
 * children that have the same process id as their parent. */
#define _GNU_SOURCE
#include <unistd.h>

/* Every context takes its time: so there is always a thread in the first call. */
static int slow;
#define FAKE_BEFORE_INIT if (__atomic_load_n(&slow, __ATOMIC_RELAXED)) usleep(20000)
#include "fake_ggml.h"

#include "ggml-amx.h"

#include "child.h"

#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>

enum { K = 1024, N = 2048, Q8_0 = 8, REFUSED = 77 };

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

/* A thread begins the first call; `after` microseconds later this one forks. */
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

/* ---- children that pack */

/* Packs a matrix that is large enough for several threads, and reads it back. */
static int pack(void * unused) {
    (void) unused;
    FAKE_BUFT amx = (FAKE_BUFT) ggml_backend_amx_buffer_type();
    void * context = ggml_init((struct fake_init_params){0, NULL, true});
    struct fake_tensor_type * w = ggml_new_tensor_4d(context, Q8_0, K, N, 1, 1);
    const size_t bytes = ggml_nbytes(w);
    FAKE_BUFFER buffer = ggml_backend_buft_alloc_buffer(amx, ggml_backend_buft_get_alloc_size(amx, w));
    if (!buffer) {
        return 2;
    }
    ggml_backend_tensor_alloc(buffer, w, ggml_backend_buffer_get_base(buffer));
    unsigned char * plain = (unsigned char *) malloc(bytes), * back = (unsigned char *) calloc(1, bytes);
    for (size_t i = 0; i < bytes; i++) {
        plain[i] = (unsigned char) (i * 131 / 7);
    }
    ggml_backend_tensor_set(w, plain, 0, bytes);
    ggml_backend_tensor_get(w, back, 0, bytes);
    const int same = memcmp(plain, back, bytes) == 0;
    free(plain);
    free(back);
    ggml_backend_buffer_free(buffer);
    return same ? 0 : 3;
}

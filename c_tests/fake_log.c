/* Log callbacks that call back into this library and into the host: none may wait for a lock or an initialiser that its
 * own thread holds. Each runs in a process of its own, with a time limit. */
#define _GNU_SOURCE
#include "fake_ggml.h"

#include "ggml-amx.h"

#include "child.h"

#include <pthread.h>

/* ---- the host's list of extra buffer types: made at the first call, behind a lock that is not recursive, as the
 * initialiser of a static variable in C++ */

static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static bool list_is_there;
static struct ggml_backend_buffer_type * list[2];

static struct ggml_backend_buffer_type ** extra_buffer_types(void) {
    if (!__atomic_load_n(&list_is_there, __ATOMIC_ACQUIRE)) {
        pthread_mutex_lock(&list_lock);
        if (fake_host_door()) {
            list[0] = fake_host_door();
        }
        __atomic_store_n(&list_is_there, true, __ATOMIC_RELEASE);
        pthread_mutex_unlock(&list_lock);
    }
    return list;
}

/* ---- the reader */

static int lines, depth;
static bool calls_the_host;

static void read_line(int32_t level, const char * text) {
    (void) level;
    lines++;
    fputs(text, stderr);
    if (depth++ == 0) {
        size_t size = 0;
        ggml_backend_amx_buffer_type();
        ggml_backend_amx_get_extra_bufts();
        ggml_backend_amx_supports_op(NULL, NULL);
        ggml_backend_amx_work_size(1, NULL, &size);
        ggml_backend_amx_compute_forward(NULL, NULL);
        ggml_amx_isa_available();
        ggml_amx_isa_reason();
        ggml_amx_last_error();
        struct ggml_amx_mul_mat_args args = HARNESS_ZERO;
        args.struct_size = sizeof args;
        args.type = GGML_AMX_TYPE_IQ2_XXS, args.k = 256;
        ggml_amx_mul_mat(&args); /* looks for the host's decoder */
        if (calls_the_host) {
            extra_buffer_types();
        }
    }
    depth--;
}

/* ---- child programs: exit code 3 = no line came, 4 = not the buffer type that the C++ function returns */

static int door(void) {
    fake_log_callback = read_line;
    calls_the_host = true;
    struct ggml_backend_buffer_type * found = extra_buffer_types()[0];
    if (found) {
        ggml_backend_buft_name(found); /* what hosts do next; lines may have waited for it */
    }
    return lines == 0 ? 3 : found != ggml_backend_amx_buffer_type() ? 4 : 0;
}

static int door_without_the_host(void) {
    fake_log_callback = read_line;
    struct ggml_backend_buffer_type * found = extra_buffer_types()[0];
    return lines == 0 ? 3 : found != ggml_backend_amx_buffer_type() ? 4 : 0;
}

static int function(void) {
    fake_log_callback = read_line;
    calls_the_host = true;
    struct ggml_backend_buffer_type ** found = ggml_backend_amx_get_extra_bufts();
    return lines == 0 ? 3 : found[0] != ggml_backend_amx_buffer_type() ? 4 : 0;
}

/* ---- a reader with a lock, which another thread holds while it calls this library */

static pthread_mutex_t readers_lock = PTHREAD_MUTEX_INITIALIZER;

static void read_line_under_a_lock(int32_t level, const char * text) {
    (void) level;
    pthread_mutex_lock(&readers_lock);
    lines++;
    fputs(text, stderr);
    pthread_mutex_unlock(&readers_lock);
}

static void * first_call(void * context) {
    (void) context;
    ggml_backend_amx_buffer_type();
    return NULL;
}

static int two_threads(void) {
    fake_log_callback = read_line_under_a_lock;
    pthread_t other;
    pthread_mutex_lock(&readers_lock);
    if (pthread_create(&other, NULL, first_call, NULL) != 0) {
        return 5;
    }
    while (!__atomic_load_n(&fake_asked, __ATOMIC_RELAXED)) { /* until the other is proving the host */
        usleep(100);
    }
    struct ggml_backend_buffer_type * found = ggml_backend_amx_buffer_type();
    pthread_mutex_unlock(&readers_lock);
    pthread_join(other, NULL);
    return lines == 0 ? 3 : found != ggml_backend_amx_buffer_type() ? 4 : 0;
}

/* ---- tests */

struct way {
    const char * name;
    int (*run)(void);
};

static const struct way WAYS[] = {{"door", door}, {"door_without_the_host", door_without_the_host}, {"function", function},
                                   {"two_threads", two_threads}};

/* Expects at least `wanted` lines of ours in the log. */
static void check(const char * way, const char * isa, const char * mode, const char * log, int wanted) {
    const char * const env[] = {"GGML_AMX_ISA", isa, "GGML_AMX_MODE", mode, "GGML_AMX_LOG", log, NULL};
    struct child c = child_exec(way, env);
    CHECK(c.signal != SIGALRM, "%s, GGML_AMX_ISA=%s MODE=%s: it hangs\n%s", way, isa, mode, c.err);
    CHECK(c.signal == 0 && c.code == 0, "%s, GGML_AMX_ISA=%s MODE=%s: signal %d, exit code %d (3 no line, 4 another answer)\n%s", way, isa, mode,
          c.signal, c.code, c.err);
    const int found = count_lines_with(c.err, "ggml-amx: ");
    CHECK(found >= wanted, "%s: %d lines, not %d\n%s", way, found, wanted, c.err);
    child_free(&c);
}

static void given_a_host_that_is_served_then_a_reader_may_call_everybody(void) {
    check("door", "portable", "auto", "info", 1);
    check("door", "portable", "auto", "debug", 2);
    check("function", "portable", "auto", "debug", 2);
}

static void given_a_host_that_is_not_served_then_a_reader_may_call_this_library(void) {
    check("door_without_the_host", "portable", "off", "info", 1);
    check("function", "portable", "off", "info", 1);
}

static void given_unknown_settings_then_a_reader_may_call_everybody(void) {
    check("door", "portable", "sideways", "info", 2);
    check("function", "portable", "sideways", "loud", 3);
}

static void given_a_reader_with_a_lock_then_its_holder_may_call_this_library(void) {
    check("two_threads", "portable", "auto", "info", 1);
    check("two_threads", "portable", "off", "info", 1);
}

int main(int argc, char ** argv) {
    for (size_t i = 0; argc > 1 && i < sizeof WAYS / sizeof WAYS[0]; i++) {
        if (strcmp(argv[1], WAYS[i].name) == 0) {
            return WAYS[i].run();
        }
    }
    RUN(given_a_host_that_is_served_then_a_reader_may_call_everybody);
    RUN(given_a_host_that_is_not_served_then_a_reader_may_call_this_library);
    RUN(given_unknown_settings_then_a_reader_may_call_everybody);
    RUN(given_a_reader_with_a_lock_then_its_holder_may_call_this_library);
    return harness_report("fake_log");
}

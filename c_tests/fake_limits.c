/* Limits of memory in unusual processes: names that are not UTF-8, no free descriptor to read the limits with, record
 * locks on files of their own. */
#define _GNU_SOURCE
#include "fake_ggml.h"

#include "ggml-amx.h"

#include "child.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/resource.h>

enum { SIDE = 32768, ROWS = 512, Q8_0 = 8 };

/* Whether a loader's question about a matrix of 1 GiB is answered with yes. */
static bool accepts(void) {
    fake_buft amx = (fake_buft) ggml_backend_amx_buffer_type();
    if (!amx) {
        return false;
    }
    void * context = ggml_init((struct fake_init_params){0, NULL, true});
    fake_tensor w = ggml_new_tensor_4d(context, Q8_0, SIDE, SIDE, 1, 1), x = ggml_new_tensor_4d(context, 0, SIDE, ROWS, 1, 1);
    fake_tensor op = ggml_mul_mat(context, w, x);
    const struct fake_buffer_interface none = HARNESS_ZERO;
    w->buffer = ggml_backend_buffer_init(amx, none, NULL, 0);
    const bool answer = ggml_backend_amx_supports_op(NULL, op);
    ggml_backend_buffer_free(w->buffer);
    ggml_free(context);
    return answer;
}

#ifndef __SANITIZE_ADDRESS__ /* which needs all of the address space */
static void limit(int resource, size_t bytes) {
    const struct rlimit both = {bytes, bytes};
    setrlimit(resource, &both);
}

static int ask_with_a_name(void * name) {
    prctl(PR_SET_NAME, name);
    limit(RLIMIT_AS, (size_t) 600 << 20);
    return accepts();
}

static void given_a_thread_with_any_name_then_limits_hold(void) {
    const char * const names[] = {"plain", "\xd1\x81\xd0\xb5\xd1\x80\xd0\xb2\xd0\xb5\xd1\x80\xd0\x9c\xd0", "\xff\xfe:\n7"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct child c = child_fork(ask_with_a_name, (void *) (uintptr_t) names[i]);
        CHECK(c.signal == 0 && c.code == 0, "name %zu: 1 GiB was accepted below 600 MiB of addresses (%d, %d)\n%s", i, c.signal, c.code, c.err);
        child_free(&c);
    }
}

static int lines;

/* A log callback that asks a loader's question itself when it gets the first line. */
static void ask_from_the_log(int32_t level, const char * text) {
    (void) level;
    fputs(text, stderr);
    if (lines++ == 0) {
        accepts();
    }
}

static int ask_with_a_log(void * unused) {
    (void) unused;
    ggml_backend_amx_buffer_type(); /* whose lines are not those of the limit */
    fake_log_callback = ask_from_the_log;
    limit(RLIMIT_AS, (size_t) 600 << 20);
    return accepts() ? 1 : lines == 0 ? 2 : 0;
}

static void given_a_log_callback_that_asks_too_then_it_gets_an_answer(void) {
    struct child c = child_fork(ask_with_a_log, NULL);
    CHECK(c.signal == 0 && c.code == 0, "signal %d, exit code %d (1 accepted, 2 no line)\n%s", c.signal, c.code, c.err);
    CHECK(count_lines_with(c.err, "stay with the host") == 2, "not one line for each question\n%s", c.err);
    CHECK(!strstr(c.err, "a bug in ggml-amx"), "it panicked\n%s", c.err);
    child_free(&c);
}

/* Asks when the process has taken all descriptors that it may have. */
static int ask_without_a_descriptor(void * limited) {
    if (limited) {
        limit(RLIMIT_AS, (size_t) 600 << 20);
    }
    limit(RLIMIT_NOFILE, 64);
    ggml_backend_amx_buffer_type();
    while (open("/dev/null", O_RDONLY) >= 0) {
    }
    return accepts();
}

static void given_no_descriptor_to_read_limits_by_then_nothing_is_accepted_and_it_is_said(void) {
    for (int limited = 0; limited < 2; limited++) {
        struct child c = child_fork(ask_without_a_descriptor, limited ? &limited : NULL);
        CHECK(c.signal == 0 && c.code == 0, "1 GiB was accepted (%d, %d)\n%s", c.signal, c.code, c.err);
        CHECK(strstr(c.err, "stay with the host") && (limited || strstr(c.err, "cannot be read")), "nobody said why\n%s", c.err);
        child_free(&c);
    }
}
#endif

static int fd_of_lock;

static int asks_for_the_lock(void * unused) {
    (void) unused;
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    return fcntl(fd_of_lock, F_GETLK, &lock) != 0 ? 2 : lock.l_type != F_UNLCK;
}

/* Whether this process still has its lock, as seen by another one. */
static bool is_locked(void) {
    struct child c = child_fork(asks_for_the_lock, NULL);
    CHECK(c.signal == 0 && c.code >= 0 && c.code < 2, "the lock cannot be asked for");
    const bool answer = c.code == 1;
    child_free(&c);
    return answer;
}

/* Locks a file as databases do, and its own program. */
static int ask_with_locks(void * file) {
    fd_of_lock = open((const char *) file, O_RDWR);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fd_of_lock < 0) { /* a running program cannot be opened for writing */
        fd_of_lock = open((const char *) file, O_RDONLY);
        lock.l_type = F_RDLCK;
    }
    if (fd_of_lock < 0 || fcntl(fd_of_lock, F_SETLK, &lock) != 0 || !is_locked()) {
        return 2;
    }
#ifndef __SANITIZE_ADDRESS__
    limit(RLIMIT_AS, (size_t) 64 << 30);
#endif
    accepts();
    ggml_amx_isa_reason();
    return is_locked() ? 0 : 3;
}

static void given_record_locks_of_the_process_then_they_stay(const char * program) {
    char name[] = "/tmp/ggml-amx-lock-XXXXXX";
    const int fd = mkstemp(name);
    CHECK(fd >= 0 && write(fd, "GGUF and more", 13) == 13, "no file");
    close(fd);
    const char * const files[] = {name, program};
    for (int i = 0; i < 2; i++) {
        struct child c = child_fork(ask_with_locks, (void *) (uintptr_t) files[i]);
        CHECK(c.signal == 0 && c.code == 0, "%s: signal %d, exit code %d (3: its lock is gone)\n%s", files[i], c.signal, c.code, c.err);
        child_free(&c);
    }
    unlink(name);
}

static const char * started_as;

static void given_record_locks_of_the_process_on_its_files_or_its_program_then_they_stay(void) {
    given_record_locks_of_the_process_then_they_stay(started_as);
}

int main(int count, char ** arguments) {
    (void) count;
    started_as = arguments[0];
    setenv("GGML_AMX_ISA", "portable", 1);
#ifndef __SANITIZE_ADDRESS__
    RUN(given_a_thread_with_any_name_then_limits_hold);
    RUN(given_a_log_callback_that_asks_too_then_it_gets_an_answer);
    RUN(given_no_descriptor_to_read_limits_by_then_nothing_is_accepted_and_it_is_said);
#endif
    RUN(given_record_locks_of_the_process_on_its_files_or_its_program_then_they_stay);
    return harness_report("fake_limits");
}

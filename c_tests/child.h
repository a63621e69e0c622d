/* Runs part of a test in another process and keeps what it printed, so that a crash, an abort or a hang
 * is a result and not the end of the run. Needs _GNU_SOURCE before the first system header. */
#ifndef GGML_AMX_TEST_CHILD_H
#define GGML_AMX_TEST_CHILD_H

#include "harness.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* No child here takes longer, with sanitizers on a busy machine. */
enum { CHILD_SECONDS = 60 };

struct child {
    int signal; /* that ended it, 0 if it exited */
    int code;   /* its exit code, -1 after a signal */
    char * out; /* standard output; out_size bytes, then a NUL */
    size_t out_size;
    char * err; /* standard error, NUL-terminated */
};

static char * child_slurp(int fd, size_t * size) {
    const off_t end = lseek(fd, 0, SEEK_END);
    char * text = (char *) calloc((size_t) end + 1, 1);
    size_t have = 0;
    while (have < (size_t) end) {
        const ssize_t n = pread(fd, text + have, (size_t) end - have, (off_t) have);
        if (n <= 0) {
            break;
        }
        have += (size_t) n;
    }
    close(fd);
    *size = have;
    return text;
}

/* fork(); the child runs body(context) and exits with what it returns. */
HARNESS_UNUSED static struct child child_fork(int (*body)(void *), void * context) {
    struct child c = HARNESS_ZERO;
    const int out = memfd_create("stdout", 0), err = memfd_create("stderr", 0);
    fflush(stdout);
    fflush(stderr);
    const pid_t pid = fork();
    if (pid < 0 || out < 0 || err < 0) {
        perror("child_fork");
        exit(1);
    }
    if (pid == 0) {
        alarm(CHILD_SECONDS);
        dup2(out, STDOUT_FILENO);
        dup2(err, STDERR_FILENO);
        const int code = body(context);
        fflush(stdout);
        fflush(stderr);
        _exit(code);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    c.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    c.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    c.out = child_slurp(out, &c.out_size);
    size_t ignored;
    c.err = child_slurp(err, &ignored);
    return c;
}

struct child_exec_args {
    const char * mode;
    const char * const * env;
};

static int child_exec_body(void * context) {
    const struct child_exec_args * args = (const struct child_exec_args *) context;
    for (const char * const * pair = args->env; pair && pair[0]; pair += 2) {
        if (pair[1]) {
            setenv(pair[0], pair[1], 1);
        } else {
            unsetenv(pair[0]);
        }
    }
    execl("/proc/self/exe", "child", args->mode, (char *) NULL);
    perror("exec");
    return 126;
}

/* Starts this program again with one argument and changed environment: {"NAME", "value", "OTHER", NULL
 * (= unset), ..., NULL}. main() must look at argv[1] first. */
HARNESS_UNUSED static struct child child_exec(const char * mode, const char * const * env) {
    struct child_exec_args args = {mode, env};
    return child_fork(child_exec_body, &args);
}

HARNESS_UNUSED static void child_free(struct child * c) {
    free(c->out);
    free(c->err);
}

/* Lines of `text` that contain `part`. */
HARNESS_UNUSED static int count_lines_with(const char * text, const char * part) {
    int n = 0;
    for (const char * line = text; line && *line;) {
        const char * end = strchr(line, '\n');
        const char * hit = strstr(line, part);
        n += hit && (!end || hit < end);
        line = end ? end + 1 : NULL;
    }
    return n;
}

/* Runs body(context) in this process and returns what it wrote to standard error (free it). */
HARNESS_UNUSED static char * stderr_of(void (*body)(void *), void * context) {
    fflush(stderr);
    const int saved = dup(STDERR_FILENO), file = memfd_create("stderr", 0);
    dup2(file, STDERR_FILENO);
    body(context);
    fflush(stderr);
    dup2(saved, STDERR_FILENO);
    close(saved);
    size_t size;
    return child_slurp(file, &size);
}

#endif

/* The drop-in entry points in a process without any ggml: they step aside, say so once, and survive NULL. */
#define _GNU_SOURCE
#include "ggml-amx.h"

#include "child.h"

static int ask_three_times(void) {
    for (int i = 0; i < 3; i++) {
        struct ggml_backend_buffer_type ** list = ggml_backend_amx_get_extra_bufts();
        if (ggml_backend_amx_buffer_type() != NULL) {
            return 2;
        }
        if (list == NULL) {
            return 3;
        }
        if (list[0] != NULL) {
            return 4;
        }
    }
    return 0;
}

static void given_no_host_then_there_is_no_buffer_type_and_one_line_says_why(void) {
    const char * const quiet_env[] = {"GGML_AMX_LOG", NULL, "GGML_AMX_MODE", NULL, "GGML_AMX_ISA", NULL, NULL};
    struct child c = child_exec("ask", quiet_env);
    CHECK(c.signal == 0, "killed by signal %d\n%s", c.signal, c.err);
    CHECK(c.code != 2, "there is a buffer type without a host");
    CHECK(c.code != 3, "the list of extra buffer types is NULL");
    CHECK(c.code != 4, "the list of extra buffer types is not empty");
    CHECK(c.code == 0, "exit code %d", c.code);
    CHECK(count_lines_with(c.err, "ggml-amx:") == 1, "expected one line, got: %s", c.err);
    child_free(&c);
}

static void given_a_quiet_log_then_nothing_is_printed(void) {
    const char * const env[] = {"GGML_AMX_LOG", "quiet", NULL};
    struct child c = child_exec("ask", env);
    CHECK(c.code == 0 && c.signal == 0, "exit code %d, signal %d", c.code, c.signal);
    CHECK(c.err[0] == 0, "printed: %s", c.err);
    child_free(&c);
}

static void given_null_tensors_then_nothing_is_supported_and_nothing_crashes(void) {
    size_t size = 77;
    CHECK(!ggml_backend_amx_supports_op(NULL, NULL), "NULL is supported");
    CHECK(!ggml_backend_amx_work_size(1, NULL, &size), "NULL has a work size");
    CHECK(size == 77, "the size of an op that is not ours was set to %zu", size);
    CHECK(!ggml_backend_amx_work_size(1, NULL, NULL), "NULL has a work size");
    CHECK(!ggml_backend_amx_compute_forward(NULL, NULL), "NULL was computed");
}

/* With no host found, no layout is proved, so not one byte of a tensor may be looked at. */
static void given_no_host_then_tensors_are_not_looked_at(void) {
    void * forbidden = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    size_t size = 77;
    CHECK(!ggml_backend_amx_supports_op(NULL, (const struct ggml_tensor *) forbidden), "supported");
    CHECK(!ggml_backend_amx_work_size(1, (const struct ggml_tensor *) forbidden, &size), "has a work size");
    CHECK(!ggml_backend_amx_compute_forward((struct ggml_compute_params *) forbidden, (struct ggml_tensor *) forbidden), "computed");
    munmap(forbidden, 4096);
}

int main(int argc, char ** argv) {
    (void) argv;
    if (argc > 1) {
        return ask_three_times();
    }
    RUN(given_no_host_then_there_is_no_buffer_type_and_one_line_says_why);
    RUN(given_a_quiet_log_then_nothing_is_printed);
    RUN(given_null_tensors_then_nothing_is_supported_and_nothing_crashes);
    RUN(given_no_host_then_tensors_are_not_looked_at);
    return harness_report("api_without_ggml");
}

/* Hosts whose table of types is shorter: this library may ask nothing about a type past its end, not even its name.
 * Older versions would read behind the table, newer ones end the process if assertions are compiled in. */
#define _GNU_SOURCE
#define FAKE_TYPES 31 /* the first types of 2024, BF16 last */
#include "fake_ggml.h"

#include "ggml-amx.h"

#include "child.h"

static int ask(void) {
    struct ggml_backend_buffer_type * buft = ggml_backend_amx_buffer_type();
    return !buft ? 3 : fake_asked == 0 ? 4 : strcmp(ggml_backend_buft_name(buft), "AMX") != 0 ? 5 : 0;
}

static void given_an_old_table_of_types_then_nothing_past_its_end_is_asked_for(void) {
    const char * const env[] = {"GGML_AMX_ISA", "portable", "GGML_AMX_LOG", NULL, "GGML_AMX_MODE", NULL, NULL};
    struct child c = child_exec("ask", env);
    CHECK(c.signal == 0 && c.code == 0, "signal %d, exit code %d (3 no buffer type, 4 no type asked for, 5 name)\n%s", c.signal, c.code, c.err);
    child_free(&c);
}

int main(int argc, char ** argv) {
    (void) argv;
    if (argc > 1) {
        return ask();
    }
    RUN(given_an_old_table_of_types_then_nothing_past_its_end_is_asked_for);
    return harness_report("fake_types");
}

/* Hosts in processes with a libmemkind: weights lie in high-bandwidth memory only if the host was built for it. */
#define _GNU_SOURCE
#define HOSTS 2 /* hosts that this program can have: built with GGML_CPU_HBM, and without */
#include "fake_ggml.h"

#include "ggml-amx.h"

static int allocated, freed;

int hbw_posix_memalign(void ** at, size_t alignment, size_t size);
void hbw_free(void * at);

int hbw_posix_memalign(void ** at, size_t alignment, size_t size) {
    if (size > (size_t) 1 << 40) {
        return 12; /* ENOMEM */
    }
    allocated++;
    *at = aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
    return *at ? 0 : 12;
}

void hbw_free(void * at) {
    freed++;
    free(at);
}

#if HOST == 0
void * fake_hbm_type(void) __asm__("_Z32ggml_backend_cpu_hbm_buffer_typev");
void * fake_hbm_type(void) {
    return NULL;
}
#endif

static void given_a_host_with_high_bandwidth_memory_then_weights_lie_there_and_else_they_do_not(void) {
    setenv("GGML_AMX_ISA", "portable", 1);
    fake_buft amx = (fake_buft) ggml_backend_amx_buffer_type();
    if (!CHECK(amx != NULL, "there is no buffer type")) {
        return;
    }
    const int with = HOST == 0;
    fake_buffer small = amx->alloc_buffer(amx, 100), large = amx->alloc_buffer(amx, (5 << 20) + 64);
    CHECK(small && large && allocated == 2 * with, "%d buffers in its memory", allocated);
    unsigned char * base = (unsigned char *) large->interface.get_base(large);
    CHECK((uintptr_t) base % 64 == 0 && base[0] == 0 && base[(5 << 20) + 63] == 0, "not zeroed or not aligned");
    CHECK(amx->alloc_buffer(amx, (size_t) 1 << 41) == NULL || !with, "more than there is was allocated");
    small->interface.free_buffer(small);
    large->interface.free_buffer(large);
    CHECK(freed == 2 * with, "%d of 2 freed", freed);
}

int main(void) {
    RUN(given_a_host_with_high_bandwidth_memory_then_weights_lie_there_and_else_they_do_not);
    return harness_report("fake_hbm");
}

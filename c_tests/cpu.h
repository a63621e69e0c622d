/* What this machine's CPU and kernel offer. C11 (with _GNU_SOURCE first) and C++17. */
#ifndef GGML_AMX_TEST_CPU_H
#define GGML_AMX_TEST_CPU_H

#include "harness.h"

#include <sys/syscall.h>
#include <unistd.h>

/* Does /proc/cpuinfo list this flag? */
static bool host_cpu_has(const char * flag) {
    FILE * file = fopen("/proc/cpuinfo", "r");
    char line[8192], word[64];
    snprintf(word, sizeof word, " %s", flag);
    bool found = false;
    while (file && !found && fgets(line, sizeof line, file)) {
        const char * at = strncmp(line, "flags", 5) == 0 ? strstr(line, word) : NULL;
        found = at && (at[strlen(word)] == ' ' || at[strlen(word)] == '\n');
    }
    if (file) {
        fclose(file);
    }
    return found;
}

/* What the library's AVX-512 kernels need. */
HARNESS_UNUSED static bool host_cpu_has_avx512(void) {
    return host_cpu_has("avx512f") && host_cpu_has("avx512bw") && host_cpu_has("avx512vl") && host_cpu_has("avx512dq") && host_cpu_has("avx512_vnni");
}

/* The CPU has AMX, and the kernel would permit tile data (ARCH_GET_XCOMP_SUPP, bit 18). This does not ask for the
 * permission. */
HARNESS_UNUSED static bool host_has_amx(void) {
    uint64_t supported = 0;
    return host_cpu_has("amx_tile") && host_cpu_has("amx_int8") && host_cpu_has_avx512() && syscall(SYS_arch_prctl, 0x1021, &supported) == 0 &&
           (supported >> 18 & 1);
}

/* Without AMX, asks the library to serve with its other kernels, so that all but the tile unit is still tested. */
HARNESS_UNUSED static void host_settle_for_lesser_kernels(void) {
    if (!host_has_amx() && !getenv("GGML_AMX_ISA")) {
        const char * isa = host_cpu_has_avx512() ? "avx512" : "portable";
        harness_skip("the AMX kernels: CPU or kernel does not offer them; the rest runs with GGML_AMX_ISA=%s", isa);
        setenv("GGML_AMX_ISA", isa, 1);
    }
}

#endif

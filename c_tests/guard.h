/* Buffers with forbidden pages on both sides: a read or write one byte outside is a SIGSEGV.
 * Needs _GNU_SOURCE before the first system header (MAP_ANONYMOUS). */
#ifndef GGML_AMX_TEST_GUARD_H
#define GGML_AMX_TEST_GUARD_H

#include "harness.h"

#include <sys/mman.h>
#include <unistd.h>

/* Which end of the buffer touches the forbidden page; the other end is as near as whole pages allow. */
enum guard_side { GUARD_AFTER, GUARD_BEFORE };

struct guarded {
    uint8_t * data;
    size_t size;
    void * map;
    size_t map_size;
};

HARNESS_UNUSED static struct guarded guard_new(size_t size, enum guard_side side) {
    const size_t page = (size_t) sysconf(_SC_PAGESIZE);
    const size_t inside = (size + page - 1) / page * page;
    struct guarded g = HARNESS_ZERO;
    g.size = size;
    g.map_size = inside + 2 * page;
    g.map = mmap(NULL, g.map_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (g.map == MAP_FAILED || (inside && mprotect((char *) g.map + page, inside, PROT_READ | PROT_WRITE) != 0)) {
        perror("guard_new");
        exit(1);
    }
    g.data = (uint8_t *) g.map + page + (side == GUARD_AFTER ? inside - size : 0);
    return g;
}

/* From here on the contents may be read but not written. */
HARNESS_UNUSED static void guard_seal(struct guarded g) {
    const size_t page = (size_t) sysconf(_SC_PAGESIZE);
    if (g.map_size > 2 * page && mprotect((char *) g.map + page, g.map_size - 2 * page, PROT_READ) != 0) {
        perror("guard_seal");
        exit(1);
    }
}

HARNESS_UNUSED static void guard_free(struct guarded g) {
    munmap(g.map, g.map_size);
}

#endif

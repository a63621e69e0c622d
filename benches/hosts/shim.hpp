// What the shims share. Each is compiled against its own host's ggml.h.
#pragma once

#include "ggml.h"

#include <cstdint>
#include <cstring>

// Memory of at least 64 bytes more than is used, from a cache line on, whatever it begins with.
template <class T> T * from_a_cache_line(T * memory) {
    return (T *) (((uintptr_t) memory + 63) / 64 * 64);
}

// Some hosts' decoders use tables that ggml_init makes; the bench calls them once the library is loaded.
static const bool tables_are_made = (ggml_free(ggml_init({1 << 16, nullptr, true})), true);

// GGML_TYPE_COUNT: the host has no such type.
inline ggml_type type_of_name(const char * name) {
    for (int i = 0; i < GGML_TYPE_COUNT; i++) {
        const char * known = ggml_type_name((ggml_type) i);
        if (known && strcmp(known, name) == 0) {
            return (ggml_type) i;
        }
    }
    return GGML_TYPE_COUNT;
}

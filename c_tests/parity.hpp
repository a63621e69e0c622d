// What the parity programs share: quantised weights, and tensors in buffers. bound.hpp judges.
#pragma once

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "host.h"

#include "bound.hpp"
#include "common.hpp"
#include "formats.h"

#include <ggml-cpp.h>

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace parity {

using namespace common;

#ifdef __SANITIZE_ADDRESS__
constexpr bool SANITIZED = true;
// Under sanitizers one type for each block size and group size is enough, because these decide how memory is used. The
// plain programs take all types.
inline const ggml_type TYPES[] = {
    GGML_TYPE_Q4_0, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_XS, GGML_TYPE_Q5_1,
    GGML_TYPE_NVFP4, GGML_TYPE_Q1_0, GGML_TYPE_IQ3_S, GGML_TYPE_IQ1_M,
};
#else
constexpr bool SANITIZED = false;
inline const ggml_type TYPES[] = {
    GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K,
    GGML_TYPE_IQ4_XS, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q2_K, GGML_TYPE_Q3_K, GGML_TYPE_IQ4_NL,
    GGML_TYPE_TQ1_0, GGML_TYPE_TQ2_0, GGML_TYPE_MXFP4, GGML_TYPE_NVFP4, GGML_TYPE_Q1_0, GGML_TYPE_Q2_0,
    GGML_TYPE_IQ3_XXS, GGML_TYPE_IQ3_S, GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ2_XS, GGML_TYPE_IQ2_S, GGML_TYPE_IQ1_S, GGML_TYPE_IQ1_M,
};
#endif

// Those of them that have codebooks.
inline const ggml_type SLOW[] = {
    GGML_TYPE_IQ3_XXS, GGML_TYPE_IQ3_S, GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ2_XS, GGML_TYPE_IQ2_S, GGML_TYPE_IQ1_S, GGML_TYPE_IQ1_M,
};

// More threads than rows, on purpose: some get nothing to do.
inline const int THREADS[] = {1, 2, 3, 7};

// Backends keep their threads; one per thread count.
inline ggml_backend_t backend(int n_threads) {
    static ggml_backend_ptr backends[65];
    if (!backends[n_threads]) {
        backends[n_threads].reset(ggml_backend_dev_init(host.cpu, nullptr));
        host.set_n_threads(backends[n_threads].get(), n_threads);
    }
    return backends[n_threads].get();
}

// Some tensors of one context in one buffer. Create the tensors, then call allocate().
struct tensors {
    ggml_context_ptr context;
    ggml_backend_buffer_ptr buffer;

    explicit tensors(size_t n) : context(host_context(n)) {}
    ggml_context * get() const { return context.get(); }
    void allocate(ggml_backend_buffer_type_t buft) {
        buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(get(), buft));
        CHECK(buffer != nullptr, "no buffer of type %s", ggml_backend_buft_name(buft));
    }
};

// The op's graph in a context that must outlive it.
inline ggml_cgraph * graph_of(ggml_context * context, ggml_tensor * op) {
    ggml_cgraph * graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, op);
    return graph;
}

// Sets every byte of dst to 0xff: each float is a NaN until it is written.
inline void poison(ggml_tensor * dst) {
    std::fill_n(static_cast<uint8_t *>(dst->data), ggml_nbytes(dst), uint8_t(0xff));
}

inline void compute(ggml_cgraph * graph, int n_threads) {
    const ggml_status status = ggml_backend_graph_compute(backend(n_threads), graph);
    CHECK(status == GGML_STATUS_SUCCESS, "graph compute says %d", status);
}

inline std::vector<float> floats_of(const ggml_tensor * t) {
    const float * data = static_cast<const float *>(t->data);
    return std::vector<float>(data, data + ggml_nelements(t));
}

inline void fill_weights(std::vector<float> & weights, rng & r) {
    for (float & w : weights) {
        w = 0.02f * rng_normal(&r);
    }
}

// Types with codebooks. Their quantisers search, 10 to 100 us per block, and some need an importance matrix.
inline bool is_slow(ggml_type type) {
    return std::find(std::begin(SLOW), std::end(SLOW), type) != std::end(SLOW);
}

// Some blocks of a slow type, all weights equally important; whole matrices are made of these.
struct pool {
    static constexpr size_t BLOCKS = 256, K = 256;
    std::vector<float> original;
    std::vector<uint8_t> bytes;

    explicit pool(ggml_type type) : original(BLOCKS * K), bytes(BLOCKS * ggml_type_size(type)) {
        rng r = {uint64_t(type)};
        fill_weights(original, r);
        const std::vector<float> importance(K, 1.0f);
        ggml_quantize_chunk(type, original.data(), bytes.data(), 0, BLOCKS, K, importance.data());
    }

    static const pool & of(ggml_type type) {
        static std::map<ggml_type, pool> pools;
        return pools.try_emplace(type, type).first->second;
    }
};

// Normal weights of a usual size, their quantised bytes, and the floats those bytes stand for.
struct weights {
    ggml_type type;
    int64_t k, rows;
    std::vector<float> original;
    std::vector<uint8_t> bytes;
    std::vector<float> floats;

    weights(ggml_type type, int64_t k, int64_t rows, rng & r) : type(type), k(k), rows(rows) {
        original.resize(size_t(k * rows));
        bytes.resize(ggml_row_size(type, k) * size_t(rows));
        if (is_slow(type)) {
            const pool & from = pool::of(type);
            const size_t size = ggml_type_size(type);
            for (size_t i = 0; i < original.size() / pool::K; i++) {
                const auto block = std::ptrdiff_t(rng_below(&r, pool::BLOCKS));
                std::copy_n(from.original.begin() + block * std::ptrdiff_t(pool::K), pool::K, original.begin() + std::ptrdiff_t(i * pool::K));
                std::copy_n(from.bytes.begin() + block * std::ptrdiff_t(size), size, bytes.begin() + std::ptrdiff_t(i * size));
            }
        } else {
            fill_weights(original, r);
            ggml_quantize_chunk(type, original.data(), bytes.data(), 0, rows, k, nullptr);
        }
        floats.resize(original.size());
        if (type == GGML_TYPE_F32) {
            floats = original; // ggml has no to_float for it
        } else {
            ggml_get_type_traits(type)->to_float(bytes.data(), floats.data(), k * rows);
        }
    }

    double own_error() const { return bound::own_error(ggml_type_name(type)); }
};

// If the host's own kernels exceed this, the test is wrong. It is a multiple of ggml's own limit for a MUL_MAT
// (tests/test-backend-ops.cpp), because outliers cost super-blocks of 256 activations as much, with slack for few
// results.
inline double limit_of_host(size_t results) {
    return 3 * 5e-4 * (1 + 6 * std::sqrt(2.0 / double(results)));
}

// Squared error over the squared size of the exact results. A single product can be near 0 by chance; `typical` is the
// squared size that independent weights and activations of these norms would give.
inline double nmse(const float * got, const double * want, size_t n, double typical) {
    double error = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = double(got[i]) - want[i];
        error += d * d;
        size += want[i] * want[i];
    }
    return error / std::max(size, typical);
}

// Opens the host for a parity program. The host itself must compute weights in ordinary buffers: we are compared with
// its results.
inline void open() {
    setenv("GGML_AMX_MODE", "packed", 0);
    host_open_with_buffer_type();
}

} // namespace parity

// ik_llama.cpp: the product its graphs call, on plain weights, and with the variant `rtr` on weights with
// interleaved rows, as its run-time repacking (-rtr) makes them.

#include "host.h"
#include "shim.hpp"

#include "ggml.h"
#include "iqk_mul_mat.h"
#include "iqk_quantize.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

constexpr size_t ALIGNMENT = 64;

// Quantised activations.
std::vector<char> work;

char * work_start() {
    return from_a_cache_line(work.data());
}

}  // namespace

struct bench_matrix {
    ggml_context *      context = nullptr;
    ggml_tensor *       weights = nullptr;
    std::vector<void *> copies;
    int64_t             m = 0;
    const float *       x = nullptr;
    float *             y = nullptr;
};

bench_matrix * bench_create(const char * type_name, const char * variant, int64_t k, int64_t n, const void * plain,
                            int copies, int) {
    const bool      repack = strcmp(variant, "rtr") == 0;
    const ggml_type type   = type_of_name(type_name);
    if (type == GGML_TYPE_COUNT || (*variant && !repack)) {
        return nullptr;
    }
    bench_matrix * matrix = new bench_matrix;
    matrix->context       = ggml_init({2 * ggml_tensor_overhead(), nullptr, true});
    matrix->weights       = ggml_new_tensor_2d(matrix->context, type, k, n);
    // Some interleaved types take groups of 4 rows, but their products assert on 8.
    if (repack && (n % 8 != 0 || iqk_repacked_type(matrix->weights) == (int) type)) {
        bench_destroy(matrix);
        return nullptr;
    }
    const size_t size = ggml_nbytes(matrix->weights);
    for (int i = 0; i < copies; i++) {
        void * copy = aligned_alloc(ALIGNMENT, (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
        if (!copy) {
            bench_destroy(matrix);
            return nullptr;
        }
        matrix->copies.push_back(copy);
        memcpy(copy, i == 0 ? plain : matrix->copies[0], size);
        if (i == 0 && repack) {
            matrix->weights->data = copy;
            iqk_repack_tensor(matrix->weights);
        }
    }
    return matrix;
}

const char * bench_form(const bench_matrix * matrix) {
    return ggml_type_name(matrix->weights->type);
}

void bench_prepare(bench_matrix * matrix, int64_t m, const float * x, float * y) {
    matrix->m             = m;
    matrix->x             = x;
    matrix->y             = y;
    const ggml_type quant = ggml_internal_get_type_traits(matrix->weights->type).vec_dot_type;
    const size_t    size  = ggml_row_size(quant, matrix->weights->ne[0]) * m + 4096;
    if (work.size() < size) {
        work.assign(size, 0);
    }
}

// Returns false if the host does not multiply these types.
static bool multiply(const bench_matrix & matrix, const void * weights, ggml_type type, const void * x, int ith,
                     int nth) {
    const int64_t k = matrix.weights->ne[0];
    const int64_t n = matrix.weights->ne[1];
    const int64_t m = matrix.m;
    const long    a = (long) ggml_row_size(matrix.weights->type, k);
    const long    b = (long) ggml_row_size(type, k);
    return iqk_mul_mat_4d(n, m, k, 1, 1, 1, 1, a * n, a * n, b * m, b * m, n * m, n * m, matrix.weights->type, weights,
                          a, type, x, b, matrix.y, n, ith, nth);
}

void bench_run(bench_matrix * matrix, int copy, int ith, int nth, void (*barrier)(void *), void * context) {
    const void * weights = matrix->copies[copy];
    if (multiply(*matrix, weights, GGML_TYPE_F32, matrix->x, ith, nth)) {
        return;
    }
    const ggml_type   type     = ggml_internal_get_type_traits(matrix->weights->type).vec_dot_type;
    ggml_from_float_t quantise = ggml_internal_get_type_traits(type).from_float;
    const int64_t     k        = matrix->weights->ne[0];
    const size_t      row      = ggml_row_size(type, k);
    for (int64_t i = ith; i < matrix->m; i += nth) {
        quantise(matrix->x + i * k, work_start() + i * row, k);
    }
    barrier(context);
    if (!multiply(*matrix, weights, type, work_start(), ith, nth)) {
        fprintf(stderr, "ik_llama.cpp does not multiply %s with %s\n", bench_form(matrix), ggml_type_name(type));
        abort();
    }
}

void bench_destroy(bench_matrix * matrix) {
    for (void * copy : matrix->copies) {
        free(copy);
    }
    ggml_free(matrix->context);
    delete matrix;
}

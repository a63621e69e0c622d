// What the C++ programs share that needs no ggml.
#pragma once

#include "harness.h"

#include <algorithm>
#include <string>
#include <vector>

namespace common {

inline std::string text(const char * format, ...) __attribute__((format(printf, 1, 2)));
inline std::string text(const char * format, ...) {
    char line[256];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    return line;
}

inline bool same_bits(const std::vector<float> & a, const std::vector<float> & b) {
    return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

inline double squared_norm(const float * row, int64_t k) {
    double sum = 0;
    for (int64_t i = 0; i < k; i++) {
        sum += double(row[i]) * double(row[i]);
    }
    return sum;
}

// Activations: normal, or with one channel in 250 thirty times larger (channel 5 is one of them).
inline void fill_activations(float * x, int64_t k, int64_t rows, bool outliers, rng & r) {
    for (int64_t i = 0; i < k * rows; i++) {
        x[i] = rng_normal(&r) * (outliers && i % k % 250 == 5 ? 30.0f : 1.0f);
    }
}

// Different random numbers below `below`.
inline std::vector<int32_t> choose(int64_t count, int64_t below, rng & r) {
    std::vector<int32_t> all(static_cast<size_t>(below));
    for (size_t i = 0; i < all.size(); i++) {
        all[i] = int32_t(i);
    }
    for (int64_t i = 0; i < count; i++) {
        std::swap(all[size_t(i)], all[size_t(i) + rng_below(&r, uint64_t(below - i))]);
    }
    all.resize(size_t(count));
    return all;
}

} // namespace common

// The judge of products: the bound that the library's header promises for every row of a result, and what it is
// measured with: the product in double precision, and what 8 bits per 32 activations on exact weights would give.
// src/testing/bound.rs is the same for Rust.
#pragma once

#include "common.hpp"
#include "formats.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

namespace bound {

using namespace common;

// Results of a row that a mean of squares needs to say something. Rows of fewer columns are pooled over draws.
constexpr int64_t OUTPUTS = 256;

// Largest NMSE of a row: twice that of 8 bits per 32 activations or a tenth of the weight type's own error, the latter at
// most 3e-4; and never less than 1e-5.
inline double of_row(double own_error, double e8) {
    return std::max({2 * e8, std::min(own_error / 10, 3e-4), 1e-5});
}

// What the results of one row of activations add up to; more draws add to the same.
struct row {
    int64_t outputs = 0;
    double size = 0, error = 0, error8 = 0;

    void add(double got, double exact, double eight) {
        outputs++;
        size += exact * exact;
        error += (got - exact) * (got - exact);
        error8 += (eight - exact) * (eight - exact);
    }
    void add(const row & other) {
        outputs += other.outputs;
        size += other.size;
        error += other.error;
        error8 += other.error8;
    }
    double nmse() const { return error == 0 ? 0 : error / size; }
    double e8() const { return error8 == 0 ? 0 : error8 / size; }
};

// Activations in 8 bits per 32 with an f32 scale, as floats again; the length is a multiple of 32.
inline std::vector<float> eight_bits(const float * x, size_t count) {
    std::vector<float> out(count);
    for (size_t begin = 0; begin < count; begin += 32) {
        float largest = 0;
        for (size_t i = begin; i < begin + 32; i++) {
            largest = std::max(largest, std::fabs(x[i]));
        }
        if (!(largest < 1e-30f)) {
            for (size_t i = begin; i < begin + 32; i++) {
                out[i] = float(std::nearbyint(double(x[i]) * 127 / double(largest)) * double(largest / 127));
            }
        }
    }
    return out;
}

// One row, or all rows of a product together, against the bound.
inline bool check(const row & r, double own_error, const std::string & what) {
    const double allowed = of_row(own_error, r.e8());
    CHECK(r.outputs >= OUTPUTS, "%s: %lld results, %lld are needed: the test is wrong", what.c_str(), (long long) r.outputs, (long long) OUTPUTS);
    return CHECK(r.nmse() <= allowed, "%s: NMSE %.3g, allowed %.3g (8 bits per 32: %.3g, own error %.3g)", what.c_str(), r.nmse(), allowed, r.e8(),
                 own_error); // NaN is not below it
}

} // namespace bound

// The judge of products: every row of a result must keep the bound that the library's header promises. It compares with
// the product in double precision, and with what 8 bits per 32 activations on exact weights would give.
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

// Results that a mean of squares needs to be reliable. Rows with fewer columns are pooled over draws.
constexpr int64_t OUTPUTS = 256;

// Largest NMSE of a row: twice that of 8 bits per 32 activations or a tenth of the weight type's own error, the latter
// at most 3e-4; and never less than 1e-5.
inline double of_row(double own_error, double e8) {
    return std::max({2 * e8, std::min(own_error / 10, 3e-4), 1e-5});
}

// NMSE of normal weights in a type, from docs/numerics.md; 0 for types that models are trained in, and for floats.
inline double own_error(const std::string & type) {
    static const struct {
        const char * name;
        double error;
    } ALL[] = {
        {"q4_0", 7.3e-3},  {"q4_1", 6.1e-3},    {"q4_K", 5.0e-3},   {"iq4_nl", 5.8e-3}, {"iq4_xs", 5.8e-3}, {"q5_0", 1.8e-3},    {"q5_1", 1.4e-3},
        {"q5_K", 1.3e-3},  {"q6_K", 3.1e-4},    {"q8_0", 2.8e-5},   {"q2_K", 8.8e-2},   {"q3_K", 2.3e-2},   {"iq3_s", 1.9e-2},   {"iq3_xxs", 3.3e-2},
        {"iq2_s", 6.2e-2}, {"iq2_xs", 9.0e-2},  {"iq2_xxs", 1.2e-1}, {"iq1_m", 2.0e-1}, {"iq1_s", 2.3e-1},  {"q6_0", 4.1e-4},    {"iq2_k", 8.8e-2},
        {"iq3_k", 1.8e-2}, {"iq4_k", 4.2e-3},   {"iq5_k", 1.0e-3},  {"iq6_k", 2.3e-4},
    };
    const std::string plain = type.substr(0, type.find("_r")); // rows interleaved
    for (const auto & known : ALL) {
        if (plain == known.name) {
            return known.error;
        }
    }
    return 0;
}

// Sums over the results of one row of activations; further draws add to the same sums.
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

// NMSE of 8 bits per 32 of these activations, and of their products with independent weights.
inline double e8_of(const std::vector<float> & x) {
    const std::vector<float> x8 = eight_bits(x.data(), x.size());
    double error = 0, size = 0;
    for (size_t i = 0; i < x.size(); i++) {
        error += (double(x8[i]) - double(x[i])) * (double(x8[i]) - double(x[i]));
        size += double(x[i]) * double(x[i]);
    }
    return error / size;
}

// One row, or rows that belong together, against the bound.
inline bool check(const row & r, double own_error, const std::string & what) {
    const double allowed = of_row(own_error, r.e8());
    CHECK(r.outputs >= OUTPUTS, "%s: %lld results, %lld are needed: the test is wrong", what.c_str(), (long long) r.outputs, (long long) OUTPUTS);
    return CHECK(r.nmse() <= allowed, "%s: NMSE %.3g, allowed %.3g (8 bits per 32: %.3g, own error %.3g)", what.c_str(), r.nmse(), allowed, r.e8(),
                 own_error); // NaN is not below it
}

// Judges the results of a product row by row; a row has `n` results. Long rows are judged one by one. Short ones go to
// `pool`, which is judged when it has enough.
inline void check_rows(const float * got, const std::vector<double> & exact, const std::vector<double> & eight, size_t n, double own_error, row & pool,
                       const std::string & what) {
    for (size_t begin = 0; begin < exact.size(); begin += n) {
        row one;
        for (size_t i = begin; i < begin + n; i++) {
            one.add(double(got[i]), exact[i], eight[i]);
        }
        if (one.outputs >= OUTPUTS) {
            check(one, own_error, what + text(", row %zu", begin / n));
        } else {
            pool.add(one);
        }
    }
    if (pool.outputs >= OUTPUTS) {
        check(pool, own_error, what);
        pool = {};
    }
}

} // namespace bound

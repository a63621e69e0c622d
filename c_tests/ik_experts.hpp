// Experts for ik_llama.cpp: matrices whose products are known, routings, and the tensors of both.
#pragma once

#include "ik.hpp"

#include <set>

namespace ik {

// Experts draw their rows from one matrix and src1 its rows from another: the product of the two holds every exact
// result. `up` and `gate` have the same rows, drawn differently.
struct drawn {
    const products & p;
    int64_t n, experts;
    std::vector<int32_t> row; // [expert * n + i] of p.m
    matrix m;

    drawn(const products & p, int64_t n, int64_t experts, rng & r) : p(p), n(n), experts(experts), m(p.m) {
        const size_t size = ggml_row_size(p.m.type, p.m.k);
        m.rows = n * experts;
        m.bytes.resize(size * size_t(m.rows));
        const int64_t together = together_in(p.m.type);
        for (int64_t i = 0; i < m.rows; i += together) {
            const int64_t from = together * int64_t(rng_below(&r, uint64_t(p.m.rows / together)));
            memcpy(m.bytes.data() + size * size_t(i), p.m.bytes.data() + size * size_t(from), size * size_t(together));
            for (int64_t j = 0; j < together; j++) {
                row.push_back(int32_t(from + j));
            }
        }
    }
    double exact(int64_t expert, int64_t i, int64_t x) const { return p.at(x, row[size_t(expert * n + i)]); }
    double size(int64_t expert, int64_t i, int64_t x) const { return p.size(x, row[size_t(expert * n + i)]); }
};

struct shape {
    int64_t used, tokens, x_rows; // x_rows: of src1 per token, 1 or `used`
    bool strided = false;         // ids are a view, src1 has gaps
    bool some_bad = false;        // some ids name no expert
};

// One routing: ids, and which rows of activations are where.
struct routing {
    shape s;
    int64_t experts;
    std::vector<int32_t> ids, x_row; // [token * used + slot], [token * x_rows + i]
    double independent;

    routing(const shape & s, int64_t n, int64_t k, int64_t experts, int64_t all_x, rng & r) : s(s), experts(experts) {
        std::set<std::pair<int32_t, int32_t>> pairs;
        std::set<int32_t> rows;
        for (int64_t t = 0; t < s.tokens; t++) {
            const std::vector<int32_t> chosen = choose(s.used, experts, r);
            ids.insert(ids.end(), chosen.begin(), chosen.end());
            for (int64_t i = 0; i < s.x_rows; i++) {
                x_row.push_back(int32_t(rng_below(&r, uint64_t(all_x))));
            }
            for (int64_t slot = 0; slot < s.used; slot++) {
                pairs.insert({chosen[size_t(slot)], from(slot, t)});
                rows.insert(from(slot, t));
                if (s.some_bad && rng_below(&r, 3) == 0) {
                    ids[size_t(t * s.used + slot)] = rng_below(&r, 2) ? -1 : int32_t(experts);
                }
            }
        }
        independent = std::min(double(pairs.size() * size_t(n)), double(rows.size() * size_t(k)));
    }
    int32_t from(int64_t slot, int64_t token) const { return x_row[size_t(token * s.x_rows + slot % s.x_rows)]; }
    int32_t id(int64_t slot, int64_t token) const { return ids[size_t(token * s.used + slot)]; }
    bool is_bad(int64_t slot, int64_t token) const { return id(slot, token) < 0 || id(slot, token) >= experts; }

    // Exact results where `f(expert, i, x row)` gives one and its size.
    reference expect(int64_t n, const std::function<std::pair<double, double>(int64_t, int64_t, int64_t)> & f) const {
        reference want;
        for (int64_t t = 0; t < s.tokens; t++) {
            for (int64_t slot = 0; slot < s.used; slot++) {
                for (int64_t i = 0; i < n; i++) {
                    const auto [exact, size] = is_bad(slot, t) ? std::pair(0.0, 0.0) : f(id(slot, t), i, from(slot, t));
                    want.add(exact, size);
                }
            }
        }
        want.independent = independent;
        return want;
    }
};

// src1 and ids of a routing, as tensors.
struct inputs {
    ggml_tensor * x0, * x, * ids0, * ids;

    inputs(ggml_context * c, const routing & r, int64_t k) {
        const int64_t gap = r.s.strided ? 32 : 0, more = r.s.strided ? 3 : 0;
        x0 = ggml_new_tensor_3d(c, GGML_TYPE_F32, k + gap, r.s.x_rows + more, r.s.tokens);
        x = r.s.strided ? ggml_view_3d(c, x0, k, r.s.x_rows, r.s.tokens, x0->nb[1], x0->nb[2], x0->nb[1]) : x0;
        ids0 = ggml_new_tensor_2d(c, GGML_TYPE_I32, r.s.used + more, r.s.tokens);
        ids = r.s.strided ? ggml_view_2d(c, ids0, r.s.used, r.s.tokens, ids0->nb[1], ids0->nb[0]) : ids0;
    }
    void fill(const routing & r, const products & p) const {
        memset(x0->data, 0x7f, ggml_nbytes(x0)); // large numbers where nothing should be read
        for (int32_t * at = static_cast<int32_t *>(ids0->data), * end = at + ggml_nelements(ids0); at < end; at++) {
            *at = 0;
        }
        for (int64_t t = 0; t < r.s.tokens; t++) {
            for (int64_t i = 0; i < r.s.x_rows; i++) {
                memcpy(static_cast<char *>(x->data) + size_t(i) * x->nb[1] + size_t(t) * x->nb[2], p.row(r.x_row[size_t(t * r.s.x_rows + i)]),
                       size_t(p.m.k) * sizeof(float));
            }
            memcpy(static_cast<char *>(ids->data) + size_t(t) * ids->nb[1], r.ids.data() + t * r.s.used, size_t(r.s.used) * sizeof(int32_t));
        }
    }
};

// The average number of rows counts, over the experts that may have some.
inline bool experts_are_ours(home h, const shape & s, int64_t experts, ggml_type type) {
    return is_ours(h, s.used * s.tokens / std::min(experts, s.used * s.tokens), type);
}

} // namespace ik

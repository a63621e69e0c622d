// One MUL_MAT with any layout of its operands: the weight (or a view of it) in our buffer and, the same bytes, in an
// ordinary buffer; src1 any view of an F32 tensor. The exact product follows the strides, so it fits every layout.
#pragma once

#include "parity.hpp"

namespace layout {

using namespace parity;

// Makes a view of a tensor in this context. Most cases leave one operand as it is.
using viewer = std::function<ggml_tensor *(ggml_context *, ggml_tensor *)>;

inline ggml_tensor * as_it_is(ggml_context *, ggml_tensor * t) { return t; }

struct dims {
    int64_t ne[4];
};

// How a view of a weight becomes known to its buffer: as graph allocators do it, or not at all (then only
// view_src and view_offs lead to the packed bytes).
enum class views { initialised, raw };

struct layout_case {
    const char * name;
    dims weight;
    dims src1;
    viewer weight_view = as_it_is;
    viewer src1_view = as_it_is;
    views how = views::initialised;
    bool may_be_refused = false; // supports_op decides; what it accepts must be right
};

// The operands and both ops of one case.
class instance {
public:
    instance(const layout_case & c, ggml_type type, rng & r)
        : w_(type, c.weight.ne[0], c.weight.ne[1] * c.weight.ne[2] * c.weight.ne[3], r) {
        ggml_tensor * base = ggml_new_tensor(in_amx_.get(), type, 4, c.weight.ne);
        ggml_tensor * twin = ggml_new_tensor(in_cpu_.get(), type, 4, c.weight.ne);
        in_amx_.allocate(host.amx);
        in_cpu_.allocate(host.plain);
        ggml_backend_tensor_set(base, w_.bytes.data(), 0, w_.bytes.size());
        ggml_backend_tensor_set(twin, w_.bytes.data(), 0, w_.bytes.size());
        ggml_tensor * x_base = ggml_new_tensor(data_.get(), GGML_TYPE_F32, 4, c.src1.ne);
        ggml_tensor * y_ours_shape;
        {
            // Shapes of dst follow from the views, which need allocated parents: a first context finds them.
            tensors shapes(8);
            ggml_tensor * y = ggml_mul_mat(shapes.get(), c.weight_view(shapes.get(), twin), c.src1_view(shapes.get(), x_base));
            y_ours_shape = ggml_new_tensor(data_.get(), GGML_TYPE_F32, 4, y->ne);
        }
        ggml_tensor * y_host_shape = ggml_new_tensor(data_.get(), GGML_TYPE_F32, 4, y_ours_shape->ne);
        data_.allocate(host.plain);
        fill_activations(static_cast<float *>(x_base->data), c.src1.ne[0], ggml_nelements(x_base) / c.src1.ne[0], false, r);
        weight_ = known(c.weight_view(ops_.get(), base), c.how);
        plain_ = known(c.weight_view(ops_.get(), twin), views::initialised);
        x_ = known(c.src1_view(ops_.get(), x_base), views::initialised);
        ours_ = op(weight_, y_ours_shape);
        host_ = op(plain_, y_host_shape);
    }

    ggml_tensor * ours() const { return ours_; }
    ggml_tensor * ours_weight() const { return weight_; }
    const ggml_tensor * src1() const { return x_; }
    // Computes the host's side and the exact product, then ours with every thread count, and judges: short rows in
    // `pool`.
    void check(bound::row & pool, const std::string & what) {
        tensors host_graph(1), our_graph(1);
        exact();
        poison(host_);
        compute(graph_of(host_graph.get(), host_), 2);
        const double theirs = nmse(data(host_), exact_.data(), exact_.size(), typical_);
        CHECK(theirs <= limit_of_host(exact_.size()), "%s: the host's own NMSE is %.3g: the test is wrong", what.c_str(), theirs);
        ggml_cgraph * graph = graph_of(our_graph.get(), ours_);
        std::vector<float> first;
        for (int threads : THREADS) {
            poison(ours_);
            compute(graph, threads);
            const std::vector<float> got = floats_of(ours_);
            if (first.empty()) {
                first = got;
                bound::check_rows(got.data(), exact_, eight_, size_t(ours_->ne[0]), w_.own_error(), pool, what);
            }
            CHECK(same_bits(first, got), "%s: other bits with %d threads", what.c_str(), threads);
        }
    }

private:
    static const float * data(const ggml_tensor * t) { return static_cast<const float *>(t->data); }

    static ggml_tensor * known(ggml_tensor * t, views how) {
        for (ggml_tensor * v = t; how == views::initialised && v->view_src && !v->buffer; v = v->view_src) {
            CHECK(ggml_backend_view_init(v) == GGML_STATUS_SUCCESS, "view_init");
        }
        return t;
    }

    ggml_tensor * op(ggml_tensor * w, ggml_tensor * shape) {
        ggml_tensor * y = ggml_mul_mat(ops_.get(), w, x_);
        y->buffer = shape->buffer; // what the graph allocator does
        y->data = shape->data;
        return y;
    }

    // Element by element as ggml defines it: dst[i3][i2][i1][i0] = row i0 of weight matrix (i3 / r3, i2 / r2) times
    // row i1 of src1 (i3, i2).
    void exact() {
        const ggml_tensor * a = plain_, * b = x_;
        const int64_t k = a->ne[0], r2 = b->ne[2] / a->ne[2], r3 = b->ne[3] / a->ne[3];
        const ggml_to_float_t to_float = ggml_get_type_traits(a->type)->to_float;
        std::vector<float> rows(size_t(k * a->ne[1])), x(size_t(k * b->ne[1]));
        exact_.assign(size_t(ggml_nelements(ours_)), 0);
        eight_ = exact_;
        double ww = 0, xx = 0;
        for (int64_t i3 = 0; i3 < b->ne[3]; i3++) {
            for (int64_t i2 = 0; i2 < b->ne[2]; i2++) {
                for (int64_t i = 0; i < a->ne[1]; i++) {
                    to_float(at(a, i, i2 / r2, i3 / r3), rows.data() + i * k, k);
                }
                for (int64_t i = 0; i < b->ne[1]; i++) {
                    memcpy(x.data() + i * k, at(b, i, i2, i3), size_t(k) * sizeof(float));
                }
                const std::vector<float> x8 = bound::eight_bits(x.data(), x.size());
                const std::ptrdiff_t to = std::ptrdiff_t((i3 * b->ne[2] + i2) * b->ne[1] * a->ne[1]);
                product_f64(rows.data(), x.data(), size_t(k), exact_.data() + to, k, a->ne[1], b->ne[1]);
                product_f64(rows.data(), x8.data(), size_t(k), eight_.data() + to, k, a->ne[1], b->ne[1]);
                for (float w : rows) {
                    ww += double(w) * double(w);
                }
                for (float v : x) {
                    xx += double(v) * double(v);
                }
            }
        }
        typical_ = ww * xx / double(k * b->ne[2] * b->ne[3]);
    }

    static const char * at(const ggml_tensor * t, int64_t i1, int64_t i2, int64_t i3) {
        return static_cast<const char *>(t->data) + size_t(i1) * t->nb[1] + size_t(i2) * t->nb[2] + size_t(i3) * t->nb[3];
    }

    weights w_;
    tensors in_amx_{1}, in_cpu_{1}, data_{3}, ops_{16};
    ggml_tensor * weight_, * plain_, * x_, * ours_, * host_;
    std::vector<double> exact_, eight_;
    double typical_ = 0;
};

// One case for every type, drawn until there are enough results to judge; sizes are given for a block of 32 and grow
// for super-blocks.
inline void check_case(const layout_case & small, rng & r) {
    for (ggml_type type : TYPES) {
        layout_case c = small;
        const int64_t times = ggml_blck_size(type) / 32;
        c.weight.ne[0] *= times;
        c.src1.ne[0] *= times;
        bound::row pool;
        do {
            instance i(c, type, r);
            const std::string what = text("%s %s, M = %lld", ggml_type_name(type), c.name, (long long) i.src1()->ne[1]);
            // The device asks us only if it sees the buffer. A raw view has none.
            const bool supported = c.how == views::raw || ggml_backend_dev_supports_op(host.cpu, i.ours());
            if (supported) {
                i.check(pool, what);
            } else {
                CHECK(c.may_be_refused, "%s: not supported", what.c_str());
            }
        } while (pool.outputs > 0);
    }
}

} // namespace layout

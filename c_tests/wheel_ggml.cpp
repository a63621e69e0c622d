// An older ggml, prebuilt: the libraries of a Python package, without AMX code. The program itself must name our buffer
// type to the CPU backend.
#include "parity.hpp"

#include <ggml-amx.h>

// From ggml-cpu.cpp: exported, but in no installed header.
std::vector<ggml_backend_buffer_type_t> & ggml_backend_cpu_get_extra_buffer_types();

namespace {

using namespace parity;

void given_a_ggml_that_knows_nothing_of_us_then_its_layout_is_proved() {
    CHECK(ggml_backend_amx_buffer_type() != nullptr, "ggml %s is not served", ggml_version());
    CHECK(strcmp(ggml_backend_buft_name(host.amx), "AMX") == 0, "%s", ggml_backend_buft_name(host.amx));
    printf("    ggml %s\n", ggml_version());
}

void given_weights_of_any_type_then_every_row_keeps_its_bound() {
    for (ggml_type type : TYPES) {
        rng r = {uint64_t(type)};
        const int64_t k = 512, n = bound::OUTPUTS;
        const weights w(type, k, n, r);
        tensors in_amx(1);
        ggml_tensor * a = ggml_new_tensor_2d(in_amx.get(), type, k, n);
        in_amx.allocate(host.amx);
        ggml_backend_tensor_set(a, w.bytes.data(), 0, w.bytes.size());
        std::vector<uint8_t> back(w.bytes.size());
        ggml_backend_tensor_get(a, back.data(), 0, back.size());
        CHECK(back == w.bytes, "%s: other bytes come back", ggml_type_name(type));
        for (int64_t m : {1, 4, 33}) {
            tensors t(4), graphs(1);
            ggml_tensor * x = ggml_new_tensor_2d(t.get(), GGML_TYPE_F32, k, m), * y = ggml_mul_mat(t.get(), a, x);
            t.allocate(host.plain);
            std::vector<float> values(static_cast<size_t>(k * m));
            fill_activations(values.data(), k, m, true, r);
            memcpy(x->data, values.data(), ggml_nbytes(x));
            CHECK(ggml_backend_dev_supports_op(host.cpu, y), "%s: not supported", ggml_type_name(type));
            poison(y);
            compute(graph_of(graphs.get(), y), 2);
            std::vector<double> exact(size_t(m * n)), eight(exact.size());
            product_f64(w.floats.data(), values.data(), size_t(k), exact.data(), k, n, m);
            product_f64(w.floats.data(), bound::eight_bits(values.data(), values.size()).data(), size_t(k), eight.data(), k, n, m);
            bound::row pool;
            bound::check_rows(floats_of(y).data(), exact, eight, size_t(n), w.own_error(), pool, text("%s M %lld", ggml_type_name(type), (long long) m));
        }
    }
}

} // namespace

int main() {
    host_settle_for_lesser_kernels();
    if (ggml_backend_buffer_type_t ours = ggml_backend_amx_buffer_type()) {
        ggml_backend_cpu_get_extra_buffer_types().push_back(ours);
    }
    open();
    RUN(given_a_ggml_that_knows_nothing_of_us_then_its_layout_is_proved);
    RUN(given_weights_of_any_type_then_every_row_keeps_its_bound);
    return harness_report("wheel_ggml");
}

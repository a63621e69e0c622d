// The two C++ classes through which llama.cpp reaches an extra buffer type (ggml-cpu/traits.h): their vtables
// have the layout the library builds by hand, and the library's own objects answer a C++ caller.
#include "host.h"

#include <ggml-backend-impl.h>
#include <traits.h>

namespace {

// Which virtual function was called last, and with what.
struct {
    const char * name;
    const void * a;
    const void * b;
} last_call;

struct derived_traits : ggml::cpu::tensor_traits {
    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override {
        last_call = {"work_size", op, &size};
        size = static_cast<size_t>(n_threads) + 1;
        return true;
    }
    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        last_call = {"compute_forward", params, op};
        return true;
    }
};

struct derived_type : ggml::cpu::extra_buffer_type {
    derived_traits traits;
    bool supports_op(ggml_backend_dev_t dev, const ggml_tensor * op) override {
        last_call = {"supports_op", dev, op};
        return true;
    }
    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        last_call = {"get_tensor_traits", op, nullptr};
        return &traits;
    }
};

// The function in slot `i` of an object's vtable, as a plain function pointer with `this` first.
template <typename Function> Function slot(void * object, int i) {
    void ** vtable;
    memcpy(&vtable, object, sizeof vtable);
    Function function;
    memcpy(&function, vtable + i, sizeof function);
    return function;
}

// These addresses are only handed through; nothing is read there.
ggml_tensor * const OP = reinterpret_cast<ggml_tensor *>(0x1000);
ggml_compute_params * const PARAMS = reinterpret_cast<ggml_compute_params *>(0x2000);
ggml_backend_dev_t const DEVICE = reinterpret_cast<ggml_backend_dev_t>(0x3000);

bool last_was(const char * name, const void * a, const void * b) {
    return last_call.name && strcmp(last_call.name, name) == 0 && last_call.a == a && last_call.b == b;
}

void given_a_class_derived_by_this_compiler_then_its_slots_are_the_ones_we_build_by_hand() {
    derived_type type;
    // slots 0 and 1 are the two destructors
    const bool supports = slot<bool (*)(void *, ggml_backend_dev_t, const ggml_tensor *)>(&type, 2)(&type, DEVICE, OP);
    CHECK(supports && last_was("supports_op", DEVICE, OP), "slot 2 of extra_buffer_type is %s", last_call.name);
    void * traits = slot<void * (*) (void *, const ggml_tensor *)>(&type, 3)(&type, OP);
    CHECK(traits == &type.traits && last_was("get_tensor_traits", OP, nullptr), "slot 3 of extra_buffer_type is %s", last_call.name);
    size_t size = 0;
    const bool sized = slot<bool (*)(void *, int, const ggml_tensor *, size_t *)>(traits, 2)(traits, 6, OP, &size);
    CHECK(sized && size == 7 && last_was("work_size", OP, &size), "slot 2 of tensor_traits is %s", last_call.name);
    const bool computed = slot<bool (*)(void *, ggml_compute_params *, ggml_tensor *)>(traits, 3)(traits, PARAMS, OP);
    CHECK(computed && last_was("compute_forward", PARAMS, OP), "slot 3 of tensor_traits is %s", last_call.name);
    CHECK(sizeof(ggml::cpu::extra_buffer_type) == 8 && sizeof(ggml::cpu::tensor_traits) == 8, "the classes hold more than a vtable pointer");
}

// A weight in our buffer and the op that uses it, src1 without a buffer.
struct node {
    ggml_context * context = host_context(4);
    ggml_tensor * weight;
    ggml_tensor * op;
    ggml_backend_buffer_t buffer;

    node(ggml_backend_buffer_type_t buft, ggml_type type) {
        weight = ggml_new_tensor_2d(context, type, 512, 40);
        buffer = ggml_backend_alloc_ctx_tensors_from_buft(context, buft);
        op = ggml_mul_mat(context, weight, ggml_new_tensor_2d(context, GGML_TYPE_F32, 512, 9));
    }
    node(const node &) = delete;
    node & operator=(const node &) = delete;
    ~node() {
        ggml_backend_buffer_free(buffer);
        ggml_free(context);
    }
};

// UBSan's vptr check needs RTTI. A hand-made vtable has none, and needs none, because nothing uses dynamic_cast.
__attribute__((no_sanitize("undefined"))) void given_our_buffer_type_then_its_context_is_a_callable_extra_buffer_type() {
    auto * type = static_cast<ggml::cpu::extra_buffer_type *>(host.amx->context);
    if (!CHECK(type != nullptr, "the buffer type has no context")) {
        return;
    }
    static const ggml_type types[] = {
        GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K,
        GGML_TYPE_IQ4_XS, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q2_K, GGML_TYPE_Q3_K, GGML_TYPE_IQ4_NL,
        GGML_TYPE_TQ1_0, GGML_TYPE_TQ2_0, GGML_TYPE_MXFP4, GGML_TYPE_NVFP4, GGML_TYPE_Q1_0, GGML_TYPE_Q2_0,
        GGML_TYPE_IQ3_XXS, GGML_TYPE_IQ3_S, GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ2_XS, GGML_TYPE_IQ2_S, GGML_TYPE_IQ1_S, GGML_TYPE_IQ1_M,
    };
    for (ggml_type t : types) {
        node n(host.amx, t);
        CHECK(type->supports_op(host.cpu, n.op), "%s: supports_op says no", ggml_type_name(t));
        ggml::cpu::tensor_traits * traits = type->get_tensor_traits(n.op);
        if (!CHECK(traits != nullptr, "%s: no traits", ggml_type_name(t))) {
            continue;
        }
        for (int threads : {1, 2, 7, 128}) {
            size_t size = SIZE_MAX;
            CHECK(traits->work_size(threads, n.op, size), "%s: work_size says no", ggml_type_name(t));
            CHECK(size < (size_t) 1 << 30, "%s: work_size for %d threads is %zu", ggml_type_name(t), threads, size);
        }
    }
}

__attribute__((no_sanitize("undefined"))) void given_ops_that_are_not_ours_then_the_traits_stay_away() {
    auto * type = static_cast<ggml::cpu::extra_buffer_type *>(host.amx->context);
    node plain(host.plain, GGML_TYPE_Q4_0), stored(host.amx, GGML_TYPE_F16);
    CHECK(type->get_tensor_traits(plain.op) == nullptr, "traits for a weight in an ordinary buffer");
    CHECK(type->get_tensor_traits(stored.op) == nullptr, "traits for an F16 weight");
    CHECK(type->supports_op(host.cpu, stored.op), "an F16 weight, stored plain in the AMX buffer, is not left to the host");
    node packed(host.amx, GGML_TYPE_Q4_0);
    ggml_context * context = host_context(8);
    ggml_tensor * rows = ggml_get_rows(context, packed.weight, ggml_new_tensor_1d(context, GGML_TYPE_I32, 3));
    ggml_tensor * sum = ggml_add(context, ggml_new_tensor_2d(context, GGML_TYPE_F32, 512, 40), packed.weight);
    ggml_tensor * half = ggml_mul_mat(context, packed.weight, ggml_new_tensor_2d(context, GGML_TYPE_F16, 512, 9));
    for (ggml_tensor * op : {rows, sum, half}) {
        CHECK(!type->supports_op(host.cpu, op), "%s with src1 %s on a packed weight is supported", ggml_op_name(op->op), ggml_type_name(op->src[1]->type));
    }
    ggml_free(context);
}

// The destructors exist: a host that deletes the object (none does) must not jump to address 0.
__attribute__((no_sanitize("undefined"))) void given_our_objects_then_no_vtable_slot_is_null() {
    node n(host.amx, GGML_TYPE_Q8_0);
    auto * type = static_cast<ggml::cpu::extra_buffer_type *>(host.amx->context);
    void * traits = type->get_tensor_traits(n.op);
    for (int i = 0; i < 4; i++) {
        CHECK(slot<void (*)()>(type, i) != nullptr, "slot %d of the buffer type is NULL", i);
        CHECK(traits && slot<void (*)()>(traits, i) != nullptr, "slot %d of the traits is NULL", i);
    }
    CHECK(n.weight->extra != nullptr, "a packed weight has no extra");
}

} // namespace

int main() {
    host_open_with_buffer_type();
    RUN(given_a_class_derived_by_this_compiler_then_its_slots_are_the_ones_we_build_by_hand);
    RUN(given_our_buffer_type_then_its_context_is_a_callable_extra_buffer_type);
    RUN(given_ops_that_are_not_ours_then_the_traits_stay_away);
    RUN(given_our_objects_then_no_vtable_slot_is_null);
    return harness_report("abi_traits_host");
}

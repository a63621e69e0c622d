// The function that this library replaces in ggml-cpu, and the two C++ classes of which it makes objects by hand, with
// the types that src/host/cxx.rs knows. This is compiled against the host's headers when a build is configured.
#include "amx-macros.h"

#include "amx/amx.h"
#include "traits.h"

#include <cstddef>
#include <type_traits>

// `noexcept` changes nothing for the caller.
#define KNOWN(name, what, ...)                                                                                         \
    static_assert(std::is_same<what, __VA_ARGS__>::value || std::is_same<what, __VA_ARGS__ noexcept>::value,           \
                  "unknown type of " name)

KNOWN("ggml_backend_amx_buffer_type", decltype(ggml_backend_amx_buffer_type), ggml_backend_buffer_type_t());

typedef ggml::cpu::extra_buffer_type extra;
typedef ggml::cpu::tensor_traits traits;
KNOWN("extra_buffer_type::supports_op", decltype(&extra::supports_op),
      bool (extra::*)(ggml_backend_dev_t, const struct ggml_tensor *));
KNOWN("extra_buffer_type::get_tensor_traits", decltype(&extra::get_tensor_traits),
      traits * (extra::*) (const struct ggml_tensor *) );
KNOWN("tensor_traits::work_size", decltype(&traits::work_size),
      bool (traits::*)(int, const struct ggml_tensor *, std::size_t &));
KNOWN("tensor_traits::compute_forward", decltype(&traits::compute_forward),
      bool (traits::*)(struct ggml_compute_params *, struct ggml_tensor *));

// A subclass must define nothing else. `last` comes behind all virtual functions of the host's class.
struct own_traits : traits {
    bool work_size(int, const struct ggml_tensor *, std::size_t &) noexcept override { return false; }
    bool compute_forward(struct ggml_compute_params *, struct ggml_tensor *) noexcept override { return false; }
    virtual void last() {}
};
struct own_extra : extra {
    bool supports_op(ggml_backend_dev_t, const struct ggml_tensor *) noexcept override { return false; }
    traits * get_tensor_traits(const struct ggml_tensor *) noexcept override { return nullptr; }
    virtual void last() {}
};
static_assert(!std::is_abstract<own_traits>::value, "unknown type of tensor_traits");
static_assert(!std::is_abstract<own_extra>::value, "unknown type of extra_buffer_type");
static_assert(sizeof(own_traits) == sizeof(void *), "unknown type of tensor_traits: it has members");
static_assert(sizeof(own_extra) == sizeof(void *), "unknown type of extra_buffer_type: it has members");

// Their places in the vtables: constants, which signatures.cmake reads from the object file.
template <class Class, class First, class Second> struct places {
    First first;
    Second second;
    void (Class::*last)();
};
extern "C" {
__attribute__((used)) extern const struct order {
    char mark[16];
    places<own_extra, decltype(&extra::supports_op), decltype(&extra::get_tensor_traits)> of_extra;
    places<own_traits, decltype(&traits::work_size), decltype(&traits::compute_forward)> of_traits;
} ggml_amx_order;
const order ggml_amx_order = {
    "ggml-amx order:",
    { &extra::supports_op, &extra::get_tensor_traits, &own_extra::last },
    { &traits::work_size, &traits::compute_forward, &own_traits::last },
};
}

struct params_in_order {
    int ith, nth;
    std::size_t wsize;
    void * wdata;
    struct ggml_threadpool * threadpool;
};
#define SAME_FIELD(field)                                                                                              \
    static_assert(std::is_same<decltype(ggml_compute_params::field), decltype(params_in_order::field)>::value &&       \
                      offsetof(ggml_compute_params, field) == offsetof(params_in_order, field),                        \
                  "unknown type of ggml_compute_params: " #field)
SAME_FIELD(ith);
SAME_FIELD(nth);
SAME_FIELD(wsize);
SAME_FIELD(wdata);
SAME_FIELD(threadpool);

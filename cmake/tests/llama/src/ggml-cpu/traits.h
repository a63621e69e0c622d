// What ggml-cpu has of the classes that are made by hand; OTHER_...: versions that are not known.
#pragma once
#include "ggml.h"
#include "options.h"

static void nobody_calls_this() {}

struct ggml_compute_params {
#ifdef OTHER_FIELD
    short ith, before_nth;
    int nth;
#else
    int ith, nth;
#endif
    size_t wsize;
    void * wdata;
    struct ggml_threadpool * threadpool;
    bool use_ref;
};

namespace ggml::cpu {
class tensor_traits {
  public:
#ifdef OTHER_FRONT
    virtual int before();
#endif
    virtual ~tensor_traits();
#ifndef OTHER_SWAPPED
    virtual bool work_size(int n_threads, const ggml_tensor * op, size_t & size) = 0;
#endif
    virtual bool compute_forward(ggml_compute_params * params, ggml_tensor * op) = 0;
#ifdef OTHER_SWAPPED
    virtual bool work_size(int n_threads, const ggml_tensor * op, size_t & size) = 0;
#endif
};
class extra_buffer_type {
  public:
    virtual ~extra_buffer_type();
    virtual bool supports_op(ggml_backend_dev_t dev, const ggml_tensor * op) NOEXCEPT = 0;
    virtual tensor_traits * get_tensor_traits(const ggml_tensor * op) = 0;
#ifdef OTHER_ORDER
    virtual int priority() = 0;
#endif
#ifdef OTHER_BEHIND
    virtual int behind();
#endif
};
}

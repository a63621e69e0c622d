// A library with functions of the same names as ik_llama.cpp's, and nothing else in common with it.

#include <cstdio>
#include <stdexcept>

struct pair {
    long first, second;
};

extern "C" {
int ggml_graph_compute(void * a, void * b, int c);
double ggml_backend_cpu_init(void);
int ggml_backend_tensor_alloc(int a, int b, int c, int d);
pair ggml_backend_alloc_ctx_tensors_from_buft(void);
const char * iqk_mul_mat_4d(const char * text);
void run_bystander(void);

int ggml_graph_compute(void *, void *, int c) {
    if (c < 0) {
        throw std::runtime_error("thrown by ggml_graph_compute");
    }
    return c;
}
double ggml_backend_cpu_init(void) { return 2.5; }
int ggml_backend_tensor_alloc(int, int, int, int d) { return d; }
pair ggml_backend_alloc_ctx_tensors_from_buft(void) { return {1, 2}; }
const char * iqk_mul_mat_4d(const char * text) { return text; }

void run_bystander(void) {
    std::printf("%d %d %g\n", ggml_graph_compute(nullptr, nullptr, 3), ggml_backend_tensor_alloc(1, 2, 3, 4),
                ggml_backend_cpu_init());
    const pair both = ggml_backend_alloc_ctx_tensors_from_buft();
    std::printf("%ld %ld %s\n", both.first, both.second, iqk_mul_mat_4d("a text"));
    try {
        ggml_graph_compute(nullptr, nullptr, -1);
    } catch (const std::exception & e) {
        std::puts(e.what());
    }
    std::fflush(stdout);
}
}

static struct last_word {
    ~last_word() { std::puts("unloaded"); }
} last;

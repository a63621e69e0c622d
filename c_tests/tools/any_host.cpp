// Any host, of any version: nothing here is compiled against its headers, all its functions are found by name.
//
//   any_host products LIBRARY...   proof, buffer contract, products against double precision and the host's own
//   any_host logits MODEL TEXT OUT LIBRARY...   one row of logits per token of a text, by libllama
//
// LIBRARY... are loaded in this order into the global scope; a directory: its backends are loaded by the host. If one
// of them is this library, its buffer type is put into the host's list first. Prints a line per thing seen, "FAILED
// ..." on standard error, and exits with 1 then.
#include <dlfcn.h>
#include <link.h>
#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace {

[[noreturn]] void fail(const std::string & why) {
    fprintf(stderr, "FAILED %s\n", why.c_str());
    exit(1);
}

// A function that is in the global scope, or in a library that was loaded apart (backends of the host).
void * look(const char * name) {
    if (void * found = dlsym(RTLD_DEFAULT, name)) {
        return found;
    }
    struct search {
        const char * name;
        void * found;
    } s = {name, nullptr};
    dl_iterate_phdr(
        [](dl_phdr_info * info, size_t, void * context) {
            auto & s = *static_cast<search *>(context);
            if (strstr(info->dlpi_name, "libggml-cpu")) {
                if (void * handle = dlopen(info->dlpi_name, RTLD_NOLOAD | RTLD_LAZY)) {
                    s.found = dlsym(handle, s.name);
                }
            }
            return s.found ? 1 : 0;
        },
        &s);
    return s.found;
}

// host<R(A...)>("name")(...): calls a function of the host.
template <class Signature> Signature * host(const char * name) {
    void * found = look(name);
    if (!found) {
        fail(std::string("the host has no ") + name);
    }
    return reinterpret_cast<Signature *>(found);
}

typedef struct opaque * any;

bool is_ik() {
    return look("iqk_mul_mat_4d") != nullptr;
}

void load(char ** libraries) {
    for (; *libraries; libraries++) {
        struct stat about;
        if (stat(*libraries, &about) == 0 && S_ISDIR(about.st_mode)) {
            host<void(const char *)>("ggml_backend_load_all_from_path")(*libraries);
        } else if (!dlopen(*libraries, RTLD_NOW | RTLD_GLOBAL)) {
            fail(dlerror());
        }
    }
}

// Our buffer type, in the host's list.
any buffer_type() {
    const auto ours = reinterpret_cast<any (*)()>(look("ggml_backend_amx_buffer_type"));
    const any amx = ours ? ours() : nullptr;
    if (!amx) {
        fail("this library is not there, or steps aside");
    }
    if (!is_ik()) {
        auto & list = host<std::vector<any> &()>("_Z39ggml_backend_cpu_get_extra_buffer_typesv")();
        if (std::find(list.begin(), list.end(), amx) == list.end()) {
            list.insert(list.begin(), amx);
        }
    }
    return amx;
}

any cpu_buffer_type() {
    return host<any()>("ggml_backend_cpu_buffer_type")();
}

// ---- tensors

struct init_params {
    size_t bytes;
    void * memory;
    bool no_alloc;
};

any context() {
    return host<any(init_params)>("ggml_init")({64 << 10, nullptr, true});
}

any matrix(any ctx, int type, int64_t k, int64_t n) {
    return host<any(any, int, int64_t, int64_t)>("ggml_new_tensor_2d")(ctx, type, k, n);
}

any allocate(any ctx, any buft) {
    const any buffer = host<any(any, any)>("ggml_backend_alloc_ctx_tensors_from_buft")(ctx, buft);
    if (!buffer) {
        fail("a buffer was not allocated");
    }
    return buffer;
}

void set(any tensor, const void * data, size_t offset, size_t size) {
    host<void(any, const void *, size_t, size_t)>("ggml_backend_tensor_set")(tensor, data, offset, size);
}

void get(any tensor, void * data, size_t offset, size_t size) {
    host<void(any, void *, size_t, size_t)>("ggml_backend_tensor_get")(tensor, data, offset, size);
}

size_t bytes_of(any tensor) {
    return host<size_t(any)>("ggml_nbytes")(tensor);
}

void compute(any ctx, any node, int threads) {
    const any graph = host<any(any, size_t, bool)>("ggml_new_graph_custom")(ctx, 16, false);
    host<void(any, any)>("ggml_build_forward_expand")(graph, node);
    const any backend = host<any()>("ggml_backend_cpu_init")();
    host<void(any, int)>("ggml_backend_cpu_set_n_threads")(backend, threads);
    if (const int status = host<int(any, any)>("ggml_backend_graph_compute")(backend, graph)) {
        fail("the graph ended with status " + std::to_string(status));
    }
    host<void(any)>("ggml_backend_free")(backend);
}

uint64_t state = 1;

uint64_t next() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}

float normal() {
    double sum = 0;
    for (int i = 0; i < 12; i++) {
        sum += double(next() % 65536) / 65536;
    }
    return float(sum - 6);
}

struct type {
    int number;
    const char * name;
    int64_t block;
};

const type TYPES[] = {{2, "q4_0", 32}, {3, "q4_1", 32}, {8, "q8_0", 32}, {12, "q4_K", 256}, {14, "q6_K", 256}, {20, "iq4_nl", 32}};

// Rows of weights in a type, by the host's own quantiser.
std::vector<uint8_t> quantised(const type & t, const std::vector<float> & values, int64_t k, int64_t n) {
    const size_t row = host<size_t(int, int64_t)>("ggml_row_size")(t.number, k);
    std::vector<uint8_t> bytes(row * size_t(n));
    host<size_t(int, const float *, void *, int64_t, int64_t, int64_t, const float *)>("ggml_quantize_chunk")(t.number, values.data(), bytes.data(), 0, n, k, nullptr);
    return bytes;
}

// One product by the host: with weights in buffers of `buft`.
std::vector<float> product(any buft, const type & t, const std::vector<uint8_t> & bytes, const std::vector<float> & x, int64_t k, int64_t n, int64_t m) {
    const any weights = context(), ops = context();
    const any w = matrix(weights, t.number, k, n);
    host<any(any, const char *)>("ggml_set_name")(w, "blk.0.attn_q.weight");
    const any held = allocate(weights, buft);
    host<void(any, int)>("ggml_backend_buffer_set_usage")(held, 1);
    set(w, bytes.data(), 0, bytes.size());
    const any input = matrix(ops, 0, k, m), y = host<any(any, any, any)>("ggml_mul_mat")(ops, w, input);
    const any data = allocate(ops, cpu_buffer_type());
    set(input, x.data(), 0, x.size() * 4);
    compute(ops, y, 2);
    std::vector<float> out(size_t(n * m));
    get(y, out.data(), 0, out.size() * 4);
    for (const any buffer : {held, data}) {
        host<void(any)>("ggml_backend_buffer_free")(buffer);
    }
    for (const any ctx : {weights, ops}) {
        host<void(any)>("ggml_free")(ctx);
    }
    return out;
}

// Weights as the host reads them.
std::vector<float> floats(const type & t, const std::vector<uint8_t> & bytes, int64_t k, int64_t n) {
    const any ctx = context();
    const any w = matrix(ctx, t.number, k, n), rows = host<any(any, int, int64_t)>("ggml_new_tensor_1d")(ctx, 26, n);
    const any y = host<any(any, any, any)>("ggml_get_rows")(ctx, w, rows);
    const any buffer = allocate(ctx, cpu_buffer_type());
    set(w, bytes.data(), 0, bytes.size());
    std::vector<int32_t> numbers;
    for (int32_t i = 0; i < n; i++) {
        numbers.push_back(i);
    }
    set(rows, numbers.data(), 0, numbers.size() * 4);
    compute(ctx, y, 1);
    std::vector<float> out(size_t(k * n));
    get(y, out.data(), 0, out.size() * 4);
    host<void(any)>("ggml_backend_buffer_free")(buffer);
    host<void(any)>("ggml_free")(ctx);
    return out;
}

double nmse(const std::vector<float> & found, const std::vector<double> & exact) {
    double error = 0, all = 0;
    for (size_t i = 0; i < exact.size(); i++) {
        error += (found[i] - exact[i]) * (found[i] - exact[i]);
        all += exact[i] * exact[i];
    }
    return all == 0 || !std::isfinite(error) ? INFINITY : error / all;
}

// Bytes come back as they were written, in any pieces, although a packed tensor lies in memory in another order.
void contract(any amx) {
    for (const type & t : TYPES) {
        const int64_t k = 512, n = 80;
        std::vector<float> values(size_t(k * n));
        std::generate(values.begin(), values.end(), normal);
        std::vector<uint8_t> bytes = quantised(t, values, k, n), back(bytes.size());
        const any ctx = context(), w = matrix(ctx, t.number, k, n);
        host<any(any, const char *)>("ggml_set_name")(w, "blk.0.attn_q.weight");
        const any buffer = allocate(ctx, amx);
        if (bytes_of(w) != bytes.size()) {
            fail(std::string(t.name) + ": other sizes");
        }
        const size_t third = bytes.size() / 3 + 5;
        set(w, bytes.data() + third, third, bytes.size() - third);
        set(w, bytes.data(), 0, third);
        get(w, back.data(), 0, 7);
        get(w, back.data() + 7, 7, back.size() - 7);
        if (back != bytes) {
            fail(std::string(t.name) + ": other bytes come back");
        }
        host<void(any)>("ggml_backend_buffer_free")(buffer);
        host<void(any)>("ggml_free")(ctx);
    }
    printf("contract of buffers: %zu types\n", std::size(TYPES));
}

void products(any amx) {
    double worst = 0;
    for (const type & t : TYPES) {
        const int64_t k = 1024, n = 80;
        std::vector<float> values(size_t(k * n));
        std::generate(values.begin(), values.end(), normal);
        const std::vector<uint8_t> bytes = quantised(t, values, k, n);
        const std::vector<float> w = floats(t, bytes, k, n);
        for (const int64_t m : {1, 9, 40}) {
            std::vector<float> x(size_t(k * m));
            std::generate(x.begin(), x.end(), normal);
            std::vector<double> exact(size_t(n * m));
            for (int64_t j = 0; j < m; j++) {
                for (int64_t i = 0; i < n; i++) {
                    double sum = 0;
                    for (int64_t l = 0; l < k; l++) {
                        sum += double(w[size_t(i * k + l)]) * x[size_t(j * k + l)];
                    }
                    exact[size_t(j * n + i)] = sum;
                }
            }
            const double theirs = nmse(product(cpu_buffer_type(), t, bytes, x, k, n, m), exact);
            const double ours = nmse(product(amx, t, bytes, x, k, n, m), exact);
            worst = std::max(worst, ours);
            // The promised bound, which is looser than what the host does with 8 bits per 32 activations.
            if (!(ours <= std::max(3e-4, 1.1 * theirs))) {
                char text[200];
                snprintf(text, sizeof text, "%s, %lld rows: NMSE %.2e, the host's %.2e", t.name, (long long) m, ours, theirs);
                fail(text);
            }
        }
    }
    printf("products: %zu types, NMSE up to %.1e\n", std::size(TYPES), worst);
}

// ---- libllama

// Parameters are structs by value whose size is that of the version: callers pass them in memory, so that a larger one
// will do.
struct params {
    uint8_t bytes[1024];
};

struct batch {
    int32_t n_tokens;
    int32_t * token;
    float * embd;
    int32_t * pos;
    int32_t * n_seq_id;
    int32_t ** seq_id;
    int8_t * logits;
};

void logits(const char * model_file, const char * text_file, const char * out) {
    host<void()>("llama_backend_init")();
    const params how = host<params()>("llama_model_default_params")();
    const any model = host<any(const char *, params)>("llama_model_load_from_file")(model_file, how);
    if (!model) {
        fail("the model was not loaded");
    }
    // Unchanged: in every version the default is contexts and batches of 512 tokens.
    const any ctx = host<any(any, params)>("llama_init_from_model")(model, host<params()>("llama_context_default_params")());
    if (!ctx) {
        fail("there is no context");
    }
    std::ifstream file(text_file);
    std::stringstream all;
    all << file.rdbuf();
    const std::string text = all.str();
    const any vocab = host<any(any)>("llama_model_get_vocab")(model);
    std::vector<int32_t> tokens(text.size() + 8);
    const int32_t n = host<int32_t(any, const char *, int32_t, int32_t *, int32_t, bool, bool)>("llama_tokenize")(vocab, text.data(), int32_t(text.size()), tokens.data(), int32_t(tokens.size()), true, false);
    const int32_t count = std::min(n, 384), words = host<int32_t(any)>("llama_vocab_n_tokens")(vocab);
    if (count < 256) {
        fail("the text is too short");
    }
    std::vector<int32_t> pos, ones(size_t(count), 1), zero(1, 0);
    std::vector<int32_t *> seq(size_t(count), zero.data());
    std::vector<int8_t> wanted(size_t(count), 1);
    for (int32_t i = 0; i < count; i++) {
        pos.push_back(i);
    }
    const batch tokens_of_text = {count, tokens.data(), nullptr, pos.data(), ones.data(), seq.data(), wanted.data()};
    if (const int32_t status = host<int32_t(any, batch)>("llama_decode")(ctx, tokens_of_text)) {
        fail("llama_decode gives " + std::to_string(status));
    }
    std::ofstream to(out, std::ios::binary);
    for (int32_t i = 0; i < count; i++) {
        const float * row = host<float *(any, int32_t)>("llama_get_logits_ith")(ctx, i);
        to.write(reinterpret_cast<const char *>(row), std::streamsize(words) * 4);
    }
    host<void(any)>("llama_free")(ctx);
    host<void(any)>("llama_model_free")(model);
    printf("logits: %d tokens of %d words\n", count, words);
}

} // namespace

int main(int argc, char ** argv) {
    if (argc > 2 && strcmp(argv[1], "products") == 0) {
        load(argv + 2);
        const any amx = buffer_type();
        const char * version = look("ggml_version") ? host<const char *()>("ggml_version")() : "";
        printf("proof: ggml %s\n", version);
        contract(amx);
        products(amx);
    } else if (argc > 5 && strcmp(argv[1], "logits") == 0) {
        load(argv + 5);
        if (look("ggml_backend_amx_buffer_type") && !getenv("ANY_HOST_PLAIN")) {
            buffer_type();
        }
        logits(argv[2], argv[3], argv[4]);
    } else {
        fprintf(stderr, "any_host products LIBRARY... | logits MODEL TEXT OUT LIBRARY...\n");
        return 2;
    }
    fflush(stdout);
    return 0;
}

// ik_llama.cpp: our buffer type from all sides, what else may read packed weights, and GGML_AMX_MODE. Graphs one after
// the other and at once are in ik_graph_host.cpp.
#include "ik.hpp"

#include "child.h"

#include <ggml-backend-impl.h>

namespace {

using namespace ik;

void given_the_registry_when_asked_then_a_buffer_type_and_the_backend_of_the_cpu() {
    const size_t at = ggml_backend_reg_find_by_name("AMX");
    CHECK(at != SIZE_MAX && at > 0 && at < ggml_backend_reg_get_count(), "AMX is entry %zu", at);
    CHECK(strcmp(ggml_backend_reg_get_name(0), "CPU") == 0, "the first entry is %s", ggml_backend_reg_get_name(0));
    CHECK(ggml_backend_reg_get_count() == ggml_backend_reg_get_count(), "it is registered twice");
    const ggml_backend_t of_that_name = ggml_backend_reg_init_backend(at, nullptr);
    CHECK(of_that_name && strcmp(ggml_backend_name(of_that_name), "CPU") == 0, "the backend of that name is not the CPU's");
    CHECK(of_that_name && ggml_backend_supports_buft(of_that_name, amx), "it does not take the buffer type");
    ggml_backend_free(of_that_name);
    CHECK(strcmp(ggml_backend_buft_name(amx), "AMX") == 0, "the name is %s", ggml_backend_buft_name(amx));
    CHECK(!ggml_backend_buft_is_host(amx), "it says that it is host memory");
    CHECK(ggml_backend_supports_buft(backend(1), amx), "the CPU backend does not take it");
    CHECK(ggml_backend_supports_buft(backend(1), ggml_backend_cpu_buffer_type()), "the CPU backend does not take its own");
}

// ---- writing and reading

struct stored_bytes {
    tensors t{8, 0};
    ggml_tensor * whole;
    std::vector<uint8_t> want;

    stored_bytes(ggml_type type, int64_t k, int64_t n, int64_t ne2, const char * name, rng & r) {
        whole = ggml_new_tensor_3d(t.get(), type, k, n, ne2);
        ggml_set_name(whole, name);
        t.allocate(amx);
        want.resize(ggml_nbytes(whole));
        rng_bytes(&r, want.data(), want.size());
        ggml_backend_tensor_set(whole, want.data(), 0, want.size());
    }
    std::vector<uint8_t> read() const {
        std::vector<uint8_t> got(want.size());
        ggml_backend_tensor_get(whole, got.data(), 0, got.size());
        return got;
    }
};

void given_any_tensor_when_parts_are_written_and_read_then_the_bytes_are_those() {
    rng r = {20};
    for (const char * name : {"blk.3.ffn_down_exps.weight", "output.weight", "whatever"}) {
        for (ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_Q6_K, GGML_TYPE_Q8_0, GGML_TYPE_IQ4_XS, GGML_TYPE_F32, GGML_TYPE_F16}) {
            stored_bytes s(type, 512, 48, 3, name, r), other(type, 512, 48, 3, name, r);
            CHECK(s.read() == s.want && other.read() == other.want, "%s %s: as a whole", ggml_type_name(type), name);
            const bool packs = ggml_is_quantized(type) && strcmp(name, "whatever") != 0;
            const bool packed = memcmp(s.whole->data, s.want.data(), s.want.size()) != 0;
            CHECK(packed == packs, "%s %s is %s", ggml_type_name(type), name, packed ? "packed" : "plain");
            // whole rows, a matrix, and some rows of all matrices
            ggml_tensor * views[] = {ggml_view_2d(s.t.get(), s.whole, 512, 20, s.whole->nb[1], 7 * s.whole->nb[1]),
                                     ggml_view_2d(s.t.get(), s.whole, 512, 48, s.whole->nb[1], s.whole->nb[2]),
                                     ggml_view_3d(s.t.get(), s.whole, 512, 5, 2, s.whole->nb[1], s.whole->nb[2], s.whole->nb[2])};
            for (ggml_tensor * view : views) {
                ggml_backend_view_init(view);
            }
            for (int i = 0; i < 120; i++) {
                ggml_tensor * at = i % 4 == 0 ? s.whole : views[i % 4 - 1];
                const size_t begin = at == s.whole ? 0 : at->view_offs, bytes = ggml_nbytes(at);
                const size_t offset = rng_below(&r, bytes), size = rng_below(&r, std::min<size_t>(bytes - offset, i % 3 ? 200 : bytes) + 1);
                std::vector<uint8_t> part(size);
                const ggml_backend_buffer_t buffer = s.t.buffer.get();
                // No function of this version calls this member, so nobody can find out where it is.
                if (i % 5 == 0 && size > 0 && buffer->iface.memset_tensor) {
                    buffer->iface.memset_tensor(buffer, at, uint8_t(i), offset, size);
                    std::fill(part.begin(), part.end(), uint8_t(i));
                } else {
                    rng_bytes(&r, part.data(), size);
                    ggml_backend_tensor_set(at, part.data(), offset, size);
                }
                std::copy(part.begin(), part.end(), s.want.begin() + int64_t(begin + offset));
                std::vector<uint8_t> back(size);
                ggml_backend_tensor_get(at, back.data(), offset, size);
                CHECK(back == part, "%s %s: %zu bytes at %zu of %zu", ggml_type_name(type), name, size, offset, bytes);
            }
            CHECK(s.read() == s.want, "%s %s: after parts of it were written", ggml_type_name(type), name);
            CHECK(other.read() == other.want, "%s %s: another buffer's tensor changed", ggml_type_name(type), name);
            ggml_backend_buffer_clear(s.t.buffer.get(), 0x5a);
            const std::vector<uint8_t> clear = s.read();
            CHECK(std::count(clear.begin(), clear.end(), 0x5a) == int64_t(clear.size()), "%s %s: clear", ggml_type_name(type), name);
        }
    }
}

void given_tensors_when_copied_to_and_from_our_buffer_then_the_same_bytes() {
    rng r = {21};
    stored_bytes s(GGML_TYPE_Q4_K, 512, 32, 1, "blk.0.attn_q.weight", r), to(GGML_TYPE_Q4_K, 512, 32, 1, "blk.1.attn_q.weight", r);
    tensors t(1, 0);
    ggml_tensor * plain = ggml_new_tensor_2d(t.get(), GGML_TYPE_Q4_K, 512, 32);
    t.allocate();
    ggml_backend_tensor_copy(s.whole, plain);
    CHECK(memcmp(plain->data, s.want.data(), s.want.size()) == 0, "to the host's buffer");
    ggml_backend_tensor_copy(plain, to.whole);
    CHECK(to.read() == s.want, "from the host's buffer");
    rng_bytes(&r, s.want.data(), s.want.size());
    ggml_backend_tensor_set(s.whole, s.want.data(), 0, s.want.size());
    ggml_backend_tensor_copy(s.whole, to.whole);
    CHECK(to.read() == s.want, "from one of ours to another");
}

// ---- products that stay right

void given_buffers_freed_and_made_again_when_multiplied_then_right() {
    rng r = {22};
    const known a(GGML_TYPE_Q4_0, 256, 48, 20, r), b(GGML_TYPE_Q6_K, 256, 96, 20, r), c(GGML_TYPE_Q8_0, 512, 16, 20, r);
    for (int round = 0; round < 30; round++) {
        const known & k = round % 3 == 0 ? a : round % 3 == 1 ? b : c;
        const bool packed = round % 4 != 3;
        const weight w(packed ? home::packed : home::stored, k.m, k.n);
        k.check(w, text("round %d", round), round % 2 ? 1 : 20);
    }
}

// The host's allocators put tensors where others were before.
void given_another_tensor_at_the_same_place_when_used_then_it_is_what_it_is() {
    rng r = {23};
    const known a(GGML_TYPE_Q4_0, 256, 48, 20, r), b(GGML_TYPE_Q6_K, 512, 32, 20, r);
    buffer_ptr buffer(ggml_backend_buft_alloc_buffer(amx, 1 << 16));
    ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    const struct {
        const known & k;
        const char * name;
    } turns[] = {{a, "blk.0.ffn_up.weight"}, {b, "blk.0.ffn_down.weight"}, {a, "whatever"}, {b, "blk.1.ffn_up.weight"}, {a, "blk.1.ffn_up.weight"}, {a, "blk.2.ffn_up.weight"}, {b, "x"}};
    int turn = 0;
    for (const auto & now : turns) {
        tensors t(1, 0);
        ggml_tensor * w = ggml_new_tensor_2d(t.get(), now.k.m.type, now.k.m.k, now.k.n);
        ggml_set_name(w, now.name);
        ggml_backend_buffer_reset(buffer.get());
        ggml_backend_tensor_alloc(buffer.get(), w, ggml_backend_buffer_get_base(buffer.get()));
        now.k.set(w);
        const std::string what = text("turn %d, %s", turn++, now.name);
        std::vector<uint8_t> got(now.k.m.bytes.size());
        ggml_backend_tensor_get(w, got.data(), 0, got.size());
        CHECK(got == now.k.m.bytes, "%s: other bytes", what.c_str());
        now.k.check(w, what);
    }
}

// A copied struct whose data is elsewhere: the host does this when it prepares MLA.
void given_a_copied_struct_with_plain_data_when_multiplied_then_its_own_bytes_count() {
    rng r = {24};
    const known a(GGML_TYPE_Q4_0, 256, 48, 20, r), b(GGML_TYPE_Q4_0, 256, 48, 20, r);
    const weight w(home::packed, a.m, 48);
    ggml_tensor copy = *w.tensor;
    std::vector<uint8_t> bytes = b.m.bytes;
    copy.data = bytes.data();
    b.check(&copy, "the copy");
    b.check(&copy, "the copy, one row", 1);
    a.check(w, "the original");
}

// ---- other readers

void given_a_packed_tensor_when_something_else_reads_it_then_it_is_given_back_and_stays_right() {
    rng r = {25};
    const known a(GGML_TYPE_Q4_0, 256, 48, 20, r), b(GGML_TYPE_Q6_K, 256, 32, 20, r);
    const auto rows_of = [&](ggml_context * c, ggml_tensor * w) {
        ggml_tensor * ids = ggml_new_tensor_1d(c, GGML_TYPE_I32, 5);
        ggml_set_name(ids, "ids");
        return ggml_get_rows(c, w, ids);
    };
    const struct {
        const char * what;
        std::function<ggml_tensor *(ggml_context *, ggml_tensor *)> read;
        int64_t first, rows; // of the weights, read in this order; -1: some
    } readers[] = {
        {"GET_ROWS", rows_of, 0, -1},
        {"GET_ROWS of a view", [&](ggml_context * c, ggml_tensor * w) { return rows_of(c, ggml_view_2d(c, w, 256, 17, w->nb[1], 3 * w->nb[1])); }, 3, -1},
        {"CPY to F32", [](ggml_context * c, ggml_tensor * w) { return ggml_cpy(c, w, ggml_new_tensor_2d(c, GGML_TYPE_F32, 256, 48)); }, 0, 48},
        {"ADD", [](ggml_context * c, ggml_tensor * w) {
             ggml_tensor * zero = ggml_new_tensor_2d(c, GGML_TYPE_F32, 256, 48);
             ggml_set_name(zero, "zero");
             return ggml_cpy(c, ggml_add(c, w, zero), ggml_new_tensor_2d(c, GGML_TYPE_F32, 256, 48));
         }, 0, 48},
    };
    for (const auto & reader : readers) {
        weight w(home::packed, a.m, 48);
        const weight other(home::packed, b.m, 32);
        a.check(w, text("before %s", reader.what));
        tensors t(12);
        ggml_tensor * got = reader.read(t.get(), w.tensor);
        // a product of it in the same graph, before and after
        ggml_tensor * x = ggml_new_tensor_2d(t.get(), GGML_TYPE_F32, 256, 20), * y1 = ggml_mul_mat(t.get(), w, x), * y2 = ggml_mul_mat(t.get(), w, x);
        t.allocate();
        memcpy(x->data, a.p.x.data(), ggml_nbytes(x));
        int32_t ids[5];
        for (int i = 0; i < 5; i++) {
            ids[i] = int32_t(rng_below(&r, 17));
        }
        for (ggml_tensor * at = ggml_get_first_tensor(t.get()); at; at = ggml_get_next_tensor(t.get(), at)) {
            if (strcmp(at->name, "ids") == 0) {
                memcpy(at->data, ids, sizeof ids);
            } else if (strcmp(at->name, "zero") == 0) {
                memset(at->data, 0, ggml_nbytes(at));
            }
        }
        ggml_cgraph * graph = graph_of(t.get(), {y1, got, y2});
        struct job {
            ggml_cgraph * graph;
        } job = {graph};
        char * err = stderr_of([](void * j) { compute(backend(3), static_cast<struct job *>(j)->graph); }, &job);
        CHECK(count_lines_with(err, "is kept as it is in the file") == 1, "%s: no warning, but: %s", reader.what, err);
        free(err);
        CHECK(memcmp(w.tensor->data, a.m.bytes.data(), a.m.bytes.size()) == 0, "%s: still packed", reader.what);
        const float * values = static_cast<const float *>(got->data);
        double worst = 0;
        for (int64_t i = 0; i < ggml_nelements(got); i++) {
            const int64_t row = reader.first + (reader.rows == -1 ? ids[i / 256] : i / 256);
            worst = std::max(worst, std::fabs(double(values[i]) - double(a.m.floats[size_t(row * 256 + i % 256)])));
        }
        CHECK(worst < 0.005, "%s: off by %g", reader.what, worst); // ADD rounds to the type
        judge(floats_of(y1), a.p.first(48, 20), is_ours(home::stored, 20, a.m.type), 1e-3, a.m.quantisation, text("beside %s", reader.what));
        judge(floats_of(y2), a.p.first(48, 20), is_ours(home::stored, 20, a.m.type), 1e-3, a.m.quantisation, text("beside %s, again", reader.what));
        for (int64_t rows : {1, 20}) {
            a.check(w, text("after %s", reader.what), rows);
            b.check(other, text("the other tensor after %s", reader.what), rows);
        }
        std::vector<uint8_t> back(a.m.bytes.size());
        ggml_backend_tensor_get(w, back.data(), 0, back.size());
        CHECK(back == a.m.bytes, "%s: other bytes", reader.what);
        // and it may be written again
        ggml_backend_tensor_set(w, a.m.bytes.data(), 0, a.m.bytes.size());
        a.check(w, text("written after %s", reader.what));
    }
}

// A packed tensor as src1 of a product. No model has that, but it must be read correctly.
void given_a_packed_tensor_as_activations_when_multiplied_then_right() {
    rng r = {26};
    const known a(GGML_TYPE_Q8_0, 256, 16, 48, r), b(GGML_TYPE_Q8_0, 256, 48, 16, r);
    std::vector<float> got[2];
    for (home h : {home::host, home::packed}) {
        const weight w(h, b.m, 48), left(home::host, a.m, 16);
        tensors t(4);
        ggml_tensor * y = ggml_mul_mat(t.get(), left, w);
        t.allocate();
        got[h == home::packed] = result_of(t.get(), y, false, "a packed tensor as activations");
    }
    CHECK(same_bits(got[0], got[1]), "other results than with plain bytes");
}

// ---- GGML_AMX_MODE=packed: a model's tensors are packed as they come

int packed_mode() {
    harness_test = "packed mode";
    open();
    rng r = {32};
    const known a(GGML_TYPE_Q4_0, 256, 48, 20, r), b(GGML_TYPE_Q6_K, 256, 32, 20, r), odd(GGML_TYPE_Q4_0, 256, 33, 20, r),
        small(GGML_TYPE_Q4_0, 256, 16, 20, r);
    const auto is_ours_now = [](const ggml_tensor * t) { return strcmp(ggml_backend_buffer_name(t->buffer), "AMX") == 0; };
    for (int round = 0; round < 4; round++) {
        // not mapped: all tensors of a context at once; round 1 has nothing that stays
        tensors t(4, 0);
        ggml_tensor * up = ggml_new_tensor_2d(t.get(), GGML_TYPE_Q4_0, 256, 48), * down = ggml_new_tensor_2d(t.get(), GGML_TYPE_Q6_K, 256, 32), * rest = nullptr;
        ggml_set_name(up, "blk.0.ffn_up.weight");
        ggml_set_name(down, "output.weight");
        if (round != 1) {
            rest = ggml_new_tensor_2d(t.get(), GGML_TYPE_Q4_0, 256, 33);
            ggml_set_name(rest, "blk.0.ffn_gate.weight");
        }
        t.allocate();
        ggml_backend_buffer_set_usage(t.buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        a.set(up), b.set(down);
        CHECK(is_ours_now(up) && is_ours_now(down), "the tensors are not packed");
        a.check(up, "not mapped, up"), b.check(down, "not mapped, down", 1);
        if (rest) {
            odd.set(rest);
            CHECK(!is_ours_now(rest), "33 rows are packed");
            odd.check(rest, "not mapped, 33 rows");
            // A tensor that comes later, in the place of that one, must not be packed over those beside it.
            ggml_tensor * late = ggml_new_tensor_2d(t.get(), GGML_TYPE_Q4_0, 256, 16);
            ggml_set_name(late, "blk.0.attn_v.weight");
            memcpy(rest->data, small.m.bytes.data(), small.m.bytes.size());
            ggml_backend_tensor_alloc(t.buffer.get(), late, rest->data);
            CHECK(!is_ours_now(late), "a tensor was packed where others are");
            small.check(late, "not mapped, later");
            a.check(up, "not mapped, up, later"), b.check(down, "not mapped, down, later");
        }
    }
    for (int round = 0; round < 4; round++) {
        // mapped: a buffer around a file, tensor by tensor; first some other bytes, as in a file
        std::vector<uint8_t> file(64 + a.m.bytes.size() + b.m.bytes.size() + odd.m.bytes.size() + 256);
        uint8_t * begin = reinterpret_cast<uint8_t *>((reinterpret_cast<uintptr_t>(file.data()) + 31) / 32 * 32);
        tensors t(4, 0);
        t.buffer.reset(ggml_backend_cpu_buffer_from_ptr(begin, file.size() - 64));
        ggml_backend_buffer_set_usage(t.buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        const known * all[] = {&odd, &a, &b};
        const char * names[] = {"blk.0.ffn_gate.weight", "blk.0.ffn_up.weight", "blk.0.attn_v.weight"};
        ggml_tensor * w[3];
        uint8_t * at = begin;
        for (int i = 0; i < 3; i++) {
            w[i] = ggml_new_tensor_2d(t.get(), all[i]->m.type, all[i]->m.k, all[i]->n);
            ggml_set_name(w[i], names[i]);
            memcpy(at, all[i]->m.bytes.data(), all[i]->m.bytes.size());
            ggml_backend_tensor_alloc(t.buffer.get(), w[i], at);
            CHECK(is_ours_now(w[i]) == (i > 0), "%s is in %s", names[i], ggml_backend_buffer_name(w[i]->buffer));
            at += (all[i]->m.bytes.size() + 31) / 32 * 32;
        }
        for (int i = 0; i < 3; i++) {
            all[i]->check(w[i], text("mapped, %s", names[i]));
            all[i]->check(w[i], text("mapped, %s, one row", names[i]), 1);
        }
    }
    return harness_report("packed mode");
}

void given_packed_mode_when_a_model_is_loaded_then_its_matrices_are_packed() {
    const char * const env[] = {"GGML_AMX_MODE", "packed", nullptr};
    struct child c = child_exec("packed", env);
    CHECK(c.signal == 0 && c.code == 0, "signal %d, code %d: %s%s", c.signal, c.code, c.out, c.err);
    CHECK(count_lines_with(c.err, "weights packed") == 1, "%s", c.err);
    child_free(&c);
}

int off_mode() {
    harness_test = "off mode";
    const tensors first(1, 0); // the host fills its tables with the first context
    for (size_t i = 0; i < ggml_backend_reg_get_count(); i++) {
        CHECK(strcmp(ggml_backend_reg_get_name(i), "AMX") != 0, "AMX is registered");
    }
    rng r = {33};
    const known a(GGML_TYPE_Q4_0, 256, 48, 20, r);
    a.check(weight(home::in_place, a.m, 48), "off");
    return harness_report("off mode");
}

void given_mode_off_when_a_graph_runs_then_the_host_computes_it() {
    const char * const env[] = {"GGML_AMX_MODE", "off", nullptr};
    struct child c = child_exec("off", env);
    CHECK(c.signal == 0 && c.code == 0, "signal %d, code %d: %s%s", c.signal, c.code, c.out, c.err);
    child_free(&c);
}

} // namespace

int main(int argc, char ** argv) {
    if (argc > 1) {
        return strcmp(argv[1], "packed") == 0 ? packed_mode() : off_mode();
    }
    open();
    RUN(given_the_registry_when_asked_then_a_buffer_type_and_the_backend_of_the_cpu);
    RUN(given_any_tensor_when_parts_are_written_and_read_then_the_bytes_are_those);
    RUN(given_tensors_when_copied_to_and_from_our_buffer_then_the_same_bytes);
    RUN(given_buffers_freed_and_made_again_when_multiplied_then_right);
    RUN(given_another_tensor_at_the_same_place_when_used_then_it_is_what_it_is);
    RUN(given_a_copied_struct_with_plain_data_when_multiplied_then_its_own_bytes_count);
    RUN(given_a_packed_tensor_when_something_else_reads_it_then_it_is_given_back_and_stays_right);
    RUN(given_a_packed_tensor_as_activations_when_multiplied_then_right);
    RUN(given_packed_mode_when_a_model_is_loaded_then_its_matrices_are_packed);
    RUN(given_mode_off_when_a_graph_runs_then_the_host_computes_it);
    return harness_report("ik_surface_host");
}

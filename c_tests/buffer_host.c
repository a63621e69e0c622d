/* The buffer contract: whatever is written through ggml into the AMX buffer type comes back the same, in any
 * pieces and any order, as from an ordinary buffer. Each tensor has a shadow, a plain array that gets the same
 * writes. Views and things that must fail are in buffer_view_host.c and buffer_edge_host.c. */
#define _GNU_SOURCE
#include "host.h"
#include "shadow.h"

#include <pthread.h>

static void given_the_buffer_type_then_it_is_called_amx_and_is_not_host_memory(void) {
    CHECK(strcmp(ggml_backend_buft_name(host.amx), "AMX") == 0, "name is %s", ggml_backend_buft_name(host.amx));
    CHECK(!ggml_backend_buft_is_host(host.amx), "claims to be host memory: others would read packed bytes");
    CHECK(ggml_backend_buft_get_device(host.amx) == host.cpu, "its device is not the CPU");
    CHECK(ggml_backend_dev_supports_buft(host.cpu, host.amx), "the CPU device does not know it");
    const size_t alignment = ggml_backend_buft_get_alignment(host.amx);
    CHECK(alignment >= 64 && alignment % 64 == 0, "alignment is %zu", alignment);
    CHECK(ggml_backend_buft_get_max_size(host.amx) > (size_t) 1 << 40, "one buffer holds only %zu bytes", ggml_backend_buft_get_max_size(host.amx));
}

static void given_any_size_then_the_buffer_is_aligned_and_at_least_that_large(void) {
    const size_t sizes[] = {1, 63, 64, 65, 4096, 4097, 1 << 20, (1 << 21) + 64, 40 << 20};
    ggml_backend_buffer_t buffers[9];
    for (int i = 0; i < 9; i++) {
        buffers[i] = ggml_backend_buft_alloc_buffer(host.amx, sizes[i]);
        CHECK(buffers[i] != NULL, "%zu bytes were not allocated", sizes[i]);
        CHECK((uintptr_t) ggml_backend_buffer_get_base(buffers[i]) % 64 == 0, "base %p", ggml_backend_buffer_get_base(buffers[i]));
        CHECK(ggml_backend_buffer_get_size(buffers[i]) >= sizes[i], "asked for %zu, got %zu", sizes[i], ggml_backend_buffer_get_size(buffers[i]));
        CHECK(ggml_backend_buffer_get_type(buffers[i]) == host.amx, "the buffer has another type");
        CHECK(!ggml_backend_buffer_is_host(buffers[i]), "the buffer claims to be host memory");
        ggml_backend_buffer_clear(buffers[i], 0x11); /* all of it is writable */
    }
    for (int i = 0; i < 9; i++) {
        ggml_backend_buffer_free(buffers[i]);
    }
}

static void given_any_shape_then_alloc_size_pads_the_rows_of_packed_types_per_slice(void) {
    static const int64_t ne1[] = {1, 2, 15, 16, 17, 31, 32, 33, 100, 576}, ne23[] = {1, 2, 5};
    for (int type = 0; type < GGML_TYPE_COUNT; type++) {
        const int64_t block = ggml_blck_size((enum ggml_type) type);
        if (block == 0) {
            continue; /* a number that ggml has retired */
        }
        for (int k = 1; k <= 5; k += 2) {
            for (int n = 0; n < 10; n++) {
                for (int b = 0; b < 9; b++) {
                    struct ggml_context * context = host_context(1);
                    struct ggml_tensor * t = ggml_new_tensor_4d(context, (enum ggml_type) type, k * block, ne1[n], ne23[b % 3], ne23[b / 3]);
                    const size_t size = ggml_backend_buft_get_alloc_size(host.amx, t);
                    const size_t padded = ggml_row_size(t->type, t->ne[0]) * (size_t) ((t->ne[1] + 15) / 16 * 16 * t->ne[2] * t->ne[3]);
                    const size_t want = is_packed_type(t->type) ? padded : ggml_nbytes(t);
                    CHECK(size == want, "%s %lld x %lld x %lld x %lld: %zu instead of %zu", ggml_type_name(t->type), (long long) t->ne[0],
                          (long long) t->ne[1], (long long) t->ne[2], (long long) t->ne[3], size, want);
                    ggml_free(context);
                }
            }
        }
    }
}

static void given_writes_of_any_offset_size_and_order_then_reads_give_the_same_bytes(void) {
    struct rng r = {10};
    for (int i = 0; i < N_SHAPES; i++) {
        struct box box = box_new(host.amx, SHAPES[i]);
        for (int t = 0; t < box.n; t++) {
            for (int round = 0; round < 120; round++) {
                shadow_random_step(&box.tensors[t], &r);
            }
        }
        box_check(&box, "after random writes");
        box_free(&box);
    }
}

static void given_whole_tensors_then_one_write_and_one_read_are_exact(void) {
    struct rng r = {11};
    for (int i = 0; i < N_SHAPES; i++) {
        struct box box = box_new(host.amx, SHAPES[i]);
        for (int round = 0; round < 2; round++) {
            for (int t = 0; t < box.n; t++) {
                rng_bytes(&r, box.tensors[t].bytes, box.tensors[t].size);
                ggml_backend_tensor_set(box.tensors[t].tensor, box.tensors[t].bytes, 0, box.tensors[t].size);
            }
            box_check(&box, "after whole writes");
        }
        box_free(&box);
    }
}

/* A loader that reads a file in chunks: in order, backwards, and with two chunk sizes. */
static void given_chunked_uploads_then_the_tensor_is_whole(void) {
    const size_t chunks[] = {1000, 4096, 65536};
    struct rng r = {12};
    for (int c = 0; c < 3; c++) {
        struct box box = box_new(host.amx, (struct shape){8, 70, 2, 1});
        for (int t = 0; t < box.n; t++) {
            struct shadow * s = &box.tensors[t];
            rng_bytes(&r, s->bytes, s->size);
            const size_t pieces = (s->size + chunks[c] - 1) / chunks[c];
            for (size_t p = 0; p < pieces; p++) {
                const size_t at = (t % 2 ? pieces - 1 - p : p) * chunks[c];
                const size_t size = at + chunks[c] < s->size ? chunks[c] : s->size - at;
                ggml_backend_tensor_set(s->tensor, s->bytes + at, at, size);
            }
        }
        box_check(&box, "after chunked uploads");
        box_free(&box);
    }
}

static void given_memset_and_clear_then_the_bytes_read_back_are_the_value(void) {
    struct rng r = {13};
    for (int i = 0; i < N_SHAPES; i++) {
        struct box box = box_new(host.amx, SHAPES[i]);
        for (int t = 0; t < box.n; t++) {
            struct shadow * s = &box.tensors[t];
            for (int round = 0; round < 8; round++) {
                const size_t at = rng_below(&r, s->size), size = rng_below(&r, s->size - at) + 1;
                const uint8_t value = (uint8_t) rng_next(&r);
                memset(s->bytes + at, value, size);
                ggml_backend_tensor_memset(s->tensor, value, at, size);
            }
        }
        box_check(&box, "after memset");
        for (int value = 0; value < 256; value += 0x5b) {
            ggml_backend_buffer_clear(box.buffer, (uint8_t) value);
            for (int t = 0; t < box.n; t++) {
                memset(box.tensors[t].bytes, value, box.tensors[t].size);
            }
            box_check(&box, "after clear");
        }
        box_free(&box);
    }
}

static void given_two_dimensional_copies_then_every_row_arrives(void) {
    struct rng r = {14};
    for (int i = 0; i < N_SHAPES; i++) {
        struct box box = box_new(host.amx, SHAPES[i]);
        for (int t = 0; t < box.n; t++) {
            struct shadow * s = &box.tensors[t];
            for (int round = 0; round < 12; round++) {
                shadow_random_2d(s, &r);
            }
        }
        box_check(&box, "after 2-D copies");
        box_free(&box);
    }
}

static void given_copies_between_cpu_and_amx_buffers_then_both_sides_are_equal(void) {
    struct rng r = {15};
    for (int i = 0; i < N_SHAPES; i++) {
        struct box amx = box_new(host.amx, SHAPES[i]), cpu = box_new(host.plain, SHAPES[i]), other = box_new(host.amx, SHAPES[i]);
        for (int t = 0; t < cpu.n; t++) {
            rng_bytes(&r, cpu.tensors[t].tensor->data, cpu.tensors[t].size);
            memcpy(amx.tensors[t].bytes, cpu.tensors[t].tensor->data, cpu.tensors[t].size);
            memcpy(other.tensors[t].bytes, cpu.tensors[t].tensor->data, cpu.tensors[t].size);
            ggml_backend_tensor_copy(cpu.tensors[t].tensor, amx.tensors[t].tensor);
            ggml_backend_tensor_copy(amx.tensors[t].tensor, other.tensors[t].tensor);
            memset(cpu.tensors[t].tensor->data, 0, cpu.tensors[t].size);
            memcpy(cpu.tensors[t].bytes, amx.tensors[t].bytes, cpu.tensors[t].size);
            ggml_backend_tensor_copy(other.tensors[t].tensor, cpu.tensors[t].tensor);
        }
        box_check(&amx, "CPU to AMX");
        box_check(&other, "AMX to AMX");
        box_check(&cpu, "AMX to CPU");
        box_free(&amx);
        box_free(&cpu);
        box_free(&other);
    }
}

static void given_types_that_are_not_packed_then_the_host_reads_them_in_place(void) {
    struct rng r = {16};
    for (int i = 0; i < N_SHAPES; i++) {
        struct box box = box_new(host.amx, SHAPES[i]);
        int stored = 0;
        for (int t = 0; t < box.n; t++) {
            struct shadow * s = &box.tensors[t];
            if (!is_packed_type(s->tensor->type)) {
                for (int round = 0; round < 20; round++) {
                    shadow_random_step(s, &r);
                }
                CHECK(memcmp(s->tensor->data, s->bytes, s->size) == 0, "%s is not stored as it is", ggml_type_name(s->tensor->type));
                stored++;
            }
        }
        CHECK(stored >= 3, "only %d types were looked at", stored);
        box_free(&box);
    }
}

static void given_packed_types_then_the_host_is_told_by_extra_to_keep_its_kernels_away(void) {
    struct box box = box_new(host.amx, SHAPES[0]);
    for (int t = 0; t < box.n; t++) {
        const struct ggml_tensor * tensor = box.tensors[t].tensor;
        CHECK(!is_packed_type(tensor->type) || tensor->extra != NULL, "%s has no extra", ggml_type_name(tensor->type));
    }
    box_free(&box);
}

static void given_two_buffers_then_writes_to_one_leave_the_other_alone(void) {
    struct rng r = {17};
    struct box one = box_new(host.amx, (struct shape){3, 33, 1, 1}), two = box_new(host.amx, (struct shape){2, 31, 2, 1});
    for (int round = 0; round < 40; round++) {
        for (int t = 0; t < one.n; t++) {
            shadow_random_step(&one.tensors[t], &r);
            shadow_random_step(&two.tensors[t], &r);
        }
    }
    box_check(&one, "first buffer");
    box_check(&two, "second buffer");
    box_free(&one);
    box_check(&two, "second buffer after the first was freed");
    box_free(&two);
}

/* The graph allocator reuses one buffer for other tensors after a reset. */
static void given_a_reset_then_the_buffer_can_hold_other_tensors(void) {
    struct rng r = {18};
    struct box first = box_new(host.amx, (struct shape){4, 40, 1, 1});
    for (int t = 0; t < first.n; t++) {
        shadow_random_step(&first.tensors[t], &r);
    }
    ggml_backend_buffer_reset(first.buffer);
    struct ggml_context * context = host_context(1);
    char * base = (char *) ggml_backend_buffer_get_base(first.buffer);
    struct shadow s = HARNESS_ZERO;
    s.tensor = ggml_new_tensor_2d(context, GGML_TYPE_Q6_K, 512, 17);
    CHECK(ggml_backend_tensor_alloc(first.buffer, s.tensor, base) == GGML_STATUS_SUCCESS, "the tensor was refused");
    s.size = ggml_nbytes(s.tensor);
    s.bytes = (uint8_t *) malloc(s.size);
    rng_bytes(&r, s.bytes, s.size);
    ggml_backend_tensor_set(s.tensor, s.bytes, 0, s.size);
    for (int round = 0; round < 50; round++) {
        shadow_random_step(&s, &r);
    }
    free(s.bytes);
    ggml_free(context);
    box_free(&first);
}

struct writer {
    struct shadow * shadow;
    uint64_t seed;
};

static void * write_one_tensor(void * context) {
    struct writer * w = (struct writer *) context;
    struct rng r = {w->seed};
    for (int round = 0; round < 100; round++) {
        shadow_random_step(w->shadow, &r);
    }
    return NULL;
}

static void given_threads_that_write_different_tensors_at_once_then_all_are_exact(void) {
    struct box box = box_new(host.amx, (struct shape){4, 50, 2, 1});
    pthread_t threads[32];
    struct writer writers[32];
    for (int t = 0; t < box.n; t++) {
        writers[t] = (struct writer){&box.tensors[t], 100 + (uint64_t) t};
        CHECK(pthread_create(&threads[t], NULL, write_one_tensor, &writers[t]) == 0, "no thread");
    }
    for (int t = 0; t < box.n; t++) {
        pthread_join(threads[t], NULL);
    }
    box_check(&box, "after concurrent writes");
    box_free(&box);
}

/* Sizes that are packed by several threads, in pieces that begin and end anywhere; then the same from
 * a thread for each at once. */
static void given_tensors_of_mebibytes_then_any_piece_is_exact_from_one_thread_and_from_many(void) {
    struct rng r = {19};
    struct ggml_context * context = host_context(N_PACKED_TYPES);
    struct shadow tensors[N_PACKED_TYPES];
    for (int t = 0; t < N_PACKED_TYPES; t++) {
        /* Small types need more rows. */
        const int64_t rows = 1002 * ggml_row_size(BOX_TYPES[t], 4096) > 2 << 20 ? 501 : 2004;
        tensors[t].tensor = ggml_new_tensor_3d(context, BOX_TYPES[t], 4096, rows, 2);
        tensors[t].size = ggml_nbytes(tensors[t].tensor);
        tensors[t].bytes = (uint8_t *) calloc(tensors[t].size, 1);
        CHECK(tensors[t].size > 2 << 20, "the tensor is too small for this test");
    }
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(context, host.amx);
    ggml_backend_buffer_clear(buffer, 0);
    for (int t = 0; t < N_PACKED_TYPES; t++) {
        rng_bytes(&r, tensors[t].bytes, tensors[t].size);
        ggml_backend_tensor_set(tensors[t].tensor, tensors[t].bytes, 0, tensors[t].size);
        shadow_check(&tensors[t], 0, tensors[t].size, "after one write");
        for (int round = 0; round < 6; round++) {
            const size_t at = rng_below(&r, tensors[t].size / 3), size = tensors[t].size / 2 + rng_below(&r, tensors[t].size / 6);
            rng_bytes(&r, tensors[t].bytes + at, size);
            ggml_backend_tensor_set(tensors[t].tensor, tensors[t].bytes + at, at, size);
            const size_t from = rng_below(&r, tensors[t].size / 3);
            shadow_check(&tensors[t], from, tensors[t].size / 2, "after a large write");
            memset(tensors[t].bytes + from, round, size / 2);
            ggml_backend_tensor_memset(tensors[t].tensor, (uint8_t) round, from, size / 2);
        }
        shadow_check(&tensors[t], 0, tensors[t].size, "after large writes");
    }
    pthread_t threads[N_PACKED_TYPES];
    struct writer writers[N_PACKED_TYPES];
    for (int t = 0; t < N_PACKED_TYPES; t++) {
        writers[t] = (struct writer){&tensors[t], 200 + (uint64_t) t};
        CHECK(pthread_create(&threads[t], NULL, write_one_tensor, &writers[t]) == 0, "no thread");
    }
    for (int t = 0; t < N_PACKED_TYPES; t++) {
        pthread_join(threads[t], NULL);
        shadow_check(&tensors[t], 0, tensors[t].size, "after concurrent large writes");
        free(tensors[t].bytes);
    }
    ggml_backend_buffer_free(buffer);
    ggml_free(context);
}

int main(void) {
    host_open_with_buffer_type();
    RUN(given_the_buffer_type_then_it_is_called_amx_and_is_not_host_memory);
    RUN(given_any_size_then_the_buffer_is_aligned_and_at_least_that_large);
    RUN(given_any_shape_then_alloc_size_pads_the_rows_of_packed_types_per_slice);
    RUN(given_whole_tensors_then_one_write_and_one_read_are_exact);
    RUN(given_writes_of_any_offset_size_and_order_then_reads_give_the_same_bytes);
    RUN(given_chunked_uploads_then_the_tensor_is_whole);
    RUN(given_memset_and_clear_then_the_bytes_read_back_are_the_value);
    RUN(given_two_dimensional_copies_then_every_row_arrives);
    RUN(given_copies_between_cpu_and_amx_buffers_then_both_sides_are_equal);
    RUN(given_types_that_are_not_packed_then_the_host_reads_them_in_place);
    RUN(given_packed_types_then_the_host_is_told_by_extra_to_keep_its_kernels_away);
    RUN(given_two_buffers_then_writes_to_one_leave_the_other_alone);
    RUN(given_a_reset_then_the_buffer_can_hold_other_tensors);
    RUN(given_threads_that_write_different_tensors_at_once_then_all_are_exact);
    RUN(given_tensors_of_mebibytes_then_any_piece_is_exact_from_one_thread_and_from_many);
    return harness_report("buffer_host");
}

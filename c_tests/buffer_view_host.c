/* Views of tensors in the AMX buffer: a write through a view lands where it would in an ordinary buffer, and a
 * read through a view sees it. A view's shadow is a piece of its parent's shadow. */
#define _GNU_SOURCE
#include "host.h"
#include "shadow.h"

/* Ways to look at a tensor of ne = {blocks, rows, ne2, ne3}; NULL if this shape does not allow it. */
typedef struct ggml_tensor * (*view_maker)(struct ggml_context * c, struct ggml_tensor * t);

static struct ggml_tensor * rows_from_3(struct ggml_context * c, struct ggml_tensor * t) {
    return t->ne[1] < 6 ? NULL : ggml_view_2d(c, t, t->ne[0], t->ne[1] - 5, t->nb[1], 3 * t->nb[1]);
}

static struct ggml_tensor * one_odd_row(struct ggml_context * c, struct ggml_tensor * t) {
    return t->ne[1] < 18 ? NULL : ggml_view_1d(c, t, t->ne[0], 17 * t->nb[1]);
}

static struct ggml_tensor * last_slice(struct ggml_context * c, struct ggml_tensor * t) {
    return ggml_view_2d(c, t, t->ne[0], t->ne[1], t->nb[1], (size_t) (t->ne[2] - 1) * t->nb[2] + (size_t) (t->ne[3] - 1) * t->nb[3]);
}

static struct ggml_tensor * inner_rows_of_every_slice(struct ggml_context * c, struct ggml_tensor * t) {
    return t->ne[1] < 4 ? NULL : ggml_view_4d(c, t, t->ne[0], t->ne[1] - 3, t->ne[2], t->ne[3], t->nb[1], t->nb[2], t->nb[3], t->nb[1]);
}

static struct ggml_tensor * every_other_row(struct ggml_context * c, struct ggml_tensor * t) {
    return t->ne[1] < 2 ? NULL : ggml_view_2d(c, t, t->ne[0], t->ne[1] / 2, 2 * t->nb[1], t->nb[1]);
}

static struct ggml_tensor * second_block_column(struct ggml_context * c, struct ggml_tensor * t) {
    const int64_t block = ggml_blck_size(t->type);
    return t->ne[0] < 2 * block ? NULL : ggml_view_2d(c, t, block, t->ne[1], t->nb[1], t->nb[0] * (size_t) (ggml_is_quantized(t->type) ? 1 : block));
}

static struct ggml_tensor * reshaped_flat(struct ggml_context * c, struct ggml_tensor * t) {
    return ggml_reshape_2d(c, t, t->ne[0], t->ne[1] * t->ne[2] * t->ne[3]);
}

static struct ggml_tensor * reshaped_to_one_row(struct ggml_context * c, struct ggml_tensor * t) {
    return ggml_reshape_1d(c, t, ggml_nelements(t));
}

static struct ggml_tensor * reshaped_to_slices(struct ggml_context * c, struct ggml_tensor * t) {
    return t->ne[2] * t->ne[3] > 1 || t->ne[1] % 4 ? NULL : ggml_reshape_3d(c, t, t->ne[0], t->ne[1] / 4, 4);
}

static struct ggml_tensor * view_of_a_view(struct ggml_context * c, struct ggml_tensor * t) {
    if (t->ne[1] < 12) {
        return NULL;
    }
    struct ggml_tensor * first = ggml_view_2d(c, t, t->ne[0], t->ne[1] - 5, t->nb[1], 5 * t->nb[1]);
    return ggml_view_2d(c, first, first->ne[0], first->ne[1] - 3, first->nb[1], 2 * first->nb[1]);
}

static const struct {
    const char * name;
    view_maker make;
} VIEWS[] = {
    {"rows from 3", rows_from_3},
    {"one odd row", one_odd_row},
    {"last slice", last_slice},
    {"inner rows of every slice", inner_rows_of_every_slice},
    {"every other row", every_other_row},
    {"second column of blocks", second_block_column},
    {"reshaped flat", reshaped_flat},
    {"reshaped to one row", reshaped_to_one_row},
    {"reshaped to slices", reshaped_to_slices},
    {"view of a view", view_of_a_view},
};
enum { N_VIEWS = sizeof VIEWS / sizeof VIEWS[0] };

/* Writes and reads through a view in random pieces, then compares the whole parent. */
static void exercise(struct shadow * parent, struct ggml_tensor * view, const char * name, struct rng * r) {
    struct shadow s = HARNESS_ZERO;
    s.tensor = view;
    s.size = ggml_nbytes(view);
    CHECK(view->view_offs + s.size <= parent->size, "%s: the test's own view leaves its parent", name);
    s.bytes = parent->bytes + view->view_offs;
    for (int round = 0; round < 30; round++) {
        shadow_random_step(&s, r);
    }
    uint8_t * data = (uint8_t *) malloc(s.size);
    rng_bytes(r, data, s.size);
    memcpy(s.bytes, data, s.size);
    ggml_backend_tensor_set(view, data, 0, s.size);
    free(data);
    shadow_check(&s, 0, s.size, name);
    shadow_check(parent, 0, parent->size, name);
}

/* With `initialised`, the view is known to the buffer (buffer pointer and extra set) as after graph allocation;
 * without, only view_src and view_offs tell where it lies. */
static void check_views(bool initialised) {
    struct rng r = {20};
    for (int i = 0; i < N_SHAPES; i++) {
        struct box box = box_new(host.amx, SHAPES[i]);
        int made = 0;
        for (int t = 0; t < box.n; t++) {
            for (int v = 0; v < N_VIEWS; v++) {
                struct ggml_context * context = host_context(4);
                struct ggml_tensor * view = VIEWS[v].make(context, box.tensors[t].tensor);
                if (view) {
                    if (initialised) {
                        CHECK(ggml_backend_view_init(view) == GGML_STATUS_SUCCESS, "%s: view_init", VIEWS[v].name);
                    }
                    exercise(&box.tensors[t], view, VIEWS[v].name, &r);
                    made++;
                }
                ggml_free(context);
            }
        }
        CHECK(made >= 3 * box.n, "only %d views were made", made);
        box_check(&box, "after all views");
        box_free(&box);
    }
}

static void given_views_made_after_allocation_then_they_write_into_their_parent(void) {
    check_views(false);
}

static void given_views_the_buffer_knows_then_they_write_into_their_parent(void) {
    check_views(true);
}

/* Views in the same context as their parent are set up by the allocation itself. */
static void given_views_allocated_together_with_their_parent_then_they_cost_nothing_and_work(void) {
    struct rng r = {21};
    for (int type = 0; type < N_PACKED_TYPES; type++) {
        struct ggml_context * context = host_context(4);
        struct shadow parent = HARNESS_ZERO;
        parent.tensor = ggml_new_tensor_2d(context, BOX_TYPES[type], 2 * ggml_blck_size(BOX_TYPES[type]), 40);
        struct ggml_tensor * rows = rows_from_3(context, parent.tensor), * slices = reshaped_to_slices(context, parent.tensor);
        ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(context, host.amx);
        CHECK(buffer != NULL && rows->buffer == buffer && slices->buffer == buffer, "the views got no buffer");
        CHECK(ggml_backend_buffer_get_size(buffer) < 2 * ggml_nbytes(parent.tensor), "views take memory of their own");
        parent.size = ggml_nbytes(parent.tensor);
        parent.bytes = (uint8_t *) calloc(parent.size, 1);
        ggml_backend_buffer_clear(buffer, 0);
        exercise(&parent, rows, "rows from 3", &r);
        exercise(&parent, slices, "reshaped to slices", &r);
        exercise(&parent, rows, "rows from 3 again", &r);
        free(parent.bytes);
        ggml_backend_buffer_free(buffer);
        ggml_free(context);
    }
}

/* A merged tensor filled through two halves, read back through one, then written whole (ik's merged up/gate
 * does this, and loaders that split a file tensor). */
static void given_a_merged_tensor_filled_by_halves_then_the_whole_is_right(void) {
    struct rng r = {22};
    for (int type = 0; type < N_PACKED_TYPES; type++) {
        struct box box = box_new(host.amx, (struct shape){3, 54, 1, 1});
        struct shadow * s = &box.tensors[type];
        struct ggml_context * context = host_context(2);
        const size_t half = s->size / 2;
        struct ggml_tensor * up = ggml_view_2d(context, s->tensor, s->tensor->ne[0], 27, s->tensor->nb[1], 0);
        struct ggml_tensor * gate = ggml_view_2d(context, s->tensor, s->tensor->ne[0], 27, s->tensor->nb[1], half);
        rng_bytes(&r, s->bytes, s->size);
        ggml_backend_tensor_set(gate, s->bytes + half, 0, half);
        ggml_backend_tensor_set(up, s->bytes, 0, half);
        shadow_check(s, 0, s->size, "after two halves");
        uint8_t * back = (uint8_t *) malloc(half);
        ggml_backend_tensor_get(gate, back, 0, half);
        CHECK(memcmp(back, s->bytes + half, half) == 0, "the second half reads back differently");
        free(back);
        rng_bytes(&r, s->bytes, s->size);
        ggml_backend_tensor_set(s->tensor, s->bytes, 0, s->size);
        shadow_check(s, 0, s->size, "after the whole");
        ggml_free(context);
        box_free(&box);
    }
}

/* Copies between a view in the AMX buffer and tensors elsewhere. */
static void given_copies_to_and_from_views_then_only_the_view_changes(void) {
    struct rng r = {23};
    for (int type = 0; type < N_PACKED_TYPES; type++) {
        struct box box = box_new(host.amx, (struct shape){2, 45, 1, 1});
        struct shadow * s = &box.tensors[type];
        struct ggml_context * views = host_context(1), * plain = host_context(1);
        struct ggml_tensor * view = rows_from_3(views, s->tensor);
        CHECK(ggml_backend_view_init(view) == GGML_STATUS_SUCCESS, "view_init");
        struct ggml_tensor * cpu = ggml_new_tensor_2d(plain, view->type, view->ne[0], view->ne[1]);
        ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(plain, host.plain);
        rng_bytes(&r, cpu->data, ggml_nbytes(cpu));
        memcpy(s->bytes + view->view_offs, cpu->data, ggml_nbytes(cpu));
        ggml_backend_tensor_copy(cpu, view);
        shadow_check(s, 0, s->size, "after a copy into a view");
        memset(cpu->data, 0, ggml_nbytes(cpu));
        ggml_backend_tensor_copy(view, cpu);
        CHECK(memcmp(cpu->data, s->bytes + view->view_offs, ggml_nbytes(cpu)) == 0, "a copy out of a view has other bytes");
        ggml_backend_buffer_free(buffer);
        ggml_free(views);
        ggml_free(plain);
        box_free(&box);
    }
}

int main(void) {
    host_open_with_buffer_type();
    RUN(given_views_made_after_allocation_then_they_write_into_their_parent);
    RUN(given_views_the_buffer_knows_then_they_write_into_their_parent);
    RUN(given_views_allocated_together_with_their_parent_then_they_cost_nothing_and_work);
    RUN(given_a_merged_tensor_filled_by_halves_then_the_whole_is_right);
    RUN(given_copies_to_and_from_views_then_only_the_view_changes);
    return harness_report("buffer_view_host");
}

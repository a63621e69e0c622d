/* A stand-in for ggml: just enough of its functions and structs for this library to find a host, prove its layout and
 * offer the buffer type. With it a program can be a host that no package has: of another version, built with other
 * options, with callbacks of its own. Include it once, in the program's only file; needs _GNU_SOURCE.
 *
 * * The layout is that of ggml 0.25, unless the program defines other members. FAKE_TYPES is the length of the table of
 * types, 43 in that version. As in a debug build of ggml, the program ends when it is asked for a type past the end. */
#ifndef GGML_AMX_TEST_FAKE_GGML_H
#define GGML_AMX_TEST_FAKE_GGML_H

#include "harness.h"

#include <signal.h>

#ifndef FAKE_TYPES
#define FAKE_TYPES 43
#endif
#ifndef FAKE_DEVICE
#define FAKE_DEVICE NULL /* the CPU device, and its registry */
#endif
#ifndef FAKE_BEFORE_INIT
#define FAKE_BEFORE_INIT (void) 0 /* before a context is made */
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- structs */

struct ggml_backend_buffer;

struct ggml_tensor;
struct ggml_backend_buffer_type;
typedef struct ggml_tensor * fake_tensor;
typedef struct ggml_backend_buffer * fake_buffer;
typedef struct ggml_backend_buffer_type * fake_buft;

#ifndef FAKE_SOURCES
#define FAKE_SOURCES 10
#endif
#ifndef FAKE_NAME
#define FAKE_NAME 64
#endif
/* Members, in groups, so that a program can reorder them or add others. */
#define FAKE_T_BUFFER fake_buffer buffer;
#define FAKE_T_SHAPE \
    int64_t ne[4]; \
    size_t nb[4];
#define FAKE_T_OP int32_t op, op_params[16], flags;
#define FAKE_T_SRC fake_tensor src[FAKE_SOURCES];
#define FAKE_T_VIEW \
    fake_tensor view_src; \
    size_t view_offs;
#define FAKE_T_DATA void * data;
#define FAKE_T_NAME \
    char name[FAKE_NAME]; \
    void * extra;
#ifndef FAKE_TENSOR_MEMBERS
#define FAKE_TENSOR_MEMBERS \
    int32_t type; \
    FAKE_T_BUFFER FAKE_T_SHAPE FAKE_T_OP FAKE_T_SRC FAKE_T_VIEW FAKE_T_DATA FAKE_T_NAME char padding[8];
#endif

struct ggml_tensor {
    FAKE_TENSOR_MEMBERS
};

#define FAKE_Y_NAME const char * (*get_name)(fake_buft);
#define FAKE_Y_ALLOC fake_buffer (*alloc_buffer)(fake_buft, size_t);
#define FAKE_Y_ALIGNMENT size_t (*get_alignment)(fake_buft);
#define FAKE_Y_MAX_SIZE size_t (*get_max_size)(fake_buft);
#define FAKE_Y_ALLOC_SIZE size_t (*get_alloc_size)(fake_buft, const struct ggml_tensor *);
#define FAKE_Y_IS_HOST bool (*is_host)(fake_buft);
#define FAKE_Y_ALLOC_N fake_buffer (*alloc_buffer_n)(fake_buft, fake_tensor *, int);
#define FAKE_Y_ALLOC_SIZE_N size_t (*get_alloc_size_n)(fake_buft, fake_tensor *, int);
#ifndef FAKE_TYPE_MEMBERS
#define FAKE_TYPE_MEMBERS FAKE_Y_NAME FAKE_Y_ALLOC FAKE_Y_ALIGNMENT FAKE_Y_MAX_SIZE FAKE_Y_ALLOC_SIZE FAKE_Y_IS_HOST
#endif

struct ggml_backend_buffer_type {
    FAKE_TYPE_MEMBERS
    void * device, * context;
};

#define FAKE_B_FREE void (*free_buffer)(fake_buffer);
#define FAKE_B_BASE void * (*get_base)(fake_buffer);
#define FAKE_B_INIT int32_t (*init_tensor)(fake_buffer, fake_tensor);
#define FAKE_B_MEMSET void (*memset_tensor)(fake_buffer, fake_tensor, uint8_t, size_t, size_t);
#define FAKE_B_SET void (*set_tensor)(fake_buffer, fake_tensor, const void *, size_t, size_t);
#define FAKE_B_GET void (*get_tensor)(fake_buffer, const struct ggml_tensor *, void *, size_t, size_t);
#define FAKE_B_2D void (*set_tensor_2d)(void), (*get_tensor_2d)(void);
#define FAKE_B_COPY void (*cpy_tensor)(void);
#define FAKE_B_CLEAR void (*clear)(fake_buffer, uint8_t);
#define FAKE_B_RESET void (*reset)(fake_buffer);
#ifndef FAKE_BUFFER_MEMBERS
#define FAKE_BUFFER_MEMBERS \
    FAKE_B_FREE FAKE_B_BASE FAKE_B_INIT FAKE_B_MEMSET FAKE_B_SET FAKE_B_GET FAKE_B_2D FAKE_B_COPY FAKE_B_CLEAR FAKE_B_RESET
#endif
#ifndef FAKE_BEHIND_BUFFER
#define FAKE_BEHIND_BUFFER \
    void * context; \
    size_t size;
#endif

struct fake_buffer_interface {
    FAKE_BUFFER_MEMBERS
};

struct ggml_backend_buffer {
    struct fake_buffer_interface interface;
    struct ggml_backend_buffer_type * buft;
    FAKE_BEHIND_BUFFER
    int32_t usage;
};

struct fake_init_params {
    size_t mem_size;
    void * mem_buffer;
    bool no_alloc;
};

/* ---- the table of types */

struct fake_type {
    int number;
    const char * name;
    int64_t block;
    size_t bytes;
};

#ifndef FAKE_Q4_0_BYTES
#define FAKE_Q4_0_BYTES 18
#endif

static const struct fake_type FAKE_TABLE[] = {
    {0, "f32", 1, 4},          {1, "f16", 1, 2},          {2, "q4_0", 32, FAKE_Q4_0_BYTES},      {3, "q4_1", 32, 20},        {6, "q5_0", 32, 22},
    {7, "q5_1", 32, 24},       {8, "q8_0", 32, 34},       {10, "q2_K", 256, 84},    {11, "q3_K", 256, 110},     {12, "q4_K", 256, 144},
    {13, "q5_K", 256, 176},    {14, "q6_K", 256, 210},    {16, "iq2_xxs", 256, 66}, {17, "iq2_xs", 256, 74},    {18, "iq3_xxs", 256, 98},
    {19, "iq1_s", 256, 50},    {20, "iq4_nl", 32, 18},    {21, "iq3_s", 256, 110},  {22, "iq2_s", 256, 82},     {23, "iq4_xs", 256, 136},
    {26, "i32", 1, 4},         {29, "iq1_m", 256, 56},    {30, "bf16", 1, 2},       {34, "tq1_0", 256, 54},     {35, "tq2_0", 256, 66},
    {39, "mxfp4", 32, 17},     {40, "nvfp4", 64, 36},     {41, "q1_0", 128, 18},    {42, "q2_0", 64, 18},
};

static int fake_asked; /* how often a type was asked for */

/* ggml's assertion. Where it is compiled out, ggml reads memory past the table. */
static const struct fake_type * fake_type(int number) {
    static const struct fake_type removed = {-1, "REMOVED", 0, 0};
    __atomic_fetch_add(&fake_asked, 1, __ATOMIC_RELAXED);
    if (number < 0 || number >= FAKE_TYPES) {
        fprintf(stderr, "assertion `type < GGML_TYPE_COUNT' failed: %d\n", number);
        abort();
    }
    for (size_t i = 0; i < sizeof FAKE_TABLE / sizeof FAKE_TABLE[0]; i++) {
        if (FAKE_TABLE[i].number == number) {
            return &FAKE_TABLE[i];
        }
    }
    return &removed;
}

const char * ggml_type_name(int32_t number);
const char * ggml_type_name(int32_t number) {
    return fake_type(number)->name;
}

size_t ggml_type_size(int32_t number);
size_t ggml_type_size(int32_t number) {
    return fake_type(number)->bytes;
}

int64_t ggml_blck_size(int32_t number);
int64_t ggml_blck_size(int32_t number) {
    return fake_type(number)->block;
}

/* Decoders of the types in the table. They are never called, but show how long the table is. */
#define FAKE_DECODER(name) \
    void dequantize_row_##name(const void * from, float * to, int64_t n); \
    void dequantize_row_##name(const void * from, float * to, int64_t n) { \
        (void) from, (void) to, (void) n; \
        abort(); \
    }
#if FAKE_TYPES > 34
FAKE_DECODER(tq1_0)
#endif
#if FAKE_TYPES > 35
FAKE_DECODER(tq2_0)
#endif
#if FAKE_TYPES > 39
FAKE_DECODER(mxfp4)
#endif
#if FAKE_TYPES > 40
FAKE_DECODER(nvfp4)
#endif
#if FAKE_TYPES > 41
FAKE_DECODER(q1_0)
#endif
#if FAKE_TYPES > 42
FAKE_DECODER(q2_0)
#endif

/* ---- contexts and tensors */

enum { FAKE_MUL_MAT = 29, FAKE_MUL_MAT_ID = 30, FAKE_SCALE = 34, FAKE_RESHAPE = 36, FAKE_VIEW, FAKE_PERMUTE, FAKE_TRANSPOSE };

/* How many nodes the sources of a node lead to. */
struct fake_graph {
    struct ggml_tensor * nodes[8];
    int count;
};

struct fake_context {
    struct ggml_tensor tensors[128];
    int used;
    struct fake_graph graphs[32];
    int graphs_used;
};

void * ggml_init(struct fake_init_params params);
void * ggml_init(struct fake_init_params params) {
    (void) params;
    FAKE_BEFORE_INIT;
    return calloc(1, sizeof(struct fake_context));
}

void ggml_free(void * context);
void ggml_free(void * context) {
    free(context);
}

size_t ggml_tensor_overhead(void);
size_t ggml_tensor_overhead(void) {
    return 32 + sizeof(struct ggml_tensor);
}

struct ggml_tensor * ggml_new_tensor_4d(void * context, int32_t type, int64_t a, int64_t b, int64_t c, int64_t d);
struct ggml_tensor * ggml_new_tensor_4d(void * context, int32_t type, int64_t a, int64_t b, int64_t c, int64_t d) {
    struct fake_context * in = (struct fake_context *) context;
#ifdef FAKE_WITHOUT_TENSORS
    if (FAKE_WITHOUT_TENSORS(type)) {
        return NULL;
    }
#endif
    const struct fake_type * t = fake_type(type);
    if (in->used == 128 || t->block == 0) {
        abort();
    }
    struct ggml_tensor * made = &in->tensors[in->used++];
    const int64_t ne[4] = {a, b, c, d};
    made->type = type;
    memcpy(made->ne, ne, sizeof ne);
    made->nb[0] = t->bytes, made->nb[1] = t->bytes * (size_t) (a / t->block);
    made->nb[2] = made->nb[1] * (size_t) b, made->nb[3] = made->nb[2] * (size_t) c;
    return made;
}

static struct ggml_tensor * fake_op(void * context, int op, struct ggml_tensor * a, struct ggml_tensor * b, struct ggml_tensor * c, int64_t n, int64_t m, int64_t l) {
    struct ggml_tensor * made = ggml_new_tensor_4d(context, 0, n, m, l, 1);
    made->op = op, made->src[0] = a, made->src[1] = b, made->src[2] = c;
    return made;
}

#define FAKE_TENSOR struct ggml_tensor *

FAKE_TENSOR ggml_mul_mat(void * context, FAKE_TENSOR a, FAKE_TENSOR b);
FAKE_TENSOR ggml_mul_mat(void * context, FAKE_TENSOR a, FAKE_TENSOR b) {
    return fake_op(context, FAKE_MUL_MAT, a, b, NULL, a->ne[1], b->ne[1], b->ne[2]);
}

FAKE_TENSOR ggml_mul_mat_id(void * context, FAKE_TENSOR a, FAKE_TENSOR b, FAKE_TENSOR ids);
FAKE_TENSOR ggml_mul_mat_id(void * context, FAKE_TENSOR a, FAKE_TENSOR b, FAKE_TENSOR ids) {
    return fake_op(context, FAKE_MUL_MAT_ID, a, b, ids, a->ne[1], ids->ne[0], b->ne[2]);
}

FAKE_TENSOR ggml_view_1d(void * context, FAKE_TENSOR a, int64_t n, size_t offset);
FAKE_TENSOR ggml_view_1d(void * context, FAKE_TENSOR a, int64_t n, size_t offset) {
    FAKE_TENSOR view = fake_op(context, FAKE_VIEW, a, NULL, NULL, n, 1, 1);
    view->view_src = a, view->view_offs = offset;
#ifndef FAKE_VIEWS_OF_VIEWS
    if (a->view_src) {
        view->view_src = a->view_src, view->view_offs = offset + a->view_offs;
    }
#endif
    return view;
}

FAKE_TENSOR ggml_reshape_1d(void * context, FAKE_TENSOR a, int64_t n);
FAKE_TENSOR ggml_reshape_1d(void * context, FAKE_TENSOR a, int64_t n) {
    return fake_op(context, FAKE_RESHAPE, a, NULL, NULL, n, 1, 1);
}

FAKE_TENSOR ggml_permute(void * context, FAKE_TENSOR a, int32_t w, int32_t x, int32_t y, int32_t z);
FAKE_TENSOR ggml_permute(void * context, FAKE_TENSOR a, int32_t w, int32_t x, int32_t y, int32_t z) {
    (void) w, (void) x, (void) y, (void) z;
    return fake_op(context, FAKE_PERMUTE, a, NULL, NULL, a->ne[0], a->ne[2], a->ne[1]);
}

FAKE_TENSOR ggml_transpose(void * context, FAKE_TENSOR a);
FAKE_TENSOR ggml_transpose(void * context, FAKE_TENSOR a) {
    return fake_op(context, FAKE_TRANSPOSE, a, NULL, NULL, a->ne[1], a->ne[0], a->ne[2]);
}

FAKE_TENSOR ggml_scale(void * context, FAKE_TENSOR a, float factor);
FAKE_TENSOR ggml_scale(void * context, FAKE_TENSOR a, float factor) {
    FAKE_TENSOR scaled = fake_op(context, FAKE_SCALE, a, NULL, NULL, a->ne[0], a->ne[1], a->ne[2]);
    memcpy(scaled->op_params, &factor, sizeof factor);
    return scaled;
}

FAKE_TENSOR ggml_set_name(FAKE_TENSOR a, const char * name);
FAKE_TENSOR ggml_set_name(FAKE_TENSOR a, const char * name) {
    snprintf(a->name, sizeof a->name, "%s", name);
    return a;
}

const char * ggml_get_name(const struct ggml_tensor * a);
const char * ggml_get_name(const struct ggml_tensor * a) {
    return a->name;
}

void ggml_set_input(FAKE_TENSOR a);
void ggml_set_input(FAKE_TENSOR a) {
    a->flags |= 1;
}

size_t ggml_nbytes(const struct ggml_tensor * a);
size_t ggml_nbytes(const struct ggml_tensor * a) {
    return a->nb[3] * (size_t) a->ne[3];
}

#ifndef FAKE_MUL_MAT_NAME
#define FAKE_MUL_MAT_NAME "MUL_MAT"
#endif

const char * ggml_op_name(int32_t op);
const char * ggml_op_name(int32_t op) {
#ifdef FAKE_WITHOUT_OP_NAMES
    return NULL;
#endif
    return op == FAKE_MUL_MAT ? FAKE_MUL_MAT_NAME : op == FAKE_MUL_MAT_ID ? "MUL_MAT_ID" : op == FAKE_VIEW ? "VIEW" : "OTHER";
}

/* ---- graphs */

void * ggml_new_graph_custom(void * context, size_t size, bool grads);
void * ggml_new_graph_custom(void * context, size_t size, bool grads) {
    struct fake_context * in = (struct fake_context *) context;
    (void) size, (void) grads;
#ifdef FAKE_WITHOUT_GRAPHS
    return NULL;
#endif
    if (in->graphs_used == 32) {
        abort();
    }
    return &in->graphs[in->graphs_used++];
}

void ggml_build_forward_expand(void * graph, FAKE_TENSOR node);
void ggml_build_forward_expand(void * graph, FAKE_TENSOR node) {
    struct fake_graph * in = (struct fake_graph *) graph;
    for (int i = 0; i < in->count; i++) {
        if (in->nodes[i] == node) {
            return;
        }
    }
    for (int i = 0; i < FAKE_SOURCES; i++) {
#ifdef FAKE_FEW_SOURCES
        if (node->op == FAKE_MUL_MAT && i > 2 && node->src[i]) {
            fprintf(stderr, "host: a MUL_MAT with source %d\n", i);
            abort();
        }
#endif
        if (node->src[i]) {
            ggml_build_forward_expand(graph, node->src[i]);
        }
    }
    if (node->op) {
        in->nodes[in->count++] = node;
    }
}

#ifndef FAKE_WITHOUT_COUNT
int ggml_graph_n_nodes(void * graph);
int ggml_graph_n_nodes(void * graph) {
    return ((struct fake_graph *) graph)->count;
}
#endif

/* ---- log, end, threads */

static void (*fake_log_callback)(int32_t level, const char * text); /* NULL: standard error */

void ggml_log_internal(int32_t level, const char * format, ...);
void ggml_log_internal(int32_t level, const char * format, ...) {
    char text[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (fake_log_callback) {
        fake_log_callback(level, text);
    } else {
        fputs(text, stderr);
    }
}

void ggml_abort(const char * file, int32_t line, const char * format, ...);
void ggml_abort(const char * file, int32_t line, const char * format, ...) {
    fprintf(stderr, "%s:%d: %s\n", file, line, format);
    abort();
}

void ggml_barrier(void * pool);
void ggml_barrier(void * pool) {
    (void) pool;
}

/* ---- buffers */

#define FAKE_BUFFER struct ggml_backend_buffer *
#define FAKE_BUFT struct ggml_backend_buffer_type *

FAKE_BUFFER ggml_backend_buffer_init(FAKE_BUFT buft, struct fake_buffer_interface interface, void * context, size_t size);
FAKE_BUFFER ggml_backend_buffer_init(FAKE_BUFT buft, struct fake_buffer_interface interface, void * context, size_t size) {
    FAKE_BUFFER made = (FAKE_BUFFER) calloc(1, sizeof *made);
    made->interface = interface, made->buft = buft, made->context = context, made->size = size;
    return made;
}

void ggml_backend_buffer_free(FAKE_BUFFER b);
void ggml_backend_buffer_free(FAKE_BUFFER b) {
    if (b->interface.free_buffer) {
        b->interface.free_buffer(b);
    }
    free(b);
}

void * ggml_backend_buffer_get_base(FAKE_BUFFER b);
void * ggml_backend_buffer_get_base(FAKE_BUFFER b) {
    return b->interface.get_base(b);
}

void ggml_backend_buffer_clear(FAKE_BUFFER b, uint8_t value);
void ggml_backend_buffer_clear(FAKE_BUFFER b, uint8_t value) {
    b->interface.clear(b, value);
}

void ggml_backend_buffer_reset(FAKE_BUFFER b);
void ggml_backend_buffer_reset(FAKE_BUFFER b) {
    b->interface.reset(b);
}

int32_t ggml_backend_tensor_alloc(FAKE_BUFFER b, FAKE_TENSOR t, void * address);
int32_t ggml_backend_tensor_alloc(FAKE_BUFFER b, FAKE_TENSOR t, void * address) {
#ifdef FAKE_ALIGNS
    if ((size_t) address % FAKE_ALIGNS(b->buft)) {
        fprintf(stderr, "host: %p is not aligned\n", address);
        abort();
    }
#endif
#ifdef FAKE_CHECKS_BOUNDS
    const char * begin = (const char *) b->interface.get_base(b);
    const size_t asked = b->buft->get_alloc_size ? b->buft->get_alloc_size(b->buft, t) : ggml_nbytes(t);
    if ((char *) address < begin || (char *) address + asked > begin + b->size) {
        fprintf(stderr, "host: %p is not in the buffer\n", address);
        abort();
    }
#endif
    t->buffer = b, t->data = address;
#ifdef FAKE_SECOND_DATA
    t->second_data = address;
#endif
    return b->interface.init_tensor ? b->interface.init_tensor(b, t) : 0;
}

void ggml_backend_tensor_set(FAKE_TENSOR t, const void * from, size_t offset, size_t size);
void ggml_backend_tensor_set(FAKE_TENSOR t, const void * from, size_t offset, size_t size) {
#ifdef FAKE_BEFORE_SET
    t->buffer->interface.before_set(t->buffer);
#endif
    t->buffer->interface.set_tensor(t->buffer, t, from, offset, size);
}

void ggml_backend_tensor_get(const struct ggml_tensor * t, void * to, size_t offset, size_t size);
void ggml_backend_tensor_get(const struct ggml_tensor * t, void * to, size_t offset, size_t size) {
    t->buffer->interface.get_tensor(t->buffer, t, to, offset, size);
}

void ggml_backend_tensor_memset(FAKE_TENSOR t, uint8_t value, size_t offset, size_t size);
void ggml_backend_tensor_memset(FAKE_TENSOR t, uint8_t value, size_t offset, size_t size) {
    t->buffer->interface.memset_tensor(t->buffer, t, value, offset, size);
}

const char * ggml_backend_buft_name(FAKE_BUFT b);
const char * ggml_backend_buft_name(FAKE_BUFT b) {
    return b->get_name(b);
}

FAKE_BUFFER ggml_backend_buft_alloc_buffer(FAKE_BUFT b, size_t size);
FAKE_BUFFER ggml_backend_buft_alloc_buffer(FAKE_BUFT b, size_t size) {
#ifdef FAKE_ALLOC_BY_LIST
    return b->alloc_buffer_n(b, NULL, (int) size);
#else
    return b->alloc_buffer(b, size);
#endif
}

size_t ggml_backend_buft_get_alignment(FAKE_BUFT b);
size_t ggml_backend_buft_get_alignment(FAKE_BUFT b) {
    return b->get_alignment(b);
}

size_t ggml_backend_buft_get_max_size(FAKE_BUFT b);
size_t ggml_backend_buft_get_max_size(FAKE_BUFT b) {
    return b->get_max_size ? b->get_max_size(b) : SIZE_MAX;
}

size_t ggml_backend_buft_get_alloc_size(FAKE_BUFT b, const struct ggml_tensor * t);
size_t ggml_backend_buft_get_alloc_size(FAKE_BUFT b, const struct ggml_tensor * t) {
    return b->get_alloc_size ? b->get_alloc_size(b, t) : ggml_nbytes(t);
}

bool ggml_backend_buft_is_host(FAKE_BUFT b);
bool ggml_backend_buft_is_host(FAKE_BUFT b) {
    return b->is_host && b->is_host(b);
}

void * ggml_backend_buft_get_device(FAKE_BUFT b);
void * ggml_backend_buft_get_device(FAKE_BUFT b) {
    return b->device;
}

void * ggml_backend_cpu_reg(void);
void * ggml_backend_cpu_reg(void) {
    return FAKE_DEVICE;
}

void * ggml_backend_reg_dev_get(void * reg, size_t index);
void * ggml_backend_reg_dev_get(void * reg, size_t index) {
    (void) index;
    return reg;
}

/* What ggml-cpu.cpp calls: the C++ name of ggml_backend_amx_buffer_type(). */
FAKE_BUFT fake_host_door(void) __asm__("_Z28ggml_backend_amx_buffer_typev");

#ifdef __cplusplus
}
#endif

#endif

/* Threads of the stand-alone API: as many as can be started and the work is worth, and all of it again in a forked
 * child. What could hang runs in a child with a time limit. No ggml in this process. */
#define _GNU_SOURCE
#include "ggml-amx.h"

#include "child.h"
#include "formats.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>

/* ---- pthread_create, in front of the real one: counts, and fails when it is told to */

static long threads_started, threads_allowed = 1L << 30;

int pthread_create(pthread_t * thread, const pthread_attr_t * attributes, void * (*start)(void *), void * argument) {
    static int (*real)(pthread_t *, const pthread_attr_t *, void * (*) (void *), void *);
    if (!real) {
        void * found = dlsym(RTLD_NEXT, "pthread_create");
        memcpy(&real, &found, sizeof real);
    }
    if (__atomic_fetch_add(&threads_started, 1, __ATOMIC_RELAXED) >= threads_allowed) {
        __atomic_fetch_sub(&threads_started, 1, __ATOMIC_RELAXED);
        return EAGAIN;
    }
    return real(thread, attributes, start, argument);
}

/* ---- one product */

enum { K = 1024, N = 2048, M = 32 }; /* 64 M multiplications: work for 256 threads */

struct product {
    const struct format * f;
    uint8_t * plain, * packed, * back;
    size_t plain_size, packed_size;
    float * x, * y, * want;
    struct ggml_amx_mul_mat_args args;
};

static struct product product_new(int64_t k, int64_t n, int64_t m) {
    struct product p = HARNESS_ZERO;
    struct rng r = {30};
    for (int f = 0; f < N_FORMATS; f++) {
        p.f = FORMATS[f].type == GGML_AMX_TYPE_Q8_0 ? &FORMATS[f] : p.f;
    }
    p.plain_size = format_bytes(p.f, k, n), p.packed_size = ggml_amx_packed_size(p.f->type, k, n);
    p.plain = (uint8_t *) malloc(p.plain_size), p.back = (uint8_t *) malloc(p.plain_size);
    p.packed = (uint8_t *) malloc(p.packed_size);
    p.x = (float *) malloc((size_t) (k * m) * sizeof(float));
    p.y = (float *) malloc((size_t) (n * m) * sizeof(float)), p.want = (float *) malloc((size_t) (n * m) * sizeof(float));
    format_random(p.f, &r, p.plain, (size_t) (k / p.f->block * n));
    for (int64_t i = 0; i < k * m; i++) {
        p.x[i] = rng_normal(&r);
    }
    p.args.struct_size = sizeof p.args;
    p.args.type = p.f->type, p.args.n_threads = 1;
    p.args.k = k, p.args.n = n, p.args.m = m;
    p.args.packed = p.packed, p.args.packed_size = p.packed_size;
    p.args.src1 = p.x, p.args.src1_stride = (size_t) k * sizeof(float);
    p.args.dst = p.y, p.args.dst_stride = (size_t) n * sizeof(float);
    return p;
}

static void product_free(struct product * p) {
    free(p->plain);
    free(p->back);
    free(p->packed);
    free(p->x);
    free(p->y);
    free(p->want);
}

static size_t product_bytes(const struct product * p) {
    return (size_t) (p->args.n * p->args.m) * sizeof(float);
}

/* Packs and multiplies with one thread: what all others are compared with. */
static struct product product_with_result(int64_t k, int64_t n, int64_t m) {
    struct product p = product_new(k, n, m);
    CHECK(ggml_amx_pack(p.args.type, k, n, p.plain, p.plain_size, p.packed, p.packed_size) == GGML_AMX_OK, "pack: %s", ggml_amx_last_error());
    CHECK(ggml_amx_mul_mat(&p.args) == GGML_AMX_OK, "mul_mat: %s", ggml_amx_last_error());
    memcpy(p.want, p.y, product_bytes(&p));
    return p;
}

enum { FINE = 0, PACK_FAILED = 3, OTHER_BYTES, PRODUCT_FAILED, OTHER_BITS, NO_PACKING_THREADS, NO_LIMIT };

static int multiply(struct product * p, int32_t threads) {
    p->args.n_threads = threads;
    memset(p->y, 0xff, product_bytes(p));
    if (ggml_amx_mul_mat(&p->args) != GGML_AMX_OK) {
        fprintf(stderr, "mul_mat: %s\n", ggml_amx_last_error());
        return PRODUCT_FAILED;
    }
    return memcmp(p->y, p->want, product_bytes(p)) == 0 ? FINE : OTHER_BITS;
}

static void check_child(struct child * c, const char * what) {
    CHECK(c->signal != SIGALRM, "%s: it hangs", what);
    CHECK(c->signal == 0 && c->code == FINE, "%s: signal %d, exit code %d (3 pack, 4 other bytes, 5 product, 6 other bits, 7 no packing threads)\n%s",
          what, c->signal, c->code, c->err);
    child_free(c);
}

/* ---- threads that cannot be started */

struct refused {
    struct product * p;
    long allowed;
};

static int multiply_where_threads_are_refused(void * context) {
    const struct refused * r = (const struct refused *) context;
    threads_started = 0, threads_allowed = r->allowed;
    return multiply(r->p, 200);
}

static void given_threads_that_cannot_be_started_then_the_product_is_computed_by_the_others(void) {
    static const long allowed[] = {0, 1, 2, 7, 50};
    struct product p = product_with_result(K, N, M);
    for (int i = 0; i < 5; i++) {
        struct refused r = {&p, allowed[i]};
        struct child c = child_fork(multiply_where_threads_are_refused, &r);
        char what[64];
        snprintf(what, sizeof what, "%ld threads can be started", allowed[i]);
        check_child(&c, what);
    }
    product_free(&p);
}

#ifndef __SANITIZE_ADDRESS__ /* which needs all of the address space */
/* The kernel refuses threads: there is address space for some stacks and then for nothing more. Wherever it ends,
 * nothing may need memory that is not there. */
struct limited {
    struct product * p;
    rlim_t bytes;
};

static int multiply_in_little_address_space(void * context) {
    const struct limited * l = (const struct limited *) context;
    FILE * file = fopen("/proc/self/statm", "r");
    unsigned long pages = 0;
    if (!file || fscanf(file, "%lu", &pages) != 1) {
        return NO_LIMIT;
    }
    fclose(file);
    struct rlimit limit;
    limit.rlim_cur = limit.rlim_max = pages * (rlim_t) sysconf(_SC_PAGESIZE) + l->bytes;
    return setrlimit(RLIMIT_AS, &limit) != 0 ? NO_LIMIT : multiply(l->p, 200);
}

static void given_address_space_for_few_stacks_then_the_product_is_computed_by_few_threads(void) {
    struct product p = product_with_result(K, N, M);
    for (int i = 0; i < 100; i++) {
        struct limited l = {&p, ((rlim_t) 120 << 20) - (rlim_t) i * 1180 * 1024};
        struct child c = child_fork(multiply_in_little_address_space, &l);
        char what[64];
        snprintf(what, sizeof what, "200 threads in %llu KiB", (unsigned long long) l.bytes >> 10);
        check_child(&c, what);
    }
    product_free(&p);
}
#endif

/* ---- threads that are not needed */

static void given_a_small_product_then_no_threads_are_started_for_it(void) {
    struct product p = product_with_result(256, 64, 4);
    threads_started = 0;
    CHECK(multiply(&p, 200) == FINE, "other bits");
    CHECK(threads_started == 0, "%ld threads were started for 65,536 multiplications", threads_started);
    product_free(&p);
}

static void given_work_for_many_threads_then_as_many_are_used_as_were_asked_for(void) {
    struct product p = product_with_result(K, N, M);
    threads_started = 0;
    CHECK(multiply(&p, 8) == FINE, "other bits");
    CHECK(threads_started == 7, "%ld threads were started beside the caller's, not 7", threads_started);
    product_free(&p);
}

/* ---- fork */

/* Threads of this process that pack. */
static int packing_threads(void) {
    DIR * tasks = opendir("/proc/self/task");
    int found = 0;
    for (struct dirent * task; tasks && (task = readdir(tasks)) != NULL;) {
        char path[300], name[32] = "";
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", task->d_name);
        FILE * file = fopen(path, "r");
        found += file && fgets(name, sizeof name, file) && strncmp(name, "ggml-amx-pack", 13) == 0;
        if (file) {
            fclose(file);
        }
    }
    if (tasks) {
        closedir(tasks);
    }
    return found;
}

static int pack_and_multiply(void * context) {
    struct product * p = (struct product *) context;
    memset(p->packed, 0, p->packed_size);
    memset(p->back, 0, p->plain_size);
    if (ggml_amx_pack(p->args.type, p->args.k, p->args.n, p->plain, p->plain_size, p->packed, p->packed_size) != GGML_AMX_OK ||
        ggml_amx_unpack(p->args.type, p->args.k, p->args.n, p->packed, p->packed_size, p->back, p->plain_size) != GGML_AMX_OK) {
        fprintf(stderr, "pack or unpack: %s\n", ggml_amx_last_error());
        return PACK_FAILED;
    }
    if (memcmp(p->plain, p->back, p->plain_size) != 0) {
        return OTHER_BYTES;
    }
    /* As many as a parent has: a child does not inherit them. A thread gets its name when it first runs. */
    for (int tries = 0; packing_threads() != 3; tries++) {
        if (tries == 10000) {
            return NO_PACKING_THREADS;
        }
        usleep(1000);
    }
    return multiply(p, 4);
}

static int pack_and_multiply_in_a_child(void * context) {
    struct child c = child_fork(pack_and_multiply, context);
    fputs(c.err, stderr);
    return c.signal ? 100 + c.signal : c.code;
}

static void given_a_fork_then_the_child_packs_and_multiplies_with_threads_of_its_own(void) {
    struct product p = product_with_result(K, N, M);
    CHECK(pack_and_multiply(&p) == FINE, "the parent's own product");
    struct child c = child_fork(pack_and_multiply, &p);
    check_child(&c, "a forked child");
    c = child_fork(pack_and_multiply_in_a_child, &p);
    check_child(&c, "a child of a child");
    CHECK(pack_and_multiply(&p) == FINE, "the parent's own product afterwards");
    product_free(&p);
}

/* ---- children with the process id of their parent */

enum { REFUSED = 77 };

/* Called by process 1 of a PID namespace, and by its child, which is process 1 of another. */
static int pack_as_process_1_and_so_does_a_child(void * context) {
    if (getpid() != 1) {
        return 1;
    }
    const int code = pack_and_multiply(context);
    if (code != FINE || unshare(CLONE_NEWPID) != 0) {
        return code != FINE ? code : REFUSED;
    }
    const pid_t child = fork();
    if (child == 0) {
        alarm(CHILD_SECONDS / 2);
        _exit(getpid() == 1 ? pack_and_multiply(context) : 1);
    }
    int status = 0;
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : 2;
}

static int begin_namespace(void * context) {
    if (unshare(CLONE_NEWPID) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWPID) != 0) {
        return REFUSED;
    }
    struct child c = child_fork(pack_as_process_1_and_so_does_a_child, context);
    fputs(c.out, stdout);
    fputs(c.err, stderr);
    const int code = c.signal ? 3 : c.code;
    child_free(&c);
    return code;
}

static void given_a_child_with_the_id_of_its_parent_then_it_packs_and_multiplies_with_threads_of_its_own(void) {
    struct product p = product_with_result(K, N, M);
    struct child c = child_fork(begin_namespace, &p);
    if (c.signal == 0 && c.code == REFUSED) {
        printf("SKIPPED children with the process id of their parent: PID namespaces are refused here\n");
    } else {
        check_child(&c, "a child that is process 1 as its parent");
    }
    product_free(&p);
}

/* ---- fork while other threads are busy */

#ifndef __SANITIZE_ADDRESS__
static bool busy;

static void * keep_multiplying(void * context) {
    struct product p = *(const struct product *) context;
    p.y = (float *) malloc(product_bytes(&p));
    p.args.dst = p.y;
    while (__atomic_load_n(&busy, __ATOMIC_RELAXED)) {
        CHECK(multiply(&p, 3) == FINE, "other bits beside a fork");
    }
    free(p.y);
    return NULL;
}

static void given_a_fork_beside_running_products_then_the_child_packs_and_multiplies(void) {
    struct product p = product_with_result(K, N, M);
    pthread_t other;
    busy = true;
    pthread_create(&other, NULL, keep_multiplying, &p);
    for (int i = 0; i < 5; i++) {
        struct child c = child_fork(pack_and_multiply, &p);
        check_child(&c, "a child of a busy parent");
    }
    __atomic_store_n(&busy, false, __ATOMIC_RELAXED);
    pthread_join(other, NULL);
    product_free(&p);
}
#endif

int main(void) {
    setenv("GGML_AMX_THREADS", "3", 1);
    RUN(given_threads_that_cannot_be_started_then_the_product_is_computed_by_the_others);
#ifndef __SANITIZE_ADDRESS__
    RUN(given_address_space_for_few_stacks_then_the_product_is_computed_by_few_threads);
#endif
    RUN(given_a_small_product_then_no_threads_are_started_for_it);
    RUN(given_work_for_many_threads_then_as_many_are_used_as_were_asked_for);
    RUN(given_a_fork_then_the_child_packs_and_multiplies_with_threads_of_its_own);
    RUN(given_a_child_with_the_id_of_its_parent_then_it_packs_and_multiplies_with_threads_of_its_own);
#ifndef __SANITIZE_ADDRESS__ /* whose list of threads a child inherits locked, if a thread was about to start */
    RUN(given_a_fork_beside_running_products_then_the_child_packs_and_multiplies);
#endif
    return harness_report("api_threads");
}

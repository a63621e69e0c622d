// A kernel of a later ik_llama.cpp, with one unknown argument between the known ones.

#include <stdbool.h>

#define BEFORE \
    long nx, long ny, long ne00, long ne02, long ne03, long ne12, long ne13, long nb02, long nb03, long nb12, long nb13, \
        long nb2, long nb3
#define BEHIND \
    int type_a, const void * a, long stride_a, int type_b, const void * b, long stride_b, float * c, long stride_c, int ith, \
        int nth

// The known kernel, and the function that its callers call now.
bool known_kernel(BEFORE, BEHIND);
__attribute__((visibility("hidden"))) bool calls_kernel(BEFORE, BEHIND);

bool iqk_mul_mat_4d(BEFORE, long nb00, BEHIND);

bool iqk_mul_mat_4d(BEFORE, long nb00, BEHIND) {
    return nb00 == 4711 && known_kernel(nx, ny, ne00, ne02, ne03, ne12, ne13, nb02, nb03, nb12, nb13, nb2, nb3, type_a, a,
                                        stride_a, type_b, b, stride_b, c, stride_c, ith, nth);
}

bool calls_kernel(BEFORE, BEHIND) {
    return iqk_mul_mat_4d(nx, ny, ne00, ne02, ne03, ne12, ne13, nb02, nb03, nb12, nb13, nb2, nb3, 4711, type_a, a, stride_a,
                          type_b, b, stride_b, c, stride_c, ith, nth);
}

#include "iqk_mul_mat.h"

bool iqk_mul_mat_4d(long, long, long, long, long, long, long, long, long, long, long, long, long, int, data, long, int, data,
                    long, float *, long, int, int MORE) {
    return false;
}

#include "iqk_mul_mat.h"

bool iqk_mul_mat_4d() {
    return false;
}

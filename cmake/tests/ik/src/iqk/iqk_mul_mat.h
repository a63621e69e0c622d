// The kernels whose calls are taken; OTHER_KERNEL: of a version that is not known.
#pragma once
typedef const void * data;
typedef void (*barrier_t)(void *);
#ifdef OTHER_KERNEL
#    define MORE , int transposed
#else
#    define MORE
#endif
#ifdef __cplusplus
extern "C" {
#endif
bool iqk_mul_mat_4d(long, long, long, long, long, long, long, long, long, long, long, long, long, int, data, long, int, data,
                    long, float *, long, int, int MORE);
bool iqk_mul_mat_moe(long, long, long, int, int, data, long, int, data, long, float *, long, long, data, int, int);
bool iqk_moe_fused_up_gate(long, long, long, int, int, int, data, data, long, int, data, long, const char *, const char *,
                           float *, long, long, data, float, int, int);
bool iqk_flash_attn_noalibi(int, int, float, int, int, long, long, int, int, long, long, int, int, long, long, int, int, long,
                            int, int, int, int, int, int, int, int, int, int, data, data, data, data, data, float, float,
                            float *, void *, barrier_t, void *, int, int, int);
#ifdef __cplusplus
}
#endif

/* A later version of ik_llama.cpp's flash attention, with one more argument at the end and perhaps another return type.
 * A call that this library leaves to the host must arrive as it was made. The host's function has the name that `ld
 * --wrap` gives it; it is called by the name that callers get. */
#include "harness.h"

#define ARGUMENTS \
    int type_q, int type_mask, float max_bias, int neq3, int neq2, long nbq3, long nbq2, int nek3, int nek2, long nbk3, long nbk2, int nev3, int nev2, \
        long nbv3, long nbv2, int ne2, int ne1, long nb1, int type_k, int type_v, int dk, int dv, int nq, int nk, int stride_q, int stride_k, \
        int stride_v, int stride_m, const void *q, const void *k, const void *v, const void *mask, const void *sinks, float scale, float softcap, \
        float *qkv, void *work, void *barrier, void *barrier_data, int ith, int nth, int n_swa, const void *indexer

long __real_iqk_flash_attn_noalibi(ARGUMENTS);
long __wrap_iqk_flash_attn_noalibi(ARGUMENTS);

static int calls;
static bool all_arrived;
static float result[8];
static char places[9]; /* different addresses */

long __real_iqk_flash_attn_noalibi(ARGUMENTS) {
    calls++;
    all_arrived = type_q == 0 && type_mask == 1 && max_bias == 0.25f && neq3 == 3 && neq2 == 4 && nbq3 == 5 && nbq2 == 6 && nek3 == 7 && nek2 == 8 &&
                  nbk3 == 9 && nbk2 == 10 && nev3 == 11 && nev2 == 12 && nbv3 == 13 && nbv2 == 14 && ne2 == 15 && ne1 == 16 && nb1 == 17 && type_k == 18 &&
                  type_v == 19 && dk == 20 && dv == 21 && (nq == 1 || nq == 64) && nk == 23 && stride_q == 24 && stride_k == 25 && stride_v == 26 &&
                  stride_m == 27 && q == &places[0] && k == &places[1] && v == &places[2] && mask == &places[3] && sinks == &places[4] && scale == 0.5f &&
                  softcap == 0.75f && qkv == result && work == &places[5] && barrier == &places[6] && barrier_data == &places[7] && ith == 0 && nth == 3 &&
                  n_swa == 41 && indexer == &places[8];
    return 0x123456789abcL;
}

static void given_a_later_version_of_flash_attention_then_calls_arrive_as_they_were_made(void) {
    static const int queries[] = {1, 64};
    for (int i = 0; i < 2; i++) {
        calls = 0, all_arrived = false;
        const long got =
            __wrap_iqk_flash_attn_noalibi(0, 1, 0.25f, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, queries[i], 23, 24, 25, 26, 27,
                                          &places[0], &places[1], &places[2], &places[3], &places[4], 0.5f, 0.75f, result, &places[5], &places[6],
                                          &places[7], 0, 3, 41, &places[8]);
        CHECK(calls == 1, "%d queries: the host's function was called %d times", queries[i], calls);
        CHECK(all_arrived, "%d queries: other arguments arrived", queries[i]);
        CHECK(got == 0x123456789abcL, "%d queries: %lx was returned", queries[i], (unsigned long) got);
    }
}

int main(void) {
    RUN(given_a_later_version_of_flash_attention_then_calls_arrive_as_they_were_made);
    return harness_report("fake_ik");
}

/* What the kernels share: numbers in bf16 and fp32, functions of them, and how threads share rows.
 *
 * Everything is computed in fp32; bf16 is only how products take and give their numbers. Rows are divided among
 * threads in order, and what threads have summed is added in their order: the same number of threads gives the same
 * bits. The functions are written so that a compiler makes vectors of them, whatever the processor has.
 */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;
typedef int64_t size;

#define LANES 16 /* of fp32 in the widest vector there is */

static inline float up(bf16 h) {
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* Rounds to nearest, ties to even; NaN stays NaN. */
static inline bf16 down(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (bf16)rounded;
}

/* e^x for x <= 0, to 2 units in the last place; 0 below -87, where fp32 has no normal numbers left; NaN stays NaN. */
static inline float exponential(float x) {
    float shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the sum's last bits are the nearest integer */
    float n = shifted - 12582912.0f;
    float r = x - n * 0.693145752f;
    r -= n * 1.42860677e-6f;
    float p = 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    uint32_t power;
    memcpy(&power, &shifted, 4);
    power = (power << 23) + (127u << 23);
    float scale;
    memcpy(&scale, &power, 4);
    return x < -87.0f ? 0.0f : p * scale;
}

/* The natural logarithm of a normal number, to 2 units in the last place; -infinity of 0. */
static inline float logarithm(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    int32_t exponent = (int32_t)(bits - 0x3f3504f3u) >> 23; /* so that the rest is in [sqrt(1/2), sqrt(2)) */
    bits -= (uint32_t)exponent << 23;
    float r, e = (float)exponent;
    memcpy(&r, &bits, 4);
    r -= 1.0f;
    float p = 7.0376836292e-2f; /* Cephes, logf */
    p = p * r - 1.1514610310e-1f;
    p = p * r + 1.1676998740e-1f;
    p = p * r - 1.2420140846e-1f;
    p = p * r + 1.4249322787e-1f;
    p = p * r - 1.6668057665e-1f;
    p = p * r + 2.0000714765e-1f;
    p = p * r - 2.4999993993e-1f;
    p = p * r + 3.3333331174e-1f;
    float square = r * r;
    float result = e * -2.12194440e-4f + p * r * square - 0.5f * square + r + e * 0.693359375f;
    return x == 0.0f ? -INFINITY : result;
}

/* The normal distribution's cumulative function; 1 - cumulative for x < 0 keeps the relative error small. `density`
 * is e^(-x^2/2), which both it and the derivative need. Abramowitz and Stegun 7.1.26: within 7.5e-8. */
static inline float cumulative(float x, float density) {
    float t = 1.0f / (1.0f + 0.3275911f * 0.707106781f * fabsf(x));
    float p = 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    float tail = 0.5f * p * t * density;
    return x < 0 ? tail : 1.0f - tail;
}

/* Zeroed memory. */
static void *room(size count, size bytes) {
    void *found = calloc(count ? count : 1, bytes);
    if (!found) abort();
    return found;
}

/* This thread's rows. */
static void share(size rows, size *from, size *to) {
    size threads = omp_get_num_threads(), me = omp_get_thread_num();
    *from = rows * me / threads;
    *to = rows * (me + 1) / threads;
}

/* Adds up the threads' sums, `of` the first of them in memory; each of `width` numbers every `stride`. */
static void collect(float *to, const float *of, int threads, size width, size stride) {
    if (!to) return;
    memcpy(to, of, width * sizeof(float));
    for (int t = 1; t < threads; t++)
        for (size j = 0; j < width; j++) to[j] += of[t * stride + j];
}

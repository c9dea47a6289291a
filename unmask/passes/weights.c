/* What a step does to weights and their gradients, all tensors in one pass over memory each.
 *
 * Arguments are what `weights.py` says they are: lists of `count` tensors, contiguous, of `sizes[i]` numbers. Gradients
 * are in fp32, or in bf16 where `small[i]` says so.
 */

#include "numbers.h"

/* Numbers are divided among threads, tensors are not: this thread's part of all of them, and of each. */
static size all(size count, const size *sizes) {
    size total = 0;
    for (size i = 0; i < count; i++) total += sizes[i];
    return total;
}

static int part(size begin, size end, size at, size here, size *from, size *to) {
    *from = begin > at ? begin - at : 0;
    *to = end - at < here ? end - at : here;
    return *from < *to;
}

#define MOMENTS(gradient)                                                                                              \
    for (size j = from; j < to; j++) {                                                                                 \
        float x = (gradient) * scale;                                                                                  \
        float mean = m[j] + (1.0f - beta1) * (x - m[j]);                                                               \
        float square = beta2 * v[j] + (1.0f - beta2) * x * x;                                                          \
        m[j] = mean;                                                                                                   \
        v[j] = square;                                                                                                 \
        w[j] = w[j] * keep - step * mean / (sqrtf(square) * unbias + eps);                                             \
    }

/* Loshchilov & Hutter 2019, algorithm 2. `scale` multiplies gradients, `step` is the rate over 1 - beta1^t, `unbias` one
 * over the root of 1 - beta2^t, `keep` 1 less rate and decay. Where there is a `half`, it gets the new weight in bf16. */
void adamw(int threads, size count, const size *sizes, float **weights, void **gradients, const uint8_t *small,
           float **means, float **squares, bf16 **halves, const float *scales, const float *steps, const float *unbiases,
           float keep, float beta1, float beta2, float eps) {
#pragma omp parallel num_threads(threads)
    {
        size begin, end, first, last, at = 0;
        share(all(count, sizes), &begin, &end);
        for (size i = 0; i < count; at += sizes[i++]) {
            if (!part(begin, end, at, sizes[i], &first, &last)) continue;
            float *w = weights[i], *m = means[i], *v = squares[i], scale = scales[i], step = steps[i],
                  unbias = unbiases[i];
            bf16 *h = halves[i];
            for (size from = first; from < last; from += 1024) { /* that `half` finds weights in the cache */
                size to = from + 1024 < last ? from + 1024 : last;
                if (small[i]) {
                    const bf16 *g = gradients[i];
#pragma omp simd
                    MOMENTS(up(g[j]))
                } else {
                    const float *g = gradients[i];
#pragma omp simd
                    MOMENTS(g[j])
                }
                if (h) {
#pragma omp simd
                    for (size j = from; j < to; j++) h[j] = down(w[j]);
                }
            }
        }
    }
}

/* The sum of squares of each gradient. */
void squares_of(int threads, size count, const size *sizes, void **gradients, const uint8_t *small, double *found) {
    double *parts = room(threads * count, sizeof(double));
#pragma omp parallel num_threads(threads)
    {
        double *mine = parts + omp_get_thread_num() * count;
        size begin, end, first, last, at = 0;
        share(all(count, sizes), &begin, &end);
        for (size i = 0; i < count; at += sizes[i++]) {
            if (!part(begin, end, at, sizes[i], &first, &last)) continue;
            for (size from = first; from < last; from += 4096) { /* fp32 adds up so many without losing digits */
                size to = from + 4096 < last ? from + 4096 : last;
                float sum = 0;
                if (small[i]) {
                    const bf16 *g = gradients[i];
#pragma omp simd reduction(+ : sum)
                    for (size j = from; j < to; j++) sum += up(g[j]) * up(g[j]);
                } else {
                    const float *g = gradients[i];
#pragma omp simd reduction(+ : sum)
                    for (size j = from; j < to; j++) sum += g[j] * g[j];
                }
                mine[i] += sum;
            }
        }
    }
    for (size i = 0; i < count; i++) {
        found[i] = 0;
        for (int t = 0; t < threads; t++) found[i] += parts[t * count + i];
    }
    free(parts);
}

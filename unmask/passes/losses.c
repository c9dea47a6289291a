/* What losses read of wide rows, each in one pass over memory: a discrete VAE's codes, MAE's pixels, iBOT's targets.
 *
 * Arguments are what `losses.py` says they are: contiguous, of the sizes given.
 */

#include "numbers.h"

/* The place of the first of the largest, whose value is `top`; of a row of NaN the last. */
static size first(const float *v, size width, float top) {
    size at = 0;
    while (at < width - 1 && !(v[at] == top)) at++;
    return at;
}

/* What a discrete VAE needs of each row of logits (`methods/relaxation.py`): its argmax, log sum exp, the divergence
 * of its softmax q from the uniform distribution, the sum of all q, and softmax((logits + gumbel) / temperature).
 * `noise` is uniform on [0, 1), or the Gumbel noise itself. */
void sample_forward(int threads, size rows, size width, const bf16 *logits, const float *noise, int uniform,
                    float temperature, bf16 *soft, float *lse, float *kl, int64_t *ids, float *total) {
    float *sums = room(threads * width, sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        float *sum = sums + omp_get_thread_num() * width, *v = room(2 * width, sizeof(float)), *q = v + width;
        size from, to;
        share(rows, &from, &to);
        for (size i = from; i < to; i++) {
            const bf16 *x = logits + i * width;
            const float *u = noise + i * width;
            float peak = -INFINITY, all = 0, mean = 0, top = -INFINITY;
#pragma omp simd reduction(max : peak)
            for (size j = 0; j < width; j++) {
                v[j] = up(x[j]);
                peak = v[j] > peak ? v[j] : peak;
            }
            ids[i] = first(v, width, peak);
#pragma omp simd reduction(+ : all, mean)
            for (size j = 0; j < width; j++) {
                v[j] -= peak;
                q[j] = exponential(v[j]);
                all += q[j];
                mean += q[j] * v[j];
            }
            lse[i] = peak + logf(all);
            kl[i] = mean / all - logf(all) + logf(width);
            all = 1.0f / all;
            float by = 1.0f / temperature;
            if (uniform) {
#pragma omp simd reduction(max : top)
                for (size j = 0; j < width; j++) {
                    sum[j] += q[j] * all;
                    v[j] = (v[j] - logarithm(-logarithm(u[j]))) * by;
                    top = v[j] > top ? v[j] : top;
                }
            } else {
#pragma omp simd reduction(max : top)
                for (size j = 0; j < width; j++) {
                    sum[j] += q[j] * all;
                    v[j] = (v[j] + u[j]) * by;
                    top = v[j] > top ? v[j] : top;
                }
            }
            all = 0;
#pragma omp simd reduction(+ : all)
            for (size j = 0; j < width; j++) {
                v[j] = exponential(v[j] - top);
                all += v[j];
            }
            all = 1.0f / all;
            bf16 *s = soft + i * width;
#pragma omp simd
            for (size j = 0; j < width; j++) s[j] = down(v[j] * all);
        }
        free(v);
    }
    collect(total, sums, threads, width, width);
    free(sums);
}

/* The gradient of logits from those of `soft` and of `kl`. */
void sample_backward(int threads, size rows, size width, const bf16 *of_soft, const float *of_kl, const bf16 *logits,
                     const bf16 *soft, const float *lse, const float *kl, float temperature, bf16 *of_logits) {
#pragma omp parallel num_threads(threads)
    {
        size from, to;
        share(rows, &from, &to);
        for (size i = from; i < to; i++) {
            const bf16 *x = logits + i * width, *g = of_soft + i * width, *y = soft + i * width;
            bf16 *out = of_logits + i * width;
            float all = 0, along = 0, negative_entropy = kl[i] - logf(width), weight = of_kl[i], less = lse[i];
#pragma omp simd reduction(+ : all, along)
            for (size j = 0; j < width; j++) {
                all += up(y[j]);
                along += up(g[j]) * up(y[j]);
            }
            along /= all; /* rounded codes do not quite sum to 1, which a gradient would notice */
            all = 1.0f / (all * temperature);
#pragma omp simd
            for (size j = 0; j < width; j++) {
                float log_q = up(x[j]) - less;
                float d = exponential(log_q) * (log_q - negative_entropy) * weight;
                out[j] = down(d + up(y[j]) * (up(g[j]) - along) * all);
            }
        }
    }
}

/* The sum of squared errors of MAE's pixels (`methods/mae.py`) for the patches `hidden`, flat indices of B*N, and
 * `step` times each error. In a patch the order is row, column, channel; `normalized` patch by patch or not. */
void pixel_error(int threads, size count, const float *image, const int64_t *hidden, size channels, size height,
                 size width, size rows, size columns, int normalized, const bf16 *pixels, float step, bf16 *errors,
                 double *total) {
    size across = width / columns, patches = height / rows * across, area = rows * columns * channels;
    double *sums = room(threads, sizeof(double));
#pragma omp parallel num_threads(threads)
    {
        float *v = room(area, sizeof(float));
        size from, to;
        share(count, &from, &to);
        for (size i = from; i < to; i++) {
            size y = hidden[i] % patches / across * rows, x = hidden[i] % across * columns;
            for (size c = 0; c < channels; c++)
                for (size row = 0; row < rows; row++) {
                    const float *line = image + ((hidden[i] / patches * channels + c) * height + y + row) * width + x;
                    for (size column = 0; column < columns; column++)
                        v[(row * columns + column) * channels + c] = line[column];
                }
            float mean = 0, scale = 0, error = 0;
            if (normalized) {
#pragma omp simd reduction(+ : mean)
                for (size j = 0; j < area; j++) mean += v[j];
                mean /= area;
#pragma omp simd reduction(+ : scale)
                for (size j = 0; j < area; j++) scale += (v[j] - mean) * (v[j] - mean);
            }
            scale = normalized ? 1.0f / sqrtf(scale / (area - 1) + 1e-6f) : 1.0f;
            const bf16 *guess = pixels + i * area;
            bf16 *e = errors + i * area;
#pragma omp simd reduction(+ : error)
            for (size j = 0; j < area; j++) {
                float d = up(guess[j]) - (v[j] - mean) * scale;
                error += d * d;
                e[j] = down(d * step);
            }
            sums[omp_get_thread_num()] += error;
        }
        free(v);
    }
    *total = 0;
    for (int t = 0; t < threads; t++) *total += sums[t];
    free(sums);
}

/* iBOT's patch loss (`methods/ibot.py`): `cross` = -sum of weight * P_t log P_s over rows, where P_t is the softmax of
 * (teacher - center) * sharpness and P_s of student * warmth; its gradient by the student's logits; and, of every
 * `every`-th row, what `observed` in `methods/distill.py` tells: how often each prototype is the largest, the sum of
 * P_t, the sum of its entropies, and how often the student's largest is the same. */
void distill(int threads, size rows, size width, const bf16 *teacher, const float *center, float sharpness,
             const bf16 *student, float warmth, const float *weight, size every, bf16 *of_student, double *cross,
             float *taken, float *probability, double *entropies, double *agreed) {
    float *sums = room(threads * 2 * width, sizeof(float));
    double *totals = room(threads * 3, sizeof(double));
#pragma omp parallel num_threads(threads)
    {
        float *seen = sums + omp_get_thread_num() * 2 * width, *mass = seen + width;
        double *total = totals + omp_get_thread_num() * 3;
        float *p = room(3 * width, sizeof(float)), *q = p + width, *z = q + width;
        size from, to;
        share(rows, &from, &to);
        for (size i = from; i < to; i++) {
            const bf16 *t = teacher + i * width, *s = student + i * width;
            bf16 *out = of_student + i * width;
            float top = -INFINITY, peak = -INFINITY, all = 0, whole = 0, own = 0, across = 0, w = weight[i];
#pragma omp simd reduction(max : top, peak)
            for (size j = 0; j < width; j++) {
                z[j] = (up(t[j]) - center[j]) * sharpness;
                q[j] = up(s[j]) * warmth;
                top = z[j] > top ? z[j] : top;
                peak = q[j] > peak ? q[j] : peak;
            }
            int looked_at = i % every == 0;
            size best = looked_at ? first(z, width, top) : 0;
            if (looked_at && best == first(q, width, peak)) total[2] += 1;
#pragma omp simd reduction(+ : all, whole, own, across)
            for (size j = 0; j < width; j++) {
                float a = z[j] - top, b = q[j] - peak;
                p[j] = exponential(a);
                q[j] = exponential(b);
                all += p[j];
                whole += q[j];
                own += p[j] * a;
                across += p[j] * b;
            }
            total[0] += w * (logf(whole) - across / all);
            all = 1.0f / all;
            whole = 1.0f / whole;
            if (looked_at) {
                total[1] += -logf(all) - own * all;
                seen[best] += 1;
#pragma omp simd
                for (size j = 0; j < width; j++) mass[j] += p[j] * all;
            }
#pragma omp simd
            for (size j = 0; j < width; j++) out[j] = down(w * warmth * (q[j] * whole - p[j] * all));
        }
        free(p);
    }
    collect(taken, sums, threads, width, 2 * width);
    collect(probability, sums + width, threads, width, 2 * width);
    *cross = *entropies = *agreed = 0;
    for (int t = 0; t < threads; t++) {
        *cross += totals[3 * t];
        *entropies += totals[3 * t + 1];
        *agreed += totals[3 * t + 2];
    }
    free(sums);
    free(totals);
}

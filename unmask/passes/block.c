/* What lies between the matrix products of a Transformer block, each in one pass over memory.
 *
 * PyTorch's own kernels go over the activations once for the bias, once for the GELU, once for the cast to bf16 and
 * so on; these do at once what is done to the same numbers. Arguments are what `block.py` says they are: contiguous, of
 * the sizes given. NULL leaves a part out; `of_x` is the gradient of x.
 */

#include "numbers.h"

/* A sample's row among those of the samples that are `kept`: `places` says where each sample is there, -1 nowhere;
 * NULL keeps all. */
static size place(const int64_t *places, size tokens, size row) {
    if (!places) return row;
    size at = places[row / tokens];
    return at < 0 ? -1 : at * tokens + row % tokens;
}

/* total = x + (branch + bias) * gamma * chance[row];  normed = (total - mean) / sqrt(variance + eps) * weight + shift.
 * Without a branch total is x and is not written; without `normed` nothing is normalized. Of samples whose branch was
 * dropped (`branch_at`) x is the total; of those whose next one is (`normed_at`) nothing is normalized. */
void norm_forward(int threads, size rows, size width, size tokens, const int64_t *branch_at, const int64_t *normed_at,
                  const float *x, const bf16 *branch, const float *bias, const float *gamma, const float *chance,
                  float *total, const float *weight, const float *shift, float eps, bf16 *normed, float *mean,
                  float *rstd) {
#pragma omp parallel num_threads(threads)
    {
        size from, to;
        share(rows, &from, &to);
        for (size i = from; i < to; i++) {
            const float *v = x + i * width;
            if (branch) {
                float *sum = total + i * width;
                size at = place(branch_at, tokens, i);
                const bf16 *y = branch + at * width;
                float c = chance && at >= 0 ? chance[at] : 1.0f;
                if (at < 0) {
                    memcpy(sum, v, width * sizeof(float));
                } else if (gamma) {
#pragma omp simd
                    for (size j = 0; j < width; j++) sum[j] = v[j] + (up(y[j]) + bias[j]) * (gamma[j] * c);
                } else {
#pragma omp simd
                    for (size j = 0; j < width; j++) sum[j] = v[j] + (up(y[j]) + bias[j]) * c;
                }
                v = sum;
            }
            size to_normed = normed ? place(normed_at, tokens, i) : -1;
            if (to_normed < 0) continue;
            float m = 0, s = 0;
#pragma omp simd reduction(+ : m)
            for (size j = 0; j < width; j++) m += v[j];
            m /= width;
#pragma omp simd reduction(+ : s)
            for (size j = 0; j < width; j++) s += (v[j] - m) * (v[j] - m);
            s = 1.0f / sqrtf(s / width + eps);
            bf16 *h = normed + to_normed * width;
#pragma omp simd
            for (size j = 0; j < width; j++) h[j] = down((v[j] - m) * s * weight[j] + shift[j]);
            mean[i] = m;
            rstd[i] = s;
        }
    }
}

/* The gradients of all that `norm_forward` read, from those of `total` (NULL: none) and of `normed` (NULL: none).
 * `of_x` may be `of_total`. */
void norm_backward(int threads, size rows, size width, size tokens, const int64_t *branch_at,
                   const int64_t *normed_at, const float *of_total, const bf16 *of_normed, const float *total,
                   const float *mean, const float *rstd, const float *weight, const bf16 *branch, const float *bias,
                   const float *gamma, const float *chance, float *of_x, bf16 *of_branch, float *of_bias,
                   float *of_gamma, float *of_weight, float *of_shift) {
    size stride = 4 * width;
    float *sums = room(threads * stride, sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        float *sum = sums + omp_get_thread_num() * stride, *sum_w = sum, *sum_s = sum + width, *sum_b = sum + 2 * width,
              *sum_g = sum + 3 * width;
        size from, to;
        share(rows, &from, &to);
        for (size i = from; i < to; i++) {
            float *g = of_x + i * width;
            const float *out = of_total ? of_total + i * width : NULL;
            size from_normed = of_normed ? place(normed_at, tokens, i) : -1;
            if (from_normed >= 0) {
                const bf16 *dh = of_normed + from_normed * width;
                const float *v = total + i * width;
                float m = mean[i], r = rstd[i], along = 0, level = 0;
#pragma omp simd reduction(+ : along, level)
                for (size j = 0; j < width; j++) {
                    float d = up(dh[j]), hat = (v[j] - m) * r;
                    sum_w[j] += d * hat;
                    sum_s[j] += d;
                    along += d * weight[j] * hat;
                    level += d * weight[j];
                }
                along /= width;
                level /= width;
                if (out) {
#pragma omp simd
                    for (size j = 0; j < width; j++)
                        g[j] = out[j] + r * (up(dh[j]) * weight[j] - level - (v[j] - m) * r * along);
                } else {
#pragma omp simd
                    for (size j = 0; j < width; j++)
                        g[j] = r * (up(dh[j]) * weight[j] - level - (v[j] - m) * r * along);
                }
            } else if (!out) {
                memset(g, 0, width * sizeof(float));
            } else if (g != out) {
                memcpy(g, out, width * sizeof(float));
            }
            size at = branch ? place(branch_at, tokens, i) : -1;
            if (at < 0) continue;
            bf16 *dy = of_branch + at * width;
            float c = chance ? chance[at] : 1.0f;
            if (gamma) {
                const bf16 *y = branch + at * width;
#pragma omp simd
                for (size j = 0; j < width; j++) {
                    float d = g[j] * c;
                    sum_g[j] += d * (up(y[j]) + bias[j]);
                    sum_b[j] += d * gamma[j];
                    dy[j] = down(d * gamma[j]);
                }
            } else {
#pragma omp simd
                for (size j = 0; j < width; j++) {
                    float d = g[j] * c;
                    sum_b[j] += d;
                    dy[j] = down(d);
                }
            }
        }
    }
    collect(of_weight, sums, threads, width, stride);
    collect(of_shift, sums + width, threads, width, stride);
    collect(of_bias, sums + 2 * width, threads, width, stride);
    collect(of_gamma, sums + 3 * width, threads, width, stride);
    free(sums);
}

/* out = gelu(x + bias). */
void gelu_forward(int threads, size rows, size width, const bf16 *x, const float *bias, bf16 *out) {
#pragma omp parallel num_threads(threads)
    {
        size from, to;
        share(rows, &from, &to);
        for (size i = from; i < to; i++) {
            const bf16 *a = x + i * width;
            bf16 *o = out + i * width;
#pragma omp simd
            for (size j = 0; j < width; j++) {
                float v = up(a[j]) + bias[j];
                o[j] = down(v * cumulative(v, exponential(-0.5f * v * v)));
            }
        }
    }
}

/* grad *= gelu'(x + bias), and its sum over rows. */
void gelu_backward(int threads, size rows, size width, bf16 *grad, const bf16 *x, const float *bias, float *of_bias) {
    float *sums = room(threads * width, sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        float *sum = sums + omp_get_thread_num() * width;
        size from, to;
        share(rows, &from, &to);
        for (size i = from; i < to; i++) {
            const bf16 *a = x + i * width;
            bf16 *g = grad + i * width;
#pragma omp simd
            for (size j = 0; j < width; j++) {
                float v = up(a[j]) + bias[j], density = exponential(-0.5f * v * v);
                float d = up(g[j]) * (cumulative(v, density) + v * density * 0.398942280f);
                sum[j] += d;
                g[j] = down(d);
            }
        }
    }
    collect(of_bias, sums, threads, width, width);
    free(sums);
}

/* [B T 3 H d] + bias to [3 B H T d], the queries times `scale`. */
void split(int threads, size images, size tokens, size heads, size width, const bf16 *qkv, const float *bias,
           float scale, bf16 *out) {
#pragma omp parallel num_threads(threads)
    {
        size from, to;
        share(images * tokens, &from, &to);
        for (size i = from; i < to; i++)
            for (size part = 0; part < 3; part++)
                for (size h = 0; h < heads; h++) {
                    size at = (part * heads + h) * width;
                    const bf16 *x = qkv + i * 3 * heads * width + at;
                    bf16 *o = out + (((part * images + i / tokens) * heads + h) * tokens + i % tokens) * width;
                    float by = part ? 1.0f : scale;
                    if (bias) {
#pragma omp simd
                        for (size j = 0; j < width; j++) o[j] = down((up(x[j]) + bias[at + j]) * by);
                    } else {
#pragma omp simd
                        for (size j = 0; j < width; j++) o[j] = down(up(x[j]) * by);
                    }
                }
    }
}

/* The way back of `split`, and the sum over tokens. */
void join(int threads, size images, size tokens, size heads, size width, const bf16 *grads, float scale, bf16 *of_qkv,
          float *of_bias) {
    size all = 3 * heads * width;
    float *sums = room(threads * all, sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        float *sum = sums + omp_get_thread_num() * all;
        size from, to;
        share(images * tokens, &from, &to);
        for (size i = from; i < to; i++)
            for (size part = 0; part < 3; part++)
                for (size h = 0; h < heads; h++) {
                    size at = (part * heads + h) * width;
                    const bf16 *x = grads + (((part * images + i / tokens) * heads + h) * tokens + i % tokens) * width;
                    bf16 *o = of_qkv + i * all + at;
                    float by = part ? 1.0f : scale;
#pragma omp simd
                    for (size j = 0; j < width; j++) {
                        float d = up(x[j]) * by;
                        sum[at + j] += d;
                        o[j] = down(d);
                    }
                }
    }
    collect(of_bias, sums, threads, all, all);
    free(sums);
}

/* Each row of logits becomes its softmax, in place. A bias of `period` rows is added before. */
void softmax_forward(int threads, size rows, size width, bf16 *logits, const float *bias, size period) {
#pragma omp parallel num_threads(threads)
    {
        size padded = (width + LANES - 1) / LANES * LANES; /* whole vectors: what is over would go one by one */
        float *v = room(padded, sizeof(float));
        for (size j = width; j < padded; j++) v[j] = -INFINITY;
        size from, to;
        share(rows, &from, &to);
        for (size i = from; i < to; i++) {
            bf16 *row = logits + i * width;
            float top = -INFINITY, total = 0;
            if (bias) {
                const float *add = bias + i % period * width;
#pragma omp simd
                for (size j = 0; j < width; j++) v[j] = up(row[j]) + add[j];
            } else {
#pragma omp simd
                for (size j = 0; j < width; j++) v[j] = up(row[j]);
            }
#pragma omp simd reduction(max : top)
            for (size j = 0; j < padded; j++) top = v[j] > top ? v[j] : top;
#pragma omp simd reduction(+ : total)
            for (size j = 0; j < padded; j++) {
                v[j] = exponential(v[j] - top);
                total += v[j];
            }
            for (size j = width; j < padded; j++) v[j] = -INFINITY;
            total = 1.0f / total;
#pragma omp simd
            for (size j = 0; j < width; j++) row[j] = down(v[j] * total);
        }
        free(v);
    }
}

/* grad = weights * (grad - sum(weights * grad)), row by row. */
void softmax_backward(int threads, size rows, size width, bf16 *grad, const bf16 *weights) {
#pragma omp parallel num_threads(threads)
    {
        size from, to;
        share(rows, &from, &to);
        for (size i = from; i < to; i++) {
            bf16 *g = grad + i * width;
            const bf16 *w = weights + i * width;
            float along = 0;
#pragma omp simd reduction(+ : along)
            for (size j = 0; j < width; j++) along += up(g[j]) * up(w[j]);
#pragma omp simd
            for (size j = 0; j < width; j++) g[j] = down(up(w[j]) * (up(g[j]) - along));
        }
    }
}

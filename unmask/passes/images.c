/* A batch of images on its way to a ViT. Arguments are what `images.py` says they are: contiguous, of the sizes given. */

#include "numbers.h"

/* [B h w C] in bytes to [B C h w]: level * scale + shift, each channel by its own. */
void normalize(int threads, size images, size pixels, size channels, const uint8_t *levels, const float *scale,
               const float *shift, float *out) {
#pragma omp parallel num_threads(threads)
    {
        size from, to;
        share(images * channels, &from, &to);
        for (size i = from; i < to; i++) {
            size c = i % channels;
            const uint8_t *x = levels + i / channels * pixels * channels + c;
            float *o = out + i * pixels, factor = scale[c], summand = shift[c];
#pragma omp simd
            for (size j = 0; j < pixels; j++) o[j] = (float)x[j * channels] * factor + summand;
        }
    }
}

/* Depthwise convolution with kernels of its own for every sample, on a CPU: y, and the gradients of x and of w.

   Maps are (N, H, W, C) in memory, that is channels_last, and kernels (N, h, w, C). Samples are shared among OpenMP's
   threads, so a result does not depend on their number. */

#ifndef T

#include <stdint.h>

#define ROW 4 /* positions that are summed in registers before they are added to a kernel's gradient */

/* Of x, y and a kernel; of the convolution, in both directions. */
struct shape {
    int64_t samples, channels, height, width, out_height, out_width, rows, columns;
    int64_t stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x;
};

#define SELF "depthwise.c"
#include "each_precision.h"

#else

/* One position of y, at any place and for any kernel. */
INLINE void OF(position)(const T *restrict x, const T *restrict w, T *restrict y, R *restrict sums,
                         const struct shape *s, int64_t top, int64_t left)
{
    for (int64_t c = 0; c < s->channels; c++)
        sums[c] = 0;
    for (int64_t i = 0; i < s->rows; i++)
        for (int64_t j = 0; j < s->columns; j++) {
            int64_t row = top + i * s->dilation_y, column = left + j * s->dilation_x;
            if (row < 0 || row >= s->height || column < 0 || column >= s->width)
                continue;
            const T *restrict from = x + (row * s->width + column) * s->channels;
            const T *restrict tap = w + (i * s->columns + j) * s->channels;
            for (int64_t c = 0; c < s->channels; c++)
                sums[c] += WIDE(from[c]) * WIDE(tap[c]);
        }
    for (int64_t c = 0; c < s->channels; c++)
        y[c] = NARROW(sums[c]);
}

/* One position of y inside of x, for a 3x3 kernel without dilation. */
INLINE void OF(inside)(const T *restrict x, const T *restrict w, T *restrict y, int64_t width, int64_t channels)
{
    int64_t row = width * channels;
    for (int64_t c = 0; c < channels; c++) {
        R sum = 0;
        for (int i = 0; i < 3; i++)
            for (int j = 0; j < 3; j++)
                sum += WIDE(x[i * row + j * channels + c]) * WIDE(w[(3 * i + j) * channels + c]);
        y[c] = NARROW(sum);
    }
}

EACH_PROCESSOR
static void OF(forward_of)(const T *restrict x, const T *restrict w, T *restrict y, const struct shape *s)
{
    R sums[s->channels];
    int small = s->rows == 3 && s->columns == 3 && s->dilation_y == 1 && s->dilation_x == 1;
    for (int64_t i = 0; i < s->out_height; i++)
        for (int64_t j = 0; j < s->out_width; j++, y += s->channels) {
            int64_t top = i * s->stride_y - s->pad_y, left = j * s->stride_x - s->pad_x;
            if (small && top >= 0 && top + 3 <= s->height && left >= 0 && left + 3 <= s->width)
                OF(inside)(x + (top * s->width + left) * s->channels, w, y, s->width, s->channels);
            else
                OF(position)(x, w, y, sums, s, top, left);
        }
}

void OF(forward)(const T *x, const T *w, T *y, const struct shape *s, int64_t threads)
{
    int64_t in = s->height * s->width * s->channels, out = s->out_height * s->out_width * s->channels;
#pragma omp parallel for num_threads(threads)
    for (int64_t n = 0; n < s->samples; n++)
        OF(forward_of)(x + n * in, w + n * s->rows * s->columns * s->channels, y + n * out, s);
}

EACH_PROCESSOR
static void OF(input_of)(const T *restrict dy, const T *restrict w, T *restrict dx, const struct shape *s)
{
    R sums[s->channels];
    for (int64_t row = 0; row < s->height; row++)
        for (int64_t column = 0; column < s->width; column++, dx += s->channels) {
            for (int64_t c = 0; c < s->channels; c++)
                sums[c] = 0;
            for (int64_t i = 0; i < s->rows; i++)
                for (int64_t j = 0; j < s->columns; j++) {
                    int64_t y = row + s->pad_y - i * s->dilation_y, x = column + s->pad_x - j * s->dilation_x;
                    if (y < 0 || x < 0 || y % s->stride_y || x % s->stride_x || y / s->stride_y >= s->out_height ||
                        x / s->stride_x >= s->out_width)
                        continue;
                    const T *restrict from = dy + (y / s->stride_y * s->out_width + x / s->stride_x) * s->channels;
                    const T *restrict tap = w + (i * s->columns + j) * s->channels;
                    for (int64_t c = 0; c < s->channels; c++)
                        sums[c] += WIDE(from[c]) * WIDE(tap[c]);
                }
            for (int64_t c = 0; c < s->channels; c++)
                dx[c] = NARROW(sums[c]);
        }
}

/* With a stride of 1 this is the convolution of dy with the kernel turned around. */
static void OF(turned)(const T *dy, const T *w, T *dx, const struct shape *s)
{
    int64_t taps = s->rows * s->columns;
    T around[taps * s->channels];
    for (int64_t i = 0; i < taps; i++)
        memcpy(around + i * s->channels, w + (taps - 1 - i) * s->channels, s->channels * sizeof(T));
    struct shape back = *s;
    back.height = s->out_height, back.width = s->out_width, back.out_height = s->height, back.out_width = s->width;
    back.pad_y = s->dilation_y * (s->rows - 1) - s->pad_y, back.pad_x = s->dilation_x * (s->columns - 1) - s->pad_x;
    OF(forward_of)(dy, around, dx, &back);
}

EACH_PROCESSOR
static void OF(kernel_of)(const T *restrict x, const T *restrict dy, T *restrict dw, const struct shape *s)
{
    R sums[s->channels];
    for (int64_t i = 0; i < s->rows; i++)
        for (int64_t j = 0; j < s->columns; j++, dw += s->channels) {
            for (int64_t c = 0; c < s->channels; c++)
                sums[c] = 0;
            int64_t right = j * s->dilation_x - s->pad_x, first = right < 0 ? (-right - 1) / s->stride_x + 1 : 0;
            int64_t room = s->width - 1 - right, end = room < 0 ? 0 : room / s->stride_x + 1;
            if (end > s->out_width)
                end = s->out_width;
            for (int64_t y = 0; y < s->out_height; y++) {
                int64_t row = y * s->stride_y - s->pad_y + i * s->dilation_y, p = first;
                if (row < 0 || row >= s->height)
                    continue;
                const T *restrict from = x + (row * s->width + right) * s->channels;
                const T *restrict slopes = dy + y * s->out_width * s->channels;
                int64_t step = s->stride_x * s->channels;
                for (; p + ROW <= end; p += ROW)
                    for (int64_t c = 0; c < s->channels; c++) {
                        R sum = 0;
                        for (int k = 0; k < ROW; k++)
                            sum += WIDE(from[(p + k) * step + c]) * WIDE(slopes[(p + k) * s->channels + c]);
                        sums[c] += sum;
                    }
                for (; p < end; p++)
                    for (int64_t c = 0; c < s->channels; c++)
                        sums[c] += WIDE(from[p * step + c]) * WIDE(slopes[p * s->channels + c]);
            }
            for (int64_t c = 0; c < s->channels; c++)
                dw[c] = NARROW(sums[c]);
        }
}

/* dx or dw may be 0 if it is not wanted. */
void OF(backward)(const T *x, const T *w, const T *dy, T *dx, T *dw, const struct shape *s, int64_t threads)
{
    int64_t in = s->height * s->width * s->channels, out = s->out_height * s->out_width * s->channels;
    int64_t kernel = s->rows * s->columns * s->channels;
#pragma omp parallel for num_threads(threads)
    for (int64_t n = 0; n < s->samples; n++) {
        if (dx && s->stride_y == 1 && s->stride_x == 1)
            OF(turned)(dy + n * out, w + n * kernel, dx + n * in, s);
        else if (dx)
            OF(input_of)(dy + n * out, w + n * kernel, dx + n * in, s);
        if (dw)
            OF(kernel_of)(x + n * in, dy + n * out, dw + n * kernel, s);
    }
}

#endif

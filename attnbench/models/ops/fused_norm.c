/* The passes of batch norm with attention on a CPU: moments and y = A z + B forward, two sums and dz backward.

   Maps are (N, C, H, W) in channels_last, so (N, P, C) in memory with P = H W; coefficients and sums are (N, C). Each
   function reads every map once. Samples are shared among OpenMP's threads, so a result does not depend on their
   number. */

#ifndef T

#include <stdint.h>

#define ROWS 2     /* positions that are summed in registers before they are added to a channel's sum */
#define LANES 64   /* a map with fewer channels is read as one with a multiple of its channels and fewer positions */
#define AHEAD 4096 /* bytes; without this prefetch, maps with many channels are read three times as slowly */

#define GAP 32     /* between arrays, whose addresses would else agree in the bits by which caches are indexed */

enum { NONE, RELU, RELU6 };

static inline void prefetch(const void *from, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += 64)
        __builtin_prefetch((const char *)from + AHEAD + i);
}

/* How many positions are read as one, so that they have at least LANES channels if possible. */
static int64_t together(int64_t positions, int64_t channels)
{
    int64_t count = 1;
    while (count * channels < LANES && positions % (2 * count) == 0)
        count *= 2;
    return count;
}

#define SELF "fused_norm.c"
#include "each_precision.h"

#else

/* Moments by the sums of z - f and of its square, f the first value, so that no large numbers cancel. */
EACH_PROCESSOR
static void OF(moments_of)(const T *restrict z, R *restrict m, R *restrict v, int64_t positions, int64_t channels)
{
    R first[channels + GAP];
    for (int64_t c = 0; c < channels; c++) {
        first[c] = WIDE(z[c]);
        m[c] = v[c] = 0;
    }
    int64_t p = 0;
    for (; p + ROWS <= positions; p += ROWS) {
        const T *restrict rows = z + p * channels;
        prefetch(rows, ROWS * channels * sizeof(T));
        for (int64_t c = 0; c < channels; c++) {
            R sum = 0, squares = 0;
            for (int i = 0; i < ROWS; i++) {
                R off = WIDE(rows[i * channels + c]) - first[c];
                sum += off;
                squares += off * off;
            }
            m[c] += sum;
            v[c] += squares;
        }
    }
    for (; p < positions; p++)
        for (int64_t c = 0; c < channels; c++) {
            R off = WIDE(z[p * channels + c]) - first[c];
            m[c] += off;
            v[c] += off * off;
        }
    for (int64_t c = 0; c < channels; c++) {
        R mean = m[c] / positions;
        R spread = v[c] / positions - mean * mean;
        v[c] = spread < 0 ? 0 : spread; /* a NaN stays one */
        m[c] = first[c] + mean;
    }
}

/* The moments of all from those of ``count`` parts, by the law of total variance. */
static void OF(join)(R *restrict m, R *restrict v, const R *restrict means, const R *restrict spreads, int64_t count,
                     int64_t channels)
{
    for (int64_t c = 0; c < channels; c++) {
        R mean = 0, spread = 0;
        for (int64_t i = 0; i < count; i++)
            mean += means[i * channels + c] / count;
        for (int64_t i = 0; i < count; i++) {
            R off = means[i * channels + c] - mean;
            spread += (spreads[i * channels + c] + off * off) / count;
        }
        m[c] = mean;
        v[c] = spread;
    }
}

void OF(moments)(const T *z, R *m, R *v, int64_t samples, int64_t positions, int64_t channels, int64_t threads)
{
    int64_t count = together(positions, channels), wide = count * channels;
#pragma omp parallel for num_threads(threads)
    for (int64_t n = 0; n < samples; n++) {
        R means[wide + GAP], spreads[wide + GAP];
        OF(moments_of)(z + n * positions * channels, means, spreads, positions / count, wide);
        OF(join)(m + n * channels, v + n * channels, means, spreads, count, channels);
    }
}

/* Channel sums of ``count`` parts added up. */
static void OF(add)(R *restrict total, const R *restrict parts, int64_t count, int64_t channels)
{
    for (int64_t c = 0; c < channels; c++) {
        total[c] = 0;
        for (int64_t i = 0; i < count; i++)
            total[c] += parts[i * channels + c];
    }
}

EACH_PROCESSOR
static void OF(sums_of)(const T *restrict z, R *restrict sums, int64_t positions, int64_t channels)
{
    for (int64_t c = 0; c < channels; c++)
        sums[c] = 0;
    int64_t p = 0;
    for (; p + ROWS <= positions; p += ROWS) {
        const T *restrict rows = z + p * channels;
        prefetch(rows, ROWS * channels * sizeof(T));
        for (int64_t c = 0; c < channels; c++) {
            R sum = 0;
            for (int i = 0; i < ROWS; i++)
                sum += WIDE(rows[i * channels + c]);
            sums[c] += sum;
        }
    }
    for (; p < positions; p++)
        for (int64_t c = 0; c < channels; c++)
            sums[c] += WIDE(z[p * channels + c]);
}

void OF(sums)(const T *z, R *sums, int64_t samples, int64_t positions, int64_t channels, int64_t threads)
{
    int64_t count = together(positions, channels), wide = count * channels;
#pragma omp parallel for num_threads(threads)
    for (int64_t n = 0; n < samples; n++) {
        R parts[wide];
        OF(sums_of)(z + n * positions * channels, parts, positions / count, wide);
        OF(add)(sums + n * channels, parts, count, channels);
    }
}

/* A sample's coefficients, ``count`` times. */
static void OF(repeat)(R *restrict repeated, const R *restrict values, int64_t count, int64_t channels)
{
    for (int64_t i = 0; i < count; i++)
        memcpy(repeated + i * channels, values, channels * sizeof(R));
}

/* ``value`` or 0; a conditional expression would keep compilers from using vectors for bfloat16. */
INLINE R OF(kept)(R value, int keep)
{
    BITS bits;
    memcpy(&bits, &value, sizeof bits);
    bits &= -(BITS)keep;
    memcpy(&value, &bits, sizeof bits);
    return value;
}

INLINE R OF(activated)(R x, int activation)
{
    if (activation)
        x = OF(kept)(x, !(x <= 0));
    return activation == RELU6 ? OF(kept)(x, !(x >= 6)) + OF(kept)(6, x >= 6) : x;
}

/* The gradient behind an activation of x. */
INLINE R OF(behind)(R slope, R x, int activation)
{
    if (activation)
        slope = OF(kept)(slope, !(x <= 0));
    return activation == RELU6 ? OF(kept)(slope, !(x >= 6)) : slope;
}

/* ``rows`` positions, a constant; y may be z. */
INLINE void OF(applied)(const T *z, const R *restrict a, const R *restrict b, T *y, R *restrict sums,
                        int64_t channels, int rows, int activation)
{
#pragma GCC ivdep
    for (int64_t c = 0; c < channels; c++) {
        R sum = 0;
        for (int i = 0; i < rows; i++) {
            R out = OF(activated)(a[c] * WIDE(z[i * channels + c]) + b[c], activation);
            y[i * channels + c] = NARROW(out);
            sum += out;
        }
        if (sums)
            sums[c] += sum;
    }
}

INLINE void OF(applied_to_all)(const T *z, const R *a, const R *b, T *y, R *sums, int64_t positions,
                               int64_t channels, int activation)
{
    int64_t p = 0;
    for (; p + ROWS <= positions; p += ROWS)
        OF(applied)(z + p * channels, a, b, y + p * channels, sums, channels, ROWS, activation);
    for (; p < positions; p++)
        OF(applied)(z + p * channels, a, b, y + p * channels, sums, channels, 1, activation);
}

/* y = activation(a z + b); adds y to the channels' sums, if they are wanted. */
EACH_PROCESSOR
static void OF(apply_to)(const T *z, const R *restrict a, const R *restrict b, T *y, R *restrict sums,
                         int64_t positions, int64_t channels, int activation)
{
    if (sums)
        switch (activation) {
        case NONE: OF(applied_to_all)(z, a, b, y, sums, positions, channels, NONE); break;
        case RELU: OF(applied_to_all)(z, a, b, y, sums, positions, channels, RELU); break;
        default: OF(applied_to_all)(z, a, b, y, sums, positions, channels, RELU6);
        }
    else
        switch (activation) {
        case NONE: OF(applied_to_all)(z, a, b, y, 0, positions, channels, NONE); break;
        case RELU: OF(applied_to_all)(z, a, b, y, 0, positions, channels, RELU); break;
        default: OF(applied_to_all)(z, a, b, y, 0, positions, channels, RELU6);
        }
}

/* y = activation(A z + B), where A may be 0 for ones and y may be z; and if it is wanted its mean over each map. */
void OF(apply)(const T *z, const R *a, const R *b, T *y, T *pooled, int64_t activation, int64_t samples,
               int64_t positions, int64_t channels, int64_t threads)
{
    int64_t count = together(positions, channels), wide = count * channels;
#pragma omp parallel for num_threads(threads)
    for (int64_t n = 0; n < samples; n++) {
        R scale[wide + GAP], shift[wide + GAP], parts[wide + GAP], sums[channels + GAP];
        int64_t map = n * positions * channels;
        for (int64_t i = 0; i < wide; i++)
            scale[i] = 1;
        if (a)
            OF(repeat)(scale, a + n * channels, count, channels);
        OF(repeat)(shift, b + n * channels, count, channels);
        memset(parts, 0, wide * sizeof(R));
        OF(apply_to)(z + map, scale, shift, y + map, pooled ? parts : 0, positions / count, wide, activation);
        if (pooled) {
            OF(add)(sums, parts, count, channels);
            for (int64_t c = 0; c < channels; c++)
                pooled[n * channels + c] = NARROW(sums[c] / positions);
        }
    }
}

/* What a sample's gradient is computed from. With q = (dy + e) activation'(a z + b), the gradients of a and b are
   sum q z and sum q, and dz = slope q + k z + d. */
struct OF(backward) {
    const T *z, *dy;
    const R *e, *a, *b; /* e and, without an activation, a and b may be 0 */
    int activation;
};

INLINE void OF(reduced)(const T *restrict z, const T *restrict dy, const R *restrict e, const R *restrict a,
                        const R *restrict b, R *restrict products, R *restrict sums, int64_t channels, int rows,
                        int activation)
{
    prefetch(z, rows * channels * sizeof(T));
    prefetch(dy, rows * channels * sizeof(T));
    for (int64_t c = 0; c < channels; c++) {
        R product = 0, sum = 0;
        for (int i = 0; i < rows; i++) {
            R x = WIDE(z[i * channels + c]);
            R q = OF(behind)(WIDE(dy[i * channels + c]) + e[c], activation ? a[c] * x + b[c] : 0, activation);
            sum += q;
            product += q * x;
        }
        sums[c] += sum;
        products[c] += product;
    }
}

INLINE void OF(reduced_all)(const T *z, const T *dy, const R *e, const R *a, const R *b, R *products, R *sums,
                            int64_t positions, int64_t channels, int activation)
{
    for (int64_t c = 0; c < channels; c++)
        products[c] = sums[c] = 0;
    int64_t p = 0;
    for (; p + ROWS <= positions; p += ROWS)
        OF(reduced)(z + p * channels, dy + p * channels, e, a, b, products, sums, channels, ROWS, activation);
    for (; p < positions; p++)
        OF(reduced)(z + p * channels, dy + p * channels, e, a, b, products, sums, channels, 1, activation);
}

EACH_PROCESSOR
static void OF(reduce_of)(const T *restrict z, const T *restrict dy, const R *restrict e, const R *restrict a,
                          const R *restrict b, R *restrict products, R *restrict sums, int64_t positions,
                          int64_t channels, int activation)
{
    switch (activation) {
    case NONE: OF(reduced_all)(z, dy, e, a, b, products, sums, positions, channels, NONE); break;
    case RELU: OF(reduced_all)(z, dy, e, a, b, products, sums, positions, channels, RELU); break;
    default: OF(reduced_all)(z, dy, e, a, b, products, sums, positions, channels, RELU6);
    }
}

/* A sample's coefficients ``count`` times, zeros if there are none. */
static void OF(repeated)(R *restrict to, const R *restrict values, int64_t count, int64_t channels)
{
    if (values)
        OF(repeat)(to, values, count, channels);
    else
        memset(to, 0, count * channels * sizeof(R));
}

static void OF(reduce_all)(struct OF(backward) of, R *products, R *sums, int64_t samples, int64_t positions,
                           int64_t channels, int64_t threads)
{
    int64_t count = together(positions, channels), wide = count * channels;
#pragma omp parallel for num_threads(threads)
    for (int64_t n = 0; n < samples; n++) {
        R e[wide + GAP], a[wide + GAP], b[wide + GAP], some_products[wide + GAP], some_sums[wide + GAP];
        int64_t map = n * positions * channels, row = n * channels;
        OF(repeated)(e, of.e ? of.e + row : 0, count, channels);
        OF(repeated)(a, of.activation ? of.a + row : 0, count, channels);
        OF(repeated)(b, of.activation ? of.b + row : 0, count, channels);
        OF(reduce_of)(of.z + map, of.dy + map, e, a, b, some_products, some_sums, positions / count, wide,
                      of.activation);
        OF(add)(products + row, some_products, count, channels);
        OF(add)(sums + row, some_sums, count, channels);
    }
}

void OF(reduce)(const T *z, const T *dy, R *da, R *db, int64_t samples, int64_t positions, int64_t channels,
                int64_t threads)
{
    struct OF(backward) of = {z, dy, 0, 0, 0, NONE};
    OF(reduce_all)(of, da, db, samples, positions, channels, threads);
}

INLINE void OF(returned)(const T *restrict z, const T *restrict dy, const R *restrict e, const R *restrict a,
                         const R *restrict b, const R *restrict slope, const R *restrict k, const R *restrict d,
                         T *restrict dz, int64_t positions, int64_t channels, int activation)
{
    for (int64_t p = 0; p < positions; p++)
        for (int64_t c = 0; c < channels; c++) {
            int64_t at = p * channels + c;
            R x = WIDE(z[at]);
            R q = OF(behind)(WIDE(dy[at]) + e[c], activation ? a[c] * x + b[c] : 0, activation);
            dz[at] = NARROW(slope[c] * q + k[c] * x + d[c]);
        }
}

EACH_PROCESSOR
static void OF(back_to)(const T *restrict z, const T *restrict dy, const R *restrict e, const R *restrict a,
                        const R *restrict b, const R *restrict slope, const R *restrict k, const R *restrict d,
                        T *restrict dz, int64_t positions, int64_t channels, int activation)
{
    switch (activation) {
    case NONE: OF(returned)(z, dy, e, a, b, slope, k, d, dz, positions, channels, NONE); break;
    case RELU: OF(returned)(z, dy, e, a, b, slope, k, d, dz, positions, channels, RELU); break;
    default: OF(returned)(z, dy, e, a, b, slope, k, d, dz, positions, channels, RELU6);
    }
}

static void OF(back_all)(struct OF(backward) of, const R *slopes, const R *ks, const R *ds, T *dz, int64_t samples,
                         int64_t positions, int64_t channels, int64_t threads)
{
    int64_t count = together(positions, channels), wide = count * channels;
#pragma omp parallel for num_threads(threads)
    for (int64_t n = 0; n < samples; n++) {
        R e[wide + GAP], a[wide + GAP], b[wide + GAP], slope[wide + GAP], k[wide + GAP], d[wide + GAP];
        int64_t map = n * positions * channels, row = n * channels;
        OF(repeated)(e, of.e ? of.e + row : 0, count, channels);
        OF(repeated)(a, of.activation ? of.a + row : 0, count, channels);
        OF(repeated)(b, of.activation ? of.b + row : 0, count, channels);
        OF(repeat)(slope, slopes + row, count, channels);
        OF(repeat)(k, ks + row, count, channels);
        OF(repeat)(d, ds + row, count, channels);
        OF(back_to)(of.z + map, of.dy + map, e, a, b, slope, k, d, dz + map, positions / count, wide, of.activation);
    }
}

void OF(back)(const T *z, const T *dy, const R *slope, const R *k, const R *d, T *dz, int64_t samples,
              int64_t positions, int64_t channels, int64_t threads)
{
    struct OF(backward) of = {z, dy, 0, 0, 0, NONE};
    OF(back_all)(of, slope, k, d, dz, samples, positions, channels, threads);
}

/* Batch norm of z + s, or of z s if scaled, with coefficients by the equations of fused_norm_kernels.py. */

/* A and B of u = A z + B, the moments m and v of z, and mean and r = 1 / sqrt(var + eps) of z + s or z s; updates the
   running statistics. */
void OF(coefficients)(const T *z, const R *s, const R *weight, const R *bias, R *running_mean, R *running_var, R *m,
                      R *v, R *mean, R *r, R *a, R *b, double momentum, double eps, int64_t scaled, int64_t samples,
                      int64_t positions, int64_t channels, int64_t threads)
{
    OF(moments)(z, m, v, samples, positions, channels, threads);
    R var[channels + GAP];
    for (int64_t c = 0; c < channels; c++)
        mean[c] = var[c] = 0;
    for (int64_t n = 0; n < samples; n++)
        for (int64_t c = 0, at = n * channels; c < channels; c++, at++)
            mean[c] += (scaled ? m[at] * s[at] : m[at] + s[at]) / samples;
    for (int64_t n = 0; n < samples; n++)
        for (int64_t c = 0, at = n * channels; c < channels; c++, at++) {
            R off = (scaled ? m[at] * s[at] : m[at] + s[at]) - mean[c];
            var[c] += ((scaled ? v[at] * s[at] * s[at] : v[at]) + off * off) / samples;
        }
    double values = (double)samples * positions;
    R unbiased = values / (values - 1);
    for (int64_t c = 0; c < channels; c++) {
        running_mean[c] += momentum * (mean[c] - running_mean[c]);
        running_var[c] += momentum * (var[c] * unbiased - running_var[c]);
        r[c] = 1 / sqrt(var[c] + eps);
    }
    for (int64_t n = 0; n < samples; n++)
        for (int64_t c = 0, at = n * channels; c < channels; c++, at++) {
            R slope = weight[c] * r[c], offset = bias[c] - slope * mean[c];
            a[at] = scaled ? slope * s[at] : slope;
            b[at] = scaled ? offset : slope * s[at] + offset;
        }
}

/* The gradients of all that ``coefficients`` was given, from those of y = activation(A z + B) and of its mean. */
void OF(gradients)(const T *z, const T *dy, const R *dpooled, const R *s, const R *a, const R *b, const R *m,
                   const R *v, const R *mean, const R *r, const R *weight, T *dz, R *ds, R *dw, R *db, R *scratch,
                   int64_t scaled, int64_t activation, int64_t samples, int64_t positions, int64_t channels,
                   int64_t threads)
{
    int64_t size = samples * channels;
    R *products = scratch, *sums = scratch + size, *slopes = scratch + 2 * size, *ks = scratch + 3 * size;
    R *e = dpooled ? scratch + 4 * size : 0;
    if (e)
        for (int64_t i = 0; i < size; i++)
            e[i] = dpooled[i] / positions;
    struct OF(backward) of = {z, dy, e, a, b, activation};
    OF(reduce_all)(of, products, sums, samples, positions, channels, threads);
    for (int64_t c = 0; c < channels; c++)
        dw[c] = db[c] = 0;
    for (int64_t n = 0; n < samples; n++)
        for (int64_t c = 0, at = n * channels; c < channels; c++, at++) {
            db[c] += sums[at];
            dw[c] += r[c] * (scaled ? s[at] * products[at] - mean[c] * sums[at]
                                    : products[at] + (s[at] - mean[c]) * sums[at]);
        }
    R values = (R)samples * positions;
    for (int64_t n = 0; n < samples; n++)
        for (int64_t c = 0, at = n * channels; c < channels; c++, at++) {
            R slope = weight[c] * r[c], k = -slope * r[c] * dw[c] / values, d = -slope * db[c] / values;
            if (scaled) {
                d -= k * mean[c];
                ds[at] = slope * products[at] + positions * (k * s[at] * (v[at] + m[at] * m[at]) + d * m[at]);
                slopes[at] = slope * s[at];
                ks[at] = k * s[at] * s[at];
                sums[at] = d * s[at];
            } else {
                d += k * (s[at] - mean[c]);
                ds[at] = slope * sums[at] + positions * (k * m[at] + d);
                slopes[at] = slope;
                ks[at] = k;
                sums[at] = d;
            }
        }
    OF(back_all)(of, slopes, ks, sums, dz, samples, positions, channels, threads);
}

#endif

/* Includes the file SELF once for each precision of a map: T is the type of its values, R that of sums and
   coefficients, BITS an integer of R's size; WIDE reads a value, NARROW rounds one, OF names a function. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* Built for AVX-512, AVX2 and any x86-64; the processor chooses at run time. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EACH_PROCESSOR
#endif

typedef uint16_t bfloat16;

INLINE float wide_bfloat16(bfloat16 x)
{
    uint32_t bits = (uint32_t)x << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}

/* To the nearest, ties to even; a NaN stays one. */
INLINE bfloat16 narrow_bfloat16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? (bfloat16)(bits >> 16 | 0x40) : (bfloat16)rounded;
}

#define JOIN(a, b) a##_##b
#define NAMED(a, b) JOIN(a, b)
#define OF(name) NAMED(name, T)

#define T float
#define R float
#define BITS uint32_t
#define WIDE(x) (x)
#define NARROW(x) (x)
#include SELF
#undef T
#undef R
#undef BITS
#undef WIDE
#undef NARROW

#define T double
#define R double
#define BITS uint64_t
#define WIDE(x) (x)
#define NARROW(x) (x)
#include SELF
#undef T
#undef R
#undef BITS
#undef WIDE
#undef NARROW

#define T bfloat16
#define R float
#define BITS uint32_t
#define WIDE(x) wide_bfloat16(x)
#define NARROW(x) narrow_bfloat16(x)
#include SELF
#undef T
#undef R
#undef BITS
#undef WIDE
#undef NARROW

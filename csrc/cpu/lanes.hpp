// Vectors of doubles for the rules that divide by a square root. One unit of the processor takes roots and
// divides, and such a loop waits for it. With AVX-512, multiply-adds take every third root meanwhile.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#include <stddef.h>

#include "cpu/vector.hpp"
#include "cpu/vector_math.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

PYOPTIM_INLINE __m512d bits_plus(__m512d x, long long bits) {
    return _mm512_castsi512_pd(_mm512_add_epi64(_mm512_castpd_si512(x), _mm512_set1_epi64(bits)));
}

// Returns sqrt(x), rounded to nearest, for finite x >= 2^-900. `inverse` is 1/sqrt(x) with a relative error e
// of at most 2^-14.
//
// A Newton step gives `root` and its half inverse `slope` with a relative error d = 2^-27 - 1.5 e^2, which is
// between 2^-29 and 2^-27, since 2^-27 is added on purpose. The second step is below sqrt(x) by 1.5 d^2 of
// it, which is less than the distance of two doubles, so it rounds to what sqrt(x) rounds to or to the double
// before. The next double is the nearer one if sqrt(x) is above the middle of the two, so if x is above the
// middle's square. That square is above the product of the two doubles by a quarter of their distance's
// square, of which x and the product are multiples, so x is above the square if it is above the product.
PYOPTIM_INLINE __m512d root_near(__m512d x, __m512d inverse) {
    constexpr long long twice = 1ll << 52;  // in the bits of a double
    __m512d root = x * inverse, slope = bits_plus(inverse, -twice);
    const __m512d rest = _mm512_fnmadd_pd(root, slope, _mm512_set1_pd(0.5 + 0x1p-27));
    root = _mm512_fmadd_pd(root, rest, root);
    slope = _mm512_fmadd_pd(slope, rest, slope);
    root = _mm512_fmadd_pd(_mm512_fnmadd_pd(root, root, x), slope, root);
    const __m512d next = bits_plus(root, 1), above = _mm512_fnmadd_pd(root, next, x);
    return _mm512_mask_mov_pd(root, _mm512_cmp_pd_mask(above, _mm512_setzero_pd(), _CMP_GT_OQ), next);
}

// GCC 12 warns of its own header where an intrinsic has no mask.
constexpr __mmask8 kAll = 0xFF;
PYOPTIM_INLINE __m512d root_by_unit(__m512d x) { return _mm512_maskz_sqrt_pd(kAll, x); }

PYOPTIM_INLINE __m512d root_by_products(__m512d x) {
    constexpr long long least = (1023ll - 900) << 52, infinite = 2047ll << 52;
    const __m512i above = _mm512_castpd_si512(bits_plus(x, -least));
    const __mmask8 others = _mm512_cmpge_epu64_mask(above, _mm512_set1_epi64(infinite - least));
    if (__builtin_expect(others != 0, 0)) return root_by_unit(x);
    return root_near(x, _mm512_maskz_rsqrt14_pd(kAll, x));
}

// Vectors that a rule handles as if they were one number.
template <int count>
struct Lanes {
    static constexpr size_t size = 8 * count;

    Vector<double> v[count];

    static PYOPTIM_INLINE Lanes all(double x) {
        Lanes result;
        for (int k = 0; k < count; ++k) result.v[k] = _mm512_set1_pd(x);
        return result;
    }

    // n elements are left in the array, and a single vector may be filled in part.
    static PYOPTIM_INLINE __mmask8 filled(size_t n) { return __mmask8(n < 8 ? (1u << n) - 1 : kAll); }
    static PYOPTIM_INLINE Lanes load(const double* x, size_t n) {
        Lanes result;
        for (int k = 0; k < count; ++k) {
            result.v[k] = count > 1 ? _mm512_loadu_pd(x + 8 * k) : _mm512_maskz_loadu_pd(filled(n), x);
        }
        return result;
    }
    PYOPTIM_INLINE void store(double* x, size_t n) const {
        for (int k = 0; k < count; ++k) {
            if (count > 1) {
                _mm512_storeu_pd(x + 8 * k, v[k]);
            } else {
                _mm512_mask_storeu_pd(x, filled(n), v[k]);
            }
        }
    }
};

// Defines a function by its result in the vectors k.
#define PYOPTIM_LANES(function, parameters, expression)             \
    template <int count>                                            \
    PYOPTIM_INLINE Lanes<count> function parameters {               \
        Lanes<count> result;                                        \
        for (int k = 0; k < count; ++k) result.v[k] = (expression); \
        return result;                                              \
    }                                                               \
    static_assert(true)
PYOPTIM_LANES(operator+, (Lanes<count> a, Lanes<count> b), a.v[k] + b.v[k]);
PYOPTIM_LANES(operator-, (Lanes<count> a, Lanes<count> b), a.v[k] - b.v[k]);
PYOPTIM_LANES(operator*, (Lanes<count> a, Lanes<count> b), a.v[k] * b.v[k]);
PYOPTIM_LANES(operator/, (Lanes<count> a, Lanes<count> b), a.v[k] / b.v[k]);
PYOPTIM_LANES(absolute, (Lanes<count> x), _mm512_abs_pd(x.v[k]));
// The processor's maximum is b if either is NaN.
PYOPTIM_LANES(maximum, (Lanes<count> a, Lanes<count> b),
              _mm512_mask_mov_pd(_mm512_maskz_max_pd(kAll, a.v[k], b.v[k]),
                                 _mm512_cmp_pd_mask(a.v[k], a.v[k], _CMP_UNORD_Q), a.v[k]));
PYOPTIM_LANES(clamp, (Lanes<count> x, Lanes<count> low, Lanes<count> high),
              pyoptim::clamp(x.v[k], low.v[k], high.v[k]));
PYOPTIM_LANES(square_root, (Lanes<count> x), k == 1 ? root_by_products(x.v[k]) : root_by_unit(x.v[k]));
#undef PYOPTIM_LANES

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA
#endif

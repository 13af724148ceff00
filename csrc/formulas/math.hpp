// exp, expm1, tanh, log, log1p and the normal distribution, as straight-line code that compilers vectorise:
// only + - * / and selects, so that every instruction set gives the same bits, and CUDA and NVRTC, which
// compile these same lines. Errors, in units
// of the last place: exp at most 2 in float and double, tanh at most 2 in float;
// tests/ops/test_activations.py measures them.
//
// Reduction as W. J. Cody and W. Waite, Software Manual for the Elementary Functions, 1980; polynomials
// are Chebyshev fits made with mpmath's chebyfit; of exp, atanh and the normal tail in float minimax ones, by
// C. L. Lawson's weights.
#pragma once

#include "formulas/rules.hpp"

#if defined(__CUDACC__) || defined(__CUDACC_RTC__) || defined(__clang__)
#define PYOPTIM_UNROLL _Pragma("unroll")
#define PYOPTIM_NO_UNROLL _Pragma("unroll 1")
#else
#define PYOPTIM_UNROLL _Pragma("GCC unroll 32")
#define PYOPTIM_NO_UNROLL _Pragma("GCC unroll 1")
#endif
#if defined(__CUDACC_RTC__)
#define PYOPTIM_MEMCPY memcpy
#else
#define PYOPTIM_MEMCPY __builtin_memcpy
#endif

namespace pyoptim::math {

template <class T>
struct Format;
template <>
struct Format<float> {
    using Bits = unsigned;
    using Signed = int;
    static constexpr int fraction = 23, bias = 127;
    static constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440054690583e-4f;
    static constexpr float least = -104.0f, most = 89.0f;     // beyond, exp is 0 or infinity
    static constexpr float lowest = -88.5f, highest = 88.0f;  // where exponential_of_minus is infinity and 0
    static constexpr float normal = 13.25f;                   // where the tail of the normal distribution is
};
template <>
struct Format<double> {
    using Bits = unsigned long long;
    using Signed = long long;
    static constexpr int fraction = 52, bias = 1023;
    static constexpr double magic = 6755399441055744.0;
    static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
    static constexpr double least = -746.0, most = 710.0;
    static constexpr double lowest = -709.5, highest = 709.0;
    static constexpr double normal = 37.66;
};

template <class T>
PYOPTIM_FN typename Format<T>::Bits bits_of(T x) {
    typename Format<T>::Bits bits;
    PYOPTIM_MEMCPY(&bits, &x, sizeof x);
    return bits;
}
template <class T>
PYOPTIM_FN T from_bits(typename Format<T>::Bits bits) {
    T x;
    PYOPTIM_MEMCPY(&x, &bits, sizeof x);
    return x;
}

template <class T>
PYOPTIM_FN T infinity() {
    using F = Format<T>;
    return from_bits<T>(typename F::Bits(2 * F::bias + 1) << F::fraction);
}

// Both return NaN if x is NaN.
template <class T>
PYOPTIM_FN T at_least(T least, T x) {
    return x < least ? least : x;
}
template <class T>
PYOPTIM_FN T at_most(T most, T x) {
    return x > most ? most : x;
}

// The polynomial c[0] x^(N-1) + ... + c[N-1].
template <class T, int N>
PYOPTIM_FN T polynomial(T x, const T (&c)[N]) {
    T y = c[0];
    PYOPTIM_UNROLL
    for (int i = 1; i < N; ++i) y = y * x + c[i];
    return y;
}

// (exp(r) - 1 - r) / r^2 for |r| <= log(2)/2; in float by pairs, since the wait of one operation for the
// other is what an exp costs.
PYOPTIM_FN float exp_tail(float r) {
    const float low = 0.49999993451f + 0.16666520677f * r, high = 0.041668387508f + 0.0083687113961f * r;
    return low + r * r * (high + 0.0013814610496f * (r * r));
}
PYOPTIM_FN double exp_tail(double r) {
    constexpr double c[] = {1.6086677666787361503e-10, 2.0918212319133978201e-9, 2.5052070959803661989e-8,
                            2.7557263077309411451e-7,  2.7557319247344509509e-6, 2.4801587336630946966e-5,
                            1.9841269841263251867e-4,  1.3888888888879003084e-3, 8.3333333333333340131e-3,
                            4.1666666666666676865e-2,  1.6666666666666666667e-1, 0.5};
    return polynomial(r, c);
}

// Splits x = n log(2) + r, for x in [least, most]; n is returned with twice the exponent's bias added.
template <class T>
struct Reduced {
    T r;
    typename Format<T>::Bits n;
};
template <class T>
PYOPTIM_FN Reduced<T> reduce(T x) {
    using F = Format<T>;
    const T shifted = x * T(1.44269504088896340736) + F::magic;
    const T n = shifted - F::magic;
    const typename F::Bits integer = bits_of(shifted) - bits_of(T(F::magic));
    return {(x - n * F::ln2_high) - n * F::ln2_low, integer + 2 * F::bias};
}

template <class T>
PYOPTIM_FN T exponential(T x) {
    using F = Format<T>;
    const Reduced<T> it = reduce(at_most(F::most, at_least(F::least, x)));
    // 2^n in two factors, so that results beyond the normal numbers are rounded once.
    const typename F::Bits half = it.n >> 1;
    const T y = T(1) + (it.r + it.r * it.r * exp_tail(it.r));
    return y * from_bits<T>(half << F::fraction) * from_bits<T>((it.n - half) << F::fraction);
}

// exp(r) 2^n for |r| <= log(2)/2, where n is what rounded `shifted`, a number plus magic plus the exponent's
// bias. Its lowest bits are then those of 2^n, from 0 to infinity.
template <class T>
PYOPTIM_FN T scaled_exponential(T r, T shifted) {
    return ((T(1) + r) + r * r * exp_tail(r)) * from_bits<T>(bits_of(shifted) << Format<T>::fraction);
}

// The smaller of abs(x) and `most`. Bits of positive floats have the same order as the floats, and those of
// negative ones the reverse. The minimum of integers is one instruction; that of floats, which handles NaN,
// takes two or more. For NaN, these functions return an arbitrary number.
template <class T>
PYOPTIM_FN T lesser_size(T x, T most) {
    const auto bits = bits_of(x) & (~typename Format<T>::Bits(0) >> 1), limit = bits_of(most);
    return from_bits<T>(bits < limit ? bits : limit);
}
template <class T>
PYOPTIM_FN T bounded(T x) {  // to [lowest, highest]
    using F = Format<T>;
    const auto bits = typename F::Signed(bits_of(x)), most = typename F::Signed(bits_of(F::highest));
    const auto below = typename F::Bits(bits < most ? bits : most), least = bits_of(F::lowest);
    return from_bits<T>(below < least ? below : least);
}

// exp(-x) for x in [lowest, highest]. It is cheaper than exp, since results that are not normal numbers
// become 0 or infinity. It negates x, as most callers need, by the sign of its constants.
template <class T>
PYOPTIM_FN T exponential_of_minus(T x) {
    using F = Format<T>;
    const T shifted = x * T(-1.44269504088896340736) + (F::magic + F::bias);
    const T n = shifted - (F::magic + F::bias);
    const T minus_r = (x + n * F::ln2_high) + n * F::ln2_low;
    return scaled_exponential(-minus_r, shifted);
}

// exp(x) - 1 for x <= 0
template <class T>
PYOPTIM_FN T exponential_minus_1(T x) {
    using F = Format<T>;
    const T bounded = x < T(-40) ? T(-40) : x;
    const Reduced<T> it = reduce(bounded);
    const T power = from_bits<T>((it.n - F::bias) << F::fraction);
    const T y = it.r + it.r * it.r * exp_tail(it.r);
    return power * y + (power - T(1));
}

// tanh(x) for x >= 0. In float, below 5/8, it is the polynomial of S. L. Moshier's Cephes, since 1 -
// 2/(exp(2x) + 1) cancels.
PYOPTIM_FN float tangent_of_positive(float x) {
    constexpr float c[] = {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f,
                           -3.33332819422e-1f};
    const float z = x * x;
    const float small = polynomial(z, c) * z * x + x;
    const float large =
        1.0f - 2.0f / (exponential_of_minus(at_least(Format<float>::lowest, -2.0f * x)) + 1.0f);
    return x < 0.625f ? small : large;
}
PYOPTIM_FN double tangent_of_positive(double x) {
    const double m = exponential_minus_1(-2 * x);
    return -m / (m + 2);
}
template <class T>
PYOPTIM_FN T hyperbolic_tangent(T x) {
    constexpr auto kSign = typename Format<T>::Bits(1) << (sizeof(T) * 8 - 1);
    const T y = tangent_of_positive(x < T(0) ? -x : x);
    return from_bits<T>((bits_of(y) & ~kSign) | (bits_of(x) & kSign));
}

// 1 + exp(-x); for NaN it returns an arbitrary number.
template <class T>
PYOPTIM_FN T one_and_exponential_of_minus(T x) {
    return T(1) + exponential_of_minus(bounded(x));
}
template <class T>
PYOPTIM_FN T logistic_of_number(T x) {
    return T(1) / one_and_exponential_of_minus(x);
}
template <class T>
PYOPTIM_FN T logistic(T x) {
    const T y = logistic_of_number(x);
    return x == x ? y : x;
}

// (atanh(s)/s - 1) / s^2 of z = s^2 <= 1/9
PYOPTIM_FN float atanh_tail(float z) {
    constexpr float c[] = {1.4012237385e-1f, 1.3999569033e-1f, 2.0010849614e-1f, 3.3333206565e-1f};
    return polynomial(z, c);
}
PYOPTIM_FN double atanh_tail(double z) {
    constexpr double c[] = {0.07366852386263479745,  0.021545430510052780924, 0.043375605050182167872,
                            0.043009546409725771584, 0.047663160338659312432, 0.052628688095692283939,
                            0.05882366219876209888,  0.066666662431060502142, 0.07692307701454340742,
                            0.090909090907813877922, 0.11111111111112177392,  0.14285714285714281075,
                            0.20000000000000000008,  0.33333333333333333333};
    return polynomial(z, c);
}

// log(1 + x) for x in [0, 1]
template <class T>
PYOPTIM_FN T logarithm_1_plus(T x) {
    const T s = x / (T(2) + x);
    return T(2) * (s + s * ((s * s) * atanh_tail(s * s)));
}

// log(x) for normal positive x; NaN for infinity and NaN
PYOPTIM_FN double logarithm(double x) {
    using F = Format<double>;
    // x = 2^e m with m in [sqrt(1/2), sqrt(2))
    const unsigned long long shifted = bits_of(x) - 0x3FE6A09E667F3BCDu + (2ull * F::bias << F::fraction);
    const unsigned long long e = shifted >> F::fraction;  // with twice the bias
    const double m = from_bits<double>(bits_of(x) - ((e - 2 * F::bias) << F::fraction));
    const double s = (m - 1) / (m + 1);
    const double n = from_bits<double>(e | 0x4330000000000000u) - (4503599627370496.0 + 2 * F::bias);
    const double high = n * F::ln2_high + (x - x), low = n * F::ln2_low;
    return high + (low + 2 * (s + s * ((s * s) * atanh_tail(s * s))));
}

// exp(z^2/2) P(Z > z) for a standard normal Z and z >= 0. In float a rational function, whose error is below
// 2^-24 (1 + z^2/2), the rounding of z^2/2. In double (z + 5)/5 of it is a polynomial of (z - 5)/(z + 5); the
// form is M. M. Shepherd and J. G. Laframboise's, Math. Comp. 36, 1981.
PYOPTIM_FN float normal_tail(float z) {
    constexpr float p[] = {0.0143494324f, 0.10798096f, 0.341628675f, 0.499999972f};
    constexpr float q[] = {0.0359808124f, 0.270269892f, 0.897775449f, 1.48113837f, 1.0f};
    return polynomial(z, p) / polynomial(z, q);
}
PYOPTIM_FN double normal_tail(double z) {
    constexpr double c[] = {
        -4.7869080574614953e-12, -8.6952964681643348e-11, -2.202221946864766e-10, 4.8359535537027142e-10,
        2.1517342593411508e-9,   -1.7751993622466543e-9,  -1.4034773557000858e-8, 8.0954894653639646e-9,
        8.7272266072913995e-8,   -6.6950355195607557e-8,  -5.5415435614788295e-7, 7.9597496501703109e-7,
        3.3363321988773473e-6,   -9.9524948993533377e-6,  -1.1875162550738235e-5, 0.00010897979918109831,
        -0.00015957387769499342, -0.00059867535244124172, 0.0041590133598378089,  -0.013823727741371513,
        0.033004073234082053,    -0.062706631334257608,   0.099061123193995204,   -0.13307650057801137,
        0.15383860995001259};
    const double t = 1 / (z + 5);
    return polynomial((z - 5) * t, c) * (5 * t);
}

// The distribution function P(Z <= x) and the density of a standard normal variable; for NaN, arbitrary
// numbers.
template <class T>
struct Normal {
    T distribution, density;
};
template <class T>
PYOPTIM_FN Normal<T> standard_normal(T x) {
    using F = Format<T>;
    const T z = lesser_size(x, T(F::normal));
    // exp(-z^2/2), whose exponent is rounded in any case: by powers of 2 without a second part of log(2)
    const T exponent = z * z * T(-0.72134752044448170368);
    const T shifted = exponent + (F::magic + F::bias);
    const T fraction = exponent - (shifted - (F::magic + F::bias));
    const T e = scaled_exponential(fraction * T(0.69314718055994530942), shifted);
    const T tail = e * normal_tail(z);
    return {x < T(0) ? tail : T(1) - tail, e * T(0.39894228040143267794)};
}

// Two independent standard normal values from two words: G. E. P. Box and M. E. Muller, 1958.
struct NormalPair {
    double first, second;
};
PYOPTIM_FN NormalPair box_muller(unsigned u, unsigned v) {
    // Taylor coefficients of sin(t)/t and cos(t) in t^2 <= (pi/4)^2, accurate to 1e-16.
    constexpr double sine[] = {-7.6471637318198164759e-13, 1.6059043836821614599e-10,
                               -2.5052108385441718775e-8,  2.7557319223985890653e-6,
                               -1.9841269841269841270e-4,  8.3333333333333333333e-3,
                               -1.6666666666666666667e-1,  1.0};
    constexpr double cosine[] = {4.7794773323873852974e-14,
                                 -1.1470745597729724714e-11,
                                 2.0876756987868098979e-9,
                                 -2.7557319223985890653e-7,
                                 2.4801587301587301587e-5,
                                 -1.3888888888888888889e-3,
                                 4.1666666666666666667e-2,
                                 -0.5,
                                 1.0};
    const double uniform = (double(int(u ^ 0x80000000u)) + 2147483649.0) * 0x1p-32;  // in (0, 1]
    const double radius = square_root(-2 * logarithm(uniform));
    // The angle 2 pi v/2^32 is a number of quarter turns and a rest in [-pi/4, pi/4).
    const unsigned quarter = (v + 0x20000000u) >> 30;
    const double t = double(int(v - (quarter << 30))) * 1.4629180792671596e-9;  // 2 pi/2^32
    const double s = t * polynomial(t * t, sine), c = polynomial(t * t, cosine);
    const double along = quarter & 1u ? s : c, across = quarter & 1u ? c : s;
    return {radius * (quarter == 1u || quarter == 2u ? -along : along),
            radius * (quarter >= 2u ? -across : across)};
}

}  // namespace pyoptim::math

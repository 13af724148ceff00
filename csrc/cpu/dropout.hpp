// Dropout and Gaussian noise: the random numbers of an element depend on the stream and on its position, so
// the backward pass makes them again. Elementwise: the same bits on every instruction set.
#pragma once

#include "cpu/kernels.hpp"
#include "cpu/vector_math.hpp"
#include "pyoptim/random.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

// The words of the positions [position, position + kStreamBlock), position a multiple of that.
PYOPTIM_INLINE void stream_words(const RandomStream& stream, uint64_t position, uint32_t* words) {
    constexpr int kLanes = kStreamBlock / 4;
    const uint64_t first = position / 4;
    const auto step0 = uint32_t(stream.step), step1 = uint32_t(stream.step >> 32);
    const auto key0 = uint32_t(stream.seed), key1 = uint32_t(stream.seed >> 32);
    for (uint32_t l = 0; l < kLanes; ++l) {  // first is a multiple of 16: no carry
        const Words at = philox({{uint32_t(first) + l, uint32_t(first >> 32), step0, step1}}, key0, key1);
        words[l] = at.word[0];
        words[kLanes + l] = at.word[1];
        words[2 * kLanes + l] = at.word[2];
        words[3 * kLanes + l] = at.word[3];
    }
}

// x may be y.
template <class T>
void dropout(const RandomStream& stream, uint64_t first, size_t n, uint32_t threshold, T scale, const T* x,
             T* y) {
    uint32_t words[kStreamBlock];
    for (size_t i = 0; i < n; i += kStreamBlock) {
        stream_words(stream, first + i, words);
        if (n - i >= kStreamBlock) {
            for (size_t j = 0; j < kStreamBlock; ++j) {
                const T kept = x[i + j] * scale;
                y[i + j] = words[j] < threshold ? T(0) : kept;
            }
        } else {
            for (size_t j = 0; j < n - i; ++j) {
                const T kept = x[i + j] * scale;
                y[i + j] = words[j] < threshold ? T(0) : kept;
            }
        }
    }
}

// Two independent standard normal values from two words: G. E. P. Box and M. E. Muller, 1958.
struct NormalPair {
    double first, second;
};
PYOPTIM_INLINE NormalPair box_muller(uint32_t u, uint32_t v) {
    // Taylor's: of sin(t)/t and cos(t) in t^2 <= (pi/4)^2, to 1e-16
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
    const double uniform = (double(int32_t(u ^ 0x80000000u)) + 2147483649.0) * 0x1p-32;  // in (0, 1]
    const double radius = __builtin_sqrt(-2 * logarithm(uniform));
    // The angle is 2 pi v/2^32: some quarters, and a rest in [-pi/4, pi/4).
    const uint32_t quarter = (v + 0x20000000u) >> 30;
    const double t = double(int32_t(v - (quarter << 30))) * 1.4629180792671596e-9;  // 2 pi/2^32
    const double s = t * polynomial(t * t, sine), c = polynomial(t * t, cosine);
    const double along = quarter & 1u ? s : c, across = quarter & 1u ? c : s;
    return {radius * (quarter == 1u || quarter == 2u ? -along : along),
            radius * (quarter >= 2u ? -across : across)};
}

// y = x + deviation z, z standard normal
template <class T>
void gaussian_noise(const RandomStream& stream, uint64_t first, size_t n, T deviation, const T* x, T* y) {
    constexpr size_t kLanes = kStreamBlock / 4;
    uint32_t words[kStreamBlock];
    T noise[kStreamBlock];
    for (size_t i = 0; i < n; i += kStreamBlock) {
        stream_words(stream, first + i, words);
        for (size_t half = 0; half < kStreamBlock; half += 2 * kLanes) {
            for (size_t l = half; l < half + kLanes; ++l) {
                const NormalPair z = box_muller(words[l], words[l + kLanes]);
                noise[l] = T(z.first);
                noise[l + kLanes] = T(z.second);
            }
        }
        const size_t end = n - i < kStreamBlock ? n - i : kStreamBlock;
        for (size_t j = 0; j < end; ++j) y[i + j] = x[i + j] + deviation * noise[j];
    }
}

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA

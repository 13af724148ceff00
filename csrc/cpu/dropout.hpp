// Dropout and Gaussian noise. The random numbers of an element depend only on the stream and on its position,
// so the backward pass can generate them again. Results have the same bits on every instruction set.
#pragma once

#include "cpu/kernels.hpp"
#include "cpu/vector_math.hpp"
#include "formulas/random.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

// Generates the words of the positions [position, position + kStreamBlock); position is a multiple of
// kStreamBlock.
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

// The arrays x and y may be the same.
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
                const math::NormalPair z = math::box_muller(words[l], words[l + kLanes]);
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

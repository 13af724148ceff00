// Arrays stored in fewer bits than they are computed in: loops over the formulas of formulas/storage.hpp.
#pragma once

#include "cpu/kernels.hpp"
#include "formulas/storage.hpp"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

template <class Format>
void decode16(size_t n, const void* data, const float*, float* out) {
    const auto* codes = static_cast<const uint16_t*>(data);
    for (size_t i = 0; i < n; ++i) out[i] = Format::decode(codes[i]);
}

template <class Format, class Rounding>
void encode16(size_t n, const float* x, uint32_t first, uint32_t key, void* data, float*) {
    auto* codes = static_cast<uint16_t*>(data);
    for (size_t i = 0; i < n; ++i) {
        codes[i] = Format::template encode<Rounding>(x[i], first + uint32_t(i), key);
    }
}

// What encode16<Float16, Nearest> writes, by the processor's instruction, which keeps more of a NaN than the
// formula does.
inline void nearest_float16(size_t n, const float* x, uint32_t first, uint32_t key, void* data,
                            float* scale) {
    size_t i = 0;
#if defined(__F16C__)
    auto* codes = static_cast<uint16_t*>(data);
    constexpr size_t kLanes = 8;
    for (; i + kLanes <= n; i += kLanes) {
        float plain[kLanes];
        for (size_t k = 0; k < kLanes; ++k) {
            const unsigned bits = pyoptim::math::bits_of(x[i + k]), sign = bits & 0x80000000u;
            const unsigned nan = 0u - unsigned((bits ^ sign) > 0x7F800000u);
            plain[k] = pyoptim::storage::float_of((bits & ~nan) | ((sign | 0x7FC00000u) & nan));
        }
        const __m128i packed = _mm256_cvtps_ph(_mm256_loadu_ps(plain), _MM_FROUND_TO_NEAREST_INT);
        __builtin_memcpy(codes + i, &packed, sizeof(packed));
    }
    data = codes + i;
#endif
    encode16<pyoptim::storage::Float16, pyoptim::storage::Nearest>(n - i, x + i, first, key, data, scale);
}

template <class Format>
void decode8(size_t n, const void* data, const float* scale, float* out) {
    const auto* codes = static_cast<const uint8_t*>(data);
    for (size_t b = 0; b < n; b += kScaleBlock, ++scale) {
        const size_t end = b + kScaleBlock < n ? b + kScaleBlock : n;
        const float factor = *scale;
        for (size_t i = b; i < end; ++i) out[i] = Format::decode(codes[i], factor);
    }
}

template <class Format>
void encode8(size_t n, const float* x, uint32_t first, uint32_t key, void* data, float* scale) {
    auto* codes = static_cast<uint8_t*>(data);
    for (size_t b = 0; b < n; b += kScaleBlock, ++scale) {
        const size_t end = b + kScaleBlock < n ? b + kScaleBlock : n;
        int32_t largest = 0;
        for (size_t i = b; i < end; ++i) {
            const int32_t magnitude = Format::magnitude(x[i]);
            largest = magnitude > largest ? magnitude : largest;
        }
        const float top = pyoptim::storage::float_of(uint32_t(largest));
        const float inverse = Format::inverse(top);
        *scale = Format::scale(top);
        for (size_t i = b; i < end; ++i) {
            codes[i] = Format::encode(x[i], inverse, first + uint32_t(i), key);
        }
    }
}

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA

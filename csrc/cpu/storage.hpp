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

// Whether the data are x rounded to nearest.
template <class Format>
bool is_rounded16(size_t n, const float* x, const void* data) {
    const auto* codes = static_cast<const uint16_t*>(data);
    unsigned differ = 0;
    for (size_t i = 0; i < n; ++i) {
        differ |= unsigned(Format::template encode<pyoptim::storage::Nearest>(x[i], 0, 0) ^ codes[i]);
    }
    return differ == 0;
}

// What encode16<BFloat16, Nearest> writes, in arithmetic of 16 bits, of which a vector has twice as many.
// What only NaN needs is left out, so where there may be one all is done again.
inline void nearest_bfloat16(size_t n, const float* x, uint32_t first, uint32_t key, void* data,
                             float* scale) {
    auto* codes = static_cast<uint16_t*>(data);
    uint16_t largest = 0;
    for (size_t i = 0; i < n; ++i) {
        const uint32_t bits = pyoptim::math::bits_of(x[i]);
        const auto high = uint16_t(bits >> 16), low = uint16_t(bits), magnitude = uint16_t(high & 0x7FFFu);
        largest = magnitude > largest ? magnitude : largest;
        codes[i] = uint16_t(high + uint16_t(low > uint16_t(0x8000u - (high & 1u))));
    }
    using pyoptim::storage::BFloat16, pyoptim::storage::Nearest;
    if (largest >= 0x7F80u) encode16<BFloat16, Nearest>(n, x, first, key, data, scale);
}

// Whether the bfloat16 data are x rounded to nearest, as is_rounded16<BFloat16> says; but false also at ties,
// and where there may be a NaN: the caller then looks at each element.
inline bool is_rounded_bfloat16(size_t n, const float* x, const void* data) {
    const auto* codes = static_cast<const uint16_t*>(data);
    // The bits of a float less those of its rounding are in [-0x7FFF, 0x7FFF], or half a spacing at ties.
    uint32_t largest = 0, magnitude = 0;
    for (size_t i = 0; i < n; ++i) {
        const uint32_t bits = pyoptim::math::bits_of(x[i]);
        const uint32_t rest = bits - (uint32_t(codes[i]) << 16) + 0x7FFFu;
        largest = rest > largest ? rest : largest;
        const uint32_t positive = bits & 0x7FFFFFFFu;
        magnitude = positive > magnitude ? positive : magnitude;
    }
    return largest <= 0xFFFEu && magnitude <= 0x7F800000u;
}

// What decode16<Float16>, encode16<Float16, Nearest> and a comparison with that do, by the processor's
// instructions. These keep more of a NaN than the formulas do, so those have to write it.
#if defined(__F16C__)
constexpr size_t kHalves = 8;  // that an instruction converts

inline void decode_float16(size_t n, const void* data, const float* scale, float* out) {
    const auto* codes = static_cast<const uint16_t*>(data);
    size_t i = 0;
    for (; i + kHalves <= n; i += kHalves) {
        const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i));
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(packed));
    }
    decode16<pyoptim::storage::Float16>(n - i, codes + i, scale, out + i);
}

inline void nearest_float16(size_t n, const float* x, uint32_t first, uint32_t key, void* data,
                            float* scale) {
    auto* codes = static_cast<uint16_t*>(data);
    size_t i = 0;
    __m256 nan = _mm256_setzero_ps();
    for (; i + kHalves <= n; i += kHalves) {
        const __m256 values = _mm256_loadu_ps(x + i);
        nan = _mm256_or_ps(nan, _mm256_cmp_ps(values, values, _CMP_UNORD_Q));
        const __m128i packed = _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), packed);
    }
    if (_mm256_movemask_ps(nan) != 0) i = 0;
    encode16<pyoptim::storage::Float16, pyoptim::storage::Nearest>(n - i, x + i, first, key, codes + i,
                                                                   scale);
}

inline bool is_rounded_float16(size_t n, const float* x, const void* data) {
    const auto* codes = static_cast<const uint16_t*>(data);
    size_t i = 0;
    __m128i differ = _mm_setzero_si128();
    for (; i + kHalves <= n; i += kHalves) {
        const __m128i packed = _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT);
        const __m128i given = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i));
        differ = _mm_or_si128(differ, _mm_xor_si128(packed, given));
    }
    return _mm_testz_si128(differ, differ) &&
           is_rounded16<pyoptim::storage::Float16>(n - i, x + i, codes + i);
}
#else
constexpr auto decode_float16 = decode16<pyoptim::storage::Float16>;
constexpr auto nearest_float16 = encode16<pyoptim::storage::Float16, pyoptim::storage::Nearest>;
constexpr auto is_rounded_float16 = is_rounded16<pyoptim::storage::Float16>;
#endif

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

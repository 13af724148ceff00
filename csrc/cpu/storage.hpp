// Arrays stored in fewer bits than they are computed in: loops over the formulas of formulas/storage.hpp.
#pragma once

#include "cpu/kernels.hpp"
#include "formulas/storage.hpp"

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

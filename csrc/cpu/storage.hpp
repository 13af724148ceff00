// Values kept in fewer bits than they are computed in: float16, bfloat16, and 8 bits with a scale for every
// block of 256. Elementwise up to the scale, so results are the same bits on every instruction set;
// pyoptim/storage.py is the twin.
#pragma once

#include "cpu/kernels.hpp"
#include "pyoptim/random.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

inline uint32_t bits_of(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline float float_of(uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

struct Nearest {
    // What is added before the low bits are cut off; `odd`: the lowest bit that stays.
    static uint32_t below(uint32_t half, uint32_t odd, uint32_t, uint32_t) { return half - 1 + odd; }
};
struct Stochastic {
    static uint32_t below(uint32_t half, uint32_t, uint32_t index, uint32_t key) {
        return random_bits(index, key) & (2 * half - 1);
    }
};

struct BFloat16 {
    using Code = uint16_t;
    static float decode(uint16_t code) { return float_of(uint32_t(code) << 16); }
    template <class Rounding>
    static uint16_t encode(float x, uint32_t index, uint32_t key) {
        const uint32_t bits = bits_of(x);
        const uint32_t up = Rounding::below(0x8000u, (bits >> 16) & 1u, index, key);
        const uint32_t nan = (bits >> 16) | 0x40u;
        return uint16_t((bits & 0x7FFFFFFFu) > 0x7F800000u ? nan : (bits + up) >> 16);
    }
};

struct Float16 {
    using Code = uint16_t;
    static float decode(uint16_t code) {
        const uint32_t sign = uint32_t(code & 0x8000u) << 16;
        const uint32_t magnitude = uint32_t(code & 0x7FFFu) << 13;
        const uint32_t scaled = bits_of(float_of(magnitude) * 0x1p112f);  // rebiases; exact, subnormals too
        return float_of(sign | (magnitude >= 0x0F800000u ? magnitude | 0x7F800000u : scaled));
    }
    template <class Rounding>
    static uint16_t encode(float x, uint32_t index, uint32_t key) {
        const uint32_t sign = bits_of(x) & 0x80000000u;
        const uint32_t bits = bits_of(x) ^ sign;
        const uint32_t up = Rounding::below(0x1000u, (bits >> 13) & 1u, index, key);
        const uint32_t normal = (bits + up - 0x38000000u) >> 13;
        // Below 2^-14 the spacing is 2^-24 throughout.
        const float exact = float_of(bits) * 0x1p24f;
        const float steps = exact < 2048.0f ? exact : 2048.0f;
        const int32_t whole = int32_t(steps);
        const float rest = (steps - float(whole)) * 0x1p20f;
        const int32_t kept = int32_t(rest);
        const uint32_t part = uint32_t(kept) | (rest > float(kept) ? 1u : 0u);  // what is cut off counts
        const uint32_t lift = Rounding::below(0x80000u, uint32_t(whole) & 1u, index, key);
        const uint32_t subnormal = uint32_t(whole) + ((part + lift) >> 20);
        // By masks: GCC would make branches of ?:, and no vectors of branches.
        const uint32_t small = 0u - uint32_t(bits < 0x38800000u), nan = 0u - uint32_t(bits > 0x7F800000u);
        uint32_t code = (subnormal & small) | (normal & ~small);
        code = code > 0x7C00u ? 0x7C00u : code;
        code = (code & ~nan) | (0x7E00u & nan);
        return uint16_t(code | (sign >> 16));
    }
};

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

// A block's scale times a tiny float: 3 bits of mantissa, and 4 bits of exponent beside the sign or 5
// without, less the smallest of them, so that code 0 is 0 and what is near 0 is evenly spaced.
template <bool is_signed>
struct Block8 {
    static constexpr uint32_t largest = is_signed ? 127 : 255;
    static constexpr uint32_t bias = (is_signed ? 127 - 15 : 127 - 31) << 3;
    static constexpr float offset = is_signed ? 0x1p-15f : 0x1p-31f;
    static constexpr float top_value = 1.875f - offset;  // of the largest code

    static void decode(size_t n, const void* data, const float* scale, float* out) {
        const auto* codes = static_cast<const uint8_t*>(data);
        for (size_t b = 0; b < n; b += kScaleBlock, ++scale) {
            const size_t end = b + kScaleBlock < n ? b + kScaleBlock : n;
            const float factor = *scale;
            for (size_t i = b; i < end; ++i) {
                const uint32_t code = codes[i];
                const float magnitude = (float_of(((code & largest) + bias) << 20) - offset) * factor;
                const uint32_t sign = is_signed ? (code & 128u) << 24 : 0u;
                out[i] = float_of(bits_of(magnitude) ^ sign);
            }
        }
    }

    // Always stochastic: a moving average changes by less than a code at a step, and would stand still.
    static void encode(size_t n, const float* x, uint32_t first, uint32_t key, void* data, float* scale) {
        auto* codes = static_cast<uint8_t*>(data);
        for (size_t b = 0; b < n; b += kScaleBlock, ++scale) {
            const size_t end = b + kScaleBlock < n ? b + kScaleBlock : n;
            // Magnitudes order as their bits do, and NaN above all: it makes the block NaN.
            int32_t top_bits = 0;
            for (size_t i = b; i < end; ++i) {
                const auto bits = int32_t(bits_of(x[i]) & 0x7FFFFFFFu);
                top_bits = bits > top_bits ? bits : top_bits;
            }
            const float top = float_of(uint32_t(top_bits));
            const bool counts = top > 0x1p-100f;
            const float inverse = counts ? top_value / top : 0.0f;
            *scale = counts || top != top ? top / top_value : 0.0f;
            for (size_t i = b; i < end; ++i) {
                const uint32_t bits = bits_of(x[i]);
                const float y = float_of(bits & 0x7FFFFFFFu) * inverse + offset;
                const uint32_t up = random_bits(first + uint32_t(i), key) & 0xFFFFFu;
                const auto code = int32_t(((bits_of(y) + up) >> 20) - bias);
                const auto clipped = uint32_t(code > int32_t(largest) ? int32_t(largest) : code);
                codes[i] = uint8_t(is_signed ? clipped | (bits >> 24 & 128u) : clipped);
            }
        }
    }
};

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA

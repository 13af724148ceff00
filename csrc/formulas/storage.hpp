// Values kept in fewer bits than they are computed in: float16, bfloat16, and 8 bits with a scale for every
// block of 256. Elementwise up to the scale, so results are the same bits on every instruction set and on
// GPUs, which compile these same lines; pyoptim/formulas/storage.py is the twin.
#pragma once

#include "formulas/math.hpp"
#include "formulas/random.hpp"

namespace pyoptim {

enum class Storage : int { float32, float16, bfloat16, signed8, unsigned8, count };
constexpr int kScaleBlock = 256;  // elements that share a scale, in 8 bits

namespace storage {

using math::bits_of;
PYOPTIM_FN float float_of(unsigned bits) { return math::from_bits<float>(bits); }

struct Nearest {
    // The number added before the low bits are cut off; `odd` is the lowest bit that is kept.
    static PYOPTIM_FN unsigned below(unsigned half, unsigned odd, unsigned, unsigned) {
        return half - 1 + odd;
    }
};
struct Stochastic {
    static PYOPTIM_FN unsigned below(unsigned half, unsigned, unsigned index, unsigned key) {
        return random_bits(index, key) & (2 * half - 1);
    }
};

struct BFloat16 {
    static PYOPTIM_FN float decode(unsigned short code) { return float_of(unsigned(code) << 16); }
    template <class Rounding>
    static PYOPTIM_FN unsigned short encode(float x, unsigned index, unsigned key) {
        const unsigned bits = bits_of(x);
        const unsigned up = Rounding::below(0x8000u, (bits >> 16) & 1u, index, key);
        const unsigned nan = (bits >> 16) | 0x40u;
        using Code = unsigned short;
        return Code((bits & 0x7FFFFFFFu) > 0x7F800000u ? nan : (bits + up) >> 16);
    }
};

struct Float16 {
    static PYOPTIM_FN float decode(unsigned short code) {
        const unsigned sign = unsigned(code & 0x8000u) << 16;
        const unsigned magnitude = unsigned(code & 0x7FFFu) << 13;
        const unsigned scaled = bits_of(float_of(magnitude) * 0x1p112f);  // rebiases; exact, subnormals too
        return float_of(sign | (magnitude >= 0x0F800000u ? magnitude | 0x7F800000u : scaled));
    }
    template <class Rounding>
    static PYOPTIM_FN unsigned short encode(float x, unsigned index, unsigned key) {
        const unsigned sign = bits_of(x) & 0x80000000u;
        const unsigned bits = bits_of(x) ^ sign;
        const unsigned up = Rounding::below(0x1000u, (bits >> 13) & 1u, index, key);
        const unsigned normal = (bits + up - 0x38000000u) >> 13;
        // Below 2^-14 the spacing is 2^-24 throughout.
        const float exact = float_of(bits) * 0x1p24f;
        const float steps = exact < 2048.0f ? exact : 2048.0f;
        const int whole = int(steps);
        const float rest = (steps - float(whole)) * 0x1p20f;
        const int kept = int(rest);
        const unsigned part = unsigned(kept) | (rest > float(kept) ? 1u : 0u);  // the cut-off rest counts
        const unsigned lift = Rounding::below(0x80000u, unsigned(whole) & 1u, index, key);
        const unsigned subnormal = unsigned(whole) + ((part + lift) >> 20);
        // Masks select the result, since GCC would compile ?: to branches, which it cannot vectorise.
        const unsigned small = 0u - unsigned(bits < 0x38800000u), nan = 0u - unsigned(bits > 0x7F800000u);
        unsigned code = (subnormal & small) | (normal & ~small);
        code = code > 0x7C00u ? 0x7C00u : code;
        code = (code & ~nan) | (0x7E00u & nan);
        using Code = unsigned short;
        return Code(code | (sign >> 16));
    }
};

// A block's scale times a tiny float: 3 bits of mantissa, and 4 bits of exponent beside the sign or 5
// without, less the smallest of them, so that code 0 is 0 and what is near 0 is evenly spaced.
template <bool is_signed>
struct Block8 {
    static constexpr unsigned largest = is_signed ? 127 : 255;
    static constexpr unsigned bias = (is_signed ? 127 - 15 : 127 - 31) << 3;
    static constexpr float offset = is_signed ? 0x1p-15f : 0x1p-31f;
    static constexpr float top_value = 1.875f - offset;  // of the largest code

    static PYOPTIM_FN float decode(unsigned char code, float scale) {
        const float magnitude = (float_of(((code & largest) + bias) << 20) - offset) * scale;
        const unsigned sign = is_signed ? (code & 128u) << 24 : 0u;
        return float_of(bits_of(magnitude) ^ sign);
    }

    // Magnitudes have the same order as these integers, and NaN is the largest, so it makes the whole block
    // NaN.
    static PYOPTIM_FN int magnitude(float x) { return int(bits_of(x) & 0x7FFFFFFFu); }

    // The scale of a block whose largest magnitude is that of `top`.
    static PYOPTIM_FN float scale(float top) {
        return top > 0x1p-100f || top != top ? top / top_value : 0.0f;
    }
    static PYOPTIM_FN float inverse(float top) { return top > 0x1p-100f ? top_value / top : 0.0f; }

    // Rounding is always stochastic: a moving average changes by less than one code in a step, so rounding to
    // nearest would stop it.
    static PYOPTIM_FN unsigned char encode(float x, float inverse, unsigned index, unsigned key) {
        const unsigned bits = bits_of(x);
        const float y = float_of(bits & 0x7FFFFFFFu) * inverse + offset;
        const unsigned up = random_bits(index, key) & 0xFFFFFu;
        const int code = int(((bits_of(y) + up) >> 20) - bias);
        const unsigned clipped = unsigned(code > int(largest) ? int(largest) : code);
        using Code = unsigned char;
        return Code(is_signed ? clipped | (bits >> 24 & 128u) : clipped);
    }
};

}  // namespace storage
}  // namespace pyoptim

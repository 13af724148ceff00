#include "cpu/kernels.hpp"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace pyoptim::cpu::PYOPTIM_ISA {

namespace {

inline void store(const QuantizedDense& d, ptrdiff_t row, ptrdiff_t col, int32_t sum) {
    const float y = static_cast<float>(sum - d.offset[col]) * d.scale[col] + d.bias[col];
    d.y[row * d.n + col] = d.relu && !(y > 0) ? 0.0f : y;
}

#if defined(__AVX512F__)
// Four outputs of a row.
inline void store(const QuantizedDense& d, ptrdiff_t row, ptrdiff_t col, __m128i sums) {
    const __m128i lowered =
        _mm_sub_epi32(sums, _mm_loadu_si128(reinterpret_cast<const __m128i*>(d.offset + col)));
    const __m128 y = _mm_add_ps(_mm_mul_ps(_mm_cvtepi32_ps(lowered), _mm_loadu_ps(d.scale + col)),
                                _mm_loadu_ps(d.bias + col));
    _mm_storeu_ps(d.y + row * d.n + col, d.relu ? _mm_max_ps(y, _mm_setzero_ps()) : y);
}

// The sums of the elements of a, b, c and d.
inline __m128i totals(__m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// The outputs of kRows rows and of four columns or one, which share what they load. An instruction adds four
// products of bytes to each of 16 sums, without rounding or saturation.
template <int kRows, int kCols>
__attribute__((target("avx512vnni"))) void vnni_tile(const QuantizedDense& d, ptrdiff_t row, ptrdiff_t col) {
    __m512i sums[kRows][kCols];
    for (auto& of_row : sums) {
        for (__m512i& sum : of_row) sum = _mm512_setzero_si512();
    }
    for (ptrdiff_t p = 0; p < d.k; p += kQuantizedBlock) {
        __m512i x[kRows];
        for (int r = 0; r < kRows; ++r) x[r] = _mm512_loadu_si512(d.x + (row + r) * d.k + p);
        for (int c = 0; c < kCols; ++c) {
            const __m512i w = _mm512_loadu_si512(d.w + (col + c) * d.k + p);
            for (int r = 0; r < kRows; ++r) sums[r][c] = _mm512_dpbusd_epi32(sums[r][c], x[r], w);
        }
    }
    for (int r = 0; r < kRows; ++r) {
        if constexpr (kCols == 4) {
            store(d, row + r, col, totals(sums[r][0], sums[r][1], sums[r][2], sums[r][3]));
        } else {
            store(d, row + r, col, _mm512_reduce_add_epi32(sums[r][0]));
        }
    }
}

template <int kRows>
void vnni_rows(const QuantizedDense& d, ptrdiff_t row, ptrdiff_t col, ptrdiff_t col_end) {
    for (; col + 4 <= col_end; col += 4) vnni_tile<kRows, 4>(d, row, col);
    for (; col < col_end; ++col) vnni_tile<kRows, 1>(d, row, col);
}

void vnni_dense(const QuantizedDense& d, ptrdiff_t row, ptrdiff_t row_end, ptrdiff_t col, ptrdiff_t col_end) {
    for (; row + 4 <= row_end; row += 4) vnni_rows<4>(d, row, col, col_end);
    for (; row < row_end; ++row) vnni_rows<1>(d, row, col, col_end);
}
#endif

#if defined(__AVX2__)
// Four outputs of a row, for processors without VNNI: products of bytes are those of 16-bit numbers.
void avx2_tile(const QuantizedDense& d, ptrdiff_t row, ptrdiff_t col) {
    __m256i sums[4] = {};
    const auto load = [](const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); };
    for (ptrdiff_t p = 0; p < d.k; p += 16) {
        const __m256i x = _mm256_cvtepu8_epi16(load(d.x + row * d.k + p));
        for (int c = 0; c < 4; ++c) {
            const __m256i w = _mm256_cvtepi8_epi16(load(d.w + (col + c) * d.k + p));
            sums[c] = _mm256_add_epi32(sums[c], _mm256_madd_epi16(x, w));
        }
    }
    for (int c = 0; c < 4; ++c) {
        __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sums[c]), _mm256_extracti128_si256(sums[c], 1));
        half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4E));
        store(d, row, col + c, _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xB1))));
    }
}
#endif

// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to even, without an instruction that
// the baseline lacks.
void quantize(ptrdiff_t n, const float* x, float inverse, float zero, uint8_t* q) {
    constexpr float kRound = 12582912.0f;
    const float low = -zero, high = 255.0f - zero;
    PYOPTIM_NO_OVERLAP
    for (ptrdiff_t i = 0; i < n; ++i) {
        float v = x[i] * inverse;
        v = v > low ? v : low;  // also where v is NaN
        v = v < high ? v : high;
        q[i] = static_cast<uint8_t>(static_cast<int32_t>((v + kRound) - kRound + zero));
    }
}

void dense(const QuantizedDense& d, ptrdiff_t row_begin, ptrdiff_t row_end, ptrdiff_t col_begin,
           ptrdiff_t col_end) {
#if defined(__AVX512F__)
    if (d.vnni) return vnni_dense(d, row_begin, row_end, col_begin, col_end);
#endif
    for (ptrdiff_t i = row_begin; i < row_end; ++i) {
        const uint8_t* const x = d.x + i * d.k;
        ptrdiff_t j = col_begin;
#if defined(__AVX2__)
        for (; j + 4 <= col_end; j += 4) avx2_tile(d, i, j);
#endif
        for (; j < col_end; ++j) {
            const int8_t* const w = d.w + j * d.k;
            int32_t sum = 0;
            for (ptrdiff_t p = 0; p < d.k; ++p) {
                sum += static_cast<int32_t>(static_cast<int16_t>(x[p])) * static_cast<int16_t>(w[p]);
            }
            store(d, i, j, sum);
        }
    }
}

}  // namespace

const QuantizedKernels quantized = {quantize, dense};

}  // namespace pyoptim::cpu::PYOPTIM_ISA

#include "layers/quantized.hpp"

#include <algorithm>

#include "runtime/dispatch.hpp"
#include "runtime/scratch.hpp"
#include "runtime/split.hpp"

namespace pyoptim::core {

namespace {

constexpr std::size_t kProducts = std::size_t{1} << 20;  // that make waking a thread worth while
constexpr std::size_t kTile = 4;                         // rows or columns that a kernel takes at once

bool has_vnni() {
#if defined(__x86_64__)
    static const bool has = (__builtin_cpu_init(), __builtin_cpu_supports("avx512vnni") != 0);
    return has;
#else
    return false;
#endif
}

}  // namespace

void quantized_dense(std::size_t rows, std::size_t in, const float* x, float inverse, float zero,
                     cpu::QuantizedDense layer) {
    const cpu::QuantizedKernels& kernels = quantized_kernels();
    const auto wide = static_cast<std::size_t>(layer.k), out = static_cast<std::size_t>(layer.n);
    std::uint8_t* const bytes = scratch<std::uint8_t>(rows * wide);
    layer.x = bytes;
    layer.vnni = has_vnni();
    const auto quantize = [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
            std::uint8_t* const row = bytes + i * wide;
            kernels.quantize(static_cast<std::ptrdiff_t>(in), x + i * in, inverse, zero, row);
            std::fill(row + in, row + wide, std::uint8_t{0});
        }
    };
    const std::size_t work = rows * out * wide;
    if (rows > 2 * kTile) {
        split(rows, work, kProducts, kTile, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
            quantize(begin, end);
            kernels.dense(layer, begin, end, 0, layer.n);
        });
    } else {
        quantize(0, static_cast<std::ptrdiff_t>(rows));
        split(out, work, kProducts, kTile, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
            kernels.dense(layer, 0, static_cast<std::ptrdiff_t>(rows), begin, end);
        });
    }
}

}  // namespace pyoptim::core

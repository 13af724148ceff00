#include "layers/dropout.hpp"

#include <cmath>
#include <cstdint>

#include "runtime/dispatch.hpp"
#include "runtime/split.hpp"

namespace pyoptim::core {

static_assert(kLine % kStreamBlock == 0, "threads begin where a block of random numbers does");

template <class T>
void dropout(const RandomStream& stream, double p, std::size_t n, const T* x, T* y) {
    const double share = std::rint(p * 0x1p32);
    const auto threshold = static_cast<std::uint32_t>(share < 0xFFFFFFFFp0 ? share : 0xFFFFFFFFp0);
    const T scale = static_cast<T>(1 / (1 - p));
    split(n, n, kExpGrain, kLine, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        kernels<T>().dropout(stream, static_cast<std::uint64_t>(begin), static_cast<std::size_t>(end - begin),
                             threshold, scale, x + begin, y + begin);
    });
}

template <class T>
void gaussian_noise(const RandomStream& stream, double deviation, std::size_t n, const T* x, T* y) {
    split(n, n, kExpGrain, kLine, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        kernels<T>().gaussian_noise(stream, static_cast<std::uint64_t>(begin),
                                    static_cast<std::size_t>(end - begin), static_cast<T>(deviation),
                                    x + begin, y + begin);
    });
}

#define X(T)                                                                          \
    template void dropout<T>(const RandomStream&, double, std::size_t, const T*, T*); \
    template void gaussian_noise<T>(const RandomStream&, double, std::size_t, const T*, T*);
X(float)
X(double)
#undef X

}  // namespace pyoptim::core

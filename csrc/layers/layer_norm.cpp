#include "layers/layer_norm.hpp"

#include <algorithm>

#include "runtime/dispatch.hpp"
#include "runtime/scratch.hpp"
#include "runtime/split.hpp"

namespace pyoptim::core {

namespace {

using std::ptrdiff_t;
using std::size_t;

constexpr ptrdiff_t kPartRows = 32;   // a part has a multiple of this many rows
constexpr ptrdiff_t kMostParts = 32;  // at most so many parts, since each costs a merge of all columns

size_t volume(const LayerNormShape& s) { return static_cast<size_t>(s.rows * s.features); }

// Takes ones for gamma and zeros for beta if they are null; the n elements of each are written to `memory`.
template <class T>
cpu::LayerNorm<T> filled(const LayerNormShape& s, const T* gamma, const T* beta, T* memory) {
    if (gamma == nullptr) std::fill_n(memory, s.features, T(1));
    if (beta == nullptr) std::fill_n(memory + s.features, s.features, T(0));
    return {s.features, gamma != nullptr ? gamma : memory, beta != nullptr ? beta : memory + s.features};
}

}  // namespace

template <class T>
void layer_norm_forward(const LayerNormShape& s, const T* x, const T* gamma, const T* beta, double eps, T* y,
                        T* mean, T* inv_std) {
    const bool is_plain = gamma == nullptr || beta == nullptr;
    T* const memory =
        is_plain ? reinterpret_cast<T*>(scratch<double>(2 * static_cast<size_t>(s.features))) : nullptr;
    const auto it = filled(s, gamma, beta, memory);
    split(static_cast<size_t>(s.rows), volume(s), kGrain, 1, [&](ptrdiff_t begin, ptrdiff_t end) {
        forward_kernels<T>().layer_norm(it, x, begin, end, eps, y, mean, inv_std);
    });
}

template <class T>
void layer_norm_backward(const LayerNormShape& s, const cpu::LayerNormRows<T>& rows, const T* gamma, T* dx,
                         T* dgamma, T* dbeta) {
    const auto wanted = std::min<ptrdiff_t>(kMostParts, static_cast<ptrdiff_t>(volume(s) / kGrain) + 1);
    const ptrdiff_t blocks = (s.rows + kPartRows - 1) / kPartRows;
    const ptrdiff_t part_rows = std::max<ptrdiff_t>(1, (blocks + wanted - 1) / wanted) * kPartRows;
    const ptrdiff_t parts = (s.rows + part_rows - 1) / part_rows;
    // Each part has two vectors of sums in double and two in T, with room for whole lanes.
    const ptrdiff_t width = (s.features + 15) / 16 * 16, of_part = 4 * width;
    double* const sums = scratch<double>(static_cast<size_t>(parts * of_part + 2 * width));
    const auto it = filled<T>(s, gamma, nullptr, reinterpret_cast<T*>(sums + parts * of_part));
    split(static_cast<size_t>(parts), volume(s), kGrain, 1, [&](ptrdiff_t first, ptrdiff_t last) {
        for (ptrdiff_t part = first; part < last; ++part) {
            double* const own = sums + part * of_part;
            const ptrdiff_t begin = part * part_rows;
            kernels<T>().layer_norm_backward(it, rows, begin, std::min(begin + part_rows, s.rows), dx,
                                             reinterpret_cast<T*>(own + 2 * width), own, own + width);
        }
    });
    const auto total = [&](const double* of, T* out) {
        for (ptrdiff_t j = 0; j < s.features; ++j) {
            double sum = 0;
            for (ptrdiff_t part = 0; part < parts; ++part) sum += of[part * of_part + j];
            out[j] = static_cast<T>(sum);
        }
    };
    total(sums, dgamma);
    total(sums + width, dbeta);
}

#define X(T)                                                                                                 \
    template void layer_norm_forward<T>(const LayerNormShape&, const T*, const T*, const T*, double, T*, T*, \
                                        T*);                                                                 \
    template void layer_norm_backward<T>(const LayerNormShape&, const cpu::LayerNormRows<T>&, const T*, T*,  \
                                         T*, T*);
X(float)
X(double)
#undef X

}  // namespace pyoptim::core

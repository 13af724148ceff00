#include "layers/sparse.hpp"

#include <algorithm>

#include "runtime/dispatch.hpp"
#include "runtime/scratch.hpp"
#include "runtime/split.hpp"

namespace pyoptim::core {

namespace {

// Outputs whose weights one pass over the rows takes: these rows of the weight stay in the first cache, and
// their sums in registers.
constexpr std::ptrdiff_t kOutputs = 4;

// Calls body(begin, end) for parts of the outputs on several threads.
template <class T, class Body>
void split_outputs(const DenseShape& s, const SparseRows<T>& x, Body body) {
    const auto values = static_cast<std::size_t>(x.begins[s.batch] - x.begins[0]);
    const auto out = static_cast<std::size_t>(s.out);
    split(out, out * values + out * static_cast<std::size_t>(s.batch), kGrain, kOutputs, body);
}

// Adds the products of a row with kCount rows of the weight, which begin `in` elements apart.
template <class T, std::ptrdiff_t kCount>
void add_products(const SparseRows<T>& x, std::ptrdiff_t row, std::ptrdiff_t in, const T* weight, T* sums) {
    T own[kCount];
    for (std::ptrdiff_t o = 0; o < kCount; ++o) own[o] = sums[o];
    for (std::int64_t k = x.begins[row]; k < x.begins[row + 1]; ++k) {
        const T value = x.values[k];
        const T* const at = weight + x.columns[k];
        for (std::ptrdiff_t o = 0; o < kCount; ++o) own[o] += value * at[o * in];
    }
    for (std::ptrdiff_t o = 0; o < kCount; ++o) sums[o] = own[o];
}

// Adds what a row contributes to kCount rows of the weight's gradient, of which dz is the factor.
template <class T, std::ptrdiff_t kCount>
void add_gradients(const SparseRows<T>& x, std::ptrdiff_t row, std::ptrdiff_t in, const T* dz, T* dweight) {
    T factor[kCount];
    for (std::ptrdiff_t o = 0; o < kCount; ++o) factor[o] = dz[o];
    for (std::int64_t k = x.begins[row]; k < x.begins[row + 1]; ++k) {
        const T value = x.values[k];
        T* const at = dweight + x.columns[k];
        for (std::ptrdiff_t o = 0; o < kCount; ++o) at[o * in] += factor[o] * value;
    }
}

}  // namespace

template <class T>
void sparse_forward(const DenseShape& s, const SparseRows<T>& x, const T* weight, const T* bias,
                    Activation activation, T* y) {
    const cpu::Kernels<T>& table = kernels<T>();
    split_outputs<T>(s, x, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        for (std::ptrdiff_t i = 0; i < s.batch; ++i) {
            T* const to = y + i * s.out;
            for (std::ptrdiff_t o = begin; o < end; ++o) to[o] = bias != nullptr ? bias[o] : T(0);
        }
        for (std::ptrdiff_t o = begin; o < end; o += kOutputs) {
            const bool whole = o + kOutputs <= end;
            for (std::ptrdiff_t i = 0; i < s.batch; ++i) {
                T* const to = y + i * s.out;
                if (whole) {
                    add_products<T, kOutputs>(x, i, s.in, weight + o * s.in, to + o);
                } else {
                    for (std::ptrdiff_t p = o; p < end; ++p) {
                        add_products<T, 1>(x, i, s.in, weight + p * s.in, to + p);
                    }
                }
            }
        }
        if (activation == Activation::identity) return;
        for (std::ptrdiff_t i = 0; i < s.batch; ++i) {
            T* const to = y + i * s.out + begin;
            table.activation_forward(activation, static_cast<std::size_t>(end - begin), to, to);
        }
    });
}

template <class T>
void sparse_backward(const DenseShape& s, const SparseRows<T>& x, const T* dy, const T* y,
                     Activation activation, T* dweight, T* dbias) {
    const cpu::Kernels<T>& table = kernels<T>();
    const auto size = static_cast<std::size_t>(s.batch * s.out);
    T* const memory = activation == Activation::identity ? nullptr : scratch<T>(size);
    const T* const dz = memory == nullptr ? dy : memory;  // the gradient before the activation
    if (memory != nullptr) {
        split(size, size, kGrain, kLine, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
            table.activation_backward(activation, static_cast<std::size_t>(end - begin), dy + begin,
                                      y + begin, memory + begin);
        });
    }
    if (dbias != nullptr) table.column_sum(dz, s.batch, s.out, 0, s.out, dbias);
    split_outputs<T>(s, x, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        for (std::ptrdiff_t o = begin; o < end; o += kOutputs) {
            const std::ptrdiff_t last = std::min(o + kOutputs, end);
            std::fill(dweight + o * s.in, dweight + last * s.in, T(0));
            for (std::ptrdiff_t i = 0; i < s.batch; ++i) {
                const T* const from = dz + i * s.out;
                if (o + kOutputs == last) {
                    add_gradients<T, kOutputs>(x, i, s.in, from + o, dweight + o * s.in);
                } else {
                    for (std::ptrdiff_t p = o; p < last; ++p) {
                        add_gradients<T, 1>(x, i, s.in, from + p, dweight + p * s.in);
                    }
                }
            }
        }
    });
}

#define X(T)                                                                                                 \
    template void sparse_forward<T>(const DenseShape&, const SparseRows<T>&, const T*, const T*, Activation, \
                                    T*);                                                                     \
    template void sparse_backward<T>(const DenseShape&, const SparseRows<T>&, const T*, const T*,            \
                                     Activation, T*, T*);
X(float)
X(double)
#undef X

}  // namespace pyoptim::core

#include "layers/sparse.hpp"

#include <algorithm>

#include "runtime/dispatch.hpp"
#include "runtime/scratch.hpp"
#include "runtime/split.hpp"

namespace pyoptim::core {

namespace {

// Outputs whose weights one pass over the rows takes where there is no transposed copy: these rows of the
// weight stay in the first cache, and their sums in registers.
constexpr std::ptrdiff_t kOutputs = 4;

// How the outputs are shared among threads. Lanes that are outputs need a transposed copy of the weight, or
// of its gradient, which costs as much as some values for each of its columns; so few values do without.
template <class T>
struct Shared {
    const DenseShape& shape;
    const SparseRows<T>& x;
    const cpu::ForwardKernels<T>& table = forward_kernels<T>();
    std::int64_t values = x.begins[shape.batch] - x.begins[0];
    bool packs = values >= shape.in / 2;
    int threads = threads_for(static_cast<std::size_t>(shape.out * (values + shape.batch)), kGrain);

    // The memory that `split` needs: one panel of a transposed copy for each thread.
    std::size_t size() const { return static_cast<std::size_t>(packs ? panel() * threads : 0); }
    std::ptrdiff_t panel() const { return shape.in * table.tile_cols; }

    // Calls body(begin, end, panel) for each few outputs. Those of a thread begin at a whole vector where
    // there are panels.
    template <class Body>
    void split(T* memory, Body body) const {
        const std::ptrdiff_t wide = packs ? table.tile_cols : kOutputs;
        const std::ptrdiff_t unit = packs ? table.lanes : kOutputs;
        parallel(threads, [&](int thread, int parts) {
            const auto [begin, end] =
                share(static_cast<std::size_t>(shape.out), static_cast<std::size_t>(unit), thread, parts);
            T* const own = packs ? memory + panel() * thread : nullptr;
            const auto last = static_cast<std::ptrdiff_t>(end);
            for (auto o = static_cast<std::ptrdiff_t>(begin); o < last; o += wide) {
                body(o, std::min(o + wide, last), own);
            }
        });
    }
};

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

// Adds the products with the rows [begin, end) of the weight to these columns of y.
template <class T>
void multiply(const Shared<T>& it, std::ptrdiff_t begin, std::ptrdiff_t end, const T* weight, T* panel,
              T* y) {
    const auto [batch, in, out] = it.shape;
    if (it.packs) {
        it.table.pack_weight(weight + begin * in, end - begin, in, 0, in, 0, end - begin, panel);
        it.table.sparse_product(it.x, {panel, end - begin, batch, out}, y + begin);
        return;
    }
    for (std::ptrdiff_t i = 0; i < batch; ++i) {
        T* const to = y + i * out;
        if (begin + kOutputs == end) {
            add_products<T, kOutputs>(it.x, i, in, weight + begin * in, to + begin);
        } else {
            for (std::ptrdiff_t o = begin; o < end; ++o) {
                add_products<T, 1>(it.x, i, in, weight + o * in, to + o);
            }
        }
    }
}

// Writes the rows [begin, end) of the weight's gradient.
template <class T>
void gradient(const Shared<T>& it, std::ptrdiff_t begin, std::ptrdiff_t end, const T* dz, T* panel,
              T* dweight) {
    const auto [batch, in, out] = it.shape;
    if (it.packs) {
        std::fill(panel, panel + it.panel(), T(0));
        it.table.sparse_gradient(it.x, {panel, end - begin, batch, out}, dz + begin);
        it.table.unpack_weight(panel, in, end - begin, dweight + begin * in);
        return;
    }
    std::fill(dweight + begin * in, dweight + end * in, T(0));
    for (std::ptrdiff_t i = 0; i < batch; ++i) {
        const T* const from = dz + i * out;
        if (begin + kOutputs == end) {
            add_gradients<T, kOutputs>(it.x, i, in, from + begin, dweight + begin * in);
        } else {
            for (std::ptrdiff_t o = begin; o < end; ++o) {
                add_gradients<T, 1>(it.x, i, in, from + o, dweight + o * in);
            }
        }
    }
}

}  // namespace

template <class T>
void sparse_forward(const DenseShape& s, const SparseRows<T>& x, const T* weight, const T* bias,
                    Activation activation, T* y) {
    const Shared<T> it = {s, x};
    it.split(scratch<T>(it.size()), [&](std::ptrdiff_t begin, std::ptrdiff_t end, T* panel) {
        for (std::ptrdiff_t i = 0; i < s.batch; ++i) {
            for (std::ptrdiff_t o = begin; o < end; ++o) y[i * s.out + o] = bias != nullptr ? bias[o] : T(0);
        }
        multiply(it, begin, end, weight, panel, y);
        if (activation == Activation::identity) return;
        for (std::ptrdiff_t i = 0; i < s.batch; ++i) {
            T* const to = y + i * s.out + begin;
            it.table.activation_forward(activation, static_cast<std::size_t>(end - begin), to, to);
        }
    });
}

template <class T>
void sparse_backward(const DenseShape& s, const SparseRows<T>& x, const T* dy, const T* y,
                     Activation activation, T* dweight, T* dbias) {
    const Shared<T> it = {s, x};
    const auto size = static_cast<std::size_t>(s.batch * s.out);
    const bool has_activation = activation != Activation::identity;
    T* const panels = scratch<T>(it.size() + (has_activation ? size : 0));
    T* const memory = panels + it.size();
    const T* const dz = has_activation ? memory : dy;  // the gradient before the activation
    if (has_activation) {
        split(size, size, kGrain, kLine, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
            kernels<T>().activation_backward(activation, static_cast<std::size_t>(end - begin), dy + begin,
                                             y + begin, memory + begin);
        });
    }
    if (dbias != nullptr) kernels<T>().column_sum(dz, s.batch, s.out, 0, s.out, dbias);
    it.split(panels, [&](std::ptrdiff_t begin, std::ptrdiff_t end, T* panel) {
        gradient(it, begin, end, dz, panel, dweight);
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

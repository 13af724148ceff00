#include "runtime/layers.hpp"

#include <memory>
#include <new>

#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"
#include "runtime/reduce.hpp"

namespace pyoptim::runtime {

namespace {

// What pays for waking a thread: elements of a streaming kernel, elements with an exp, multiply-adds.
// About 20 us each: on a busy machine a woken thread may come late, and everyone waits for it.
constexpr std::size_t kGrain = 65536, kExpGrain = 8192, kProductGrain = 1 << 20;
constexpr std::size_t kLine = 64;  // elements; splits fall on cache lines

// Scratch for packing, kept by the calling thread for its next product.
template <class T>
T* scratch(std::size_t n) {
    struct Free {
        void operator()(T* p) const { ::operator delete(p, std::align_val_t(64)); }
    };
    thread_local std::unique_ptr<T, Free> memory;
    thread_local std::size_t size = 0;
    if (size < n) {
        memory.reset(static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64))));
        size = n;
    }
    return memory.get();
}

// Splits the longer side of y, in tiles.
template <class T>
void run_product(const cpu::Product<T>& it) {
    if (it.m == 0 || it.n == 0) return;
    const cpu::Kernels<T>& table = kernels<T>();
    const std::size_t work = static_cast<std::size_t>(it.m * it.n) * static_cast<std::size_t>(it.k + 1);
    const bool by_rows = it.m / table.tile_rows >= it.n / table.tile_cols;
    const int most = threads_for(work, kProductGrain);
    // All threads' memory is asked for here: nothing may throw where they run.
    T* const all = scratch<T>(table.product_scratch * static_cast<std::size_t>(most));
    parallel(most, [&](int thread, int threads) {
        T* const memory = all + table.product_scratch * static_cast<std::size_t>(thread);
        const std::ptrdiff_t length = by_rows ? it.m : it.n;
        const std::ptrdiff_t unit = by_rows ? table.tile_rows : table.tile_cols;
        const Range mine =
            share(static_cast<std::size_t>(length), static_cast<std::size_t>(unit), thread, threads);
        const auto begin = static_cast<std::ptrdiff_t>(mine.begin);
        const auto end = static_cast<std::ptrdiff_t>(mine.end);
        if (by_rows) {
            table.product(it, begin, end, 0, it.n, memory);
        } else {
            table.product(it, 0, it.m, begin, end, memory);
        }
    });
}

// Calls body(begin, end) on the parts of [0, n).
template <class Body>
void split(std::size_t n, std::size_t work, std::size_t grain, std::size_t unit, Body body) {
    parallel(threads_for(work, grain), [&](int thread, int threads) {
        const Range mine = share(n, unit, thread, threads);
        if (mine.begin < mine.end) {
            body(static_cast<std::ptrdiff_t>(mine.begin), static_cast<std::ptrdiff_t>(mine.end));
        }
    });
}

std::size_t volume(const NormShape& s) { return static_cast<std::size_t>(s.batch * s.channels * s.space); }

template <class Body>
void split_channels(const NormShape& shape, Body body) {
    const std::size_t unit = shape.space == 1 ? kLine : 1;
    split(static_cast<std::size_t>(shape.channels), volume(shape), kGrain, unit, body);
}

}  // namespace

template <class T>
void dense_forward(const DenseShape& s, const T* x, const T* weight, const T* bias, Activation activation,
                   T* y) {
    run_product<T>({s.batch, s.out, s.in, {x, s.in, 1}, {weight, 1, s.in}, y, bias, activation});
}

template <class T>
void dense_backward(const DenseShape& s, const T* dz, const T* x, const T* weight, T* dx, T* dweight,
                    T* dbias) {
    constexpr Activation none = Activation::identity;
    run_product<T>({s.out, s.in, s.batch, {dz, 1, s.out}, {x, s.in, 1}, dweight, nullptr, none});
    if (dx != nullptr) {
        run_product<T>({s.batch, s.in, s.out, {dz, s.out, 1}, {weight, s.in, 1}, dx, nullptr, none});
    }
    if (dbias != nullptr) {
        split(static_cast<std::size_t>(s.out), static_cast<std::size_t>(s.batch * s.out), kGrain, kLine,
              [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
                  kernels<T>().column_sum(dz, s.batch, s.out, begin, end, dbias);
              });
    }
}

template <class T>
void activation_forward(Activation kind, std::size_t n, const T* x, T* y) {
    split(n, n, kExpGrain, kLine, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        kernels<T>().activation_forward(kind, static_cast<std::size_t>(end - begin), x + begin, y + begin);
    });
}

template <class T>
void activation_backward(Activation kind, std::size_t n, const T* dy, const T* y, T* dx) {
    split(n, n, kGrain, kLine, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        kernels<T>().activation_backward(kind, static_cast<std::size_t>(end - begin), dy + begin, y + begin,
                                         dx + begin);
    });
}

template <class T>
void norm_statistics(const NormShape& shape, const T* x, double* mean, double* var) {
    split_channels(shape, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        kernels<T>().norm_statistics(shape, x, begin, end, mean, var);
    });
}

template <class T>
void norm_apply(const NormShape& shape, const T* x, const T* mean, const T* inv_std, const T* gamma,
                const T* beta, T* y) {
    split_channels(shape, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        kernels<T>().norm_apply(shape, x, begin, end, mean, inv_std, gamma, beta, y);
    });
}

template <class T>
void norm_backward(const NormShape& shape, const T* dy, const T* x, const NormSaved<T>& saved, const T* gamma,
                   T* dx, T* dgamma, T* dbeta) {
    split_channels(shape, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        kernels<T>().norm_backward(shape, dy, x, begin, end, saved, gamma, dx, dgamma, dbeta);
    });
}

template <class T>
double softmax_cross_entropy(std::ptrdiff_t batch, std::ptrdiff_t classes, const T* logits,
                             const std::int64_t* labels, T* dlogits) {
    const auto n = static_cast<std::size_t>(batch);
    const T scale = T(1.0 / static_cast<double>(batch));
    return sum_of_blocks(n, 64, n * static_cast<std::size_t>(classes), kExpGrain,
                         [&](std::size_t begin, std::size_t end) {
                             return kernels<T>().softmax_cross_entropy(
                                 logits, labels, classes, static_cast<std::ptrdiff_t>(begin),
                                 static_cast<std::ptrdiff_t>(end), scale, dlogits);
                         }) /
           static_cast<double>(batch);
}

template <class T>
double squared_error(std::size_t n, const T* prediction, const T* target, T* dprediction) {
    const T scale = T(1.0 / static_cast<double>(n));
    return sum_of_blocks(n, 4096, n, kGrain,
                         [&](std::size_t begin, std::size_t end) {
                             return kernels<T>().squared_error(
                                 end - begin, prediction + begin, target + begin, scale,
                                 dprediction == nullptr ? nullptr : dprediction + begin);
                         }) /
           static_cast<double>(n);
}

#define X(T)                                                                                                \
    template void dense_forward<T>(const DenseShape&, const T*, const T*, const T*, Activation, T*);        \
    template void dense_backward<T>(const DenseShape&, const T*, const T*, const T*, T*, T*, T*);           \
    template void activation_forward<T>(Activation, std::size_t, const T*, T*);                             \
    template void activation_backward<T>(Activation, std::size_t, const T*, const T*, T*);                  \
    template void norm_statistics<T>(const NormShape&, const T*, double*, double*);                         \
    template void norm_apply<T>(const NormShape&, const T*, const T*, const T*, const T*, const T*, T*);    \
    template void norm_backward<T>(const NormShape&, const T*, const T*, const NormSaved<T>&, const T*, T*, \
                                   T*, T*);                                                                 \
    template double softmax_cross_entropy<T>(std::ptrdiff_t, std::ptrdiff_t, const T*, const std::int64_t*, \
                                             T*);                                                           \
    template double squared_error<T>(std::size_t, const T*, const T*, T*);
X(float)
X(double)
#undef X

}  // namespace pyoptim::runtime

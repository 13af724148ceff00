#include "runtime/norm.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>

#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"

namespace pyoptim::runtime {

namespace {

using cpu::NormCoefficients;
using cpu::NormMatrix;
using std::ptrdiff_t;
using std::size_t;

constexpr size_t kGrain = 65536;      // elements that pay for waking a thread
constexpr ptrdiff_t kPartRows = 16;   // parts of columns are multiples of a kernel's block
constexpr ptrdiff_t kMostParts = 32;  // each costs a merge of all columns

// Kept by the calling thread for its next call. Nothing may throw where threads run.
double* scratch(size_t n) {
    struct Free {
        void operator()(double* p) const { ::operator delete(p, std::align_val_t(64)); }
    };
    thread_local std::unique_ptr<double, Free> memory;
    thread_local size_t size = 0;
    if (size < n) {
        size = 0;
        memory.reset(static_cast<double*>(::operator new(n * sizeof(double), std::align_val_t(64))));
        size = n;
    }
    return memory.get();
}

// How a shape is worked on, whatever the number of threads: as rows of whole columns, of which parts are
// summed apart, or, where a channel's run within an example is long, by runs.
struct Plan {
    NormMatrix matrix;
    ptrdiff_t parts;      // of partial sums
    ptrdiff_t part_rows;  // rows that are worked on together
    ptrdiff_t width;      // partial sums of a part, with room for whole vectors
    size_t volume;

    explicit Plan(const NormShape& s) : volume(static_cast<size_t>(s.batch * s.channels * s.space)) {
        const bool by_columns = s.space < 16 || (s.space < 256 && s.batch >= 64);
        if (by_columns) {
            matrix = {s.batch, s.channels * s.space, 0};
            const auto wanted = std::min<ptrdiff_t>(kMostParts, static_cast<ptrdiff_t>(volume / kGrain) + 1);
            const ptrdiff_t blocks = (s.batch + kPartRows - 1) / kPartRows;
            part_rows = std::max<ptrdiff_t>(1, (blocks + wanted - 1) / wanted) * kPartRows;
            parts = (s.batch + part_rows - 1) / part_rows;
            width = (matrix.cols + 31) / 16 * 16;
        } else {
            matrix = {s.batch * s.channels, s.space, s.channels};
            part_rows = 1;
            parts = s.batch;
            width = s.channels;
        }
    }

    bool by_columns() const { return matrix.channels == 0; }
    // Values that a partial sum of this part is over.
    double count(ptrdiff_t part) const {
        if (!by_columns()) return static_cast<double>(matrix.cols);
        return static_cast<double>(std::min(part_rows, matrix.rows - part * part_rows));
    }
    // Where the partial sums of a row on are.
    size_t partial(ptrdiff_t row) const {
        return static_cast<size_t>(by_columns() ? row / part_rows * width : row);
    }

    // body(begin, end) on all rows: each thread its own share, in the order given, so that what it saw last
    // is still in its caches when it comes back.
    template <class Body>
    void each(bool ascending, Body body) const {
        const size_t groups = static_cast<size_t>((matrix.rows + part_rows - 1) / part_rows);
        parallel(threads_for(volume, kGrain), [&](int thread, int threads) {
            const Range mine = share(groups, 1, thread, threads);
            for (size_t i = mine.begin; i < mine.end; ++i) {
                const size_t group = ascending ? i : mine.begin + mine.end - 1 - i;
                const ptrdiff_t begin = static_cast<ptrdiff_t>(group) * part_rows;
                body(begin, std::min(begin + part_rows, matrix.rows));
            }
        });
    }
};

// Coefficients for the kernels: as many as there are columns, or channels.
template <class T>
struct Coefficients {
    T *mean, *scale, *shift, *slope, *offset;
    size_t n, repeat;

    Coefficients(const Plan& plan, const NormShape& s, double* memory)
        : n(static_cast<size_t>(plan.by_columns() ? plan.matrix.cols : s.channels)),
          repeat(static_cast<size_t>(plan.by_columns() ? s.space : 1)) {
        T* next = reinterpret_cast<T*>(memory);
        const size_t stride = (n + 15) / 16 * 16;
        for (T** field : {&mean, &scale, &shift, &slope, &offset}) {
            *field = next;
            next += stride;
        }
    }
    static size_t doubles(const Plan& plan, const NormShape& s) {
        const auto n = static_cast<size_t>(std::max(plan.by_columns() ? plan.matrix.cols : 0, s.channels));
        return 5 * ((n + 15) / 16 * 16);
    }
    void set(size_t channel, T m, T k, T b, T down, T off) {
        for (size_t i = channel * repeat; i < (channel + 1) * repeat; ++i) {
            mean[i] = m;
            scale[i] = k;
            shift[i] = b;
            slope[i] = down;
            offset[i] = off;
        }
    }
    NormCoefficients<T> view() const { return {mean, scale, shift, slope, offset}; }
};

// Where lanes overflow, or meet infinity, as two passes in double would have it.
template <class T>
void careful_moments(const NormShape& s, const T* x, ptrdiff_t channel, double& mean, double& m2) {
    const auto each = [&](auto visit) {
        for (ptrdiff_t n = 0; n < s.batch; ++n) {
            const T* run = x + (n * s.channels + channel) * s.space;
            for (ptrdiff_t i = 0; i < s.space; ++i) visit(static_cast<double>(run[i]));
        }
    };
    double sum = 0, squares = 0;
    each([&](double value) { sum += value; });
    mean = sum / static_cast<double>(s.batch * s.space);
    each([&](double value) { squares += (value - mean) * (value - mean); });
    m2 = squares;
}

// Leaves the channels' mean and sum of squares about it in the first of these.
template <class T>
void moments(const NormShape& s, const Plan& plan, const T* x, double* mean, double* m2) {
    const auto& table = kernels<T>();
    plan.each(true, [&](ptrdiff_t begin, ptrdiff_t end) {
        table.norm_moments(plan.matrix, x, begin, end, mean + plan.partial(begin), m2 + plan.partial(begin));
    });
    const ptrdiff_t live = plan.by_columns() ? plan.matrix.cols : s.channels;
    double seen = plan.count(0);
    for (ptrdiff_t part = 1; part < plan.parts; ++part) {
        table.norm_merge(live, seen, mean, m2, plan.count(part), mean + part * plan.width,
                         m2 + part * plan.width);
        seen += plan.count(part);
    }
    const ptrdiff_t repeat = plan.by_columns() ? s.space : 1;
    for (ptrdiff_t c = 0; c < s.channels; ++c) {
        double total = mean[c * repeat], squares = m2[c * repeat];
        for (ptrdiff_t i = 1; i < repeat; ++i) {
            table.norm_merge(1, seen * static_cast<double>(i), &total, &squares, seen, mean + c * repeat + i,
                             m2 + c * repeat + i);
        }
        if (!std::isfinite(squares)) careful_moments(s, x, c, total, squares);
        mean[c] = total;
        m2[c] = squares < 0 ? 0 : squares;
    }
}

}  // namespace

template <class T>
void norm_forward(const NormShape& s, const T* x, const NormAffine<T>& affine, const NormRunning<T>& running,
                  const NormOptions& options, T* y, T* mean, T* inv_std) {
    if (s.channels == 0) return;
    const Plan plan(s);
    const size_t partial = static_cast<size_t>(plan.parts * plan.width);
    const bool of_this_batch = options.training || running.mean == nullptr;
    double* const memory = scratch(Coefficients<T>::doubles(plan, s) + (of_this_batch ? 2 * partial : 0));
    Coefficients<T> k(plan, s, memory);
    double* const means = memory + Coefficients<T>::doubles(plan, s);
    double* const squares = means + partial;
    if (of_this_batch) moments(s, plan, x, means, squares);
    const double count = static_cast<double>(s.batch * s.space);
    for (ptrdiff_t c = 0; c < s.channels; ++c) {
        double var;
        if (of_this_batch) {
            var = squares[c] / count;
            mean[c] = static_cast<T>(means[c]);
            if (options.training && running.mean != nullptr) {
                const double seen = options.unbiased ? squares[c] / (count - 1) : var;
                const double a = options.momentum;
                running.mean[c] =
                    static_cast<T>((1 - a) * static_cast<double>(running.mean[c]) + a * means[c]);
                running.var[c] = static_cast<T>((1 - a) * static_cast<double>(running.var[c]) + a * seen);
            }
        } else {
            var = static_cast<double>(running.var[c]);
            mean[c] = running.mean[c];
        }
        inv_std[c] = static_cast<T>(1 / std::sqrt(var + options.eps));
        const T scale = affine.gamma != nullptr ? affine.gamma[c] * inv_std[c] : inv_std[c];
        k.set(static_cast<size_t>(c), mean[c], scale, affine.beta != nullptr ? affine.beta[c] : T(0), T(0),
              T(0));
    }
    plan.each(!of_this_batch, [&](ptrdiff_t begin, ptrdiff_t end) {
        kernels<T>().norm_apply(plan.matrix, x, begin, end, k.view(), options.relu, y);
    });
}

template <class T>
void norm_backward(const NormShape& s, const T* dy, const T* x, const NormAffine<T>& affine,
                   const NormSaved<T>& saved, T* dx, T* dgamma, T* dbeta) {
    if (s.channels == 0) return;
    const Plan plan(s);
    const size_t partial = static_cast<size_t>(plan.parts * plan.width);
    double* const memory = scratch(Coefficients<T>::doubles(plan, s) + 2 * partial);
    Coefficients<T> k(plan, s, memory);
    double* const sums = memory + Coefficients<T>::doubles(plan, s);
    double* const products = sums + partial;
    for (ptrdiff_t c = 0; c < s.channels; ++c) {
        const T scale = affine.gamma != nullptr ? affine.gamma[c] * saved.inv_std[c] : saved.inv_std[c];
        k.set(static_cast<size_t>(c), saved.mean[c], scale, affine.beta != nullptr ? affine.beta[c] : T(0),
              T(0), T(0));
    }
    const auto& table = kernels<T>();
    plan.each(true, [&](ptrdiff_t begin, ptrdiff_t end) {
        table.norm_products(plan.matrix, dy, x, begin, end, k.view(), saved.relu, sums + plan.partial(begin),
                            products + plan.partial(begin));
    });
    const ptrdiff_t live = static_cast<ptrdiff_t>(k.n);
    for (ptrdiff_t part = 1; part < plan.parts; ++part) {
        const double *const sum = sums + part * plan.width, *const product = products + part * plan.width;
        for (ptrdiff_t j = 0; j < live; ++j) {
            sums[j] += sum[j];
            products[j] += product[j];
        }
    }
    const double count = static_cast<double>(s.batch * s.space);
    const auto repeat = static_cast<ptrdiff_t>(k.repeat);
    for (ptrdiff_t c = 0; c < s.channels; ++c) {
        double sum = 0, product = 0;
        if (plan.parts > 0) {
            for (ptrdiff_t i = c * repeat; i < (c + 1) * repeat; ++i) {
                sum += sums[i];
                product += products[i];
            }
        }
        const double inv_std = static_cast<double>(saved.inv_std[c]);
        const T scale = affine.gamma != nullptr ? affine.gamma[c] * saved.inv_std[c] : saved.inv_std[c];
        const double share = static_cast<double>(scale) / count;
        dbeta[c] = static_cast<T>(sum);
        dgamma[c] = static_cast<T>(product * inv_std);
        k.set(static_cast<size_t>(c), saved.mean[c], scale, affine.beta != nullptr ? affine.beta[c] : T(0),
              static_cast<T>(product * inv_std * inv_std * share), static_cast<T>(sum * share));
    }
    if (dx == nullptr) return;
    plan.each(false, [&](ptrdiff_t begin, ptrdiff_t end) {
        table.norm_gradient(plan.matrix, dy, x, begin, end, k.view(), saved.relu, saved.of_this_batch, dx);
    });
}

#define X(T)                                                                                               \
    template void norm_forward<T>(const NormShape&, const T*, const NormAffine<T>&, const NormRunning<T>&, \
                                  const NormOptions&, T*, T*, T*);                                         \
    template void norm_backward<T>(const NormShape&, const T*, const T*, const NormAffine<T>&,             \
                                   const NormSaved<T>&, T*, T*, T*);
X(float)
X(double)
#undef X

}  // namespace pyoptim::runtime

#include "layers/norm.hpp"

#include <algorithm>
#include <limits>

#include "formulas/norms.hpp"
#include "runtime/dispatch.hpp"
#include "runtime/scratch.hpp"
#include "runtime/split.hpp"

namespace pyoptim::core {

namespace {

using cpu::NormCoefficients;
using cpu::NormMatrix;
using std::ptrdiff_t;
using std::size_t;

constexpr ptrdiff_t kPartRows = 64;   // a part has a multiple of this many rows, the block of a kernel
constexpr ptrdiff_t kMostParts = 32;  // at most so many parts, since each costs a merge of all columns
// Several rows of fewer than kNarrow columns are taken as one row of up to kFolded columns.
constexpr ptrdiff_t kNarrow = 64, kFolded = 256;

// The way in which a shape is divided, which does not depend on the number of threads. If the run of a
// channel within an example is short, the matrix has whole columns, and its parts are summed separately. If
// it is long, each run is a row. Several examples with few values may share a row, if their number is
// divisible.
struct Plan {
    NormMatrix matrix;
    ptrdiff_t parts;      // how many parts have partial sums of their own
    ptrdiff_t part_rows;  // how many rows are worked on together
    ptrdiff_t width;      // the number of partial sums of a part, with room for whole vectors
    ptrdiff_t folds = 1;  // how many examples share a row, if rows have whole columns
    size_t volume;

    explicit Plan(const NormShape& s) : volume(static_cast<size_t>(s.batch * s.channels * s.space)) {
        const bool by_columns = s.space < 16 || (s.space < 256 && s.batch >= 64);
        if (by_columns) {
            const ptrdiff_t width_of_one = s.channels * s.space;
            if (width_of_one > 0 && width_of_one < kNarrow) {
                for (folds = kFolded / width_of_one; s.batch % folds != 0;) --folds;
            }
            matrix = {s.batch / folds, width_of_one * folds, 0};
            const auto wanted = std::min<ptrdiff_t>(kMostParts, static_cast<ptrdiff_t>(volume / kGrain) + 1);
            const ptrdiff_t blocks = (matrix.rows + kPartRows - 1) / kPartRows;
            part_rows = std::max<ptrdiff_t>(1, (blocks + wanted - 1) / wanted) * kPartRows;
            parts = (matrix.rows + part_rows - 1) / part_rows;
            width = (matrix.cols + 31) / 16 * 16;
        } else {
            matrix = {s.batch * s.channels, s.space, s.channels};
            part_rows = 1;
            parts = s.batch;
            width = s.channels;
        }
    }

    bool by_columns() const { return matrix.channels == 0; }
    // The number of values that a partial sum of this part covers.
    double count(ptrdiff_t part) const {
        if (!by_columns()) return static_cast<double>(matrix.cols);
        return static_cast<double>(std::min(part_rows, matrix.rows - part * part_rows));
    }
    // The index of the first partial sum of the part that begins at this row.
    size_t partial(ptrdiff_t row) const {
        return static_cast<size_t>(by_columns() ? row / part_rows * width : row);
    }

    // Calls body(begin, end) for all rows. Each thread visits its own share in the given order; in the
    // reverse order of the previous pass, it begins with the rows that are still in its caches.
    template <class Body>
    void each(bool ascending, Body body) const {
        const size_t groups = static_cast<size_t>((matrix.rows + part_rows - 1) / part_rows);
        split(groups, volume, kGrain, 1, [&](ptrdiff_t first, ptrdiff_t last) {
            for (ptrdiff_t i = first; i < last; ++i) {
                const ptrdiff_t begin = (ascending ? i : first + last - 1 - i) * part_rows;
                body(begin, std::min(begin + part_rows, matrix.rows));
            }
        });
    }
};

// The coefficients of the kernels: one for each column of the matrix, or one for each channel if rows are
// runs.
template <class T>
struct Coefficients {
    T *mean, *scale, *shift, *slope, *offset;
    ptrdiff_t n, channels, repeat, folds;

    Coefficients(const Plan& plan, const NormShape& s, double* memory)
        : channels(s.channels), repeat(plan.by_columns() ? s.space : 1), folds(plan.folds) {
        n = folds * channels * repeat;
        T* next = reinterpret_cast<T*>(memory);
        for (T** field : {&mean, &scale, &shift, &slope, &offset}) {
            *field = next;
            next += (n + 15) / 16 * 16;
        }
    }
    static size_t doubles(const Plan& plan, const NormShape& s) {
        const ptrdiff_t n = std::max(plan.by_columns() ? plan.matrix.cols : 0, s.channels);
        return static_cast<size_t>(5 * ((n + 15) / 16 * 16));
    }

    // Calls visit(column) for each column of a channel.
    template <class Visit>
    void each_column(ptrdiff_t channel, Visit visit) const {
        for (ptrdiff_t f = 0; f < folds; ++f) {
            for (ptrdiff_t i = 0; i < repeat; ++i) visit((f * channels + channel) * repeat + i);
        }
    }
    // Sets field[column] to of(channel) for all columns.
    template <class Of>
    void fill(T* field, Of of) const {
        if (repeat == 1) {
            for (ptrdiff_t c = 0; c < channels; ++c) field[c] = of(c);
        } else {
            for (ptrdiff_t c = 0; c < channels; ++c) std::fill_n(field + c * repeat, repeat, of(c));
        }
        for (ptrdiff_t f = 1; f < folds; ++f) {
            std::copy_n(field, channels * repeat, field + f * channels * repeat);
        }
    }
    void fill_forward(const NormAffine<T>& affine, const T* means, const T* inv_std) const {
        fill(mean, [=](ptrdiff_t c) { return means[c]; });
        fill(scale, [=](ptrdiff_t c) { return math::norm_scale(affine.gamma, inv_std, c); });
        if (affine.beta != nullptr) {
            fill(shift, [=](ptrdiff_t c) { return affine.beta[c]; });
        } else {
            fill(shift, [](ptrdiff_t) { return T(0); });
        }
    }
    NormCoefficients<T> view() const { return {mean, scale, shift, slope, offset}; }
};

template <class T>
void careful_moments(const NormShape& s, const T* x, ptrdiff_t channel, double& mean, double& m2) {
    math::careful_moments(static_cast<double>(s.batch * s.space), mean, m2, [&](auto term) {
        double sum = 0;
        for (ptrdiff_t n = 0; n < s.batch; ++n) {
            const T* run = x + (n * s.channels + channel) * s.space;
            for (ptrdiff_t i = 0; i < s.space; ++i) sum += term(static_cast<double>(run[i]));
        }
        return sum;
    });
}

// Writes the mean of each channel and the sum of squares about it to the first elements of mean and m2.
template <class T>
void moments(const NormShape& s, const Plan& plan, const Coefficients<T>& k, const T* x, double* mean,
             double* m2) {
    const auto& table = forward_kernels<T>();
    plan.each(true, [&](ptrdiff_t begin, ptrdiff_t end) {
        table.norm_moments(plan.matrix, x, begin, end, mean + plan.partial(begin), m2 + plan.partial(begin));
    });
    double seen = plan.count(0);
    for (ptrdiff_t part = 1; part < plan.parts; ++part) {
        table.norm_merge(k.n, seen, mean, m2, plan.count(part), mean + part * plan.width,
                         m2 + part * plan.width);
        seen += plan.count(part);
    }
    for (ptrdiff_t c = 0; k.n > s.channels && c < s.channels; ++c) {
        double total = 0, squares = 0, before = 0;
        k.each_column(c, [&](ptrdiff_t column) {
            table.norm_merge(1, before, &total, &squares, seen, mean + column, m2 + column);
            before += seen;
        });
        mean[c] = total;
        m2[c] = squares;
    }
    bool finite = true;
    for (ptrdiff_t c = 0; c < s.channels; ++c) {
        m2[c] = m2[c] < 0 ? 0 : m2[c];
        finite &= m2[c] <= std::numeric_limits<double>::max();
    }
    for (ptrdiff_t c = 0; !finite && c < s.channels; ++c) {
        if (!(m2[c] <= std::numeric_limits<double>::max())) careful_moments(s, x, c, mean[c], m2[c]);
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
    double* const memory =
        scratch<double>(Coefficients<T>::doubles(plan, s) + (of_this_batch ? 2 * partial : 0));
    const Coefficients<T> k(plan, s, memory);
    double* const means = memory + Coefficients<T>::doubles(plan, s);
    double* const squares = means + partial;
    const ptrdiff_t channels = s.channels;
    if (of_this_batch) {
        moments(s, plan, k, x, means, squares);
        const double count = static_cast<double>(s.batch * s.space), a = options.momentum;
        if (options.training && running.mean != nullptr) {
            const double share = 1 / (options.unbiased ? count - 1 : count);
            for (ptrdiff_t c = 0; c < channels; ++c) {
                running.mean[c] = math::running_statistic(running.mean[c], means[c], a);
            }
            for (ptrdiff_t c = 0; c < channels; ++c) {
                running.var[c] = math::running_statistic(running.var[c], squares[c] * share, a);
            }
        }
        const double share = 1 / count;
        for (ptrdiff_t c = 0; c < channels; ++c) mean[c] = static_cast<T>(means[c]);
        for (ptrdiff_t c = 0; c < channels; ++c) {
            inv_std[c] = math::inverse_deviation<T>(squares[c] * share, options.eps);
        }
    } else {
        std::copy_n(running.mean, channels, mean);
        for (ptrdiff_t c = 0; c < channels; ++c) {
            inv_std[c] = math::inverse_deviation<T>(static_cast<double>(running.var[c]), options.eps);
        }
    }
    k.fill_forward(affine, mean, inv_std);
    plan.each(!of_this_batch, [&](ptrdiff_t begin, ptrdiff_t end) {
        forward_kernels<T>().norm_apply(plan.matrix, x, begin, end, k.view(), options.relu, y);
    });
}

template <class T>
RunningNorm<T>::RunningNorm(ptrdiff_t channels, ptrdiff_t space) : shape_{kFolded, channels, space} {}

template <class T>
void RunningNorm<T>::prepare(const NormAffine<T>& affine, const NormRunning<T>& running, double eps) {
    const Plan plan(shape_);
    const size_t coefficients = Coefficients<T>::doubles(plan, shape_);
    memory_.resize(coefficients + static_cast<size_t>(shape_.channels));
    T* const inv_std = reinterpret_cast<T*>(memory_.data() + coefficients);
    for (ptrdiff_t c = 0; c < shape_.channels; ++c) {
        inv_std[c] = math::inverse_deviation<T>(static_cast<double>(running.var[c]), eps);
    }
    Coefficients<T>(plan, shape_, memory_.data()).fill_forward(affine, running.mean, inv_std);
}

template <class T>
void RunningNorm<T>::apply(ptrdiff_t n, bool relu, const T* x, T* y) {
    const Plan plan(shape_);
    const NormCoefficients<T> k = Coefficients<T>(plan, shape_, memory_.data()).view();
    const auto apply_to = [&](const NormMatrix& matrix, ptrdiff_t at) {
        forward_kernels<T>().norm_apply(matrix, x + at, 0, matrix.rows, k, relu, y + at);
    };
    if (!plan.by_columns()) return apply_to({n * shape_.channels, shape_.space, shape_.channels}, 0);
    const ptrdiff_t whole = n / plan.folds, cols = plan.matrix.cols;
    apply_to({whole, cols, 0}, 0);
    apply_to({n % plan.folds, cols / plan.folds, 0}, whole * cols);
}

template <class T>
void norm_backward(const NormShape& s, const T* dy, const T* x, const NormAffine<T>& affine,
                   const NormSaved<T>& saved, T* dx, T* dgamma, T* dbeta) {
    if (s.batch * s.channels * s.space == 0) {
        std::fill_n(dgamma, s.channels, T(0));
        std::fill_n(dbeta, s.channels, T(0));
        return;
    }
    const Plan plan(s);
    const size_t partial = static_cast<size_t>(plan.parts * plan.width);
    double* const memory = scratch<double>(Coefficients<T>::doubles(plan, s) + 2 * partial);
    const Coefficients<T> k(plan, s, memory);
    double* const sums = memory + Coefficients<T>::doubles(plan, s);
    double* const products = sums + partial;
    k.fill_forward(affine, saved.mean, saved.inv_std);
    const auto& table = kernels<T>();
    plan.each(true, [&](ptrdiff_t begin, ptrdiff_t end) {
        table.norm_products(plan.matrix, dy, x, begin, end, k.view(), saved.relu, sums + plan.partial(begin),
                            products + plan.partial(begin));
    });
    for (ptrdiff_t part = 1; part < plan.parts; ++part) {
        const double *const sum = sums + part * plan.width, *const product = products + part * plan.width;
        for (ptrdiff_t j = 0; j < k.n; ++j) {
            sums[j] += sum[j];
            products[j] += product[j];
        }
    }
    for (ptrdiff_t c = 0; k.n > s.channels && c < s.channels; ++c) {
        double sum = 0, product = 0;
        k.each_column(c, [&](ptrdiff_t column) {
            sum += sums[column];
            product += products[column];
        });
        sums[c] = sum;
        products[c] = product;
    }
    const double share = 1 / static_cast<double>(s.batch * s.space);
    const T* const inv_std = saved.inv_std;
    for (ptrdiff_t c = 0; c < s.channels; ++c) {
        dbeta[c] = static_cast<T>(sums[c]);
        products[c] *= static_cast<double>(inv_std[c]);
    }
    for (ptrdiff_t c = 0; c < s.channels; ++c) dgamma[c] = static_cast<T>(products[c]);
    if (dx == nullptr) return;
    const T* const gamma = affine.gamma;
    const auto scaled = [=](ptrdiff_t c) {
        return static_cast<double>(math::norm_scale(gamma, inv_std, c)) * share;
    };
    k.fill(k.slope, [=](ptrdiff_t c) { return math::norm_slope(products[c], inv_std[c], scaled(c)); });
    k.fill(k.offset, [=](ptrdiff_t c) { return math::norm_offset<T>(sums[c], scaled(c)); });
    plan.each(false, [&](ptrdiff_t begin, ptrdiff_t end) {
        table.norm_gradient(plan.matrix, dy, x, begin, end, k.view(), saved.relu, saved.of_this_batch, dx);
    });
}

#define X(T)                                                                                               \
    template class RunningNorm<T>;                                                                         \
    template void norm_forward<T>(const NormShape&, const T*, const NormAffine<T>&, const NormRunning<T>&, \
                                  const NormOptions&, T*, T*, T*);                                         \
    template void norm_backward<T>(const NormShape&, const T*, const T*, const NormAffine<T>&,             \
                                   const NormSaved<T>&, T*, T*, T*);
X(float)
X(double)
#undef X

}  // namespace pyoptim::core

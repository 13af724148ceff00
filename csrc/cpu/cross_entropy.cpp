#include "cpu/cross_entropy.hpp"

#include "cpu/softmax.hpp"
#include "formulas/losses.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {

namespace {

constexpr ptrdiff_t kLanes = 16;      // rows of a tile, and partial sums of a long row
constexpr ptrdiff_t kChunk = 256;     // elements of a long row that are summed in T
constexpr ptrdiff_t kMostTiled = 32;  // the most classes of rows that are worked on as a tile

// Writes exp((x - largest)/temperature) into e, unless e is null, and returns the sum of these values.
template <class T>
PYOPTIM_INLINE double row_of_exponentials(ptrdiff_t classes, const T* x, T largest, T inverse_temperature,
                                          T* e) {
    using Lanes = Vector<T>;
    constexpr ptrdiff_t lanes = PYOPTIM_VECTOR_BYTES / sizeof(T),
                        chains = kLanes / lanes > 4 ? kLanes / lanes : 4;
    T unused[kChunk], rest[kLanes];
    typename Widened<T>::Vector total = {};
    for (ptrdiff_t begin = 0; begin < classes; begin += kChunk) {
        const ptrdiff_t n = classes - begin < kChunk ? classes - begin : kChunk, whole = n & ~(kLanes - 1);
        const T* const from = x + begin;
        T* const to = e == nullptr ? unused : e + begin;
        for (ptrdiff_t j = 0; j < whole; ++j) to[j] = share_of(from[j], largest, inverse_temperature);
        Lanes sums[chains] = {}, more;
        const auto add = [&](const T* at, ptrdiff_t vectors) __attribute__((always_inline)) {
            for (ptrdiff_t k = 0; k < vectors; ++k) {
                __builtin_memcpy(&more, at + k * lanes, sizeof more);
                sums[k] += more;
            }
        };
        ptrdiff_t i = 0;
        for (; i + chains * lanes <= whole; i += chains * lanes) add(to + i, chains);
        for (; i < whole; i += kLanes) add(to + i, kLanes / lanes);
        if (whole < n) {  // a whole vector again: single exponentials cost as much each
            for (ptrdiff_t j = 0; j < kLanes; ++j) rest[j] = T(-__builtin_inf());
            for (ptrdiff_t j = 0; whole + j < n; ++j) rest[j] = from[whole + j];
            for (ptrdiff_t j = 0; j < kLanes; ++j) rest[j] = share_of(rest[j], largest, inverse_temperature);
            add(rest, kLanes / lanes);
            for (ptrdiff_t j = 0; whole + j < n; ++j) to[whole + j] = rest[j];
        }
        for (ptrdiff_t k = 1; k < chains; ++k) sums[0] += sums[k];
        total += __builtin_convertvector(sums[0], typename Widened<T>::Vector);
    }
    double sum = 0;
    for (ptrdiff_t j = 0; j < lanes; ++j) sum += total[j];
    return sum;
}

// The factor that multiplies the loss of a row whose only target is its label.
template <class T>
PYOPTIM_INLINE double weight_of_row(const CrossEntropy<T>& it, ptrdiff_t i) {
    const double weight = it.sample_weight == nullptr ? 1.0 : double(it.sample_weight[i]);
    return it.class_weight == nullptr ? weight : weight * double(it.class_weight[it.labels[i]]);
}

// The loss of at most kLanes rows that have many classes and labels as targets.
template <class T>
double labelled_rows(const CrossEntropy<T>& it, ptrdiff_t begin, ptrdiff_t rows) {
    double sum[kLanes], weight[kLanes], above[kLanes];
    for (ptrdiff_t r = 0; r < kLanes; ++r) sum[r] = 1;
    for (ptrdiff_t r = 0; r < rows; ++r) {
        const ptrdiff_t i = begin + r;
        const T* x = it.logits + i * it.classes;
        T* dx = it.dlogits == nullptr ? nullptr : it.dlogits + i * it.classes;
        const T largest = largest_of(it.classes, x);
        weight[r] = weight_of_row(it, i);
        above[r] = double(largest) - double(x[it.labels[i]]);
        sum[r] = row_of_exponentials(it.classes, x, largest, T(1), dx);
        if (dx == nullptr) continue;
        const T share = T(weight[r] * it.scale / sum[r]);
        for (ptrdiff_t j = 0; j < it.classes; ++j) dx[j] *= share;
        dx[it.labels[i]] -= T(weight[r] * it.scale);
    }
    for (ptrdiff_t r = 0; r < kLanes; ++r) sum[r] = logarithm(sum[r]);
    double total = 0;
    for (ptrdiff_t r = 0; r < rows; ++r) total += weight[r] * (sum[r] + above[r]);
    return total;
}

// A tile of kLanes rows with few classes, stored by column: each operation works on one class of all rows.
template <class T>
using Tile = T[kMostTiled][kLanes];

// Loads kLanes rows, of which only `rows` exist; the others become 0.
template <class T>
PYOPTIM_INLINE void load_tile(ptrdiff_t classes, ptrdiff_t rows, const T* x, Tile<T>& tile) {
    for (ptrdiff_t c = 0; c < classes; ++c) {
        if (rows == kLanes) {
            for (ptrdiff_t r = 0; r < kLanes; ++r) tile[c][r] = x[r * classes + c];
        } else {
            for (ptrdiff_t r = 0; r < kLanes; ++r) tile[c][r] = r < rows ? x[r * classes + c] : T(0);
        }
    }
}

template <class T>
PYOPTIM_INLINE void largest_of_tile(ptrdiff_t classes, const Tile<T>& tile, T* largest) {
    for (ptrdiff_t r = 0; r < kLanes; ++r) largest[r] = T(-__builtin_inf());
    for (ptrdiff_t c = 0; c < classes; ++c) {  // NaN may be lost here; the sum of exponentials brings it back
        for (ptrdiff_t r = 0; r < kLanes; ++r) {
            largest[r] = tile[c][r] <= largest[r] ? largest[r] : tile[c][r];
        }
    }
}

// Replaces x by exp((x - largest)/temperature) and returns the sums of these values.
template <class T>
PYOPTIM_INLINE void tile_of_exponentials(ptrdiff_t classes, const T* largest, T inverse_temperature,
                                         Tile<T>& tile, T* sum) {
    for (ptrdiff_t r = 0; r < kLanes; ++r) sum[r] = 0;
    for (ptrdiff_t c = 0; c < classes; ++c) {
        for (ptrdiff_t r = 0; r < kLanes; ++r) {
            tile[c][r] = share_of(tile[c][r], largest[r], inverse_temperature);
            sum[r] += tile[c][r];
        }
    }
}

template <class T>
double labelled_tile(const CrossEntropy<T>& it, ptrdiff_t begin, ptrdiff_t rows) {
    const ptrdiff_t classes = it.classes;
    const T* x = it.logits + begin * classes;
    Tile<T> tile;
    T largest[kLanes], sum[kLanes];
    load_tile(classes, rows, x, tile);
    largest_of_tile(classes, tile, largest);
    tile_of_exponentials(classes, largest, T(1), tile, sum);
    double weight[kLanes], log_sum[kLanes];
    for (ptrdiff_t r = 0; r < kLanes; ++r) weight[r] = r < rows ? weight_of_row(it, begin + r) : 0.0;
    for (ptrdiff_t r = 0; r < kLanes; ++r) log_sum[r] = logarithm(double(sum[r]));
    double total = 0;
    for (ptrdiff_t r = 0; r < rows; ++r) {
        const double of_label = double(x[r * classes + it.labels[begin + r]]);
        total += weight[r] * (log_sum[r] + (double(largest[r]) - of_label));
    }
    if (it.dlogits == nullptr) return total;
    T* dx = it.dlogits + begin * classes;
    T share[kLanes];
    for (ptrdiff_t r = 0; r < kLanes; ++r) share[r] = T(weight[r] * it.scale / double(sum[r]));
    for (ptrdiff_t c = 0; c < classes; ++c) {
        for (ptrdiff_t r = 0; r < kLanes; ++r) tile[c][r] *= share[r];
        for (ptrdiff_t r = 0; r < rows; ++r) dx[r * classes + c] = tile[c][r];
    }
    for (ptrdiff_t r = 0; r < rows; ++r) {
        dx[r * classes + it.labels[begin + r]] -= T(weight[r] * it.scale);
    }
    return total;
}

// The loss for any target: the sum over the classes of q (log(sum exp x) - x), where q >= 0 is the weight of
// a class. Logits x are divided by the temperature, and the sum is multiplied by its square.
template <class T>
double general_tile(const CrossEntropy<T>& it, ptrdiff_t begin, ptrdiff_t rows) {
    const ptrdiff_t classes = it.classes;
    double keep[kLanes], total[kLanes] = {}, linear[kLanes] = {}, log_sum[kLanes], share[kLanes];
    T largest[kLanes], sum[kLanes];
    Tile<T> tile, target;
    Tile<double> q;
    for (ptrdiff_t r = 0; r < kLanes; ++r) {
        const double weight = r >= rows                     ? 0.0
                              : it.sample_weight == nullptr ? 1.0
                                                            : double(it.sample_weight[begin + r]);
        const math::SmoothedTarget of(weight, it.smoothing, double(classes));
        keep[r] = of.keep;
        share[r] = of.spread;
    }
    for (ptrdiff_t c = 0; c < classes; ++c) {
        for (ptrdiff_t r = 0; r < kLanes; ++r) q[c][r] = share[r];
    }
    if (it.labels == nullptr) {
        load_tile(classes, rows, it.targets + begin * classes, target);
        for (ptrdiff_t c = 0; c < classes; ++c) {
            for (ptrdiff_t r = 0; r < kLanes; ++r) q[c][r] += keep[r] * double(target[c][r]);
        }
    } else {
        for (ptrdiff_t r = 0; r < rows; ++r) q[it.labels[begin + r]][r] += keep[r];
    }
    load_tile(classes, rows, it.logits + begin * classes, tile);
    largest_of_tile(classes, tile, largest);
    for (ptrdiff_t c = 0; c < classes; ++c) {
        const double weight = it.class_weight == nullptr ? 1.0 : double(it.class_weight[c]);
        for (ptrdiff_t r = 0; r < kLanes; ++r) {
            q[c][r] *= weight;
            total[r] += q[c][r];
            linear[r] += math::linear_cost(q[c][r], largest[r], tile[c][r]);
        }
        if (!it.divergence) continue;
        for (ptrdiff_t r = 0; r < kLanes; ++r) {
            linear[r] += it.temperature * math::surprise(q[c][r], target[c][r]);
        }
    }
    tile_of_exponentials(classes, largest, math::inverse_temperature<T>(it.temperature), tile, sum);
    for (ptrdiff_t r = 0; r < kLanes; ++r) log_sum[r] = logarithm(double(sum[r]));
    double loss = 0;
    for (ptrdiff_t r = 0; r < rows; ++r) {
        loss += math::cross_entropy_of_row(total[r], linear[r], log_sum[r], it.temperature);
    }
    if (it.dlogits == nullptr) return loss;
    T* dx = it.dlogits + begin * classes;
    const double scale = it.temperature * it.scale;
    for (ptrdiff_t r = 0; r < kLanes; ++r) share[r] = total[r] * scale / double(sum[r]);
    for (ptrdiff_t c = 0; c < classes; ++c) {
        for (ptrdiff_t r = 0; r < kLanes; ++r) {
            tile[c][r] = T(double(tile[c][r]) * share[r] - q[c][r] * scale);
        }
        for (ptrdiff_t r = 0; r < rows; ++r) dx[r * classes + c] = tile[c][r];
    }
    return loss;
}

// The loss that general_tile computes, for one row of many classes.
template <class T>
double general_row(const CrossEntropy<T>& it, ptrdiff_t i) {
    const T* x = it.logits + i * it.classes;
    T* dx = it.dlogits == nullptr ? nullptr : it.dlogits + i * it.classes;
    const double weight = it.sample_weight == nullptr ? 1.0 : double(it.sample_weight[i]);
    const math::SmoothedTarget of(weight, it.smoothing, double(it.classes));
    const T largest = largest_of(it.classes, x);
    const T inverse_temperature = math::inverse_temperature<T>(it.temperature);
    const double sum = row_of_exponentials(it.classes, x, largest, inverse_temperature, dx);
    double q[kChunk], total = 0, linear = 0;
    const auto fill = [&](ptrdiff_t begin, ptrdiff_t n) {
        for (ptrdiff_t j = 0; j < n; ++j) q[j] = of.spread;
        if (it.labels == nullptr) {
            const T* target = it.targets + i * it.classes + begin;
            for (ptrdiff_t j = 0; j < n; ++j) q[j] += of.keep * double(target[j]);
        } else if (it.labels[i] >= begin && it.labels[i] < begin + n) {
            q[it.labels[i] - begin] += of.keep;
        }
        if (it.class_weight == nullptr) return;
        for (ptrdiff_t j = 0; j < n; ++j) q[j] *= double(it.class_weight[begin + j]);
    };
    for (ptrdiff_t begin = 0; begin < it.classes; begin += kChunk) {
        const ptrdiff_t n = it.classes - begin < kChunk ? it.classes - begin : kChunk;
        fill(begin, n);
        total += sum_of(n, [&](ptrdiff_t j) { return q[j]; });
        linear += sum_of(n, [&](ptrdiff_t j) { return math::linear_cost(q[j], largest, x[begin + j]); });
        if (!it.divergence) continue;
        const T* target = it.targets + i * it.classes + begin;
        linear += it.temperature * sum_of(n, [&](ptrdiff_t j) { return math::surprise(q[j], target[j]); });
    }
    if (dx != nullptr) {
        const double scale = it.temperature * it.scale, share = total * scale / sum;
        for (ptrdiff_t begin = 0; begin < it.classes; begin += kChunk) {
            const ptrdiff_t n = it.classes - begin < kChunk ? it.classes - begin : kChunk;
            if (it.classes > kChunk) fill(begin, n);
            for (ptrdiff_t j = 0; j < n; ++j) {
                dx[begin + j] = T(double(dx[begin + j]) * share - q[j] * scale);
            }
        }
    }
    return math::cross_entropy_of_row(total, linear, logarithm(sum), it.temperature);
}

}  // namespace

template <class T>
double cross_entropy(const CrossEntropy<T>& it, ptrdiff_t begin, ptrdiff_t end) {
    const bool general = it.labels == nullptr || it.smoothing > 0;
    double total = 0;
    if (general && it.classes > kMostTiled) {
        for (ptrdiff_t i = begin; i < end; ++i) total += general_row(it, i);
        return total;
    }
    const auto tile = general ? general_tile<T> : labelled_tile<T>;
    const auto several = it.classes > kMostTiled ? labelled_rows<T> : tile;
    for (ptrdiff_t i = begin; i < end; i += kLanes) {
        total += several(it, i, end - i < kLanes ? end - i : kLanes);
    }
    return total;
}

template double cross_entropy<float>(const CrossEntropy<float>&, ptrdiff_t, ptrdiff_t);
template double cross_entropy<double>(const CrossEntropy<double>&, ptrdiff_t, ptrdiff_t);

}  // namespace pyoptim::cpu::PYOPTIM_ISA

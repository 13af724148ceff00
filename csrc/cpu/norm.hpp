// Normalisation over matrices: see NormMatrix in kernels.hpp. Sums run in lanes of T over short blocks, about
// a value of the block, so that a large mean costs no accuracy; blocks are merged in double (Chan, Golub &
// LeVeque 1979) in order.
#pragma once

#include "cpu/kernels.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

template <class T>
struct Norm {
    static constexpr ptrdiff_t lanes = PYOPTIM_VECTOR_BYTES / sizeof(T);
    typedef T Vector __attribute__((vector_size(PYOPTIM_VECTOR_BYTES)));
    typedef double Wide __attribute__((vector_size(PYOPTIM_VECTOR_BYTES / sizeof(T) * sizeof(double))));
};
// Rows of a block: few, since each is a stream for the prefetchers, and theirs is the time.
constexpr ptrdiff_t kNormRows = 8, kProductRows = 4;

template <class V, class T>
inline __attribute__((always_inline)) void load_lanes(V& v, const T* from, ptrdiff_t live) {
    if (live * ptrdiff_t(sizeof(T)) >= ptrdiff_t(sizeof(V))) {
        __builtin_memcpy(&v, from, sizeof(V));
    } else {
        v = V{};
        for (ptrdiff_t k = 0; k < live; ++k) v[k] = from[k];
    }
}

// What the moments of `n` more values weigh beside those of `seen`.
struct MergeWeights {
    double mean, square;
    MergeWeights(double seen, double n) : mean(n / (seen + n)), square(seen * mean) {}
};

inline void merge_one(double& mean, double& m2, MergeWeights w, double other_mean, double other_m2) {
    const double delta = other_mean - mean;
    mean += delta * w.mean;
    m2 += other_m2 + delta * delta * w.square;
}

inline void norm_merge(ptrdiff_t n, double seen, double* mean, double* m2, double more,
                       const double* other_mean, const double* other_m2) {
    const MergeWeights w(seen, more);
    for (ptrdiff_t j = 0; j < n; ++j) merge_one(mean[j], m2[j], w, other_mean[j], other_m2[j]);
}

// Per column, over the rows; mean and m2 have room for whole vectors.
template <class T>
void column_moments(const T* x, ptrdiff_t rows, ptrdiff_t cols, double* mean, double* m2) {
    using Vector = typename Norm<T>::Vector;
    using Wide = typename Norm<T>::Wide;
    constexpr ptrdiff_t L = Norm<T>::lanes;
    for (ptrdiff_t r0 = 0; r0 < rows; r0 += kNormRows) {
        const ptrdiff_t live_rows = r0 + kNormRows < rows ? kNormRows : rows - r0;
        const MergeWeights w{double(r0), double(live_rows)};
        const double share = 1.0 / double(live_rows);
        const auto block = [&](ptrdiff_t j, ptrdiff_t live, ptrdiff_t block_rows)
                               __attribute__((always_inline)) {
                                   const T* from = x + r0 * cols + j;
                                   Vector shift, row, s1 = {}, s2 = {};
                                   load_lanes(shift, from, live);
                                   for (ptrdiff_t r = 1; r < block_rows; ++r) {
                                       load_lanes(row, from + r * cols, live);
                                       const Vector d = row - shift;
                                       s1 += d;
                                       s2 += d * d;
                                   }
                                   const Wide sum = __builtin_convertvector(s1, Wide);
                                   const Wide squares = __builtin_convertvector(s2, Wide);
                                   const Wide block_mean = __builtin_convertvector(shift, Wide) + sum * share;
                                   const Wide block_m2 = squares - sum * sum * share;
                                   Wide old_mean = {}, old_m2 = {};
                                   if (r0 > 0) {
                                       __builtin_memcpy(&old_mean, mean + j, sizeof(Wide));
                                       __builtin_memcpy(&old_m2, m2 + j, sizeof(Wide));
                                   }
                                   const Wide delta = block_mean - old_mean;
                                   old_mean += delta * w.mean;
                                   old_m2 += block_m2 + delta * delta * w.square;
                                   __builtin_memcpy(mean + j, &old_mean, sizeof(Wide));
                                   __builtin_memcpy(m2 + j, &old_m2, sizeof(Wide));
                               };
        ptrdiff_t j = 0;
        if (live_rows == kNormRows) {
            for (; j + L <= cols; j += L) block(j, L, kNormRows);
        } else {
            for (; j + L <= cols; j += L) block(j, L, live_rows);
        }
        if (j < cols) block(j, cols - j, live_rows);
    }
}

template <class T>
void run_moments(ptrdiff_t n, const T* x, double& mean, double& m2) {
    using Vector = typename Norm<T>::Vector;
    constexpr ptrdiff_t L = Norm<T>::lanes, kChains = 4, kBlock = 16 * kChains * L;
    for (ptrdiff_t begin = 0; begin < n; begin += kBlock) {
        const ptrdiff_t live = begin + kBlock < n ? kBlock : n - begin;
        const T* const from = x + begin;
        T shift = from[0];
        if (live >= L) {
            T sum = 0;
            for (ptrdiff_t k = 0; k < L; ++k) sum += from[k];
            shift = sum / T(L);
        }
        Vector s1[kChains] = {}, s2[kChains] = {}, v;
        ptrdiff_t i = 0;
        for (; i + kChains * L <= live; i += kChains * L) {
            for (ptrdiff_t q = 0; q < kChains; ++q) {
                __builtin_memcpy(&v, from + i + q * L, sizeof(v));
                const Vector d = v - shift;
                s1[q] += d;
                s2[q] += d * d;
            }
        }
        for (; i + L <= live; i += L) {
            __builtin_memcpy(&v, from + i, sizeof(v));
            const Vector d = v - shift;
            s1[0] += d;
            s2[0] += d * d;
        }
        double sum = 0, squares = 0;
        for (ptrdiff_t q = 0; q < kChains; ++q) {
            for (ptrdiff_t k = 0; k < L; ++k) {
                sum += double(s1[q][k]);
                squares += double(s2[q][k]);
            }
        }
        for (; i < live; ++i) {
            const double d = double(from[i]) - double(shift);
            sum += d;
            squares += d * d;
        }
        const double share = 1.0 / double(live);
        if (begin == 0) mean = m2 = 0;
        merge_one(mean, m2, MergeWeights(double(begin), double(live)), double(shift) + sum * share,
                  squares - sum * sum * share);
    }
}

template <class T>
void norm_moments(const NormMatrix& it, const T* x, ptrdiff_t begin, ptrdiff_t end, double* mean,
                  double* m2) {
    if (it.channels == 0) return column_moments(x + begin * it.cols, end - begin, it.cols, mean, m2);
    for (ptrdiff_t r = begin; r < end; ++r) {
        run_moments(it.cols, x + r * it.cols, mean[r - begin], m2[r - begin]);
    }
}

// Nothing overlaps: the callers check, and ivdep tells the vectoriser so.
#if defined(__clang__)
#define PYOPTIM_NO_OVERLAP _Pragma("clang loop vectorize(assume_safety)")
#else
#define PYOPTIM_NO_OVERLAP _Pragma("GCC ivdep")
#endif

template <bool kRelu, class T>
void norm_apply_as(const NormMatrix& it, const T* x, ptrdiff_t begin, ptrdiff_t end,
                   const NormCoefficients<T>& k, T* y) {
    for (ptrdiff_t r = begin; r < end; ++r) {
        const T* const from = x + r * it.cols;
        T* const to = y + r * it.cols;
        const auto one = [&](ptrdiff_t j, T mean, T scale, T shift) __attribute__((always_inline)) {
            const T z = (from[j] - mean) * scale + shift;
            to[j] = kRelu && z <= T(0) ? T(0) : z;  // NaN stays NaN
        };
        if (it.channels == 0) {
            PYOPTIM_NO_OVERLAP
            for (ptrdiff_t j = 0; j < it.cols; ++j) one(j, k.mean[j], k.scale[j], k.shift[j]);
        } else {
            const ptrdiff_t c = r % it.channels;
            const T mean = k.mean[c], scale = k.scale[c], shift = k.shift[c];
            PYOPTIM_NO_OVERLAP
            for (ptrdiff_t j = 0; j < it.cols; ++j) one(j, mean, scale, shift);
        }
    }
}

template <class T>
void norm_apply(const NormMatrix& it, const T* x, ptrdiff_t begin, ptrdiff_t end,
                const NormCoefficients<T>& k, bool relu, T* y) {
    (relu ? norm_apply_as<true, T> : norm_apply_as<false, T>)(it, x, begin, end, k, y);
}

// Sums of dz and of dz (x - mean): per column, or one of each per row.
template <bool kRelu, class T>
void norm_products_as(const NormMatrix& it, const T* dy, const T* x, ptrdiff_t begin, ptrdiff_t end,
                      const NormCoefficients<T>& k, double* sum, double* product) {
    using Vector = typename Norm<T>::Vector;
    using Wide = typename Norm<T>::Wide;
    constexpr ptrdiff_t L = Norm<T>::lanes;
    const Vector zero = {};
    const auto add = [&](const T* dy_at, const T* x_at, ptrdiff_t live, const Vector& mean,
                         const Vector& scale, const Vector& shift, Vector& s1, Vector& s2)
                         __attribute__((always_inline)) {
                             Vector g, d;
                             load_lanes(g, dy_at, live);
                             load_lanes(d, x_at, live);
                             d -= mean;
                             if (kRelu) g = d * scale + shift > zero ? g : zero;
                             s1 += g;
                             s2 += g * d;
                         };
    if (it.channels == 0) {
        for (ptrdiff_t r0 = begin; r0 < end; r0 += kProductRows) {
            const ptrdiff_t r1 = r0 + kProductRows < end ? r0 + kProductRows : end;
            const auto block = [&](ptrdiff_t j, ptrdiff_t live) __attribute__((always_inline)) {
                Vector mean, scale = {}, shift = {}, s1 = {}, s2 = {};
                load_lanes(mean, k.mean + j, live);
                if (kRelu) {
                    load_lanes(scale, k.scale + j, live);
                    load_lanes(shift, k.shift + j, live);
                }
                for (ptrdiff_t r = r0; r < r1; ++r) {
                    const ptrdiff_t at = r * it.cols + j;
                    add(dy + at, x + at, live, mean, scale, shift, s1, s2);
                }
                Wide total = {}, products = {};
                if (r0 > begin) {
                    __builtin_memcpy(&total, sum + j, sizeof(Wide));
                    __builtin_memcpy(&products, product + j, sizeof(Wide));
                }
                total += __builtin_convertvector(s1, Wide);
                products += __builtin_convertvector(s2, Wide);
                __builtin_memcpy(sum + j, &total, sizeof(Wide));
                __builtin_memcpy(product + j, &products, sizeof(Wide));
            };
            ptrdiff_t j = 0;
            for (; j + L <= it.cols; j += L) block(j, L);
            if (j < it.cols) block(j, it.cols - j);
        }
        return;
    }
    constexpr ptrdiff_t kChains = 4, kBlock = 16 * kChains * L;
    for (ptrdiff_t r = begin; r < end; ++r) {
        const ptrdiff_t c = r % it.channels;
        const Vector mean = zero + k.mean[c], scale = zero + k.scale[c], shift = zero + k.shift[c];
        double total = 0, products = 0;
        for (ptrdiff_t b = 0; b < it.cols; b += kBlock) {
            const ptrdiff_t live = b + kBlock < it.cols ? kBlock : it.cols - b;
            const T *const g = dy + r * it.cols + b, *const v = x + r * it.cols + b;
            Vector s1[kChains] = {}, s2[kChains] = {};
            ptrdiff_t i = 0;
            for (; i + kChains * L <= live; i += kChains * L) {
                for (ptrdiff_t q = 0; q < kChains; ++q) {
                    add(g + i + q * L, v + i + q * L, L, mean, scale, shift, s1[q], s2[q]);
                }
            }
            for (; i + L <= live; i += L) add(g + i, v + i, L, mean, scale, shift, s1[0], s2[0]);
            for (; i < live; ++i) {
                const T d = v[i] - mean[0];
                const T dz = !kRelu || d * scale[0] + shift[0] > T(0) ? g[i] : T(0);
                total += double(dz);
                products += double(dz) * double(d);
            }
            for (ptrdiff_t q = 0; q < kChains; ++q) {
                for (ptrdiff_t lane = 0; lane < L; ++lane) {
                    total += double(s1[q][lane]);
                    products += double(s2[q][lane]);
                }
            }
        }
        sum[r - begin] = total;
        product[r - begin] = products;
    }
}

template <class T>
void norm_products(const NormMatrix& it, const T* dy, const T* x, ptrdiff_t begin, ptrdiff_t end,
                   const NormCoefficients<T>& k, bool relu, double* sum, double* product) {
    (relu ? norm_products_as<true, T> : norm_products_as<false, T>)(it, dy, x, begin, end, k, sum, product);
}

// dx = scale dz - ((x - mean) slope + offset); without the latter where the statistics are constants.
template <bool kRelu, bool kStatistics, class T>
void norm_gradient_as(const NormMatrix& it, const T* dy, const T* x, ptrdiff_t begin, ptrdiff_t end,
                      const NormCoefficients<T>& k, T* dx) {
    for (ptrdiff_t r = begin; r < end; ++r) {
        const T *const g = dy + r * it.cols, *const from = x + r * it.cols;
        T* const to = dx + r * it.cols;
        const auto one = [&](ptrdiff_t j, T mean, T scale, T shift, T slope, T offset)
                             __attribute__((always_inline)) {
                                 const T d = from[j] - mean;
                                 const T dz = !kRelu || d * scale + shift > T(0) ? g[j] : T(0);
                                 to[j] = kStatistics ? scale * dz - (d * slope + offset) : scale * dz;
                             };
        if (it.channels == 0) {
            PYOPTIM_NO_OVERLAP
            for (ptrdiff_t j = 0; j < it.cols; ++j) {
                one(j, k.mean[j], k.scale[j], k.shift[j], k.slope[j], k.offset[j]);
            }
        } else {
            const ptrdiff_t c = r % it.channels;
            const T mean = k.mean[c], scale = k.scale[c], shift = k.shift[c], slope = k.slope[c],
                    offset = k.offset[c];
            PYOPTIM_NO_OVERLAP
            for (ptrdiff_t j = 0; j < it.cols; ++j) one(j, mean, scale, shift, slope, offset);
        }
    }
}

template <class T>
void norm_gradient(const NormMatrix& it, const T* dy, const T* x, ptrdiff_t begin, ptrdiff_t end,
                   const NormCoefficients<T>& k, bool relu, bool statistics, T* dx) {
    const auto kernel =
        relu ? (statistics ? norm_gradient_as<true, true, T> : norm_gradient_as<true, false, T>)
             : (statistics ? norm_gradient_as<false, true, T> : norm_gradient_as<false, false, T>);
    kernel(it, dy, x, begin, end, k, dx);
}

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA

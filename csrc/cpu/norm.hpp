// Normalisation over matrices: see NormMatrix in kernels.hpp. Sums run in lanes of T over short blocks, about
// a value of the block, so that a large mean costs no accuracy; blocks are merged in double (Chan, Golub &
// LeVeque 1979) in order. Sums of columns wait in the L1 cache while whole rows stream by, one after the
// other: down the columns, each row would be a stream, and prefetchers follow few.
#pragma once

#include "cpu/kernels.hpp"
#include "cpu/vector.hpp"
#include "formulas/norms.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

template <class T>
struct Norm {
    static constexpr ptrdiff_t lanes = PYOPTIM_VECTOR_BYTES / sizeof(T);
    using Vector = cpu::PYOPTIM_ISA::Vector<T>;
    using Wide = typename Widened<T>::Vector;
};
// The number of rows summed in T before the sums are added up in double, and the number of columns at a time.
constexpr ptrdiff_t kNormRows = 64;
template <class T>
constexpr ptrdiff_t kNormCols = 4096 / ptrdiff_t(sizeof(T));

template <class V, class T>
inline __attribute__((always_inline)) void load_lanes(V& v, const T* from, ptrdiff_t live) {
    if (live * ptrdiff_t(sizeof(T)) >= ptrdiff_t(sizeof(V))) {
        __builtin_memcpy(&v, from, sizeof(V));
    } else {
        v = V{};
        for (ptrdiff_t k = 0; k < live; ++k) v[k] = from[k];
    }
}

inline void norm_merge(ptrdiff_t n, double seen, double* mean, double* m2, double more,
                       const double* other_mean, const double* other_m2) {
    const math::MergeWeights by(seen, more);
    for (ptrdiff_t j = 0; j < n; ++j) {
        math::merge_moments(mean[j], m2[j], by, other_mean[j], other_m2[j]);
    }
}

template <class V, class T>
inline __attribute__((always_inline)) void get_lanes(V& v, const T* from) {
    __builtin_memcpy(&v, from, sizeof(v));
}

template <class V, class T>
inline __attribute__((always_inline)) void put_lanes(T* to, const V& v) {
    __builtin_memcpy(to, &v, sizeof(v));
}

// The sum of n doubles, half of which are added to the other half until two are left: no long chain of
// additions has to wait for its last sum.
template <ptrdiff_t n>
inline __attribute__((always_inline)) double sum_of_halves(const double* lanes) {
    if constexpr (n == 2) {
        return lanes[0] + lanes[1];
    } else {
        typedef double Half __attribute__((vector_size(n / 2 * sizeof(double))));
        Half low, high;
        __builtin_memcpy(&low, lanes, sizeof(Half));
        __builtin_memcpy(&high, lanes + n / 2, sizeof(Half));
        low += high;
        double sums[n / 2];
        __builtin_memcpy(sums, &low, sizeof(Half));
        return sum_of_halves<n / 2>(sums);
    }
}

// The sum of all lanes of `count` vectors.
template <class T>
inline __attribute__((always_inline)) double sum_of_lanes(const typename Norm<T>::Vector* v,
                                                          ptrdiff_t count) {
    using Wide = typename Norm<T>::Wide;
    Wide all = __builtin_convertvector(v[0], Wide);
    for (ptrdiff_t q = 1; q < count; ++q) all += __builtin_convertvector(v[q], Wide);
    double lanes[Norm<T>::lanes];
    put_lanes(lanes, all);
    return sum_of_halves<Norm<T>::lanes>(lanes);
}

// Sums two values of each element down the columns: visit(row, column, live, sums, squares) adds `live`
// lanes; flush(rows, row, column, sums, squares) takes the sums of a block of `rows` that begins at `row`.
// Where possible, kGroup rows are visited together, so that sums are loaded and stored less often.
template <class T, ptrdiff_t kGroup, class Visit, class Flush>
inline __attribute__((always_inline)) void column_blocks(ptrdiff_t begin, ptrdiff_t end, ptrdiff_t cols,
                                                         Visit visit, Flush flush) {
    using Vector = typename Norm<T>::Vector;
    constexpr ptrdiff_t L = Norm<T>::lanes, kCols = kNormCols<T>;
    alignas(64) T sums[2 * kCols];  // for each vector of columns its first sums, then its second
    for (ptrdiff_t r0 = begin; r0 < end; r0 += kNormRows) {
        const ptrdiff_t r1 = r0 + kNormRows < end ? r0 + kNormRows : end;
        for (ptrdiff_t c0 = 0; c0 < cols; c0 += kCols) {
            const ptrdiff_t c1 = c0 + kCols < cols ? c0 + kCols : cols, whole = c1 - (c1 - c0) % L;
            __builtin_memset(sums, 0, sizeof(sums) / kCols * (c1 - c0));
            const auto rows = [&](ptrdiff_t r, ptrdiff_t count) __attribute__((always_inline)) {
                T* at = sums;
                __asm__ volatile("" : "+r"(at));  // or GCC would take two rows at once: two streams
                for (ptrdiff_t j = c0; j < whole; j += L, at += 2 * L) {
                    Vector s1, s2;
                    get_lanes(s1, at);
                    get_lanes(s2, at + L);
                    for (ptrdiff_t q = 0; q < count; ++q) visit(r0, r + q, j, L, s1, s2);
                    put_lanes(at, s1);
                    put_lanes(at + L, s2);
                }
            };
            ptrdiff_t r = r0;
            for (; r + kGroup <= r1; r += kGroup) rows(r, kGroup);
            for (; r < r1; ++r) rows(r, 1);
            for (ptrdiff_t j = c0; j < whole; j += L) {
                Vector s1, s2;
                get_lanes(s1, sums + 2 * (j - c0));
                get_lanes(s2, sums + 2 * (j - c0) + L);
                flush(r0, r1 - r0, j, s1, s2);
            }
            if (whole == c1) continue;
            Vector s1 = {}, s2 = {};
            if (cols < L) {
                for (r = r0; r < r1; ++r) visit(r0, r, 0, cols, s1, s2);
            } else {  // the last whole vector, of which some columns are known already
                for (r = r0; r < r1; ++r) visit(r0, r, c1 - L, L, s1, s2);
                T moved[3 * L] = {};
                put_lanes(moved, s1);
                put_lanes(moved + L, s2);
                get_lanes(s1, moved + (whole + L - c1));
                get_lanes(s2, moved + L + (whole + L - c1));
            }
            flush(r0, r1 - r0, whole, s1, s2);
        }
    }
}

// The moments of each column over the rows; mean and m2 have room for whole vectors.
template <class T>
void column_moments(const T* x, ptrdiff_t rows, ptrdiff_t cols, double* mean, double* m2) {
    using Vector = typename Norm<T>::Vector;
    using Wide = typename Norm<T>::Wide;
    constexpr ptrdiff_t L = Norm<T>::lanes;
    const auto visit = [=](ptrdiff_t r0, ptrdiff_t r, ptrdiff_t j, ptrdiff_t live, Vector& s1, Vector& s2)
                           __attribute__((always_inline)) {
                               Vector row, shift;
                               load_lanes(row, x + r * cols + j, live);
                               load_lanes(shift, x + r0 * cols + j, live);
                               const Vector d = row - shift;
                               s1 += d;
                               s2 += d * d;
                           };
    const auto flush = [=](ptrdiff_t r0, ptrdiff_t n, ptrdiff_t j, const Vector& s1,
                           const Vector& s2) __attribute__((always_inline)) {
        const double share = 1.0 / double(n);
        Vector shift;
        load_lanes(shift, x + r0 * cols + j, cols - j < L ? cols - j : L);
        const Wide sum = __builtin_convertvector(s1, Wide);
        const Wide squares = __builtin_convertvector(s2, Wide);
        const Wide block = __builtin_convertvector(shift, Wide) + sum * share;
        Wide all_mean = {}, all_m2 = {};
        if (r0 > 0) {
            get_lanes(all_mean, mean + j);
            get_lanes(all_m2, m2 + j);
        }
        all_m2 += squares - sum * sum * share;  // the block's own; the merge adds what lies between the means
        math::merge_moments(all_mean, all_m2, math::MergeWeights{double(r0), double(n)}, block, Wide{});
        put_lanes(mean + j, all_mean);
        put_lanes(m2 + j, all_m2);
    };
    column_blocks<T, 2>(0, rows, cols, visit, flush);
}

template <class T>
void run_moments(ptrdiff_t n, const T* x, double& mean, double& m2) {
    using Vector = typename Norm<T>::Vector;
    constexpr ptrdiff_t L = Norm<T>::lanes, kChains = 4, kBlock = 16 * kChains * L;
    for (ptrdiff_t begin = 0; begin < n; begin += kBlock) {
        const ptrdiff_t live = begin + kBlock < n ? kBlock : n - begin;
        const T* const from = x + begin;
        Vector s1[kChains] = {}, s2[kChains] = {}, v;
        T shift = from[0];
        if (live >= L) {
            get_lanes(v, from);
            shift = T(sum_of_lanes<T>(&v, 1) / double(L));
        }
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
        const ptrdiff_t used = live < kChains * L ? 1 : kChains;
        double sum = sum_of_lanes<T>(s1, used), squares = sum_of_lanes<T>(s2, used);
        for (; i < live; ++i) {
            const double d = double(from[i]) - double(shift);
            sum += d;
            squares += d * d;
        }
        const double share = 1.0 / double(live);
        if (begin == 0) mean = m2 = 0;
        math::merge_moments(mean, m2, math::MergeWeights(double(begin), double(live)),
                            double(shift) + sum * share, squares - sum * sum * share);
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

// Calls body(v, row, column) on the elements of rows: v is a whole vector, the last of a row perhaps on
// elements that were computed already, or a single element where rows are shorter than a vector.
template <class T, class Body>
inline __attribute__((always_inline)) void each_vector(ptrdiff_t begin, ptrdiff_t end, ptrdiff_t cols,
                                                       Body body) {
    constexpr ptrdiff_t L = Norm<T>::lanes;
    const typename Norm<T>::Vector vector = {};
    for (ptrdiff_t r = begin; r < end; ++r) {
        ptrdiff_t j = 0;
        for (; j + L <= cols; j += L) body(vector, r, j);
        if (j < cols && cols > L) {
            body(vector, r, cols - L);
        } else {
            for (; j < cols; ++j) body(T(0), r, j);
        }
    }
}

// The coefficients of some elements: vectors of them, or one of each.
template <class V>
struct NormLanes {
    V mean, scale, shift, slope, offset;
};

// Calls body(v, at, coefficients) on the elements of rows, where v is as in each_vector and `at` is the index
// of its first element. The compiler leaves out the loads of coefficients that a body does not use.
template <class T, class Body>
inline __attribute__((always_inline)) void each_normalized(const NormMatrix& it, ptrdiff_t begin,
                                                           ptrdiff_t end, const NormCoefficients<T>& k,
                                                           Body body) {
    const ptrdiff_t cols = it.cols, channels = it.channels;
    if (channels == 0) {
        const NormCoefficients<T> of = k;
        const auto of_columns = [=](auto v, ptrdiff_t r, ptrdiff_t j) __attribute__((always_inline)) {
            NormLanes<decltype(v)> lanes;
            get_lanes(lanes.mean, of.mean + j);
            get_lanes(lanes.scale, of.scale + j);
            get_lanes(lanes.shift, of.shift + j);
            get_lanes(lanes.slope, of.slope + j);
            get_lanes(lanes.offset, of.offset + j);
            body(v, r * cols + j, lanes);
        };
        return each_vector<T>(begin, end, cols, of_columns);
    }
    for (ptrdiff_t row = begin; row < end; ++row) {
        const ptrdiff_t c = row % channels;
        const NormLanes<T> lanes = {k.mean[c], k.scale[c], k.shift[c], k.slope[c], k.offset[c]};
        const auto of_row = [=](auto v, ptrdiff_t r, ptrdiff_t j)
                                __attribute__((always_inline)) { body(v, r * cols + j, lanes); };
        each_vector<T>(row, row + 1, cols, of_row);
    }
}

template <bool kRelu, class T>
void norm_apply_as(const NormMatrix& it, const T* x, ptrdiff_t begin, ptrdiff_t end,
                   const NormCoefficients<T>& k, T* y) {
    const auto one = [=](auto v, ptrdiff_t at, const auto& of) __attribute__((always_inline)) {
        get_lanes(v, x + at);
        put_lanes(y + at, math::norm_value(kRelu, v, of.mean, of.scale, of.shift));
    };
    each_normalized(it, begin, end, k, one);
}

template <class T>
void norm_apply(const NormMatrix& it, const T* x, ptrdiff_t begin, ptrdiff_t end,
                const NormCoefficients<T>& k, bool relu, T* y) {
    (relu ? norm_apply_as<true, T> : norm_apply_as<false, T>)(it, x, begin, end, k, y);
}

// The sums of dz and of dz (x - mean), for each column or for each row.
template <bool kRelu, class T>
void norm_products_as(const NormMatrix& it, const T* dy, const T* x, ptrdiff_t begin, ptrdiff_t end,
                      const NormCoefficients<T>& k, double* sum, double* product) {
    using Vector = typename Norm<T>::Vector;
    using Wide = typename Norm<T>::Wide;
    constexpr ptrdiff_t L = Norm<T>::lanes;
    const Vector zero = {};
    const auto add = [=](const T* dy_at, const T* x_at, ptrdiff_t live, const Vector& mean,
                         const Vector& scale, const Vector& shift, Vector& s1, Vector& s2)
                         __attribute__((always_inline)) {
                             Vector g, d;
                             load_lanes(g, dy_at, live);
                             load_lanes(d, x_at, live);
                             PYOPTIM_KEEP(g);
                             d -= mean;
                             g = math::norm_before_relu(kRelu, g, d, scale, shift);
                             s1 += g;
                             s2 += g * d;
                         };
    if (it.channels == 0) {
        const ptrdiff_t cols = it.cols;
        const NormCoefficients<T> of = k;
        const auto visit = [=](ptrdiff_t, ptrdiff_t r, ptrdiff_t j, ptrdiff_t live, Vector& s1, Vector& s2)
                               __attribute__((always_inline)) {
                                   const ptrdiff_t at = r * cols + j;
                                   Vector mean, scale = {}, shift = {};
                                   load_lanes(mean, of.mean + j, live);
                                   if (kRelu) {
                                       load_lanes(scale, of.scale + j, live);
                                       load_lanes(shift, of.shift + j, live);
                                   }
                                   add(dy + at, x + at, live, mean, scale, shift, s1, s2);
                               };
        const auto flush = [=](ptrdiff_t r0, ptrdiff_t, ptrdiff_t j, const Vector& s1, const Vector& s2)
                               __attribute__((always_inline)) {
                                   Wide total = {}, products = {};
                                   if (r0 > begin) {
                                       get_lanes(total, sum + j);
                                       get_lanes(products, product + j);
                                   }
                                   total += __builtin_convertvector(s1, Wide);
                                   products += __builtin_convertvector(s2, Wide);
                                   put_lanes(sum + j, total);
                                   put_lanes(product + j, products);
                               };
        column_blocks<T, 1>(begin, end, it.cols, visit, flush);
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
                const T dz = math::norm_before_relu(kRelu, g[i], d, T(scale[0]), T(shift[0]));
                total += double(dz);
                products += double(dz) * double(d);
            }
            const ptrdiff_t used = live < kChains * L ? 1 : kChains;
            total += sum_of_lanes<T>(s1, used);
            products += sum_of_lanes<T>(s2, used);
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

// kStatistics says whether mean and variance are those of the batch; if not, no gradient flows through them.
template <bool kRelu, bool kStatistics, class T>
void norm_gradient_as(const NormMatrix& it, const T* dy, const T* x, ptrdiff_t begin, ptrdiff_t end,
                      const NormCoefficients<T>& k, T* dx) {
    const auto one = [=](auto v, ptrdiff_t at, const auto& of) __attribute__((always_inline)) {
        auto g = v;
        get_lanes(v, x + at);
        get_lanes(g, dy + at);
        const decltype(v) d = v - of.mean;
        g = math::norm_before_relu(kRelu, g, d, of.scale, of.shift);
        put_lanes(dx + at, math::norm_gradient(kStatistics, g, d, of.scale, of.slope, of.offset));
    };
    each_normalized(it, begin, end, k, one);
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

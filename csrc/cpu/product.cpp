// The matrix products of dense layers: the forward pass as scalar products, where both operands have the
// summed index contiguous, or as outer products with a transposed copy of the weight; the backward pass as
// outer products. Each element is summed in an order that depends on the shape alone, however rows and
// columns are split and whatever the tile, so the result does not depend on the number of threads. This file
// alone is compiled with contraction: the micro-kernels are made of multiply-adds.
#include "cpu/product.hpp"

#if defined(__AVX512F__) && PYOPTIM_VECTOR_BYTES == 64
#include <immintrin.h>
#endif

namespace pyoptim::cpu::PYOPTIM_ISA {

namespace {

constexpr ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
constexpr ptrdiff_t larger(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }

template <class T>
Vector<T> load(const T* from) {
    Vector<T> v;
    __builtin_memcpy(&v, from, sizeof(v));
    return v;
}

template <class T>
struct Bits;  // the integer that has a lane's size
template <>
struct Bits<float> {
    typedef int32_t Type;
};
template <>
struct Bits<double> {
    typedef int64_t Type;
};

template <ptrdiff_t... i>
struct Indices {};
template <ptrdiff_t n, ptrdiff_t... i>
struct Count : Count<n - 1, n - 1, i...> {};
template <ptrdiff_t... i>
struct Count<0, i...> {
    typedef Indices<i...> Type;
};

// Adds neighbouring lanes; the sums of a come before those of b.
template <class V, ptrdiff_t... i>
V add_neighbours(V a, V b, Indices<i...>) {
    return __builtin_shufflevector(a, b, (2 * i)...) + __builtin_shufflevector(a, b, (2 * i + 1)...);
}

// out[c] = the sum over the `width` lanes of v[c], as a balanced tree of neighbours
template <ptrdiff_t count, ptrdiff_t width, class T>
__attribute__((always_inline)) inline void sum_lanes(const Vector<T>* v, T* out) {
    if constexpr (width == 1) {
        __builtin_memcpy(out, v, count * sizeof(T));
    } else {
        constexpr ptrdiff_t vectors = larger(1, count * width / Tile<T>::lanes), half = (vectors + 1) / 2;
        Vector<T> sum[half];
        PYOPTIM_UNROLL
        for (ptrdiff_t i = 0; i < half; ++i) {
            sum[i] = add_neighbours(v[2 * i], v[vectors > 1 ? 2 * i + 1 : 2 * i],
                                    typename Count<Tile<T>::lanes>::Type());
        }
        sum_lanes<count, width / 2, T>(sum, out);
    }
}

// y[i + (0..rows), j + (0..cols)]: `rows` x `cols` scalar products.
template <ptrdiff_t rows, ptrdiff_t cols, class T>
void dot_tile(const Dots<T>& it, ptrdiff_t i, ptrdiff_t j) {
    using V = Vector<T>;
    constexpr ptrdiff_t lanes = Tile<T>::lanes;
    const ptrdiff_t k = it.k;
    const T* const x = it.x + i * k;
    const T* const w = it.w + j * k;
    V sum[rows][cols] = {};
    const auto add = [&](const auto& read) __attribute__((always_inline)) {
        V a[rows];
        PYOPTIM_UNROLL
        for (ptrdiff_t r = 0; r < rows; ++r) a[r] = read(x + r * k);
        PYOPTIM_UNROLL
        for (ptrdiff_t c = 0; c < cols; ++c) {
            V b = read(w + c * k);
            PYOPTIM_KEEP(b);
            PYOPTIM_UNROLL
            for (ptrdiff_t r = 0; r < rows; ++r) sum[r][c] += a[r] * b;
        }
    };
    ptrdiff_t p = 0;
    for (; p + lanes <= k; p += lanes) {
        add([p](const T* row) __attribute__((always_inline)) { return load(row + p); });
    }
    if (p < k && k >= lanes) {  // the last lanes, without those already summed
        using Bit = typename Bits<T>::Type;
        typedef Bit Mask __attribute__((vector_size(PYOPTIM_VECTOR_BYTES)));
        Mask live;
        for (ptrdiff_t lane = 0; lane < lanes; ++lane) live[lane] = lane < lanes - (k - p) ? 0 : Bit(-1);
        add([&](const T* row) __attribute__((always_inline)) {
            const V v = load(row + k - lanes);
            Mask bits;
            __builtin_memcpy(&bits, &v, sizeof(v));
            bits &= live;
            V kept;
            __builtin_memcpy(&kept, &bits, sizeof(v));
            return kept;
        });
    } else if (p < k) {
        add([&](const T* row) __attribute__((always_inline)) {
            V v = {};
            for (ptrdiff_t lane = 0; lane < k; ++lane) v[lane] = row[lane];
            return v;
        });
    }
    PYOPTIM_UNROLL
    for (ptrdiff_t r = 0; r < rows; ++r) {
        T out[cols];
        sum_lanes<cols, lanes, T>(sum[r], out);
        if (it.bias != nullptr) {
            for (ptrdiff_t c = 0; c < cols; ++c) out[c] += it.bias[j + c];
        }
        if (it.relu) {
            for (ptrdiff_t c = 0; c < cols; ++c) out[c] = math::relu_if(true, out[c]);
        }
        __builtin_memcpy(it.y + (i + r) * it.n + j, out, sizeof(out));
    }
}

// Calls body(begin, count) on [begin, end) cut into as few parts as `most` allows, of even lengths.
template <class Body>
void evenly(ptrdiff_t begin, ptrdiff_t end, ptrdiff_t most, const Body& body) {
    for (ptrdiff_t parts = (end - begin + most - 1) / most; parts > 0; --parts) {
        const ptrdiff_t count = (end - begin + parts - 1) / parts;
        body(begin, count);
        begin += count;
    }
}

template <ptrdiff_t cols, class T>
void dot_column(const Dots<T>& it, ptrdiff_t row_begin, ptrdiff_t row_end, ptrdiff_t j) {
    evenly(row_begin, row_end, Tile<T>::dot_rows, [&](ptrdiff_t i, ptrdiff_t rows) {
        if (rows == 3) {
            dot_tile<3, cols>(it, i, j);
        } else if (rows == 2) {
            dot_tile<2, cols>(it, i, j);
        } else {
            dot_tile<1, cols>(it, i, j);
        }
    });
}

// A tile of y = a b: sums of outer products of columns of a and rows of b.
template <class T>
struct Panel {
    ptrdiff_t depth;
    const T *a, *b;
    ptrdiff_t a_row, a_col, b_row, y_row;
    T* y;
    const T* first;  // what row i begins with, at first + i * first_row: y itself, or a bias. Null: zeros
    ptrdiff_t first_row;  // 0 for a bias and for zeros
    ptrdiff_t live;       // how many lanes of the last vector belong to y
    bool relu;
};

// Reads the first `live` lanes; the others become 0. Not inlined: that would double the size of all tiles.
template <class T>
__attribute__((noinline)) Vector<T> load_part(const T* from, ptrdiff_t live) {
    Vector<T> v = {};
    for (ptrdiff_t lane = 0; lane < live; ++lane) v[lane] = from[lane];
    return v;
}

template <class T>
#if !(defined(__AVX512F__) && PYOPTIM_VECTOR_BYTES == 64)
__attribute__((noinline))
#endif
void store_part(T* to, const Vector<T>& v, ptrdiff_t live) {
#if defined(__AVX512F__) && PYOPTIM_VECTOR_BYTES == 64
    const auto mask = (1u << live) - 1;
    if constexpr (sizeof(T) == 4) {
        _mm512_mask_storeu_ps(to, static_cast<__mmask16>(mask), reinterpret_cast<const __m512&>(v));
    } else {
        _mm512_mask_storeu_pd(to, static_cast<__mmask8>(mask), reinterpret_cast<const __m512d&>(v));
    }
#else
    T lanes[Tile<T>::lanes];
    __builtin_memcpy(lanes, &v, sizeof(v));
    for (ptrdiff_t lane = 0; lane < live; ++lane) to[lane] = lanes[lane];
#endif
}

template <ptrdiff_t rows, ptrdiff_t vectors, class T>
void outer_tile(const Panel<T>& it) {
    using V = Vector<T>;
    constexpr ptrdiff_t lanes = Tile<T>::lanes;
    // Only tiles of one or two vectors are of a forward pass, or at the end of rows.
    const auto is_whole = [&it](ptrdiff_t v) { return vectors > 2 || v + 1 < vectors || it.live == lanes; };
    V sum[rows][vectors], start[vectors] = {};
    if (it.first != nullptr && it.first_row == 0) {
        PYOPTIM_UNROLL
        for (ptrdiff_t v = 0; v < vectors; ++v) {
            const T* const from = it.first + v * lanes;
            start[v] = is_whole(v) ? load(from) : load_part(from, it.live);
        }
    }
    PYOPTIM_UNROLL
    for (ptrdiff_t i = 0; i < rows; ++i) {
        PYOPTIM_UNROLL
        for (ptrdiff_t v = 0; v < vectors; ++v) sum[i][v] = start[v];
    }
    if (it.first_row != 0) {
        PYOPTIM_UNROLL
        for (ptrdiff_t i = 0; i < rows; ++i) {
            PYOPTIM_UNROLL
            for (ptrdiff_t v = 0; v < vectors; ++v) {
                const T* const from = it.first + i * it.first_row + v * lanes;
                sum[i][v] = is_whole(v) ? load(from) : load_part(from, it.live);
            }
        }
    }
    // Every third row has a pointer: the two after it are within reach of an addressing mode.
    const T* a[(rows + 2) / 3];
    PYOPTIM_UNROLL
    for (ptrdiff_t i = 0; i < (rows + 2) / 3; ++i) a[i] = it.a + 3 * i * it.a_row;
    const T* b = it.b;
    const ptrdiff_t a_row = it.a_row, a_col = it.a_col, b_row = it.b_row;
    for (ptrdiff_t p = it.depth; p > 0; --p) {
        V row[vectors];
        PYOPTIM_UNROLL
        for (ptrdiff_t v = 0; v < vectors; ++v) row[v] = load(b + v * lanes);
        PYOPTIM_UNROLL
        for (ptrdiff_t i = 0; i < rows; ++i) {
            const T scalar = a[i / 3][i % 3 * a_row];
            PYOPTIM_UNROLL
            for (ptrdiff_t v = 0; v < vectors; ++v) sum[i][v] += scalar * row[v];
        }
        PYOPTIM_UNROLL
        for (ptrdiff_t i = 0; i < (rows + 2) / 3; ++i) a[i] += a_col;
        b += b_row;
    }
    if (vectors <= 2 && it.relu) {
        PYOPTIM_UNROLL
        for (ptrdiff_t i = 0; i < rows; ++i) {
            PYOPTIM_UNROLL
            for (ptrdiff_t v = 0; v < vectors; ++v) sum[i][v] = math::relu_if(true, sum[i][v]);
        }
    }
    PYOPTIM_UNROLL
    for (ptrdiff_t i = 0; i < rows; ++i) {
        PYOPTIM_UNROLL
        for (ptrdiff_t v = 0; v < vectors; ++v) {
            T* const to = it.y + i * it.y_row + v * lanes;
            if (is_whole(v)) {
                __builtin_memcpy(to, &sum[i][v], sizeof(V));
            } else {
                store_part<T>(to, sum[i][v], it.live);
            }
        }
    }
}

template <ptrdiff_t vectors, class T, ptrdiff_t rows = Tile<T>::rows>
void outer_tile_of(ptrdiff_t count, const Panel<T>& it) {
    if constexpr (rows * vectors > Tile<T>::rows * Tile<T>::vectors) {
        outer_tile_of<vectors, T, rows - 1>(count, it);
    } else if (count == rows) {
        outer_tile<rows, vectors>(it);
    } else if constexpr (rows > 1) {
        outer_tile_of<vectors, T, rows - 1>(count, it);
    }
}

// Exchanges the lanes of a and b that one step of transposing a square exchanges.
template <ptrdiff_t step, class V, ptrdiff_t... lane>
void exchange(V& a, V& b, Indices<lane...>) {
    constexpr ptrdiff_t lanes = sizeof...(lane);
    const V low = __builtin_shufflevector(a, b, ((lane & step) != 0 ? lanes + lane - step : lane)...);
    b = __builtin_shufflevector(a, b, ((lane & step) != 0 ? lanes + lane : lane + step)...);
    a = low;
}

// Transposes the square whose rows are v[0..lanes).
template <ptrdiff_t step, ptrdiff_t lanes, class V>
__attribute__((always_inline)) inline void transpose(V* v) {
    if constexpr (step < lanes) {
        PYOPTIM_UNROLL
        for (ptrdiff_t i = 0; i < lanes; ++i) {
            if ((i & step) == 0) exchange<step>(v[i], v[i + step], typename Count<lanes>::Type());
        }
        transpose<2 * step, lanes>(v);
    }
}

// out[p * count + r] = a[r * a_row + p] for p below the number of lanes and r < count. The last vector of
// each row of `out` reaches into what is behind it, so rows are written in order, and the last lanes of a row
// before its first.
template <class T>
void pack_square(const T* a, ptrdiff_t a_row, ptrdiff_t count, T* out) {
    constexpr ptrdiff_t lanes = Tile<T>::lanes;
    for (ptrdiff_t first = (count - 1) / lanes * lanes; first >= 0; first -= lanes) {
        Vector<T> v[lanes];
        for (ptrdiff_t r = 0; r < lanes; ++r) {
            v[r] = first + r < count ? load(a + (first + r) * a_row) : Vector<T>{};
        }
        transpose<1, lanes>(v);
        for (ptrdiff_t p = 0; p < lanes; ++p) __builtin_memcpy(out + p * count + first, &v[p], sizeof(v[p]));
    }
}

// Copies rows of a tile by tile: first the elements of the first column that a tile of y takes, then those of
// the second. The copy of the last tile may be followed by a vector of anything.
template <class T>
void pack_rows(const Panel<T>& panel, ptrdiff_t rows, T* out) {
    constexpr ptrdiff_t lanes = Tile<T>::lanes;
    evenly(0, rows, Tile<T>::rows, [&](ptrdiff_t i, ptrdiff_t count) {
        const T* const a = panel.a + i * panel.a_row;
        T* const tile = out + i * panel.depth;
        if (panel.a_row == 1) {
            for (ptrdiff_t p = 0; p < panel.depth; ++p) {
                for (ptrdiff_t r = 0; r < count; ++r) tile[p * count + r] = a[p * panel.a_col + r];
            }
            return;
        }
        ptrdiff_t p = 0;
        if (panel.a_col == 1) {
            for (; p + lanes <= panel.depth; p += lanes)
                pack_square(a + p, panel.a_row, count, tile + p * count);
        }
        for (; p < panel.depth; ++p) {
            for (ptrdiff_t r = 0; r < count; ++r) tile[p * count + r] = a[r * panel.a_row + p * panel.a_col];
        }
    });
}

// Whether a is copied by pack_rows before it is multiplied. That pays where its rows or columns lie a
// multiple of a page apart: such addresses compete for the same few places of a cache.
template <class T>
bool packs_rows(const Panel<T>& of, ptrdiff_t cols) {
    const ptrdiff_t apart = larger(of.a_row, of.a_col) * ptrdiff_t(sizeof(T));
    return apart % 4096 == 0 && cols >= 8 * Tile<T>::cols && of.depth >= 4 * Tile<T>::rows;
}

// Computes the tiles of `rows` rows, `vectors` vectors wide. `panel` is that of the first row. `packed_a` is
// the copy of a that pack_rows has made, or null.
template <ptrdiff_t vectors, class T>
void all_rows(const Panel<T>& panel, ptrdiff_t rows, const T* packed_a) {
    constexpr ptrdiff_t most = Tile<T>::rows * Tile<T>::vectors / larger(vectors, Tile<T>::vectors);
    evenly(0, rows, most, [&](ptrdiff_t i, ptrdiff_t count) {
        Panel<T> tile = panel;
        if (packed_a == nullptr) {
            tile.a += i * panel.a_row;
        } else {
            tile.a = packed_a + i * panel.depth;
            tile.a_row = 1;
            tile.a_col = count;
        }
        tile.y += i * panel.y_row;
        if (tile.first != nullptr) tile.first += i * panel.first_row;
        outer_tile_of<vectors>(count, tile);
    });
}

// Copies `depth` rows of b with `live` columns into a panel of `cols` columns; the other columns become 0.
template <ptrdiff_t cols, class T>
void pack(const T* b, ptrdiff_t b_row, ptrdiff_t depth, ptrdiff_t live, T* out) {
    for (ptrdiff_t p = 0; p < depth; ++p, b += b_row, out += cols) {
        if (live == cols) {
            __builtin_memcpy(out, b, cols * sizeof(T));
        } else {
            for (ptrdiff_t j = 0; j < cols; ++j) out[j] = j < live ? b[j] : T(0);
        }
    }
}

// Computes the columns of y from `begin` on that panels of `vectors` cover, and returns the end of that
// range. Panels are copied to `packed` if it is not null; then the last panel may have `least` columns.
// `packed_a` is as in all_rows.
template <ptrdiff_t vectors, class T>
ptrdiff_t panels(const Panel<T>& block, ptrdiff_t rows, ptrdiff_t begin, ptrdiff_t end, T* packed,
                 const T* packed_a = nullptr, ptrdiff_t least = vectors * Tile<T>::lanes) {
    constexpr ptrdiff_t lanes = Tile<T>::lanes, cols = vectors * lanes;
    for (; begin + least <= end; begin += cols) {
        Panel<T> panel = block;
        panel.b += begin;
        panel.y += begin;
        if (panel.first != nullptr) panel.first += begin;
        panel.live = smaller(lanes, end - begin - (cols - lanes));
        if (packed != nullptr) {
            pack<cols>(panel.b, panel.b_row, panel.depth, smaller(cols, end - begin), packed);
            panel.b = packed;
            panel.b_row = cols;
        }
        all_rows<vectors>(panel, rows, packed_a);
    }
    return begin;
}

// out[p * cols + c] = w[c * k + p] for p < depth and the rows c < live of w; 0 for the other c below the
// number of lanes. `end` is the end of w.
template <class T>
void pack_transposed(const T* w, const T* end, ptrdiff_t k, ptrdiff_t depth, ptrdiff_t live, T* out) {
    using V = Vector<T>;
    constexpr ptrdiff_t lanes = Tile<T>::lanes;
    for (ptrdiff_t p = 0; p < depth; p += lanes) {
        const ptrdiff_t n = smaller(lanes, depth - p);
        V v[lanes];
        if (live == lanes && end - (w + p) >= (lanes - 1) * k + lanes) {
            // Rows far apart are more streams than a processor reads ahead of by itself.
            for (ptrdiff_t c = 0; c < lanes; ++c) __builtin_prefetch(w + c * k + p + 2 * lanes);
            PYOPTIM_UNROLL
            for (ptrdiff_t c = 0; c < lanes; ++c)
                v[c] = load(w + c * k + p);  // what is behind `depth` is not used
        } else {
            for (ptrdiff_t c = 0; c < lanes; ++c) v[c] = c < live ? load_part(w + c * k + p, n) : V{};
        }
        transpose<1, lanes>(v);
        for (ptrdiff_t q = 0; q < n; ++q) {
            __builtin_memcpy(out + (p + q) * Tile<T>::cols, &v[q], sizeof(V));
        }
    }
}

}  // namespace

template <class T>
void dots(const Dots<T>& it, ptrdiff_t row_begin, ptrdiff_t row_end, ptrdiff_t col_begin, ptrdiff_t col_end) {
    if (it.k == 1) {
        for (ptrdiff_t i = row_begin; i < row_end; ++i) {
            T* const __restrict y = it.y + i * it.n;
            for (ptrdiff_t j = col_begin; j < col_end; ++j) {
                y[j] = math::relu_if(it.relu, it.x[i] * it.w[j] + (it.bias == nullptr ? T(0) : it.bias[j]));
            }
        }
        return;
    }
    // Rows of x that stay in L2, while each few rows of w stay in L1.
    const ptrdiff_t block = larger(Tile<T>::dot_rows, ptrdiff_t(256 << 10) / (larger(it.k, 1) * sizeof(T)));
    for (ptrdiff_t i0 = row_begin; i0 < row_end; i0 += block) {
        const ptrdiff_t i1 = smaller(i0 + block, row_end);
        constexpr ptrdiff_t cols = Tile<T>::dot_cols;
        ptrdiff_t j = col_begin;
        for (; j + cols <= col_end; j += cols) dot_column<cols>(it, i0, i1, j);
        for (; j + 2 <= col_end; j += 2) dot_column<2>(it, i0, i1, j);
        if (j < col_end) dot_column<1>(it, i0, i1, j);
    }
}

template <class T>
void pack_weight(const T* w, ptrdiff_t n, ptrdiff_t k, ptrdiff_t begin, ptrdiff_t depth, ptrdiff_t col_begin,
                 ptrdiff_t col_end, T* packed) {
    constexpr ptrdiff_t lanes = Tile<T>::lanes, cols = Tile<T>::cols;
    for (ptrdiff_t j = col_begin; j < col_end; j += lanes) {
        pack_transposed(w + j * k + begin, w + n * k, k, depth, smaller(lanes, n - j),
                        packed + (j - col_begin) / cols * cols * depth + j % cols);
    }
}

template <class T>
void unpack_weight(const T* packed, ptrdiff_t k, ptrdiff_t live, T* w) {
    constexpr ptrdiff_t lanes = Tile<T>::lanes, cols = Tile<T>::cols;
    for (ptrdiff_t p = 0; p < k; p += lanes) {
        const ptrdiff_t n = smaller(lanes, k - p);
        for (ptrdiff_t j = 0; j < live; j += lanes) {
            Vector<T> v[lanes] = {};
            for (ptrdiff_t q = 0; q < n; ++q) v[q] = load(packed + (p + q) * cols + j);
            transpose<1, lanes>(v);
            for (ptrdiff_t c = 0; c < smaller(lanes, live - j); ++c) {
                T* const to = w + (j + c) * k + p;
                if (n == lanes) {
                    __builtin_memcpy(to, &v[c], sizeof(v[c]));
                } else {
                    store_part<T>(to, v[c], n);
                }
            }
        }
    }
}

template <class T>
void packed_product(const Dots<T>& it, const T* packed, ptrdiff_t begin, ptrdiff_t depth, ptrdiff_t row_begin,
                    ptrdiff_t row_end, ptrdiff_t col_begin, ptrdiff_t col_end, T* scratch) {
    constexpr ptrdiff_t lanes = Tile<T>::lanes, cols = Tile<T>::cols, rows = Tile<T>::rows;
    // Rows of x that stay in L2 while all panels are multiplied by them.
    const ptrdiff_t fit = ptrdiff_t(256 << 10) / (larger(depth, 1) * ptrdiff_t(sizeof(T)));
    const ptrdiff_t block = larger(1, fit / rows) * rows;
    for (ptrdiff_t i = row_begin; i < row_end; i += block) {
        const ptrdiff_t count = smaller(block, row_end - i);
        Panel<T> panel = {
            depth, it.x + i * it.k + begin,         nullptr, it.k, 1, cols, it.n, nullptr, nullptr, 0,
            0,     it.relu && begin + depth == it.k};
        T* const packed_a = packs_rows(panel, col_end - col_begin) ? scratch : nullptr;
        if (packed_a != nullptr) pack_rows(panel, count, packed_a);
        for (ptrdiff_t j = col_begin; j < col_end; j += cols) {
            const ptrdiff_t live = smaller(cols, col_end - j);
            panel.b = packed + (j - col_begin) * depth;
            panel.y = it.y + i * it.n + j;
            panel.live = (live - 1) % lanes + 1;
            if (begin > 0) {
                panel.first = panel.y;
                panel.first_row = it.n;
            } else if (it.bias != nullptr) {
                panel.first = it.bias + j;
            }
            if (live > lanes) {
                all_rows<2>(panel, count, packed_a);
            } else {
                all_rows<1>(panel, count, packed_a);
            }
        }
    }
}

template <class T>
void product(const Product<T>& it, ptrdiff_t row_begin, ptrdiff_t row_end, ptrdiff_t col_begin,
             ptrdiff_t col_end, T* scratch) {
    constexpr ptrdiff_t wide_rows = Tile<T>::wide_rows, lanes = Tile<T>::lanes;
    if (row_end <= row_begin) return;
    if (it.k == 1) {  // a pure stream of stores; the last vector of a row overlaps the one before
        const ptrdiff_t last = col_end - lanes;
        for (ptrdiff_t i = row_begin; i < row_end; ++i) {
            const T scalar = it.a[i * it.a_row];
            const T* const b = it.b;
            T* const __restrict y = it.y + i * it.n;
            if (last < col_begin) {
                for (ptrdiff_t j = col_begin; j < col_end; ++j) y[j] = scalar * b[j];
                continue;
            }
            const auto multiply = [&](ptrdiff_t j) {
                const Vector<T> product = scalar * load(b + j);
                __builtin_memcpy(y + j, &product, sizeof(product));
            };
            for (ptrdiff_t j = col_begin; j < last; j += lanes) multiply(j);
            multiply(last);
        }
        return;
    }
    // A copy of b pays where enough tiles read it. The last columns are always copied: a vector of them would
    // read what is behind.
    const ptrdiff_t all = row_end - row_begin;
    T* const packed = all >= 4 * Tile<T>::rows && it.k >= 4 * Tile<T>::rows ? scratch : nullptr;
    const ptrdiff_t whole = col_end - (col_end - col_begin) % lanes;
    // For few rows a large b is a stream, best read in the order of memory: a few of its rows at a time.
    const bool streams = all <= wide_rows && it.k * it.n * ptrdiff_t(sizeof(T)) > ptrdiff_t(1 << 20);
    const ptrdiff_t depth = streams ? Tile<T>::few_depth : Tile<T>::depth;
    const ptrdiff_t block = all <= 2 * wide_rows ? all : Tile<T>::block;
    for (ptrdiff_t p0 = 0; p0 == 0 || p0 < it.k; p0 += depth) {
        for (ptrdiff_t i = row_begin; i < row_end; i += block) {
            const ptrdiff_t rows = smaller(block, row_end - i);
            T* const y = it.y + i * it.n;
            const Panel<T> panel = {smaller(depth, it.k - p0),
                                    it.a + i * it.a_row + p0 * it.a_col,
                                    it.b + p0 * it.b_row,
                                    it.a_row,
                                    it.a_col,
                                    it.b_row,
                                    it.n,
                                    y,
                                    p0 > 0 ? y : nullptr,
                                    p0 > 0 ? it.n : 0,
                                    0,
                                    false};
            ptrdiff_t j = col_begin;
            if (all <= wide_rows) j = panels<Tile<T>::wide>(panel, rows, j, whole, packed);
            if (all <= 2 * wide_rows) j = panels<Tile<T>::wide / 2>(panel, rows, j, whole, packed);
            T* packed_a = nullptr;
            if (packed != nullptr && packs_rows(panel, col_end - j)) {
                packed_a = scratch + Tile<T>::depth * Tile<T>::cols;
                pack_rows(panel, rows, packed_a);
            }
            j = panels<2>(panel, rows, j, whole, packed, packed_a);
            if (all >= Tile<T>::rows) j = panels<2>(panel, rows, j, col_end, scratch, packed_a, lanes + 1);
            j = panels<1>(panel, rows, j, whole, packed, packed_a);
            panels<1>(panel, rows, j, col_end, scratch, packed_a, 1);
        }
    }
}

// Sums the columns in blocks that a few registers hold, rows in order, in double.
template <class T>
void column_sum(const T* x, ptrdiff_t rows, ptrdiff_t cols, ptrdiff_t begin, ptrdiff_t end, T* out) {
    constexpr ptrdiff_t kBlock = 64;
    for (ptrdiff_t j0 = begin; j0 < end; j0 += kBlock) {
        const ptrdiff_t n = smaller(kBlock, end - j0);
        double sum[kBlock] = {};
        for (ptrdiff_t i = 0; i < rows; ++i) {
            for (ptrdiff_t j = 0; j < n; ++j) sum[j] += x[i * cols + j0 + j];
        }
        for (ptrdiff_t j = 0; j < n; ++j) out[j0 + j] = T(sum[j]);
    }
}

// Runs n multiply-adds on each lane of as many registers as the sums of a product take, and returns the
// number of operations. Their rate is the peak of the processor.
template <class T>
double multiply_add(size_t n, T x) {
    constexpr ptrdiff_t count = Tile<T>::rows * Tile<T>::vectors;
    Vector<T> sum[count], factor = x + Vector<T>{};
    for (ptrdiff_t j = 0; j < count; ++j) sum[j] = T(j) + Vector<T>{};  // equal sums would be computed once
    for (size_t i = 0; i < n; ++i) {
        PYOPTIM_UNROLL
        for (ptrdiff_t j = 0; j < count; ++j) sum[j] = sum[j] * factor + factor;
    }
    PYOPTIM_UNROLL
    for (ptrdiff_t j = 1; j < count; ++j) sum[0] += sum[j];
    volatile T used = sum[0][0];  // or the compiler would leave all of it out
    static_cast<void>(used);
    return 2.0 * double(n) * double(count * Tile<T>::lanes);
}

#define X(T)                                                                                                 \
    template void dots<T>(const Dots<T>&, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t);                       \
    template void pack_weight<T>(const T*, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, \
                                 T*);                                                                        \
    template void unpack_weight<T>(const T*, ptrdiff_t, ptrdiff_t, T*);                                      \
    template void packed_product<T>(const Dots<T>&, const T*, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t,    \
                                    ptrdiff_t, ptrdiff_t, T*);                                               \
    template void product<T>(const Product<T>&, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, T*);             \
    template void column_sum<T>(const T*, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, T*);                   \
    template double multiply_add<T>(size_t, T);
X(float)
X(double)
#undef X

}  // namespace pyoptim::cpu::PYOPTIM_ISA

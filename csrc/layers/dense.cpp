#include "layers/dense.hpp"

#include <algorithm>
#include <cstring>

#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"
#include "runtime/scratch.hpp"

namespace pyoptim::core {

namespace {

// Gradients of up to this many elements are prepared by the calling thread alone, which saves a region.
constexpr std::ptrdiff_t kAlone = 8192;
// Inputs that one pass of the forward product takes.
constexpr std::ptrdiff_t kDepth = 512;

struct Span {
    std::ptrdiff_t begin, end;
};
Span part(std::ptrdiff_t n, std::ptrdiff_t unit, int thread, int threads) {
    const Range mine = share(static_cast<std::size_t>(n), static_cast<std::size_t>(unit), thread, threads);
    return {static_cast<std::ptrdiff_t>(mine.begin), static_cast<std::ptrdiff_t>(mine.end)};
}

// The part of an (m, n) result that one thread computes: a range of its rows, or a range of its columns.
struct Area {
    Span rows, cols;
};
Area area(bool by_rows, std::ptrdiff_t m, std::ptrdiff_t row_unit, std::ptrdiff_t n, std::ptrdiff_t col_unit,
          int thread, int threads) {
    if (by_rows) return {part(m, row_unit, thread, threads), {0, n}};
    return {{0, m}, part(n, col_unit, thread, threads)};
}

// How the forward pass multiplies: by scalar products of rows of x and of the weight, or by outer products,
// which need a transposed copy of the weight. Either sums in an order of its own, so the choice follows from
// the shape alone. The cycles per output were measured (AVX-512 and AVX2; two multiply-adds of a vector a
// cycle): the sums across a vector that end a scalar product cost six, more where a row is shorter than a
// vector; an outer product computes whole vectors, needed or not; the copy of a weight costs half a cycle.
// A weight that exceeds L2 costs more: scalar products read it anew, eight bytes a cycle, for each few rows
// of x that L2 holds, and copying it takes a cycle for four bytes. Rows a multiple of a page apart compete
// for the same places of a cache, which the widest tile of scalar products feels.
template <class T>
bool packing_pays(const DenseShape& s, std::ptrdiff_t lanes) {
    const std::ptrdiff_t row = s.in * static_cast<std::ptrdiff_t>(sizeof(T));
    const bool is_far = s.out * row > (1 << 20);
    const bool competes = row % 4096 == 0 && lanes * sizeof(T) == 64;
    const auto in = static_cast<double>(s.in), out = static_cast<double>(s.out);
    const auto batch = static_cast<double>(s.batch);
    const auto multiply = in / (2 * static_cast<double>(lanes));
    const auto vectors = static_cast<double>((s.out + lanes - 1) / lanes * lanes);
    double dots = (competes ? 1.3 : 1) * multiply + 6 + (s.in < lanes ? 2 * in : 0);
    if (is_far) {
        const auto rows =
            static_cast<double>(std::max<std::ptrdiff_t>(3, std::min(s.batch, (256 << 10) / row)));
        dots += static_cast<double>(row) / rows / 8;
    }
    const double copy = (is_far ? 0.25 * sizeof(T) : 0.5) * in / batch;
    return vectors / out * (multiply + 0.7) + copy < dots;
}

// The columns of a transposed copy of a weight.
std::ptrdiff_t padded(std::ptrdiff_t out, std::ptrdiff_t cols) { return (out + cols - 1) / cols * cols; }

std::size_t work(const DenseShape& s) {
    const auto multiply_adds = static_cast<std::size_t>(s.batch * s.out) * static_cast<std::size_t>(s.in + 1);
    return multiply_adds / static_cast<std::size_t>(std::clamp<std::ptrdiff_t>(s.batch, 1, kDenseReuse));
}

// What the threads of one forward pass share.
template <class T>
struct Forward {
    const DenseShape& shape;
    const cpu::ForwardKernels<T>& table;
    const cpu::Dots<T>& dots;
    Activation activation;
    int most;  // threads

    void finish(const Area& mine) const {
        if (activation == Activation::identity || dots.relu) return;
        for (std::ptrdiff_t i = mine.rows.begin; i < mine.rows.end; ++i) {
            T* const row = dots.y + i * shape.out + mine.cols.begin;
            table.activation_forward(activation, static_cast<std::size_t>(mine.cols.end - mine.cols.begin),
                                     row, row);
        }
    }
    void pack(std::ptrdiff_t begin, std::ptrdiff_t depth, Span cols, T* packed) const {
        table.pack_weight(dots.w, shape.out, shape.in, begin, depth, cols.begin, cols.end, packed);
    }
};

// Copies some columns of a whole weight: the panels of kDepth inputs after those of the kDepth before.
template <class T>
void pack_whole(const cpu::ForwardKernels<T>& table, const DenseShape& s, const T* weight, Span cols,
                T* copy) {
    for (std::ptrdiff_t begin = 0; begin < s.in; begin += kDepth) {
        const std::ptrdiff_t depth = std::min(kDepth, s.in - begin);
        table.pack_weight(weight, s.out, s.in, begin, depth, cols.begin, cols.end,
                          copy + padded(s.out, table.tile_cols) * begin + cols.begin * depth);
    }
}
// Multiplies rows by such a copy. memory may be null, as packed_product says.
template <class T>
void multiply_whole(const cpu::ForwardKernels<T>& table, const cpu::Dots<T>& dots, std::ptrdiff_t rows,
                    const T* copy, T* memory) {
    for (std::ptrdiff_t begin = 0; begin == 0 || begin < dots.k; begin += kDepth) {
        table.packed_product(dots, copy + padded(dots.n, table.tile_cols) * begin, begin,
                             std::min(kDepth, dots.k - begin), 0, rows, 0, dots.n, memory);
    }
}

// Each thread copies and multiplies columns of its own, so many at a time that the copy stays in L2.
template <class T>
void forward_by_columns(const Forward<T>& it) {
    const auto [batch, in, out] = it.shape;
    const std::ptrdiff_t cols = it.table.tile_cols, wide = 16 * cols;
    const std::size_t size = it.table.product_scratch;
    const std::size_t each = size + static_cast<std::size_t>(wide * std::min(in, kDepth));
    T* const own = scratch<T>(each * static_cast<std::size_t>(it.most));
    const auto multiply = [&, batch = batch, in = in](Span block, T* memory) {
        T* const packed = memory + size;
        for (std::ptrdiff_t begin = 0; begin == 0 || begin < in; begin += kDepth) {
            const std::ptrdiff_t depth = std::min(kDepth, in - begin);
            it.pack(begin, depth, block, packed);
            it.table.packed_product(it.dots, packed, begin, depth, 0, batch, block.begin, block.end, memory);
        }
        it.finish({{0, batch}, block});
    };
    parallel(it.most, [&, out = out](int thread, int threads) {
        const Span mine = part(out, cols, thread, threads);
        for (std::ptrdiff_t j = mine.begin; j < mine.end; j += wide) {
            multiply({j, std::min(j + wide, mine.end)}, own + each * static_cast<std::size_t>(thread));
        }
    });
}

// Threads share a copy of kDepth inputs of the weight, and each multiplies rows of its own.
template <class T>
void forward_by_rows(const Forward<T>& it) {
    const auto [batch, in, out] = it.shape;
    const std::ptrdiff_t cols = it.table.tile_cols;
    const std::size_t size = it.table.product_scratch, all = size * static_cast<std::size_t>(it.most);
    T* const own = scratch<T>(all + static_cast<std::size_t>(padded(out, cols) * std::min(in, kDepth)));
    T* const packed = own + all;
    for (std::ptrdiff_t begin = 0; begin == 0 || begin < in; begin += kDepth) {
        const std::ptrdiff_t depth = std::min(kDepth, in - begin);
        parallel(out * depth <= kPackedAlone ? 1 : it.most, [&, out = out](int thread, int threads) {
            const Span mine = part(out, cols, thread, threads);
            it.pack(begin, depth, mine, packed + mine.begin * depth);
        });
        parallel(it.most, [&, batch = batch, out = out, in = in](int thread, int threads) {
            const Span rows = part(batch, it.table.tile_rows, thread, threads);
            it.table.packed_product(it.dots, packed, begin, depth, rows.begin, rows.end, 0, out,
                                    own + size * static_cast<std::size_t>(thread));
            if (begin + depth == in) it.finish({rows, {0, out}});
        });
    }
}

}  // namespace

template <class T>
void dense_forward(const DenseShape& s, const T* x, const T* weight, const T* bias, Activation activation,
                   T* y) {
    const cpu::ForwardKernels<T>& table = forward_kernels<T>();
    const cpu::Dots<T> dots = {s.out, s.in, x, weight, bias, y, activation == Activation::relu};
    const int most = threads_for(work(s), kDenseGrain);
    const Forward<T> it = {s, table, dots, activation, most};
    const bool many_rows = s.batch >= 4 * table.tile_rows * most;
    if (!packing_pays<T>(s, table.lanes)) {
        parallel(most, [&](int thread, int threads) {
            const Area mine = area(s.batch > s.out, s.batch, 1, s.out, table.dot_cols, thread, threads);
            table.dots(dots, mine.rows.begin, mine.rows.end, mine.cols.begin, mine.cols.end);
            it.finish(mine);
        });
    } else if (s.out >= (many_rows ? 4 : 1) * table.tile_cols * most) {
        forward_by_columns(it);
    } else {
        forward_by_rows(it);
    }
}

template <class T>
void dense_alone(const DenseShape& s, const T* x, const T* weight, const T* bias, Activation activation,
                 T* y) {
    const cpu::ForwardKernels<T>& table = forward_kernels<T>();
    const cpu::Dots<T> dots = {s.out, s.in, x, weight, bias, y, activation == Activation::relu};
    table.dots(dots, 0, s.batch, 0, s.out);
    Forward<T>{s, table, dots, activation, 1}.finish({{0, s.batch}, {0, s.out}});
}

template <class T>
bool DenseCopy<T>::pays(const DenseShape& whole) {
    return packing_pays<T>(whole, forward_kernels<T>().lanes);
}

template <class T>
void DenseCopy<T>::prepare(const DenseShape& whole) {
    const cpu::ForwardKernels<T>& table = forward_kernels<T>();
    is_old_ = kernels_ == &table;
    if (is_old_) return;
    kernels_ = nullptr;
    copy_.reserve(static_cast<std::size_t>(padded(whole.out, table.tile_cols) * whole.in));
    weight_.reserve(static_cast<std::size_t>(whole.out * whole.in));
}

template <class T>
void DenseCopy<T>::update(const DenseShape& s, const T* weight, int part_index, int parts) {
    const cpu::ForwardKernels<T>& table = forward_kernels<T>();
    const Span mine = part(s.out, table.tile_cols, part_index, parts);
    const T* const now = weight + mine.begin * s.in;
    T* const before = weight_.data() + mine.begin * s.in;
    const std::size_t bytes = static_cast<std::size_t>((mine.end - mine.begin) * s.in) * sizeof(T);
    if (part_index == 0) kernels_ = &table;  // which no part reads
    if (is_old_ && std::memcmp(now, before, bytes) == 0) return;
    std::memcpy(before, now, bytes);
    pack_whole(table, s, weight, mine, copy_.data());
}

template <class T>
void DenseCopy<T>::forward(const DenseShape& rows, const T* x, const T* bias, Activation activation,
                           T* y) const {
    const cpu::ForwardKernels<T>& table = forward_kernels<T>();
    const bool relu = activation == Activation::relu;
    multiply_whole<T>(table, {rows.out, rows.in, x, nullptr, bias, y, relu}, rows.batch, copy_.data(),
                      nullptr);
    if (activation == Activation::identity || relu) return;
    table.activation_forward(activation, static_cast<std::size_t>(rows.batch * rows.out), y, y);
}

template <class T>
void add_pieces(std::size_t count, std::size_t size, const T* pieces, std::size_t begin, std::size_t end,
                T* out) {
    kernels<T>().column_sum(pieces, static_cast<std::ptrdiff_t>(count), static_cast<std::ptrdiff_t>(size),
                            static_cast<std::ptrdiff_t>(begin), static_cast<std::ptrdiff_t>(end), out);
}

namespace {

// What the threads of a backward pass share. dz is the gradient before the activation.
template <class T>
struct BackwardPass {
    const DenseShape& shape;
    const cpu::Kernels<T>& table;
    const T *dz, *x, *weight;
    const DenseGradients<T>& to;

    void sum(Span cols) const {
        if (to.dbias != nullptr) table.column_sum(dz, shape.batch, shape.out, cols.begin, cols.end, to.dbias);
    }
    void input(int thread, int threads, T* memory) const {
        const auto [batch, in, out] = shape;
        if (in == 1 && out >= table.lanes) {
            const Span rows = part(batch, 1, thread, threads);
            table.dots({1, out, dz, weight, nullptr, to.dx, false}, rows.begin, rows.end, 0, 1);
            return;
        }
        const Area mine = area(in < 4 * table.tile_cols, batch, 1, in, table.tile_cols, thread, threads);
        run({in, out, dz, out, 1, weight, in, to.dx}, mine, memory);
    }
    void parameters(int thread, int threads, T* memory) const {
        const auto [batch, in, out] = shape;
        if (to.dweight == nullptr) return;
        // Of a single input the weight is also a row, and its gradient the product x^T dz.
        const std::ptrdiff_t rows = in == 1 ? 1 : out, cols = in == 1 ? out : in;
        const Area mine = area(rows >= 4 * table.tile_rows, rows, 1, cols, table.tile_cols, thread, threads);
        if (in == 1) {
            run({out, batch, x, 1, 1, dz, out, to.dweight}, mine, memory);
        } else {
            run({in, batch, dz, 1, out, x, in, to.dweight}, mine, memory);
        }
    }

  private:
    void run(const cpu::Product<T>& it, const Area& mine, T* memory) const {
        table.product(it, mine.rows.begin, mine.rows.end, mine.cols.begin, mine.cols.end, memory);
    }
};

}  // namespace

template <class T>
bool DenseRows<T>::suits(const DenseShape& whole) {
    return whole.in * whole.out <= kPackedAlone;
}

template <class T>
std::size_t DenseRows<T>::memory() const {
    const cpu::ForwardKernels<T>& table = forward_kernels<T>();
    const std::ptrdiff_t copy =
        packing_pays<T>(whole, table.lanes) ? padded(whole.out, table.tile_cols) * whole.in : 0;
    return table.product_scratch + static_cast<std::size_t>(copy);
}

template <class T>
void DenseRows<T>::copy(T* memory) const {
    const cpu::ForwardKernels<T>& table = forward_kernels<T>();
    if (!packing_pays<T>(whole, table.lanes)) return;
    pack_whole(table, whole, weight, {0, whole.out}, memory + table.product_scratch);
}

template <class T>
void DenseRows<T>::forward(std::ptrdiff_t rows, const T* x, T* y, T* memory) const {
    const cpu::ForwardKernels<T>& table = forward_kernels<T>();
    if (!packing_pays<T>(whole, table.lanes)) {
        dense_alone({rows, whole.in, whole.out}, x, weight, bias, activation, y);
        return;
    }
    const cpu::Dots<T> dots = {whole.out, whole.in, x, weight, bias, y, activation == Activation::relu};
    multiply_whole<T>(table, dots, rows, memory + table.product_scratch, memory);
    Forward<T>{whole, table, dots, activation, 1}.finish({{0, rows}, {0, whole.out}});
}

template <class T>
void DenseRows<T>::backward(std::ptrdiff_t rows, const DenseInputs<T>& of, const DenseGradients<T>& to,
                            T* memory) const {
    const cpu::Kernels<T>& table = kernels<T>();
    const DenseShape shape = {rows, whole.in, whole.out};
    const bool has_activation = activation != Activation::identity;
    if (has_activation) {
        table.activation_backward(activation, static_cast<std::size_t>(rows * whole.out), of.dy, of.y, to.dz);
    }
    const BackwardPass<T> pass = {shape, table, has_activation ? to.dz : of.dy, of.x, weight, to};
    pass.sum({0, whole.out});
    if (to.dx != nullptr) pass.input(0, 1, memory);
    pass.parameters(0, 1, memory);
}

template <class T>
void dense_backward(const DenseShape& s, const DenseInputs<T>& of, const DenseGradients<T>& to) {
    const cpu::Kernels<T>& table = kernels<T>();
    const std::ptrdiff_t size = s.batch * s.out;
    const bool has_activation = of.activation != Activation::identity;
    const std::size_t products = (to.dx != nullptr) + (to.dweight != nullptr);
    const int most = threads_for(products * work(s), kDenseGrain);
    const auto n = static_cast<std::size_t>(s.batch), weights = static_cast<std::size_t>(s.in * s.out),
               outputs = static_cast<std::size_t>(s.out);
    // Where the gradients are sums over pieces, those of all pieces are computed first.
    const Pieces pieces(n);
    const bool adds = to.dweight != nullptr && pieces.count > 1 && DenseRows<T>::suits(s);
    const std::size_t added = adds ? pieces.count * (weights + outputs) : 0;
    // The scratch memory of all threads is reserved here, because nothing may throw in a parallel region.
    const bool keeps = to.dz != nullptr;
    const std::size_t all = table.product_scratch * static_cast<std::size_t>(most);
    T* const own = scratch<T>(all + added + (has_activation && !keeps ? n * outputs : 0));
    T* const of_pieces = own + all;
    T* const written = keeps ? to.dz : of_pieces + added;
    const T* const dz = has_activation ? written : of.dy;
    if (keeps && !has_activation) std::copy(of.dy, of.dy + size, to.dz);
    const BackwardPass<T> pass = {s, table, dz, of.x, of.weight, to};

    const auto activate = [&](const Range& of_all) {
        table.activation_backward(of.activation, of_all.end - of_all.begin, of.dy + of_all.begin,
                                  of.y + of_all.begin, written + of_all.begin);
    };
    const bool alone = size <= kAlone || most == 1;
    if (alone) {
        if (has_activation) activate({0, n * outputs});
        if (!adds) pass.sum({0, s.out});
    } else if (has_activation) {
        parallel(most, [&](int thread, int threads) { activate(share(n * outputs, 64, thread, threads)); });
    }
    parallel(most, [&](int thread, int threads) {
        T* const memory = own + table.product_scratch * static_cast<std::size_t>(thread);
        if (!alone && !adds) pass.sum(part(s.out, 16, thread, threads));
        // dx first: it reads the weight, which the forward pass may have left in the caches.
        if (to.dx != nullptr) pass.input(thread, threads, memory);
        if (!adds) pass.parameters(thread, threads, memory);
        const Range mine = share(adds ? pieces.count : 0, 1, thread, threads);
        for (std::size_t i = mine.begin; i < mine.end; ++i) {
            const std::size_t first = i * pieces.rows, rows = std::min(pieces.rows, n - first);
            const DenseShape shape = {static_cast<std::ptrdiff_t>(rows), s.in, s.out};
            const DenseGradients<T> piece = {nullptr, of_pieces + i * weights,
                                             of_pieces + pieces.count * weights + i * outputs};
            const BackwardPass<T> of_piece = {
                shape,   table, dz + first * outputs, of.x + first * static_cast<std::size_t>(s.in),
                nullptr, piece};
            of_piece.sum({0, s.out});
            of_piece.parameters(0, 1, memory);
        }
    });
    if (!adds) return;
    add_pieces(pieces.count, weights, of_pieces, 0, weights, to.dweight);
    if (to.dbias != nullptr) {
        add_pieces(pieces.count, outputs, of_pieces + pieces.count * weights, 0, outputs, to.dbias);
    }
}

template <class T>
void dense_update(const std::vector<DenseUpdate<T>>& updates, const T* coefficients) {
    const cpu::Kernels<T>& table = kernels<T>();
    constexpr std::ptrdiff_t kBlock = 8192 / sizeof(T);  // of the gradient, which stays in the first cache
    std::size_t work = 0;
    for (const auto& it : updates) work += it.weight.size;
    const int most = threads_for(work, 16384);
    const std::size_t each = table.product_scratch + kBlock;
    T* const own = scratch<T>(each * static_cast<std::size_t>(most));
    parallel(most, [&](int thread, int threads) {
        T* const memory = own + each * static_cast<std::size_t>(thread);
        T* const gradient = memory + table.product_scratch;
        for (const auto& it : updates) {
            const auto [batch, in, out] = it.shape;
            // Where the forward pass is of scalar products, this thread has mostly had the same rows.
            const Span mine = part(out, table.dot_cols, thread, threads);
            // A block is of whole tiles of the product, which for a single example has none.
            const std::ptrdiff_t unit = batch == 1 ? 1 : table.tile_rows;
            const std::ptrdiff_t tall =
                std::max(unit, kBlock / std::max<std::ptrdiff_t>(1, in) / unit * unit);
            const std::ptrdiff_t wide =
                tall * in <= kBlock ? in : kBlock / tall / table.tile_cols * table.tile_cols;
            for (std::ptrdiff_t i = mine.begin; i < mine.end; i += tall) {
                const std::ptrdiff_t rows = std::min(tall, mine.end - i);
                for (std::ptrdiff_t j = 0; j < in; j += wide) {
                    const std::ptrdiff_t cols = std::min(wide, in - j);
                    table.product({cols, batch, it.dz + i, 1, out, it.x + j, in, gradient}, 0, rows, 0, cols,
                                  memory);
                    // Rows of the block that lie together in the weight are one array for the rule.
                    const std::ptrdiff_t each_time = cols == in ? rows : 1;
                    for (std::ptrdiff_t row = 0; row < rows; row += each_time) {
                        const std::ptrdiff_t at = (i + row) * in + j;
                        T* state[cpu::kMaxStates];
                        for (int k = 0; k < cpu::kMaxStates; ++k) {
                            state[k] = it.weight.state[k] == nullptr ? nullptr : it.weight.state[k] + at;
                        }
                        table.step[it.weight.rule](static_cast<std::size_t>(each_time * cols),
                                                   it.weight.param + at, gradient + row * cols, state,
                                                   coefficients + it.weight.coefficients);
                    }
                }
            }
        }
    });
}

#define X(T)                                                                                             \
    template void dense_forward<T>(const DenseShape&, const T*, const T*, const T*, Activation, T*);     \
    template void dense_alone<T>(const DenseShape&, const T*, const T*, const T*, Activation, T*);       \
    template class DenseCopy<T>;                                                                         \
    template struct DenseRows<T>;                                                                        \
    template void add_pieces<T>(std::size_t, std::size_t, const T*, std::size_t, std::size_t, T*);       \
    template void dense_backward<T>(const DenseShape&, const DenseInputs<T>&, const DenseGradients<T>&); \
    template void dense_update<T>(const std::vector<DenseUpdate<T>>&, const T*);
X(float)
X(double)
#undef X

}  // namespace pyoptim::core

// Muon over many matrices: momentum, made orthogonal by Newton-Schulz iterations, and a descent along it.
// All threads work on a large matrix together; small matrices are shared out among them. Either way an
// element is the same sum in the same order. cuda/kernels/muon_kernels.cuh has the same on GPUs,
// pyoptim/backends/reference/tensors.py is the twin.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "cpu/kernels.hpp"
#include "formulas/muon.hpp"
#include "optim/tensor_array.hpp"
#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"
#include "runtime/reduce.hpp"
#include "runtime/scratch.hpp"

namespace pyoptim::core {

template <class T>
class MuonStepper {
  public:
    static constexpr int states = 1, length = kMuonLength;

    void add(const TensorArray<T>& array) {
        const std::size_t n = std::min(array.shape.rows, array.shape.cols), products = n * array.size;
        const bool large = products > kAlone;
        (large ? large_ : small_).push_back(arrays_.size());
        std::size_t& need = large ? large_need_ : small_need_;
        need = std::max(need, 2 * lines(array.size) + 2 * lines(n * n));
        most_blocks_ = std::max(most_blocks_, (array.size + kSumBlock - 1) / kSumBlock);
        arrays_.push_back(array);
        work_ += 8 * products;
    }

    // Takes the same arguments as AdafactorStepper::step.
    void step(const T* const* grads, const double* rows) {
        const cpu::Kernels<T>& table = kernels<T>();
        const int most = threads_for(work_, kGrain);
        const std::size_t tile = lines(table.product_scratch), own = tile + small_need_;
        T* const memory = scratch<T>(large_need_ + own * static_cast<std::size_t>(most));
        squares_.resize(most_blocks_ * static_cast<std::size_t>(most));
        T* const tiles = memory + large_need_;
        for (const std::size_t i : large_) {
            run({table, most, tiles, own, squares_.data()}, arrays_[i], grads[i], rows, memory);
        }
        if (small_.empty()) return;
        parallel(most, [&](int thread, int threads) {
            const auto t = static_cast<std::size_t>(thread);
            T* const mine = tiles + own * t;
            const Range share_of = share(small_.size(), 1, thread, threads);
            for (std::size_t k = share_of.begin; k < share_of.end; ++k) {
                const std::size_t i = small_[k];
                run({table, 1, mine, own, squares_.data() + most_blocks_ * t}, arrays_[i], grads[i], rows,
                    mine + tile);
            }
        });
    }

  private:
    // How many multiply-adds of a product make a thread worth while, and how many make it worth while that
    // all threads work on one matrix.
    static constexpr std::size_t kGrain = 1 << 16, kAlone = 1 << 21;

    static std::size_t lines(std::size_t n) { return (n + 63) / 64 * 64; }

    // The threads that work on a matrix. Each function ends when all its parts have been computed.
    struct Team {
        const cpu::Kernels<T>& table;
        int threads;
        T* tiles;  // scratch memory for the products of each thread, `apart` elements from the next one's
        std::size_t apart;
        double* squares;

        // Calls body(begin, end, thread) on parts of [0, n).
        template <class Body>
        void each(std::size_t n, std::size_t unit, Body body) const {
            parallel(threads, [&](int thread, int count) {
                const Range mine = share(n, unit, thread, count);
                body(mine.begin, mine.end, thread);
            });
        }
        // x = a x + b y, by gradient descent.
        void blend(std::size_t n, double a, T* x, double b, const T* y) const {
            const T row[] = {-1, 0, static_cast<T>(a), static_cast<T>(b)};
            each(n, 64, [&](std::size_t begin, std::size_t end, int) {
                table.step[static_cast<int>(cpu::RuleId::sgd)](end - begin, x + begin, y + begin, nullptr,
                                                               row);
            });
        }
        // y (m, n) = x (m, k) w (n, k)^T
        void dots(std::size_t m, std::size_t n, std::size_t k, const T* x, const T* w, T* y) const {
            each(m, 1, [&](std::size_t begin, std::size_t end, int) {
                table.dots({index(n), index(k), x, w, nullptr, y, false}, index(begin), index(end), 0,
                           index(n));
            });
        }
        void product(std::size_t m, const cpu::Product<T>& it) const {
            const bool by_rows = index(m) >= it.n;
            const auto unit = static_cast<std::size_t>(by_rows ? table.tile_rows : table.tile_cols);
            each(by_rows ? m : static_cast<std::size_t>(it.n), unit,
                 [&](std::size_t begin, std::size_t end, int thread) {
                     T* const tile = tiles + apart * static_cast<std::size_t>(thread);
                     if (by_rows) {
                         table.product(it, index(begin), index(end), 0, it.n, tile);
                     } else {
                         table.product(it, 0, index(m), index(begin), index(end), tile);
                     }
                 });
        }
    };
    static std::ptrdiff_t index(std::size_t n) { return static_cast<std::ptrdiff_t>(n); }

    void run(const Team& team, const TensorArray<T>& array, const T* grad, const double* rows, T* memory) {
        const double* const row = rows + array.group * length;
        const auto& c = reinterpret_cast<const MuonCoefficients&>(*row);
        const std::size_t height = array.shape.rows, width = array.shape.cols, size = array.size;
        const std::size_t n = std::min(height, width);
        T *const x = memory, *const moved = x + lines(size);
        T *const gram = moved + lines(size), *const square = gram + lines(n * n);

        T coefficients[kMuonLength];
        for (int k = 0; k < kMuonLength; ++k) coefficients[k] = static_cast<T>(row[k]);
        const auto each_block = [&](auto visit) {
            team.each((size + kSumBlock - 1) / kSumBlock, 1, [&](std::size_t first, std::size_t last, int) {
                for (std::size_t b = first; b < last; ++b) {
                    visit(b, b * kSumBlock, std::min(kSumBlock, size - b * kSumBlock));
                }
            });
        };
        each_block([&](std::size_t b, std::size_t begin, std::size_t count) {
            std::fill_n(x + begin, count, T(0));
            T* state[cpu::kMaxStates] = {array.state[0] + begin};
            team.table.step[array.rule](count, x + begin, grad + begin, state, coefficients);
            team.squares[b] = block_squares(team.table, count, x + begin);
        });
        const double sum = total_of_squares((size + kSumBlock - 1) / kSumBlock,
                                            [&](std::size_t b) { return team.squares[b]; });
        const T by = static_cast<T>(muon_divisor(c, sum));
        each_block([&](std::size_t, std::size_t begin, std::size_t count) {
            for (std::size_t i = begin; i < begin + count; ++i) x[i] = x[i] / by;
        });
        for (double turn = 0; turn < c.steps && n > 0; ++turn) {
            const bool wide = height <= width;
            if (wide) {
                team.dots(n, n, width, x, x, gram);
            } else {
                team.product(n, {index(n), index(height), x, 1, index(n), x, index(n), gram});
            }
            team.dots(n, n, n, gram, gram, square);  // gram is symmetric
            team.blend(n * n, c.b, gram, c.c, square);
            if (wide) {
                team.product(n, {index(width), index(n), gram, index(n), 1, x, index(width), moved});
            } else {
                team.dots(height, n, n, x, gram, moved);
            }
            team.blend(size, c.a, x, 1, moved);
        }
        const double rate = muon_rate(c, static_cast<double>(height), static_cast<double>(width));
        team.blend(size, c.param_scale, array.param, rate, x);
    }

    std::vector<TensorArray<T>> arrays_;
    std::vector<std::size_t> large_, small_;
    std::size_t large_need_ = 0, small_need_ = 0;  // scratch memory, in elements
    std::size_t most_blocks_ = 0, work_ = 0;
    std::vector<double> squares_;  // the sum of squares of each block, in the current step
};

}  // namespace pyoptim::core

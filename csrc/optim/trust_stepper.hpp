// Steps whose length the norms of each array set, layer by layer: LARS and LAMB. Every block of an array is
// measured, and then every block is moved; blocks do not depend on the number of threads.
// cuda/kernels/trust_kernels.cuh has the same on GPUs; pyoptim/backends/reference/tensors.py is the twin.
#pragma once

#include <cstddef>
#include <vector>

#include "cpu/kernels.hpp"
#include "formulas/trust.hpp"
#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"
#include "runtime/reduce.hpp"

namespace pyoptim::core {

template <class T>
class TrustStepper {
  public:
    struct Array {
        int rule;                         // the cpu::RuleId of its rule
        std::size_t group, coefficients;  // the index of its group, and the offset of its row in a step's
        T* param;
        T* state[cpu::kMaxStates];
        std::size_t size;
    };

    // If `directed` (LAMB), the rule writes a direction, and the parameter then moves along it. Otherwise
    // (LARS) the rule is momentum, and the gradient of each array enters the momentum at a rate of its own.
    explicit TrustStepper(bool directed) : directed_(directed) {}

    void add(const Array& array) {
        for (std::size_t begin = 0; begin < array.size; begin += kBlock) {
            blocks_.push_back({arrays_.size(), begin, total_ + begin});
        }
        first_block_.push_back(blocks_.size() - (array.size + kBlock - 1) / kBlock);
        arrays_.push_back(array);
        total_ += array.size;
        squares_.resize(blocks_.size());
        if (directed_) directions_.resize(total_);
    }

    // grads: one address per array; coefficients: the rows of all groups, end to end; one Trust per group.
    void step(const T* const* grads, const T* coefficients, const Trust* trusts) {
        const cpu::Kernels<T>& table = kernels<T>();
        const int most = threads_for(total_, kBlock);
        parallel(most, [&](int thread, int threads) {
            const Range mine = share(blocks_.size(), 1, thread, threads);
            for (std::size_t b = mine.begin; b < mine.end; ++b) {
                const std::size_t i = blocks_[b].array;
                squares_[b] = measure(table, blocks_[b], grads[i], coefficients, trusts[arrays_[i].group]);
            }
        });
        parallel(most, [&](int thread, int threads) {
            const Range mine = share(blocks_.size(), 1, thread, threads);
            double rate = 0;
            for (std::size_t b = mine.begin; b < mine.end; ++b) {
                const std::size_t i = blocks_[b].array;
                if (b == mine.begin || blocks_[b].begin == 0) rate = rate_of(i, trusts[arrays_[i].group]);
                move(table, blocks_[b], grads[i], coefficients, rate);
            }
        });
    }

  private:
    static constexpr std::size_t kBlock = kSumBlock;  // so the norms have the bits of sum_of_squares
    static constexpr std::size_t kCommon = Common::coefficient_count;
    struct Block {
        std::size_t array, begin;
        std::size_t position;  // the position of its first element among those of all arrays
    };
    struct Squares {          // as formulas/squares.hpp keeps them
        double param, other;  // `other` is of the gradient (LARS) or of the direction (LAMB)
    };

    std::size_t length(const Block& block) const {
        const std::size_t rest = arrays_[block.array].size - block.begin;
        return rest < kBlock ? rest : kBlock;
    }

    void run_rule(const cpu::Kernels<T>& table, const Block& block, T* param, const T* grad,
                  const T* row) const {
        const Array& array = arrays_[block.array];
        T* state[cpu::kMaxStates] = {};
        for (int k = 0; k < cpu::kMaxStates; ++k) {
            if (array.state[k] != nullptr) state[k] = array.state[k] + block.begin;
        }
        table.step[array.rule](length(block), param, grad + block.begin, state, row);
    }

    Squares measure(const cpu::Kernels<T>& table, const Block& block, const T* grad, const T* coefficients,
                    const Trust& trust) {
        const Array& array = arrays_[block.array];
        const T* const param = array.param + block.begin;
        const std::size_t n = length(block);
        if (!directed_) return {block_squares(table, n, param), block_squares(table, n, grad + block.begin)};
        T* const direction = directions_.data() + block.position;
        for (std::size_t k = 0; k < n; ++k) direction[k] = 0;
        run_rule(table, block, direction, grad, coefficients + array.coefficients);
        if (trust.weight_decay != 0) {  // positive: the direction points downhill already
            const T decay[] = {1, 0, 1, static_cast<T>(trust.weight_decay)};
            table.step[static_cast<int>(cpu::RuleId::sgd)](n, direction, param, nullptr, decay);
        }
        return {block_squares(table, n, param), block_squares(table, n, direction)};
    }

    double rate_of(std::size_t i, const Trust& c) const {
        const std::size_t end = i + 1 < arrays_.size() ? first_block_[i + 1] : blocks_.size();
        const Squares* const own = squares_.data() + first_block_[i];
        const std::size_t count = end - first_block_[i];
        return trust_rate(c, directed_, total_of_squares(count, [&](std::size_t b) { return own[b].param; }),
                          total_of_squares(count, [&](std::size_t b) { return own[b].other; }));
    }

    void move(const cpu::Kernels<T>& table, const Block& block, const T* grad, const T* coefficients,
              double rate) const {
        const Array& array = arrays_[block.array];
        T* const param = array.param + block.begin;
        if (directed_) {
            const T along[] = {-1, 0, 1, static_cast<T>(rate)};
            table.step[static_cast<int>(cpu::RuleId::sgd)](
                length(block), param, directions_.data() + block.position, nullptr, along);
            return;
        }
        using Momentum = rules::Momentum;
        T row[kCommon + Momentum::coefficient_count];
        for (std::size_t k = 0; k < sizeof(row) / sizeof(T); ++k)
            row[k] = coefficients[array.coefficients + k];
        reinterpret_cast<Momentum::Coefficients<T>*>(row + kCommon)->grad_in = static_cast<T>(rate);
        run_rule(table, block, param, grad, row);
    }

    bool directed_;
    std::vector<Array> arrays_;
    std::vector<Block> blocks_;
    std::vector<std::size_t> first_block_;  // one per array
    std::size_t total_ = 0;
    std::vector<T> directions_;     // the directions of all arrays, end to end
    std::vector<Squares> squares_;  // one per block, in the current step
};

}  // namespace pyoptim::core

// One optimizer step over many arrays: what is known beforehand is prepared once, so a step is a walk
// over ready addresses, split evenly over the threads whatever the sizes of the arrays.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/kernels.hpp"
#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"

namespace pyoptim::core {

template <class T>
class Stepper {
  public:
    struct Array {
        int rule;                   // the cpu::RuleId of its rule
        std::size_t coefficients;   // the offset of its row in the coefficients of a step
        T* param;                   // the caller owns the memory of all these arrays
        T* state[cpu::kMaxStates];  // as many states as the rule has; the other addresses are null
        std::size_t size;           // the number of elements
        T* average;                 // a running average of the parameter, or null
    };

    void add(const Array& array) {
        begin_.push_back(total_);
        total_ += array.size;
        arrays_.push_back(array);
    }
    const std::vector<Array>& arrays() const { return arrays_; }

    // grads: one address per array; coefficients: the rows of all groups, end to end. Nothing may overlap.
    // The averages move towards the new parameters by the share `weight`, unless it is 0.
    void step(const T* const* grads, const T* coefficients, double weight = 0) const {
        const cpu::Kernels<T>& table = kernels<T>();
        parallel(threads_for(total_, kGrain), [&](int thread, int threads) {
            const Range mine = share(total_, kUnit, thread, threads);
            for (std::size_t i = first_array(mine.begin); i < arrays_.size() && begin_[i] < mine.end; ++i) {
                const Array& array = arrays_[i];
                const std::size_t from = mine.begin > begin_[i] ? mine.begin - begin_[i] : 0;
                const std::size_t to = mine.end - begin_[i] < array.size ? mine.end - begin_[i] : array.size;
                if (from >= to) continue;
                const std::size_t head = to - from < kGrain ? 0 : to_line(array.param + from);
                const auto run = [&](std::size_t begin, std::size_t end) {
                    T* state[cpu::kMaxStates];
                    for (int k = 0; k < cpu::kMaxStates; ++k) {
                        state[k] = array.state[k] == nullptr ? nullptr : array.state[k] + begin;
                    }
                    table.step[array.rule](end - begin, array.param + begin, grads[i] + begin, state,
                                           coefficients + array.coefficients);
                    if (weight == 0 || array.average == nullptr) return;
                    // average -= weight * (average - param): gradient descent, with decay 1 and sign -1
                    const T toward[] = {-1, 1, 1, static_cast<T>(weight)};
                    table.step[static_cast<int>(cpu::RuleId::sgd)](end - begin, array.average + begin,
                                                                   array.param + begin, nullptr, toward);
                };
                if (head > 0) run(from, from + head);
                // With an average the work goes in pieces that stay in the first-level cache from the update
                // to the average.
                const std::size_t piece = weight == 0 ? to - from : kPiece;
                for (std::size_t at = from + head; at < to; at += piece) {
                    run(at, to - at < piece ? to : at + piece);
                }
            }
        });
    }

  private:
    // A thread is woken for at least kGrain elements. Work is split at multiples of kUnit elements, which are
    // whole cache lines.
    static constexpr std::size_t kGrain = 16384, kUnit = 64;
    // With averages, a thread updates this many elements and then their averages, while the cache holds them.
    static constexpr std::size_t kPiece = 8192 / sizeof(T);

    // Returns how many elements come before the next cache line. Vector stores across two lines cost up to a
    // third of the speed, so a long part begins with these alone; NumPy's large arrays begin 16 bytes into a
    // line. States are allocated to lie on lines as their parameter does.
    static std::size_t to_line(const T* p) {
        return (64 - reinterpret_cast<std::uintptr_t>(p) % 64) % 64 / sizeof(T);
    }

    std::size_t first_array(std::size_t element) const {
        std::size_t low = 0, high = arrays_.size();
        while (low + 1 < high) {
            const std::size_t middle = (low + high) / 2;
            (begin_[middle] <= element ? low : high) = middle;
        }
        return low;
    }

    std::vector<Array> arrays_;
    std::vector<std::size_t> begin_;  // the position of each array's first element among those of all arrays
    std::size_t total_ = 0;
};

// The elements [begin, end) of an array and of its states, as an array of their own.
template <class T>
typename Stepper<T>::Array part_of(typename Stepper<T>::Array array, std::size_t begin, std::size_t end) {
    array.param += begin;
    for (T*& state : array.state) state = state == nullptr ? nullptr : state + begin;
    array.size = end - begin;
    return array;
}

}  // namespace pyoptim::core

// An optimizer step over arrays some of which are kept in fewer bits: blocks are decoded into the cache,
// updated by the same kernels as everything else, and encoded again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/kernels.hpp"
#include "formulas/random.hpp"
#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"
#include "runtime/reduce.hpp"

namespace pyoptim::core {

// The size of a stored element, in bytes.
inline std::size_t width_of(cpu::Storage storage) {
    if (storage == cpu::Storage::float32) return 4;
    return storage == cpu::Storage::float16 || storage == cpu::Storage::bfloat16 ? 2 : 1;
}

// Stored values, in memory of the caller.
struct Packed {
    cpu::Storage storage;
    void* data;
    float* scale;  // a scale for each kScaleBlock elements if they have 8 bits, else null
};

class PackedStepper {
  public:
    struct Array {
        int rule;                  // the cpu::RuleId of its rule
        std::size_t coefficients;  // the offset of its row in the coefficients of a step
        std::size_t size;          // the number of elements
        Packed param;
        // A float32 copy that is updated and then rounded; null: param itself is updated. Where param is no
        // longer the copy rounded to nearest, somebody has written it, and what was written counts.
        float* master;
        cpu::Storage grad;  // how its gradients are stored
        Packed state[cpu::kMaxStates];
        int states;  // how many states the rule has
    };

    void add(const Array& array) {
        for (std::size_t begin = 0; begin < array.size; begin += kBlock) {
            blocks_.push_back({arrays_.size(), begin, total_ + begin});
        }
        arrays_.push_back(array);
        total_ += array.size;
    }

    // States are always rounded at random, parameters only if `stochastic`; `key` seeds the random numbers.
    void step(const void* const* grads, const float* coefficients, std::uint32_t key, bool stochastic) const {
        const cpu::StorageKernels* const storage = storage_kernels();
        parallel(threads_for(total_, 16 * kBlock), [&](int thread, int threads) {
            const Range mine = share(blocks_.size(), 1, thread, threads);
            for (std::size_t b = mine.begin; b < mine.end; ++b) {
                if (b + kAhead < mine.end) prefetch(blocks_[b + kAhead], grads);
                step_block(storage, blocks_[b], grads[blocks_[b].array], coefficients, key, stochastic);
            }
        });
    }

    // The sum over all gradients; each gradient contributes the bits of core::sum_of_squares of its values as
    // float.
    double sum_of_squares(const void* const* grads) const {
        double sum = 0;
        for (std::size_t i = 0; i < arrays_.size(); ++i) {
            const std::size_t n = arrays_[i].size;
            sum += arrays_[i].grad == cpu::Storage::float32
                       ? core::sum_of_squares(n, static_cast<const float*>(grads[i]))
                       : sum_of_blocks(n, kSumBlock, n, kSumGrain, [&](std::size_t begin, std::size_t end) {
                             return decoded_sum(arrays_[i].grad, grads[i], begin, end);
                         });
        }
        return sum;
    }

  private:
    static double decoded_sum(cpu::Storage storage, const void* grad, std::size_t begin, std::size_t end) {
        alignas(64) float values[kSumBlock];
        storage_kernels()[static_cast<int>(storage)].decode(
            end - begin, static_cast<const char*>(grad) + begin * width_of(storage), nullptr, values);
        return kernels<float>().sum_of_squares(end - begin, values);
    }

    static constexpr std::size_t kBlock =
        cpu::kScaleBlock;  // small enough for all buffers to fit in the first-level cache
    struct Block {
        std::size_t array, begin;
        std::size_t position;  // the position of its first element among those of all arrays
    };

    std::size_t length(const Block& block) const {
        const std::size_t rest = arrays_[block.array].size - block.begin;
        return rest < kBlock ? rest : kBlock;
    }

    // While a block is decoded, updated and encoded, memory would be idle, so blocks that come later are
    // fetched meanwhile.
    static constexpr std::size_t kAhead = 2;
    void prefetch(const Block& block, const void* const* grads) const {
        const Array& array = arrays_[block.array];
        const std::size_t n = length(block);
        const auto fetch = [&](const void* data, std::size_t bytes) {
            const char* const at = static_cast<const char*>(data) + block.begin * bytes;
            for (std::size_t line = 0; line < n * bytes; line += 64) __builtin_prefetch(at + line);
        };
        if (array.master != nullptr) fetch(array.master, sizeof(float));
        fetch(array.param.data, width_of(array.param.storage));
        fetch(grads[block.array], width_of(array.grad));
        for (int k = 0; k < array.states; ++k) fetch(array.state[k].data, width_of(array.state[k].storage));
    }

    void step_block(const cpu::StorageKernels* storage, const Block& block, const void* grad,
                    const float* coefficients, std::uint32_t key, bool stochastic) const {
        const Array& array = arrays_[block.array];
        const std::size_t begin = block.begin;
        const std::size_t n = length(block);
        alignas(64) float buffers[2 + cpu::kMaxStates][kBlock];
        const auto at = [&](const Packed& packed) {
            return Packed{packed.storage, static_cast<char*>(packed.data) + begin * width_of(packed.storage),
                          packed.scale == nullptr ? nullptr : packed.scale + begin / cpu::kScaleBlock};
        };
        const auto decoded = [&](const Packed& packed, float* buffer) {
            if (packed.storage == cpu::Storage::float32) return static_cast<float*>(packed.data);
            storage[static_cast<int>(packed.storage)].decode(n, packed.data, packed.scale, buffer);
            return buffer;
        };
        // The parameters have one stream of random numbers, and the k-th states of all another. An element's
        // number in it is its position among all arrays, so that it does not matter how these are cut.
        const auto first = static_cast<std::uint32_t>(block.position);

        const Packed stored = at(array.param);
        float* const p = array.master != nullptr ? array.master + begin : decoded(stored, buffers[0]);
        if (array.master != nullptr) take_over(storage, n, stored, p, buffers[0]);
        const Packed incoming = at({array.grad, const_cast<void*>(grad), nullptr});
        const float* const g = decoded(incoming, buffers[1]);
        float* s[cpu::kMaxStates] = {};
        for (int k = 0; k < array.states; ++k) s[k] = decoded(at(array.state[k]), buffers[2 + k]);

        kernels<float>().step[array.rule](n, p, g, s, coefficients + array.coefficients);

        if (stored.storage != cpu::Storage::float32) {
            const auto& kernels = storage[static_cast<int>(stored.storage)];
            (stochastic ? kernels.stochastic : kernels.nearest)(n, p, first, random_bits(0, key), stored.data,
                                                                stored.scale);
        }
        for (int k = 0; k < array.states; ++k) {
            const Packed state = at(array.state[k]);
            if (state.storage == cpu::Storage::float32) continue;
            const std::uint32_t own = random_bits(1 + static_cast<std::uint32_t>(k), key);
            storage[static_cast<int>(state.storage)].stochastic(n, s[k], first, own, state.data, state.scale);
        }
    }

    // Takes into the master what somebody has written into the parameter since the last step: its values
    // where it differs, in a bit, from the master rounded to nearest. `values` is memory for a block.
    static void take_over(const cpu::StorageKernels* storage, std::size_t n, const Packed& param,
                          float* master, float* values) {
        const auto& kernels = storage[static_cast<int>(param.storage)];
        if (kernels.is_rounded(n, master, param.data)) return;
        std::uint16_t rounded[kBlock];
        kernels.nearest(n, master, 0, 0, rounded, nullptr);
        const auto* const codes = static_cast<const std::uint16_t*>(param.data);
        kernels.decode(n, codes, nullptr, values);
        for (std::size_t i = 0; i < n; ++i) {
            if (rounded[i] != codes[i]) master[i] = values[i];
        }
    }

    std::vector<Array> arrays_;
    std::vector<Block> blocks_;
    std::size_t total_ = 0;
};

}  // namespace pyoptim::core

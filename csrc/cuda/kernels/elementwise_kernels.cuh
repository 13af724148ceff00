// Activations, dropout and noise by the formulas of the CPU, so results have the same bits.
#pragma once

#include "cuda/kernels/device.cuh"
#include "formulas/activations.hpp"
#include "formulas/random.hpp"

namespace pyoptim::cuda {

// y = function(x) of n elements.
template <class T, class Function>
__device__ inline void map(Index n, const T* x, T* y, Function function) {
    const Index head = to_aligned(x);
    each_of_block<T>(n, head, is_aligned(y + head), [&](Index i, auto width) {
        auto pack = load<decltype(width)::value>(x + i);
        for (T& value : pack.value) value = function(value);
        store(y + i, pack);
    });
}
// y = function(a, b)
template <class T, class Function>
__device__ inline void map(Index n, const T* a, const T* b, T* y, Function function) {
    const Index head = to_aligned(a);
    const bool aligned = is_aligned(b + head) && is_aligned(y + head);
    each_of_block<T>(n, head, aligned, [&](Index i, auto width) {
        constexpr int values = decltype(width)::value;
        auto pack = load<values>(a + i);
        const auto other = load<values>(b + i);
        for (int j = 0; j < values; ++j) pack.value[j] = function(pack.value[j], other.value[j]);
        store(y + i, pack);
    });
}

// y = a + b; y may be either. A block per kElements.
template <class T>
PYOPTIM_KERNEL add(Index n, const T* a, const T* b, T* y) {
    const Index begin = block() * kElements;
    map(own_elements(n), a + begin, b + begin, y + begin, [](T one, T other) { return one + other; });
}

// y = scale x + shift; y may be x. A block per kElements.
template <class T>
PYOPTIM_KERNEL affine(Index n, double scale, double shift, const T* x, T* y) {
    const Index begin = block() * kElements;
    const T by = T(scale), plus = T(shift);
    map(own_elements(n), x + begin, y + begin, [&](T value) { return value * by + plus; });
}

// kind: an Activation; its parameters a and b are cast to T. x may be y. A block per kElements.
template <class T>
PYOPTIM_KERNEL activation_forward(Index kind, double a, double b, Index n, const T* x, T* y) {
    const Index begin = block() * kElements;
    n = own_elements(n);
    math::with_activation(Activation(kind), [=](auto formula) {
        const auto value = [=](T at) { return formula.value(at, T(a), T(b)); };
        map(n, x + begin, y + begin, value);
    });
}

// kept: the output, or the input of gelu, gelu_tanh, silu, softplus and the hard ones. dx may be dy.
template <class T>
PYOPTIM_KERNEL activation_backward(Index kind, double a, double b, Index n, const T* dy, const T* kept,
                                   T* dx) {
    const Index begin = block() * kElements;
    n = own_elements(n);
    math::with_activation(Activation(kind), [=](auto formula) {
        const auto gradient = [=](T slope, T at) { return formula.gradient(slope, at, T(a), T(b)); };
        map(n, dy + begin, kept + begin, dx + begin, gradient);
    });
}

// The epilogue of a matrix product: y = activation(y + bias), for n elements in rows of `cols`. The grid has
// a block per kElements.
template <class T>
PYOPTIM_KERNEL bias_activation(Index kind, double a, double b, Index n, Index cols, const T* bias, T* y) {
    const Index begin = block() * kElements, column = begin % cols;
    n = own_elements(n);
    y += begin;
    const auto value = [=](Index i) { return y[i] + bias[(column + i) % cols]; };
    math::with_activation(Activation(kind), [=](auto formula) {
        const auto write = [=](Index i, T sum) { y[i] = formula.value(sum, T(a), T(b)); };
        each_ahead<1>(thread(), n, kThreads, value, write);  // one at a time, so that the code stays small
    });
}

// The four words of a counter. Half a warp has 16 neighbouring counters: see RandomStream.
__device__ inline Words words_of(const RandomStream& stream, Index counter) {
    return philox(
        {{unsigned(counter), unsigned(counter >> 32), unsigned(stream.step), unsigned(stream.step >> 32)}},
        unsigned(stream.seed), unsigned(stream.seed >> 32));
}

// The random stream of the step at position `at`, which counts from `step`.
__device__ inline RandomStream stream_of(unsigned long long seed, unsigned long long step,
                                         const Position* at) {
    return {seed, step + static_cast<unsigned long long>(steps_of(at))};
}

// Elements whose random word is below `threshold` become 0, the others are scaled. x may be y. Each thread
// has one counter, whose words serve 4 positions that are 16 apart; a block has kThreads counters.
template <class T>
PYOPTIM_KERNEL dropout(unsigned long long seed, unsigned long long step, const Position* at, Index n,
                       unsigned threshold, double scale, const T* x, T* y) {
    const Index counter = block() * kThreads + thread(), first = counter / 16 * kStreamBlock + counter % 16;
    if (first >= n) return;
    const Words words = words_of(stream_of(seed, step, at), counter);
    const auto value = [&](Index i) { return x[i]; };
    each_ahead<4>(first, smaller(n, first + kStreamBlock), 16, value, [&](Index i, T it) {
        const T kept = it * T(scale);
        y[i] = words.word[(i - first) / 16] < threshold ? T(0) : kept;
    });
}

// y = x + deviation z, with z standard normal. Threads and blocks are as for dropout.
template <class T>
PYOPTIM_KERNEL gaussian_noise(unsigned long long seed, unsigned long long step, const Position* at, Index n,
                              double deviation, const T* x, T* y) {
    const Index counter = block() * kThreads + thread(), first = counter / 16 * kStreamBlock + counter % 16;
    if (first >= n) return;
    const Words words = words_of(stream_of(seed, step, at), counter);
    const math::NormalPair one = math::box_muller(words.word[0], words.word[1]);
    const math::NormalPair other = math::box_muller(words.word[2], words.word[3]);
    const T z[4] = {T(one.first), T(one.second), T(other.first), T(other.second)};
    const auto value = [&](Index i) { return x[i]; };
    each_ahead<4>(first, smaller(n, first + kStreamBlock), 16, value,
                  [&](Index i, T it) { y[i] = it + T(deviation) * z[(i - first) / 16]; });
}

}  // namespace pyoptim::cuda

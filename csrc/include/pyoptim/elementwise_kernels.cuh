// Activations, dropout and noise: the CPU's formulas, hence its bits.
#pragma once

#include "pyoptim/activation_math.hpp"
#include "pyoptim/cuda.cuh"
#include "pyoptim/random.hpp"

namespace pyoptim::cuda {

// y = a + b; y may be either. A block per kChunk elements.
template <class T>
PYOPTIM_KERNEL add(Index n, const T* a, const T* b, T* y) {
    const Index begin = block() * kChunk;
    for (Index i = begin + thread(); i < smaller(n, begin + kChunk); i += kThreads) y[i] = a[i] + b[i];
}

// y = scale x + shift; y may be x. A block per kChunk elements.
template <class T>
PYOPTIM_KERNEL affine(Index n, double scale, double shift, const T* x, T* y) {
    const Index begin = block() * kChunk;
    for (Index i = begin + thread(); i < smaller(n, begin + kChunk); i += kThreads) {
        y[i] = x[i] * T(scale) + T(shift);
    }
}

template <class A, class T>
__device__ inline void activate(Index n, T a, T b, const T* x, T* y) {
    const Index head = to_aligned(x);
    each_of_block<T>(n, head, is_aligned(y + head), [&](Index i, auto width) {
        auto pack = load<decltype(width)::value>(x + i);
        for (T& value : pack.value) value = A::value(value, a, b);
        store(y + i, pack);
    });
}

// kind: an Activation; its parameters a and b are cast to T. x may be y. A block per kChunk elements.
template <class T>
PYOPTIM_KERNEL activation_forward(Index kind, double a, double b, Index n, const T* x, T* y) {
    const Index begin = block() * kChunk;
    n = smaller(kChunk, n - begin);
    switch (Activation(kind)) {
#define X(name)            \
    case Activation::name: \
        return activate<math::name##_activation>(n, T(a), T(b), x + begin, y + begin);
        PYOPTIM_FOR_EACH_ACTIVATION(X)
#undef X
        case Activation::count:
            return;
    }
}

template <class A, class T>
__device__ inline void gradient(Index n, T a, T b, const T* dy, const T* kept, T* dx) {
    const Index head = to_aligned(dy);
    const bool aligned = is_aligned(kept + head) && is_aligned(dx + head);
    each_of_block<T>(n, head, aligned, [&](Index i, auto width) {
        constexpr int values = decltype(width)::value;
        auto pack = load<values>(dy + i);
        const auto from = load<values>(kept + i);
        for (int j = 0; j < values; ++j) pack.value[j] = A::gradient(pack.value[j], from.value[j], a, b);
        store(dx + i, pack);
    });
}

// kept: the output, or the input of gelu, gelu_tanh, silu, softplus and the hard ones. dx may be dy.
template <class T>
PYOPTIM_KERNEL activation_backward(Index kind, double a, double b, Index n, const T* dy, const T* kept,
                                   T* dx) {
    const Index begin = block() * kChunk;
    n = smaller(kChunk, n - begin);
    switch (Activation(kind)) {
#define X(name)            \
    case Activation::name: \
        return gradient<math::name##_activation>(n, T(a), T(b), dy + begin, kept + begin, dx + begin);
        PYOPTIM_FOR_EACH_ACTIVATION(X)
#undef X
        case Activation::count:
            return;
    }
}

template <class T, class A>
__device__ inline void biased(Index n, Index cols, Index begin, T a, T b, const T* bias, T* z, T* y) {
    Index column = (begin + thread()) % cols;
    for (Index i = thread(); i < n; i += kThreads) {
        const T value = bias != nullptr ? z[i] + bias[column] : z[i];
        if (z != y) z[i] = value;
        y[i] = A::value(value, a, b);
        column = (column + kThreads) % cols;
    }
}

// What comes after a matrix product: z += bias and y = activation(z), for n elements in rows of `cols`. y may
// be z, which then is not kept; bias may be null. A block per kChunk elements.
template <class T>
PYOPTIM_KERNEL bias_activation(Index kind, double a, double b, Index n, Index cols, const T* bias, T* z,
                               T* y) {
    const Index begin = block() * kChunk;
    n = smaller(kChunk, n - begin);
    switch (Activation(kind)) {
#define X(name)            \
    case Activation::name: \
        return biased<T, math::name##_activation>(n, cols, begin, T(a), T(b), bias, z + begin, y + begin);
        PYOPTIM_FOR_EACH_ACTIVATION(X)
#undef X
        case Activation::count:
            return;
    }
}

// The four words of a counter, of which a warp's half has 16 neighbours: see RandomStream.
__device__ inline Words words_of(const RandomStream& stream, Index counter) {
    return philox(
        {{unsigned(counter), unsigned(counter >> 32), unsigned(stream.step), unsigned(stream.step >> 32)}},
        unsigned(stream.seed), unsigned(stream.seed >> 32));
}

// Of the step that is so many after `step`.
__device__ inline RandomStream stream_of(unsigned long long seed, unsigned long long step,
                                         const Position* at) {
    return {seed, step + static_cast<unsigned long long>(steps_of(at))};
}

// Those whose random word is below `threshold` become 0, the others are scaled. x may be y. A thread per
// counter, which has words for 4 positions that are 16 apart; kThreads counters a block.
template <class T>
PYOPTIM_KERNEL dropout(unsigned long long seed, unsigned long long step, const Position* at, Index n,
                       unsigned threshold, double scale, const T* x, T* y) {
    const Index counter = block() * kThreads + thread(), first = counter / 16 * kStreamBlock + counter % 16;
    if (first >= n) return;
    const Words words = words_of(stream_of(seed, step, at), counter);
    for (int j = 0; j < 4; ++j) {
        const Index i = first + 16 * j;
        if (i >= n) return;
        const T kept = x[i] * T(scale);
        y[i] = words.word[j] < threshold ? T(0) : kept;
    }
}

// y = x + deviation z, z standard normal; otherwise as dropout.
template <class T>
PYOPTIM_KERNEL gaussian_noise(unsigned long long seed, unsigned long long step, const Position* at, Index n,
                              double deviation, const T* x, T* y) {
    const Index counter = block() * kThreads + thread(), first = counter / 16 * kStreamBlock + counter % 16;
    if (first >= n) return;
    const Words words = words_of(stream_of(seed, step, at), counter);
    for (int half = 0; half < 2; ++half) {
        const math::NormalPair z = math::box_muller(words.word[2 * half], words.word[2 * half + 1]);
        const Index i = first + 32 * half;
        if (i < n) y[i] = x[i] + T(deviation) * T(z.first);
        if (i + 16 < n) y[i + 16] = x[i + 16] + T(deviation) * T(z.second);
    }
}

}  // namespace pyoptim::cuda

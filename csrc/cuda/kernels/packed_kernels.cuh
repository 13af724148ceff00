// Optimizer steps over arrays some of which are kept in fewer bits; they have the same bits as
// csrc/optim/packed_stepper.hpp.
#pragma once

#include "cuda/kernels/step_kernel.cuh"
#include "formulas/storage.hpp"

namespace pyoptim::cuda {

// A warp takes kScaleBlock elements from `begin` on, n of which there are; a lane every kWarp-th of them.
constexpr int kOwn = kScaleBlock / kWarp;
struct Piece {
    Index begin, n;
    template <class Visit>
    __device__ void each(Visit visit) const {  // visit(which of the lane's, its place in the array)
        PYOPTIM_UNROLL
        for (int j = 0; j < kOwn; ++j) {
            const Index i = lane() + j * kWarp;
            if (i < n) visit(j, begin + i);
        }
    }
};

template <class T>
__device__ inline T* at(unsigned long long address) {
    return reinterpret_cast<T*>(address);
}

__device__ inline void decode(const StoredValues& from, const void* data, Piece piece, float* out) {
    switch (Storage(from.storage)) {
        case Storage::float32:
            return piece.each([&](int j, Index i) { out[j] = static_cast<const float*>(data)[i]; });
        case Storage::float16:
            return piece.each([&](int j, Index i) {
                out[j] = storage::Float16::decode(static_cast<const unsigned short*>(data)[i]);
            });
        case Storage::bfloat16:
            return piece.each([&](int j, Index i) {
                out[j] = storage::BFloat16::decode(static_cast<const unsigned short*>(data)[i]);
            });
        case Storage::signed8:
        case Storage::unsigned8: {
            const float scale = at<const float>(from.scale)[piece.begin / kScaleBlock];
            const bool is_signed = Storage(from.storage) == Storage::signed8;
            return piece.each([&](int j, Index i) {
                const unsigned char code = static_cast<const unsigned char*>(data)[i];
                out[j] = is_signed ? storage::Block8<true>::decode(code, scale)
                                   : storage::Block8<false>::decode(code, scale);
            });
        }
        case Storage::count:
            return;
    }
}

// Reads the master of a 16-bit parameter, but what somebody has written into the parameter since the last
// step: its values where it differs, in a bit, from the master rounded to nearest.
template <class Format>
__device__ inline void join16(const float* master, const void* data, Piece piece, float* out) {
    piece.each([&](int j, Index i) {
        const unsigned short code = static_cast<const unsigned short*>(data)[i];
        const unsigned short rounded = Format::template encode<storage::Nearest>(master[i], 0, 0);
        out[j] = rounded == code ? master[i] : Format::decode(code);
    });
}

__device__ inline void join(const float* master, const StoredValues& param, Piece piece, float* out) {
    const void* const data = at<void>(param.data);
    return Storage(param.storage) == Storage::float16 ? join16<storage::Float16>(master, data, piece, out)
                                                      : join16<storage::BFloat16>(master, data, piece, out);
}

// The random numbers of a piece: `key` names the stream, `first` is the index of the piece's first element in
// it.
struct Numbers {
    unsigned first, key;
};

template <class Format>
__device__ inline void encode16(void* data, Piece piece, const float* x, Numbers numbers, bool stochastic) {
    using storage::Nearest, storage::Stochastic;
    piece.each([&](int j, Index i) {
        const unsigned index = numbers.first + unsigned(i - piece.begin);
        static_cast<unsigned short*>(data)[i] =
            stochastic ? Format::template encode<Stochastic>(x[j], index, numbers.key)
                       : Format::template encode<Nearest>(x[j], index, numbers.key);
    });
}

// All lanes of a warp must call this function.
template <class Format>
__device__ inline void encode8(const StoredValues& to, Piece piece, const float* x, Numbers numbers) {
    int largest = 0;
    piece.each([&](int j, Index) {
        const int magnitude = Format::magnitude(x[j]);
        largest = magnitude > largest ? magnitude : largest;
    });
    const float top = storage::float_of(unsigned(warp_largest(largest))), inverse = Format::inverse(top);
    if (lane() == 0) at<float>(to.scale)[piece.begin / kScaleBlock] = Format::scale(top);
    piece.each([&](int j, Index i) {
        const unsigned index = numbers.first + unsigned(i - piece.begin);
        at<unsigned char>(to.data)[i] = Format::encode(x[j], inverse, index, numbers.key);
    });
}

__device__ inline void encode(const StoredValues& to, Piece piece, const float* x, Numbers numbers,
                              bool stochastic) {
    void* const data = at<void>(to.data);
    switch (Storage(to.storage)) {
        case Storage::float32:
            return piece.each([&](int j, Index i) { static_cast<float*>(data)[i] = x[j]; });
        case Storage::float16:
            return encode16<storage::Float16>(data, piece, x, numbers, stochastic);
        case Storage::bfloat16:
            return encode16<storage::BFloat16>(data, piece, x, numbers, stochastic);
        case Storage::signed8:
            return encode8<storage::Block8<true>>(to, piece, x, numbers);
        case Storage::unsigned8:
            return encode8<storage::Block8<false>>(to, piece, x, numbers);
        case Storage::count:
            return;
    }
}

// Cuts this block's chunk, the n elements from `begin` on, into pieces, and visits one at a time with each
// warp.
template <class Visit>
__device__ inline void each_piece(Index begin, Index n, Visit visit) {
    for (Index i = thread() / kWarp * kScaleBlock; i < n; i += kWarps * kScaleBlock) {
        visit(Piece{begin + i, smaller(Index(kScaleBlock), n - i)});
    }
}

// The optimizer step over packed arrays. Parameters are rounded at random if `stochastic`, states always;
// `key` names the stream of random numbers. T is float. A block per chunk.
template <class Rule, class T>
PYOPTIM_KERNEL packed_step(const PackedArray* arrays, const StepChunk* chunks, const void* const* grads,
                           const T* rows, const StepRows<T> by_value, unsigned key, bool stochastic) {
    static_assert(kChunk % kScaleBlock == 0, "chunks are of whole blocks");
    constexpr int kStates = Rule::state_count;
    const StepChunk at_chunk = chunks[block()];
    const PackedArray& array = arrays[at_chunk.array];
    const void* const grad = grads[at_chunk.array];
    const Index begin = at_chunk.chunk * kChunk, n = smaller(kChunk, array.size - begin);
    const T* const row = (rows != nullptr ? rows : by_value.value) + array.row * kRowLength;
    const auto update = Update<Rule, T>::of_row(row);
    T* const master = at<T>(array.master);
    each_piece(begin, n, [&](Piece piece) {
        T p[kOwn], g[kOwn], s[kStates + 1][kOwn];
        if (master != nullptr) {
            join(master, array.param, piece, p);
        } else {
            decode(array.param, at<void>(array.param.data), piece, p);
        }
        decode(array.grad, grad, piece, g);
        PYOPTIM_UNROLL
        for (int k = 0; k < kStates; ++k) {  // unrolled, so that s is in registers
            decode(array.state[k], at<void>(array.state[k].data), piece, s[k]);
        }
        piece.each([&](int j, Index) {
            typename Rule::template State<T> local;
            T* const fields = reinterpret_cast<T*>(&local);
            for (int k = 0; k < kStates; ++k) fields[k] = s[k][j];
            update(p[j], g[j], local);
            for (int k = 0; k < kStates; ++k) s[k][j] = fields[k];
        });
        // The parameters have one stream of random numbers, and the k-th states of all another.
        const unsigned first = unsigned(array.position + piece.begin);
        if (master != nullptr) piece.each([&](int j, Index i) { master[i] = p[j]; });
        encode(array.param, piece, p, {first, random_bits(0, key)}, stochastic);
        PYOPTIM_UNROLL
        for (int k = 0; k < kStates; ++k) {
            encode(array.state[k], piece, s[k], {first, random_bits(1 + unsigned(k), key)}, true);
        }
    });
}

// The sum of squares of each chunk of packed gradients, like sum_of_squares. T is float.
template <class T>
PYOPTIM_KERNEL packed_sum_of_squares(const PackedArray* arrays, const StepChunk* chunks,
                                     const void* const* grads, double* partial) {
    const StepChunk at_chunk = chunks[block()];
    const PackedArray& array = arrays[at_chunk.array];
    const Index begin = at_chunk.chunk * kChunk, n = smaller(kChunk, array.size - begin);
    double sum = 0;
    each_piece(begin, n, [&](Piece piece) {
        T g[kOwn];
        decode(array.grad, grads[at_chunk.array], piece, g);
        piece.each([&](int j, Index) { sum += double(g[j]) * double(g[j]); });
    });
    sum = block_sum(sum);
    if (thread() == 0) partial[block()] = sum;
}

// Writes from times `scale` to `to`, rounded to nearest; neither may be of 8 bits. T is float. A block per
// kChunk elements.
template <class T>
PYOPTIM_KERNEL convert(Index n, Index from, const void* x, Index to, void* y, double scale) {
    const Index begin = block() * kChunk;
    const StoredValues in = {0, 0, from}, out = {reinterpret_cast<unsigned long long>(y), 0, to};
    each_piece(begin, smaller(kChunk, n - begin), [&](Piece piece) {
        T values[kOwn];
        decode(in, x, piece, values);
        piece.each([&](int j, Index) { values[j] *= T(scale); });
        encode(out, piece, values, {0, 0}, false);
    });
}

}  // namespace pyoptim::cuda

// Helpers that all CUDA kernels share. nvcc and NVRTC compile these headers, and the tests compile them as
// C++ for the host (tests/gpu), so they include nothing but each other.
//
// Every kernel runs in blocks of kThreads threads, in a grid that follows from the shape alone: sums have the
// same bits on every device. Compile with --fmad=false, so that elementwise results are the CPU's.
#pragma once

#include "cuda/kernels/launch.hpp"
#include "formulas/math.hpp"
#include "formulas/squares.hpp"

#if !defined(__CUDACC__) && !defined(__CUDACC_RTC__) && !defined(PYOPTIM_CUDA_EMULATOR)
#error "CUDA kernels: compile with nvcc or NVRTC"
#endif

#define PYOPTIM_KERNEL __global__ void __launch_bounds__(::pyoptim::cuda::kThreads)

namespace pyoptim::cuda {

using Index = long long;

constexpr int kWarp = 32, kWarps = kThreads / kWarp;

__device__ inline Index thread() { return Index(threadIdx.x); }
__device__ inline Index block() { return Index(blockIdx.x); }
// The row of this warp, in kernels that give each warp a row.
__device__ inline Index warp_row() { return block() * kWarps + thread() / kWarp; }
__device__ inline int lane() { return int(threadIdx.x) % kWarp; }

template <class T>
__device__ inline T smaller(T a, T b) {
    return a < b ? a : b;
}

__device__ inline Index steps_of(const Position* at) { return at != nullptr ? at->steps : 0; }

// The sum of all lanes, returned to every lane with the same bits, since a + b is b + a.
template <class T>
__device__ inline T warp_sum(T x) {
    for (int mask = kWarp / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, mask);
    return x;
}
// The largest value of all lanes. If a lane has NaN, any of the values.
template <class T>
__device__ inline T warp_largest(T x) {
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
        const T other = __shfl_xor_sync(0xFFFFFFFFu, x, mask);
        x = x > other ? x : other;
    }
    return x;
}
// The sum of all threads of a block, returned to all of them.
__device__ inline double block_sum(double x) {
    __shared__ double sums[kWarps];
    x = warp_sum(x);
    if (lane() == 0) sums[thread() / kWarp] = x;
    __syncthreads();
    double total = 0;
    for (int warp = 0; warp < kWarps; ++warp) total += sums[warp];
    __syncthreads();  // the next call writes to the shared memory again
    return total;
}
// What is kept (formulas/squares.hpp) of a block's sum of squares, which came as `sum` in all threads, of the
// numbers element(i) for i < n. T is the type of the array: doubles hold the squares of all floats.
template <class T, class Element>
__device__ inline double kept_block_sum(double sum, Index n, Element element) {
    if (sizeof(T) == sizeof(float) || is_sound(sum)) return sum;
    const double scale = square_scale(sum);
    sum = 0;
    for (Index i = thread(); i < n; i += kThreads) sum += (element(i) * scale) * (element(i) * scale);
    return kept_squares(block_sum(sum), scale);
}

// The part of a matrix that a thread has when each block takes a tile of kWarp columns and at most
// `part_rows` rows: one column, and every kWarps-th row of [begin, end). The range is empty if the column is
// beyond the last.
struct ColumnTile {
    Index column, part, begin, end;
    __device__ ColumnTile(Index rows, Index cols, Index part_rows) {
        const Index tiles = (cols + kWarp - 1) / kWarp;
        column = block() % tiles * kWarp + lane();
        part = block() / tiles;
        begin = part * part_rows + thread() / kWarp;
        end = column < cols ? smaller(rows, (part + 1) * part_rows) : 0;
    }
};
// The sum over all threads of a column, returned to the threads of the first warp.
__device__ inline double column_total(double x) {
    __shared__ double sums[kThreads];
    sums[thread()] = x;
    __syncthreads();
    double total = sums[lane()];
    for (int warp = 1; warp < kWarps; ++warp) total += sums[warp * kWarp + lane()];
    __syncthreads();  // the next call writes to the shared memory again
    return total;
}
// Calls visit(i, value(i)) for every stride-th i from begin on. It loads several values before it uses the
// first, since a thread that waits for each load alone leaves most of the bandwidth unused.
template <int ahead, class Value, class Visit>
__device__ inline void each_ahead(Index begin, Index end, Index stride, Value value, Visit visit) {
    PYOPTIM_NO_UNROLL
    for (Index i = begin; i < end; i += ahead * stride) {
        decltype(value(i)) values[ahead];
        PYOPTIM_UNROLL
        for (int k = 0; k < ahead; ++k) values[k] = value(i + k * stride < end ? i + k * stride : i);
        PYOPTIM_UNROLL
        for (int k = 0; k < ahead; ++k) {
            if (i + k * stride < end) visit(i + k * stride, values[k]);
        }
    }
}
// A number of neighbouring elements that one instruction loads: one element, or 16 bytes.
template <class T, int width>
struct alignas(width * sizeof(T)) Pack {
    T value[width];
};
template <class T>
constexpr int kPack = 16 / int(sizeof(T));

template <int width, class T>
__device__ inline Pack<T, width> load(const T* p) {
    return *reinterpret_cast<const Pack<T, width>*>(p);
}
template <int width, class T>
__device__ inline void store(T* p, const Pack<T, width>& x) {
    *reinterpret_cast<Pack<T, width>*>(p) = x;
}

template <class T>
__device__ inline bool is_aligned(const T* p) {
    return reinterpret_cast<unsigned long long>(p) % 16 == 0;
}
// The number of elements before the next address that is a multiple of 16 bytes.
template <class T>
__device__ inline Index to_aligned(const T* p) {
    return Index((16 - reinterpret_cast<unsigned long long>(p) % 16) % 16 / sizeof(T));
}

template <int width>
struct Width {
    static constexpr int value = width;
};

// The number of elements, of n in all, that this block of an elementwise kernel works on.
__device__ inline Index own_elements(Index n) { return smaller(kElements, n - block() * kElements); }
// The n elements of this block: visit(i, Width) for Width::value of them from i on. Which width it is depends
// on alignment alone: all run the same expression. `aligned` tells whether every array is on 16 bytes after
// `head` elements.
template <class T, class Visit>
__device__ inline void each_of_block(Index n, Index head, bool aligned, Visit visit) {
    head = smaller(head, n);
    const Index packs = aligned ? (n - head) / kPack<T> : 0, packed = packs * kPack<T>;
    for (Index i = thread(); i < packs; i += kThreads) visit(head + i * kPack<T>, Width<kPack<T>>());
    PYOPTIM_NO_UNROLL  // usually a few elements: four copies of every rule are a third of the module
        for (Index i = thread(); i < n - packed; i += kThreads) visit(i < head ? i : i + packed, Width<1>());
}

}  // namespace pyoptim::cuda

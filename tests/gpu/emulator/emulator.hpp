// CUDA kernels as C++ on the host, one block at a time: each thread is a fiber, which runs to the next
// __syncthreads or shuffle, so a test sees what the kernels compute, without a GPU. It is no proof of their
// speed. A barrier or shuffle that not all threads reach is an error; blocks, and threads between barriers,
// run in another order at each launch, so that what counts on one gives other results.
#pragma once

#include <math.h>
#include <ucontext.h>

#include <functional>
#include <utility>
#include <vector>

#define PYOPTIM_CUDA_EMULATOR
#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static
#define __syncthreads() ::emulator::block().wait()
#define __syncwarp() static_cast<void>(::emulator::block().shuffle(0, int(threadIdx.x) ^ 1))
#define __threadfence() static_cast<void>(0)

namespace emulator {

struct Place {
    unsigned x, y, z;
};
inline Place threadIdx, blockIdx;

// A GPU promises no order: by turns forwards, backwards and mixed.
class Order {
  public:
    void change() { ++turn_; }
    unsigned at(unsigned i, unsigned n) const {  // the i-th of n
        if (turn_ % 3 == 0) return i;
        if (turn_ % 3 == 1) return n - 1 - i;
        return unsigned((i * 2654435761ull + turn_) % n);  // a prime, so that each comes once
    }

  private:
    unsigned turn_ = 2;
};
inline Order& order() {
    static Order only;
    return only;
}

class Block {
  public:
    static constexpr int kThreads = 256;

    Block() : stacks_(kThreads * kStack) {}

    // False where threads waited for others that had ended, or went different ways.
    bool run(const std::function<void()>& body) {
        body_ = &body;
        fine_ = true;
        for (int t = 0; t < kThreads; ++t) {
            getcontext(&fiber_[t]);
            fiber_[t].uc_stack.ss_sp = stacks_.data() + t * kStack;
            fiber_[t].uc_stack.ss_size = kStack;
            fiber_[t].uc_link = &main_;
            makecontext(&fiber_[t], &Block::enter, 0);
            state_[t] = ready;
            barriers_[t] = shuffles_[t] = 0;
        }
        for (int live = kThreads; live > 0;) {
            bool ran = false;
            for (int i = 0; i < kThreads; ++i) {
                const int t = int(order().at(unsigned(i), kThreads));
                if (state_[t] != ready) continue;
                ran = true;
                threadIdx = {unsigned(t), 0, 0};
                swapcontext(&main_, &fiber_[t]);
                live -= state_[t] == done;
            }
            for (int t = 0; !ran && t < kThreads; ++t) {  // all that live have reached the barrier
                if (state_[t] == waiting) state_[t] = ready;
            }
        }
        for (int t = 1; t < kThreads; ++t) fine_ = fine_ && barriers_[t] == barriers_[0];
        return fine_;
    }

    void wait() {
        const unsigned t = threadIdx.x;
        ++barriers_[t];
        state_[t] = waiting;
        leave(t);
    }

    template <class T>
    T shuffle(T x, int from) {
        const unsigned t = threadIdx.x;
        const int turn = shuffles_[t]++ % 2;  // a slot is read before its owner's next but one shuffle
        __builtin_memcpy(&slots_[turn][t], &x, sizeof x);
        leave(t);
        fine_ = fine_ && shuffles_[from] >= shuffles_[t] && shuffles_[from] <= shuffles_[t] + 1;
        __builtin_memcpy(&x, &slots_[turn][from], sizeof x);
        return x;
    }

  private:
    enum State { ready, waiting, done };
    static constexpr size_t kStack = 64 << 10;
    static void enter();

    void leave(unsigned t) {
        swapcontext(&fiber_[t], &main_);
        threadIdx = {t, 0, 0};
    }

    std::vector<char> stacks_;
    const std::function<void()>* body_ = nullptr;
    bool fine_ = true;
    ucontext_t main_, fiber_[kThreads];
    State state_[kThreads];
    int barriers_[kThreads], shuffles_[kThreads];
    double slots_[2][kThreads];
};

inline Block& block() {
    static Block only;
    return only;
}

inline void Block::enter() {
    (*block().body_)();
    block().state_[threadIdx.x] = done;
}

// What the table of kernels has instead of a kernel's address: a function of its arguments' addresses, and
// the arguments' sizes.
struct Kernel {
    bool (*run)(unsigned blocks, void** arguments);
    const size_t* sizes;
    int count;
};
template <auto kernel, class F = decltype(kernel)>
struct Call;
template <auto kernel, class... A>
struct Call<kernel, void (*)(A...)> {
    template <size_t... I>
    static bool run(unsigned blocks, void** arguments, std::index_sequence<I...>) {
        order().change();
        for (unsigned i = 0; i < blocks; ++i) {
            blockIdx = {order().at(i, blocks), 0, 0};
            if (!block().run([&] { kernel(*static_cast<A*>(arguments[I])...); })) return false;
        }
        return true;
    }
    static bool run_all(unsigned blocks, void** arguments) {
        return run(blocks, arguments, std::index_sequence_for<A...>());
    }
    static constexpr size_t sizes[] = {sizeof(A)...};
    static constexpr Kernel entry = {&run_all, sizes, sizeof...(A)};
};

}  // namespace emulator

using emulator::blockIdx;
using emulator::threadIdx;

template <class T>
T __shfl_xor_sync(unsigned, T x, int mask) {
    return emulator::block().shuffle(x, int(threadIdx.x) ^ mask);
}
template <class T>
T __shfl_sync(unsigned, T x, int lane) {
    return emulator::block().shuffle(x, (int(threadIdx.x) & ~31) | lane);
}

inline unsigned atomicInc(unsigned* to, unsigned most) {
    const unsigned before = *to;
    *to = before >= most ? 0 : before + 1;
    return before;
}
inline unsigned long long atomicAdd(unsigned long long* to, unsigned long long x) {
    const unsigned long long before = *to;
    *to += x;
    return before;
}

#define PYOPTIM_KERNEL_ADDRESS(...) static_cast<const void*>(&::emulator::Call<&__VA_ARGS__>::entry)

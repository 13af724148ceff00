#include "runtime/parallel.hpp"

#include <algorithm>
#include <atomic>

#ifdef PYOPTIM_OPENMP
#include <omp.h>
#include <pthread.h>
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif
#endif

namespace pyoptim::core {

namespace {
std::atomic<int> g_limit{0}, g_version{0};

#ifdef PYOPTIM_OPENMP
std::atomic<bool> g_forked{false};
// The thread pool of libgomp does not survive a fork: a child that used it would wait for ever.
const int g_registered = pthread_atfork(nullptr, nullptr, [] { g_forked = true; });
#endif
}  // namespace

#ifdef PYOPTIM_OPENMP

// OpenMP keeps one number per thread of the program. So each thread takes over a new limit when it next calls
// this, and a number that threadpoolctl sets after that holds.
int get_num_threads() {
    thread_local int seen = 0;
    if (seen != g_version) {
        seen = g_version;
        omp_set_num_threads(g_limit);
    }
    return std::max(1, omp_get_max_threads());
}

int threads_for(std::size_t work, std::size_t grain) {
    if (work < 2 * grain || g_forked || omp_in_parallel()) return 1;
    return static_cast<int>(std::min<std::size_t>(work / grain, static_cast<std::size_t>(get_num_threads())));
}

// ThreadSanitizer does not see how libgomp's threads wait for each other: these two tell it. What a thread
// did before released(at) has happened for all that call acquired(at) later.
#ifdef __SANITIZE_THREAD__
#define PYOPTIM_UNCHECKED __attribute__((no_sanitize("thread")))
static void released(void* at) { __tsan_release(at); }
static void acquired(void* at) { __tsan_acquire(at); }
#else
#define PYOPTIM_UNCHECKED
static void released(void*) {}
static void acquired(void*) {}
#endif

// Unchecked are only the variables by which OpenMP hands `body` and `context` to its threads.
PYOPTIM_UNCHECKED void run_parallel(int threads, void (*body)(int, int, void*), void* context) {
    static_cast<void>(g_registered);
    released(context);
#pragma omp parallel num_threads(threads)
    {
        acquired(context);
        // OpenMP may give fewer threads than asked for: the split follows what it gave.
        body(omp_get_thread_num(), omp_get_num_threads(), context);
        released(context);
    }
    acquired(context);
}

void barrier() {
    static char every_barrier;
    released(&every_barrier);
#pragma omp barrier
    acquired(&every_barrier);
}

#else

int get_num_threads() { return 1; }
int threads_for(std::size_t, std::size_t) { return 1; }
void run_parallel(int, void (*body)(int, int, void*), void* context) { body(0, 1, context); }
void barrier() {}

#endif

void set_num_threads(int n) {
    g_limit = n;
    ++g_version;
}

}  // namespace pyoptim::core

#include "runtime/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <utility>

#include "runtime/pool.hpp"
#include "runtime/processors.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace pyoptim::core {

namespace {

std::atomic<int> g_limit{0};          // 0: not decided yet
std::atomic<std::size_t> g_finer{1};  // what grains are divided by
thread_local bool g_in_region = false;
thread_local int g_most_parts = 1;
thread_local int g_own_limit = 0;  // of the regions that this thread begins; 0: none

std::atomic<Pool*> g_pool{nullptr};
std::mutex g_creation;
std::atomic<bool> g_ended{false};

// Threads do not outlive the library: the program may unload it.
struct EndsPool {
    ~EndsPool() {
        g_ended = true;
        if (Pool* const pool = g_pool) pool->end();
    }
} g_ends_pool;

Pool& the_pool() {
    Pool* pool = g_pool.load(std::memory_order_acquire);
    if (pool != nullptr) return *pool;
    const std::lock_guard<std::mutex> lock(g_creation);
    pool = g_pool.load(std::memory_order_relaxed);
    if (pool == nullptr) {
        pool = new Pool(most_threads());  // never freed: at the end of the program, threads may still ask it
        g_pool.store(pool, std::memory_order_release);
    }
    return *pool;
}

#if defined(__unix__) || defined(__APPLE__)
// A forked child has none of the threads: it makes a pool of its own.
[[maybe_unused]] const int g_registered =
    pthread_atfork([] { g_creation.lock(); }, [] { g_creation.unlock(); },
                   [] {
                       g_pool = nullptr;
                       g_creation.unlock();
                   });
#endif

// The number at the beginning of an environment variable (OMP_NUM_THREADS may be a list), or 0 if it has
// none.
int number_in(const char* variable) {
    const char* const value = std::getenv(variable);
    const long number = value == nullptr ? 0 : std::strtol(value, nullptr, 10);
    return static_cast<int>(std::clamp(number, 0L, static_cast<long>(most_threads())));
}

}  // namespace

int most_threads() {
    // Kept, since the system takes some microseconds to tell.
    static const int most = std::max(64, 4 * static_cast<int>(std::thread::hardware_concurrency()));
    return most;
}

int get_num_threads() {
    int limit = g_limit;
    if (limit == 0) {
        limit = number_in("PYOPTIM_NUM_THREADS");
        if (limit == 0) limit = number_in("OMP_NUM_THREADS");
        if (limit == 0) limit = std::min(usable_processors(), most_threads());
        int undecided = 0;
        if (!g_limit.compare_exchange_strong(undecided, limit)) limit = undecided;
    }
    return g_own_limit > 0 ? std::min(limit, g_own_limit) : limit;
}

ThreadLimit::ThreadLimit(int n) : before_(std::exchange(g_own_limit, n)) {}
ThreadLimit::~ThreadLimit() { g_own_limit = before_; }

void set_num_threads(int n) { g_limit = std::clamp(n, 1, most_threads()); }

Alone::Alone() : before_(std::exchange(g_in_region, true)) {}
Alone::~Alone() { g_in_region = before_; }

void divide_grains(std::size_t by) { g_finer = std::max<std::size_t>(by, 1); }

int most_parts() { return std::exchange(g_most_parts, 1); }

int threads_for(std::size_t work, std::size_t grain) {
    work *= g_finer.load(std::memory_order_relaxed);
    if (work < 2 * grain || g_in_region || g_ended) return 1;
    const int limit = get_num_threads();
    static const bool always = std::getenv("PYOPTIM_ALWAYS_SHARE") != nullptr;
    if (limit == 1 || !(always || the_pool().is_free())) return 1;
    return static_cast<int>(std::min<std::size_t>(work / grain, static_cast<std::size_t>(limit)));
}

void run_parallel(int parts, void (*body)(int, int, void*), void* context) {
    g_most_parts = std::max(g_most_parts, parts);
    if (!g_in_region && !g_ended) {
        Pool& pool = the_pool();
        g_in_region = true;
        const bool shared = pool.run(parts, body, context);
        g_in_region = false;
        if (shared) return;
    }
    for (int part = 0; part < parts; ++part) body(part, parts, context);
}

}  // namespace pyoptim::core

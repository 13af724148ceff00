// Regions of random sizes on the thread pool, from several threads at once and in forked children, while
// threads pause at random wherever they may meet. Every part must run exactly once.
//
//     pool SEED REGIONS [fork]
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

static std::atomic<unsigned> g_pauses{0};
static void pause_at_random() {
    const unsigned turn = (g_pauses++ * 2654435761u) >> 16;
    if (turn % 8 == 0) std::this_thread::yield();
    if (turn % 64 == 1) std::this_thread::sleep_for(std::chrono::microseconds(turn % 300));
}
#define PYOPTIM_POOL_PAUSE() pause_at_random()
#include "runtime/parallel.cpp"
#include "runtime/pool.cpp"
#include "runtime/processors.cpp"

#include <sys/wait.h>
#include <unistd.h>

using namespace pyoptim::core;

static void regions(unsigned seed, int count, int most) {
    std::mt19937 random(seed);
    for (int i = 0; i < count; ++i) {
        const int parts = 2 + static_cast<int>(random() % static_cast<unsigned>(most));
        std::vector<int> runs(static_cast<std::size_t>(parts),
                              0);  // not atomic: only one thread may have a part
        const bool nests = random() % 8 == 0;
        const bool sleeps = random() % 64 == 0;
        parallel(parts, [&](int part, int of) {
            if (of != parts) std::abort();
            pause_at_random();
            if (nests) {
                std::atomic<int> inner{0};
                parallel(3, [&](int, int) { ++inner; });
                if (inner != 3) std::abort();
            }
            ++runs[static_cast<std::size_t>(part)];
        });
        for (const int n : runs) {
            if (n != 1) {
                std::printf("a part ran %d times\n", n);
                std::exit(1);
            }
        }
        if (sleeps)
            std::this_thread::sleep_for(std::chrono::microseconds(random() % 500));  // the pool sleeps too
    }
}

int main(int, char** arguments) {
    const auto seed = static_cast<unsigned>(std::atoi(arguments[1]));
    const int count = std::atoi(arguments[2]);
    set_num_threads(4);
    regions(seed, count, 6);
    if (arguments[3] != nullptr) {
        for (unsigned child = 0; child < 20; ++child) {
            const pid_t pid = fork();
            if (pid == 0) {
                regions(seed + child, 50, 6);
                std::exit(0);
            }
            int status = 0;
            waitpid(pid, &status, 0);
            if (status != 0) return 1;
            regions(seed - child, 20, 6);
        }
    }
    std::vector<std::thread> callers;
    for (unsigned i = 0; i < 3; ++i) callers.emplace_back(regions, seed + 100 + i, count, 6);
    for (auto& caller : callers) caller.join();
    std::puts("every part ran once");
}

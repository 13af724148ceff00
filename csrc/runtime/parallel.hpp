// Work that several threads share: a pool of our own, in which the calling thread never waits for a thread
// that has not begun.
#pragma once

#include <cstddef>

namespace pyoptim::core {

int get_num_threads();        // how many threads a region may have at most, the caller among them
void set_num_threads(int n);  // at least 1, at most most_threads()
int most_threads();

// While it lives, regions that this thread begins use at most n threads; 0 limits nothing.
class ThreadLimit {
  public:
    explicit ThreadLimit(int n);
    ~ThreadLimit();
    ThreadLimit(const ThreadLimit&) = delete;
    ThreadLimit& operator=(const ThreadLimit&) = delete;

  private:
    int before_;
};

// How many parts to cut `work` units into, if waking a thread pays for `grain` of them. It is 1 inside
// another region, while the pool serves another thread, and for a while after this machine turned out to be
// busy: when regions took longer than one thread would have.
int threads_for(std::size_t work, std::size_t grain);

// While one of these lives, regions that its thread begins run on that thread alone.
class Alone {
  public:
    Alone();
    ~Alone();
    Alone(const Alone&) = delete;
    Alone& operator=(const Alone&) = delete;

  private:
    bool before_;
};

// For `pyoptim bench threads`, which measures whether the grains are right: divides every grain by a number
// from now on, and tells how many parts the largest region was cut into that this thread began since it last
// asked.
void divide_grains(std::size_t by);
int most_parts();

// Calls body(part, parts, context) once for each part, on this thread and on those of the pool, in no
// particular order and maybe one after the other, so no part may wait for another. A body must not throw.
void run_parallel(int parts, void (*body)(int part, int parts, void* context), void* context);

// Calls body(part, parts) once for each part, as run_parallel does.
template <class Body>
void parallel(int parts, Body&& body) {
    if (parts <= 1) {
        body(0, 1);
        return;
    }
    run_parallel(
        parts, [](int part, int count, void* context) { (*static_cast<Body*>(context))(part, count); },
        const_cast<void*>(static_cast<const void*>(&body)));
}

// The part of [0, n) that falls to `part` of `parts`, cut at multiples of `unit`.
struct Range {
    std::size_t begin, end;
};
inline Range share(std::size_t n, std::size_t unit, int part, int parts) {
    const std::size_t units = (n + unit - 1) / unit;
    const std::size_t begin = units * static_cast<std::size_t>(part) / static_cast<std::size_t>(parts);
    const std::size_t end = units * static_cast<std::size_t>(part + 1) / static_cast<std::size_t>(parts);
    return {begin * unit < n ? begin * unit : n, end * unit < n ? end * unit : n};
}

}  // namespace pyoptim::core

// Threads that wait for regions of parallel work.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>

namespace pyoptim::core {

// One region at a time is cut into parts. Every thread claims the parts that it computes, its own first and
// then those that nobody has begun: a thread that the system does not schedule holds up nothing. The caller
// computes too, and at the end waits only for parts that have been begun.
class Pool {
  public:
    using Body = void (*)(int part, int parts, void* context);

    explicit Pool(int capacity);  // the largest number of parts
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    // Returns false, having done nothing, if another region runs or the pool has ended.
    bool run(int parts, Body body, void* context);
    bool is_free() const;
    // Ends and joins all threads. Nothing is freed: other threads of the program may still call run().
    void end();

  private:
    using Clock = std::chrono::steady_clock;

    // What belongs to one number: the part of that number, and the thread that tries it first.
    struct alignas(64) Seat {
        std::atomic<std::uint64_t> begun{0};  // the last region whose part of this number has been begun
        std::atomic<std::uint64_t> done{0};   // the last one whose part has been computed
        std::atomic<bool> asleep{false};
        std::thread thread;
        std::mutex mutex;
        std::condition_variable wake;
    };

    int claim_parts(std::uint64_t region, int first);  // returns how many of them this thread has computed
    void wait_for(Seat& seat, std::uint64_t region, Clock::time_point since);
    void start_threads(int count);
    void work(int number);
    template <class Ready>
    void sleep_unless(Seat& seat, Ready ready);
    void wake_up(Seat& seat);

    const int capacity_;
    const std::unique_ptr<Seat[]> seats_;  // that of number 0 belongs to the thread that calls run()
    int most_threads_;                     // fewer than capacity_ once the system has refused one
    int threads_ = 1;                      // how many seats have a thread, the caller's included
    std::chrono::nanoseconds gain_{};      // what sharing has gained lately

    // The region that runs now or ran last: its number, and in the lowest 16 bits how many parts it has.
    alignas(64) std::atomic<std::uint64_t> region_{0};
    Body body_ = nullptr;
    void* context_ = nullptr;
    alignas(64) std::atomic<bool> taken_{false};  // by a thread that runs a region, or for ever by end()
    std::atomic<bool> ended_{false};
    std::atomic<std::int64_t> alone_until_{0};  // a time on Clock, in its ticks
};

}  // namespace pyoptim::core

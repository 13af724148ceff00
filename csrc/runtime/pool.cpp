#include "runtime/pool.hpp"

#include <algorithm>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <csignal>
#include <cstddef>
#define PYOPTIM_SIGNALS
#endif
// A test of the pool defines this to a pause of random length, where threads may meet in any order.
#ifndef PYOPTIM_POOL_PAUSE
#define PYOPTIM_POOL_PAUSE()
#endif

namespace pyoptim::core {

namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;

// How long a thread looks for the next region before it sleeps. Waking it again costs the caller about 5 us,
// and the thread comes some 50 us later on virtual machines.
constexpr auto kSpin = microseconds(100);
// How long a thread looks for the next region, or for the end of a part that another thread computes, before
// it offers its processor to others. And how long it waits for such an end before it sleeps.
constexpr auto kLook = microseconds(20), kYield = microseconds(500);
// Sharing a region gains what one thread would have taken, by the caller's own parts, less what the region
// took. Where the gains of late regions sum up to a loss of more than kLoss, the machine is busy: the caller
// runs alone for kPenalty times as long as was lost, at most kMostAlone. So sharing costs a small part of the
// time, however busy the machine is. Earlier gains count up to kGain.
constexpr auto kLoss = microseconds(50), kGain = microseconds(50);
constexpr int kPenalty = 20;
constexpr auto kMostAlone = milliseconds(50);

// How long a region of so many parts would have taken the caller alone, which computed `own` of them. Half of
// what it waited, up to half of its own time, is put down to parts that were longer than its own. Without a
// part of its own it had no processor, and sharing gained nothing.
nanoseconds of_one(int parts, int own, nanoseconds computed, nanoseconds waited) {
    if (own == 0) return nanoseconds(0);
    return computed * parts / own + std::min(waited, computed) / 2;
}

void relax() {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

}  // namespace

Pool::Pool(int capacity)
    : capacity_(capacity), seats_(new Seat[static_cast<std::size_t>(capacity)]), most_threads_(capacity) {}

bool Pool::is_free() const {
    return !taken_.load(std::memory_order_relaxed) &&
           Clock::now().time_since_epoch().count() >= alone_until_.load(std::memory_order_relaxed);
}

bool Pool::run(int parts, Body body, void* context) {
    bool free = false;
    if (parts > capacity_ || taken_.load(std::memory_order_relaxed) ||
        !taken_.compare_exchange_strong(free, true, std::memory_order_acquire)) {
        return false;
    }
    if (std::min(parts, most_threads_) > threads_) start_threads(parts);
    const auto start = Clock::now();
    body_ = body;
    context_ = context;
    const std::uint64_t region =
        ((region_.load(std::memory_order_relaxed) >> 16) + 1) << 16 | static_cast<std::uint64_t>(parts);
    PYOPTIM_POOL_PAUSE();
    region_.store(region);  // in one order with `asleep`: a thread sees the one or this one sees the other
    for (int i = 1; i < parts && i < threads_; ++i) wake_up(seats_[i]);

    const auto begun = Clock::now();
    const int own = claim_parts(region, 0);
    const auto finished = Clock::now();
    for (int part = 0; part < parts; ++part) wait_for(seats_[part], region, finished);
    const auto end = Clock::now();
    const nanoseconds taken = end - start;
    gain_ =
        std::min<nanoseconds>(gain_ + of_one(parts, own, finished - begun, end - finished) - taken, kGain);
    if (gain_ < -kLoss) {
        const auto alone = std::min<nanoseconds>(-kPenalty * gain_, kMostAlone);
        alone_until_ = (end + std::chrono::duration_cast<Clock::duration>(alone)).time_since_epoch().count();
        gain_ = {};
    }
    taken_.store(false, std::memory_order_release);
    return true;
}

// Every part that was begun in this region has its number in `begun`. All parts have been begun when a region
// ends, so a thread that comes late, with the number of an earlier region, claims nothing.
int Pool::claim_parts(std::uint64_t region, int first) {
    const int parts = static_cast<int>(region & 0xffff);
    int claimed = 0;
    for (int i = 0; i < parts; ++i) {
        const int part = (first + i) % parts;
        Seat& seat = seats_[part];
        std::uint64_t before = seat.begun.load(std::memory_order_relaxed);
        PYOPTIM_POOL_PAUSE();
        if (before >= region ||
            !seat.begun.compare_exchange_strong(before, region, std::memory_order_acq_rel)) {
            continue;
        }
        PYOPTIM_POOL_PAUSE();
        ++claimed;
        body_(part, parts, context_);
        PYOPTIM_POOL_PAUSE();
        seat.done.store(region);
        if (seats_[0].asleep.load()) wake_up(seats_[0]);
    }
    return claimed;
}

void Pool::wait_for(Seat& seat, std::uint64_t region, Clock::time_point since) {
    const auto done = [&] { return seat.done.load(std::memory_order_acquire) == region; };
    for (int i = 0; !done(); ++i) {
        relax();
        if (i % 16 != 15) continue;
        const auto waited = Clock::now() - since;
        if (waited < kLook) continue;
        if (waited < kYield) {
            std::this_thread::yield();
        } else {
            sleep_unless(seats_[0], [&] { return seat.done.load() == region; });
        }
    }
}

void Pool::work(int number) {
    std::uint64_t seen = 0;
    for (;;) {
        auto since = Clock::now();
        std::uint64_t region;
        for (int i = 0; (region = region_.load(std::memory_order_acquire)) == seen; ++i) {
            if (ended_.load(std::memory_order_relaxed)) return;
            relax();
            if (i % 16 != 15) continue;
            const auto spun = Clock::now() - since;
            if (spun < kLook) continue;
            if (spun < kSpin) {
                std::this_thread::yield();  // maybe to the caller, which has this processor too
            } else {
                sleep_unless(seats_[number], [&] { return region_.load() != seen || ended_.load(); });
                since = Clock::now();
            }
        }
        seen = region;
        claim_parts(region, number % static_cast<int>(region & 0xffff));
    }
}

// Sleeps until wake_up(seat), unless `ready` holds. Whoever makes it hold calls wake_up afterwards.
template <class Ready>
void Pool::sleep_unless(Seat& seat, Ready ready) {
    seat.asleep = true;
    PYOPTIM_POOL_PAUSE();
    if (ready()) {
        seat.asleep = false;
        return;
    }
    std::unique_lock<std::mutex> lock(seat.mutex);
    seat.wake.wait(lock, [&] { return !seat.asleep; });
}

void Pool::wake_up(Seat& seat) {
    if (!seat.asleep.load() || !seat.asleep.exchange(false)) return;
    {
        const std::lock_guard<std::mutex> lock(seat.mutex);
    }
    seat.wake.notify_one();
}

void Pool::start_threads(int count) {
#ifdef PYOPTIM_SIGNALS
    // Signals go to the program's own threads, except those that tell of a fault of the thread itself.
    sigset_t all, before;
    sigfillset(&all);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP}) sigdelset(&all, fault);
    pthread_sigmask(SIG_SETMASK, &all, &before);
#endif
    try {
        for (; threads_ < count; ++threads_) {
            seats_[threads_].thread = std::thread(&Pool::work, this, threads_);
        }
    } catch (...) {  // The system gives no more threads or memory; those that run do all the work.
        most_threads_ = threads_;
    }
#ifdef PYOPTIM_SIGNALS
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
#endif
}

void Pool::end() {
    bool free = false;
    while (!taken_.compare_exchange_weak(free, true, std::memory_order_acquire)) {
        free = false;
        std::this_thread::yield();
    }
    ended_ = true;
    for (int i = 1; i < threads_; ++i) {
        wake_up(seats_[i]);
        seats_[i].thread.join();
    }
}

}  // namespace pyoptim::core

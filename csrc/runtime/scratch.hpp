// Memory that a thread keeps from one call to the next.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace pyoptim::core {

// Returns n elements that begin on a cache line. The calling thread owns them, and its next call may return
// the same ones. It may throw, and nothing may throw in a parallel region, so call it before the region
// begins.
template <class T>
T* scratch(std::size_t n) {
    struct Free {
        void operator()(T* p) const { ::operator delete(p, std::align_val_t(64)); }
    };
    thread_local std::unique_ptr<T, Free> memory;
    thread_local std::size_t size = 0;
    if (size < n) {
        size = 0;
        memory.reset(static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64))));
        size = n;
    }
    return memory.get();
}

}  // namespace pyoptim::core

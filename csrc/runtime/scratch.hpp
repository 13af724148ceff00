// Memory that is kept from one call to the next.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

#include "runtime/sizes.hpp"

namespace pyoptim::core {

// Elements that begin on a cache line. Their values are not defined at first, nor after reserve() has made
// more room.
template <class T>
class Memory {
  public:
    // Returns at least n elements. It may throw, and nothing may throw in a parallel region, so call it
    // before the region begins.
    T* reserve(std::size_t n) {
        if (size_ < n) {
            if (n > kMostElements) throw std::bad_alloc();  // the product below would wrap around
            size_ = 0;
            memory_.reset(static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64))));
            size_ = n;
        }
        return memory_.get();
    }
    T* data() const { return memory_.get(); }

  private:
    struct Free {
        void operator()(T* p) const { ::operator delete(p, std::align_val_t(64)); }
    };
    std::unique_ptr<T, Free> memory_;
    std::size_t size_ = 0;
};

// Returns n elements that begin on a cache line. The calling thread owns them, and its next call may return
// the same ones. As Memory::reserve, it may throw.
template <class T>
T* scratch(std::size_t n) {
    thread_local Memory<T> memory;
    return memory.reserve(n);
}

}  // namespace pyoptim::core

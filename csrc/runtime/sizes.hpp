// Arithmetic on sizes that come from outside: from callers of an API, from files, from Python. Every such
// size is multiplied and added by these functions, since a product that wraps around looks like a small size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace pyoptim::core {

// The most elements that an array may have: their bytes, eight each, are a std::ptrdiff_t.
constexpr std::size_t kMostElements = static_cast<std::size_t>(PTRDIFF_MAX) / 8;

// Throws std::invalid_argument, which names what the size is of, and the numbers whose product it is.
[[noreturn]] inline void refuse_size(const std::string& of, std::initializer_list<std::size_t> factors = {}) {
    std::string product;
    for (const std::size_t factor : factors) {
        product += (product.empty() ? ": " : " * ") + std::to_string(factor);
    }
    throw std::invalid_argument(of + " has more elements than memory can hold" + product);
}

// Returns the product of sizes. A negative size, converted, is a huge one.
template <class... Sizes>
std::size_t checked_product(const char* of, Sizes... sizes) {
    const std::initializer_list<std::size_t> all = {static_cast<std::size_t>(sizes)...};
    std::size_t product = 1;
    for (const std::size_t size : all) {
        if (size > kMostElements || (size > 0 && product > kMostElements / size)) refuse_size(of, all);
        product *= size;
    }
    return product;
}

inline std::size_t checked_sum(const char* of, std::size_t a, std::size_t b) {
    if (a > kMostElements || b > kMostElements - a) refuse_size(of);
    return a + b;
}

}  // namespace pyoptim::core

// Pieces of memory that do not overlap each other.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <utility>
#include <vector>

namespace pyoptim::python {

class Intervals {
  public:
    void add(std::uintptr_t begin, std::size_t bytes) {
        if (bytes > 0) all_.emplace_back(begin, begin + bytes);
    }
    // To be called when all pieces have been added.
    void sort() { std::sort(all_.begin(), all_.end()); }
    bool meet(std::uintptr_t begin, std::size_t bytes) const {
        // Only the last piece that begins before the end of this one can overlap it.
        const auto after = std::lower_bound(all_.begin(), all_.end(), Interval{begin + bytes, 0});
        return bytes > 0 && after != all_.begin() && std::prev(after)->second > begin;
    }

  private:
    using Interval = std::pair<std::uintptr_t, std::uintptr_t>;
    std::vector<Interval> all_;
};

}  // namespace pyoptim::python

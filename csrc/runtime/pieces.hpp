// How a batch is cut into pieces that threads take on their own.
#pragma once

#include <cstddef>

namespace pyoptim::core {

// The pieces have `rows` rows, the last one maybe fewer. They follow from the batch alone: losses and the
// gradients of small weights are summed within each piece, and then over the pieces, so that the number of
// threads does not matter.
struct Pieces {
    explicit Pieces(std::size_t batch) : count(1) {
        // A piece of a small network fits in the first two caches, and its products are long enough for a
        // tile. The number of pieces is a power of two, so that threads get as many rows each. More than 16
        // of them, whose gradients take memory and time, are for the many threads that large batches pay for.
        const auto rows_for = [](std::size_t pieces) -> std::size_t { return pieces <= 16 ? 32 : 256; };
        constexpr std::size_t kMost = 64;
        while (count < kMost && 2 * count * rows_for(2 * count) <= batch) count *= 2;
        rows = (batch + count - 1) / count;
        if (rows > 0) count = (batch + rows - 1) / rows;
    }
    std::size_t count, rows;
};

}  // namespace pyoptim::core

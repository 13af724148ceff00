// Checks the arrays of a penalty and the runs [begin, end) of weights that it counts.
#pragma once

#include <utility>
#include <vector>

#include "layers/penalty.hpp"
#include "python/arrays.hpp"

namespace pyoptim::python {

using Runs = std::vector<std::pair<std::size_t, std::size_t>>;

template <class T>
core::Penalized<T> penalized(const Array<T>& parameters, Array<T> gradients, const Runs& runs, double l2,
                             double l1) {
    require(gradients.size() == parameters.size(), "gradients as parameters");
    for (const auto& [begin, end] : runs) {
        require(begin <= end && end <= static_cast<std::size_t>(parameters.size()), "runs of parameters");
    }
    return {{l2, l1}, parameters.data(), gradients.mutable_data(), runs};
}

}  // namespace pyoptim::python

// An array that a step looks at as a whole.
#pragma once

#include <cstddef>

namespace pyoptim::core {

template <class T>
struct TensorArray {
    int rule;  // cpu::RuleId
    std::size_t group;
    T* param;
    T* state[2];
    std::size_t size;
    bool is_vector;
    struct {
        std::size_t batch, rows, cols;  // a stack of matrices; of a vector, its elements are cols
    } shape;
};

}  // namespace pyoptim::core

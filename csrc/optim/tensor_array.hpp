// An array whose update depends on the array as a whole, such as on its norm.
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
        std::size_t batch, rows, cols;  // a stack of `batch` matrices; the elements of a vector count as cols
    } shape;
};

}  // namespace pyoptim::core

// An array whose update depends on the array as a whole, such as on its norm.
#pragma once

#include <cstddef>

namespace pyoptim::core {

template <class T>
struct TensorArray {
    int rule;           // the cpu::RuleId of its rule
    std::size_t group;  // the index of its group, which has a row of coefficients
    T* param;           // the caller owns the memory of the parameter and of its states
    T* state[2];
    std::size_t size;  // the number of elements
    bool is_vector;
    struct {  // a stack of `batch` matrices; the elements of a vector count as cols
        std::size_t batch, rows, cols;
    } shape;
};

}  // namespace pyoptim::core

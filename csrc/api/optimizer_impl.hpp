// The private part of an Optimizer of the C++ API.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "optim/stepper.hpp"
#include "pyoptim/optimizer.hpp"

namespace pyoptim {

template <class T>
struct Optimizer<T>::Impl {
    std::size_t size = 0;
    int rule = -1;  // the index of the rule in the list of rules, or -1 before the first step
    Progress progress;
    std::map<std::string, std::vector<T>> arrays;  // by name: the states of all rules so far
    std::vector<std::vector<T>*> states;           // those of `rule`, in its order
    core::Stepper<T> stepper;                      // prepared for the parameters at the address `stepped`
    T* stepped = nullptr;                          // the parameters of the last step

    typename core::Stepper<T>::Array array(T* param) {
        typename core::Stepper<T>::Array array{rule, 0, param, {}, size, nullptr};
        for (std::size_t k = 0; k < states.size(); ++k) array.state[k] = states[k]->data();
        return array;
    }
};

}  // namespace pyoptim

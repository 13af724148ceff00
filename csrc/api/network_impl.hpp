// The private part of a Network of the C++ API.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <stdexcept>
#include <vector>

#include "engine/engine.hpp"
#include "pyoptim/network.hpp"

namespace pyoptim {

template <class T>
struct Network<T>::Impl {
    // Marks the engine as in use while the object lives: the callback after_epoch must not replace the
    // engine.
    struct Busy {
        explicit Busy(Impl& of) : impl(of) {
            if (impl.busy)
                throw std::invalid_argument("the network is being trained: after_epoch cannot train it");
            impl.busy = true;
        }
        ~Busy() { impl.busy = false; }
        Busy(const Busy&) = delete;
        Busy& operator=(const Busy&) = delete;
        Impl& impl;
    };

    explicit Impl(const std::vector<Layer>& layers);
    void initialize(std::uint64_t seed);
    void check(const Dataset<T>&, const Optimizer<T>&, std::size_t batch) const;
    core::Engine<T>& engine_for(const Dataset<T>&, Optimizer<T>&, Loss, std::size_t batch);
    void run(core::Engine<T>&, const core::Examples<T>&, std::size_t examples, std::size_t batch,
             Optimizer<T>&, bool keep_gradients, core::Outcome&);

    core::Chain<T> chain;
    std::vector<T> parameters, gradients, rows;
    std::deque<std::vector<T>> buffers;  // memory of the layers' buffers and counters
    std::deque<std::int64_t> counters;
    std::vector<Progress> after;  // how far the optimizer is before these rows and after each
    Loss loss;                    // of the engine
    std::unique_ptr<core::Engine<T>> engine;
    bool busy = false;
};

}  // namespace pyoptim

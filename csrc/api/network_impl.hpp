// The private part of a Network of the C++ API.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <stdexcept>
#include <vector>

#include "engine/engine.hpp"
#include "engine/predictor.hpp"
#include "pyoptim/network.hpp"

namespace pyoptim {

template <class T>
struct Network<T>::Impl {
    // Marks the engine as in use while this object lives, so that the callback after_epoch cannot replace the
    // engine that calls it.
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
    // Writes the initial values of all arrays.
    void initialize(std::uint64_t seed);
    // Throws std::invalid_argument for what cannot be trained on, before anything changes.
    void check(const Dataset<T>&, const Optimizer<T>&, std::size_t batch, bool drop_last) const;
    // Returns an engine for this loss and this batch, prepared for the optimizer: a new one or the last one.
    core::Engine<T>& engine_for(const Dataset<T>&, Optimizer<T>&, Loss, std::size_t batch, bool drop_last);
    // Trains on so many examples of the order once, and advances the optimizer.
    void run(core::Engine<T>&, const core::Examples<T>&, std::size_t examples, std::size_t batch,
             Optimizer<T>&, core::StepOptions, core::Outcome&);

    core::Chain<T> chain;
    std::vector<T> parameters, gradients;
    std::vector<T> rows;                 // the coefficients of the steps of a chunk, end to end
    std::deque<std::vector<T>> buffers;  // the memory of the layers' buffers, which does not move
    std::deque<std::int64_t> counters;   // likewise of the counters
    std::vector<Progress> after;  // the optimizer's progress before the first of these steps, and after each
    Loss loss;                    // the loss that the engine was made for
    std::unique_ptr<core::Engine<T>> engine;
    std::unique_ptr<core::Predictor<T>> predictor;  // made by the first prediction
    bool busy = false;                              // whether the engine is training
};

}  // namespace pyoptim

// The private part of a Network of the C++ API.
#pragma once

#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "api/optimizer_impl.hpp"
#include "engine/engine.hpp"
#include "engine/hogwild.hpp"
#include "engine/predictor.hpp"
#include "pyoptim/network.hpp"

namespace pyoptim {

template <class T>
struct [[gnu::visibility("hidden")]] Network<T>::Impl {
    // Marks the engine as in use while this object lives, so that a callback or a custom layer cannot replace
    // the engine that calls it.
    struct Busy {
        explicit Busy(Impl& of) : impl(of) {
            if (impl.busy)
                throw std::invalid_argument(
                    "the network is in use: what it calls, such as after_epoch and custom layers, cannot "
                    "train it or pass through it");
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
    void check_data(const Dataset<T>&) const;
    void check_size(const Optimizer<T>&) const;
    // Throws for a batch of so few examples that a layer cannot normalise it.
    void check_batch(std::size_t smallest) const;
    void check_measured(const Dataset<T>&, const Loss&) const;  // the same for what cannot be measured
    // The loss that is meant for these data, checked against them.
    Loss loss_for(const Dataset<T>&, Loss) const;
    // Finds the parameters that learn, in runs as long as can be. Throws std::invalid_argument if there are
    // none.
    const core::Runs& trained();
    // Returns the engine of forward() and backward(), made anew if it takes fewer than n examples.
    core::Engine<T>& engine_for_passes(std::size_t n);
    // Sets `parts`. Throws std::invalid_argument if there are none.
    void find_parts(const Optimizer<T>&);
    // Lets the steps of an engine update the parameters that are trained, by this optimizer.
    template <class Engine>
    void add_parts(Engine&, Optimizer<T>&);
    // Returns an engine for this loss and this batch, prepared for the optimizer: a new one or the last one.
    core::Engine<T>& engine_for(const Dataset<T>&, Optimizer<T>&, Loss, std::size_t batch, bool drop_last);
    // How run() goes through the examples.
    struct Pace {
        std::size_t steps = 256;                    // that are planned together
        std::function<bool(std::size_t)> advanced;  // is told how many examples were done; false ends it
        core::Hogwild<T>* hogwild = nullptr;        // trains instead of the engine
    };
    // Trains on so many examples of the order once, and advances the optimizer. Returns false if it was ended
    // before.
    bool run(core::Engine<T>&, const core::Examples<T>&, std::size_t examples, std::size_t batch,
             Optimizer<T>&, core::StepOptions, core::Outcome&, const Pace& pace = {});
    // Returns how many of these steps have coefficients: all, unless a schedule fails, which `failure` keeps.
    std::size_t plan(const std::vector<Optimizer<T>*>& groups, std::size_t steps, std::size_t& width,
                     std::exception_ptr& failure);
    struct Fitting;  // a training that runs
    struct Undo;     // of an update() that is not taken
    // Trains on one block of examples after the other; on a single one, which is always the same, if
    // `single`.
    EpochResult fit(Network& whole, const Blocks& blocks, bool single, Optimizer<T>&, const FitOptions&,
                    const Dataset<T>* validation);

    core::Chain<T> chain;
    std::vector<T> parameters, gradients;
    std::vector<T> rows;                 // the coefficients of the steps of a chunk, end to end
    std::deque<std::vector<T>> buffers;  // the memory of the layers' buffers, which does not move
    std::deque<std::int64_t> counters;   // likewise of the counters
    core::Runs learning;                 // what trained() returns
    std::vector<core::Part> parts;       // of these, those of each array of the optimizer
    // Of each group of the optimizer, the progress before the first of these steps, and after each.
    std::vector<std::vector<Progress>> after;
    std::mt19937_64 random{0};  // of the orders of examples, where a fit has no seed of its own
    int thread_limit = 0;       // 0: none
    Loss loss;                  // the loss that the engine was made for
    std::unique_ptr<core::Engine<T>> engine;
    std::unique_ptr<core::Engine<T>> passes;  // of forward() and backward(), without a loss
    std::size_t passed = 0;                   // the examples of the last forward(), or 0
    // Whether nothing has changed running statistics and counters since that forward(), in training.
    bool can_undo = false;
    std::vector<T> outputs, slope;                  // what forward() and backward() returned last
    std::unique_ptr<core::Predictor<T>> predictor;  // made by the first prediction
    bool busy = false;                              // whether the engine is training
};

}  // namespace pyoptim

// What a Network of the C++ API holds.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/engine.hpp"
#include "pyoptim/network.hpp"

namespace pyoptim {

template <class T>
struct Network<T>::Impl {
    struct Statistics {  // running ones, of a batch norm
        std::vector<T> mean, var;
        std::int64_t tracked = 0;
    };

    // While it lives the engine is in use: what after_epoch does must not replace it.
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
    void add(Layer& layer, const std::string& name, std::ptrdiff_t& width);
    void bind();
    void initialize(std::uint64_t seed);
    core::Engine<T>& engine_for(const Dataset<T>&, Optimizer<T>&, std::size_t batch);
    void run(core::Engine<T>&, const core::Examples<T>&, std::size_t examples, std::size_t batch,
             Optimizer<T>&, bool keep_gradients, core::Outcome&);

    std::vector<Layer> layers;
    std::vector<core::LayerView<T>> views;
    std::vector<const Layer*> origin;  // of each view: its layer
    std::vector<std::string> names;    // of each view: what those of its arrays begin with, e.g. "3.block.0."
    std::vector<Statistics> statistics;  // of each view
    std::vector<T> parameters, gradients, rows;
    std::vector<Progress> after;  // how far the optimizer is before these rows and after each
    core::LossKind loss = core::LossKind::cross_entropy;  // of the engine
    std::unique_ptr<core::Engine<T>> engine;
    bool busy = false;
};

}  // namespace pyoptim

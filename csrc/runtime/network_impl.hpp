// What a Network of the C++ API holds.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "pyoptim/network.hpp"
#include "runtime/engine.hpp"

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
    runtime::Engine<T>& engine_for(const Dataset<T>&, Optimizer<T>&, std::size_t batch);
    void run(runtime::Engine<T>&, const runtime::Examples<T>&, std::size_t examples, std::size_t batch,
             Optimizer<T>&, bool keep_gradients, runtime::Outcome&);

    std::vector<Layer> layers;
    std::vector<runtime::LayerView<T>> views;
    std::vector<const Layer*> origin;  // of each view: its layer
    std::vector<std::string> names;    // of each view: what those of its arrays begin with, e.g. "3.block.0."
    std::vector<Statistics> statistics;  // of each view
    std::vector<T> parameters, gradients, rows;
    std::vector<Progress> after;  // how far the optimizer is before these rows and after each
    runtime::LossKind loss = runtime::LossKind::cross_entropy;  // of the engine
    std::unique_ptr<runtime::Engine<T>> engine;
    bool busy = false;
};

}  // namespace pyoptim

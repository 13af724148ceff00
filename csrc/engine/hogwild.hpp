// Training by threads that share parameters and states and take no locks: Niu, Recht, Re and Wright,
// "Hogwild!: a lock-free approach to parallelizing stochastic gradient descent", 2011.
#pragma once

#include <exception>
#include <memory>
#include <vector>

#include "engine/engine.hpp"

namespace pyoptim::core {

// Gives each thread an engine of its own, on the same parameters. A shared counter hands out the mini-batches
// with their rows of coefficients, so each batch is trained on once and each step is counted once. The thread
// that gets a batch, and the writes of others that it sees, differ from run to run.
//
// Threads read and write the same parameters and states with plain loads and stores. In C++ that is a data
// race, whose behaviour is undefined. In practice the processors that this runs on load and store aligned
// elements of 4 and 8 bytes whole, and the compiler sees no more of the memory than a step kernel does. So a
// race loses one update of an element; if the rule keeps several states, as Adam does, these may come from
// different updates. Atomic elements would rule out vector instructions. Nothing that an address depends on
// is shared, and the counter is atomic. A thread sanitizer is right to report train(): suppress it with
// `race:pyoptim::core::Hogwild`.
template <class T>
class Hogwild {
  public:
    // The layers must have no buffers or counters, and their gradients must lie in one block of memory, which
    // is never written: it only tells which gradient is which. Throws std::invalid_argument otherwise.
    Hogwild(std::vector<LayerView<T>> layers, const Loss& loss, std::size_t capacity);

    // Adds an array to update, as Engine::add does.
    void add(const typename Stepper<T>::Array& array, const T* gradient);

    // Trains like Engine::train, but neither clips gradients nor checks whether they are finite.
    void train(const Examples<T>&, std::size_t begin, std::size_t end, std::size_t batch, const T* rows,
               std::size_t row, Outcome&);

  private:
    struct Worker {
        std::vector<T> gradients;  // its own, which replace the block of gradients
        std::unique_ptr<Engine<T>> engine;
        Outcome outcome;
        std::exception_ptr failure;
    };
    const T* first_ = nullptr;  // the first element of the block of gradients
    std::vector<Worker> workers_;
};

}  // namespace pyoptim::core

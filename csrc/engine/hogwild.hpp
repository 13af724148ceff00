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
// Threads read and write the same parameters and states with plain loads and stores. For C++ that is a data
// race, whose behaviour is undefined. The stores are those of the step kernels, into memory that a
// compiler knows nothing more of, and aligned elements of 4 and 8 bytes are loaded and stored whole on the
// processors that this runs on: a race costs an update of an element, no more,
// where a rule keeps one state at most. Two, like Adam's, may come to be of different updates. Atomic
// elements would forbid vectors. What addresses depend on, and the counter, is not shared or is atomic. A
// thread sanitizer is right to report train(): suppress it with `race:pyoptim::core::Hogwild`.
template <class T>
class Hogwild {
  public:
    // The layers must have no buffers or counters, and their gradients must lie in one block of memory, which
    // is never written to. Else throws std::invalid_argument.
    Hogwild(std::vector<LayerView<T>> layers, const Loss& loss, std::size_t capacity);

    void add(const typename Stepper<T>::Array& array, const T* gradient);

    // Trains like Engine::train, but neither clips gradients nor checks whether they are finite.
    void train(const Examples<T>&, std::size_t begin, std::size_t end, std::size_t batch, const T* rows,
               std::size_t row, Outcome&);

  private:
    struct Worker {
        std::vector<T> gradients;  // replaces the block of gradients
        std::unique_ptr<Engine<T>> engine;
        Outcome outcome;
        std::exception_ptr failure;
    };
    const T* first_ = nullptr;  // the first element of the block of gradients
    std::vector<Worker> workers_;
};

}  // namespace pyoptim::core

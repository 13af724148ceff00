#include "engine/hogwild.hpp"

#include <algorithm>
#include <atomic>
#include <functional>
#include <stdexcept>
#include <utility>

#include "runtime/parallel.hpp"

namespace pyoptim::core {

// The number of elements that a worker updates before it moves to the next piece.
constexpr std::size_t kPiece = 4096;

template <class T>
Hogwild<T>::Hogwild(std::vector<LayerView<T>> layers, const Loss& loss, std::size_t capacity) {
    const std::less<const T*> before;
    const T* last = nullptr;
    std::size_t total = 0;
    for (const LayerView<T>& layer : layers) {
        for (const LayerArray<T>& array : layer.arrays) {
            if (array.role != Role::parameter) {
                throw std::invalid_argument("hogwild: a layer keeps more than parameters");
            }
            const T* const end = array.gradient + array.size();
            if (first_ == nullptr || before(array.gradient, first_)) first_ = array.gradient;
            if (last == nullptr || before(last, end)) last = end;
            total += static_cast<std::size_t>(array.size());
        }
    }
    if (total == 0 || static_cast<std::size_t>(last - first_) != total) {
        throw std::invalid_argument("hogwild: expected gradients in one block");
    }
    workers_.resize(static_cast<std::size_t>(get_num_threads()));
    for (Worker& worker : workers_) {
        worker.gradients.resize(total);
        auto own = layers;
        for (LayerView<T>& layer : own) {
            for (LayerArray<T>& array : layer.arrays) {
                if (array.gradient == nullptr) continue;  // buffers have none
                array.gradient = worker.gradients.data() + (array.gradient - first_);
            }
        }
        worker.engine = std::make_unique<Engine<T>>(std::move(own), loss, capacity);
    }
}

template <class T>
void Hogwild<T>::add(const typename Stepper<T>::Array& array, const T* gradient) {
    // Workers that update in the same order fall into step, and each needs the cache lines that the other has
    // just written. That is slow and loses half of the updates, so every worker starts at another place, and
    // every other worker goes backwards.
    const std::size_t pieces = (array.size + kPiece - 1) / kPiece;
    for (std::size_t w = 0; w < workers_.size(); ++w) {
        Worker& worker = workers_[w];
        for (std::size_t i = 0; i < pieces; ++i) {
            const std::size_t turn = (w * pieces / workers_.size() + i) % pieces;
            const std::size_t at = (w % 2 == 0 ? turn : pieces - 1 - turn) * kPiece;
            const auto piece = part_of<T>(array, at, std::min(at + kPiece, array.size));
            worker.engine->add(piece, worker.gradients.data() + (gradient - first_) + at);
        }
    }
}

template <class T>
void Hogwild<T>::train(const Examples<T>& of, std::size_t begin, std::size_t end, std::size_t batch,
                       const T* rows, std::size_t row, Outcome& outcome) {
    const std::size_t batches = (end - begin + batch - 1) / batch;
    std::atomic<std::size_t> next{0};
    for (Worker& worker : workers_) {
        worker.outcome = {};
        worker.failure = nullptr;  // an earlier call may have left several, of which it threw one
    }
    const int threads =
        static_cast<int>(std::min({workers_.size(), batches, static_cast<std::size_t>(get_num_threads())}));
    parallel(threads, [&](int thread, int) {
        Worker& worker = workers_[static_cast<std::size_t>(thread)];
        try {  // a thread's first scratch memory may fail, and no exception may leave a parallel region
            for (std::size_t i = next++; i < batches; i = next++) {
                const std::size_t from = begin + i * batch;
                worker.engine->train(of, from, std::min(from + batch, end), batch, rows + i * row, row, {},
                                     worker.outcome);
            }
        } catch (...) {
            worker.failure = std::current_exception();
        }
    });
    for (const Worker& worker : workers_) {
        outcome.steps += worker.outcome.steps;
        outcome.sums.add(worker.outcome.sums);
    }
    for (Worker& worker : workers_) {
        if (worker.failure) std::rethrow_exception(std::exchange(worker.failure, nullptr));
    }
}

template class Hogwild<float>;
template class Hogwild<double>;

}  // namespace pyoptim::core

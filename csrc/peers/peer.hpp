// What `pyoptim bench cpp` asks of each library: classes from 784 inputs by two hidden layers, trained by
// Adam with a learning rate of 1e-3, on cross-entropy.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

constexpr std::size_t kWidths[] = {784, 256, 128, 10};
constexpr std::size_t kInputs = kWidths[0], kClasses = kWidths[3];
constexpr double kDropped = 0.2, kEps = 1e-5;

// After each hidden layer: ReLU; dropout after it; a normalisation of each example before it.
enum class Kind { plain, dropout, layer_norm };

struct Peer {
    virtual ~Peer() = default;
    // Takes one step on this batch; returns its mean loss before the step.
    virtual double step(const float* x, const std::int64_t* labels, std::size_t batch) = 0;
    // The logits, or these less a number of each row.
    virtual void predict(const float* x, std::size_t rows, float* outputs) = 0;
};

// Begins with these parameters: of each layer the weights, one row for each output, and the biases.
Peer* make(Kind kind, const float* parameters, int threads);

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT Peer* peer_make(int kind, const float* parameters, int threads) {
    return make(static_cast<Kind>(kind), parameters, threads);
}
EXPORT double peer_train(Peer* peer, const float* x, const std::int64_t* labels, std::size_t batch,
                         std::size_t steps) {
    double sum = 0;
    for (std::size_t i = 0; i < steps; ++i) {
        sum += peer->step(x + i * batch * kInputs, labels + i * batch, batch);
    }
    return sum / static_cast<double>(steps);
}
EXPORT void peer_predict(Peer* peer, const float* x, std::size_t rows, std::size_t times, float* outputs) {
    for (std::size_t i = 0; i < times; ++i) peer->predict(x, rows, outputs);
}
EXPORT void peer_delete(Peer* peer) { delete peer; }

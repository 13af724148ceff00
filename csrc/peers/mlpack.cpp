// Without this, ensmallen 3 divides the learning rate by the size of the batch.
#define ENS_OLD_SEPARABLE_STEP_BEHAVIOR
#include <mlpack.hpp>

#include "peer.hpp"

using Matrix = arma::fmat;

// The caller's memory, of which each column is an example.
static const Matrix inputs(const float* x, std::size_t rows) {
    return Matrix(const_cast<float*>(x), kInputs, rows, false, true);
}

struct Mlpack final : Peer {
    mlpack::FFN<mlpack::NegativeLogLikelihoodType<Matrix>, mlpack::RandomInitialization, Matrix> network;
    ens::Adam adam;

    Mlpack(Kind kind, const float* parameters)
        : network(mlpack::NegativeLogLikelihoodType<Matrix>(false)),
          adam(1e-3, 1, 0.9, 0.999, 1e-8, 1, -1, false, false) {
        for (int i = 0; i < 3; ++i) {
            network.Add<mlpack::Linear<Matrix>>(kWidths[i + 1]);
            if (i == 2) break;
            if (kind == Kind::layer_norm) network.Add<mlpack::LayerNorm<Matrix>>(kEps);
            network.Add<mlpack::ReLU<Matrix>>();
            if (kind == Kind::dropout) network.Add<mlpack::Dropout<Matrix>>(kDropped);
        }
        network.Add<mlpack::LogSoftMax<Matrix>>();
        network.Reset(kInputs);
        float* to = network.Parameters().memptr();
        for (int i = 0; i < 3; ++i) {  // weights have a column for each input
            const std::size_t in = kWidths[i], out = kWidths[i + 1];
            for (std::size_t k = 0; k < in * out; ++k) to[k % in * out + k / in] = parameters[k];
            const std::size_t rest = kind == Kind::layer_norm && i < 2 ? 3 * out : out;
            std::copy_n(parameters + in * out, rest, to + in * out);
            to += in * out + rest;
            parameters += in * out + rest;
        }
    }
    double step(const float* x, const std::int64_t* labels, std::size_t batch) override {
        Matrix y(1, batch);
        std::copy_n(labels, batch, y.memptr());
        adam.BatchSize() = adam.MaxIterations() = batch;
        return network.Train(Matrix(x, kInputs, batch), std::move(y), adam);
    }
    void predict(const float* x, std::size_t rows, float* outputs) override {
        Matrix y(outputs, kClasses, rows, false, true);
        network.Predict(inputs(x, rows), y, rows);
    }
};

Peer* make(Kind kind, const float* parameters, int) {  // threads are those of BLAS and OpenMP
    return new Mlpack(kind, parameters);
}

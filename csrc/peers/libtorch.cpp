#include <torch/torch.h>

#include "peer.hpp"

using torch::Tensor;

// Tensors over the caller's memory; nothing is written to it.
static Tensor inputs(const float* x, std::size_t rows) {
    return torch::from_blob(const_cast<float*>(x), {static_cast<std::int64_t>(rows), kInputs});
}

struct Libtorch final : Peer {
    torch::nn::Sequential network;
    std::unique_ptr<torch::optim::Adam> adam;

    Libtorch(Kind kind, const float* parameters) {
        for (int i = 0; i < 3; ++i) {
            network->push_back(torch::nn::Linear(kWidths[i], kWidths[i + 1]));
            if (i == 2) break;
            if (kind == Kind::layer_norm) {
                const std::vector<std::int64_t> shape = {static_cast<std::int64_t>(kWidths[i + 1])};
                network->push_back(torch::nn::LayerNorm(torch::nn::LayerNormOptions(shape).eps(kEps)));
            }
            network->push_back(torch::nn::ReLU());
            if (kind == Kind::dropout) network->push_back(torch::nn::Dropout(kDropped));
        }
        torch::NoGradGuard guard;
        for (Tensor& p : network->parameters()) {
            p.copy_(torch::from_blob(const_cast<float*>(parameters), p.sizes()));
            parameters += p.numel();
        }
        adam = std::make_unique<torch::optim::Adam>(network->parameters(), torch::optim::AdamOptions(1e-3));
    }
    double step(const float* x, const std::int64_t* labels, std::size_t batch) override {
        const Tensor y = torch::from_blob(const_cast<std::int64_t*>(labels),
                                          {static_cast<std::int64_t>(batch)}, torch::kInt64);
        adam->zero_grad();
        const Tensor loss = torch::nn::functional::cross_entropy(network->forward(inputs(x, batch)), y);
        loss.backward();
        adam->step();
        return loss.item<double>();
    }
    void predict(const float* x, std::size_t rows, float* outputs) override {
        torch::InferenceMode guard;
        if (network->is_training()) network->eval();
        const Tensor y = network->forward(inputs(x, rows));
        std::copy_n(y.const_data_ptr<float>(), rows * kClasses, outputs);
    }
};

Peer* make(Kind kind, const float* parameters, int threads) {
    torch::set_num_threads(threads);
    return new Libtorch(kind, parameters);
}

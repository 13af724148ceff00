#include <memory>

#include "peer.hpp"
#include "pyoptim/network.hpp"
#include "pyoptim/predictor.hpp"

static std::vector<pyoptim::Layer> layers(Kind kind) {
    std::vector<pyoptim::Layer> made;
    for (int i = 0; i < 3; ++i) {
        const auto in = static_cast<std::ptrdiff_t>(kWidths[i]),
                   out = static_cast<std::ptrdiff_t>(kWidths[i + 1]);
        made.push_back(pyoptim::dense(in, out, i < 2 && kind != Kind::layer_norm ? "relu" : ""));
        if (i == 2) break;
        if (kind == Kind::dropout) made.push_back(pyoptim::dropout(kDropped));
        if (kind == Kind::layer_norm) {
            made.push_back(pyoptim::layer_norm(out));
            made.push_back(pyoptim::activation("relu"));
        }
    }
    return made;
}

struct Own final : Peer {
    pyoptim::Network<float> network;
    pyoptim::Adam<float> adam;
    std::unique_ptr<pyoptim::Predictor<float>> predictor;

    Own(Kind kind, const float* parameters) : network(layers(kind)), adam(network.parameter_count()) {
        std::copy_n(parameters, network.parameter_count(), network.parameters());
    }
    double step(const float* x, const std::int64_t* labels, std::size_t batch) override {
        return network.step({x, labels, batch}, adam);
    }
    void predict(const float* x, std::size_t rows, float* outputs) override {
        if (!predictor) predictor = std::make_unique<pyoptim::Predictor<float>>(network);
        predictor->predict(x, rows, outputs);
    }
};

Peer* make(Kind kind, const float* parameters, int threads) {
    pyoptim::set_num_threads(threads);
    return new Own(kind, parameters);
}

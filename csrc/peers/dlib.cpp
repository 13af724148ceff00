#include <dlib/dnn.h>

#include "peer.hpp"

struct Dropout : dlib::dropout_ {
    Dropout() : dlib::dropout_(static_cast<float>(kDropped)) {}
};

using Input = dlib::input<dlib::matrix<float>>;
template <template <class> class Hidden>
using Classifier = dlib::loss_multiclass_log<
    dlib::fc<kClasses, Hidden<dlib::fc<kWidths[2], Hidden<dlib::fc<kWidths[1], Input>>>>>>;
template <class Below>
using Plain = dlib::relu<Below>;
template <class Below>
using Dropped = dlib::add_layer<Dropout, dlib::relu<Below>>;
template <class Below>
using Normed = dlib::relu<dlib::layer_norm<Below>>;

template <class Network>
struct Dlib final : Peer {
    Network network;
    std::vector<dlib::adam> solvers;
    dlib::resizable_tensor batch_of;
    std::vector<unsigned long> classes;

    explicit Dlib(const float* parameters)
        : solvers(Network::num_computational_layers, dlib::adam(0, 0.9f, 0.999f)) {
        network(dlib::matrix<float>(kInputs, 1));  // which makes the parameters
        std::vector<dlib::tensor*> arrays;         // from the last layer to the first
        dlib::visit_computational_layers(network, [&](auto& layer) {
            if (layer.get_layer_params().size() > 0) arrays.push_back(&layer.get_layer_params());
        });
        for (auto at = arrays.rbegin(); at != arrays.rend(); ++at) {
            float* const to = (*at)->host();
            const auto in = static_cast<std::size_t>((*at)->num_samples()) - 1,
                       out = (*at)->size() / (in + 1);
            const bool is_dense = out > 1;  // weights with a column for each output, and a row of biases
            for (std::size_t i = 0; is_dense && i < in * out; ++i) to[i % in * out + i / in] = parameters[i];
            if (is_dense) std::copy_n(parameters + in * out, out, to + in * out);
            if (!is_dense) std::copy_n(parameters, (*at)->size(), to);
            parameters += (*at)->size();
        }
    }
    const dlib::tensor& as_tensor(const float* x, std::size_t rows) {
        batch_of.set_size(static_cast<long>(rows), 1, kInputs, 1);
        std::copy_n(x, rows * kInputs, batch_of.host_write_only());
        return batch_of;
    }
    double step(const float* x, const std::int64_t* labels, std::size_t batch) override {
        classes.assign(labels, labels + batch);
        const double loss = network.compute_parameter_gradients(as_tensor(x, batch), classes.begin());
        network.update_parameters(dlib::make_sstack(solvers), 1e-3);
        return loss;
    }
    void predict(const float* x, std::size_t rows, float* outputs) override {
        const dlib::tensor& y = network.subnet().forward(as_tensor(x, rows));
        std::copy_n(y.host(), rows * kClasses, outputs);
    }
};

Peer* make(Kind kind, const float* parameters, int) {  // threads are those of BLAS
    if (kind == Kind::dropout) return new Dlib<Classifier<Dropped>>(parameters);
    if (kind == Kind::layer_norm) return new Dlib<Classifier<Normed>>(parameters);
    return new Dlib<Classifier<Plain>>(parameters);
}

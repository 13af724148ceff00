#include <cstdio>
#include <exception>
#include <stdexcept>

#include "api/layer_json.hpp"
#include "pyoptim/network.hpp"
#include "pyoptim/pyoptim.h"

struct pyoptim_network {
    pyoptim::Network<float> it;
    pyoptim::Loss loss;  // what fits minimise
};
struct pyoptim_optimizer {
    std::unique_ptr<pyoptim::Optimizer<float>> it;
};

namespace {

// Runs the body and turns exceptions into error codes, since no exception may leave this file.
template <class Body>
int guarded(pyoptim_error* error, Body body) {
    const auto failed = [&](int code, const char* message) {
        if (error != nullptr) std::snprintf(error->message, sizeof(error->message), "%s", message);
        return code;
    };
    try {
        body();
        return PYOPTIM_OK;
    } catch (const std::logic_error& caught) {  // invalid_argument among them
        return failed(PYOPTIM_INVALID, caught.what());
    } catch (const std::exception& caught) {
        return failed(PYOPTIM_FAILED, caught.what());
    } catch (...) {
        return failed(PYOPTIM_FAILED, "unknown error");
    }
}

void need(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(what);
}

// Returns what `read` does with JSON that a caller gave as the argument of this name.
template <class Read>
auto from_json(const char* name, Read read) {
    try {
        return read();
    } catch (const std::runtime_error& caught) {
        throw std::invalid_argument(std::string(name) + ": " + caught.what());
    }
}

struct Batches {
    size_t size;
    uint64_t seed;
    double* loss;
};

int fit(pyoptim_network* network, pyoptim_optimizer* optimizer, const pyoptim::Dataset<float>& data,
        const Batches& batches, pyoptim_error* error) {
    return guarded(error, [&] {
        need(network != nullptr && optimizer != nullptr, "network or optimizer is null");
        pyoptim::FitOptions options;
        options.batch_size = batches.size;
        options.seed = batches.seed;
        options.loss = network->loss;
        const auto result = network->it.fit(data, *optimizer->it, options);
        if (batches.loss != nullptr) *batches.loss = result.loss;
    });
}

}  // namespace

int pyoptim_network_create(const char* layers, uint64_t seed, pyoptim_network** network,
                           pyoptim_error* error) {
    return guarded(error, [&] {
        need(layers != nullptr && network != nullptr, "layers or network is null");
        const auto all = from_json("layers", [&] { return pyoptim::core::layers_from(layers); });
        *network = new pyoptim_network{pyoptim::Network<float>(all, seed), {}};
    });
}

int pyoptim_network_load(const char* path, pyoptim_network** network, pyoptim_error* error) {
    return guarded(error, [&] {
        need(path != nullptr && network != nullptr, "path or network is null");
        *network = new pyoptim_network{pyoptim::Network<float>::load(path), {}};
    });
}

int pyoptim_network_save(const pyoptim_network* network, const char* path, pyoptim_error* error) {
    return guarded(error, [&] {
        need(network != nullptr && path != nullptr, "network or path is null");
        network->it.save(path);
    });
}

void pyoptim_network_destroy(pyoptim_network* network) { delete network; }

size_t pyoptim_network_inputs(const pyoptim_network* network) {
    return network == nullptr ? 0 : network->it.inputs();
}
size_t pyoptim_network_outputs(const pyoptim_network* network) {
    return network == nullptr ? 0 : network->it.outputs();
}
size_t pyoptim_network_parameter_count(const pyoptim_network* network) {
    return network == nullptr ? 0 : network->it.parameter_count();
}
float* pyoptim_network_parameters(pyoptim_network* network) {
    return network == nullptr ? nullptr : network->it.parameters();
}

int pyoptim_network_set_trainable(pyoptim_network* network, size_t layer, int trainable,
                                  pyoptim_error* error) {
    return guarded(error, [&] {
        need(network != nullptr, "network is null");
        network->it.set_trainable(layer, trainable != 0);
    });
}

int pyoptim_network_set_loss(pyoptim_network* network, const char* loss, pyoptim_error* error) {
    return guarded(error, [&] {
        need(network != nullptr && loss != nullptr, "network or loss is null");
        network->loss = from_json("loss", [&] { return pyoptim::core::loss_from(loss); });
    });
}

int pyoptim_network_fit(pyoptim_network* network, pyoptim_optimizer* optimizer, const float* x,
                        const int64_t* labels, size_t examples, size_t batch_size, uint64_t seed,
                        double* loss, pyoptim_error* error) {
    return fit(network, optimizer, {x, labels, examples}, {batch_size, seed, loss}, error);
}

int pyoptim_network_fit_targets(pyoptim_network* network, pyoptim_optimizer* optimizer, const float* x,
                                const float* targets, size_t examples, size_t batch_size, uint64_t seed,
                                double* loss, pyoptim_error* error) {
    return fit(network, optimizer, {x, targets, examples}, {batch_size, seed, loss}, error);
}

int pyoptim_network_predict(const pyoptim_network* network, const float* x, size_t examples, float* y,
                            pyoptim_error* error) {
    return guarded(error, [&] {
        need(network != nullptr && x != nullptr && y != nullptr, "network, x or y is null");
        network->it.predict(x, examples, y);
    });
}

int pyoptim_optimizer_create(const char* name, size_t size, pyoptim_optimizer** optimizer,
                             pyoptim_error* error) {
    return guarded(error, [&] {
        need(name != nullptr && optimizer != nullptr, "name or optimizer is null");
        *optimizer = new pyoptim_optimizer{pyoptim::make_optimizer<float>(name, size)};
    });
}

int pyoptim_optimizer_set(pyoptim_optimizer* optimizer, const char* name, double value,
                          pyoptim_error* error) {
    return guarded(error, [&] {
        need(optimizer != nullptr && name != nullptr, "optimizer or name is null");
        optimizer->it->set(name, value);
    });
}

int pyoptim_optimizer_step(pyoptim_optimizer* optimizer, float* param, const float* grad,
                           pyoptim_error* error) {
    return guarded(error, [&] {
        need(optimizer != nullptr && param != nullptr && grad != nullptr, "optimizer, param or grad is null");
        optimizer->it->step(param, grad);
    });
}

void pyoptim_optimizer_destroy(pyoptim_optimizer* optimizer) { delete optimizer; }

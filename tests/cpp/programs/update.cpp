// Single updates on raw pointers, a network from nothing, and errors. Prints the updated parameters.
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <vector>

#include "pyoptim/network.hpp"

int main() {
    std::vector<double> p = {1, -2, 3}, g(3);
    pyoptim::Adam<double> adam(p.size());
    adam.lr = 0.1;
    adam.weight_decay = 0.01;
    for (int step = 0; step < 5; ++step) {
        for (std::size_t i = 0; i < p.size(); ++i) g[i] = 2 * p[i];
        adam.step(p.data(), g.data());
    }
    std::printf("%.17g %.17g %.17g\n", p[0], p[1], p[2]);

    // y = x0 - 2 x1 + 1, learned
    std::vector<double> x, y;
    for (int i = 0; i < 64; ++i) {
        x.insert(x.end(), {(i % 8) / 4.0 - 1, (i / 8) / 4.0 - 1});
        y.push_back(x[2 * i] - 2 * x[2 * i + 1] + 1);
    }
    pyoptim::Network<double> network({pyoptim::dense(2, 8, "tanh", "he"), pyoptim::dense(8, 1)}, 1);
    pyoptim::NAdam<double> nadam(network.parameter_count());
    nadam.lr = 0.02;
    pyoptim::FitOptions options;
    options.epochs = 300;
    options.batch_size = 16;
    const double loss = network.fit({x.data(), y.data(), 64}, nadam, options).loss;
    std::vector<double> z(64);
    network.predict(x.data(), 64, z.data());
    if (!(loss < 1e-2 && (z[0] - y[0]) * (z[0] - y[0]) < 0.1)) return 4;

    // Gradients that are not finite: left out, or an error that changes nothing.
    const double infinite[] = {0, HUGE_VAL, 0};
    const std::vector<double> before = p;
    adam.nonfinite = pyoptim::NonFinite::skip;
    adam.step(p.data(), infinite);
    if (p != before || adam.skipped != 1 || adam.progress().step != 5) return 7;
    adam.nonfinite = pyoptim::NonFinite::raise;
    try {
        adam.step(p.data(), infinite);
        return 8;
    } catch (const std::domain_error&) {
        if (p != before || adam.progress().step != 5) return 9;
    }
    const double wild = 1.7e308;  // finite, but the slope of the loss is not
    const std::int64_t steps = nadam.progress().step;
    nadam.nonfinite = pyoptim::NonFinite::skip;
    options.epochs = 3;
    network.fit({x.data(), &wild, 1}, nadam, options);
    if (nadam.skipped != 3 || nadam.progress().step != steps) return 10;
    nadam.nonfinite = pyoptim::NonFinite::raise;
    try {
        network.fit({x.data(), &wild, 1}, nadam, options);
        return 11;
    } catch (const std::domain_error&) {
        if (nadam.progress().step != steps) return 12;
    }

    // Gradients of every size are clipped to the same step, alone and in a training.
    for (const double size : {1.0, 1e200}) {
        std::vector<double> moved(2);
        const double gradient[] = {3 * size, 4 * size};
        pyoptim::SGD<double> descent(2);
        descent.lr = descent.max_grad_norm = 1;
        descent.step(moved.data(), gradient);
        if (!(std::fabs(moved[0] + 0.6) < 1e-6 && std::fabs(moved[1] + 0.8) < 1e-6)) return 18;
    }
    pyoptim::Network<double> steep({pyoptim::dense(1, 1)}, 1);
    const double start = steep.parameters()[1], one = 1, far = 1e180;
    pyoptim::SGD<double> descent(steep.parameter_count());
    descent.lr = descent.max_grad_norm = 1;
    options.epochs = 1;
    steep.fit({&one, &far, 1}, descent, options);
    if (!(std::fabs(steep.parameters()[1] - start - std::sqrt(0.5)) < 1e-9)) return 19;
    options.epochs = 3;

    // Hyperparameters out of range.
    try {
        adam.set("beta1", 1);
        return 13;
    } catch (const std::invalid_argument& error) {
        if (adam.beta1 != 0.9) return 14;
        std::printf("%s\n", error.what());
    }
    pyoptim::SGD<double> sgd(p.size());
    sgd.momentum = -1;
    try {
        sgd.step(p.data(), g.data());
        return 15;
    } catch (const std::invalid_argument& error) {
        if (p != before) return 16;
        std::printf("%s\n", error.what());
    }
    nadam.weight_decay = std::nan("");
    try {
        network.fit({x.data(), y.data(), 64}, nadam, options);
        return 17;
    } catch (const std::invalid_argument& error) {
        std::printf("%s\n", error.what());
    }
    nadam.weight_decay = 0;

    try {
        const std::int64_t label = 7;
        network.fit({x.data(), &label, 1}, nadam, options);
        return 5;
    } catch (const std::invalid_argument& error) {
        std::printf("%s\n", error.what());
    }
    try {
        pyoptim::Network<double>({pyoptim::dense(2, 3), pyoptim::dense(4, 1)});
        return 6;
    } catch (const std::invalid_argument& error) {
        std::printf("%s\n", error.what());
    }
}

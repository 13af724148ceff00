// Single updates on raw pointers, a network from nothing, and errors. Prints the updated parameters.
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

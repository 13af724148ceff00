// Single updates on raw pointers, a network from nothing, and errors. Prints the updated parameters.
#include <cstdio>
#include <functional>
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

    // A block is frozen, and thawed: 24 parameters, 72 in the block, 9.
    pyoptim::Network<double> deep({pyoptim::dense(2, 8, "tanh"),
                                   pyoptim::residual({pyoptim::dense(8, 8, "tanh")}), pyoptim::dense(8, 1)},
                                  1);
    pyoptim::AdamW<double> adamw(deep.parameter_count());
    options.epochs = 3;
    const auto moved = [&](std::size_t begin, std::size_t end) {
        std::size_t count = 0;
        const std::vector<double> before(deep.parameters(), deep.parameters() + deep.parameter_count());
        deep.fit({x.data(), y.data(), 64}, adamw, options);
        for (std::size_t i = begin; i < end; ++i) count += deep.parameters()[i] != before[i];
        return count;
    };
    if (deep.parameter_count() != 105 || moved(0, 105) != 105) return 5;
    deep.set_trainable(1, false);
    if (deep.layers()[1].block[0].trainable || moved(24, 96) != 0 || moved(0, 105) != 33) return 6;
    deep.set_trainable(1, true);
    if (moved(0, 105) != 105) return 7;

    const auto fails = [](const std::function<void()>& call) {
        try {
            call();
            std::printf("no error\n");
        } catch (const std::invalid_argument& error) {
            std::printf("%s\n", error.what());
        }
    };
    const std::int64_t label = 7;
    fails([&] { network.fit({x.data(), &label, 1}, nadam, options); });
    fails([] { pyoptim::Network<double>({pyoptim::dense(2, 3), pyoptim::dense(4, 1)}); });
    fails([&] { deep.set_trainable(3, false); });
    for (std::size_t i = 0; i < 3; ++i) deep.set_trainable(i, false);
    fails([&] { deep.fit({x.data(), y.data(), 64}, adamw, options); });
    fails(
        [] { pyoptim::Network<double>({pyoptim::residual({pyoptim::dense(3, 2), pyoptim::dense(3, 2)})}); });
    fails(
        [] { pyoptim::Network<double>({pyoptim::dense(2, 2), pyoptim::residual({pyoptim::dense(2, 3)})}); });
}

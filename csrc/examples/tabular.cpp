// Regression on a table: columns brought to one scale, early stopping by held-out rows, the best weights
// kept.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "pyoptim/network.hpp"

constexpr std::size_t kRows = 1200, kHeldOut = 200, kColumns = 5;

int main() {
    std::mt19937 random(0);
    std::normal_distribution<float> normal;
    std::vector<float> x(kRows * kColumns), y(kRows);
    for (std::size_t i = 0; i < kRows; ++i) {
        float* const row = &x[i * kColumns];
        for (std::size_t k = 0; k < kColumns; ++k) row[k] = normal(random);
        y[i] = std::sin(2 * row[0]) + row[1] * row[2] + 0.1f * normal(random);
        row[3] = 50 + 1000 * row[3];  // a column of another scale, which says nothing
    }
    // BatchNorm as the first layer learns the scale of each column.
    pyoptim::Network<float> network({pyoptim::batch_norm(kColumns), pyoptim::dense(kColumns, 64),
                                     pyoptim::layer("GELU"), pyoptim::dense(64, 64), pyoptim::layer("GELU"),
                                     pyoptim::dense(64, 1)});
    pyoptim::AdamW<float> adam(network.parameter_count());
    adam.lr = 3e-3;
    const std::size_t trained = kRows - kHeldOut;
    const pyoptim::Dataset<float> train(x.data(), y.data(), trained);
    const pyoptim::Dataset<float> held_out(&x[trained * kColumns], &y[trained], kHeldOut);

    pyoptim::FitOptions options;
    options.epochs = 200;
    options.loss = {"Huber"};
    options.early_stopping.emplace();
    options.early_stopping->patience = 10;
    int epochs = 0;
    options.after_epoch = [&](int, const pyoptim::EpochResult&) { return ++epochs, true; };
    network.fit(train, adam, options, &held_out);

    const double error = network.evaluate(held_out, {"MSE"}).loss;
    std::printf("%d epochs, squared error %.4f where the noise is 0.01\n", epochs, error);
    return epochs < 200 && error < 0.3 ? 0 : 1;
}

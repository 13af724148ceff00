// Residual blocks, layers that are frozen and thawed, and options that no layer or loss takes. Prints the
// errors of what cannot be; of given files, those of loading them.
#include <cmath>
#include <cstdio>
#include <functional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "pyoptim/network.hpp"

using pyoptim::dense;
using pyoptim::residual;
using Network = pyoptim::Network<double>;

static void fails(const std::function<void()>& call) {
    try {
        call();
        std::printf("no error\n");
    } catch (const std::exception& error) {
        std::printf("%s\n", error.what());
    }
}

static bool refused(const std::function<void()>& call) {
    try {
        call();
        return false;
    } catch (const std::invalid_argument&) {
        return true;
    }
}

// Whether every option that is a number refuses this one.
static bool options_refuse(double value) {
    using pyoptim::Layer;
    using pyoptim::Loss;
    const std::pair<const char*, double Layer::*> of_layers[] = {
        {"BatchNorm", &Layer::eps}, {"BatchNorm", &Layer::momentum},      {"LayerNorm", &Layer::eps},
        {"Dropout", &Layer::p},     {"GaussianNoise", &Layer::deviation}, {"LeakyReLU", &Layer::slope},
        {"ELU", &Layer::alpha},     {"Softplus", &Layer::beta},           {"Hardtanh", &Layer::low},
        {"Hardtanh", &Layer::high}, {"Rescale", &Layer::scale},           {"Rescale", &Layer::shift}};
    for (const auto& [type, option] : of_layers) {
        Layer made = pyoptim::layer(type);
        made.in = 2;
        made.features = {2};
        Network fine({dense(2, 2), made});
        made.*option = value;
        if (!refused([&] { Network({dense(2, 2), made}); })) return false;
    }
    const std::pair<const char*, double Loss::*> of_losses[] = {{"CrossEntropy", &Loss::label_smoothing},
                                                                {"KLDiv", &Loss::temperature},
                                                                {"Huber", &Loss::delta},
                                                                {"BinaryCrossEntropy", &Loss::pos_weight}};
    Network network({dense(2, 2)});
    pyoptim::SGD<double> optimizer(network.parameter_count());
    const double x[] = {1, 2}, y[] = {0.25, 0.75};
    for (const auto& [type, option] : of_losses) {
        Loss loss;
        loss.type = type;
        network.step({x, y, 1}, optimizer, loss);
        loss.*option = value;
        if (!refused([&] { network.step({x, y, 1}, optimizer, loss); })) return false;
    }
    return refused([&] { optimizer.set("lr", value); }) && refused([&] { optimizer.set("maximize", value); });
}

int main(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
        fails([&] { pyoptim::Network<float>::load(argv[i]); });
    }
    if (argc > 1) return 0;
    std::vector<double> x, y;
    for (int i = 0; i < 64; ++i) {
        x.insert(x.end(), {(i % 8) / 4.0 - 1, (i / 8) / 4.0 - 1});
        y.push_back(x[2 * i] * x[2 * i + 1]);
    }
    // 24 parameters, 72 in the block, 9
    Network network({dense(2, 8, "tanh"), residual({dense(8, 8, "tanh")}), dense(8, 1)}, 1);
    pyoptim::AdamW<double> optimizer(network.parameter_count());
    pyoptim::FitOptions options;
    options.epochs = 3;
    const auto moved = [&](std::size_t begin, std::size_t end) {
        std::size_t count = 0;
        const std::vector<double> before(network.parameters(),
                                         network.parameters() + network.parameter_count());
        network.fit({x.data(), y.data(), 64}, optimizer, options);
        for (std::size_t i = begin; i < end; ++i) count += network.parameters()[i] != before[i];
        return count;
    };
    if (network.parameter_count() != 105 || moved(0, 105) != 105) return 1;
    network.set_trainable(1, false);
    if (network.layers()[1].block[0].trainable || moved(24, 96) != 0 || moved(0, 105) != 33) return 2;
    network.set_trainable(1, true);
    if (moved(0, 105) != 105) return 3;
    pyoptim::Layer frozen = residual({dense(2, 2)});
    frozen.trainable = false;
    if (Network({frozen, dense(2, 1)}).layers()[0].block[0].trainable) return 4;

    // Sizes that do not fit: 16 times 2^60 parameters would add up to 0, and -2 times -2 to 4.
    std::vector<pyoptim::Layer> huge(16, dense(1 << 30, 1 << 30));
    for (pyoptim::Layer& layer : huge) layer.bias = false;
    huge.push_back(pyoptim::layer_norm(1 << 10));
    pyoptim::Layer negative = pyoptim::layer("LayerNorm");
    negative.features = {-2, -2};
    // 2^62 statistics that are no parameters, and lists of 2^31 times 2^31 features.
    const pyoptim::Layer many = pyoptim::batch_norm(std::ptrdiff_t{1} << 62);
    pyoptim::Layer square = pyoptim::layer("LayerNorm");
    square.features = {std::ptrdiff_t{1} << 31, std::ptrdiff_t{1} << 31};
    using Layers = std::vector<pyoptim::Layer>;
    for (const auto& layers : {huge, Layers{dense(4, 4), negative}, Layers{many}, Layers{square}}) {
        if (!refused([&] { Network made(layers); })) return 5;
    }

    for (const double value : {NAN, INFINITY, -INFINITY}) {
        if (!options_refuse(value)) return 6;
    }

    for (const int n : {-1, 0, 100000}) {
        if (!refused([&] { pyoptim::set_num_threads(n); })) return 7;
    }

    fails([&] { network.set_trainable(3, false); });
    for (std::size_t i = 0; i < 3; ++i) network.set_trainable(i, false);
    fails([&] { network.fit({x.data(), y.data(), 64}, optimizer, options); });
    fails([] { Network({residual({dense(3, 2), dense(3, 2)})}); });
    fails([] { Network({dense(2, 2), residual({dense(2, 3)})}); });
    fails([] { Network({residual({}), dense(2, 2)}); });
    fails([] { pyoptim::set_num_threads(100000); });
}

// Every kind of layer and loss. With one argument, makes a network and saves it to that file; kinds FILE TYPE
// makes one with a layer of that type, whose options are the defaults. Else
// kinds MODEL INPUTS TARGETS LOSS OUTPUTS RESULT predicts with a saved model, trains it for two epochs on
// targets (int64 labels if LOSS is "labels") and saves it, and folded as RESULT.folded.
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "pyoptim/network.hpp"

template <class T>
std::vector<T> read(const char* path) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    const T* const begin = reinterpret_cast<const T*>(bytes.data());
    return {begin, begin + bytes.size() / sizeof(T)};
}

static void make(const char* path) {
    pyoptim::Layer gelu = pyoptim::layer("GELU"), leaky = pyoptim::activation("leaky_relu");
    gelu.approximate = true;
    leaky.slope = 0.25;
    pyoptim::Layer batch_norm = pyoptim::batch_norm(5);
    batch_norm.momentum = -1;
    batch_norm.unbiased = false;
    pyoptim::Network<double> network(
        {pyoptim::layer("Flatten"), pyoptim::rescale(0.1), pyoptim::dense(4, 5, "tanh"), batch_norm, leaky,
         pyoptim::residual({pyoptim::layer_norm(5), gelu, pyoptim::dropout(0.25)}),
         pyoptim::gaussian_noise(0.5), pyoptim::dense(5, 3), pyoptim::layer("LogSoftmax")},
        7);
    network.set_trainable(2, false);
    network.save(path);
}

static pyoptim::Loss loss_of(const std::string& type) {
    pyoptim::Loss loss;
    loss.type = type == "labels" ? "CrossEntropy" : type;
    loss.label_smoothing = 0.1;
    loss.class_weight = {0.5, 1.25, 2};
    loss.temperature = 1.5;
    loss.delta = 0.75;
    loss.pos_weights = {0.5, 2, 3};
    return loss;
}

int main(int argc, char** argv) {
    if (argc == 2) {
        make(argv[1]);
        return 0;
    }
    if (argc == 3) {
        pyoptim::Network<float>({pyoptim::dense(4, 4), pyoptim::layer(argv[2])}).save(argv[1]);
        return 0;
    }
    if (argc != 7) return 2;
    auto network = pyoptim::Network<float>::load(argv[1]);
    const auto x = read<float>(argv[2]);
    const std::size_t examples = x.size() / network.inputs();
    std::vector<float> y(examples * network.outputs());
    network.predict(x.data(), examples, y.data());
    std::ofstream(argv[5], std::ios::binary)
        .write(reinterpret_cast<const char*>(y.data()),
               static_cast<std::streamsize>(y.size() * sizeof(float)));

    const std::string type = argv[4];
    const auto labels = read<std::int64_t>(argv[3]);
    const auto targets = read<float>(argv[3]);
    const pyoptim::Dataset<float> data = type == "labels"
                                             ? pyoptim::Dataset<float>(x.data(), labels.data(), examples)
                                             : pyoptim::Dataset<float>(x.data(), targets.data(), examples);
    pyoptim::Adam<float> optimizer(network.parameter_count());
    pyoptim::FitOptions options;
    options.epochs = 2;
    options.batch_size = 8;
    options.shuffle = false;
    options.loss = loss_of(type);
    options.after_epoch = [](int, const pyoptim::EpochResult& result) {
        std::printf("%.17g %.17g\n", result.loss, result.accuracy);
        return true;
    };
    network.fit(data, optimizer, options);
    network.save(argv[6]);
    network.folded().save(std::string(argv[6]) + ".folded");
}

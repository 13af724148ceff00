// Classes of images: example_mnist IMAGES LABELS, two files of MNIST, unpacked. Without files, the images are
// drawn: bars at a place that says the class, under noise.
#include <cstdio>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "pyoptim/network.hpp"

using Bytes = std::vector<std::uint8_t>;
constexpr std::size_t kPixels = 28 * 28, kClasses = 10;

static Bytes read(const std::string& path, std::size_t header) {
    std::ifstream file(path, std::ios::binary);
    Bytes all((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (all.size() <= header) throw std::runtime_error(path + " cannot be read");
    return Bytes(all.begin() + static_cast<std::ptrdiff_t>(header), all.end());
}

static void draw(std::size_t examples, Bytes& images, Bytes& labels) {
    std::mt19937 random(0);
    images.resize(examples * kPixels);
    for (std::size_t i = 0; i < examples; ++i) {
        labels.push_back(static_cast<std::uint8_t>(random() % kClasses));
        for (std::size_t pixel = 0; pixel < kPixels; ++pixel) {
            const bool bar = pixel % 28 / 3 == labels[i];
            images[i * kPixels + pixel] = static_cast<std::uint8_t>(random() % 160 + (bar ? 95 : 0));
        }
    }
}

int main(int argc, char** argv) {
    Bytes images, labels;
    if (argc == 3) {
        images = read(argv[1], 16);
        labels = read(argv[2], 8);
    } else {
        draw(2000, images, labels);
    }
    // The last tenth is held out. Bytes stay bytes: the first layer scales them as they are read.
    const std::size_t held_out = labels.size() / 10, trained = labels.size() - held_out;
    const pyoptim::Dataset<float> train(images.data(), labels.data(), trained);
    const pyoptim::Dataset<float> test(images.data() + trained * kPixels, labels.data() + trained, held_out);

    pyoptim::Network<float> network({pyoptim::rescale(1.0 / 255), pyoptim::dense(kPixels, 128, "relu", "he"),
                                     pyoptim::dropout(0.1), pyoptim::dense(128, kClasses)});
    pyoptim::Adam<float> adam(network.parameter_count());
    pyoptim::FitOptions options;
    options.epochs = 3;
    options.after_epoch = [](int epoch, const pyoptim::EpochResult& result) {
        std::printf("epoch %d: loss %.4f, accuracy %.4f; held out: %.4f\n", epoch + 1, result.loss,
                    result.accuracy, result.validation_accuracy);
        return true;
    };
    network.fit(train, adam, options, &test);
    return network.evaluate(test).accuracy > 0.9 ? 0 : 1;
}
